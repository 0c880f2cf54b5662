"""Rendered rooms straight into training: no dataset on disk, and no room is seen twice.

`paths.dataset=rendered` stands for them. Rooms are made from their number and `data.rendered.seed`, and which numbers a
pack takes is a function of (seed, step), so every process makes the same packs, at any step, without telling another.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from omegaconf import DictConfig

from mum_model.data.batches import Purpose, ViewCounts, generator
from mum_model.errors import UserError

RENDERED = "rendered"

NUMBERS = {"train": (2**32, 2**44), "val": (2**44, 2**45)}
"""Numbers of the rooms of a split. Those below are the rooms that `mum prepare` renders, which evaluation sees."""


@dataclass(frozen=True)
class EndlessRooms:
    """The views of all rooms, as an index of frames; view v of room r is row `r * views + v`.

    Attributes:
        views: Of each room.
        size: Side of a view in pixels.
        seed: Decides the rooms.
        difficulty: How hard their views are to match.
    """

    views: int
    size: int
    seed: int
    difficulty: str

    @classmethod
    def of(cls, rendered: DictConfig) -> Self:
        """Those of `data.rendered`, whose number of scenes does not count here.

        Raises:
            UserError: There is no such difficulty, or what renders is not installed.
        """
        try:
            from mum_model.data.sources.rendered import require_difficulty
        except ImportError as error:
            raise UserError(f"paths.dataset=rendered: {error}; pip install 'mum-pipeline[prepare]'") from error
        require_difficulty(rendered.difficulty)
        return cls(rendered.views, rendered.size, rendered.seed, rendered.difficulty)

    @property
    def content_sha256(self) -> str:
        """What identifies these rooms, as the content's digest does a dataset."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Render views, RGB uint8 `[size, size, 3]` each."""
        from mum_model.data.sources.rendered import room  # what renders is part of `prepare`, and not always installed

        places = [divmod(row, self.views) for row in rows]
        return [room(self.seed, number, self.difficulty).image(view, self.views, self.size) for number, view in places]

    def labels(self, rows: Sequence[int]) -> list[str]:
        """`scene/frame` of views."""
        return [f"room-{self.seed}-{row // self.views}/{row % self.views:04d}" for row in rows]


class RoomSampler:
    """Draws the rooms and views of each pack."""

    def __init__(
        self,
        rooms: EndlessRooms,
        split: str,
        *,
        frames: int,
        views: tuple[int, int],
        single_view_share: float,
        seed: int,
    ):
        """Set the draw up.

        Args:
            rooms: What to draw from.
            split: `train` or `val`, which have no room in common.
            frames: Frames of a pack.
            views: Smallest and largest view count.
            single_view_share: Share of packs in which every frame is of a room of its own.
            seed: Decides every draw.

        Raises:
            UserError: Rooms have fewer views than the largest view count, or no scenes fill a pack.
        """
        if views[1] > rooms.views:
            raise UserError(
                f"pretrain.views={list(views)}: a rendered room has {rooms.views} views; raise data.rendered.views"
            )
        self.rooms, self.numbers, self.seed = rooms, NUMBERS[split], seed
        self.single_view_share, self.counts = single_view_share, ViewCounts(frames, views)

    def draw(self, step: int, pack: int) -> list[np.ndarray]:
        """Rows of the views of a pack, as `ViewSampler.draw` gives them."""
        rng = generator(self.seed, step, pack, Purpose.VIEWS)
        single = rng.random() < self.single_view_share
        counts = [1] * self.counts.frames if single else self.counts.draw(rng)
        return [self._room(rng) + rng.choice(self.rooms.views, views, replace=False) for views in counts]

    def _room(self, rng: np.random.Generator) -> int:
        """The row of the first view of some room."""
        return int(rng.integers(*self.numbers)) * self.rooms.views
