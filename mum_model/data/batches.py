"""Batches: which views each step sees, decoded and augmented; a pure function of (seed, step).

Nothing here has a state: step 1000 of an interrupted run draws the same frames, crops and flips as step 1000 of an
unbroken one, and any worker can make any step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """How a stored frame becomes a training view.

    Attributes:
        size: Side of the square view in pixels.
        crop_scale: Smallest share of the frame's largest square that a random crop keeps; 1 takes that square whole.
        flip: Probability of a horizontal flip, drawn for each view.
    """

    size: int
    crop_scale: float
    flip: float

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crop, resize and flip.

        Args:
            image: RGB uint8 `[H, W, 3]`.
            rng: The view's own generator.

        Returns:
            RGB uint8 `[size, size, 3]`.
        """
        height, width = image.shape[:2]
        side = round(min(height, width) * rng.uniform(self.crop_scale, 1) ** 0.5)
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        view = image[top : top + side, left : left + side]
        shrinks = side > self.size
        view = cv2.resize(view, (self.size, self.size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return view[:, ::-1] if rng.random() < self.flip else view


class ViewSampler:
    """Draws the views of each step from the sequences of a split.

    The view count S is uniform over its range, one for the whole step; `floor(frames / S)` sequences are drawn, and S
    distinct views from each (MuM, pretraining recipe).
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        *,
        frames: int,
        views: tuple[int, int],
        single_view_share: float,
        seed: int,
    ):
        """Set the draw up.

        Args:
            sequences: Rows of the index, one array a sequence.
            frames: Frame budget of a step, over all ranks.
            views: Smallest and largest view count.
            single_view_share: Share of steps whose frames are all scenes of one view, as MAE.
            seed: Decides every draw.

        Raises:
            UserError: No sequence is as long as the smallest view count, or a scene would not fit the budget.
        """
        longest = max((len(sequence) for sequence in sequences), default=0)
        if longest < views[0]:
            raise UserError(
                f"pretrain.views={list(views)}: the longest training sequence has {longest} views. "
                "Lower pretrain.views or data.sequence.min_overlap, or prepare more frames"
            )
        if frames < views[1]:
            raise UserError(f"pretrain.frames={frames}: the budget must hold one scene of {views[1]} views")
        self.frames, self.single_view_share, self.seed = frames, single_view_share, seed
        self.views = (views[0], min(views[1], longest))
        self.sequences = sorted(sequences, key=len, reverse=True)
        self._lengths = np.array([len(sequence) for sequence in self.sequences])

    def draw(self, step: int) -> np.ndarray:
        """Rows of the views of a step.

        Args:
            step: Counted from 0.

        Returns:
            Rows of the index, int64 `[scenes, S]`.
        """
        rng = np.random.default_rng([self.seed, step])
        views = 1 if rng.random() < self.single_view_share else int(rng.integers(self.views[0], self.views[1] + 1))
        long_enough = int((self._lengths >= views).sum())
        chosen = rng.integers(long_enough, size=self.frames // views)
        return np.stack([rng.choice(self.sequences[i], views, replace=False) for i in chosen])


class StepBatches(Dataset[Tensor]):
    """The views that one rank sees at each step."""

    def __init__(
        self, index: SceneIndex, sampler: ViewSampler, augmentation: Augmentation, rank: int = 0, world_size: int = 1
    ):
        """Set it up.

        Args:
            index: The dataset.
            sampler: Draws the rows of all ranks.
            augmentation: Applied to each view.
            rank: Which share of the scenes to give.
            world_size: In how many shares they are dealt out; left-over scenes are not used.
        """
        self.index, self.sampler, self.augmentation = index, sampler, augmentation
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> Tensor:
        """Views of a step, uint8 `[scenes, S, 3, size, size]`."""
        rows = self.rows(step)
        per_rank = len(rows) // self.world_size
        mine = range(self.rank * per_rank, (self.rank + 1) * per_rank)
        views = np.stack([self._view(int(rows[i, j]), step, i, j) for i in mine for j in range(rows.shape[1])])
        return torch.from_numpy(views).permute(0, 3, 1, 2).unflatten(0, (per_rank, rows.shape[1]))

    def rows(self, step: int) -> np.ndarray:
        """Rows of the index of all ranks' views of a step, `[scenes, S]`; naming a batch in a message needs them."""
        rows = self.sampler.draw(step)
        if len(rows) < self.world_size:
            raise UserError(
                f"pretrain.frames={self.sampler.frames}: {len(rows)} scenes of {rows.shape[1]} views "
                f"are too few for {self.world_size} ranks"
            )
        return rows

    def _view(self, row: int, step: int, scene: int, view: int) -> np.ndarray:
        rng = np.random.default_rng([self.sampler.seed, step, scene, view])
        return self.augmentation(self.index.image(row), rng)


def step_loader(batches: StepBatches, steps: range, workers: int) -> DataLoader[Tensor]:
    """Load the batches of these steps in order, ahead of their use.

    Args:
        batches: What each step sees.
        steps: Which steps; a resumed run starts in the middle.
        workers: Processes that decode; 0 decodes in the training process.

    Returns:
        Yields uint8 `[scenes, S, 3, size, size]`.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=list(steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
