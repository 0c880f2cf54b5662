"""Which version of an experiment is served: a pointer on the workspace, moved when a promotion is whole."""

import json
from pathlib import Path

from mum_model.files import write_json


def _pointer(workspace: str, experiment: str) -> Path:
    return Path(workspace, "models", experiment, "served.json")


def record_served(workspace: str, experiment: str, version: str, metrics: Path) -> None:
    """Say that a version is served from now on.

    Args:
        workspace: Where the workspace volume is mounted.
        experiment: Whose version.
        version: Its name.
        metrics: Its `metrics.json`, which the next gate compares with.
    """
    write_json(_pointer(workspace, experiment), {"version": version, "metrics": str(metrics)})


def served_metrics(workspace: str, experiment: str) -> str | None:
    """The numbers of the version that is served.

    Args:
        workspace: Where the workspace volume is mounted.
        experiment: Whose version.

    Returns:
        Its `metrics.json`; None where nothing is served yet.
    """
    pointer = _pointer(workspace, experiment)
    return json.loads(pointer.read_text())["metrics"] if pointer.exists() else None
