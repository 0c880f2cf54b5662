"""ScanNet (http://www.scan-net.org), as its `SensReader` exports a scan.

Converts from: `pose/0.txt`, camera-to-world 4x4 with OpenCV axes, in metres, infinite where tracking was lost;
`depth/0.png`, along z in millimetres, 16 bits; `intrinsic/intrinsic_depth.txt`, 4x4, the centre of the top-left pixel
at (0, 0), so half a pixel is added. Depth and colour are taken as registered, and the photo is shrunk to the depth's
size, as the dataset's users do.
"""

import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from mum_model.data.captures import Capture, Frame, Refusal, RefusedError, Scene, Source
from mum_model.data.images import is_jpeg, read_image
from mum_model.data.sources.common import (
    checked_intrinsics,
    depth_png,
    folders,
    natural_order,
    read_matrix,
    world2cam_from,
)

SCAN = re.compile(r"(scene\d{4})_\d{2}")
PARTS = ("color", "depth", "pose")


def recognise(path: Path) -> bool:
    """Whether the path is an exported scan, or holds some (also in `scans` or `scans_train`)."""
    return bool(_scans(path))


def scenes(path: Path) -> list[Scene]:
    """List the scans."""
    return [Scene("scannet", folder.name, (folder,), partial(read, folder)) for folder in _scans(path)]


def _scans(path: Path) -> list[Path]:
    parts = (path, path / "scans", path / "scans_train")
    places = [path, *(folder for part in parts for folder in folders(part))]
    return [folder for folder in places if all((folder / part).is_dir() for part in PARTS)]


def read(folder: Path) -> Capture:
    """Describe the frames of a scan.

    Args:
        folder: With `color`, `depth`, `pose` and `intrinsic`.

    Returns:
        The capture; frames are named by their number. A frame without depth or pose is among the refused.

    Raises:
        RefusedError: The intrinsics are missing or broken.
    """
    file = folder / "intrinsic" / "intrinsic_depth.txt"
    if not file.is_file():
        raise RefusedError(file, "missing; expected a 4x4 matrix")
    intrinsics = checked_intrinsics(file, read_matrix(file)[:3, :3]) + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    poses: dict[str, np.ndarray] = {}
    refused: list[Refusal] = []
    for name in natural_order(path.stem for path in (folder / "color").glob("*.jpg")):
        try:
            poses[name] = _pose(folder, name)
        except RefusedError as error:
            refused.append(error.refusal)
    scan = SCAN.fullmatch(folder.name)
    return Capture(
        scene=folder.name,
        source="scannet",
        frames=tuple(poses),
        load=partial(_load, folder, intrinsics, poses),
        refused=tuple(refused),
        place=scan.group(1) if scan else "",
    )


def _pose(folder: Path, name: str) -> np.ndarray:
    for path in (folder / "pose" / f"{name}.txt", folder / "depth" / f"{name}.png"):
        if not path.is_file():
            raise RefusedError(path, "missing; expected colour, depth and pose of every frame")
    file = folder / "pose" / f"{name}.txt"
    return world2cam_from(file, read_matrix(file))


def _load(folder: Path, intrinsics: np.ndarray, poses: dict[str, np.ndarray], name: str) -> Frame:
    photo = folder / "color" / f"{name}.jpg"
    image = read_image(photo, upright=False)
    read_depth = depth_png(folder / "depth" / f"{name}.png")
    assert read_depth is not None  # checked by `_pose`
    depth = read_depth()
    shrunk = cv2.resize(image, (depth.shape[1], depth.shape[0]), interpolation=cv2.INTER_AREA)
    return Frame(image=shrunk, intrinsics=intrinsics, world2cam=poses[name], depth=depth, lossy=is_jpeg(photo))


SOURCE = Source(
    name="scannet",
    layout="ScanNet export: [scans/]scene0000_00/{color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_depth.txt}",
    truth="poses, intrinsics and depth in metres",
    licence="ScanNet terms of use: non-commercial research; your own captures: yours",
    origin="http://www.scan-net.org",
    recognise=recognise,
    scenes=scenes,
)
