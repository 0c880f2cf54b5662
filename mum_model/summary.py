"""`mum summary`: what a chain of stages found, and where everything lies."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mum_model.evaluate.columns import cell, column_of, numbers_of


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
        A heading, a row a number, and a line on how the first encoder stands.
    """
    encoders = {name: numbers for name, numbers in metrics.items() if name != "ratio"}
    keys = dict.fromkeys(key for numbers in encoders.values() for key in numbers_of(numbers))
    rows = [
        (
            f"{key.partition('.')[0]}: {column_of(key).heading}",
            [cell(n, key) if key in n else "" for n in encoders.values()],
        )
        for key in keys
    ]
    width = max((len(text) for text, _ in rows), default=0)
    lines = ["".join([" " * width, *(f"{name:>23}" for name in encoders)])] if rows else []
    lines += ["".join([f"{text:{width}}", *(f"{value:>23}" for value in cells)]) for text, cells in rows]
    for name, value in metrics.get("ratio", {}).items():
        benchmark, _, versus = name.partition(".")
        lines.append(
            f"\n{benchmark}: probe EPE, {versus.replace('_over_', ' over ')}: {value:.3f} (below 1 the first is better)"
        )
    return "\n".join(lines)
