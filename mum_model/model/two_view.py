"""A head for the relative pose of two views on frozen patch tokens: a decoder with cross-attention, then 12 numbers.

The protocol is MuM's (after Reloc3r, arXiv 2412.08376): both views go through the same decoder, each looking at the
other; the rotation is read from nine numbers by singular values, the translation is a direction.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp, apply_rot_embed_cat
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.model.alternating import ROPE_TEMPERATURE, frame_block
from mum_model.model.multiview_heads import nearest_rotation

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class TwoViewConfig:
    """The shape of a pose head; what has a default is the paper's.

    Attributes:
        token_dim: Width of the tokens that it reads.
        dim: Width of the decoder.
        depth: Blocks of the decoder.
        heads: Attention heads.
    """

    token_dim: int
    dim: int = 768
    depth: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 4:
            raise UserError(
                f"pose head: dim={self.dim} with heads={self.heads}: each head must be a multiple of 4 wide, as axial "
                "RoPE needs"
            )


class CrossAttention(nn.Module):
    """Attention of the tokens of one view to those of another, both rotated by their place."""

    def __init__(self, dim: int, heads: int):
        """Build it.

        Args:
            dim: Width.
            heads: Attention heads.
        """
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, other: Tensor, rope: Tensor) -> Tensor:
        """Attend.

        Args:
            tokens: `[N, L, D]`.
            other: Of the other view, `[N, L, D]`.
            rope: Sine and cosine of every token, `[L, 2 * head_dim]`.

        Returns:
            `[N, L, D]`.
        """
        query = self.query(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(other).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (apply_rot_embed_cat(t, rope, half=True).type_as(value) for t in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.project(attended.transpose(1, 2).flatten(2))


class TwoViewBlock(nn.Module):
    """A block that attends within a view, then to the other one."""

    def __init__(self, dim: int, heads: int):
        """Build it.

        Args:
            dim: Width.
            heads: Attention heads.
        """
        super().__init__()
        norm = partial(LayerNorm, dim, eps=LAYER_NORM_EPS)
        self.within = frame_block(dim, heads, LAYER_NORM_EPS)
        self.norm, self.norm_other, self.norm_mlp = norm(), norm(), norm()
        self.across = CrossAttention(dim, heads)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, a: Tensor, b: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of both views, `[N, L, D]` each."""
        a, b = self.within(a, rope=rope), self.within(b, rope=rope)
        a, b = (own + self.across(self.norm(own), self.norm_other(other), rope) for own, other in ((a, b), (b, a)))
        return a + self.mlp(self.norm_mlp(a)), b + self.mlp(self.norm_mlp(b))


class TwoViewPose(nn.Module):
    """The relative pose of two views."""

    def __init__(self, config: TwoViewConfig):
        """Build the head with fresh weights, drawn from torch's global generator.

        Args:
            config: Its shape.
        """
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.token_dim, config.dim)
        self.rope = RotaryEmbeddingDinoV3(config.dim // config.heads, temperature=ROPE_TEMPERATURE, rotate_half=True)
        self.blocks = nn.ModuleList([TwoViewBlock(config.dim, config.heads) for _ in range(config.depth)])
        self.norm = LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.mix = Mlp(config.dim, config.dim)
        self.output = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), nn.Linear(config.dim, 12))

    def forward(self, tokens_a: Tensor, tokens_b: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict the pose that takes points of a's camera to b's.

        Args:
            tokens_a: Patch tokens of the first view, `[N, L, token_dim]`.
            tokens_b: Of the second.
            grid: Rows and columns of the patch grid.

        Returns:
            Nine numbers of the rotation, row by row, and three of the translation, `[N, 12]`, float32.
        """
        rope = self.rope.get_embed(shape=list(grid))
        a, b = self.embed(tokens_a), self.embed(tokens_b)
        for block in self.blocks:
            a, b = block(a, b, rope)
        seen = self.norm(b)
        pooled = (seen + self.mix(seen)).mean(dim=1)
        upright = torch.cat([torch.eye(3).flatten(), torch.zeros(3)])
        return self.output(pooled).float() + upright.to(pooled.device)


def two_view_pose(numbers: Tensor) -> Tensor:
    """The pose that a head means.

    Args:
        numbers: `[..., 12]`.

    Returns:
        `[..., 3, 4]`, its translation as it was said: only the direction means something.
    """
    rotation, translation = numbers.split([9, 3], dim=-1)
    return torch.cat([nearest_rotation(rotation), translation.unsqueeze(-1)], dim=-1)


def two_view_loss(numbers: Tensor, poses: Tensor) -> Tensor:
    """What a head is trained on: the L1 error of the rotation's numbers, and one minus the cosine of the directions.

    Args:
        numbers: What the head says, `[N, 12]`.
        poses: The truth, `[N, 3, 4]`; a translation of zero has no direction and counts for the rotation alone.

    Returns:
        Scalar.
    """
    said, direction = numbers.split([9, 3], dim=-1)
    moved = poses[..., 3].norm(dim=-1) > 0
    apart = (1 - F.cosine_similarity(direction, poses[..., 3], dim=-1)) * moved
    return (said - poses[..., :3].flatten(-2)).abs().sum(-1).mean() + apart.sum() / moved.sum().clamp(min=1)
