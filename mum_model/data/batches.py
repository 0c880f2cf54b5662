"""Batches: which views each step sees, decoded and augmented; a pure function of (seed, step).

A step is a number of *packs*, each exactly as many frames as the budget says: scenes of different lengths end to end.
Ranks share the packs out between them, so the frames of a step do not depend on how many ranks there are.

Nothing here has a state: step 1000 of an interrupted run draws the same frames, crops and flips as step 1000 of an
unbroken one, and any worker can make any pack.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mum_model.data.augmentation import Augmentation
from mum_model.data.scenes import Sequences
from mum_model.data.threads import one_thread
from mum_model.errors import UserError


class Purpose(IntEnum):
    """What random numbers are for; each purpose has a stream of its own, none a copy of another's."""

    VIEWS = 1
    CROP = 2
    MASK = 3


def generator(seed: int, step: int, pack: int, purpose: Purpose, place: int = 0) -> np.random.Generator:
    """The random numbers of one purpose in one pack.

    Args:
        seed: Of the training.
        step: Counted from 0.
        pack: Which of the step's packs.
        purpose: What they are for.
        place: Of a view in the pack, where each view has its own.

    Returns:
        A generator, the same wherever and whenever it is asked for.
    """
    return np.random.default_rng([seed, step, pack, purpose, place])


class ViewCounts:
    """The view counts of the scenes of a pack: random, and always of exactly the same sum.

    The paper draws one count S a batch, uniform over a range, so that scenes of every length get the same share of the
    *frames*. That share is kept here, in every pack: lengths are drawn independently, with weights w(S), under the
    condition that they fill the pack. With Z(n) = sum over S of w(S) Z(n - S), Z(0) = 1, the next length is S with
    probability w(S) Z(n - S) / Z(n) where n frames are left, which is an exact draw from that conditional
    distribution. The weights are those that give all lengths equal shares; without the condition they would be 1 / S.
    """

    FITTING_ROUNDS = 300

    def __init__(self, frames: int, views: tuple[int, int]):
        """Find the weights.

        Args:
            frames: Frames of a pack.
            views: Smallest and largest view count.

        Raises:
            UserError: No scenes of such lengths fill such a pack.
        """
        self.frames = frames
        self.lengths = np.arange(views[0], views[1] + 1)
        weights = 1.0 / self.lengths
        for _ in range(self.FITTING_ROUNDS):
            shares = self._shares(weights)
            weights = np.where(shares > 0, weights / np.maximum(shares, 1e-12), 0)
            weights /= weights.sum()
        self._weights = weights
        self._fillings = self._count_fillings(weights)

    @property
    def shares(self) -> np.ndarray:
        """Expected share of the frames in scenes of each length, smallest first; a length that cannot be is 0."""
        return self._shares(self._weights)

    def draw(self, rng: np.random.Generator) -> list[int]:
        """View counts of the scenes of one pack, the longest first.

        Args:
            rng: Decides.

        Returns:
            Counts whose sum is the pack's frames.
        """
        counts: list[int] = []
        left = self.frames
        while left:
            odds = self._weights * self._before(self._fillings, left)
            counts.append(int(rng.choice(self.lengths, p=odds / odds.sum())))
            left -= counts[-1]
        return sorted(counts, reverse=True)

    def _count_fillings(self, weights: np.ndarray) -> np.ndarray:
        """Z(0..frames)."""
        fillings = np.zeros(self.frames + 1)
        fillings[0] = 1
        for n in range(1, self.frames + 1):
            fillings[n] = weights @ self._before(fillings, n)
        return fillings

    def _before(self, fillings: np.ndarray, n: int) -> np.ndarray:
        """Z(n - S) for each length S; 0 where S is longer than n."""
        return np.where(self.lengths <= n, fillings[np.maximum(n - self.lengths, 0)], 0)

    def _shares(self, weights: np.ndarray) -> np.ndarray:
        fillings = self._count_fillings(weights)
        if fillings[-1] == 0:
            few, many = self.lengths[0], self.lengths[-1]
            raise UserError(
                f"pretrain.pack={self.frames}: no scenes of {few} to {many} views (pretrain.views) "
                f"fill {self.frames} frames"
            )
        around = np.convolve(fillings, fillings)[: self.frames + 1]  # sum over a of Z(a) Z(n - a)
        return self.lengths * weights * self._before(around, self.frames) / fillings[-1] / self.frames


