"""What was finished before: a line a scene, beside the dataset and not in it, so that no work is done twice."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mum_model.data.captures import Refusal
from mum_model.data.shards import Extent
from mum_model.files import write_text
from mum_model.prepare.work import WrittenScene, is_whole


class Ledger:
    """Finished scenes by the state of their inputs; survives a kill, and a line cut by one is passed over."""

    def __init__(self, dataset: Path):
        """Open the ledger of a dataset.

        Args:
            dataset: The dataset folder; the ledger is a hidden file beside it.
        """
        self.path = dataset.with_name(f".{dataset.name}.ledger.jsonl")
        self._lines = dict(_lines(self.path))

    def note(self, state: str, scene: WrittenScene) -> None:
        """Remember a finished scene."""
        self._lines[state] = scene
        with self.path.open("a") as file:
            file.write(_line(state, scene) + "\n")

    def reuse(self, state: str, places: list[Path], target: Path) -> WrittenScene | None:
        """A scene finished earlier from the same inputs, its shard brought to where it is wanted.

        Args:
            state: Of the inputs.
            places: Folders in which its shard may lie.
            target: Folder in which it is wanted.

        Returns:
            The scene, or None where it has to be written anew.
        """
        scene = self._lines.get(state)
        if scene is None:
            return None
        found = next((path for place in places if is_whole(path := place / scene.shard, scene.sha256)), None)
        if found is None:
            return None
        if found.parent != target:
            _link_or_copy(found, target / scene.shard)
        return scene

    def keep_only(self, states: set[str]) -> None:
        """Forget all other scenes."""
        self._lines = {state: scene for state, scene in self._lines.items() if state in states}
        write_text(self.path, "".join(_line(state, scene) + "\n" for state, scene in self._lines.items()))


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)  # costs no space; shards are never written in place
    except OSError:
        shutil.copyfile(source, target)


def _line(state: str, scene: WrittenScene) -> str:
    return json.dumps({"state": state, **asdict(scene)})


def _lines(path: Path) -> list[tuple[str, WrittenScene]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(_scene(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue  # cut by a kill: that scene is done again
    return found


def _scene(fields: dict[str, Any]) -> tuple[str, WrittenScene]:
    state = fields.pop("state")
    fields["record"] = Extent(*fields["record"])
    fields["refused"] = tuple(Refusal(**refusal) for refusal in fields["refused"])
    return state, WrittenScene(**fields)
