"""`mum data`: what changed between two datasets."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mum_model.data.scenes import SceneIndex


@dataclass(frozen=True)
class Difference:
    """What dataset b has otherwise than dataset a.

    Attributes:
        added: Scenes of b alone, `SOURCE/SCENE`.
        removed: Scenes of a alone.
        changed: Scenes of both with other frames, pixels or cameras.
        moved: Scenes of both that changed their split, with the splits before and after.
        frames: How many frames a and b have.
        settings: Lines on how the two are stored and split.
    """

    added: list[str]
    removed: list[str]
    changed: list[str]
    moved: dict[str, tuple[list[str], list[str]]]
    frames: tuple[int, int]
    settings: list[str]

    def __str__(self) -> str:
        lines = [f"frames: {self.frames[0]} -> {self.frames[1]}", *self.settings]
        for sign, scenes in (("+", self.added), ("-", self.removed), ("~", self.changed)):
            lines += [f"{sign} {scene}" for scene in scenes]
        lines += [f"> {scene}: {', '.join(old)} -> {', '.join(new)}" for scene, (old, new) in self.moved.items()]
        return "\n".join(lines) if len(lines) > 1 else "no difference"


def difference(a: SceneIndex, b: SceneIndex) -> Difference:
    """Compare two datasets by what their shards hold.

    Args:
        a: The older one.
        b: The newer one.

    Returns:
        What changed.
    """
    old, new = _scenes(a), _scenes(b)
    common = sorted(old.keys() & new.keys())
    return Difference(
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        changed=[scene for scene in common if old[scene][0] != new[scene][0]],
        moved={scene: (old[scene][1], new[scene][1]) for scene in common if old[scene][1] != new[scene][1]},
        frames=(len(a), len(b)),
        settings=[
            f"{key}: {a.card[key]} -> {b.card[key]}" for key in ("stored", "split_by") if a.card[key] != b.card[key]
        ],
    )


def _scenes(index: SceneIndex) -> dict[str, tuple[str, list[str]]]:
    """Digest of the shard and splits of each scene."""
    return {f"{row['source']}/{row['scene']}": (row["sha256"], row["splits"]) for row in index.scenes.to_pylist()}


def main(arguments: Sequence[str]) -> int:
    """Entry point of `mum data`.

    Args:
        arguments: The command line.

    Returns:
        Exit status: 0.
    """
    parser = argparse.ArgumentParser(prog="mum data", description="Look at prepared datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    diff = commands.add_parser("diff", help="what changed between two datasets: + added, - removed, ~ changed, > moved")
    diff.add_argument("a", type=Path, metavar="A", help="the older dataset folder (`dvc get --rev` brings one back)")
    diff.add_argument("b", type=Path, metavar="B", help="the newer dataset folder")
    chosen = parser.parse_args(arguments)
    print(difference(SceneIndex.open(chosen.a), SceneIndex.open(chosen.b)))
    return 0
