"""CO3D v2 (https://github.com/facebookresearch/co3d): turns around objects; the 41 categories seen in training.

Converts from: PyTorch3D's cameras (x left, y up, z forward; row vectors, world-to-camera; lengths in half the shorter
side, or in half of each side) to OpenCV's; depth as 16-bit PNG whose bits are a float16, times `scale_adjustment`,
where its mask says so. The unit is that of the sequence.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.images import read_image, read_png16
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    file_capture,
    file_inside,
    folders,
    known_depth,
    read_json,
    world2cam_given,
)

RULE = SequenceRule(kind="whole", least=24)
SEEN = frozenset(
    """
    apple backpack banana baseballbat baseballglove bench bicycle bottle bowl broccoli cake car carrot cellphone chair
    cup donut hairdryer handbag hydrant keyboard laptop microwave motorcycle mouse orange parkingmeter pizza plant
    stopsign teddybear toaster toilet toybus toyplane toytrain toytruck tv umbrella vase wineglass
    """.split()  # noqa: SIM905
)
OPENCV_FROM_PYTORCH3D = np.diag([-1.0, -1.0, 1.0])
MASKED = 128


def recognise(path: Path) -> bool:
    """Whether the path has categories with `frame_annotations.jgz`."""
    return bool(_categories(path))


def scenes(path: Path) -> list[Scene]:
    """List the training sequences of the categories seen in training."""
    return [_scene(path, "", folder) for folder, training in _sequences(path) if training]


def evaluation_scenes(path: Path) -> list[Scene]:
    """List the sequences of these categories that are not for training, as `test/CATEGORY/SEQUENCE`."""
    return [_scene(path, "test/", folder) for folder, training in _sequences(path) if not training]


def _scene(path: Path, prefix: str, folder: Path) -> Scene:
    category = folder.parent
    read_it = partial(read, path, category, folder.name)
    return Scene("co3d", f"{prefix}{category.name}/{folder.name}", (folder,), read_it)


def _sequences(path: Path) -> Iterator[tuple[Path, bool]]:
    """Folder of every sequence, and whether it is for training; all are, where no set list says otherwise."""
    for category in _categories(path):
        training = _training(category)
        for folder in folders(category):
            if (folder / "images").is_dir():
                yield folder, training is None or folder.name in training


def _categories(path: Path) -> list[Path]:
    return [folder for folder in folders(path) if folder.name in SEEN and (folder / "frame_annotations.jgz").is_file()]


def _training(category: Path) -> set[str] | None:
    """Sequences that the set lists have for training; None without set lists."""
    files = [*sorted((category / "set_lists").glob("set_lists_fewview_*.json")), category / "set_lists.json"]
    lists = [read_json(file) for file in files if file.is_file()]
    if not lists:
        return None
    return {str(entry[0]) for sets in lists for name, entries in sets.items() if "train" in name for entry in entries}


def read(root: Path, category: Path, sequence: str) -> Capture:
    """Describe the frames of a sequence.

    Args:
        root: The dataset; paths in the annotations are relative to it.
        category: Folder of the category.
        sequence: Name of the sequence.

    Returns:
        The capture; frames are named as their files.

    Raises:
        RefusedError: The annotations are broken.
    """
    file = category / "frame_annotations.jgz"
    frames = {Path(str(frame["image"]["path"])).name: frame for frame in _annotations(file).get(sequence, [])}
    view = partial(_view, root, file, frames)
    return file_capture("co3d", f"{category.name}/{sequence}", frames, view, rule=RULE)


@lru_cache(maxsize=1)
def _annotations(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The frames of each sequence, in order; of the last category asked for, as they are large."""
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for frame in sorted(read_json(file), key=lambda frame: frame["frame_number"]):
            found.setdefault(frame["sequence_name"], []).append(frame)
    except (TypeError, KeyError) as error:
        raise RefusedError(
            file, f"expected a list of frames with 'sequence_name', 'frame_number' ({error!r})"
        ) from error
    return found


def _view(root: Path, file: Path, frames: dict[str, dict[str, Any]], name: str) -> FileView:
    frame = frames[name]
    try:
        height, width = map(float, frame["image"]["size"])
        image = file_inside(root, frame["image"]["path"])
        world2cam, intrinsics = _camera(file, name, frame["viewpoint"], width, height)
        return FileView(image, intrinsics, world2cam, _depth(root, frame.get("depth")), (width, height))
    except (TypeError, KeyError, ValueError) as error:
        raise RefusedError(file, f"{name}: not a frame's annotation ({error!r})") from error


def _camera(
    file: Path, name: str, viewpoint: dict[str, Any], width: float, height: float
) -> tuple[np.ndarray, np.ndarray]:
    rotation = OPENCV_FROM_PYTORCH3D @ np.array(viewpoint["R"], np.float64).T
    translation = OPENCV_FROM_PYTORCH3D @ np.array(viewpoint["T"], np.float64)
    form = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")
    half = np.array([width, height]) / 2
    unit = {"ndc_isotropic": np.full(2, half.min()), "ndc_norm_image_bounds": half}[form]
    (fx, fy), (cx, cy) = np.array(viewpoint["focal_length"]) * unit, half - viewpoint["principal_point"] * unit
    intrinsics = checked_intrinsics(file, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), f"{name}: ")
    return world2cam_given(file, np.column_stack([rotation, translation]), f"{name}: "), intrinsics


def _depth(root: Path, depth: dict[str, Any] | None) -> partial | None:
    if not depth or not (path := file_inside(root, depth["path"])).is_file():
        return None
    mask = file_inside(root, depth["mask_path"]) if depth.get("mask_path") else None
    return partial(_read_depth, path, float(depth["scale_adjustment"]), mask)


def _read_depth(path: Path, scale: float, mask: Path | None) -> np.ndarray:
    depth = known_depth(read_png16(path).view(np.float16).astype(np.float32) * np.float32(scale))
    if mask is None or not mask.is_file():
        return depth
    known = read_image(mask, upright=False)[..., 0] >= MASKED
    if known.shape != depth.shape:
        raise RefusedError(mask, f"mask of {known.shape[1]}x{known.shape[0]} pixels; expected the depth's size")
    return np.where(known, depth, 0)


SOURCE = Source(
    name="co3d",
    layout="CATEGORY/{frame_annotations.jgz, set_lists/, SEQUENCE/{images/frame000001.jpg, depths/, depth_masks/}}",
    truth="poses, intrinsics and depth; up to scale",
    licence="CC BY-NC 4.0",
    origin="https://github.com/facebookresearch/co3d",
    recognise=recognise,
    scenes=scenes,
)
