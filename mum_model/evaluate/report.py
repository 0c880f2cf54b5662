"""The report over all encoders: one HTML page that opens without a network, and the same tables in Markdown."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2
from omegaconf import DictConfig, OmegaConf

from mum_model.evaluate.columns import INTERVAL, cell, column_of, numbers_of
from mum_model.evaluate.encoders import Contestant
from mum_model.evaluate.figures import Interval, draw_intervals, draw_series
from mum_model.evaluate.paper import PAPER
from mum_model.evaluate.scores import RESAMPLES, Scores
from mum_model.evaluate.task import Outcome, Picture, Task
from mum_model.files import write_text


@dataclass(frozen=True)
class Judged:
    """What was found of one encoder.

    Attributes:
        contestant: The encoder.
        scores: By `BENCHMARK.TASK.NUMBER`.
        outcomes: Of the first seed, by name of task.
        seconds: What each task took, features included unless they were at hand.
    """

    contestant: Contestant
    scores: Mapping[str, Scores]
    outcomes: Mapping[str, Outcome]
    seconds: Mapping[str, float]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Each number with the ends of its interval; what has no finite value is left out."""
        numbers: dict[str, float] = {}
        for key, scores in self.scores.items():
            if math.isfinite(scores.value):
                ends = zip(INTERVAL, scores.interval, strict=True)
                numbers |= {key: scores.value, **{key + end: value for end, value in ends}}
        return numbers


@dataclass(frozen=True)
class Row:
    """One number of all encoders.

    Attributes:
        key: `BENCHMARK.TASK.NUMBER`.
        heading: Its name, with an arrow to the better side.
        cells: By encoder: the text, and `best`, `tied` (the paired interval of the difference to the best holds zero)
            or nothing.
    """

    key: str
    heading: str
    cells: Mapping[str, tuple[str, str]]


def write_report(
    folder: Path, judged: Mapping[str, Judged], tasks: Sequence[Task], notes: Sequence[str], cfg: DictConfig
) -> None:
    """Draw the figures and write `report.html` and `report.md`.

    Args:
        folder: The evaluation folder.
        judged: By name, the first encoder first.
        tasks: What they were judged on.
        notes: On leaks and on the gate, a line each.
        cfg: The composed configuration.
    """
    pictures: list[Picture] = []
    for task in tasks:
        outcomes = {name: one.outcomes[task.name] for name, one in judged.items()}
        pictures += task.draw(folder / "figures", outcomes, cfg.evaluate.figures)
    tables = {task.benchmark: table_of(task.benchmark, judged) for task in tasks}
    curves = [path for name, rows in tables.items() if rows for path in _draw_numbers(folder, name, rows, judged)]
    content = {
        "encoders": judged,
        "tables": tables,
        "curves": [(_embedded(path), path.stem) for path in curves],
        "pictures": [(_embedded(picture.path), picture) for picture in pictures],
        "tasks": tasks,
        "notes": notes,
        "paper": PAPER,
        "seeds": cfg.evaluate.seeds,
        "seed": cfg.seed,
        "size": cfg.evaluate.size,
        "resamples": RESAMPLES,
        "settings": OmegaConf.to_yaml(cfg.evaluate, resolve=True),
    }
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mum_model.evaluate", "."), trim_blocks=True)
    for name, escapes in (("report.html", True), ("report.md", False)):
        environment.autoescape = escapes
        write_text(folder / name, environment.get_template(f"{name}.jinja").render(**content))


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


def _row(key: str, judged: Mapping[str, Judged]) -> Row:
    column = column_of(key)
    having = {name: one for name, one in judged.items() if key in one.metrics}
    best = (min if column.lower_is_better else max)(having, key=lambda name: having[name].metrics[key])
    cells = dict.fromkeys(judged, ("", ""))
    for name, one in having.items():
        tied = not one.scores[key].differs_from(having[best].scores[key])
        cells[name] = (cell(one.metrics, key), "best" if name == best else "tied" if tied else "")
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
    places = {name: one.contestant.place for name, one in judged.items()}
    return {name: place.number for name, place in places.items() if place is not None and place.series == series}


def _intervals(key: str, judged: Mapping[str, Judged]) -> dict[str, Interval]:
    metrics = {name: one.metrics for name, one in judged.items() if key in one.metrics}
    low, high = INTERVAL
    return {name: (numbers[key], numbers[key + low], numbers[key + high]) for name, numbers in metrics.items()}


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
