"""What the multi-view model is trained on: scenes of some benchmark, and the features of an encoder of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mum_model.errors import UserError
from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import Features, device
from mum_model.evaluate.readers import Lessons, Optimisation, Reader, precision, train_reader
from mum_model.evaluate.views import ImageSet, Views, sha256_of
from mum_model.model.interchange import load_multiview
from mum_model.model.multiview import MultiViewConfig, MultiViewModel
from mum_model.model.multiview_heads import MultiViewOutput
from mum_model.model.multiview_loss import MultiViewTarget, geometry_loss, known_geometry
from mum_model.model.scenes import SceneLayout

Sets = Sequence[Sequence[int]]
"""Rows of frames that are shown together."""


@dataclass(frozen=True)
class MultiViewSettings:
    """`evaluate.multiview` of the configuration, where its lines are explained."""

    views: tuple[int, int]
    judged_views: int
    sets: int
    scenes: int
    frames: int
    map_side: int
    icp: float
    model: Mapping[str, Any]
    batch: int
    optimisation: Optimisation
    trained: Mapping[str, str]

    @classmethod
    def of(cls, settings: DictConfig) -> "MultiViewSettings":
        """Read them.

        Raises:
            UserError: A number makes no sense.
        """
        low, high = settings.views
        if not 2 <= low <= high or settings.judged_views < 2 or settings.batch < high:
            raise UserError(
                f"evaluate.multiview: views={list(settings.views)}, judged_views={settings.judged_views}, "
                f"batch={settings.batch}; expected views=[from 2, to], judged_views of 2 and more, and a batch that "
                "holds the longest scene"
            )
        model: dict[str, Any] = {str(name): size for name, size in settings.model.items()}
        MultiViewConfig(token_dim=1, **model)  # says what is wrong with its shape
        return cls(
            (low, high),
            settings.judged_views,
            settings.sets,
            settings.scenes,
            settings.frames,
            settings.map_side,
            settings.icp,
            model,
            settings.batch,
            Optimisation(**settings.optimisation),
            {str(name): str(run) for name, run in settings.trained.items()},
        )


def draw_sets(scenes: Mapping[str, Sequence[int]], each: int, views: int, seed: int) -> list[list[int]]:
    """Sets of frames to judge on, drawn at random from each scene.

    Args:
        scenes: Rows of the posed frames of each scene.
        each: Sets of a scene.
        views: Frames of a set; all of a scene that has fewer. A scene of one frame gives none.
        seed: Decides the draw.

    Returns:
        Rows of each set, the first of which is the reference.
    """
    rng = np.random.default_rng(seed)
    usable = [rows for rows in scenes.values() if len(rows) > 1]
    return [rng.permutation(np.array(rows))[:views].tolist() for rows in usable for _ in range(each)]


def draw_scenes(scenes: Mapping[str, Sequence[int]], settings: MultiViewSettings, seed: int) -> list[list[int]]:
    """Scenes to train on, at most `settings.scenes` with `settings.frames` each, drawn at random.

    Args:
        scenes: Rows of the frames of each scene.
        settings: How many.
        seed: Decides the draw.

    Returns:
        Rows of each scene, at least as many as the smallest number of views.
    """
    rng = np.random.default_rng(seed)
    usable = [rows for rows in scenes.values() if len(rows) >= settings.views[0]]
    kept = [usable[i] for i in sorted(rng.permutation(len(usable))[: settings.scenes].tolist())]
    return [sorted(rng.permutation(np.array(rows))[: settings.frames].tolist()) for rows in kept]


class Geometry:
    """What is known of the geometry of views, as small as the predicted maps."""

    def __init__(self, views: Views, side: int):
        """Open it.

        Args:
            views: The views.
            side: Of the maps in pixels.
        """
        self.views = Views(views.frames, side, views.fit)
        self._row = lru_cache(maxsize=8192)(self._read)

    def _read(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        frames, unknown = self.views.frames, np.full((3, 4), np.nan)
        pose, intrinsics, depth = frames.world2cam(row), frames.intrinsics(row), self.views.depth(row)
        return (
            unknown if pose is None else pose,
            unknown[:, :3] if intrinsics is None else self.views.square(row).intrinsics(intrinsics),
            np.zeros((self.views.size,) * 2, np.float32) if depth is None else depth,
        )

    def of(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Poses `[N, 3, 4]`, intrinsics `[N, 3, 3]`, both not-a-number where unknown, and depth `[N, side, side]`."""
        poses, intrinsics, depth = zip(*(self._row(row) for row in rows), strict=True)
        return np.stack(poses), np.stack(intrinsics), np.stack(depth)

    def target(self, sets: Sets) -> MultiViewTarget:
        """What the model should say of these scenes, one after the other."""
        poses, intrinsics, depth = map(torch.from_numpy, self.of([row for rows in sets for row in rows]))
        return known_geometry(poses, intrinsics, depth, SceneLayout.of([len(rows) for rows in sets]))