class ViewSampler:
    """Draws the views of each pack from the sequences of a split.

    A source is drawn by its weight, whatever its size, then one of its sequences that are long enough, then distinct
    views of it (MuM, pretraining recipe).
    """

    def __init__(
        self,
        sequences: Sequences,
        sources: np.ndarray,
        *,
        frames: int,
        views: tuple[int, int],
        single_view_share: float,
        mix: Mapping[str, float],
        seed: int,
    ):
        """Set the draw up.

        Args:
            sequences: Of a split.
            sources: The source of each, `[sequences]`.
            frames: Frames of a pack.
            views: Smallest and largest view count.
            single_view_share: Share of packs in which every frame is a scene of its own, as in MAE; of sequences of one
                frame where the dataset has such, else of any.
            mix: Weight of a source by its name; 1 where not given.
            seed: Decides every draw.

        Raises:
            UserError: No sequence is as long as the smallest view count, no scenes fill a pack, or the mix names a
                source that is not there.
        """
        longest = int(sequences.lengths.max(initial=0))
        if longest < views[0]:
            raise UserError(
                f"pretrain.views={list(views)}: the longest training sequence has {longest} views. "
                "Lower pretrain.views or data.sequence.min_overlap, or prepare more frames"
            )
        known = sorted({str(name) for name in np.unique(sources)})
        if unknown := sorted(set(mix) - set(known)):
            raise UserError(f"pretrain.mix names {unknown}: the dataset's sources are {known}")
        self.frames, self.single_view_share, self.mix, self.seed = frames, single_view_share, dict(mix), seed
        self.views = (views[0], min(views[1], longest))
        self.counts = ViewCounts(frames, self.views)
        self.sequences = sequences
        self._lengths, self._sources = sequences.lengths, sources
        self._eligible = cache(self._eligible_by_source)

    def draw(self, step: int, pack: int) -> list[np.ndarray]:
        """Rows of the views of a pack.

        Args:
            step: Counted from 0.
            pack: Which of the step's packs.

        Returns:
            Rows of the index, one int64 array a scene, the longest scene first.
        """
        rng = generator(self.seed, step, pack, Purpose.VIEWS)
        single = rng.random() < self.single_view_share
        counts = [1] * self.frames if single else self.counts.draw(rng)
        return [rng.choice(self._sequence(views, rng), views, replace=False) for views in counts]

    def _sequence(self, views: int, rng: np.random.Generator) -> np.ndarray:
        eligible, odds = self._eligible(views)
        of_source = eligible[rng.choice(len(eligible), p=odds)]
        return self.sequences[of_source[rng.integers(len(of_source))]]

    def _eligible_by_source(self, views: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The sequences long enough for so many views, by source, and the odds of the sources."""
        single_images = self._lengths == 1
        enough = single_images if views == 1 and single_images.any() else self._lengths >= views
        names = np.unique(self._sources[enough])
        weights = np.array([self.mix.get(str(name), 1.0) for name in names])
        return [np.flatnonzero(enough & (self._sources == name)) for name in names], weights / weights.sum()


@dataclass(frozen=True)
class Pack:
    """What one forward pass sees.

    Attributes:
        step: The step it belongs to.
        number: Which of the step's packs it is.
        images: Views of all scenes end to end, uint8 `[frames, 3, size, size]`.
        views: Number of views of each scene.
    """

    step: int
    number: int
    images: Tensor
    views: tuple[int, ...]

    def pin_memory(self) -> "Pack":
        """The same with the images where a GPU can fetch them in the background; the loader calls it."""
        return replace(self, images=self.images.pin_memory())


class Frames(Protocol):
    """What packs are made of: frames by row."""

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """RGB uint8 `[H, W, 3]` each."""

    def labels(self, rows: Sequence[int]) -> list[str]:
        """`scene/frame` of each."""


class Sampler(Protocol):
    """What decides which frames a pack has."""

    seed: int

    def draw(self, step: int, pack: int) -> list[np.ndarray]:
        """Rows of the views of a pack, one int64 array a scene, the longest first."""


class StepPacks(Dataset[Pack]):
    """The packs that one rank sees, one after the other: those of its share of step 0, of step 1, and so on."""

    def __init__(
        self,
        frames: Frames,
        sampler: Sampler,
        augmentation: Augmentation,
        *,
        packs: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Set it up.

        Args:
            frames: The dataset, or endless rooms.
            sampler: Draws the rows.
            augmentation: Applied to each view.
            packs: Packs of a step over all ranks.
            rank: Which share of them to give.
            world_size: In how many equal shares they are dealt out.

        Raises:
            UserError: They cannot be dealt out in equal shares.
        """
        if packs % world_size:
            raise UserError(
                f"{packs} packs a step (pretrain.frames / pretrain.pack) cannot be shared by {world_size} processes: "
                "choose pretrain.pack so that their number is a multiple of it"
            )
        self.frames, self.sampler, self.augmentation = frames, sampler, augmentation
        self.rank, self.per_step = rank, packs // world_size

    def __getitem__(self, position: int) -> Pack:
        """The pack at a position of this rank's sequence."""
        step, turn = divmod(position, self.per_step)
        return self.make(step, self.rank * self.per_step + turn)

    def make(self, step: int, number: int) -> Pack:
        """Any of a step's packs, of whichever rank."""
        scenes = self.sampler.draw(step, number)
        views = [
            # A generator of its own: the crop of a view does not depend on what was drawn for others.
            self.augmentation(image, generator(self.sampler.seed, step, number, Purpose.CROP, place))
            for place, image in enumerate(self.frames.images(np.concatenate(scenes).tolist()))
        ]
        images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        return Pack(step, number, images, tuple(len(rows) for rows in scenes))

    def positions(self, steps: range) -> range:
        """Positions of the packs of these steps."""
        return range(steps.start * self.per_step, steps.stop * self.per_step)

    def names(self, step: int, pack: int) -> list[str]:
        """`scene/frame` of each view of a pack, for messages."""
        return self.frames.labels(np.concatenate(self.sampler.draw(step, pack)).tolist())


def load_packs(packs: StepPacks, steps: range, workers: int) -> Iterator[list[Pack]]:
    """This rank's packs of these steps, in order, loaded ahead of their use.

    Args:
        packs: What each step sees.
        steps: Which steps; a resumed run starts in the middle.
        workers: Processes that decode; 0 decodes in the training process.

    Yields:
        The packs of one step.

    Raises:
        UserError: Frames cannot be read.
    """
    loader = iter(
        DataLoader(
            _Delivered(packs),
            batch_size=None,
            sampler=packs.positions(steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=one_thread if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    )
    for _ in steps:
        yield [_opened(next(loader)) for _ in range(packs.per_step)]


class _Delivered(Dataset[Pack | UserError]):
    """Packs, or why there are none: raised in a worker, the reason would arrive inside that worker's traceback."""

    def __init__(self, packs: StepPacks):
        self.packs = packs

    def __getitem__(self, position: int) -> Pack | UserError:
        try:
            return self.packs[position]
        except UserError as error:
            return error


def _opened(delivered: Pack | UserError) -> Pack:
    if isinstance(delivered, UserError):
        raise delivered
    return delivered
