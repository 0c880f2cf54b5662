"""RGB-D sequences of TUM (https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats).

Converts from: `groundtruth.txt`, a line a pose: time, position, quaternion (x, y, z, w), camera-to-world with OpenCV
axes, in metres; depth along z, 16 bits, 5000 a metre. Photos, depth and poses are matched by nearest time within 20 ms,
as the dataset's own `associate.py` does. Intrinsics are those that the page gives for the camera named in the folder
(`freiburg1`, ...), or of `camera-intrinsics.txt`; the page's principal point counts the centre of the top-left pixel as
(0, 0), so half a pixel is added.
"""

from functools import partial
from pathlib import Path

import numpy as np

from mum_model.data.captures import Capture, RefusedError, Source, one_scene
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    depth_png,
    file_capture,
    file_inside,
    read_matrix,
    world2cam_from,
)

REACH = 0.02  # seconds
METRES_PER_UNIT = 1 / 5000
CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
FILES = ("rgb.txt", "groundtruth.txt")


def recognise(path: Path) -> bool:
    """Whether the path has `rgb.txt` and `groundtruth.txt`."""
    return all((path / name).is_file() for name in FILES)


def read(folder: Path) -> Capture:
    """Describe the frames of a sequence, in order of time.

    Args:
        folder: With `rgb.txt`, `depth.txt`, `groundtruth.txt` and what they list.

    Returns:
        The capture; frames are named as `rgb.txt` lists them. A frame without a pose near in time is among the refused.

    Raises:
        RefusedError: A list is broken, or the intrinsics are not known.
    """
    photos = _listed(folder / "rgb.txt")
    depths = _listed(folder / "depth.txt") if (folder / "depth.txt").is_file() else {}
    poses = _poses(folder / "groundtruth.txt")
    view = partial(_view, folder, _intrinsics(folder), {name: time for time, name in photos.items()}, depths, poses)
    return file_capture("tum", folder.name, photos.values(), view)


def _lines(path: Path) -> list[list[str]]:
    lines = path.read_text(errors="replace").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def _listed(path: Path) -> dict[float, str]:
    try:
        return {float(time): name for time, name in sorted(_lines(path))}
    except ValueError as error:
        raise RefusedError(path, f"{error}; expected lines of time and file name") from error


def _poses(path: Path) -> np.ndarray:
    try:
        poses = np.array(_lines(path), np.float64)
    except ValueError as error:
        raise RefusedError(path, f"{error}; expected lines of eight numbers") from error
    if poses.ndim != 2 or poses.shape[1] != 8:
        raise RefusedError(path, f"numbers of shape {poses.shape}; expected time, position, quaternion a line")
    return poses


def _intrinsics(folder: Path) -> np.ndarray:
    file = folder / "camera-intrinsics.txt"
    if file.is_file():
        return checked_intrinsics(file, read_matrix(file))
    camera = next((numbers for name, numbers in CAMERAS.items() if name in folder.name), None)
    if camera is None:
        raise RefusedError(file, f"missing, and the folder is not named after one of {', '.join(CAMERAS)}")
    fx, fy, cx, cy = camera
    return np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])


def _view(
    folder: Path,
    intrinsics: np.ndarray,
    times: dict[str, float],
    depths: dict[float, str],
    poses: np.ndarray,
    name: str,
) -> FileView:
    try:
        image, time = file_inside(folder, name), times[name]
        depth_time = min(depths, key=lambda other: abs(other - time), default=np.inf)
        depth = file_inside(folder, depths[depth_time]) if abs(depth_time - time) <= REACH else None
    except ValueError as error:
        raise RefusedError(folder, str(error)) from error
    nearest = np.abs(poses[:, 0] - time).argmin()
    if abs(poses[nearest, 0] - time) > REACH:
        raise RefusedError(image, f"no pose within {REACH} s of it in groundtruth.txt")
    world2cam = world2cam_from(folder / "groundtruth.txt", _cam2world(poses[nearest, 1:]), f"time {time}: ")
    return FileView(image, intrinsics, world2cam, depth_png(depth, METRES_PER_UNIT) if depth else None)


def _cam2world(numbers: np.ndarray) -> np.ndarray:
    """Pose `[4, 4]` of position and quaternion (x, y, z, w)."""
    vector, w = numbers[3:6], numbers[6]
    cross = np.array([[0, -vector[2], vector[1]], [vector[2], 0, -vector[0]], [-vector[1], vector[0], 0]])
    pose = np.eye(4)
    pose[:3, :3] = (w * w - vector @ vector) * np.eye(3) + 2 * np.outer(vector, vector) + 2 * w * cross
    pose[:3, 3] = numbers[:3]
    return pose


SOURCE = Source(
    name="tum",
    layout="TUM RGB-D: rgb.txt, depth.txt, groundtruth.txt and the files that they list",
    truth="poses, intrinsics and depth in metres",
    licence="CC BY 4.0; your own captures: yours",
    origin="https://cvg.cit.tum.de/data/datasets/rgbd-dataset",
    recognise=recognise,
    scenes=one_scene("tum", read),
)
