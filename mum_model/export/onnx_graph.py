"""The encoder as an ONNX graph whose batch, height and width stay open."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.model.encoder import Eva

OPEN_DIMENSIONS = {0: "N", 2: "H", 3: "W"}


class _OpenRotation(nn.Module):
    """DINOv3's axial RoPE for a grid whose size is known only when the graph runs.

    timm divides the coordinates by `float(side)`, which `torch.export` freezes into a constant without a word: such a
    graph runs at every size and is right only at the one it was traced with. Dividing by the symbolic side stays open.
    """

    periods: Tensor

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.register_buffer("periods", rope.get_buffer("periods"))

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Sine and cosine of every patch, `[rows * columns, 2 * head_dim]`, as the method of timm's that it replaces.

        Patch centres lie on -1..1 along each axis (DINOv3, https://arxiv.org/abs/2508.10104).
        """
        axes = [2 * ((torch.arange(side, dtype=torch.float32) + 0.5) / side) - 1 for side in shape]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * centres[:, :, None] / self.periods).flatten(1)
        return torch.cat([angles.sin(), angles.sin(), angles.cos(), angles.cos()], dim=-1)


class _Features(nn.Module):
    """The two outputs of the graph, split from the encoder's tokens."""

    def __init__(self, encoder: Eva):
        super().__init__()
        encoder.rope = _OpenRotation(encoder.rope)
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder.forward_features(images)
        return tokens[:, 0], tokens[:, self.encoder.num_prefix_tokens :]


def write_graph(encoder: Eva, path: Path, contract: Mapping[str, Any], *, opset: int, trace_size: int) -> None:
    """Trace the encoder and write it as ONNX, with its contract in the file's `metadata_props`.

    Args:
        encoder: In evaluation mode; its RoPE module is replaced.
        path: The file to write; weights above 1.5 GB go beside it.
        contract: From `input_contract`; gives the names of input and outputs.
        opset: Version of the ONNX operators (https://onnx.ai/onnx/operators).
        trace_size: About the side in pixels of the image that is traced.
    """
    patch = contract["patch_size"]
    side = round_up(trace_size, patch)
    # Batch above one and unequal sides, so that no two dimensions can be taken for the same, or for a constant 1.
    example = torch.zeros(2, 3, side, side + patch)
    program = torch.onnx.export(
        _Features(encoder).eval(),
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=[contract["input"]["name"]],
        output_names=[output["name"] for output in contract["outputs"]],
        dynamic_shapes={"images": OPEN_DIMENSIONS},
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces: they name folders of this machine and change the file's hash
    program.model.metadata_props["contract"] = json.dumps(contract)
    program.save(path)


def require_open_graph(path: Path) -> None:
    """Refuse a graph that takes one size only, or decides by size which nodes run.

    This sees what the file declares; constants that stand for a size show only in the comparison with PyTorch.

    Args:
        path: The ONNX file.

    Raises:
        UserError: The input's batch, height or width is fixed, or there is an `If` node.
    """
    graph = onnx.load(path, load_external_data=False).graph
    dimensions = graph.input[0].type.tensor_type.shape.dim
    fixed = [
        f"{name}={dimensions[axis].dim_value}"
        for axis, name in OPEN_DIMENSIONS.items()
        if not dimensions[axis].dim_param
    ]
    if fixed:
        raise UserError(f"{path.name}: the exported graph fixed {', '.join(fixed)}; use the pinned torch and timm")
    conditions = [node.name for node in graph.node if node.op_type == "If"]
    if conditions:
        raise UserError(
            f"{path.name}: the exported graph branches by size ({', '.join(conditions)}); use the pinned torch and timm"
        )


def round_up(side: int, patch: int) -> int:
    """The smallest multiple of the patch size that is not below a side, both in pixels."""
    return -(-side // patch) * patch
