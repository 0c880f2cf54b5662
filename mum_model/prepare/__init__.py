"""Prepare: raw captures, or rendered scenes, become an indexed, sharded dataset with splits and a card."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from mum_model.data.captures import Refusal, Scene, SequenceRule, is_text, printable
from mum_model.data.fingerprints import near_duplicates
from mum_model.errors import UserError
from mum_model.files import written_whole
from mum_model.prepare.card import write_card
from mum_model.prepare.content import content_sha256
from mum_model.prepare.executors import over_processes
from mum_model.prepare.ledger import Ledger
from mum_model.prepare.splits import split_scenes
from mum_model.prepare.tables import fingerprints, write_tables
from mum_model.prepare.work import FrameSettings, WrittenScene, code_state, input_state, write_scene

__all__ = ["content_sha256", "prepare"]

log = logging.getLogger(__name__)


def prepare(cfg: DictConfig) -> Path:
    """Write the dataset folder.

    Scenes that were finished before from the same inputs, by a run that was killed or by one that succeeded, are not
    done again; the dataset is the same either way.

    Args:
        cfg: The composed configuration; reads `data`, `machine` and `paths.dataset`.

    Returns:
        The dataset folder (see `mum_model.data.scenes`).

    Raises:
        UserError: The source cannot be read, more of it is broken than `data.max_refused_share` allows, or the disk is
            full.
    """
    target = Path(cfg.paths.dataset)
    scenes, refused, roots = find(cfg.data, target.with_name(f".{target.name}.sources"))
    with written_whole(target, resume=True) as folder:
        (folder / "shards").mkdir(exist_ok=True)
        written = _write(scenes, target, folder, cfg)
        refused += [refusal for scene in written for refusal in scene.refused]
        kept = [scene for scene in written if scene.frames]
        _check_share(refused, sum(scene.frames for scene in kept), cfg.data.max_refused_share)
        _drop_others(folder / "shards", kept)
        splits = split_scenes(kept, near_duplicates(*fingerprints(folder / "shards", kept)), cfg.data.splits)
        rule = _rule(cfg.data.sequence)
        counts = write_tables(folder, kept, splits, rule if cfg.data.sequence.kind else None, rule)
        write_card(folder, cfg.data, kept, splits, counts, [_relative(refusal, roots) for refusal in refused])
    for refusal in refused:
        log.warning("left out: %s", refusal)
    log.info("%s: %d frames of %d scenes", target, counts["frames"], counts["scenes"])
    return target


def find(data: DictConfig, work: Path) -> tuple[list[Scene], list[Refusal], list[Path]]:
    """The scenes that `data.source` holds, and what was refused on the way.

    Args:
        data: Reads `source` and `rendered`.
        work: Folder to which archives are unpacked and URLs fetched.

    Returns:
        Scenes in a fixed order, each name once within its source; what was refused; and where they were looked for.

    Raises:
        UserError: A path does not exist or holds nothing that is known.
    """
    scenes: list[Scene] = []
    refused: list[Refusal] = []
    roots: list[Path] = []
    for source in data.source if isinstance(data.source, ListConfig) else [data.source]:
        if source == "rendered":
            from mum_model.data.sources.rendered import rendered_scenes

            scenes += rendered_scenes(**data.rendered)
            continue
        from mum_model.data.sources import find_scenes

        found = find_scenes(source, work.resolve())
        scenes += found.scenes
        refused += found.refused
        roots.append(found.root.parent)
    return scenes, refused + _misnamed(scenes), [*roots, *work.resolve().glob("*")]


def _relative(refusal: Refusal, roots: Sequence[Path]) -> Refusal:
    """The path as seen from where captures were looked for, so that the card is the same on every machine."""
    path, reason = Path(refusal.path), refusal.reason
    root = next((root for root in roots if path.is_relative_to(root)), None)
    if root is not None:
        path, reason = path.relative_to(root), reason.replace(f"{root}/", "")
    return Refusal(printable(path.as_posix()), printable(reason))


def _misnamed(scenes: list[Scene]) -> list[Refusal]:
    """Take out scenes whose name was seen before, or cannot be stored."""
    kept: dict[tuple[str, str], Scene] = {}
    refused = []
    for scene in scenes:
        if not is_text(scene.name):
            refused.append(Refusal(scene.place, "the name is not UTF-8; rename the folder"))
        elif (scene.source, scene.name) in kept:
            problem = f"a second {scene.source} scene named '{scene.name}'; the first is kept"
            refused.append(Refusal(scene.place, problem))
        else:
            kept[scene.source, scene.name] = scene
    scenes[:] = kept.values()
    return refused


def _write(scenes: Sequence[Scene], target: Path, folder: Path, cfg: DictConfig) -> list[WrittenScene]:
    """Write the scenes that are not finished yet, and take the others as they are; in the order of the scenes."""
    settings, code, ledger = FrameSettings.of(cfg.data), code_state(), Ledger(target)
    states = [input_state(scene, settings, code) for scene in scenes]
    shards = folder / "shards"
    done = {i: ledger.reuse(state, [shards, target / "shards"], shards) for i, state in enumerate(states)}
    written = {i: scene for i, scene in done.items() if scene is not None}
    left = [i for i in range(len(scenes)) if i not in written]
    if written:
        log.info("%d of %d scenes are finished already", len(written), len(scenes))
    work = over_processes(
        partial(write_scene, folder=shards, settings=settings), [scenes[i] for i in left], cfg.machine
    )
    for position, scene in _with_bar(work, len(left)):
        written[left[position]] = scene
        if scene.frames:
            ledger.note(states[left[position]], scene)
    ledger.keep_only(set(states))
    return [written[i] for i in range(len(scenes))]


def _with_bar(work: Iterator[tuple[int, WrittenScene]], total: int) -> Iterator[tuple[int, WrittenScene]]:
    return iter(tqdm(work, total=total, desc="prepare", unit="scene", dynamic_ncols=True))


def _drop_others(shards: Path, kept: Sequence[WrittenScene]) -> None:
    """Remove what an interrupted run left that is no part of this dataset."""
    names = {scene.shard for scene in kept}
    for path in shards.iterdir():
        if path.name not in names:
            path.unlink()


def _rule(sequence: DictConfig) -> SequenceRule:
    return SequenceRule(
        kind=sequence.kind or "anchor",
        frames=sequence.frames,
        overlap=(sequence.min_overlap, sequence.max_overlap),
        angle=(sequence.min_angle, sequence.max_angle),
    )


def _check_share(refused: list[Refusal], kept: int, allowed: float) -> None:
    """Stop when too much was left out, naming each case."""
    share = len(refused) / max(1, kept + len(refused))
    if kept and share <= allowed:
        return
    lines = "\n  ".join(str(refusal) for refusal in refused[:50])
    raise UserError(
        f"{len(refused)} of {kept + len(refused)} frames cannot be used, {share:.0%}; "
        f"data.max_refused_share={allowed} allows {allowed:.0%}. Mend them or raise the share:\n  {lines}"
    )
