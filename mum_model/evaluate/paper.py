"""What the paper reports, to stand beside a run of one's own (MuM, arXiv 2511.17309; ViT-L, frozen)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        about: What it is, and how it was judged.
        heading: Of each column; the first is the encoder's.
        rows: As texts.
    """

    about: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


PAPER = (
    Table(
        "Two views, at 448 pixels; the pose is from a trained head at 256 pixels, as in pose head, not from matches",
        (
            "",
            "MegaDepth probe EPE, px",
            "MegaDepth probe R@32",
            "ScanNet probe EPE, px",
            "MegaDepth-1500 pose head AUC@5",
        ),
        (
            ("MAE", "29.7", "0.734", "35.0", ""),
            ("CroCo v2 (tuned by DUSt3R)", "22.0", "0.809", "29.0", "0.139"),
            ("DINOv3", "19.0", "0.864", "28.7", "0.156"),
            ("MuM", "10.2", "0.942", "27.9", "0.267"),
        ),
    ),
    Table(
        "Ten views at 336 pixels: pose AUC@30, and accuracy / completeness of points (less is better; DTU in "
        "millimetres, ETH3D in metres)",
        ("", "CO3D v2", "RealEstate10K", "MegaDepth", "DTU", "ETH3D"),
        (
            ("CroCo v2", "0.582", "0.277", "0.607", "8.5 / 12.3", "0.9 / 1.0"),
            ("DINOv3", "0.669", "0.367", "0.593", "6.4 / 3.7", "0.9 / 1.0"),
            ("MuM", "0.715", "0.508", "0.730", "3.7 / 1.6", "0.8 / 0.8"),
            ("distilled from VGGT, random weights", "0.106", "0.280", "0.418", "8.4 / 11.7", "1.0 / 1.4"),
            ("distilled from VGGT, MuM's weights", "0.626", "0.509", "0.786", "6.4 / 2.6", "0.6 / 0.5"),
        ),
    ),
)
