"""The views and pairs that an evaluation looks at: square images, and where their patches truly correspond."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from mum_model.data.geometry import Camera, relative_pose, resize_intrinsics, warp
from mum_model.data.scenes import SceneIndex
from mum_model.evaluate.matching import Pairs, PatchGrid
from mum_model.evaluate.pose import PosedPair


@dataclass(frozen=True)
class Square:
    """The central square of a stored frame, resized.

    Attributes:
        width: Of the stored frame.
        height: Of the stored frame.
        size: Side of the square after resizing, in pixels.
    """

    width: int
    height: int
    size: int

    @property
    def scale(self) -> float:
        """Stored pixels per evaluated pixel."""
        return min(self.width, self.height) / self.size

    @property
    def corner(self) -> np.ndarray:
        """Top-left corner of the square in stored pixels, (x, y); whole pixels."""
        side = min(self.width, self.height)
        return np.array([(self.width - side) // 2, (self.height - side) // 2])

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The square of an image: RGB uint8 `[size, size, 3]` from `[height, width, 3]`."""
        x, y = self.corner
        side = min(self.width, self.height)
        interpolation = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        return cv2.resize(image[y : y + side, x : x + side], (self.size, self.size), interpolation=interpolation)

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
        return resize_intrinsics(moved, 1 / self.scale, 1 / self.scale)


class Views:
    """The frames of a dataset at the evaluated resolution."""

    def __init__(self, index: SceneIndex, size: int):
        """Open the views.

        Args:
            index: The dataset.
            size: Side of the squares in pixels.
        """
        self.index, self.size = index, size

    def square(self, row: int) -> Square:
        """The central square of a frame."""
        return Square(int(self._widths[row]), int(self._heights[row]), self.size)

    def images(self, rows: np.ndarray) -> Tensor:
        """Squares of these frames, uint8 `[N, 3, size, size]`."""
        squares = np.stack([self.square(row).crop(self.index.image(row)) for row in rows.tolist()])
        return torch.from_numpy(squares).permute(0, 3, 1, 2)

    @cached_property
    def _widths(self) -> np.ndarray:
        return self.index.column("width")

    @cached_property
    def _heights(self) -> np.ndarray:
        return self.index.column("height")


def draw_pairs(
    index: SceneIndex, split: str, count: int, overlap: tuple[float, float], seed: int
) -> list[tuple[int, int]]:
    """Ordered pairs of views of a split, drawn evenly from its scenes.

    Args:
        index: The dataset.
        split: `train`, `val` or `test`.
        count: How many at most.
        overlap: Least and largest share of view a that view b sees.
        seed: Decides the draw.

    Returns:
        Rows of view a and view b.
    """
    a, b, share = index.covisible_pairs(split)
    fitting = (share >= overlap[0]) & (share <= overlap[1])
    a, b = a[fitting], b[fitting]
    order = np.random.default_rng(seed).permutation(len(a))
    a, b = a[order], b[order]
    scenes = index.column("scene")[a]
    # The n-th pair of each scene comes before the (n+1)-th of any: a scene with many pairs does not crowd out others.
    turn = np.zeros(len(a), int)
    for scene in np.unique(scenes):
        turn[scenes == scene] = np.arange((scenes == scene).sum())
    chosen = np.argsort(turn, kind="stable")[:count]
    return list(zip(a[chosen].tolist(), b[chosen].tolist(), strict=True))


def true_matches(views: Views, pairs: list[tuple[int, int]], grid: PatchGrid, table_row: dict[int, int]) -> Pairs:
    """Where the patches of view a truly are in view b, by depth.

    Args:
        views: The views.
        pairs: Rows of the index.
        grid: The patches.
        table_row: Row in the feature table of each row of the index.

    Returns:
        The pairs; nothing is co-visible where pose or depth is unknown.
    """
    cameras = {row: views.index.camera(row) for pair in pairs for row in pair}
    matched = [_true_match(views, a, b, cameras[a], cameras[b], grid) for a, b in pairs]
    return Pairs(
        a=torch.tensor([table_row[a] for a, _ in pairs], dtype=torch.long),
        b=torch.tensor([table_row[b] for _, b in pairs], dtype=torch.long),
        target=torch.tensor(np.array([target for target, _ in matched]), dtype=torch.float32),
        covisible=torch.tensor(np.array([covisible for _, covisible in matched])),
        scene=views.index.column("scene")[[a for a, _ in pairs]],
    )


def _true_match(
    views: Views, a: int, b: int, camera_a: Camera | None, camera_b: Camera | None, grid: PatchGrid
) -> tuple[np.ndarray, np.ndarray]:
    centres = grid.centres.numpy().astype(np.float64)
    if camera_a is None or camera_b is None:
        return np.full_like(centres, np.nan), np.zeros(len(centres), bool)
    target, covisible = warp(views.square(a).to_stored(centres), camera_a, camera_b)
    target = views.square(b).from_stored(target)
    with np.errstate(invalid="ignore"):
        inside = ((target >= 0) & (target < views.size)).all(-1)
    return target, covisible & inside


def posed_pair(views: Views, a: int, b: int) -> PosedPair | None:
    """Intrinsics and relative pose of a pair, None where they are unknown.

    Args:
        views: The views.
        a: Row of view a.
        b: Row of view b.

    Returns:
        The truth at the evaluated resolution.
    """
    known = [(views.index.intrinsics(row), views.index.world2cam(row)) for row in (a, b)]
    (intrinsics_a, pose_a), (intrinsics_b, pose_b) = known
    if intrinsics_a is None or intrinsics_b is None or pose_a is None or pose_b is None:
        return None
    return PosedPair(
        views.square(a).intrinsics(intrinsics_a),
        views.square(b).intrinsics(intrinsics_b),
        relative_pose(pose_a, pose_b),
    )
