"""WildRGB-D (https://github.com/wildrgbd/wildrgbd): turns around objects, filmed by a phone with depth.

Converts from: `cam_poses.txt`, a line a frame: its number and camera-to-world 4x4 with OpenCV axes, in metres;
`metadata`, JSON whose `K` is column by column; depth along z in millimetres, 16 bits.
"""

from functools import partial
from pathlib import Path

import numpy as np

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    depth_png,
    file_capture,
    folders,
    natural_order,
    read_json,
    read_matrix,
    world2cam_from,
)

RULE = SequenceRule(kind="whole", least=24)


def recognise(path: Path) -> bool:
    """Whether the path has categories with `scenes` of `cam_poses.txt`."""
    return any(True for _ in path.glob("*/scenes/*/cam_poses.txt")) if path.is_dir() else False


def scenes(path: Path) -> list[Scene]:
    """List the scenes of all categories."""
    found = [scene for category in folders(path) for scene in folders(category / "scenes")]
    return [
        Scene("wildrgbd", f"{folder.parent.parent.name}/{folder.name}", (folder,), partial(read, folder))
        for folder in found
    ]


def read(folder: Path) -> Capture:
    """Describe the frames of a scene.

    Args:
        folder: With `rgb`, `depth`, `cam_poses.txt` and `metadata`.

    Returns:
        The capture; frames are named by their number. A frame without a pose is among the refused.

    Raises:
        RefusedError: `metadata` or `cam_poses.txt` is broken.
    """
    intrinsics, size = _camera(folder / "metadata")
    rows = read_matrix(folder / "cam_poses.txt")
    if rows.ndim != 2 or rows.shape[1] != 17:
        raise RefusedError(folder / "cam_poses.txt", f"rows of shape {rows.shape}; expected a number and 16 more each")
    poses = {int(row[0]): row[1:].reshape(4, 4) for row in rows}
    names = natural_order(path.stem for path in (folder / "rgb").glob("*.png"))
    view = partial(_view, folder, intrinsics, size, poses)
    return file_capture("wildrgbd", f"{folder.parent.parent.name}/{folder.name}", names, view, rule=RULE)


def _camera(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    content = read_json(path)
    try:
        intrinsics = np.array(content["K"], np.float64).reshape(3, 3).T
        return checked_intrinsics(path, intrinsics, "K: "), (float(content["w"]), float(content["h"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(path, f"no camera ({error}); expected 'w', 'h' and 'K' of nine numbers") from error


def _view(
    folder: Path, intrinsics: np.ndarray, size: tuple[float, float], poses: dict[int, np.ndarray], name: str
) -> FileView:
    image = folder / "rgb" / f"{name}.png"
    file = folder / "cam_poses.txt"
    if not name.isdecimal() or int(name) not in poses:
        raise RefusedError(image, f"no pose for it in {file.name}")
    world2cam = world2cam_from(file, poses[int(name)], f"frame {name}: ")
    return FileView(image, intrinsics, world2cam, depth_png(folder / "depth" / f"{name}.png"), size)


SOURCE = Source(
    name="wildrgbd",
    layout="CATEGORY/scenes/scene_000/{rgb/00000.png, depth/00000.png, cam_poses.txt, metadata}",
    truth="poses, intrinsics and depth in metres",
    licence="MIT",
    origin="https://github.com/wildrgbd/wildrgbd",
    recognise=recognise,
    scenes=scenes,
)
