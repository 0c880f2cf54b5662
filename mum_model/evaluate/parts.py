"""Parts of evaluations: one encoder on one benchmark, kept so that what was judged apart can be put side by side.

A part is two files in an evaluation folder: `ENCODER/BENCHMARK.json`, which says what was judged on what and holds the
numbers, and `ENCODER/BENCHMARK.npz` beside it with what each unit gave and what the pictures need (arrays alone, no
pickle). `parts.json` lists the parts in their order.
"""

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from mum_model.errors import UserError
from mum_model.evaluate.columns import INTERVAL
from mum_model.evaluate.encoders import Contestant, Place
from mum_model.evaluate.scores import Scores
from mum_model.evaluate.statistics import statistic_of
from mum_model.evaluate.task import Arrays, Task
from mum_model.evaluate.views import sha256_of
from mum_model.files import write_json

FORMAT = 1  # raise it when a part of before would be read wrongly, or its numbers mean something else
LIST = "parts.json"
PROTOCOL = ("size", "pairs", "overlap", "probe", "linear", "seeds")  # of `evaluate`: what decides every number
TRAINED = ("multiview", "pose_head")  # kinds of tasks with settings of their own, under the same name

Basis = Mapping[str, Any]


@dataclass(frozen=True)
class EncoderCard:
    """Which encoder was judged.

    Attributes:
        name: In the report and as a folder.
        description: Where it came from, in a few words.
        identity: SHA-256 of everything that decides its tokens, of each seed.
        layer: Block whose tokens were judged; -1 is the last.
        place: Where it stands in a series of layers or of checkpoints.
        parameters: How many numbers were learned; 0 where that is not known.
    """

    name: str
    description: str
    identity: Sequence[str]
    layer: int
    place: Place | None
    parameters: int

    @classmethod
    def of(cls, contestant: Contestant) -> "EncoderCard":
        """The card of an encoder that is about to be judged."""
        identity = [encoder.identity for encoder in contestant.encoders]
        parameters = contestant.encoders[0].parameters
        return cls(contestant.name, contestant.description, identity, contestant.layer, contestant.place, parameters)


@dataclass(frozen=True)
class TaskCard:
    """A task of a benchmark.

    Attributes:
        kind: `pairs`, `pose_head`, `multiview`, `depth`, `classification` or `segmentation`.
        name: In the report.
        about: What it was judged on.
    """

    kind: str
    name: str
    about: str


@dataclass(frozen=True)
class BenchmarkCard:
    """What was judged on.

    Attributes:
        name: In the report.
        basis: Everything that decides the numbers beside the encoder, by the name of its setting, and `content`, the
            SHA-256 of images, pairs and splits. Numbers of two parts are comparable when it is the same.
        tasks: What was judged.
    """

    name: str
    basis: Basis
    tasks: Sequence[TaskCard]

    @classmethod
    def of(cls, tasks: Sequence[Task], cfg: DictConfig) -> "BenchmarkCard":
        """The card of the tasks of one benchmark."""
        name, settings = tasks[0].benchmark, OmegaConf.to_container(cfg.evaluate, resolve=True)
        assert isinstance(settings, dict)
        own = {key: value for key, value in settings["benchmarks"][name].items() if key != "root"}
        trained = [task.kind for task in tasks if task.kind in TRAINED]
        evaluate = {key: settings[key] for key in (*PROTOCOL, *trained)} | {"benchmarks": {name: own}}
        content = sha256_of([task.content for task in tasks])
        basis = {"content": content, "seed": cfg.seed} | dict(_flat(evaluate, "evaluate."))
        return cls(name, basis, [TaskCard(task.kind, task.name, task.about) for task in tasks])


@dataclass(frozen=True)
class Part:
    """What one encoder gave on one benchmark.

    Attributes:
        encoder: Which encoder.
        benchmark: Which benchmark.
        notes: On leaks, a line each.
        seconds: What each task took, by its name; features included unless they were at hand.
        scores: By `TASK.NUMBER`.
        pictures: What the pictures of each kind of task need, of the first seed.
    """

    encoder: EncoderCard
    benchmark: BenchmarkCard
    notes: Sequence[str]
    seconds: Mapping[str, float]
    scores: Mapping[str, Scores]
    pictures: Mapping[str, Arrays]

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Each number with the ends of its interval; what has no finite value is left out."""
        numbers: dict[str, float] = {}
        for key, scores in self.scores.items():
            if math.isfinite(scores.value):
                ends = zip(INTERVAL, scores.interval, strict=True)
                numbers |= {key: scores.value, **{key + end: value for end, value in ends}}
        return numbers

    @property
    def key(self) -> str:
        """`ENCODER/BENCHMARK`: its files in an evaluation folder, without their endings."""
        return f"{self.encoder.name}/{self.benchmark.name}"


def write_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Keep parts in an evaluation folder.

    Args:
        folder: The folder.
        parts: In their order; the first encoder is the candidate.
    """
    for part in parts:
        card = {"format": FORMAT, "encoder": asdict(part.encoder), "benchmark": asdict(part.benchmark)}
        card |= {"notes": part.notes, "seconds": part.seconds, "numbers": part.numbers}
        write_json(folder / f"{part.key}.json", card)
        np.savez_compressed(folder / f"{part.key}.npz", allow_pickle=False, **dict(_arrays(part)))
    write_json(folder / LIST, [part.key for part in parts])


