"""Evaluate: frozen encoders are judged on dense matching and on relative pose; one report over all of them."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.evaluate.encoders import JudgedEncoder, random_weights, raw_pixels, trained
from mum_model.evaluate.matching import (
    RECALL_WITHIN,
    Pairs,
    PatchGrid,
    ProbeSettings,
    end_point_errors,
    match,
    train_probes,
)
from mum_model.evaluate.metrics import area_under_recall
from mum_model.evaluate.pose import PosedPair, pose_error
from mum_model.evaluate.report import Judged, write_report
from mum_model.evaluate.views import Views, draw_pairs, posed_pair, true_matches
from mum_model.files import write_json, written_whole
from mum_model.model import load_encoder

log = logging.getLogger(__name__)

ANGLES = (5, 10, 20)  # degrees, as in the field's tables


@dataclass(frozen=True)
class Benchmark:
    """Everything that all encoders are judged on.

    Attributes:
        views: The frames.
        rows: Rows of the index whose features are needed, int64 `[F]`.
        images: Their pixels, uint8 `[F, 3, H, W]`.
        grid: The patches.
        pairs: True matches of each split.
        posed: Relative poses of the test pairs, None where unknown.
    """

    views: Views
    rows: np.ndarray
    images: Tensor
    grid: PatchGrid
    pairs: dict[str, Pairs]
    posed: list[PosedPair | None]

    @property
    def has_matches(self) -> bool:
        """Whether every split has co-visible patches, so that a probe can be trained, chosen and tested."""
        return all(len(pairs) and bool(pairs.covisible.any()) for pairs in self.pairs.values())


def evaluate(cfg: DictConfig) -> Path:
    """Judge the encoder of a run, beside random weights of the same shape and raw pixels.

    Args:
        cfg: The composed configuration; reads `evaluate`, `seed`, `machine` and `paths`.

    Returns:
        The evaluation folder: `<encoder>/{matching,pose}.json`, `metrics.json`, `report.html` and `figures/`.

    Raises:
        UserError: There is no run or dataset, or no pair of views to judge on.
    """
    if cfg.machine.threads is not None:
        torch.set_num_threads(cfg.machine.threads)
    run, target = Path(cfg.paths.run), Path(cfg.paths.evaluation)
    encoder = load_encoder(run / "encoder")
    benchmark = open_benchmark(cfg, patch_size=encoder.patch_embed.patch_size[0])
    judged = {}
    with written_whole(target) as folder:
        for name, seeds in tqdm(list(_contestants(cfg, run, benchmark.grid)), desc="evaluate", unit="encoder"):
            judged[name] = judge(seeds, benchmark, cfg)
            for task, numbers in judged[name].tasks.items():
                write_json(folder / name / f"{task}.json", numbers)
        write_json(folder / "metrics.json", summary(judged))
        write_report(folder, judged, benchmark, cfg)
    log.info("%s: the report over %s", target / "report.html", ", ".join(judged))
    return target


def open_benchmark(cfg: DictConfig, patch_size: int) -> Benchmark:
    """Draw the pairs of views and read what they need.

    Args:
        cfg: The composed configuration.
        patch_size: Of the encoder.

    Returns:
        What every encoder is judged on.

    Raises:
        UserError: The image size does not fit the patches, or the test split has no pair of views.
    """
    settings = cfg.evaluate
    if settings.size % patch_size:
        raise UserError(f"evaluate.size={settings.size}: must be a multiple of the encoder's patch size {patch_size}")
    views = Views(SceneIndex.open(Path(cfg.paths.dataset)), settings.size)
    drawn = {
        split: draw_pairs(views.index, split, count, tuple(settings.overlap), cfg.seed)
        for split, count in settings.pairs.items()
    }
    if not drawn["test"]:
        raise UserError(
            f"{cfg.paths.dataset}: no pair of test views overlaps by {list(settings.overlap)}; widen evaluate.overlap"
        )
    rows = np.unique([row for pairs in drawn.values() for pair in pairs for row in pair])
    grid = PatchGrid(settings.size // patch_size, settings.size // patch_size, patch_size)
    table_row = {int(row): i for i, row in enumerate(rows)}
    return Benchmark(
        views=views,
        rows=rows,
        images=views.images(rows),
        grid=grid,
        pairs={split: true_matches(views, pairs, grid, table_row) for split, pairs in drawn.items()},
        posed=[posed_pair(views, a, b) for a, b in drawn["test"]],
    )


def _contestants(cfg: DictConfig, run: Path, grid: PatchGrid) -> Iterator[tuple[str, list[JudgedEncoder]]]:
    """Name of each, with the encoder of each seed."""
    seeds = range(cfg.seed, cfg.seed + cfg.evaluate.seeds)
    yield "mum", [trained(run / "encoder")] * len(seeds)
    yield "random", [random_weights(run, seed) for seed in seeds]
    yield "pixels", [raw_pixels(grid.patch_size)] * len(seeds)


def judge(encoders: list[JudgedEncoder], benchmark: Benchmark, cfg: DictConfig) -> Judged:
    """Judge one contestant, once for each seed.

    Args:
        encoders: The encoder of each seed; the seed also decides its probe.
        benchmark: What to judge on.
        cfg: The composed configuration.

    Returns:
        Mean and deviation over the seeds, and what the first seed's pictures need.
    """
    results = []
    for i, encoder in enumerate(encoders):
        if i == 0 or encoder is not encoders[0]:
            features = encoder.features(benchmark.images)
        results.append(_judge_once(features, benchmark, cfg, cfg.seed + i))
    tasks = {task: _mean_and_deviation([r.numbers[task] for r in results]) for task in results[0].numbers}
    return Judged(tasks, results[0].positions, results[0].features)


@dataclass(frozen=True)
class _Result:
    numbers: dict[str, dict[str, float]]
    positions: Tensor
    features: Tensor


def _judge_once(features: Tensor, benchmark: Benchmark, cfg: DictConfig, seed: int) -> _Result:
    """KNN always; the probe where the data have matches to train it; the pose from the better of the two."""
    test, grid = benchmark.pairs["test"], benchmark.grid
    positions, confidence = match(features, test, grid, None)
    matching: dict[str, float] = {}
    if benchmark.has_matches:
        matching |= _matching_numbers("knn", positions, test, grid)
        projection = _best_probe(features, benchmark, cfg, seed)
        positions, confidence = match(features, test, grid, projection)
        matching |= _matching_numbers("probe", positions, test, grid)
    numbers = {"matching": matching} if matching else {}
    pose = _pose_numbers(positions, confidence, benchmark)
    return _Result(numbers | ({"pose": pose} if pose else {}), positions, features)


def _best_probe(features: Tensor, benchmark: Benchmark, cfg: DictConfig, seed: int) -> Tensor:
    """Train the probes on training pairs and keep the one of least error on validation pairs."""
    probes = train_probes(
        features, benchmark.pairs["train"], benchmark.grid, ProbeSettings(**cfg.evaluate.probe, seed=seed)
    )
    validation = benchmark.pairs["val"]

    def error(probe: Tensor) -> float:
        positions, _ = match(features, validation, benchmark.grid, probe)
        return _matching_numbers("val", positions, validation, benchmark.grid)["val_epe"]

    return min(probes, key=error)


def _matching_numbers(kind: str, positions: Tensor, pairs: Pairs, grid: PatchGrid) -> dict[str, float]:
    """Mean over the pairs of each pair's mean, so that every pair counts alike."""
    errors = [e for e in end_point_errors(positions, pairs, grid) if len(e)]
    return {
        f"{kind}_epe": float(np.mean([e.mean() for e in errors])),
        f"{kind}_recall": float(np.mean([(e < RECALL_WITHIN).mean() for e in errors])),
    }


