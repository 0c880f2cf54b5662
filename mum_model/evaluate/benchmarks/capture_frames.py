"""Frames of captures, read by the sources of `mum_model.data` straight from their own layouts."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mum_model.data.captures import Capture, Frame, RefusedError, Scene, UnusableSceneError
from mum_model.data.geometry import Camera
from mum_model.errors import UserError

KEPT = 32  # decoded frames, where nothing else is said


class _Known(NamedTuple):
    """What is remembered of a frame."""

    shape: tuple[int, int]
    intrinsics: np.ndarray | None
    world2cam: np.ndarray | None
    sha256: str


class CaptureFrames:
    """Frames of some captures; every one is read once when they are opened, so that what is broken is named then."""

    def __init__(self, name: str, listed: Sequence[tuple[Capture, str]], kept: int = KEPT):
        """Read all frames.

        Args:
            name: Of the benchmark.
            listed: The capture and the name of each frame.
            kept: Decoded frames to keep in memory.

        Raises:
            UserError: A frame cannot be used.
        """
        self.name, self.listed = name, listed
        self._load = lru_cache(maxsize=kept)(self._read)
        self._known = [self._look(row) for row in tqdm(range(len(listed)), desc=f"check {name}", leave=False)]

    def _read(self, row: int) -> Frame:
        capture, frame = self.listed[row]
        try:
            return capture.load(frame)
        except RefusedError as error:
            raise UserError(f"{self.name}: {error}") from error

    def _look(self, row: int) -> _Known:
        frame = self._load(row)
        content = hashlib.sha256(frame.image.tobytes()).hexdigest()
        return _Known(frame.image.shape[:2], frame.intrinsics, frame.world2cam, content)

    def image(self, row: int) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`."""
        return self._load(row).image

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width."""
        return self._known[row].shape

    def camera(self, row: int) -> Camera | None:
        """Intrinsics, pose and depth, where all are known."""
        frame = self._load(row)
        if frame.intrinsics is None or frame.world2cam is None or frame.depth is None:
            return None
        return Camera(frame.intrinsics, frame.world2cam, frame.depth)

    def depth(self, row: int) -> np.ndarray | None:
        """z-depth, where known."""
        return self._load(row).depth

    def intrinsics(self, row: int) -> np.ndarray | None:
        """Camera matrix, where known."""
        return self._known[row].intrinsics

    def world2cam(self, row: int) -> np.ndarray | None:
        """Pose, where known."""
        return self._known[row].world2cam

    def scene(self, row: int) -> str:
        """Name of the scene."""
        return self.listed[row][0].scene

    def label(self, row: int) -> str:
        """Scene and frame."""
        capture, frame = self.listed[row]
        return f"{capture.scene}/{frame}"

    def identity(self, row: int) -> str:
        """Hash of the pixels."""
        return self._known[row].sha256


def described(name: str, scenes: Iterable[Scene]) -> list[Capture]:
    """Read the descriptions of scenes, all of which must be whole.

    Args:
        name: Of the benchmark.
        scenes: The scenes.

    Returns:
        Their captures.

    Raises:
        UserError: A scene cannot be read, or something that it lists is missing or broken.
    """
    captures = []
    for scene in tqdm(list(scenes), desc=f"read {name}", leave=False):
        try:
            capture = scene.capture()
        except UnusableSceneError as error:
            raise UserError(f"{name}: {error.refused[0]}") from error
        if capture.refused:
            raise UserError(
                f"{name}: {len(capture.refused)} things of scene '{capture.scene}' cannot be used, the first is "
                f"{capture.refused[0]}. A benchmark is judged on whole or not at all: download it again"
            )
        captures.append(capture)
    return captures


def posed_rows(frames: CaptureFrames, rows: Iterable[int]) -> Mapping[str, list[int]]:
    """Rows of the frames whose pose is known, by scene."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if frames.world2cam(row) is not None:
            found.setdefault(frames.scene(row), []).append(row)
    return found
