"""BlendedMVS (https://github.com/YoYo000/BlendedMVS): reconstructions rendered and blended with their photos.

Converts from: cameras as MVSNet writes them, world-to-camera with OpenCV axes, the centre of the top-left pixel at
(0.5, 0.5); depth as PFM, along z, in the model's unit. The `_masked` photos are left aside.
"""

from functools import partial
from pathlib import Path

import numpy as np

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    file_capture,
    folders,
    known_depth,
    natural_order,
    world2cam_given,
)

RULE = SequenceRule(kind="whole")
MAX_HEADER = 64  # bytes of a PFM's three header lines


def recognise(path: Path) -> bool:
    """Whether the path is a scene, or holds scenes, with `blended_images` in it."""
    return bool(_scene_folders(path))


def scenes(path: Path) -> list[Scene]:
    """List the scenes under a path."""
    return [Scene("blendedmvs", folder.name, (folder,), partial(read, folder)) for folder in _scene_folders(path)]


def _scene_folders(path: Path) -> list[Path]:
    return [folder for folder in [path, *folders(path)] if (folder / "blended_images").is_dir()]


def read(folder: Path) -> Capture:
    """Describe the photos of a scene, in natural order of their names.

    Args:
        folder: With `blended_images`, `cams` and `rendered_depth_maps`.

    Returns:
        The capture; frames are named by their number.
    """
    photos = (path.stem for path in (folder / "blended_images").glob("*.jpg") if not path.stem.endswith("_masked"))
    return file_capture("blendedmvs", folder.name, natural_order(photos), partial(_view, folder), rule=RULE)


def _view(folder: Path, name: str) -> FileView:
    world2cam, intrinsics = read_mvsnet_camera(folder / "cams" / f"{name}_cam.txt")
    depth = folder / "rendered_depth_maps" / f"{name}.pfm"
    return FileView(
        folder / "blended_images" / f"{name}.jpg",
        intrinsics,
        world2cam,
        partial(read_pfm, depth) if depth.is_file() else None,
    )


def read_mvsnet_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pose `[3, 4]` and intrinsics `[3, 3]` of a camera file of MVSNet; raises `RefusedError` where it is broken."""
    form = "expected 'extrinsic' and 4x4 numbers, then 'intrinsic' and 3x3 numbers"
    if not path.is_file():
        raise RefusedError(path, f"missing; {form}")
    words = path.read_text(errors="replace").split()
    try:
        at, to = words.index("extrinsic") + 1, words.index("intrinsic") + 1
        extrinsic = np.array(words[at : at + 16], np.float64).reshape(4, 4)
        intrinsic = np.array(words[to : to + 9], np.float64).reshape(3, 3)
    except ValueError as error:
        raise RefusedError(path, f"not a camera ({error}); {form}") from error
    return world2cam_given(path, extrinsic, "extrinsic: "), checked_intrinsics(path, intrinsic, "intrinsic: ")


def read_pfm(path: Path) -> np.ndarray:
    """A grey portable float map (http://www.pauldebevec.com/Research/HDR/PFM/), its rows from bottom to top.

    Args:
        path: The file.

    Returns:
        float32 `[H, W]`, 0 for whatever is no distance.

    Raises:
        RefusedError: It is no grey PFM, or has not as many numbers as it says.
    """
    data = path.read_bytes()
    lines = data[:MAX_HEADER].split(b"\n", 3)
    try:
        kind, (width, height), scale = lines[0].strip(), map(int, lines[1].split()), float(lines[2])
        start = sum(len(line) + 1 for line in lines[:3])
        values = np.frombuffer(data, "<f4" if scale < 0 else ">f4", offset=start).reshape(height, width)
    except (ValueError, IndexError) as error:
        raise RefusedError(path, f"cut or damaged ({error}); expected a PFM") from error
    if kind != b"Pf":
        raise RefusedError(path, f"begins with {kind!r}; expected 'Pf', a grey PFM")
    return known_depth(values[::-1])


SOURCE = Source(
    name="blendedmvs",
    layout="SCENE/{blended_images/00000000.jpg, cams/00000000_cam.txt, rendered_depth_maps/00000000.pfm}",
    truth="poses, intrinsics and dense depth; up to scale",
    licence="CC BY 4.0",
    origin="https://github.com/YoYo000/BlendedMVS",
    recognise=recognise,
    scenes=scenes,
)
