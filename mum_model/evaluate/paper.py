"""What the paper reports, to stand beside a run of one's own (MuM, arXiv 2511.17309; ViT-L, frozen, 448 px)."""

PAPER = {
    "heading": [
        "",
        "MegaDepth probe EPE, px",
        "MegaDepth probe R@32",
        "ScanNet probe EPE, px",
        "MegaDepth-1500 pose AUC@5",
    ],
    "rows": [
        ["MAE", "29.7", "0.734", "35.0", ""],
        ["CroCo v2 (tuned by DUSt3R)", "22.0", "0.809", "29.0", "0.139"],
        ["DINOv3", "19.0", "0.864", "28.7", "0.156"],
        ["MuM", "10.2", "0.942", "27.9", "0.267"],
    ],
}
"""Its pose column is from a trained pose head, not from matches."""
