"""The encoder as an ONNX graph whose batch, height and width stay open."""

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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


class OpenRotation(nn.Module):
    """DINOv3's axial RoPE for a grid whose size is known only when the graph runs.

    timm divides the coordinates by `float(side)`, which `torch.export` freezes into a constant without a word: such a
    graph runs at every size and is right only at the one it was traced with. Dividing by the symbolic side stays open.
    """

    def __init__(self, rope: nn.Module):
        super().__init__()
        self._periods = rope.get_buffer("periods").float()  # no buffer: angles stay float32 in a half-precision graph

    def get_embed(self, shape: Sequence[int]) -> Tensor:
        """Sine and cosine of every patch as timm lays them out, each twice: `[rows * columns, 2 * head_dim]`.

        Patch centres lie on -1..1 along each axis (DINOv3, https://arxiv.org/abs/2508.10104).
        """
        axes = [2 * ((torch.arange(side, dtype=torch.float32) + 0.5) / side) - 1 for side in shape]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * centres[:, :, None] / self._periods).flatten(1)
        sine, cosine = angles.sin(), angles.cos()
        return torch.cat([sine, sine, cosine, cosine], dim=-1)


class FusedAttention(nn.Module):
    """timm's attention with rotation and mixing as one operator each, which no optimiser has to find first."""

    def __init__(self, attention: Any, operators: Operators):
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._heads, self._scale = attention.num_heads, attention.scale
        self._prefix_tokens = attention.num_prefix_tokens
        self._operators = operators

    def forward(self, x: Tensor, rope: Tensor, **_: Any) -> Tensor:
        """Attend among tokens `[N, T, D]`, turned by timm's `rope` (`OpenRotation`), which may differ by N."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        sine, cosine = (part.chunk(2, dim=-1)[0].to(x.dtype) for part in rope.chunk(2, dim=-1))
        # Prefix tokens do not turn.
        sine = F.pad(sine, (0, 0, self._prefix_tokens, 0))
        cosine = F.pad(cosine, (0, 0, self._prefix_tokens, 0), value=1.0)
        query, key = (self._rotate(part, cosine, sine) for part in (query, key))
        return self.proj(self._mix(query, key, value))

    def _rotate(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Turn tokens `[N, T, D]` by a table for all, `[T, half]`, or by one for each, `[N, 1, T, half]`."""
        one_for_each = cosine.ndim > 2
        if self._operators == "standard":
            if one_for_each:
                cosine, sine = cosine.squeeze(1), sine.squeeze(1)
            caches = (cache.expand(x.shape[0], -1, -1) for cache in (cosine, sine))
            return torch.onnx.ops.rotary_embedding(x, *caches, num_heads=self._heads)
        positions = torch.zeros(1, dtype=torch.int64)  # of the first token
        if one_for_each:  # this operator knows one table only: they follow each other in it
            positions = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1])
            cosine, sine = cosine.flatten(0, 2), sine.flatten(0, 2)
        return _contributed("RotaryEmbedding", (x, positions, cosine, sine), x, num_heads=self._heads)

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


def open_up(network: Any, blocks: Iterable[Any], operators: Operators) -> None:
    """Replace what ties a network to the size that it is traced with, and what no runtime would fuse.

    Args:
        network: Has timm's `rope`.
        blocks: timm's, with an attention in `attn` each.
        operators: Whose.
    """
    network.rope = OpenRotation(network.rope)
    for block in blocks:
        block.attn = FusedAttention(block.attn, operators)


class Normalisation(nn.Module):
    """From the contract's images to normalised float32 `[N, 3, H, W]`."""

    def __init__(self, images: Mapping[str, Any]):
        super().__init__()
        self._is_pixels = images["dtype"] == "uint8"
        self._mean, self._std = (torch.tensor(images[name]).reshape(3, 1, 1) for name in ("mean", "std"))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, where that has not been done."""
        return (images.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std if self._is_pixels else images

    def undone(self, images: Tensor) -> Tensor:
        """Pixels, uint8 `[N, H, W, 3]`, of normalised images."""
        pixels = ((images * self._std + self._mean) * 255).round().clamp(0, 255)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1)


class _Features(nn.Module):
    """From the contract's input to its outputs."""

    def __init__(self, encoder: Eva, contract: Mapping[str, Any], form: GraphForm):
        super().__init__()
        open_up(encoder, encoder.blocks, form.operators)
        self.encoder = encoder.to(form.dtype)
        self._dtype = form.dtype
        self._normalisation = Normalisation(contract["input"])
        self._blocks = output_blocks(contract)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = self._normalisation(images).to(self._dtype)
        return tuple(output.float() for output in features(self.encoder, images, self._blocks))


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
    names = GraphNames([described["name"]], [output["name"] for output in contract["outputs"]])
    module, shapes = _Features(encoder, contract, form), {"images": open_dimensions(described)}
    save_graph(module, (example,), shapes, path, form.opset, names, {"contract": contract, **metadata})


class GraphNames(NamedTuple):
    """Names of a graph's inputs and outputs, in their order."""

    inputs: list[str]
    outputs: list[str]


def save_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    open_shapes: Mapping[str, Any],
    path: Path,
    opset: int,
    names: GraphNames,
    metadata: Mapping[str, Any],
) -> None:
    """Trace a module and write it as ONNX.

    Args:
        module: What to trace.
        example: Its arguments.
        open_shapes: Parameter of its `forward` -> axis -> the open dimension there.
        path: The file to write; weights above 1.5 GB go beside it.
        opset: Version of the ONNX operators.
        names: Of inputs and outputs.
        metadata: For the file's `metadata_props`; each value is stored as JSON.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # two inputs may well share a dimension
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=names.inputs,
            output_names=names.outputs,
            dynamic_shapes=dict(open_shapes),
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces: they name folders of this machine and change the file's hash
    for name, value in metadata.items():
        program.model.metadata_props[name] = json.dumps(value)
    program.save(path)


def open_dimensions(described: Mapping[str, Any]) -> dict[int, str]:
    """Axis -> letter of the dimensions of a contract's input that take any size."""
    return {axis: size for axis, size in enumerate(described["shape"]) if isinstance(size, str)}


def require_open_graph(path: Path, open_shapes: Mapping[str, Mapping[int, str]]) -> None:
    """Refuse a graph that takes one size only, or decides by size which nodes run.

    This sees what the file declares; constants that stand for a size show only in the comparison with PyTorch.

    Args:
        path: The ONNX file.
        open_shapes: Input -> axis -> letter of a dimension that takes any size.

    Raises:
        UserError: One of them is fixed, or there is an `If` node.
    """
    graph = onnx.load(path, load_external_data=False).graph
    inputs = {one.name: one.type.tensor_type.shape.dim for one in graph.input}
    fixed = [
        f"{letter}={inputs[name][axis].dim_value}"
        for name, dimensions in open_shapes.items()
        for axis, letter in dimensions.items()
        if not inputs[name][axis].dim_param
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
