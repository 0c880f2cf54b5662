"""What several sources share: natural order, paths that stay inside a capture, rigid poses, views that are files."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mum_model.data.captures import Capture, Frame, Refusal, RefusedError, SequenceRule
from mum_model.data.geometry import invert_pose, resize_intrinsics
from mum_model.data.images import is_jpeg, read_image, read_png16

MILLIMETRE = 1e-3

RIGID_TOLERANCE = 1e-3
"""Largest entry of R^T R - I that still is a rotation written with few digits."""


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as people number them: `view2` before `view10`."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def _natural_key(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def file_inside(folder: Path, listed: str) -> Path:
    """The path of a file that a capture lists by a relative name.

    Args:
        folder: What the name is relative to, and must stay inside of.
        listed: The name as listed, for instance `./images/0001.jpg`.

    Returns:
        The path, without `.` and `..`; the file need not exist. Links on the way are followed as the user made them.

    Raises:
        ValueError: The name is absolute, leads out of the folder, or is no file name; says what was expected.
    """
    relative = Path(os.path.normpath(listed))
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"'{listed}' leads out of the capture; expected a path relative to {folder}")
    if not relative.parts or "\0" in listed:
        raise ValueError(f"{listed!r} is no file name; expected a path relative to {folder}")
    return folder / relative


def check_rigid(path: Path, pose: np.ndarray, field: str = "") -> None:
    """Refuse a transform that is more, or less, than a rotation and a translation.

    Args:
        path: The file that holds it, for the message.
        pose: Transform, float64 `[3, 4]`.
        field: Where in the file, for the message, for instance `frames[3].transform_matrix: `.

    Raises:
        RefusedError: Not finite, or the rotation is scaled, sheared or mirrored.
    """
    if not np.isfinite(pose).all():
        raise RefusedError(path, f"{field}the pose holds numbers that are not finite; expected a rigid transform")
    rotation = pose[:, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    determinant = np.linalg.det(rotation)
    if error > RIGID_TOLERANCE or determinant < 0:
        found = f"determinant {determinant:.4g}, R^T R off the identity by {error:.2g}"
        raise RefusedError(path, f"{field}the pose is not rigid ({found}); expected a rotation without scale")


def world2cam_from(path: Path, cam2world: np.ndarray, field: str = "") -> np.ndarray:
    """World-to-camera from a camera-to-world matrix in OpenCV axes that a file claims to hold.

    Args:
        path: The file, for the message.
        cam2world: Rigid transform, float64 `[4, 4]`.
        field: Where in the file, for the message.

    Returns:
        Pose, float64 `[3, 4]`.

    Raises:
        RefusedError: Not 4x4, or not rigid.
    """
    if cam2world.shape != (4, 4):
        raise RefusedError(path, f"{field}matrix of shape {cam2world.shape}; expected 4x4, camera-to-world")
    check_rigid(path, cam2world[:3], field)
    if not np.allclose(cam2world[3], [0, 0, 0, 1], atol=RIGID_TOLERANCE):
        raise RefusedError(path, f"{field}the last row is {cam2world[3].tolist()}; expected [0, 0, 0, 1]")
    return invert_pose(cam2world[:3])


def world2cam_given(path: Path, world2cam: np.ndarray, field: str = "") -> np.ndarray:
    """World-to-camera from a matrix in OpenCV axes that is world-to-camera already.

    Args:
        path: The file, for the message.
        world2cam: Rigid transform, float64 `[3, 4]` or `[4, 4]`.
        field: Where in the file, for the message.

    Returns:
        Pose, float64 `[3, 4]`.

    Raises:
        RefusedError: Of another shape, or not rigid.
    """
    if world2cam.shape not in ((3, 4), (4, 4)):
        raise RefusedError(path, f"{field}matrix of shape {world2cam.shape}; expected 3x4 or 4x4, world-to-camera")
    check_rigid(path, world2cam[:3], field)
    return world2cam[:3]


def checked_intrinsics(path: Path, K: np.ndarray, field: str = "") -> np.ndarray:
    """A camera matrix that a file claims to hold.

    Args:
        path: The file, for the message.
        K: What it holds.
        field: Where in the file, for the message.

    Returns:
        float64 `[3, 3]`.

    Raises:
        RefusedError: Of another shape, not finite, or a focal length is not positive.
    """
    form = "expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels"
    if K.shape != (3, 3) or not np.isfinite(K).all():
        raise RefusedError(path, f"{field}matrix of shape {K.shape} or not finite; {form}")
    if min(K[0, 0], K[1, 1]) <= 0 or K[1, 0] or K[2].tolist() != [0, 0, 1]:
        raise RefusedError(path, f"{field}found {K.tolist()}; {form}, fx and fy more than 0")
    return K.astype(np.float64)


def read_matrix(path: Path) -> np.ndarray:
    """Rows of numbers in a text file.

    Args:
        path: The file; empty lines do not count.

    Returns:
        float64 `[rows, columns]`.

    Raises:
        RefusedError: Something else is in it, or the rows differ in length.
    """
    try:
        rows = [[float(number) for number in line.split()] for line in path.read_text().splitlines() if line.strip()]
        return np.array(rows)
    except ValueError as error:
        raise RefusedError(path, f"not a matrix of numbers ({error}); expected rows of numbers") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file, gzipped where its name ends in `gz`.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        RefusedError: It is missing, cut, or no JSON.
    """
    if not path.is_file():
        raise RefusedError(path, "missing; expected a JSON file")
    try:
        data = gzip.decompress(path.read_bytes()) if path.name.endswith("gz") else path.read_bytes()
        return json.loads(data)
    except (ValueError, RecursionError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RefusedError(path, f"not valid JSON ({error}); copy or download it again") from error


def folders(path: Path) -> list[Path]:
    """The folders in a folder, in natural order; hidden ones are passed over."""
    if not path.is_dir():
        return []
    names = (entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [path / name for name in natural_order(names)]


@dataclass(frozen=True)
class FileView:
    """One view of a dataset that keeps pictures, cameras and depth as files.

    Attributes:
        image: The photo, read as stored.
        intrinsics: Camera matrix `[3, 3]`, or None.
        world2cam: Pose `[3, 4]`, or None.
        depth: Reads z-depth in the unit of the pose, 0 where unknown; None without any.
        intrinsics_size: Width and height of the picture that the intrinsics refer to; None is the photo.
    """

    image: Path
    intrinsics: np.ndarray | None = None
    world2cam: np.ndarray | None = None
    depth: Callable[[], np.ndarray] | None = None
    intrinsics_size: tuple[float, float] | None = None


def file_capture(
    source: str,
    scene: str,
    names: Iterable[str],
    view: Callable[[str], FileView],
    *,
    rule: SequenceRule | None = None,
    place: str = "",
    grouped_by: Callable[[str], str] | None = None,
    overlap: np.ndarray | None = None,
    sequences: tuple[tuple[str, ...], ...] = (),
) -> Capture:
    """A capture of which every view is a `FileView`.

    Args:
        source: Name of the dataset.
        scene: Name of the scene.
        names: Of its frames, in capture order.
        view: Describes the view of that name; raises `RefusedError` where it is broken.
        rule: How the makers form sequences.
        place: Scenes of one place share a split.
        grouped_by: Frames with the same answer form one sequence each, in place of a rule.
        overlap: The dataset's own overlaps, for all of the names.
        sequences: The dataset's own sequences.

    Returns:
        The capture; views that are broken, or whose photo is missing, are among the refused.
    """
    views: dict[str, FileView] = {}
    refused: list[Refusal] = []
    kept: list[int] = []
    for position, name in enumerate(names):
        try:
            found = view(name)
            if not found.image.is_file():
                raise RefusedError(found.image, f"missing, but {source} lists it as a frame of '{scene}'")
        except RefusedError as error:
            refused.append(error.refusal)
            continue
        views[name] = found
        kept.append(position)
    if grouped_by is not None:
        groups: dict[str, list[str]] = {}
        for name in views:
            groups.setdefault(grouped_by(name), []).append(name)
        sequences = tuple(map(tuple, groups.values()))
    return Capture(
        scene=scene,
        source=source,
        frames=tuple(views),
        load=partial(_load, views),
        refused=tuple(dict.fromkeys(refused)),
        rule=rule,
        place=place,
        sequences=sequences,
        overlap=None if overlap is None else overlap[np.ix_(kept, kept)],
    )


def _load(views: dict[str, FileView], name: str) -> Frame:
    view = views[name]
    image = read_image(view.image, upright=False)
    height, width = image.shape[:2]
    intrinsics = view.intrinsics
    if intrinsics is not None and view.intrinsics_size is not None:
        intrinsics = resize_intrinsics(intrinsics, width / view.intrinsics_size[0], height / view.intrinsics_size[1])
    depth = None
    if view.depth is not None:
        depth = view.depth()
        if depth.shape != (height, width):
            sizes = f"depth of {depth.shape[1]}x{depth.shape[0]} pixels; expected the photo's {width}x{height}"
            raise RefusedError(view.image, sizes)
    return Frame(image=image, intrinsics=intrinsics, world2cam=view.world2cam, depth=depth, lossy=is_jpeg(view.image))


def known_depth(depth: np.ndarray) -> np.ndarray:
    """Depth with 0 in place of whatever is no distance: not-a-number, infinite, negative; float32."""
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


def depth_png(path: Path, unit: float = MILLIMETRE, unknown: int = 0) -> Callable[[], np.ndarray] | None:
    """Reads depth from a 16-bit PNG.

    Args:
        path: The file.
        unit: Metres, or the pose's unit, of 1.
        unknown: The number that means unknown, beside 0.

    Returns:
        A reader for `FileView.depth`; None where there is no such file.
    """
    return partial(_depth_png, path, unit, unknown) if path.is_file() else None


def _depth_png(path: Path, unit: float, unknown: int) -> np.ndarray:
    stored = read_png16(path)
    return np.where(stored == unknown, 0, stored).astype(np.float32) * np.float32(unit)


def depth_hdf5(path: Path, dataset: str) -> Callable[[], np.ndarray] | None:
    """Reads depth from an HDF5 file; None where there is no such file.

    Args:
        path: The file.
        dataset: Name of the array in it.
    """
    return partial(_depth_hdf5, path, dataset) if path.is_file() else None


def _depth_hdf5(path: Path, dataset: str) -> np.ndarray:
    return known_depth(read_hdf5(path, dataset))


def read_hdf5(path: Path, dataset: str) -> np.ndarray:
    """An array of an HDF5 file.

    Args:
        path: The file.
        dataset: Name of the array in it.

    Returns:
        The numbers, float64.

    Raises:
        RefusedError: The file is missing, damaged or has no such array of numbers.
    """
    import h5py  # only two datasets need it

    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file[dataset], np.float64)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RefusedError(path, f"cannot be read as HDF5 with an array '{dataset}' ({error})") from error
