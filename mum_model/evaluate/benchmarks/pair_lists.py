"""Published lists of pairs: what they name, and how pairs are drawn from the long ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mum_model.errors import UserError
from mum_model.evaluate.benchmarks.files import DepthFormat, FileFrame, FileFrames
from mum_model.evaluate.pairs import PairTask
from mum_model.evaluate.pose_head import pose_head_task
from mum_model.evaluate.task import Task
from mum_model.evaluate.views import Views


@dataclass(frozen=True)
class ListedPair:
    """A pair of a list.

    Attributes:
        a: The first view.
        b: The second.
        overlap: Share that both see, not-a-number where the list does not say.
        relative: Takes points of a's camera to b's, `[3, 4]`, where the list says it; else None.
    """

    a: FileFrame
    b: FileFrame
    overlap: float
    relative: np.ndarray | None


PairList = list[ListedPair]


def draw_listed(
    lists: Mapping[str, Sequence[PairList]], settings: DictConfig, seed: int
) -> dict[str, list[ListedPair]]:
    """All test pairs; for the probe, pairs of fitting overlap drawn evenly from scenes that are in no later split.

    Args:
        lists: Of each split.
        settings: `evaluate` of the configuration: `pairs` and `overlap`.
        seed: Decides the draw.

    Returns:
        Pairs of each split.

    Raises:
        UserError: A split for the probe is left without a pair, or there are pairs to train but none to choose on.
    """
    drawn = {"test": [pair for one in lists["test"] for pair in one]}
    taken = {pair.a.scene for pair in drawn["test"]}
    for split in ("val", "train"):
        kept = [[pair for pair in one if pair.a.scene not in taken and _fits(pair, settings)] for one in lists[split]]
        drawn[split] = _evenly([one for one in kept if one], settings.pairs[split], seed)
        if lists[split] and not drawn[split]:
            raise UserError(
                f"evaluate.benchmarks: no pair is left in the {split} lists: none overlaps by "
                f"{list(settings.overlap)}, or all are of scenes that are tested on ({', '.join(sorted(taken))})"
            )
        taken |= {pair.a.scene for pair in drawn[split]}
    if bool(drawn["train"]) != bool(drawn["val"]):
        raise UserError("evaluate.benchmarks: a probe needs lists for both train and val, or for neither (kNN alone)")
    return drawn


def _fits(pair: ListedPair, settings: DictConfig) -> bool:
    low, high = settings.overlap
    return bool(np.isnan(pair.overlap) or low <= pair.overlap <= high)


def _evenly(lists: Sequence[PairList], count: int, seed: int) -> PairList:
    """The n-th drawn pair of each list before the (n+1)-th of any."""
    rng = np.random.default_rng(seed)
    shuffled = [[one[i] for i in rng.permutation(len(one))] for one in lists]
    longest = max(map(len, shuffled), default=0)
    return [one[turn] for turn in range(longest) for one in shuffled if turn < len(one)][:count]


def pair_tasks(
    name: str,
    pairs: Mapping[str, Sequence[ListedPair]],
    benchmark: DictConfig,
    settings: DictConfig,
    depth: DepthFormat,
    size: tuple[int, int] | None = None,
) -> list[Task]:
    """The tasks on pairs of lists.

    Args:
        name: Of the benchmark.
        pairs: Of each split.
        benchmark: `fit`, `tasks` (`pairs`, `pose_head`), and `train_on` where the head is trained on another benchmark.
        settings: `evaluate` of the configuration.
        depth: How their depth is stored.
        size: Width and height that images are brought to first.

    Returns:
        The tasks, their files checked.
    """
    frames: dict[Path, FileFrame] = {}
    for pair in (pair for split in pairs.values() for pair in split):
        frames |= {pair.a.image: pair.a, pair.b.image: pair.b}
    row = {path: i for i, path in enumerate(frames)}
    views = Views(FileFrames(name, list(frames.values()), depth, size), settings.size, benchmark.fit)
    rows = {split: [(row[pair.a.image], row[pair.b.image]) for pair in listed] for split, listed in pairs.items()}
    relative = {
        (row[pair.a.image], row[pair.b.image]): pair.relative
        for listed in pairs.values()
        for pair in listed
        if pair.relative is not None
    }
    scenes = len({pair.a.scene for pair in pairs["test"]})
    about = (
        f"{len(rows['test'])} test pairs of {scenes} scenes, all that the published lists name; {len(rows['train'])} "
        f"pairs to train a probe and {len(rows['val'])} to choose it, of other scenes"
    )
    tasks: list[Task] = []
    if "pairs" in benchmark.tasks:
        tasks.append(PairTask(views, rows, settings, about, relative))
    if "pose_head" in benchmark.tasks:
        tasks.append(pose_head_task(views, rows, relative, benchmark.get("train_on"), settings, about))
    return tasks
