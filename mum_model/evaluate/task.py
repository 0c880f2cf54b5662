"""What a task is: data that are open and checked, and a way to judge an encoder on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.views import ImageSet


@dataclass(frozen=True)
class Outcome:
    """What one encoder gave on a task, with one seed.

    Attributes:
        values: By `TASK.NUMBER`, what each unit gave, `[units, ...]`.
        predictions: What the task's pictures need.
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


class Task(Protocol):
    """A benchmark, ready to judge encoders on.

    Attributes:
        benchmark: Name of the benchmark.
        name: Of the task, unique in an evaluation.
        test: The images that are tested on.
        groups: Scene of each unit, `[units]`.
        about: What it is judged on, for the report.
    """

    benchmark: str
    name: str
    test: ImageSet
    groups: np.ndarray
    about: str

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

    def draw(self, folder: Path, outcomes: Mapping[str, Outcome], count: int) -> list[Picture]:
        """Draw pictures of all encoders side by side.

        Args:
            folder: Where PNG files go.
            outcomes: Of each encoder, with the first seed.
            count: How many pictures, failure cases not counted.

        Returns:
            The pictures.
        """
        ...
