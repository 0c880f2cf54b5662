"""What the paper tried on the encoder and left: views that communicate early, and positions that are added.

Both keep timm's network. An encoder whose views communicate has the weights of the default one, under the same names,
and is saved as that: judged on one view at a time it attends within the view, as its blocks do for a scene of one view.
"""

from timm.layers import build_sincos2d_pos_embed
from timm.models.eva import Eva
from torch import Tensor
from torch.nn.functional import pad

from mum_model.model.scenes import SceneAttention


def let_views_communicate(encoder: Eva) -> None:
    """Let every second block attend over the visible patches of all views of a scene, as the decoder's blocks do.

    The paper says only "communication in the encoder"; taking turns is what its decoder does.

    Args:
        encoder: With RoPE or without; changed in place, its weights keep their names.
    """
    for block in encoder.blocks[1::2]:
        attention = block.attn
        block.attn = SceneAttention(
            encoder.embed_dim,
            attention.num_heads,
            rotate_half=attention.rotate_half,
            num_prefix_tokens=attention.num_prefix_tokens,
        )


def position_arguments(side: int | None) -> dict[str, bool | int]:
    """Arguments of timm's class for an encoder with added positions, or none for one with RoPE.

    Args:
        side: Of the square views whose positions are added, in pixels; None for RoPE.
    """
    return {} if side is None else {"use_rot_pos_emb": False, "use_abs_pos_emb": True, "img_size": side}


def fix_positions(encoder: Eva) -> None:
    """Give an encoder made with `position_arguments` MAE's positions: sines and cosines that are not trained.

    Args:
        encoder: Changed in place; the positions are a buffer, saved as timm's `pos_embed`.
    """
    del encoder.pos_embed
    encoder.register_buffer("pos_embed", sincos_positions(encoder.patch_embed.grid_size, encoder.embed_dim)[None])


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """MAE's positions: sines and cosines of row and column, nothing for the CLS token.

    Args:
        grid: Rows and columns of patches.
        dim: Width of a token, a multiple of 4.

    Returns:
        `[1 + rows * columns, dim]`, float32.
    """
    return pad(build_sincos2d_pos_embed(list(grid), dim), (0, 0, 1, 0))
