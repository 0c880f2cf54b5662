"""Opens the benchmarks that `evaluate.benchmarks` lists, each in its own layout, and checks them before compute."""

from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from mum_model.data.remote import is_url
from mum_model.data.scenes import SPLITS, SceneIndex, open_dataset
from mum_model.data.streaming import LocalCopies
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks.megadepth import open_megadepth
from mum_model.evaluate.benchmarks.multiview_scenes import multiview_task, open_captures, open_dtu, open_eth3d
from mum_model.evaluate.benchmarks.prepared import PreparedFrames, draw_pairs
from mum_model.evaluate.benchmarks.scannet import open_scannet
from mum_model.evaluate.benchmarks.single_view import open_ade20k, open_imagenet, open_nyu
from mum_model.evaluate.depth import DepthTask
from mum_model.evaluate.multiview import MultiViewTask
from mum_model.evaluate.pairs import PairTask
from mum_model.evaluate.pose_head import PoseHeadTask, pose_head_task
from mum_model.evaluate.task import Task
from mum_model.evaluate.views import Views


def open_tasks(cfg: DictConfig) -> list[Task]:
    """Open every benchmark.

    Args:
        cfg: The composed configuration; reads `evaluate`, `seed` and `paths.dataset`.

    Returns:
        The tasks that the benchmarks make possible, those of a benchmark beside each other.

    Raises:
        UserError: A benchmark is missing, cut, or lists what is not there; or nothing is left to judge on.
    """
    tasks: list[Task] = []
    for name, benchmark in _listed(cfg.evaluate).items():
        if benchmark.layout not in LAYOUTS:
            raise UserError(
                f"evaluate.benchmarks.{name}.layout={benchmark.layout}: expected one of {', '.join(LAYOUTS)}"
            )
        tasks += LAYOUTS[benchmark.layout](name, benchmark, cfg)
    _hand_over_lessons(tasks)
    if not tasks:
        raise UserError("evaluate.benchmarks: nothing to judge on; list a benchmark with a task")
    return tasks


def _hand_over_lessons(tasks: Sequence[Task]) -> None:
    """Give each task that is trained on another benchmark what that one is trained on."""
    trained = [task for task in tasks if isinstance(task, MultiViewTask | PoseHeadTask)]
    own = {(task.kind, task.benchmark): task.lessons for task in trained if not isinstance(task.lessons, str)}
    for task in trained:
        if isinstance(task.lessons, str):
            lessons = own.get((task.kind, task.lessons))
            if lessons is None:
                names = ", ".join(name for kind, name in own if kind == task.kind) or "none is judged now"
                raise UserError(
                    f"evaluate.benchmarks.{task.benchmark}.train_on={task.lessons}: expected a benchmark with "
                    f"{task.kind} among its tasks that is judged too: {names}"
                )
            task.lessons = lessons


def _listed(settings: DictConfig) -> dict[str, DictConfig]:
    """The benchmarks of `evaluate.only`, or all."""
    listed = {str(name): benchmark for name, benchmark in settings.benchmarks.items() if benchmark is not None}
    only = list(listed) if settings.only is None else settings.only
    only = [only] if isinstance(only, str) else only
    if unknown := [name for name in only if name not in listed]:
        raise UserError(f"evaluate.only: no benchmark is named {', '.join(unknown)}; there are {', '.join(listed)}")
    return {name: benchmark for name, benchmark in listed.items() if name in only}


def _prepared(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    place = benchmark.root or cfg.paths.dataset
    index, settings = open_dataset(place, LocalCopies.of(cfg)), cfg.evaluate
    if not is_url(place):
        index.check_shards()
    pairs = {
        split: draw_pairs(index, split, settings.pairs[split], tuple(settings.overlap), cfg.seed) for split in SPLITS
    }
    if not pairs["test"]:
        raise UserError(f"{place}: no pair of test views overlaps by {list(settings.overlap)}; widen evaluate.overlap")
    views = Views(PreparedFrames(name, index), settings.size, benchmark.fit)
    card = index.card
    sources = ", ".join(f"{count} {source}" for source, count in card["sources"].items())
    about = (
        f"{card['frames']} frames of {card['scenes']} scenes ({sources}), split by {card['split_by']}, content "
        f"{card['content_sha256'][:12]}; {len(pairs['train'])} pairs of views to train a probe, {len(pairs['val'])} to "
        f"choose it, {len(pairs['test'])} to test"
    )
    tasks: list[Task] = []
    if "pairs" in benchmark.tasks:
        tasks.append(PairTask(views, pairs, settings, about))
    if "depth" in benchmark.tasks:
        tasks.append(
            DepthTask(views, {split: _frames_with_depth(index, pairs[split]) for split in SPLITS}, settings, about)
        )
    if "pose_head" in benchmark.tasks:
        tasks.append(pose_head_task(views, pairs, {}, benchmark.get("train_on"), settings, about))
    if "multiview" in benchmark.tasks:
        posed = {split: _posed_scenes(index, split) for split in SPLITS}
        tasks.append(multiview_task(views, posed, benchmark, cfg, about.partition("; ")[0]))
    return tasks


def _posed_scenes(index: SceneIndex, split: str) -> dict[str, list[int]]:
    """Rows of the posed frames of each scene of a split."""
    posed = index.frames["world2cam"].is_valid().to_numpy()
    scenes: dict[str, list[int]] = {}
    for row, scene in zip(index.rows(split).tolist(), index.column("scene")[index.rows(split)], strict=True):
        if posed[row]:
            scenes.setdefault(scene, []).append(row)
    return scenes


def _frames_with_depth(index: SceneIndex, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The frames of these pairs: their features are at hand."""
    return [row for row in sorted({row for pair in pairs for row in pair}) if index.camera(row) is not None]


LAYOUTS: dict[str, Callable[[str, DictConfig, DictConfig], Sequence[Task]]] = {
    "prepared": _prepared,
    "megadepth": open_megadepth,
    "scannet": open_scannet,
    "captures": open_captures,
    "dtu": open_dtu,
    "eth3d": open_eth3d,
    "imagenet": open_imagenet,
    "ade20k": open_ade20k,
    "nyu": open_nyu,
}
"""Layout -> what opens it."""
