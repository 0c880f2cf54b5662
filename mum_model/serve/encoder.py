"""The exported encoder on ONNX Runtime."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mum_model.errors import UserError
from mum_model.serve.contract import DATATYPE, Contract

DESCRIPTION_FILE = "export.json"


class OnnxEncoder:
    """Features of images, by the ONNX file that `mum export` wrote.

    Attributes:
        contract: What it takes and gives.
    """

    def __init__(self, folder: Path, threads: int | None = None):
        """Open the encoder.

        Args:
            folder: The folder that `mum export` wrote.
            threads: Threads of one operator; ONNX Runtime takes the machine's cores when None.

        Raises:
            UserError: The folder is missing, or a file in it is not the one that its `export.json` describes.
        """
        description = _description(folder)
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self.contract = Contract.from_json(description["contract"])
        model = folder / description["files"][0]["name"]
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Compute features.

        Args:
            images: float32 `[N, 3, H, W]`, RGB, normalised by the contract's mean and deviation; H and W are multiples
                of the patch size P.
            outputs: Names of the wanted outputs; all when None.

        Returns:
            By name: `cls` `[N, D]` and `patch_tokens` `[N, H/P * W/P, D]`, float32, final-normed.

        Raises:
            RequestError: The shape is another.
        """
        self.contract.require_tensor(DATATYPE, images.shape)
        names = list(outputs or [output.name for output in self.contract.outputs])
        return dict(zip(names, self._session.run(names, {self.contract.images.name: images}), strict=True))


def _description(folder: Path) -> Mapping[str, Any]:
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no exported encoder there (it has no {DESCRIPTION_FILE}); `mum export` writes one")
    description = json.loads(path.read_text())
    for expected in description["files"]:
        _require_same(folder / expected["name"], expected["sha256"])
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
