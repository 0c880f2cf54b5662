"""The report over all encoders: one HTML page that opens without a network, and the same tables in Markdown."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2

from mum_model.evaluate.classification import ClassificationTask
from mum_model.evaluate.columns import INTERVAL, cell, column_of, numbers_of
from mum_model.evaluate.depth import DepthTask
from mum_model.evaluate.figures import Interval, draw_intervals, draw_series
from mum_model.evaluate.multiview import MultiViewTask
from mum_model.evaluate.pairs import PairTask
from mum_model.evaluate.paper import PAPER
from mum_model.evaluate.parts import EncoderCard, Part
from mum_model.evaluate.pose_head import PoseHeadTask
from mum_model.evaluate.scores import RESAMPLES, Scores
from mum_model.evaluate.segmentation import SegmentationTask
from mum_model.evaluate.task import Arrays, Picture, Task
from mum_model.files import write_text

TASKS: dict[str, type[Task]] = {
    task.kind: task for task in (PairTask, PoseHeadTask, MultiViewTask, DepthTask, ClassificationTask, SegmentationTask)
}
"""Kind of task -> what draws its pictures."""


@dataclass(frozen=True)
class Judged:
    """What was found of one encoder.

    Attributes:
        card: The encoder.
        parts: What it gave on each benchmark.
    """

    card: EncoderCard
    parts: Sequence[Part]

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """By `BENCHMARK.TASK.NUMBER`."""
        return {f"{part.benchmark.name}.{key}": scores for part in self.parts for key, scores in part.scores.items()}

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Each number with the ends of its interval, by `BENCHMARK.TASK.NUMBER`."""
        return {f"{part.benchmark.name}.{key}": value for part in self.parts for key, value in part.numbers.items()}

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What each task took, by its name."""
        return {task: seconds for part in self.parts for task, seconds in part.seconds.items()}


def by_encoder(parts: Sequence[Part]) -> dict[str, Judged]:
    """Parts by the name of their encoder, in their order."""
    names = dict.fromkeys(part.encoder.name for part in parts)
    own = {name: [part for part in parts if part.encoder.name == name] for name in names}
    return {name: Judged(listed[0].encoder, listed) for name, listed in own.items()}


@dataclass(frozen=True)
class Row:
    """One number of all encoders.

    Attributes:
        key: `BENCHMARK.TASK.NUMBER`.
        heading: Its name, with an arrow to the better side.
        cells: By encoder: the text, and `best` (to the digits that are shown), `tied` (the paired interval of the
            difference to the best holds zero) or nothing; nothing where all have the same value.
    """

    key: str
    heading: str
    cells: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """What the report says of a benchmark.

    Attributes:
        benchmark: Its name.
        rows: Its numbers; none where nothing could be judged.
        curves: The same as pictures.
    """

    benchmark: str
    rows: Sequence[Row]
    curves: Sequence[Path]


@dataclass(frozen=True)
class Standing:
    """In how many numbers of a report an encoder leads.

    Attributes:
        best: It has the best value, to the digits that are shown.
        tied: It cannot be told from the best.
        judged: It has a value.
    """

    best: int
    tied: int
    judged: int


def write_report(folder: Path, parts: Sequence[Part], reasons: Sequence[str]) -> None:
    """Draw the figures and write `report.html` and `report.md`.

    Args:
        folder: The folder of the report.
        parts: Of all encoders and benchmarks, the first encoder first.
        reasons: Of the gate, a line each.
    """
    judged = by_encoder(parts)
    benchmarks = {part.benchmark.name: part.benchmark for part in parts}
    sections = [_section(folder, name, judged) for name in benchmarks]
    basis = {key: value for benchmark in benchmarks.values() for key, value in benchmark.basis.items()}
    content = {
        "encoders": judged,
        "standings": {name: _standing(name, sections) for name in judged},
        "sections": sections,
        "pictures": _draw_pictures(folder / "figures", parts),
        "tasks": [task for benchmark in benchmarks.values() for task in benchmark.tasks],
        "notes": _notes(parts),
        "reasons": reasons,
        "paper": PAPER,
        "seeds": basis["evaluate.seeds"],
        "seed": basis["seed"],
        "size": basis["evaluate.size"],
        "resamples": RESAMPLES,
        "settings": {key: value for key, value in basis.items() if key.startswith("evaluate.")},
    }
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mum_model.evaluate", "."), trim_blocks=True)
    environment.filters["embedded"] = _embedded
    for name, escapes in (("report.html", True), ("report.md", False)):
        environment.autoescape = escapes
        write_text(folder / name, environment.get_template(f"{name}.jinja").render(**content))


def _draw_pictures(folder: Path, parts: Sequence[Part]) -> list[Picture]:
    """Every task's pictures, of all encoders that were judged on it."""
    kept: dict[tuple[str, str], dict[str, Arrays]] = {}
    for part in parts:
        for kind, arrays in part.pictures.items():
            kept.setdefault((part.benchmark.name, kind), {})[part.encoder.name] = arrays
    return [picture for (benchmark, kind), own in kept.items() for picture in TASKS[kind].draw(folder, benchmark, own)]


