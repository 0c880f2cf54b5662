"""One self-contained HTML page over all encoders: it opens without a network."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mum_model.evaluate.columns import COLUMNS, cell
from mum_model.evaluate.figures import draw_pair
from mum_model.files import write_text

if TYPE_CHECKING:
    from mum_model.evaluate import Benchmark

DESCRIPTIONS = {
    "mum": "the encoder of this run",
    "random": "the same architecture with random weights",
    "pixels": "raw patches, no encoder",
}


@dataclass(frozen=True)
class Judged:
    """What was found of one encoder.

    Attributes:
        tasks: Numbers of each task; each with its deviation over the seeds under `<number>_std`.
        positions: Predicted matches of the test pairs by the first seed, `[P, L, 2]`.
        features: Patch tokens of the first seed, `[F, L, D]`.
    """

    tasks: dict[str, dict[str, float]]
    positions: Tensor
    features: Tensor

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers under `<task>_<number>`."""
        return {f"{task}_{key}": value for task, values in self.tasks.items() for key, value in values.items()}


def write_report(folder: Path, judged: dict[str, Judged], benchmark: "Benchmark", cfg: DictConfig) -> None:
    """Draw the figures and write `report.html`.

    Args:
        folder: The evaluation folder.
        judged: By name, the trained encoder first.
        benchmark: What they were judged on.
        cfg: The composed configuration.
    """
    figures = [_draw(folder, number, judged, benchmark) for number in _spread(benchmark, cfg.evaluate.figures)]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mum_model.evaluate", "."), autoescape=True)
    page = environment.get_template("report.html").render(
        table=_table({name: one.numbers for name, one in judged.items()}),
        descriptions=DESCRIPTIONS,
        figures=[base64.b64encode(path.read_bytes()).decode() for path in figures],
        card=benchmark.views.index.card,
        pairs={split: len(pairs) for split, pairs in benchmark.pairs.items()},
        size=benchmark.views.size,
        seeds=cfg.evaluate.seeds,
        settings=OmegaConf.to_yaml(cfg.evaluate),
    )
    write_text(folder / "report.html", page)


def _spread(benchmark: "Benchmark", count: int) -> list[int]:
    """Test pairs to draw: from the easiest to the hardest for the co-visible share, evenly."""
    order = torch.argsort(benchmark.pairs["test"].covisible.float().mean(dim=1), descending=True)
    return order[torch.linspace(0, len(order) - 1, min(count, len(order))).long()].tolist()


def _draw(folder: Path, number: int, judged: dict[str, Judged], benchmark: "Benchmark") -> Path:
    pairs = benchmark.pairs["test"]
    a, b = (benchmark.images[rows[number]].permute(1, 2, 0).numpy() for rows in (pairs.a, pairs.b))
    path = folder / "figures" / f"pair-{number:04d}.png"
    draw_pair(path, (a, b), pairs, number, {name: (one.positions, one.features) for name, one in judged.items()})
    return path


def _table(metrics: dict[str, dict[str, float]]) -> dict[str, list]:
    """Headings, and for each encoder its cells with the best of each column marked."""
    columns = [key for key in COLUMNS if key in metrics["mum"]]
    best = {key: (min if key.endswith("epe") else max)(metrics, key=lambda name: metrics[name][key]) for key in columns}
    headings = [(COLUMNS[key], "lower" if key.endswith("epe") else "higher") for key in columns]
    rows = [(name, [(cell(metrics[name], key), best[key] == name) for key in columns]) for name in metrics]
    return {"headings": headings, "rows": rows}
