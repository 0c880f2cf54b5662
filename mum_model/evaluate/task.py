"""What a task is: data that are open and checked, and a way to judge an encoder on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.views import ImageSet

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What one encoder gave on a task, with one seed.

    Attributes:
        values: By `TASK.NUMBER`, what each unit gave, `[units, ...]`.
        predictions: What `Task.keep` needs.
    """

    values: Mapping[str, np.ndarray]
    predictions: Any


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        path: PNG.
        caption: What it shows.
        failure: Whether it was chosen because the first encoder failed there.
    """

    path: Path
    caption: str
    failure: bool = False


class Choice(NamedTuple):
    """The units of an encoder's own pictures.

    Attributes:
        units: Some of all kinds, then those where the encoder is worst, `[N]`.
        failed: Which are there because it is worst, `[N]`.
    """

    units: np.ndarray
    failed: np.ndarray


def choose(order: np.ndarray, errors: np.ndarray, count: int) -> Choice:
    """Choose what pictures show: units spread evenly over an order, and a third as many failures.

    Args:
        order: The units, from one end of what may be shown to the other, `[units]`.
        errors: Of each unit, not-a-number where it has none, `[units]`.
        count: How many, failures not counted.

    Returns:
        The choice; no unit is in it twice.
    """
    spread = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)].tolist()
    by_error = np.argsort(-np.nan_to_num(errors, nan=-1.0), kind="stable").tolist()
    worst = [unit for unit in by_error if unit not in spread and np.isfinite(errors[unit])][: max(1, count // 3)]
    return Choice(np.array([*spread, *worst]), np.array([False] * len(spread) + [True] * len(worst)))


class Task(Protocol):
    """A benchmark, ready to judge encoders on.

    Attributes:
        kind: `pairs`, `pose_head`, `multiview`, `depth`, `classification` or `segmentation`.
        benchmark: Name of the benchmark.
        name: Of the task, unique in an evaluation.
        test: The images that are tested on.
        groups: Scene of each unit, `[units]`.
        about: What it is judged on, for the report.
    """

    kind: str
    benchmark: str
    name: str
    test: ImageSet
    groups: np.ndarray
    about: str

    @property
    def content(self) -> str:
        """SHA-256 of the images, pairs and splits that it is judged on, and of those that anything is trained on."""
        ...

    def judge(self, encoder: Encoder, store: FeatureStore, seed: int) -> Outcome:
        """Judge an encoder.

        Args:
            encoder: The encoder.
            store: Gives its features.
            seed: Decides whatever is trained.

        Returns:
            What each unit gave.
        """
        ...

    def keep(self, outcome: Outcome, count: int) -> Arrays:
        """What pictures need of an encoder, whichever encoders it is put beside later.

        Args:
            outcome: Of the encoder, with the first seed.
            count: How many pictures there will be, failure cases not counted.

        Returns:
            Arrays: the views of the pictures that are this encoder's own choice, and for every unit that another
            encoder might choose what this one gave.
        """
        ...

    @staticmethod
    def draw(folder: Path, benchmark: str, kept: Mapping[str, Arrays]) -> list[Picture]:
        """Draw pictures of encoders side by side; the first chooses what is shown.

        Args:
            folder: Where PNG files go.
            benchmark: Its name.
            kept: What `keep` gave of each encoder.

        Returns:
            The pictures.
        """
        ...