def predict(reader: Reader[MultiViewModel], tokens: Tensor, views: Sequence[int], side: int) -> MultiViewOutput:
    """Apply a trained multi-view model.

    Args:
        reader: The model.
        tokens: Patch tokens of all views of some scenes, `[N, L, D]`; the grid is square.
        views: Number of views of each scene.
        side: Of the maps in pixels.

    Returns:
        Its prediction.
    """
    grid = (int(tokens.shape[1] ** 0.5),) * 2
    with precision():
        scenes = SceneLayout.of(views).to(tokens.device)
        return reader.network(reader.standardised(tokens), scenes, grid, (side, side))


class MultiViewLessons(Lessons[MultiViewModel]):
    """Scenes to train the multi-view model on, and sets of views to choose it on."""

    def __init__(self, views: Views, train: Sets, val: Sets, settings: MultiViewSettings, seeds: int):
        """Open the lessons.

        Args:
            views: The frames.
            train: Rows of each scene to train on.
            val: Rows of each set to choose on.
            settings: How.
            seeds: How many trainings of an encoder there are: so many are remembered.

        Raises:
            UserError: There is nothing to train or to choose on, or a run has no multi-view model.
        """
        if not train or not val:
            raise UserError(
                f"{views.frames.name}: no scene with {settings.views[0]} posed views to "
                f"{'choose the multi-view model on' if train else 'train the multi-view model on'}; leave multiview "
                "out of its tasks, or set train_on to another benchmark"
            )
        super().__init__(seeds)
        self.train, self.val, self.settings = train, val, settings
        self.images = ImageSet(views, np.unique([row for rows in (*train, *val) for row in rows]))
        self.content = sha256_of([self.images.identity, repr((train, val))])
        self.geometry = Geometry(views, settings.map_side)
        self.trained = {name: load_multiview(Path(run) / "model") for name, run in settings.trained.items()}

    def teach(self, encoder: Encoder, features: Features, seed: int) -> Reader[MultiViewModel]:
        """The multi-view model of a run where one is named for the encoder, else one trained on its tokens."""
        if encoder.name in self.trained:
            return _fitting(self.trained[encoder.name], encoder, features)
        return train_reader(
            lambda width: MultiViewModel(MultiViewConfig(token_dim=width, **self.settings.model)),
            features,
            lambda reader, rng: self._loss(reader, features, self._draw(rng)),
            lambda reader: self._validate(reader, features),
            self.settings.optimisation,
            seed,
            f"multi-view model on {encoder.name}",
        )

    def _draw(self, rng: np.random.Generator) -> Sets:
        """Scenes of as many views each as drawn, together at most a batch."""
        views = int(rng.integers(self.settings.views[0], self.settings.views[1] + 1))
        scenes = rng.integers(len(self.train), size=self.settings.batch // views)
        return [rng.permutation(np.array(self.train[scene]))[:views].tolist() for scene in scenes]

    def _loss(self, reader: Reader[MultiViewModel], features: Features, sets: Sets) -> Tensor:
        tokens = features[torch.tensor([self.images.place(row) for rows in sets for row in rows])]
        said = predict(reader, tokens, [len(rows) for rows in sets], self.settings.map_side)
        target = MultiViewTarget(*(part.to(device()) for part in self.geometry.target(sets)))
        return geometry_loss(said, target).total

    @torch.inference_mode()
    def _validate(self, reader: Reader[MultiViewModel], features: Features) -> float:
        return float(np.mean([float(self._loss(reader, features, [rows])) for rows in self.val]))


def _fitting(model: MultiViewModel, encoder: Encoder, features: Features) -> Reader[MultiViewModel]:
    """What `mum pretrain objective=multiview` or `objective=distil` trained together with an encoder, or on it."""
    if model.config.token_dim != features.width:
        raise UserError(
            f"evaluate.multiview.trained.{encoder.name}: its model reads tokens of width {model.config.token_dim}, the "
            f"encoder gives {features.width}; name the run of that encoder"
        )
    return Reader(model.to(device()), torch.zeros(1, device=device()), torch.ones(1, device=device()))