def _arrays(part: Part) -> Iterator[tuple[str, np.ndarray]]:
    for number, scores in part.scores.items():
        yield f"values/{number}", scores.values
        # Which units are of one scene, and the order of scenes, is all that resampling asks.
        yield f"groups/{number}", np.unique(scores.groups, return_inverse=True)[1].astype(np.int32)
    for kind, arrays in part.pictures.items():
        yield from ((f"pictures/{kind}/{name}", array) for name, array in arrays.items())


def read_parts(folder: Path) -> list[Part]:
    """Read an evaluation folder.

    Args:
        folder: What `mum evaluate` wrote.

    Returns:
        Its parts in their order.

    Raises:
        UserError: It is no evaluation folder, is damaged, or was written by another version.
    """
    if not (folder / LIST).is_file():
        raise UserError(f"paths.evaluations: {folder} has no {LIST}; expected folders that `mum evaluate` wrote")
    return [_read(folder / f"{key}.json") for key in json.loads((folder / LIST).read_text())]


def _read(path: Path) -> Part:
    try:
        card = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, zipfile.error) as error:
        raise UserError(f"{path}: it or the .npz beside it is missing or damaged ({error}); evaluate again") from error
    if card["format"] != FORMAT:
        raise UserError(f"{path}: of format {card['format']}, this version reads {FORMAT}; evaluate again")
    place = card["encoder"].pop("place")
    tasks = [TaskCard(**task) for task in card["benchmark"].pop("tasks")]
    scores = {
        number: Scores(values, arrays[f"groups/{number}"], statistic_of(number))
        for number, values in _below(arrays, "values/").items()
    }
    return Part(
        EncoderCard(**card["encoder"], place=place and Place(**place)),
        BenchmarkCard(**card["benchmark"], tasks=tasks),
        card["notes"],
        card["seconds"],
        scores,
        {task.kind: _below(arrays, f"pictures/{task.kind}/") for task in tasks},
    )


def _below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def merge_parts(folders: Sequence[Path]) -> list[Part]:
    """Put evaluations side by side.

    Args:
        folders: What `mum evaluate` wrote; the first encoder of the first is the candidate. What two of them judged
            alike is taken from the first.

    Returns:
        Their parts.

    Raises:
        UserError: A folder cannot be read, two encoders have one name, or two folders were judged on other data or
            settings; the difference is named.
    """
    parts: dict[str, Part] = {}
    origin: dict[str, Path] = {}
    for folder in folders:
        for part in read_parts(folder):
            for key, other in parts.items():
                _refuse_unlike(part, folder, other, origin[key])
            if part.key not in parts:
                parts[part.key], origin[part.key] = part, folder
    return list(parts.values())


def _refuse_unlike(part: Part, folder: Path, other: Part, other_folder: Path) -> None:
    ours, theirs = part.encoder, other.encoder
    if ours.name == theirs.name and (ours.identity, ours.layer) != (theirs.identity, theirs.layer):
        raise UserError(
            f"paths.evaluations: '{ours.name}' is one encoder in {other_folder} ({theirs.description}) and another in "
            f"{folder} ({ours.description}); judge one of them under a name of its own, encoder=[{{NAME: ...}}]"
        )
    found = differences(part.benchmark, other.benchmark)
    if found:
        raise UserError(
            f"paths.evaluations: {folder} and {other_folder} cannot be put side by side, "
            f"{part.benchmark.name} differs: {found}. Evaluate one of them again, as the other was"
        )


def differences(ours: BenchmarkCard, theirs: BenchmarkCard) -> str:
    """What makes two judgements incomparable.

    Args:
        ours: What one was judged on.
        theirs: What the other was judged on; of another benchmark, the settings that both share count.

    Returns:
        Each setting that differs with both values, ours first; empty where nothing does.
    """
    a, b = ours.basis, theirs.basis
    keys = a.keys() | b.keys()
    if ours.name != theirs.name:  # only one of them may be judged by what is trained with settings of its own
        keys = {key for key in a.keys() & b.keys() if key != "content" and not key.startswith("evaluate.benchmarks.")}
    differing = [key for key in sorted(keys) if a.get(key) != b.get(key)]
    return ", ".join(f"{key} {_brief(a.get(key))} against {_brief(b.get(key))}" for key in differing)


def _brief(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
