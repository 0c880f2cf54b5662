"""The whole model as an ONNX graph: views of a scene and what is seen of each go in, the hidden patches come out.

All but the rotation and the attention is the model's own code, traced.
"""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from mum_model.errors import UserError
from mum_model.export.contract import reconstruction_contract
from mum_model.export.onnx_graph import (
    GraphForm,
    GraphNames,
    Normalisation,
    open_dimensions,
    open_up,
    require_open_graph,
    round_up,
    save_graph,
)
from mum_model.export.verification import Features, measured_agreement, require_parity
from mum_model.inference import open_session
from mum_model.model import load_mum
from mum_model.model.encoder import encode_visible
from mum_model.model.masking import normalise_patches, patchify, uniform_mask, unpatchify
from mum_model.model.mum import MuM
from mum_model.model.pixels import normalise_pixels

FILE_NAME = "reconstruction.onnx"

MASK_RATIO = 0.75
"""Share of the patches that is hidden while the graph is traced and checked; it takes any."""

ABLATIONS = ("reference_view", "encoder_communication", "absolute_positions")
"""What changes how views and positions enter the model, and is not written as a graph."""


def export_reconstruction(
    source: Path,
    path: Path,
    form: GraphForm,
    images: Iterable[np.ndarray],
    limit: float,
    threads: int,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the graph of a whole model and compare it with PyTorch.

    Args:
        source: Folder of the model, as `mum pretrain` writes it.
        path: The file to write.
        form: How.
        images: Views to compare on, RGB uint8 `[S, H, W, 3]` each, of other numbers and sizes than the traced ones.
        limit: Largest difference of any predicted number that is accepted.
        threads: Of ONNX Runtime, for the comparison.
        metadata: What the file says about itself beside its contract.

    Returns:
        What `export.json` says of it: `file`, agreement, `contract`.

    Raises:
        UserError: There is no such model, it is one of the paper's ablations, or graph and model differ.
    """
    model = load_mum(source)
    if ablation := next((name for name in ABLATIONS if getattr(model.config, name)), None):
        raise UserError(
            f"export.reconstruction: {source} was trained with model.{ablation}="
            f"{str(getattr(model.config, ablation)).lower()}, and the graph is that of the model without; leave "
            "export.reconstruction=false"
        )
    contract = reconstruction_contract(model)
    _write(copy.deepcopy(model), path, contract, form, metadata)
    require_open_graph(path, {given["name"]: open_dimensions(given) for given in contract["inputs"]})
    reference, graph, images = _Reference(model), _Graph(path, contract, threads), list(images)
    require_parity(reference, graph, images, limit)
    return {"file": path.name, **measured_agreement(reference, graph, images), "contract": contract}


class _Reconstruction(nn.Module):
    """From the contract's inputs to its outputs."""

    def __init__(self, model: MuM, contract: Mapping[str, Any], form: GraphForm):
        super().__init__()
        encoder, decoder = model.encoder, model.decoder
        open_up(encoder, encoder.blocks, form.operators)
        open_up(decoder, [*decoder.frame_blocks, *decoder.global_blocks], form.operators)
        self.encoder, self.decoder = encoder, decoder
        self._normalisation = Normalisation(contract["inputs"][0])
        self._patch_size = contract["patch_size"]

    def forward(self, pixels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        images = self._normalisation(pixels)
        grid = (images.shape[2] // self._patch_size, images.shape[3] // self._patch_size)
        patches = patchify(images, self._patch_size)
        one_scene: Any = None  # the attention that reads a layout of scenes has been replaced by one over all tokens
        encoded = encode_visible(self.encoder, patches, visible, grid, one_scene)
        prediction = self.decoder.predict(self.decoder(self.decoder.fill_in(encoded, visible, grid), one_scene, grid))
        hidden = torch.ones(patches.shape[:2]).scatter(1, visible, 0.0).unsqueeze(-1)
        _, mean, deviation = normalise_patches(patches)
        whole = patches * (1 - hidden) + (prediction * deviation + mean) * hidden
        return prediction, self._normalisation.undone(unpatchify(whole, self._patch_size, grid))


def _write(model: MuM, path: Path, contract: Mapping[str, Any], form: GraphForm, metadata: Mapping[str, Any]) -> None:
    patch, side = contract["patch_size"], round_up(form.trace_size, contract["patch_size"])
    # No two dimensions alike, see `write_graph`.
    example = torch.zeros(2, side, side + patch, 3, dtype=torch.uint8)
    views, rows, columns = Dim("S"), Dim("rows"), Dim("columns")
    # Only so can torch prove that patches fill the sides; else it would tie the graph to the traced ones.
    shapes = {"pixels": {0: views, 1: patch * rows, 2: patch * columns}, "visible": {0: views, 1: Dim("K")}}
    names = GraphNames(*([one["name"] for one in contract[ends]] for ends in ("inputs", "outputs")))
    module, visible = _Reconstruction(model, contract, form), uniform_mask(_noise(example, patch), MASK_RATIO).visible
    save_graph(module, (example, visible), shapes, path, form.opset, names, {"contract": contract, **metadata})


def _noise(pixels: Tensor, patch_size: int) -> Tensor:
    """Decides the masks of views `[S, H, W, 3]`: `[S, L]`, the same each time."""
    views, height, width, _ = pixels.shape
    patches = (height // patch_size) * (width // patch_size)
    return torch.rand(views, patches, generator=torch.Generator().manual_seed(0))


class _Reference:
    """The model in PyTorch, as it computes in training."""

    def __init__(self, model: MuM):
        self._model = model

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Features:
        """Prediction for views, RGB uint8 `[S, H, W, 3]`."""
        given = torch.from_numpy(pixels)
        images = normalise_pixels(given.permute(0, 3, 1, 2)).to(self._model.decoder.mask_token.dtype)
        noise = _noise(given, self._model.config.patch_size)
        return [self._model(images[None], mask_ratio=MASK_RATIO, noise=noise).prediction.numpy()]

    @property
    def in_double(self) -> "_Reference":
        """The same in float64."""
        return _Reference(copy.deepcopy(self._model).double())


class _Graph:
    """The exported graph, run on the CPU."""

    def __init__(self, path: Path, contract: Mapping[str, Any], threads: int):
        self._session = open_session(path, threads)
        self._patch_size = contract["patch_size"]

    def __call__(self, pixels: np.ndarray) -> Features:
        """Prediction for views, RGB uint8 `[S, H, W, 3]`."""
        visible = uniform_mask(_noise(torch.from_numpy(pixels), self._patch_size), MASK_RATIO).visible
        return self._session.run(["prediction"], {"pixels": pixels, "visible": visible.numpy()})
