"""MegaDepth (https://www.cs.cornell.edu/projects/megadepth/): photos of sights from the web, by D2-Net's scene files.

A scene is `scene_info/0000.npz` (https://github.com/mihaidusmanu/d2-net/tree/master/megadepth_utils) with
`image_paths`, `depth_paths`, `intrinsics`, `poses` and `overlap_matrix`, or is listed in an annotation file
`{scene: [[{"filepath", "id"}, ...], ...]}` (`.jgz`), whose sequences are kept. Paths are relative to the dataset.

Converts from: poses world-to-camera 4x4, OpenCV axes; intrinsics of the undistorted photos; depth as HDF5 `depth`,
along z, in the model's unit; -1 in the overlaps for pairs without any.
"""

import pickle
import zipfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    depth_hdf5,
    file_capture,
    file_inside,
    natural_order,
    read_json,
    world2cam_given,
)

RULE = SequenceRule(kind="anchor", frames=256, anchors=1000)
FOLDERS = ("scene_info", "prep_scene_info")
FIELDS = ("image_paths", "depth_paths", "intrinsics", "poses", "overlap_matrix")

HARMLESS = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}
"""All that a pickled array of numbers and strings needs; anything else in a file is refused, not run."""


def recognise(path: Path) -> bool:
    """Whether the path has scene files, or an annotation file."""
    return bool(_scene_files(path)) or bool(_annotations(path))


def scenes(path: Path) -> list[Scene]:
    """List the scenes: of the annotation files if there are any, else of the scene files."""
    listed = [
        Scene("megadepth", name, (file,), partial(read_annotated, path, file, name))
        for file in _annotations(path)
        for name in natural_order(_annotated(file))
    ]
    return listed or [Scene("megadepth", file.stem, (file,), partial(read, path, file)) for file in _scene_files(path)]


def _scene_files(path: Path) -> list[Path]:
    return sorted(file for folder in FOLDERS for file in (path / folder).glob("*.npz"))


def _annotations(path: Path) -> list[Path]:
    return sorted(path.glob("*.jgz")) if path.is_dir() and not (path / "frame_annotations.jgz").exists() else []


def read(root: Path, file: Path) -> Capture:
    """Describe the photos of a scene file.

    Args:
        root: The dataset; paths in the file are relative to it.
        file: The scene file.

    Returns:
        The capture; frames are named by their paths. Rows without a photo are passed over, as the file means them.

    Raises:
        RefusedError: It is no scene file.
    """
    info = read_scene_info(file)
    count = len(info["image_paths"])
    if info["overlap_matrix"].shape != (count, count):
        shape = info["overlap_matrix"].shape
        raise RefusedError(file, f"overlap_matrix of shape {shape}; expected {count}x{count}, as many as image_paths")
    rows = {str(path): row for row, path in enumerate(info["image_paths"]) if path}
    overlap = np.maximum(info["overlap_matrix"].astype(np.float64), 0)[np.ix_(list(rows.values()), list(rows.values()))]
    view = partial(_view, root, file, info, rows)
    return file_capture("megadepth", file.stem, rows, view, rule=RULE, overlap=overlap)


def _view(root: Path, file: Path, info: dict[str, np.ndarray], rows: dict[str, int], name: str) -> FileView:
    row = rows[name]
    depth_path, field = info["depth_paths"][row], f"row {row}: "
    return FileView(
        _inside(root, file, name),
        checked_intrinsics(file, np.asarray(info["intrinsics"][row], np.float64), f"{field}intrinsics: "),
        world2cam_given(file, np.asarray(info["poses"][row], np.float64), f"{field}poses: "),
        depth_hdf5(_inside(root, file, str(depth_path)), "depth") if depth_path else None,
    )


def _inside(root: Path, file: Path, listed: str) -> Path:
    try:
        return file_inside(root, listed)
    except ValueError as error:
        raise RefusedError(file, str(error)) from error


def read_scene_info(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a scene file; the strings and gaps in it are pickled, and nothing but those is unpickled.

    Args:
        file: `.npz`.

    Returns:
        The arrays of `FIELDS`.

    Raises:
        RefusedError: It is cut, has something missing, or holds a pickled program.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return {field: _array(archive, f"{field}.npy") for field in FIELDS}
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise RefusedError(file, f"no scene file ({error}); expected arrays {', '.join(FIELDS)}") from error


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            return np.asarray(_Unpickler(stream).load()).reshape(shape)
    with archive.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO | Any):
        super().__init__(stream, encoding="latin1")  # the files were written by Python 2 and 3

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"holds {module}.{name}, which is no number and no string")
        return super().find_class(module, name)


def read_annotated(root: Path, file: Path, scene: str) -> Capture:
    """Describe the photos and sequences of a scene of an annotation file.

    Args:
        root: The dataset; paths in the file are relative to it.
        file: The annotation file.
        scene: Name of the scene in it.

    Returns:
        The capture; frames are named by their paths. Without cameras, as the file has none.

    Raises:
        RefusedError: The scene is not a list of lists of objects with `filepath`.
    """
    try:
        listed = tuple(tuple(str(frame["filepath"]) for frame in sequence) for sequence in _annotated(file)[scene])
    except (TypeError, KeyError) as error:
        raise RefusedError(file, f"'{scene}': expected lists of objects with a 'filepath' ({error!r})") from error
    names = natural_order({name for sequence in listed for name in sequence})
    return file_capture(
        "megadepth", scene, names, lambda name: FileView(_inside(root, file, name)), rule=RULE, sequences=listed
    )


@lru_cache(maxsize=1)
def _annotated(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise RefusedError(file, "expected an object: a list of sequences for each scene")
    return content


SOURCE = Source(
    name="megadepth",
    layout="{scene_info,prep_scene_info}/0000.npz (D2-Net) or *.jgz annotations, and the photos and depths they list",
    truth="poses, intrinsics, dense depth (up to scale) and overlaps; none with .jgz",
    licence="CC BY 4.0; the photos have their own",
    origin="https://www.cs.cornell.edu/projects/megadepth/",
    recognise=recognise,
    scenes=scenes,
)
