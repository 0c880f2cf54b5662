"""ARKitScenes (https://github.com/apple/ARKitScenes): rooms filmed by a tablet with lidar, the `lowres_wide` frames.

Converts from: `lowres_wide.traj`, a line a pose: time, rotation vector and translation, world-to-camera with OpenCV
axes, in metres; a `.pincam` a frame: width, height, fx, fy, cx, cy; depth along z in millimetres, 16 bits. A frame
takes the pose nearest in time, within 10 ms; a frame without one stays, without a pose.
"""

import csv
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    depth_png,
    file_capture,
    folders,
    natural_order,
    read_matrix,
    world2cam_given,
)

RULE = SequenceRule(kind="chunk", frames=75)
POSE_REACH = 0.01  # seconds


def recognise(path: Path) -> bool:
    """Whether videos with `lowres_wide` are under the path."""
    return bool(_videos(path))


def scenes(path: Path) -> list[Scene]:
    """List the videos of the training part, or of whatever part there is."""
    places = _places(path)
    return [
        Scene("arkitscenes", video, (folder,), partial(read, folder, video, places.get(video, "")))
        for video, folder in _videos(path).items()
    ]


def _videos(path: Path) -> dict[str, Path]:
    """Folder of `lowres_wide` of each video: of the 3dod download `VIDEO/VIDEO_frames`, of the raw one `VIDEO`."""
    parts = [path / "3dod" / "Training", path / "raw" / "Training", path / "Training", path]
    for part in parts:
        candidates = [(video, place) for video in folders(part) for place in (video / f"{video.name}_frames", video)]
        found = {video.name: place for video, place in candidates if (place / "lowres_wide").is_dir()}
        if found:
            return found
    return {}


def _places(path: Path) -> dict[str, str]:
    """The flat that each video shows: `visit_id` in the download's `metadata.csv`."""
    files = [file for file in (path / "raw" / "metadata.csv", path / "metadata.csv") if file.is_file()]
    if not files:
        return {}
    with files[0].open(newline="") as file:
        return {row["video_id"]: row["visit_id"] for row in csv.DictReader(file) if row.get("visit_id")}


def read(folder: Path, video: str, place: str) -> Capture:
    """Describe the frames of a video, in order of time.

    Args:
        folder: With `lowres_wide`, `lowres_wide_intrinsics`, `lowres_wide.traj` and `lowres_depth`.
        video: Its number.
        place: The flat that it shows; several videos may show one.

    Returns:
        The capture; frames are named by video and time.

    Raises:
        RefusedError: `lowres_wide.traj` is broken.
    """
    names = natural_order(file.stem for file in (folder / "lowres_wide").glob("*.png"))
    trajectory = folder / "lowres_wide.traj"
    poses = read_matrix(trajectory) if trajectory.is_file() else np.empty((0, 7))
    if poses.size and (poses.ndim != 2 or poses.shape[1] != 7):
        raise RefusedError(trajectory, f"rows of shape {poses.shape}; expected time, rotation vector, translation")
    return file_capture(
        "arkitscenes", video, names, partial(_view, folder, poses.reshape(-1, 7)), rule=RULE, place=place
    )


def _view(folder: Path, poses: np.ndarray, name: str) -> FileView:
    intrinsics, size = _intrinsics(folder / "lowres_wide_intrinsics" / f"{name}.pincam")
    depth = depth_png(folder / "lowres_depth" / f"{name}.png")
    return FileView(folder / "lowres_wide" / f"{name}.png", intrinsics, _pose(folder, poses, name), depth, size)


def _intrinsics(path: Path) -> tuple[np.ndarray | None, tuple[float, float] | None]:
    if not path.is_file():
        return None, None
    numbers = read_matrix(path)
    if numbers.shape != (1, 6):
        raise RefusedError(path, f"numbers of shape {numbers.shape}; expected width, height, fx, fy, cx, cy")
    width, height, fx, fy, cx, cy = numbers[0]
    return checked_intrinsics(path, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])), (width, height)


def _pose(folder: Path, poses: np.ndarray, name: str) -> np.ndarray | None:
    try:
        time = float(name.rpartition("_")[2])
    except ValueError as error:
        raise RefusedError(folder / "lowres_wide" / f"{name}.png", "expected a name of VIDEO_SECONDS.png") from error
    if not len(poses) or np.abs(poses[:, 0] - time).min() > POSE_REACH:
        return None
    _, *numbers = poses[np.abs(poses[:, 0] - time).argmin()]
    rotation = cv2.Rodrigues(np.array(numbers[:3]))[0]
    world2cam = np.concatenate([rotation, np.array(numbers[3:])[:, None]], axis=1)
    return world2cam_given(folder / "lowres_wide.traj", world2cam, f"time {time}: ")


SOURCE = Source(
    name="arkitscenes",
    layout="{3dod,raw}/Training/VIDEO/[VIDEO_frames/]{lowres_wide/VIDEO_TIME.png, lowres_depth/, "
    "lowres_wide_intrinsics/VIDEO_TIME.pincam, lowres_wide.traj}",
    truth="poses, intrinsics and depth in metres",
    licence="Apple's ARKitScenes licence: CC BY-NC-SA 4.0",
    origin="https://github.com/apple/ARKitScenes",
    recognise=recognise,
    scenes=scenes,
)
