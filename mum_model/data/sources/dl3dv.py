"""DL3DV-10K (https://github.com/DL3DV-10K/Dataset): walks through places, the photos at an eighth of their size.

Converts from: nerfstudio's `transforms.json`, which lists `images/` at full size; the photos in `images_8` are those of
the same names, and the camera is shrunk with them.
"""

from functools import partial
from pathlib import Path

from mum_model.data.captures import Capture, Scene, SequenceRule, Source
from mum_model.data.sources.common import folders
from mum_model.data.sources.nerfstudio import read_transforms

RULE = SequenceRule(kind="whole")
FOLDER, SHRINK = "images_8", 8


def recognise(path: Path) -> bool:
    """Whether scenes with `images_8` are under the path, or it is one."""
    return bool(_scene_folders(path))


def scenes(path: Path) -> list[Scene]:
    """List the scenes of all parts (`1K`, `2K`, ...)."""
    return [Scene("dl3dv", folder.name, (folder,), partial(read, folder)) for folder in _scene_folders(path)]


def _scene_folders(path: Path) -> list[Path]:
    nested = [scene for part in folders(path) for scene in folders(part)]
    return [folder for folder in [path, *folders(path), *nested] if (folder / FOLDER).is_dir()]


def read(folder: Path) -> Capture:
    """Describe the photos of a scene; raises `RefusedError` where its `transforms.json` is broken."""
    camera = folder / "nerfstudio" if (folder / "nerfstudio").is_dir() else folder
    file = camera / "transforms.json"
    return read_transforms(
        file, "dl3dv", folder.name, place=lambda listed: f"{FOLDER}/{Path(listed).name}", shrink=SHRINK, rule=RULE
    )


SOURCE = Source(
    name="dl3dv",
    layout="1K/SCENE/{transforms.json, images_8/frame_00001.png}",
    truth="poses and intrinsics; up to scale",
    licence="DL3DV-10K terms of use: research and education, CC BY-NC 4.0",
    origin="https://github.com/DL3DV-10K/Dataset",
    recognise=recognise,
    scenes=scenes,
)
