"""Where an exported file comes from, so that one found years later can be told apart from any other."""

import json
import os
import subprocess
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from mum_model.data.remote import is_url
from mum_model.data.streaming import CARD, remote_card
from mum_model.files import file_sha256


def provenance(run: Path, dataset: Path | str) -> dict[str, Any]:
    """What is known of the origin of an encoder.

    Args:
        run: The run folder that `mum pretrain` wrote.
        dataset: The dataset folder, which need not be there, or its URL.

    Returns:
        `source`: SHA-256 of the encoder's weights; `dataset`: its content's SHA-256, null where there is none;
        `git_revision` of the code: the one that the image was built from (`MUM_REVISION`), else that of the working
        directory, null where it is none; `licence` of the encoder's code and weights.
    """
    card = _card(dataset)
    return {
        "source": described(run / "encoder" / "model.safetensors"),
        "dataset": card and card["content_sha256"],
        "git_revision": os.environ.get("MUM_REVISION") or _git_revision(),
        "licence": metadata("mum-pipeline")["License-Expression"],
    }


def _card(dataset: Path | str) -> dict[str, Any] | None:
    if is_url(dataset):
        return remote_card(str(dataset))
    path = Path(dataset) / CARD
    return json.loads(path.read_text()) if path.is_file() else None


def described(path: Path) -> dict[str, Any]:
    """Name, size in bytes and SHA-256 of a file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _git_revision() -> str | None:
    """The commit, with `-dirty` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
