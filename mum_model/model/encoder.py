"""The encoder: a stock timm vision transformer (`timm.models.eva.Eva`) with DINOv3's axial RoPE, in five sizes.

Nothing of the network is ours: a size is a set of arguments to timm's class. So the authors' weights load under their
own key names, and what is trained here loads in a timm that has never heard of this project.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm, resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva, EvaBlock, checkpoint_filter_fn
from torch import Tensor, nn

from mum_model.model.alternating import attend_scenes, unrotated
from mum_model.model.masking import select
from mum_model.model.scenes import SceneAttention, SceneLayout

ENCODER_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Width, depth and heads by size; base, large and huge as in the paper."""

ENCODER_ARGUMENTS: dict[str, Any] = {
    "patch_size": 16,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "attn_type": "rope",
    "class_token": True,
    "num_reg_tokens": 0,
    "init_values": None,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
    "dynamic_img_size": True,
    "use_fc_norm": False,
    "num_classes": 0,
    "global_pool": "",
}
"""What every size shares: arguments of `timm.models.eva.Eva` (MuM, section on the method)."""

DEFAULT_LAYER_NORM_EPS = 1e-5

default_cfgs = generate_default_cfgs(
    {
        f"mum_vit_{size}_patch16": {
            "input_size": (3, 224, 224),
            "fixed_input_size": False,
            "num_classes": 0,
            "pool_size": None,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
        for size in ENCODER_SIZES
    }
)


def _encoder(size: str, pretrained: bool = False, layer_norm_eps: float = DEFAULT_LAYER_NORM_EPS, **kwargs: Any) -> Eva:
    arguments = {
        **ENCODER_ARGUMENTS,
        **ENCODER_SIZES[size],
        "norm_layer": partial(LayerNorm, eps=layer_norm_eps),
        **kwargs,
    }
    return build_model_with_cfg(
        Eva,
        f"mum_vit_{size}_patch16",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **arguments,
    )


@register_model
def mum_vit_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-Ti/16 with axial RoPE: 192 wide, 12 deep, 3 heads."""
    return _encoder("tiny", pretrained, **kwargs)


@register_model
def mum_vit_small_patch16(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-S/16 with axial RoPE: 384 wide, 12 deep, 6 heads."""
    return _encoder("small", pretrained, **kwargs)


@register_model
def mum_vit_base_patch16(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-B/16 with axial RoPE: 768 wide, 12 deep, 12 heads."""
    return _encoder("base", pretrained, **kwargs)


@register_model
def mum_vit_large_patch16(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-L/16 with axial RoPE: 1024 wide, 24 deep, 16 heads; the encoder of the paper."""
    return _encoder("large", pretrained, **kwargs)


@register_model
def mum_vit_huge_patch16(pretrained: bool = False, **kwargs: Any) -> Eva:
    """ViT-H/16 with axial RoPE: 1280 wide, 32 deep, 16 heads."""
    return _encoder("huge", pretrained, **kwargs)


def encode_visible(
    encoder: Eva, patches: Tensor, visible: Tensor, grid: tuple[int, int], scenes: SceneLayout
) -> Tensor:
    """Encode the visible patches of each view alone; the masked ones are never computed.

    Args:
        encoder: A timm Eva as registered here.
        patches: Pixels of every patch, `[N, L, P*P*3]` in the order of `patchify`.
        visible: Indices of the visible patches, int64 `[N, K]`, each in `0..L-1`.
        grid: Rows and columns of the patch grid, `L = rows * columns`.
        scenes: Which of the N views make a scene; read only where `ablations.let_views_communicate` was.

    Returns:
        Final-normed tokens `[N, 1 + K, D]`, the CLS token first.
    """
    pixels = embed_patches(encoder, select(patches, visible))
    tokens = torch.cat([encoder.cls_token.expand(pixels.shape[0], -1, -1), pixels], dim=1)
    rope = None
    if encoder.rope is not None:
        rope = encoder.rope.get_embed(shape=list(grid))[visible]  # [N, K, 2 * head_dim]
    else:
        tokens = tokens + _added_positions(encoder, visible, grid)
    for block in encoder.blocks:
        if isinstance(block.attn, SceneAttention):
            tokens = attend_scenes(block, tokens, _with_cls(rope), scenes)
        else:
            tokens = block(tokens, rope=None if rope is None else rope.unsqueeze(1))
    return encoder.norm(tokens)


def _added_positions(encoder: Eva, visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """Of CLS and visible patches `[N, 1 + K, D]`, resampled where timm would."""
    table = resample_abs_pos_embed(encoder.pos_embed, new_size=list(grid), old_size=encoder.patch_embed.grid_size)[0]
    return torch.cat([table[:1].expand(len(visible), -1, -1), table[1:][visible]], dim=1)


def _with_cls(rope: Tensor | None) -> Tensor | None:
    """The rotations of all tokens of all views in a row, `[N * (1 + K), 2 * head_dim]`; CLS is not rotated."""
    return None if rope is None else torch.cat([unrotated(rope[:, :1]), rope], dim=1).flatten(0, 1)


def embed_patches(encoder: Eva, patches: Tensor) -> Tensor:
    """Apply the encoder's patch projection to patches that are already cut out.

    The convolution of timm's `PatchEmbed` has kernel = stride, so on a single patch it is one matrix product; this
    way only the visible quarter is projected.

    Args:
        encoder: A timm Eva as registered here.
        patches: Pixels `[N, K, P*P*3]` in the order of `patchify`.

    Returns:
        Embedded patches `[N, K, D]`.
    """
    projection = encoder.patch_embed.proj
    weight = projection.weight.permute(0, 2, 3, 1).flatten(1)  # channel fastest, as in patchify
    return F.linear(patches.to(weight.dtype), weight, projection.bias)


def transformer_blocks(model: nn.Module) -> Iterator[EvaBlock]:
    """All transformer blocks of a model, encoder and whatever follows it, in the order in which they were built."""
    yield from (module for module in model.modules() if isinstance(module, EvaBlock))


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Initialise as the authors do: truncated normal 0.02 for linear layers, uniform +-1/sqrt(fan_in) for patches.

    Args:
        module: An encoder or a whole MuM; changed in place. Class and mask tokens become normal with deviation 0.02.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Conv2d):
            bound = 1.0 / math.sqrt(child.weight[0].numel())
            nn.init.uniform_(child.weight, -bound, bound)
            assert child.bias is not None
            nn.init.uniform_(child.bias, -bound, bound)
    for name, parameter in module.named_parameters():
        if name.endswith(("cls_token", "mask_token")):
            nn.init.normal_(parameter, std=0.02)
