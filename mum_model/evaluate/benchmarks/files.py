"""Frames of published benchmarks, as files in folders: checked when they are opened, read when they are needed."""

import io
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np

from mum_model.data.captures import RefusedError
from mum_model.data.geometry import Camera
from mum_model.data.images import image_size, read_image
from mum_model.errors import UserError
from mum_model.files import file_sha256

MAX_LIST_BYTES = 2 << 30

T = TypeVar("T")


@dataclass(frozen=True)
class FileFrame:
    """One frame as files.

    Attributes:
        image: JPEG or PNG.
        scene: Name of its scene.
        depth: File of its z-depth, or None.
        intrinsics: Camera matrix `[3, 3]` in pixels of the stored image, or None.
        world2cam: Pose `[3, 4]`, or None.
    """

    image: Path
    scene: str
    depth: Path | None = None
    intrinsics: np.ndarray | None = None
    world2cam: np.ndarray | None = None


@dataclass(frozen=True)
class DepthFormat:
    """How a benchmark stores depth.

    Attributes:
        read: Reads a file: float32 `[H, W]`, 0 where unknown.
        size: Its width and height, without reading all of it; raises where a file is cut.
    """

    read: Callable[[Path], np.ndarray]
    size: Callable[[Path], tuple[int, int]]


class FileFrames:
    """Frames as files; images are stretched to the size of the depth where the benchmark stores them at another."""

    def __init__(
        self,
        name: str,
        frames: Sequence[FileFrame],
        depth: DepthFormat | None,
        size: tuple[int, int] | None = None,
    ):
        """Check that every file is there and whole, and that depth is of the size of its image.

        Args:
            name: Of the benchmark.
            frames: The frames.
            depth: How their depth is stored; None without any.
            size: Width and height that images and intrinsics are brought to; None keeps them.

        Raises:
            UserError: A file is missing, cut, or of the wrong size; the first is named.
        """
        self.name, self.frames, self.format, self.size = name, list(frames), depth, size
        files = [path for frame in self.frames for path in (frame.image, frame.depth) if path is not None]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise UserError(
                f"{name}: {len(missing)} of {len(files)} files that its lists name are missing, the first is "
                f"{missing[0]}. Unpack the whole benchmark under its root"
            )
        self._stored = [self._checked(image_size, frame.image) for frame in self.frames]
        for row, frame in enumerate(self.frames):
            if depth is not None and frame.depth is not None:
                self._check_depth(row, self._checked(depth.size, frame.depth))

    def _check_depth(self, row: int, size: tuple[int, int]) -> None:
        height, width = self.shape(row)
        if size != (width, height):
            raise UserError(
                f"{self.name}: {self.frames[row].depth}: depth of {size[0]}x{size[1]} pixels; expected "
                f"{width}x{height}, as its image"
            )

    def image(self, row: int) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`."""
        image = self._checked(lambda path: read_image(path, upright=False), self.frames[row].image)
        return image if self.size is None else cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width."""
        width, height = self.size or self._stored[row]
        return height, width

    def intrinsics(self, row: int) -> np.ndarray | None:
        """Camera matrix in pixels of `image`, where known."""
        stored = self.frames[row].intrinsics
        if stored is None or self.size is None:
            return stored
        scale = np.array(self.size) / self._stored[row]
        return np.diag([*scale, 1.0]) @ stored

    def world2cam(self, row: int) -> np.ndarray | None:
        """Pose, where known."""
        return self.frames[row].world2cam

    def camera(self, row: int) -> Camera | None:
        """Intrinsics, pose and depth, where all are known."""
        intrinsics, world2cam, depth = self.intrinsics(row), self.world2cam(row), self.depth(row)
        if intrinsics is None or world2cam is None or depth is None:
            return None
        return Camera(intrinsics, world2cam, depth)

    def depth(self, row: int) -> np.ndarray | None:
        """z-depth of the size of the image, where there is a file of it."""
        path = self.frames[row].depth
        return None if path is None or self.format is None else _kept_depth(self.format.read, path)

    def scene(self, row: int) -> str:
        """Name of the scene."""
        return self.frames[row].scene

    def label(self, row: int) -> str:
        """The image file."""
        return str(self.frames[row].image)

    def identity(self, row: int) -> str:
        """Hash of the image file."""
        return _sha256(self.frames[row].image) + str(self.size)

    def _checked(self, read: Callable[[Path], T], path: Path) -> T:
        try:
            return read(path)
        except RefusedError as error:
            raise UserError(f"{self.name}: {error}") from error


@lru_cache(maxsize=64)
def _kept_depth(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    """Frames are in several pairs, and their depth is large."""
    return read(path)


_sha256 = lru_cache(maxsize=1 << 20)(file_sha256)


def listed_files(name: str, root: Path, patterns: Sequence[str]) -> list[Path]:
    """Files of a benchmark by name or wildcard, sorted.

    Args:
        name: Of the benchmark.
        root: Its folder.
        patterns: Relative to it, for instance `prep_scene_info/*.npy`.

    Returns:
        The files; every pattern names at least one.

    Raises:
        UserError: The folder is missing, or a pattern names nothing.
    """
    if not root.is_dir():
        raise UserError(f"{name}: no folder {root}; set evaluate.benchmarks.{name}.root")
    found: list[Path] = []
    for pattern in patterns:
        files = sorted(root.glob(pattern))
        if not files:
            raise UserError(f"{name}: nothing is {root / pattern}; expected the benchmark's published lists there")
        found += files
    return found


def read_arrays(path: Path) -> dict[str, Any]:
    """Read a list that was saved with numpy, objects included, without running what a pickle may ask for.

    Args:
        path: `.npz`, or `.npy` of one dictionary.

    Returns:
        Arrays by name.

    Raises:
        UserError: The file is damaged, larger than 2 GiB, or holds more than arrays, texts and numbers.
    """
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                members = {info.filename: info for info in archive.infolist()}
                if sum(info.file_size for info in members.values()) > MAX_LIST_BYTES:
                    raise UserError(f"{path}: unpacks to more than 2 GiB; no published list is that large")
                return {Path(name).stem: _read_npy(io.BytesIO(archive.read(name))) for name in members}
        with path.open("rb") as file:
            content = _read_npy(file)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a published list of pairs ({error}); download it again") from error
    if content.dtype != object or content.shape != () or not isinstance(content.item(), dict):
        raise UserError(f"{path}: expected a dictionary of arrays, as in RoMa's prep_scene_info")
    return content.item()


def _read_npy(file: BinaryIO) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    if not dtype.hasobject:
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    return _ArraysOnly(file).load().reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and what Python builds by itself, nothing else."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every name that is not an array's."""
        module = module.replace("numpy.core", "numpy._core")  # as numpy was laid out when most lists were written
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}")
        return super().find_class(module, name)
