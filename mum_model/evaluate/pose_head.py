"""Two-view relative pose by a trained head: the paper's protocol for its pose numbers (after Reloc3r).

A decoder with cross-attention reads the frozen tokens of both views and says the pose. It is trained on pairs to train
on, chosen on pairs to choose on, and judged as poses from matches are: AUC of the larger of the errors of rotation and
of the direction of translation, whose sign matters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mum_model.errors import UserError
from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import Features, FeatureStore, device
from mum_model.evaluate.metrics import ANGLES, relative_pose_error
from mum_model.evaluate.readers import Lessons, Optimisation, Reader, precision, train_reader
from mum_model.evaluate.task import Arrays, Outcome, Picture
from mum_model.evaluate.views import ImageSet, Views, relative_truth, sha256_of
from mum_model.model.two_view import TwoViewConfig, TwoViewPose, two_view_loss, two_view_pose

Rows = Sequence[tuple[int, int]]
Relative = Mapping[tuple[int, int], np.ndarray]


@dataclass(frozen=True)
class PosedPairs:
    """Pairs of views whose relative pose is known.

    Attributes:
        rows: Of view a and view b.
        poses: Takes points of a's camera to b's, `[P, 3, 4]`.
    """

    rows: Rows
    poses: np.ndarray

    @classmethod
    def of(cls, views: Views, rows: Rows, relative: Relative) -> "PosedPairs":
        """Those of some pairs whose pose is known by itself or by their frames."""
        found = [(pair, relative_truth(views, *pair, relative.get(pair))) for pair in rows]
        known = [(pair, pose) for pair, pose in found if pose is not None]
        return cls([pair for pair, _ in known], np.array([pose for _, pose in known]).reshape(-1, 3, 4))


class PoseLessons(Lessons[TwoViewPose]):
    """Pairs to train the head on, and pairs to choose it on."""

    def __init__(self, views: Views, pairs: Mapping[str, PosedPairs], settings: DictConfig, seeds: int):
        """Open the lessons.

        Args:
            views: The frames.
            pairs: For `train` and `val`.
            settings: `evaluate.pose_head` of the configuration.
            seeds: How many trainings of an encoder there are: so many are remembered.

        Raises:
            UserError: There is nothing to train or to choose on, or the head's shape is impossible.
        """
        super().__init__(seeds)
        self.train, self.val, self.batch = pairs["train"], pairs["val"], settings.batch
        if not self.train.rows or not self.val.rows:
            raise UserError(
                f"{views.frames.name}: no pair of known pose to {'choose' if self.train.rows else 'train'} the pose "
                "head on; leave pose_head out of its tasks, or set train_on to another benchmark"
            )
        self.model: dict[str, Any] = {str(name): size for name, size in settings.model.items()}
        TwoViewConfig(token_dim=1, **self.model)  # says what is wrong with its shape
        self.optimisation = Optimisation(**settings.optimisation)
        self.images = ImageSet(views, np.unique([row for own in (self.train, self.val) for p in own.rows for row in p]))
        self.content = sha256_of([self.images.identity, repr((self.train.rows, self.val.rows))])

    def teach(self, encoder: Encoder, features: Features, seed: int) -> Reader[TwoViewPose]:
        """Train the head on an encoder's tokens of the pairs to train on."""

        def loss(reader: Reader[TwoViewPose], rng: np.random.Generator) -> Tensor:
            chosen = rng.integers(len(self.train.rows), size=self.batch)
            rows = [self.train.rows[i] for i in chosen]
            numbers = say(reader, features, self.images, rows)
            return two_view_loss(numbers, torch.from_numpy(self.train.poses[chosen]).float().to(device()))

        return train_reader(
            lambda width: TwoViewPose(TwoViewConfig(token_dim=width, **self.model)),
            features,
            loss,
            lambda reader: float(np.median(errors_of(reader, features, self.images, self.val))),
            self.optimisation,
            seed,
            f"pose head on {encoder.name}",
        )