def _pose_numbers(positions: Tensor, confidence: Tensor, benchmark: Benchmark) -> dict[str, float]:
    """AUC of the relative pose from the more confident half of the matches."""
    centres, side = benchmark.grid.centres.numpy(), benchmark.views.size
    errors = []
    for position, sure, pair in zip(positions.numpy(), confidence.numpy(), benchmark.posed, strict=True):
        if pair is not None:
            kept = sure >= np.median(sure)
            errors.append(pose_error(centres[kept], position[kept], pair, side))
    return {f"auc{angle}": area_under_recall(errors, angle) for angle in ANGLES} if errors else {}


def _mean_and_deviation(seeds: list[dict[str, float]]) -> dict[str, float]:
    numbers = {}
    for name in seeds[0]:
        values = [seed[name] for seed in seeds]
        numbers[name] = float(np.mean(values))
        numbers[f"{name}_std"] = float(np.std(values))
    return numbers


def summary(judged: dict[str, Judged]) -> dict[str, dict[str, Any]]:
    """All numbers of all encoders, and how the trained one stands against the others.

    Args:
        judged: By name.

    Returns:
        `{encoder: {task_number: value}}`, and under `ratio` the trained encoder's probe error over each other's.
    """
    numbers = {name: one.numbers for name, one in judged.items()}
    error = {name: values["matching_probe_epe"] for name, values in numbers.items() if "matching_probe_epe" in values}
    ratios = {f"mum_over_{name}": error["mum"] / value for name, value in error.items() if name != "mum"}
    return numbers | ({"ratio": ratios} if ratios else {})
