"""Where the steps of a pipeline keep what is large: folders on the workspace volume, described by small artifacts."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from kfp import dsl

from mum_model.errors import UserError


def own_folder(artifact: dsl.Artifact, parent: str | Path) -> Path:
    """The folder that belongs to one output of one task and to nothing else.

    It follows from the artifact's URI, which KFP makes anew for each task of each run, keeps when the task is retried,
    and leaves out of the cache's key: two runs never meet in a folder, a retried step finds what it had written.

    Args:
        artifact: The output.
        parent: Folder on the workspace volume.

    Returns:
        The folder; not made yet.
    """
    return Path(parent) / hashlib.sha256(artifact.uri.encode()).hexdigest()[:12]


def describe(artifact: dsl.Artifact, folder: Path, content: str, **metadata: Any) -> None:
    """Make an artifact of a folder on the workspace volume, without copying it.

    Args:
        artifact: The output; its content becomes a copy of one small file.
        folder: Where the data lies.
        content: Name of that file in the folder: the card, the metrics, the contract.
        **metadata: What the KFP page shows beside `folder`, and what lineage keeps.
    """
    shutil.copyfile(folder / content, artifact.path)
    artifact.metadata |= {"folder": str(folder), **metadata}


def read_json(path: Path) -> dict[str, Any]:
    """The record that a stage left.

    Args:
        path: A JSON file.

    Returns:
        Its content.
    """
    return json.loads(path.read_text())


def folder_of(artifact: dsl.Artifact) -> Path:
    """Where the data lies that an artifact describes.

    Args:
        artifact: An input that `describe` made in an earlier step.

    Returns:
        The folder on the workspace volume.

    Raises:
        UserError: It is not there (any more).
    """
    folder = Path(artifact.metadata["folder"])
    if not folder.is_dir():
        raise UserError(
            f"{folder}: gone, though a step of this or of an earlier run wrote it; is the workspace volume the same? "
            "If the folder was deleted, submit the run with --no-cache, which writes it anew"
        )
    return folder
