"""The ONNX file of `mum export`, which carries its own contract."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mum_model.errors import UserError
from mum_model.evaluate.encoders.base import Tokens
from mum_model.inference import graph_input, open_session


class OnnxEncoder:
    """An exported encoder on ONNX Runtime: what will be served is what is judged."""

    parameters = 0
    layers = 1

    def __init__(self, name: str, path: Path):
        """Open the file.

        Args:
            name: In the report.
            path: What `mum export` wrote.

        Raises:
            UserError: The file is missing, damaged, or carries no contract.
        """
        self.name = name
        self.identity = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        self._session = open_session(path, threads=None)
        text = self._session.get_modelmeta().custom_metadata_map.get("contract")
        if text is None:
            raise UserError(
                f"{path}: carries no contract of patch size, mean and deviation; use what `mum export` wrote"
            )
        contract: dict[str, Any] = json.loads(text)
        self.patch_size = contract["patch_size"]
        self._input = contract["input"]

    def tokens(self, images: Tensor, layer: int) -> Tokens:
        """Patch tokens and class token of the last layer, the only one that the file gives."""
        given = graph_input(images.cpu().permute(0, 2, 3, 1).numpy(), self._input)
        cls, patches = self._session.run(["cls", "patch_tokens"], {self._input["name"]: given})
        return Tokens(torch.from_numpy(patches).to(images.device), torch.from_numpy(cls).to(images.device))
