"""Which version of a model is served: a pointer on the workspace, moved when a promotion is whole."""

import shutil
from pathlib import Path

from components.workspace import read_json
from mum_model.files import write_json

CANDIDATE = "candidate.json"  # what the next gate compares with, as `mum report` writes it


def record_served(version: Path, evaluation: Path) -> None:
    """Say that a version is served from now on.

    Args:
        version: Folder of the version, `<workspace>/models/<experiment>/<version>`.
        evaluation: The report by which it was promoted.
    """
    shutil.copyfile(evaluation / CANDIDATE, version / CANDIDATE)
    write_json(version.parent / "served.json", {"version": version.name})


def served_record(workspace: str, experiment: str) -> Path | None:
    """How the version that is served was judged.

    Args:
        workspace: Where the workspace volume is mounted.
        experiment: Name of the model.

    Returns:
        Its `candidate.json`; None where nothing is served yet.
    """
    models = Path(workspace, "models", experiment)
    served = models / "served.json"
    return models / read_json(served)["version"] / CANDIDATE if served.exists() else None
