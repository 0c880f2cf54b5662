"""The feed-forward multi-view model on frozen patch tokens: cameras, depth and points of any number of views at once.

The trunk is that of the paper's multi-view evaluation (VGGT, arXiv 2503.11651, at half its depth): tokens are brought
to the trunk's width, each view gets a camera token, and attention within views and over the scene takes turns.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.model.alternating import ROPE_TEMPERATURE, alternate, frame_block, scene_block, unrotated
from mum_model.model.multiview_heads import MultiViewHeads, MultiViewOutput, spread
from mum_model.model.scenes import SceneLayout


@dataclass(frozen=True, kw_only=True)
class MultiViewConfig:
    """The shape of a multi-view model; what has a default is the paper's.

    Attributes:
        token_dim: Width of the tokens that it reads.
        dim: Width of the trunk.
        depth: Blocks of the trunk, frame-wise and global together; even.
        heads: Attention heads.
        camera_depth: Blocks of the camera head.
        dense_dim: Channels within the depth and point heads; even.
        layer_scale: First value of LayerScale in the trunk, whose queries and keys then are normalised too, as in VGGT;
            None for neither, as in MuM's decoder.
        layer_norm_eps: Epsilon of every LayerNorm.
    """

    token_dim: int
    dim: int = 768
    depth: int = 12
    heads: int = 12
    camera_depth: int = 4
    dense_dim: int = 256
    layer_scale: float | None = 0.01
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 4:
            raise UserError(
                f"multi-view model: dim={self.dim} with heads={self.heads}: each head must be a multiple of 4 wide, "
                "as axial RoPE needs"
            )
        if self.depth < 2 or self.depth % 2:
            raise UserError(f"multi-view model: depth={self.depth}: frame-wise and global blocks come in pairs")
        if self.dense_dim < 2 or self.dense_dim % 2:
            raise UserError(f"multi-view model: dense_dim={self.dense_dim}: must be even")


class MultiViewModel(nn.Module):
    """Trunk and heads on the patch tokens of a frozen encoder."""

    def __init__(self, config: MultiViewConfig):
        """Build the model with fresh weights, drawn from torch's global generator.

        Args:
            config: Its shape.
        """
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.token_dim, config.dim)
        self.camera_tokens = nn.Parameter(torch.randn(2, config.dim) * 0.02)  # of the first view, and of any other
        self.rope = RotaryEmbeddingDinoV3(config.dim // config.heads, temperature=ROPE_TEMPERATURE, rotate_half=True)
        shape: dict[str, Any] = {
            "dim": config.dim,
            "heads": config.heads,
            "layer_norm_eps": config.layer_norm_eps,
            "layer_scale": config.layer_scale,
            "qk_norm": config.layer_scale is not None,
        }
        self.frame_blocks = nn.ModuleList([frame_block(**shape) for _ in range(config.depth // 2)])
        self.global_blocks = nn.ModuleList([scene_block(**shape) for _ in range(config.depth // 2)])
        self.heads = MultiViewHeads(
            level_dim=2 * config.dim,
            dim=config.dim,
            heads=config.heads,
            camera_depth=config.camera_depth,
            dense_dim=config.dense_dim,
            layer_norm_eps=config.layer_norm_eps,
        )

    def forward(
        self, tokens: Tensor, scenes: SceneLayout, grid: tuple[int, int], size: tuple[int, int]
    ) -> MultiViewOutput:
        """Predict cameras, depth and points of scenes of any lengths.

        Args:
            tokens: Patch tokens of all views, `[N, L, token_dim]`; the views of a scene are consecutive, its first one
                is the reference.
            scenes: Which of the N views make a scene.
            grid: Rows and columns of the patch grid, `L = rows * columns`.
            size: Height and width of the predicted maps.

        Returns:
            The prediction.
        """
        patches = self.embed(tokens)
        others = scenes.reference != torch.arange(len(tokens), device=tokens.device)
        camera = self.camera_tokens[others.long()].unsqueeze(1)
        x = torch.cat([camera.to(patches), patches], dim=1)
        rotation = self.rope.get_embed(shape=list(grid))
        rotation = torch.cat([unrotated(rotation[:1]), rotation])
        ropes = rotation, rotation.repeat(len(tokens), 1)
        levels = [torch.cat(pair, -1) for pair in alternate(self.frame_blocks, self.global_blocks, x, ropes, scenes)]
        return self.heads([levels[i] for i in spread(len(levels))], scenes, grid, size)
