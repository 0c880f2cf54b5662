"""One self-contained HTML page over all encoders: it opens without a network."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mum_model.evaluate.figures import draw_pair
from mum_model.files import write_text

if TYPE_CHECKING:
    from mum_model.evaluate import Benchmark

COLUMNS = {
    ("matching", "probe_epe"): ("probe EPE, px", "lower"),
    ("matching", "probe_recall"): ("probe R@32", "higher"),
    ("matching", "knn_epe"): ("kNN EPE, px", "lower"),
    ("matching", "knn_recall"): ("kNN R@32", "higher"),
    ("pose", "auc5"): ("pose AUC@5", "higher"),
    ("pose", "auc10"): ("pose AUC@10", "higher"),
    ("pose", "auc20"): ("pose AUC@20", "higher"),
}
"""What the table shows: task and number -> heading, and which way is better."""

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
        table=_table(judged),
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


def _table(judged: dict[str, Judged]) -> dict[str, list]:
    """Headings, and for each encoder its cells with the best of each column marked."""
    columns = [key for key in COLUMNS if key[1] in judged["mum"].tasks.get(key[0], {})]
    best = {}
    for task, number in columns:
        values = {name: one.tasks[task][number] for name, one in judged.items()}
        best[task, number] = (min if COLUMNS[task, number][1] == "lower" else max)(values, key=values.__getitem__)
    rows = [
        (name, [(*_cell(one, *column), best[column] == name) for column in columns]) for name, one in judged.items()
    ]
    return {"headings": [COLUMNS[column] for column in columns], "rows": rows}


def _cell(one: Judged, task: str, number: str) -> tuple[str, str]:
    digits = 1 if number.endswith("epe") else 3
    value, deviation = one.tasks[task][number], one.tasks[task][f"{number}_std"]
    return f"{value:.{digits}f}", f"{deviation:.{digits}f}"
