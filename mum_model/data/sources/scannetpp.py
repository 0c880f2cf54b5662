"""ScanNet++ (https://kaldir.vc.in.tum.de/scannetpp/): rooms by a DSLR with a fisheye lens, undistorted.

Converts from: nerfstudio's format, `frames` alone and not `test_frames`; of the photos, the undistorted ones where they
are, else the fisheye ones, which become pinholes here. Scenes are those of `splits/nvs_sem_train.txt`, or all without.
"""

from functools import partial
from pathlib import Path

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.sources.common import folders
from mum_model.data.sources.nerfstudio import read_transforms

RULE = SequenceRule(kind="chunk", frames=100)
FORMS = (("resized_undistorted_images", "transforms_undistorted.json"), ("resized_images", "transforms.json"))


def recognise(path: Path) -> bool:
    """Whether `data/SCENE/dslr` is under the path."""
    return bool(_scene_folders(path))


def scenes(path: Path) -> list[Scene]:
    """List the scenes of the training split."""
    split = path / "splits" / "nvs_sem_train.txt"
    training = set(split.read_text().split()) if split.is_file() else None
    found = [folder for folder in _scene_folders(path) if training is None or folder.name in training]
    return [Scene("scannetpp", folder.name, (folder / "dslr",), partial(read, folder)) for folder in found]


def _scene_folders(path: Path) -> list[Path]:
    return [folder for part in (path / "data", path) for folder in folders(part) if (folder / "dslr").is_dir()]


def read(folder: Path) -> Capture:
    """Describe the DSLR photos of a scene; raises `RefusedError` where it has none or their cameras are broken."""
    dslr = folder / "dslr"
    for photos, name in FORMS:
        file = dslr / "nerfstudio" / name
        if (dslr / photos).is_dir() and file.is_file():
            listed_in = partial(_listed_in, photos)
            return read_transforms(file, "scannetpp", folder.name, place=listed_in, base=dslr, rule=RULE)
    expected = " or ".join(f"{photos} with nerfstudio/{name}" for photos, name in FORMS)
    raise RefusedError(dslr, f"no photos with cameras; expected {expected}")


def _listed_in(photos: str, listed: str) -> str:
    return f"{photos}/{listed}"


SOURCE = Source(
    name="scannetpp",
    layout="data/SCENE/dslr/{resized_undistorted_images/DSC00001.JPG, nerfstudio/transforms_undistorted.json} or "
    "{resized_images, nerfstudio/transforms.json}; splits/nvs_sem_train.txt",
    truth="poses and intrinsics in metres",
    licence="ScanNet++ terms of use: non-commercial research",
    origin="https://kaldir.vc.in.tum.de/scannetpp/",
    recognise=recognise,
    scenes=scenes,
)
