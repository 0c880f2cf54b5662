"""The tasks on pairs of views: dense matching, and relative pose from the matches."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.figures import Matched, draw_pair, kept_view, principal_colours
from mum_model.evaluate.matching import (
    PAPER_SIDE,
    PCK_WITHIN,
    Pairs,
    PatchGrid,
    ProbeSettings,
    Table,
    end_point_errors,
    match,
    train_probes,
)
from mum_model.evaluate.metrics import ANGLES
from mum_model.evaluate.pose import pose_error
from mum_model.evaluate.task import Arrays, Outcome, Picture, choose
from mum_model.evaluate.views import ImageSet, Views, posed_pair, sha256_of, true_matches


@dataclass(frozen=True)
class Predictions:
    """Matches of the test pairs.

    Attributes:
        patch_size: Of the encoder.
        positions: (x, y) in view b, `[P, L, 2]`.
        errors: Mean end-point error of each pair, `[P]`; not-a-number without a co-visible patch.
        features: Gives the patch tokens of a frame.
    """

    patch_size: int
    positions: Tensor
    errors: np.ndarray
    features: Table


class PairTask:
    """Matching and pose on pairs of views.

    Matching needs depth; the probe also needs pairs to train it and to choose it. Pose needs intrinsics and poses.
    """

    kind = "pairs"

    def __init__(
        self,
        views: Views,
        pairs: Mapping[str, Sequence[tuple[int, int]]],
        settings: DictConfig,
        about: str,
        relative: Mapping[tuple[int, int], np.ndarray] | None = None,
    ):
        """Open the task.

        Args:
            views: The frames.
            pairs: Rows of view a and b for `test`, and for `train` and `val` where there are any.
            settings: `evaluate` of the configuration.
            about: What it is judged on.
            relative: Relative poses `[3, 4]` that a published list says itself; the others follow from the frames.
        """
        self.benchmark, self.about, self.settings = views.frames.name, about, settings
        self.name = f"{self.benchmark}: pairs of views"
        self.views, self.rows = views, pairs
        self.images = ImageSet(views, np.unique([row for split in pairs.values() for pair in split for row in pair]))
        self.test = ImageSet(views, np.unique([row for pair in pairs["test"] for row in pair]))
        self.groups = np.array([views.frames.scene(a) for a, _ in pairs["test"]])
        self.posed = [posed_pair(views, a, b, (relative or {}).get((a, b))) for a, b in pairs["test"]]
        self.truth = cache(self._truth)
        known = [None if pair is None else pair.pose.tolist() for pair in self.posed]
        self.content = sha256_of([self.images.identity, json.dumps(dict(pairs)), json.dumps(known)])

    def grid(self, patch_size: int) -> PatchGrid:
        """The patches of an encoder."""
        return PatchGrid(self.views.size // patch_size, self.views.size // patch_size, patch_size)

    def _truth(self, patch_size: int) -> dict[str, Pairs]:
        """True matches of each split, for patches of that size."""
        return {s: true_matches(self.images, pairs, self.grid(patch_size)) for s, pairs in self.rows.items() if pairs}

    def judge(self, encoder: Encoder, store: FeatureStore, seed: int) -> Outcome:
        """KNN where true matches are known, the probe where some can train it, pose from the better of both."""
        features, grid = store.get(encoder, self.images, "patches"), self.grid(encoder.patch_size)
        truth = self.truth(encoder.patch_size)
        known = {split for split, pairs in truth.items() if bool(pairs.covisible.any())}
        values: dict[str, np.ndarray] = {}
        positions, confidence = match(features, truth["test"], grid, None)
        if "test" in known:
            values |= _matching_values("knn", positions, truth["test"], grid)
        if known >= {"train", "val", "test"}:
            projection = self._best_probe(features, truth, grid, seed)
            positions, confidence = match(features, truth["test"], grid, projection)
            values |= _matching_values("probe", positions, truth["test"], grid)
        values |= self._pose_values(positions, confidence, grid)
        errors = values.get("matching.probe_epe", values.get("matching.knn_epe", np.full(len(positions), np.nan)))
        return Outcome(values, Predictions(encoder.patch_size, positions, errors, features))

    def _best_probe(self, features: Table, truth: dict[str, Pairs], grid: PatchGrid, seed: int) -> Tensor:
        """Train the probes on training pairs and keep the one of least error on validation pairs."""
        probes = train_probes(features, truth["train"], grid, ProbeSettings(**self.settings.probe, seed=seed))

        def error(probe: Tensor) -> float:
            positions, _ = match(features, truth["val"], grid, probe)
            return float(np.nanmean(_matching_values("val", positions, truth["val"], grid)["matching.val_epe"]))

        return min(probes, key=error)

    def _pose_values(self, positions: Tensor, confidence: Tensor, grid: PatchGrid) -> dict[str, np.ndarray]:
        """Error of the relative pose from the more confident half of the matches, not-a-number where it is unknown."""
        if not any(self.posed):
            return {}
        centres = grid.centres.numpy()
        errors = np.full(len(self.posed), np.nan)
        for i, pair in enumerate(self.posed):
            if pair is not None:
                kept = confidence[i] >= confidence[i].median()
                errors[i] = pose_error(centres[kept], positions[i][kept].numpy(), pair, self.views.size)
        return {f"pose.auc{angle}": errors for angle in ANGLES}

    def keep(self, outcome: Outcome, count: int) -> Arrays:
        """Views of pairs from the easiest to the hardest for the co-visible share, then of this encoder's failures."""
        own: Predictions = outcome.predictions
        pairs, grid = self.truth(own.patch_size)["test"], self.grid(own.patch_size)
        order = np.argsort(-pairs.covisible.float().mean(dim=1).numpy(), kind="stable")
        choice = choose(order, own.errors, count)
        chosen = [self.rows["test"][unit] for unit in choice.units]
        error = (own.positions - pairs.target).norm(dim=-1) * PAPER_SIDE / self.views.size
        error[~pairs.covisible] = torch.nan
        tokens = (own.features[torch.stack(pair)] for pair in zip(pairs.a, pairs.b, strict=True))
        label = self.views.frames.label
        return {
            "chosen": choice.units,
            "failed": choice.failed,
            "labels": np.array([f"{label(a)} and {label(b)}" for a, b in chosen]),
            "images": np.stack([[kept_view(self.views.image(row)) for row in pair] for pair in chosen]),
            "positions": (own.positions / self.views.size).half().numpy(),
            "error": error.half().numpy(),
            "colours": np.stack([principal_colours(two, grid) for two in tokens]),
        }

    @staticmethod
    def draw(folder: Path, benchmark: str, kept: Mapping[str, Arrays]) -> list[Picture]:
        """A picture of each pair that the first encoder chose, a row an encoder."""
        first = next(iter(kept.values()))
        pictures = []
        for i, number in enumerate(first["chosen"]):
            path = folder / f"{benchmark}-pair-{number:04d}.png"
            matched = {
                name: Matched(*(own[key][number] for key in ("positions", "error", "colours")))
                for name, own in kept.items()
            }
            draw_pair(path, first["images"][i], matched)
            pictures.append(Picture(path, f"{benchmark}: {first['labels'][i]}", bool(first["failed"][i])))
        return pictures


def _matching_values(kind: str, positions: Tensor, pairs: Pairs, grid: PatchGrid) -> dict[str, np.ndarray]:
    """Mean over the co-visible patches of each pair, so that every pair counts alike."""
    errors = end_point_errors(positions, pairs, grid)
    values = {f"matching.{kind}_epe": [e.mean() if len(e) else np.nan for e in errors]}
    for within in PCK_WITHIN:
        values[f"matching.{kind}_pck{within}"] = [(e < within).mean() if len(e) else np.nan for e in errors]
    return {key: np.array(value, np.float64) for key, value in values.items()}
