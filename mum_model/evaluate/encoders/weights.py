"""Weight files of other codebases, mapped onto timm models: the authors' MuM, and CroCo v2 with what was tuned from it.

Files are read without running code: safetensors, or torch's own format with `weights_only`.
"""

import argparse
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.eva import Eva
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.model import load_reference_state_dict

CROCO_ROPE_BASE = 100.0


def encoder_from_weights(path: Path) -> tuple[nn.Module, str]:
    """Build the encoder that a weight file holds.

    Args:
        path: `.pth`, `.pt` or `.safetensors`.

    Returns:
        The encoder in evaluation mode, and whose weights they are.

    Raises:
        UserError: The file is damaged, or its keys are neither the authors' nor CroCo's.
    """
    state = _read(path)
    if any(key.startswith("enc_blocks.") for key in state):
        return croco_encoder(state, path), "CroCo v2's encoder"
    if "rope_embed.periods" in state:
        return reference_encoder(state), "the authors' MuM"
    raise UserError(
        f"{path}: neither the authors' weights (with rope_embed.periods) nor CroCo's (with enc_blocks.*); "
        f"its keys begin with {', '.join(sorted(state)[:3])}"
    )


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # DUSt3R keeps its arguments beside the weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a file of weights alone; download it again") from error
    content = content.get("model", content) if isinstance(content, Mapping) else {}
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path}: holds no weights by name")
    return state


def reference_encoder(state: Mapping[str, Tensor]) -> nn.Module:
    """The encoder of the authors' files, with or without decoder; its size is read off the weights.

    Args:
        state: Weights under the authors' key names.

    Returns:
        A stock timm model.

    Raises:
        UserError: Keys are missing or do not fit.
    """
    width = state["cls_token"].shape[-1]
    head = 4 * len(state["rope_embed.periods"])
    encoder = timm.create_model(
        "mum_vit_large_patch16",
        embed_dim=width,
        depth=_depth(state, "blocks."),
        num_heads=width // head,
        patch_size=state["patch_embed.proj.weight"].shape[-1],
    )
    decoder = ("decoder_", "mask_token", "rope_embed_decoder.")
    own = {key: value for key, value in state.items() if not key.startswith(decoder)}
    load_reference_state_dict(encoder, own)
    return encoder.float().eval()


def croco_encoder(state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The encoder of CroCo v2, DUSt3R or MASt3R as a stock timm `Eva`.

    CroCo turns the first half of each head by the row and the second half by the column of a patch, each half by pairs
    that lie a quarter of the head apart; timm's index RoPE turns neighbouring channels. A permutation of the channels
    of queries and keys, the same for both, takes one to the other and leaves their products as they are, so the map is
    exact (github.com/naver/croco, `models/pos_embed.py`; the frequencies 100^(-4j / head) are the same).

    Args:
        state: Weights under CroCo's key names; the decoder's and heads' are not used.
        path: For messages.

    Returns:
        A timm model without a class token, with ImageNet's mean and deviation.

    Raises:
        UserError: The checkpoint has absolute positions (CroCo v1), or keys are missing.
    """
    if "enc_pos_embed" in state:
        raise UserError(f"{path}: CroCo with absolute positions; only checkpoints with RoPE100 are mapped")
    embed = state["patch_embed.proj.weight"]
    width, depth = embed.shape[0], _depth(state, "enc_blocks.")
    heads = width // 64  # as in every released size: 768/12 and 1024/16
    encoder = Eva(
        img_size=224,
        patch_size=embed.shape[-1],
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        global_pool="",
        attn_type="rope",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        class_token=False,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="cat",
        rope_temperature=CROCO_ROPE_BASE,
        dynamic_img_size=True,
        use_fc_norm=False,
    )
    renamed = {}
    for key, value in state.items():
        if key.startswith(("patch_embed.", "enc_blocks.", "enc_norm.")):
            ours = key.replace("enc_blocks.", "blocks.").replace("enc_norm.", "norm.")
            renamed[ours] = _interleaved(value, heads) if ".attn.qkv." in key else value
    problems = encoder.load_state_dict(renamed, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        wrong = ", ".join([*problems.missing_keys, *problems.unexpected_keys][:5])
        raise UserError(f"{path}: not a whole encoder of CroCo v2; missing or unknown: {wrong}")
    settings: Any = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    encoder.pretrained_cfg = settings
    return encoder.eval()


def _interleaved(qkv: Tensor, heads: int) -> Tensor:
    """Permute the channels of queries and keys of each head from CroCo's order to timm's."""
    head = qkv.shape[0] // (3 * heads)
    quarter = torch.arange(head // 4)
    by_row = torch.stack([quarter, quarter + head // 4], dim=-1).flatten()
    order = torch.cat([by_row, by_row + head // 2])
    query, key, value = qkv.reshape(3, heads, head, *qkv.shape[1:])
    return torch.stack([query[:, order], key[:, order], value]).reshape(qkv.shape)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).partition(".")[0]) for key in state if key.startswith(prefix))
