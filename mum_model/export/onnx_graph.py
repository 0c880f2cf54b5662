"""The encoder as an ONNX graph whose batch, height and width stay open."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.export.contract import output_blocks
from mum_model.model.encoder import Eva

Operators = Literal["onnxruntime", "standard"]
"""Whose attention and rotary embedding: ONNX Runtime's own, or those of the ONNX standard."""


@dataclass(frozen=True)
class GraphForm:
    """How a graph is written.

    Attributes:
        opset: Version of the ONNX operators (https://onnx.ai/onnx/operators); attention is one since 23.
        operators: `onnxruntime` runs attention without ever holding the L x L scores; `standard` is for other runtimes.
        trace_size: About the side in pixels of the image that is traced.
        dtype: Of weights and computation; input and outputs keep the contract's types.
    """

    opset: int
    operators: Operators
    trace_size: int
    dtype: torch.dtype = torch.float32


class _OpenRotation(nn.Module):
    """DINOv3's axial RoPE for a grid whose size is known only when the graph runs.

    timm divides the coordinates by `float(side)`, which `torch.export` freezes into a constant without a word: such a
    graph runs at every size and is right only at the one it was traced with. Dividing by the symbolic side stays open.
    """

    def __init__(self, rope: nn.Module, prefix_tokens: int, dtype: torch.dtype):
        super().__init__()
        self._periods = rope.get_buffer("periods").float()  # no buffer: angles stay float32 in a half-precision graph
        self._prefix_tokens = prefix_tokens
        self._dtype = dtype

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Cosine and sine of every token, `[2, prefix + rows * columns, head_dim / 2]`; prefix tokens do not turn.

        Patch centres lie on -1..1 along each axis (DINOv3, https://arxiv.org/abs/2508.10104).
        """
        axes = [2 * ((torch.arange(side, dtype=torch.float32) + 0.5) / side) - 1 for side in shape]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * centres[:, :, None] / self._periods).flatten(1)
        angles = F.pad(angles, (0, 0, self._prefix_tokens, 0))
        return torch.stack([angles.cos(), angles.sin()]).to(self._dtype)


class _Attention(nn.Module):
    """timm's attention with rotation and mixing as one operator each, which no optimiser has to find first."""

    def __init__(self, attention: Any, operators: Operators):
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._heads, self._scale = attention.num_heads, attention.scale
        self._operators = operators

    def forward(self, x: Tensor, rope: Tensor, **_: Any) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key = (self._rotate(part, *rope) for part in (query, key))
        return self.proj(self._mix(query, key, value))

    def _rotate(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        if self._operators == "standard":
            caches = (cache.expand(x.shape[0], -1, -1) for cache in (cosine, sine))
            return torch.onnx.ops.rotary_embedding(x, *caches, num_heads=self._heads)
        first_position = torch.zeros(1, dtype=torch.int64)
        return _contributed("RotaryEmbedding", (x, first_position, cosine, sine), x, num_heads=self._heads)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._operators == "standard":
            heads = {"q_num_heads": self._heads, "kv_num_heads": self._heads}
            return torch.onnx.ops.attention(query, key, value, scale=self._scale, **heads)[0]
        tokens = (query, key, value)
        return _contributed("MultiHeadAttention", tokens, value, num_heads=self._heads, scale=self._scale)


def _contributed(name: str, inputs: tuple[Tensor, ...], like: Tensor, **attributes: Any) -> Tensor:
    """An operator of ONNX Runtime's (https://onnxruntime.ai/docs/reference/operators/ContribOperators.html)."""
    return torch.onnx.ops.symbolic(
        f"com.microsoft::{name}", inputs, attributes, dtype=like.dtype, shape=like.shape, version=1
    )


class _Features(nn.Module):
    """From the contract's input to its outputs."""

    def __init__(self, encoder: Eva, contract: Mapping[str, Any], form: GraphForm):
        super().__init__()
        encoder.rope = _OpenRotation(encoder.rope, encoder.num_prefix_tokens, form.dtype)
        for block in encoder.blocks:
            block.attn = _Attention(block.attn, form.operators)
        self.encoder = encoder.to(form.dtype)
        self._dtype = form.dtype
        self._is_pixels = contract["input"]["dtype"] == "uint8"
        self._mean, self._std = (torch.tensor(contract["input"][name]).reshape(3, 1, 1) for name in ("mean", "std"))
        self._blocks = output_blocks(contract)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self._is_pixels:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        return tuple(output.float() for output in features(self.encoder, images.to(self._dtype), self._blocks))


def features(encoder: Eva, images: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
    """All outputs of an encoder.

    Args:
        encoder: The encoder.
        images: Normalised, `[N, 3, H, W]`.
        blocks: Blocks whose tokens are outputs too, ascending.

    Returns:
        CLS `[N, D]`, patch tokens `[N, L, D]`, and those of each block, all after the final norm.
    """
    if blocks:
        tokens, after = encoder.forward_intermediates(images, indices=list(blocks), norm=True, output_fmt="NLC")
    else:  # timm's forward_intermediates wants at least one
        tokens, after = encoder.forward_features(images), []
    return tokens[:, 0], tokens[:, encoder.num_prefix_tokens :], *after


def write_graph(
    encoder: Eva, path: Path, contract: Mapping[str, Any], form: GraphForm, metadata: Mapping[str, Any]
) -> None:
    """Trace the encoder and write it as ONNX, with its contract and origin in the file's `metadata_props`.

    Args:
        encoder: In evaluation mode; parts of it are replaced.
        path: The file to write; weights above 1.5 GB go beside it.
        contract: From `input_contract`; gives the names of input and outputs.
        form: How.
        metadata: What else the file says about itself; each value is stored as JSON.
    """
    patch, described = contract["patch_size"], contract["input"]
    side = round_up(form.trace_size, patch)
    # Batch above one and unequal sides, so that no two dimensions can be taken for the same, or for a constant 1.
    sizes = {"N": 2, 3: 3, "H": side, "W": side + patch}
    example = torch.zeros([sizes[size] for size in described["shape"]], dtype=getattr(torch, described["dtype"]))
    program = torch.onnx.export(
        _Features(encoder, contract, form).eval(),
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=form.opset,
        input_names=[described["name"]],
        output_names=[output["name"] for output in contract["outputs"]],
        dynamic_shapes={"images": open_dimensions(contract)},
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces: they name folders of this machine and change the file's hash
    for name, value in {"contract": contract, **metadata}.items():
        program.model.metadata_props[name] = json.dumps(value)
    program.save(path)


def open_dimensions(contract: Mapping[str, Any]) -> dict[int, str]:
    """Axis -> letter of the input's dimensions that take any size."""
    return {axis: size for axis, size in enumerate(contract["input"]["shape"]) if isinstance(size, str)}


def require_open_graph(path: Path, contract: Mapping[str, Any]) -> None:
    """Refuse a graph that takes one size only, or decides by size which nodes run.

    This sees what the file declares; constants that stand for a size show only in the comparison with PyTorch.

    Args:
        path: The ONNX file.
        contract: From `input_contract`.

    Raises:
        UserError: The input's batch, height or width is fixed, or there is an `If` node.
    """
    graph = onnx.load(path, load_external_data=False).graph
    dimensions = graph.input[0].type.tensor_type.shape.dim
    fixed = [
        f"{name}={dimensions[axis].dim_value}"
        for axis, name in open_dimensions(contract).items()
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