def say(reader: Reader[TwoViewPose], features: Features, images: ImageSet, rows: Rows) -> Tensor:
    """What a head says of some pairs, `[P, 12]`."""
    a, b = (reader.standardised(features[torch.tensor([images.place(p[i]) for p in rows])]) for i in (0, 1))
    with precision():
        return reader.network(a, b, (int(a.shape[1] ** 0.5),) * 2)


@torch.inference_mode()
def errors_of(reader: Reader[TwoViewPose], features: Features, images: ImageSet, pairs: PosedPairs) -> np.ndarray:
    """Error of the pose of each pair in degrees, `[P]`."""
    errors: list[float] = []
    for start in range(0, len(pairs.rows), 64):
        said = two_view_pose(say(reader, features, images, pairs.rows[start : start + 64]).cpu().double()).numpy()
        errors += map(relative_pose_error, said, pairs.poses[start : start + 64])
    return np.array(errors)


class PoseHeadTask:
    """Relative pose of pairs of views by a trained head."""

    kind = "pose_head"

    def __init__(self, views: Views, test: PosedPairs, lessons: PoseLessons | str, about: str):
        """Open the task.

        Args:
            views: The frames.
            test: Pairs to judge on.
            lessons: What the head is trained on, or the name of the benchmark that has it.
            about: What it is judged on.

        Raises:
            UserError: No test pair has a known pose.
        """
        if not test.rows:
            raise UserError(f"{views.frames.name}: no test pair has a known pose; leave pose_head out of its tasks")
        self.benchmark, self.about, self.views, self.pairs = views.frames.name, about, views, test
        self.name = f"{self.benchmark}: pose of two views by a head"
        self.lessons = lessons
        self.test = ImageSet(views, np.unique([row for pair in test.rows for row in pair]))
        self.groups = np.array([views.frames.scene(a) for a, _ in test.rows])

    @property
    def content(self) -> str:
        """SHA-256 of what the head is trained on and of what it is judged on."""
        assert isinstance(self.lessons, PoseLessons)
        return sha256_of(
            [self.lessons.content, self.test.identity, repr(self.pairs.rows), repr(self.pairs.poses.tolist())]
        )

    def judge(self, encoder: Encoder, store: FeatureStore, seed: int) -> Outcome:
        """Train the head on the encoder's tokens, unless it was just trained for another benchmark, and judge it."""
        assert isinstance(self.lessons, PoseLessons)
        reader = self.lessons.learn(encoder, store, seed)
        errors = errors_of(reader, store.get(encoder, self.test, "patches"), self.test, self.pairs)
        return Outcome({f"pose_head.auc{angle}": errors for angle in ANGLES}, None)

    def keep(self, outcome: Outcome, count: int) -> Arrays:
        """Nothing: its pictures would be those of the matches."""
        return {}

    @staticmethod
    def draw(folder: Path, benchmark: str, kept: Mapping[str, Arrays]) -> list[Picture]:
        """None."""
        return []


def pose_head_task(
    views: Views,
    pairs: Mapping[str, Rows],
    relative: Relative,
    train_on: str | None,
    settings: DictConfig,
    about: str,
) -> PoseHeadTask:
    """The task on pairs of views.

    Args:
        views: The frames.
        pairs: Rows of view a and b for `train`, `val` and `test`.
        relative: Relative poses that a published list says itself.
        train_on: Name of the benchmark whose pairs are trained on; None for these.
        settings: `evaluate` of the configuration.
        about: What it is judged on.

    Returns:
        The task.
    """
    posed = {split: PosedPairs.of(views, rows, relative) for split, rows in pairs.items()}
    lessons = train_on or PoseLessons(views, posed, settings.pose_head, settings.seeds)
    return PoseHeadTask(views, posed["test"], lessons, about if train_on is None else f"{about}; trained on {train_on}")
