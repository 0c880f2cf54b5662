"""Evaluate and report: frozen encoders are judged on the tasks that the benchmarks make possible, all at once or apart.

`evaluate` judges and ends in a report, `report` puts evaluations side by side that were made apart; both end through
the same code. `decide_gate` decides again on a report that is there.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from mum_model.data.remote import is_url
from mum_model.data.scenes import SceneIndex, open_dataset
from mum_model.data.streaming import LocalCopies
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.columns import COLUMNS
from mum_model.evaluate.encoders import Contestant, open_contestants
from mum_model.evaluate.features import FeatureStore, device
from mum_model.evaluate.gate import Decision, NotPromotedError, decide_gate, parse_rules, read_record, write_record
from mum_model.evaluate.leaks import refuse_leaks
from mum_model.evaluate.page import by_encoder, write_report
from mum_model.evaluate.parts import BenchmarkCard, EncoderCard, Part, merge_parts, write_parts
from mum_model.evaluate.scores import Scores
from mum_model.evaluate.statistics import statistic_of
from mum_model.evaluate.task import Arrays, Task
from mum_model.files import write_json, written_whole

__all__ = ["Decision", "NotPromotedError", "decide_gate", "evaluate", "report"]

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> Path:
    """Judge the encoders of `encoder` on the benchmarks of `evaluate.benchmarks`, or on those of `evaluate.only`.

    Args:
        cfg: The composed configuration; reads `encoder`, `gate`, `evaluate`, `seed`, `machine` and `paths`.

    Returns:
        The evaluation folder, `paths.evaluation`: `parts.json` with `ENCODER/BENCHMARK.{json,npz}`, and what `report`
        writes.

    Raises:
        UserError: An encoder or benchmark cannot be used, a test scene was trained on, or there is nothing to judge on.
        NotPromotedError: The first encoder broke a rule of the gate; the folder is written all the same.
    """
    if cfg.machine.threads is not None:
        torch.set_num_threads(cfg.machine.threads)
    contestants = open_contestants(cfg)
    names = [contestant.name for contestant in contestants]
    _check_gate(cfg, names)
    for contestant in contestants:
        _try_out(contestant, cfg.evaluate.size)
    tasks = open_tasks(cfg)
    features = None if cfg.paths.features is None else Path(cfg.paths.features)
    notes = refuse_leaks([task.test for task in tasks], _pretraining(cfg), features)
    target = Path(cfg.paths.evaluation)
    with written_whole(target) as folder:
        parts: list[Part] = []
        for contestant in tqdm(contestants, desc="evaluate", unit="encoder"):
            parts += judge(contestant, tasks, FeatureStore(features, contestant.layer), notes, cfg)
        write_parts(folder, parts)
        decision = _conclude(folder, parts, cfg)
    return _announced(target, decision)


def report(cfg: DictConfig) -> Path:
    """Put the evaluations of `paths.evaluations` side by side: the report that judging all at once would have written.

    Args:
        cfg: The composed configuration; reads `gate` and `paths`. The first encoder of the first evaluation is the
            candidate.

    Returns:
        The folder of the report, `paths.report`: `metrics.json`, `candidate.json`, `gate.json`, `report.html`,
        `report.md` and `figures/`.

    Raises:
        UserError: A folder is no evaluation, or was judged on other data or settings than another.
        NotPromotedError: The first encoder broke a rule of the gate; the folder is written all the same.
    """
    listed = cfg.paths.evaluations
    folders = [Path(folder) for folder in (listed if isinstance(listed, ListConfig) else [listed])]
    target = Path(cfg.paths.report)
    if target.resolve() in {folder.resolve() for folder in folders}:
        raise UserError(
            f"paths.report: {target} is one of paths.evaluations and would be replaced; take another folder"
        )
    parts = merge_parts(folders)
    _check_gate(cfg, list(by_encoder(parts)))
    with written_whole(target) as folder:
        decision = _conclude(folder, parts, cfg)
    return _announced(target, decision)


def _served(cfg: DictConfig) -> Path | None:
    return None if cfg.paths.served is None else Path(cfg.paths.served)


def _check_gate(cfg: DictConfig, names: Sequence[str]) -> None:
    """Refuse rules that cannot be read before anything is computed."""
    parse_rules(cfg.gate, names[0], names[1:])
    served = _served(cfg)
    if served is not None:
        read_record(served)


def _conclude(folder: Path, parts: Sequence[Part], cfg: DictConfig) -> Decision:
    """Write numbers, decision and report."""
    judged = by_encoder(parts)
    metrics = {name: one.metrics for name, one in judged.items()}
    write_json(folder / "metrics.json", metrics | ratios(metrics))
    write_record(folder, [part for part in parts if part.encoder.name == next(iter(judged))])
    decision = decide_gate(folder, cfg.gate, _served(cfg))
    write_json(folder / "gate.json", asdict(decision))
    write_report(folder, parts, decision.reasons)
    return decision


def _announced(target: Path, decision: Decision) -> Path:
    log.info("%s: the report on %s", target / "report.html", decision.candidate)
    for reason in decision.reasons:
        log.info("gate: %s", reason)
    if not decision.promoted:
        raise NotPromotedError(
            f"{decision.candidate} is not promoted; {'; '.join(decision.reasons)}. "
            f"The report is {target / 'report.html'}"
        )
    return target


def judge(
    contestant: Contestant, tasks: Sequence[Task], store: FeatureStore, notes: Sequence[str], cfg: DictConfig
) -> Iterator[Part]:
    """Judge one encoder on all tasks, once for each seed.

    Args:
        contestant: The encoder of each seed; the seed also decides what is trained on its features.
        tasks: The tasks, those of a benchmark beside each other.
        store: Gives features.
        notes: On leaks, a line each.
        cfg: The composed configuration; reads `evaluate` and `seed`.

    Yields:
        What was found on each benchmark.
    """
    for _, group in groupby(tasks, key=lambda task: task.benchmark):
        own = list(group)
        scores: dict[str, Scores] = {}
        pictures: dict[str, Arrays] = {}
        seconds: dict[str, float] = {}
        for task in own:
            start = time.perf_counter()
            outcomes = [task.judge(encoder, store, cfg.seed + i) for i, encoder in enumerate(contestant.encoders)]
            for number in (key for key in COLUMNS if key in outcomes[0].values):
                values = np.stack([outcome.values[number] for outcome in outcomes])
                scores[number] = Scores(values, task.groups, statistic_of(number))
            seconds[task.name] = time.perf_counter() - start
            pictures[task.kind] = task.keep(outcomes[0], cfg.evaluate.figures)
        yield Part(EncoderCard.of(contestant), BenchmarkCard.of(own, cfg), notes, seconds, scores, pictures)
    store.forget()


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
    if not tokens.patches.half().isfinite().all():
        raise UserError(
            f"encoder '{contestant.name}': its features of a black image are not finite in half precision. Its weights "
            "are damaged, or this layer is not normalised: take another encoder or layer"
        )


def _pretraining(cfg: DictConfig) -> SceneIndex | None:
    place = cfg.paths.dataset
    there = is_url(place) or SceneIndex.is_in(Path(place))
    return open_dataset(place, LocalCopies.of(cfg)) if there else None


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
