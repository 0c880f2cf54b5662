"""Laser scans as depth: points of PLY files, placed by a MeshLab project, seen from a camera.

Formats: PLY (http://paulbourke.net/dataformats/ply/), binary little-endian or text, of which x, y and z are read;
MeshLab's `.mlp`, XML with an `MLMesh` a scan, whose `MLMatrix44` takes its points to the world.
"""

from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from mum_model.data.captures import RefusedError
from mum_model.data.geometry import project, transform

PROJECT = "scan_alignment.mlp"
BEHIND = 1.05  # a point so much farther than the nearest beside it is seen through a gap of the nearer surface
TYPES = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "uchar": "u1", "uint8": "u1"}
TYPES |= {"char": "i1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "int32": "<i4", "uint32": "<u4"}
MAX_HEADER = 1 << 16
AT_ONCE = 1 << 21  # points


class LaserScans:
    """The scans of a scene."""

    def __init__(self, folder: Path):
        """Open them; they are read when depth is first asked for.

        Args:
            folder: With `scan_alignment.mlp` and the scans that it names.
        """
        self.folder = folder

    def depth(self, intrinsics: np.ndarray, world2cam: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """What a camera sees of the scans.

        Args:
            intrinsics: Camera matrix `[3, 3]`.
            world2cam: Pose `[3, 4]`.
            size: Width and height.

        Returns:
            z-depth float32 `[H, W]`, 0 where no point falls, or where it is likely hidden by a nearer one.

        Raises:
            RefusedError: A file is missing or broken.
        """
        width, height = size
        nearest, points = np.full(height * width, np.inf), _points(self.folder)
        for start in range(0, len(points), AT_ONCE):
            pixels, z = project(transform(world2cam, points[start : start + AT_ONCE].astype(np.float64)), intrinsics)
            with np.errstate(invalid="ignore"):
                seen = ((pixels >= 0) & (pixels < size)).all(axis=1)
            column, row = pixels[seen].astype(int).T
            np.minimum.at(nearest, row * width + column, z[seen])
        depth = nearest.reshape(height, width)
        front = cv2.erode(depth, np.ones((3, 3), np.uint8))  # the least of the neighbours
        return np.where(np.isfinite(depth) & (depth <= BEHIND * front), depth, 0).astype(np.float32)


@lru_cache(maxsize=1)
def _points(folder: Path) -> np.ndarray:
    """All points of a scene in its world, `[P, 3]`; of the last scene asked for, as they are many."""
    project_file = folder / PROJECT
    try:
        root = ElementTree.parse(project_file).getroot()
        placed = [
            (folder / Path(str(mesh.get("filename"))).name, np.array(str(mesh.findtext("MLMatrix44")).split(), float))
            for mesh in root.iter("MLMesh")
        ]
        scans = [(path, numbers.reshape(4, 4)) for path, numbers in placed]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise RefusedError(
            project_file, f"missing or no MeshLab project ({error}); expected an MLMesh with MLMatrix44 for each scan"
        ) from error
    if not scans:
        raise RefusedError(project_file, "names no scan; expected an MLMesh for each")
    return np.concatenate([transform(matrix[:3], read_ply_points(path)).astype(np.float32) for path, matrix in scans])


def read_ply_points(path: Path) -> np.ndarray:
    """The vertices of a PLY file.

    Args:
        path: The file; vertices are its first element.

    Returns:
        float64 `[P, 3]`.

    Raises:
        RefusedError: It is missing, cut, or of another form.
    """
    expected = "expected a PLY of vertices with x, y and z, text or binary little-endian"
    try:
        with path.open("rb") as file:
            form, count, fields = _header(file.read(MAX_HEADER))
            start = file.seek(0) or file.read(MAX_HEADER).index(b"end_header\n") + len(b"end_header\n")
        if form == "ascii":
            values = np.loadtxt(path.open("rb"), skiprows=_lines(path, start), max_rows=count, ndmin=2)
            named = {name: values[:, i] for i, (name, _) in enumerate(fields)}
        else:
            table = np.fromfile(path, np.dtype(fields), count, offset=start)
            named = {name: table[name] for name, _ in fields}
        points = np.stack([named[axis] for axis in "xyz"], axis=1).astype(np.float64)
    except (OSError, KeyError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise RefusedError(path, f"missing or no such PLY ({error!r}); {expected}") from error
    if len(points) != count:
        raise RefusedError(path, f"cut: {len(points)} of {count} vertices; download it again")
    return points


def _header(data: bytes) -> tuple[str, int, list[tuple[str, str]]]:
    """Form, number of vertices, and their fields."""
    lines = [line.split() for line in data[: data.index(b"end_header\n")].decode().splitlines()]
    form = next(line[1] for line in lines if line[0] == "format")
    if lines[0] != ["ply"] or form not in ("ascii", "binary_little_endian"):
        raise ValueError(f"format {form}")
    elements = [i for i, line in enumerate(lines) if line[0] == "element"]
    if lines[elements[0]][1] != "vertex":
        raise ValueError("the first element is no vertex")
    own = lines[elements[0] : elements[1] if len(elements) > 1 else len(lines)]
    return form, int(own[0][2]), [(line[2], TYPES[line[1]]) for line in own if line[0] == "property"]


def _lines(path: Path, end: int) -> int:
    with path.open("rb") as file:
        return file.read(end).count(b"\n")
