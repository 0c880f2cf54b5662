"""The views that an evaluation looks at: square images, and what is known of their geometry."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from mum_model.data.geometry import Camera, relative_pose, resize_intrinsics, warp
from mum_model.evaluate.matching import Pairs, PatchGrid
from mum_model.evaluate.pose import PosedPair

Fit = Literal["crop", "stretch"]


class Frames(Protocol):
    """The frames of a benchmark, as its own layout stores them; cameras are in the conventions of this project."""

    name: str

    def image(self, row: int) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`."""
        ...

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        ...

    def camera(self, row: int) -> Camera | None:
        """Intrinsics, pose and depth of the size of the image; None where any of them is unknown."""
        ...

    def depth(self, row: int) -> np.ndarray | None:
        """z-depth `[H, W]`, 0 where unknown; None without any."""
        ...

    def intrinsics(self, row: int) -> np.ndarray | None:
        """Camera matrix `[3, 3]` in pixels of the image; None where unknown."""
        ...

    def world2cam(self, row: int) -> np.ndarray | None:
        """Pose `[3, 4]`; None where unknown."""
        ...

    def scene(self, row: int) -> str:
        """Name of the scene."""
        ...

    def label(self, row: int) -> str:
        """How a message names the frame."""
        ...

    def identity(self, row: int) -> str:
        """A text that is another one when the pixels are others."""
        ...


@dataclass(frozen=True)
class Square:
    """How a stored frame becomes a square view.

    Attributes:
        width: Of the stored frame.
        height: Of the stored frame.
        size: Side of the square in pixels.
        fit: `crop` takes the central square, `stretch` the whole frame, each axis scaled on its own, as the published
            dense-matching protocols do.
    """

    width: int
    height: int
    size: int
    fit: Fit

    @property
    def extent(self) -> np.ndarray:
        """Width and height of what is taken, in stored pixels."""
        side = min(self.width, self.height)
        return np.array([side, side] if self.fit == "crop" else [self.width, self.height])

    @property
    def scale(self) -> np.ndarray:
        """Stored pixels per evaluated pixel, along x and y."""
        return self.extent / self.size

    @property
    def corner(self) -> np.ndarray:
        """Top-left corner of what is taken in stored pixels, (x, y); whole pixels."""
        return (np.array([self.width, self.height]) - self.extent) // 2

    def cut(self, image: np.ndarray) -> np.ndarray:
        """What is taken of an image or map `[height, width, ...]`, unscaled."""
        (x, y), (width, height) = self.corner, self.extent
        return image[y : y + height, x : x + width]

    def view(self, image: np.ndarray) -> np.ndarray:
        """The square of an image: RGB uint8 `[size, size, 3]` from `[height, width, 3]`."""
        interpolation = cv2.INTER_AREA if self.extent.min() > self.size else cv2.INTER_LINEAR
        return cv2.resize(self.cut(image), (self.size, self.size), interpolation=interpolation)

    def to_stored(self, pixels: np.ndarray) -> np.ndarray:
        """Stored pixels `[..., 2]` from evaluated ones."""
        return pixels * self.scale + self.corner

    def from_stored(self, pixels: np.ndarray) -> np.ndarray:
        """Evaluated pixels `[..., 2]` from stored ones."""
        return (pixels - self.corner) / self.scale

    def intrinsics(self, stored: np.ndarray) -> np.ndarray:
        """Camera matrix `[3, 3]` of the square."""
        moved = stored.copy()
        moved[:2, 2] -= self.corner
        return resize_intrinsics(moved, *(1 / self.scale))


class Views:
    """The frames of a benchmark as squares."""

    def __init__(self, frames: Frames, size: int, fit: Fit):
        """Open the views.

        Args:
            frames: Where they come from.
            size: Side of the squares in pixels.
            fit: See `Square`.
        """
        self.frames, self.size, self.fit = frames, size, fit

    def square(self, row: int) -> Square:
        """How a frame becomes a square."""
        height, width = self.frames.shape(row)
        return Square(width, height, self.size, self.fit)

    def image(self, row: int) -> np.ndarray:
        """The square of a frame, RGB uint8 `[size, size, 3]`."""
        return self.square(row).view(self.frames.image(row))

    def depth(self, row: int) -> np.ndarray | None:
        """z-depth of the square, float32 `[size, size]`, 0 where unknown, each pixel that of one stored pixel."""
        stored = self.frames.depth(row)
        if stored is None:
            return None
        taken = self.square(row).cut(stored)
        return cv2.resize(taken, (self.size, self.size), interpolation=cv2.INTER_NEAREST_EXACT)


