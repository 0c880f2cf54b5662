"""Frame-wise and global attention in turns over the tokens of all views of packed scenes."""

from collections.abc import Iterator
from functools import partial

import torch
from timm.layers import LayerNorm
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from mum_model.model.scenes import SceneAttention, SceneLayout

ROPE_TEMPERATURE = 100.0


def frame_block(
    dim: int, heads: int, layer_norm_eps: float, *, qk_norm: bool = False, layer_scale: float | None = None
) -> EvaBlock:
    """A block that attends within each view.

    Args:
        dim: Width.
        heads: Attention heads; `dim / heads` is a multiple of 4, as axial RoPE wants.
        layer_norm_eps: Epsilon of every LayerNorm.
        qk_norm: Whether queries and keys are normalised.
        layer_scale: First value of LayerScale; None for none.
    """
    return EvaBlock(
        dim,
        heads,
        attn_type="rope",
        rotate_half=True,
        qk_norm=qk_norm,
        init_values=layer_scale,
        norm_layer=partial(LayerNorm, eps=layer_norm_eps),
        num_prefix_tokens=0,  # the first token gets a row of its own in the rotation, so that none is a prefix here
    )


def scene_block(
    dim: int, heads: int, layer_norm_eps: float, *, qk_norm: bool = False, layer_scale: float | None = None
) -> EvaBlock:
    """A block that attends over the tokens of all views of a scene; arguments as of `frame_block`."""
    made = frame_block(dim, heads, layer_norm_eps, qk_norm=qk_norm, layer_scale=layer_scale)
    norm_layer = partial(LayerNorm, eps=layer_norm_eps)
    made.attn = SceneAttention(
        dim, heads, rotate_half=True, qk_norm=qk_norm, norm_layer=norm_layer, num_prefix_tokens=0
    )
    return made


def attend_scenes(block: nn.Module, tokens: Tensor, rope: Tensor | None, scenes: SceneLayout) -> Tensor:
    """Apply a `scene_block`.

    Args:
        block: The block.
        tokens: Of all views, `[N, T, D]`; the views of a scene are consecutive.
        rope: Sine and cosine of every token of all views in a row, `[N * T, 2 * head_dim]`; None for none.
        scenes: Which of the N views make a scene.

    Returns:
        `[N, T, D]`.
    """
    # timm's block hands `attn_mask` to its attention as it is: here it says who may attend to whom.
    return block(tokens.flatten(0, 1).unsqueeze(0), rope=rope, attn_mask=scenes).reshape_as(tokens)


def alternate(
    frame_blocks: nn.ModuleList,
    scene_blocks: nn.ModuleList,
    tokens: Tensor,
    ropes: tuple[Tensor | None, Tensor | None],
    scenes: SceneLayout,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Apply pairs of blocks, the first of each within views, the second over scenes.

    Args:
        frame_blocks: Of `frame_block`.
        scene_blocks: Of `scene_block`, as many.
        tokens: `[N, T, D]`; the views of a scene are consecutive.
        ropes: Sine and cosine of the tokens of a view, `[T, 2 * head_dim]`, and of those of all views in a row;
            None for none.
        scenes: Which of the N views make a scene.

    Yields:
        After each pair the tokens that each of its blocks gave, `[N, T, D]` both.
    """
    for within, across in zip(frame_blocks, scene_blocks, strict=True):
        framed = within(tokens, rope=ropes[0])
        tokens = attend_scenes(across, framed, ropes[1], scenes)
        yield framed, tokens


def unrotated(like: Tensor) -> Tensor:
    """Sine 0 and cosine 1 in the shape of rows of a rotation, `[..., 2 * head_dim]`."""
    sine, cosine = like.chunk(2, -1)
    return torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
