"""What a task is: data that are open and checked, and a way to judge an encoder on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