def sha256_of(parts: Sequence[str]) -> str:
    """A hash of texts, in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class ImageSet:
    """Some frames in a fixed order, as an encoder sees them."""

    def __init__(self, views: Views, rows: Sequence[int] | np.ndarray):
        """List the frames.

        Args:
            views: The views.
            rows: Which of the frames.
        """
        self.views, self.rows = views, [int(row) for row in rows]
        self.name, self.size = views.frames.name, views.size
        self.identity = sha256_of([str(views.size), views.fit, *(views.frames.identity(row) for row in self.rows)])
        self._place = {row: place for place, row in enumerate(self.rows)}

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Tensor:
        """Images at these places of the order, uint8 `[N, 3, size, size]`."""
        squares = np.stack([self.views.image(self.rows[place]) for place in places])
        return torch.from_numpy(squares).permute(0, 3, 1, 2)

    def label(self, place: int) -> str:
        """How a message names the image."""
        return self.views.frames.label(self.rows[place])

    def place(self, row: int) -> int:
        """Where in the order a frame stands."""
        return self._place[row]


def true_matches(images: ImageSet, pairs: Sequence[tuple[int, int]], grid: PatchGrid) -> Pairs:
    """Where the patches of view a truly are in view b, by depth.

    Args:
        images: The set that features are computed of.
        pairs: Rows of view a and view b.
        grid: The patches.

    Returns:
        The pairs; nothing is co-visible where pose or depth is unknown.
    """
    views = images.views
    matched = [_true_match(views, a, b, grid) for a, b in pairs]
    return Pairs(
        a=torch.tensor([images.place(a) for a, _ in pairs], dtype=torch.long),
        b=torch.tensor([images.place(b) for _, b in pairs], dtype=torch.long),
        target=torch.tensor(np.array([target for target, _ in matched]), dtype=torch.float32),
        covisible=torch.tensor(np.array([covisible for _, covisible in matched], bool)),
        scene=np.array([views.frames.scene(a) for a, _ in pairs]),
    )


def _true_match(views: Views, a: int, b: int, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
    centres = grid.centres.numpy().astype(np.float64)
    camera_a, camera_b = views.frames.camera(a), views.frames.camera(b)
    if camera_a is None or camera_b is None:
        return np.full_like(centres, np.nan), np.zeros(len(centres), bool)
    target, covisible = warp(views.square(a).to_stored(centres), camera_a, camera_b)
    target = views.square(b).from_stored(target)
    with np.errstate(invalid="ignore"):
        inside = ((target >= 0) & (target < views.size)).all(-1)
    return target, covisible & inside


def relative_truth(views: Views, a: int, b: int, relative: np.ndarray | None = None) -> np.ndarray | None:
    """The pose that takes points of a's camera to b's.

    Args:
        views: The views.
        a: Row of view a.
        b: Row of view b.
        relative: The pose where it is known by itself; else that of the two frames.

    Returns:
        `[3, 4]`; None where it is unknown.
    """
    if relative is not None:
        return relative
    pose_a, pose_b = views.frames.world2cam(a), views.frames.world2cam(b)
    return None if pose_a is None or pose_b is None else relative_pose(pose_a, pose_b)


def posed_pair(views: Views, a: int, b: int, relative: np.ndarray | None = None) -> PosedPair | None:
    """Intrinsics and relative pose of a pair, None where they are unknown.

    Args:
        views: The views.
        a: Row of view a.
        b: Row of view b.
        relative: The relative pose where it is known by itself; else that of the two frames.

    Returns:
        The truth at the evaluated resolution.
    """
    relative = relative_truth(views, a, b, relative)
    intrinsics_a, intrinsics_b = views.frames.intrinsics(a), views.frames.intrinsics(b)
    if relative is None or intrinsics_a is None or intrinsics_b is None:
        return None
    return PosedPair(views.square(a).intrinsics(intrinsics_a), views.square(b).intrinsics(intrinsics_b), relative)
