"""`mum summary`: what a chain of stages found, and where everything lies."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mum_model.evaluate.columns import COLUMNS, cell


def summary(cfg: DictConfig) -> None:
    """Print the metrics as a table, and the path of each picture, model and report.

    Args:
        cfg: The composed configuration; reads `paths`.
    """
    run, evaluation, exported = (Path(cfg.paths[name]) for name in ("run", "evaluation", "export"))
    metrics = evaluation / "metrics.json"
    if metrics.is_file():
        print("\n" + metrics_table(json.loads(metrics.read_text())))
    places = {
        "report": evaluation / "report.html",
        "matches, errors, features": evaluation / "figures",
        "reconstructions": run / "pictures",
        "training curve": run / "training.csv",
        "encoder for timm": run / "encoder",
        "encoder and decoder": run / "model",
        "encoder as ONNX": exported / "encoder.onnx",
        "dataset and its card": Path(cfg.paths.dataset) / "dataset.json",
    }
    print()
    for what, path in places.items():
        print(f"{what:28}{path if path.exists() else 'not made yet'}")


def metrics_table(metrics: dict[str, dict[str, Any]]) -> str:
    """The numbers of all encoders as lines of text.

    Args:
        metrics: What `evaluation/metrics.json` holds.

    Returns:
        A heading, a row an encoder, and a line on how the trained one stands.
    """
    columns = {key: heading for key, heading in COLUMNS.items() if key in metrics["mum"]}
    lines = ["".join(f"{text:>16}" for text in ("", *columns.values()))]
    for name in ("mum", "random", "pixels"):
        cells = [cell(metrics[name], key) for key in columns]
        lines.append("".join(f"{text:>16}" for text in (name, *cells)))
    if "ratio" in metrics:
        ratio = metrics["ratio"]
        lines.append(
            f"\nprobe EPE of mum: {ratio['mum_over_random']:.3f} x random weights, "
            f"{ratio['mum_over_pixels']:.3f} x raw pixels (below 1 is better than they are)"
        )
    return "\n".join(lines)
