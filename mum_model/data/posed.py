"""Packs whose views come with what is known of their geometry, cropped and resized in step with the pixels.

Views are never mirrored here: a mirrored view is none that any camera at its pose could take.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mum_model.data.augmentation import Augmentation, Framing
from mum_model.data.batches import Pack, Purpose, StepPacks, ViewSampler, generator
from mum_model.data.scenes import SceneIndex


class ViewGeometry(NamedTuple):
    """What is known of a square view; cameras in the project's conventions, not-a-number where unknown.

    Attributes:
        world2cam: Pose `[3, 4]`.
        intrinsics: In pixels of the square, `[3, 3]`.
        depth: z-depth, float32 `[size, size]`, 0 where unknown.
        points: What each pixel shows, in the axes of the world, float32 `[size, size, 3]`; None where nobody says
            anything but the depth.
    """

    world2cam: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray
    points: np.ndarray | None = None


class GeometrySource(Protocol):
    """Who says what is known of a frame: the dataset itself, or a teacher."""

    def view(self, row: int, framing: Framing) -> ViewGeometry:
        """The geometry of a part of a frame.

        Args:
            row: Of the index.
            framing: What the view shows of the frame; not mirrored.

        Returns:
            What is known.
        """


class OwnGeometry:
    """The dataset's own cameras and depth; a `GeometrySource`."""

    def __init__(self, index: SceneIndex):
        """Take them from this dataset."""
        self.index = index

    def view(self, row: int, framing: Framing) -> ViewGeometry:
        """What the index knows of the frame; each part may be missing."""
        pose, intrinsics, depth = self.index.world2cam(row), self.index.intrinsics(row), self.index.depth(row)
        return ViewGeometry(
            np.full((3, 4), np.nan) if pose is None else pose,
            np.full((3, 3), np.nan) if intrinsics is None else framing.intrinsics(intrinsics),
            np.zeros((framing.size, framing.size), np.float32) if depth is None else framing.depth(depth),
        )


@dataclass(frozen=True)
class PosedPack(Pack):
    """A pack and its geometry; not-a-number where unknown, and 0 in `depth`.

    Attributes:
        world2cam: Poses, float64 `[frames, 3, 4]`.
        intrinsics: In pixels of the views, float64 `[frames, 3, 3]`.
        depth: z-depth, float32 `[frames, size, size]`.
        points: In the axes of the world, float32 `[frames, size, size, 3]`; None with cameras and depth alone.
    """

    world2cam: Tensor
    intrinsics: Tensor
    depth: Tensor
    points: Tensor | None

    def pin_memory(self) -> "PosedPack":
        """The same with all that is large where a GPU can fetch it in the background."""
        points = None if self.points is None else self.points.pin_memory()
        return replace(self, images=self.images.pin_memory(), depth=self.depth.pin_memory(), points=points)


class PosedPacks(StepPacks):
    """`StepPacks` with geometry: the same draws and crops, without flips."""

    def __init__(
        self,
        index: SceneIndex,
        sampler: ViewSampler,
        augmentation: Augmentation,
        geometry: GeometrySource,
        **shares: int,
    ):
        """Set it up.

        Args:
            index: The dataset.
            sampler: Draws the rows.
            augmentation: Applied to each view; does not flip.
            geometry: Says what is known of each view.
            shares: `packs`, `rank` and `world_size`, as of `StepPacks`.

        Raises:
            UserError: The packs cannot be dealt out in equal shares.
        """
        super().__init__(index, sampler, replace(augmentation, flip=0.0), **shares)
        self.geometry = geometry

    def make(self, step: int, number: int) -> PosedPack:
        """Any of a step's packs, of whichever rank."""
        scenes = self.sampler.draw(step, number)
        images, geometry = [], []
        rows = np.concatenate(scenes).tolist()
        for place, (row, frame) in enumerate(zip(rows, self.frames.images(rows), strict=True)):
            rng = generator(self.sampler.seed, step, number, Purpose.CROP, place)
            framing = self.augmentation.draw(frame.shape[0], frame.shape[1], rng)
            images.append(framing.image(frame))
            geometry.append(self.geometry.view(row, framing))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        poses, intrinsics, depth, points = zip(*geometry, strict=True)
        return PosedPack(
            step,
            number,
            pixels,
            tuple(len(rows) for rows in scenes),
            torch.from_numpy(np.stack(poses)),
            torch.from_numpy(np.stack(intrinsics)),
            torch.from_numpy(np.stack(depth)),
            None if points[0] is None else torch.from_numpy(np.stack(points)),
        )