def _notes(parts: Sequence[Part]) -> list[str]:
    """What is to be known of leaks; of which parts, where it is not the same for all."""
    keys = {note: [part.key for part in parts if note in part.notes] for part in parts for note in part.notes}
    return [note if len(own) == len(parts) else f"{', '.join(own)}: {note}" for note, own in keys.items()]


def table_of(benchmark: str, judged: Mapping[str, Judged]) -> list[Row]:
    """All numbers of a benchmark, with the best of each marked.

    Args:
        benchmark: Its name.
        judged: By name.

    Returns:
        A row a number.
    """
    keys = dict.fromkeys(key for one in judged.values() for key in numbers_of(one.metrics))
    return [_row(key, judged) for key in keys if key.partition(".")[0] == benchmark]


def _section(folder: Path, benchmark: str, judged: Mapping[str, Judged]) -> Section:
    rows = table_of(benchmark, judged)
    return Section(benchmark, rows, list(_draw_numbers(folder, benchmark, rows, judged)) if rows else [])


def _standing(name: str, sections: Sequence[Section]) -> Standing:
    cells = [row.cells[name] for section in sections for row in section.rows]
    marks = [mark for _, mark in cells]
    return Standing(marks.count("best"), marks.count("tied"), sum(bool(text) for text, _ in cells))


def _row(key: str, judged: Mapping[str, Judged]) -> Row:
    column = column_of(key)
    having = {name: one for name, one in judged.items() if key in one.metrics}
    shown = {name: round(one.metrics[key], column.digits) for name, one in having.items()}
    lead = (min if column.lower_is_better else max)(having, key=lambda name: having[name].metrics[key])
    cells = dict.fromkeys(judged, ("", ""))
    for name, one in having.items():
        best, tied = shown[name] == shown[lead], not one.scores[key].differs_from(having[lead].scores[key])
        mark = "" if len(set(shown.values())) == 1 else "best" if best else "tied" if tied else ""
        cells[name] = (cell(one.metrics, key), mark)
    return Row(key, f"{column.heading} {'↓' if column.lower_is_better else '↑'}", cells)


def _draw_numbers(folder: Path, benchmark: str, rows: Sequence[Row], judged: Mapping[str, Judged]) -> Iterator[Path]:
    """Every number with its interval, and over layers or steps where encoders form a series."""
    numbers = [(row.heading, _intervals(row.key, judged)) for row in rows]
    yield draw_intervals(folder / "figures" / f"{benchmark}.png", benchmark, numbers)
    for series in ("layer", "step"):
        places = _places(judged, series)
        if len(places) > 1:
            yield draw_series(folder / "figures" / f"{benchmark}-{series}.png", benchmark, series, numbers, places)


def _places(judged: Mapping[str, Judged], series: str) -> dict[str, int]:
    """Number of each encoder that stands in a series."""
    places = {name: one.card.place for name, one in judged.items()}
    return {name: place.number for name, place in places.items() if place is not None and place.series == series}


def _intervals(key: str, judged: Mapping[str, Judged]) -> dict[str, Interval]:
    metrics = {name: one.metrics for name, one in judged.items() if key in one.metrics}
    low, high = INTERVAL
    return {name: (numbers[key], numbers[key + low], numbers[key + high]) for name, numbers in metrics.items()}


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
