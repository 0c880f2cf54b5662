"""Evaluate: frozen encoders are judged on the tasks that the benchmarks make possible; one report over all of them."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.columns import COLUMNS
from mum_model.evaluate.encoders import Contestant, open_contestants
from mum_model.evaluate.features import FeatureStore, device
from mum_model.evaluate.gate import NotPromotedError, decide, parse_rules
from mum_model.evaluate.leaks import refuse_leaks
from mum_model.evaluate.report import Judged, write_report
from mum_model.evaluate.scores import Scores
from mum_model.evaluate.statistics import statistic_of
from mum_model.evaluate.task import Outcome, Task
from mum_model.files import write_json, written_whole

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> Path:
    """Judge the encoders of `encoder` on the benchmarks of `evaluate.benchmarks`.

    Args:
        cfg: The composed configuration; reads `encoder`, `gate`, `evaluate`, `seed`, `machine` and `paths`.

    Returns:
        The evaluation folder: `<encoder>/<benchmark>.json`, `metrics.json`, `gate.json`, `report.html`, `report.md` and
        `figures/`.

    Raises:
        UserError: An encoder or benchmark cannot be used, a test scene was trained on, or there is nothing to judge on.
        NotPromotedError: The first encoder broke a rule of the gate; the folder is written all the same.
    """
    if cfg.machine.threads is not None:
        torch.set_num_threads(cfg.machine.threads)
    contestants = open_contestants(cfg)
    names = [contestant.name for contestant in contestants]
    rules = parse_rules(cfg.gate, names[0], names[1:])
    for contestant in contestants:
        _try_out(contestant, cfg.evaluate.size)
    tasks = open_tasks(cfg)
    features = None if cfg.paths.features is None else Path(cfg.paths.features)
    notes = refuse_leaks([task.test for task in tasks], _pretraining(cfg), features)
    target = Path(cfg.paths.evaluation)
    with written_whole(target) as folder:
        judged = {
            contestant.name: judge(contestant, tasks, FeatureStore(features, contestant.layer), cfg.seed)
            for contestant in tqdm(contestants, desc="evaluate", unit="encoder")
        }
        metrics = {name: one.metrics for name, one in judged.items()}
        promoted, reasons = decide(rules, metrics, names[0])
        for name, numbers in metrics.items():
            for benchmark, part in _by_benchmark(numbers).items():
                write_json(folder / name / f"{benchmark}.json", part)
        write_json(folder / "metrics.json", metrics | ratios(metrics))
        write_json(folder / "gate.json", {"promoted": promoted, "candidate": names[0], "reasons": reasons})
        write_report(folder, judged, tasks, [*notes, *reasons], cfg)
    log.info("%s: the report over %s", target / "report.html", ", ".join(judged))
    for reason in reasons:
        log.info("gate: %s", reason)
    if not promoted:
        raise NotPromotedError(
            f"{names[0]} is not promoted; {'; '.join(reasons)}. The report is {target / 'report.html'}"
        )
    return target


def judge(contestant: Contestant, tasks: Sequence[Task], store: FeatureStore, seed: int) -> Judged:
    """Judge one encoder on all tasks, once for each seed.

    Args:
        contestant: The encoder of each seed; the seed also decides what is trained on its features.
        tasks: The tasks.
        store: Gives features.
        seed: The first seed.

    Returns:
        Its scores, and what the first seed's pictures need.
    """
    scores: dict[str, Scores] = {}
    first: dict[str, Outcome] = {}
    cost: dict[str, float] = {}
    for task in tasks:
        start = time.perf_counter()
        outcomes = [task.judge(encoder, store, seed + i) for i, encoder in enumerate(contestant.encoders)]
        first[task.name] = outcomes[0]
        for number in (key for key in COLUMNS if key in outcomes[0].values):
            values = np.stack([outcome.values[number] for outcome in outcomes])
            scores[f"{task.benchmark}.{number}"] = Scores(values, task.groups, statistic_of(number))
        cost[task.name] = time.perf_counter() - start
    store.forget()
    return Judged(contestant, scores, first, cost)


def _try_out(contestant: Contestant, size: int) -> None:
    """Refuse an encoder that does not fit before anything is computed."""
    encoder = contestant.encoders[0]
    if size % encoder.patch_size:
        raise UserError(
            f"evaluate.size={size}: must be a multiple of the patch size {encoder.patch_size} of encoder "
            f"'{contestant.name}'"
        )
    tokens = encoder.tokens(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device()), contestant.layer)
    expected = (size // encoder.patch_size) ** 2
    if tokens.patches.shape[1] != expected:
        raise UserError(
            f"encoder '{contestant.name}': {tokens.patches.shape[1]} tokens of an image of {size} pixels, "
            f"expected {expected}; only layers with a token for each patch can be judged"
        )


def _pretraining(cfg: DictConfig) -> SceneIndex | None:
    folder = Path(cfg.paths.dataset)
    return SceneIndex.open(folder) if SceneIndex.is_in(folder) else None


def _by_benchmark(numbers: Mapping[str, float]) -> dict[str, dict[str, float]]:
    parts: dict[str, dict[str, float]] = {}
    for key, value in numbers.items():
        benchmark, _, number = key.partition(".")
        parts.setdefault(benchmark, {})[number] = value
    return parts


def ratios(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """How the first encoder's probe error stands against the others'.

    Args:
        metrics: Of every encoder by name.

    Returns:
        Under `ratio`, the first encoder's over each other's, for each benchmark that has one; else nothing.
    """
    first, *others = metrics
    found = {
        f"{key.partition('.')[0]}.{first}_over_{other}": metrics[first][key] / metrics[other][key]
        for key in metrics[first]
        if key.endswith(".matching.probe_epe")
        for other in others
    }
    return {"ratio": found} if found else {}
