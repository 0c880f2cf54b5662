"""The exported encoder on ONNX Runtime."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mum_model.errors import UserError
from mum_model.inference import open_session
from mum_model.serve.contract import DATATYPES, Contract

DESCRIPTION_FILE = "export.json"


class OnnxEncoder:
    """Features of images, by the ONNX file that `mum export` wrote.

    Attributes:
        contract: What it takes and gives.
        digest: SHA-256 of the graph.
        description: All that `export.json` says.
    """

    def __init__(self, folder: Path, variant: str = "fp32", threads: int | None = None):
        """Open the encoder.

        Args:
            folder: The folder that `mum export` wrote.
            variant: Which of its variants.
            threads: Threads of one operator; the cores that this process may use when None.

        Raises:
            UserError: The folder is missing, a file in it is not the one that its `export.json` describes or cannot be
                run, or there is no such variant.
        """
        self.description = description = _description(folder)
        name = _file_of(variant, description, folder)
        self.contract = Contract.from_json(description["contract"])
        self.digest = next(file["sha256"] for file in description["files"] if file["name"] == name)
        self._session = open_session(folder / name, threads)

    def __call__(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Compute features.

        Args:
            images: As the contract says: float32 `[N, 3, H, W]`, RGB, normalised by its mean and deviation, or RGB
                pixels, uint8 `[N, H, W, 3]`; H and W are multiples of the patch size P.
            outputs: Names of the wanted outputs; all when None.

        Returns:
            By name: `cls` `[N, D]`, `patch_tokens` `[N, H/P * W/P, D]` and those of blocks, float32, final-normed.

        Raises:
            RequestError: The shape is another.
        """
        self.contract.require_tensor(DATATYPES[images.dtype.name], images.shape)
        names = list(outputs or [output.name for output in self.contract.outputs])
        return dict(zip(names, self._session.run(names, {self.contract.images.name: images}), strict=True))


def _file_of(variant: str, description: Mapping[str, Any], folder: Path) -> str:
    if variant in description["variants"]:
        return description["variants"][variant]["file"]
    reason = description["refused"].get(variant, "it was not exported")
    raise UserError(f"{folder}: no variant {variant} ({reason}); there is {', '.join(description['variants'])}")


def _description(folder: Path) -> Mapping[str, Any]:
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no exported encoder there (it has no {DESCRIPTION_FILE}); `mum export` writes one")
    try:
        description = json.loads(path.read_text())
        files = {expected["name"]: expected["sha256"] for expected in description["files"]}
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: not what `mum export` writes ({error}); run it again") from error
    for name, sha256 in files.items():
        _require_same(folder / name, sha256)
    return description


def _require_same(path: Path, sha256: str) -> None:
    """Refuse a cut download, or a model beside the description of another."""
    if not path.is_file():
        raise UserError(
            f"{path}: missing, though {DESCRIPTION_FILE} lists it; copy the folder again or run `mum export`"
        )
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise UserError(
            f"{path}: SHA-256 is {actual[:12]}..., {DESCRIPTION_FILE} says {sha256[:12]}...; "
            "copy the folder again or run `mum export`"
        )
