"""Which scene, or which frames of a scene, are for training, validation and test."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from omegaconf import DictConfig

from mum_model.prepare.work import WrittenScene


@dataclass(frozen=True)
class Splits:
    """The split of every frame, and why.

    Attributes:
        of_frames: A list a scene: the split of each of its frames.
        by: `scene`, or `blocks of frames` where there are too few.
        together: Groups of scenes that show the same and so share a split, by number.
        test_only: Scenes that some benchmark is judged on, by number, with the pattern that says so.
    """

    of_frames: list[list[str]]
    by: str
    together: list[list[int]]
    test_only: dict[int, str]


def split_scenes(
    scenes: Sequence[WrittenScene], duplicates: Sequence[tuple[int, int]], settings: DictConfig, least_scenes: int = 3
) -> Splits:
    """Give every frame its split: by whole scenes where there are enough, else by blocks of frames.

    Which scenes go where depends on their names and the seed alone, so a scene keeps its split when others are added
    (up to the rounding of the shares). Scenes that show the same share one; scenes of a benchmark are for test.

    Args:
        scenes: The written scenes.
        duplicates: Pairs of them, by number, that show the same.
        settings: `data.splits`: `val`, `test`, `seed`, `test_only`.
        least_scenes: With fewer, frames are split.

    Returns:
        The splits.
    """
    groups = _groups(len(scenes), [*duplicates, *_same_place(scenes)])
    test_only = _test_only(scenes, settings.test_only)
    together = [group for group in groups if len(group) > 1]
    if len(groups) < least_scenes:
        of_frames = [
            ["test"] * scene.frames if number in test_only else _blocks(scene.frames, settings, least=2)
            for number, scene in enumerate(scenes)
        ]
        return Splits(of_frames, "blocks of frames", together, test_only)
    free = [group for group in groups if not any(number in test_only for number in group)]
    free.sort(key=lambda group: _draw(settings.seed, min(scenes[number].scene for number in group)))
    splits = dict.fromkeys(range(len(scenes)), "test")
    for group, split in zip(free, _blocks(len(free), settings, least=1), strict=True):
        splits |= dict.fromkeys(group, split)
    return Splits([[splits[n]] * scene.frames for n, scene in enumerate(scenes)], "scene", together, test_only)


def _same_place(scenes: Sequence[WrittenScene]) -> list[tuple[int, int]]:
    first: dict[tuple[str, str], int] = {}
    named = [(number, (scene.source, scene.place)) for number, scene in enumerate(scenes) if scene.place]
    return [(first.setdefault(place, number), number) for number, place in named]


def _test_only(scenes: Sequence[WrittenScene], patterns: Sequence[str]) -> dict[int, str]:
    found = {}
    for number, scene in enumerate(scenes):
        name = f"{scene.source}/{scene.scene}"
        pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
        if pattern is not None:
            found[number] = pattern
    return found


def _groups(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Connected scenes, each group and the groups in rising order."""
    leader = list(range(count))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for a, b in pairs:  # a union-find: two scenes of a group have one leader
        first, second = sorted((find(a), find(b)))
        leader[second] = first
    groups: dict[int, list[int]] = {}
    for number in range(count):
        groups.setdefault(find(number), []).append(number)
    return list(groups.values())


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).hexdigest()


def _blocks(count: int, shares: DictConfig, least: int) -> list[str]:
    """`count` split names in blocks: test, val, train; at least two frames make a pair to judge on."""
    test, val = max(least, round(shares.test * count)), max(least, round(shares.val * count))
    return (["test"] * test + ["val"] * val + ["train"] * count)[:count]
