"""`mum summary`: what a chain of stages found, and where everything lies."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

COLUMNS = {
    "matching_probe_epe": "probe EPE, px",
    "matching_probe_recall": "probe R@32",
    "matching_knn_epe": "kNN EPE, px",
    "matching_knn_recall": "kNN R@32",
    "pose_auc5": "pose AUC@5",
    "pose_auc10": "pose AUC@10",
    "pose_auc20": "pose AUC@20",
}
"""Numbers of an encoder in `evaluation/metrics.json` -> heading; errors are in pixels of an image of side 448."""


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


def cell(numbers: dict[str, float], key: str) -> str:
    """A number with its deviation over the seeds: errors to a tenth of a pixel, shares to a thousandth.

    Args:
        numbers: Of one encoder.
        key: One of COLUMNS.

    Returns:
        For instance `27.9 ± 0.4`.
    """
    digits = 1 if key.endswith("epe") else 3
    return f"{numbers[key]:.{digits}f} ± {numbers[key + '_std']:.{digits}f}"


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
