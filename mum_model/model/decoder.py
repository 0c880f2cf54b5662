"""The multi-view decoder: frame-wise and global attention in turns over the tokens of all views of a scene."""

from functools import partial

import torch
from timm.layers import LayerNorm
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from mum_model.model.scenes import SceneAttention, SceneLayout

ROPE_TEMPERATURE = 100.0


class MultiViewDecoder(nn.Module):
    """Turns the encoded visible patches of all views of some scenes into a token for every patch of every view.

    A pair of blocks attends first within each view, then over the tokens of all views of the scene. Views carry no
    index, so the decoder is equivariant to their order; with one view it is MAE's decoder.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        dim: int,
        depth: int,
        heads: int,
        patch_size: int,
        layer_norm_eps: float,
    ):
        """Build the decoder.

        Args:
            encoder_dim: Width of the encoder's tokens.
            dim: Width of the decoder.
            depth: Number of blocks in all, half of them frame-wise; even.
            heads: Attention heads; `dim / heads` is a multiple of 4, as axial RoPE wants.
            patch_size: Side of a patch in pixels.
            layer_norm_eps: Epsilon of every LayerNorm.
        """
        super().__init__()
        norm_layer = partial(LayerNorm, eps=layer_norm_eps)

        def block() -> EvaBlock:
            # The CLS token gets a row of its own in the rotation, so that no token is a prefix here.
            return EvaBlock(dim, heads, attn_type="rope", rotate_half=True, norm_layer=norm_layer, num_prefix_tokens=0)

        def global_block() -> EvaBlock:
            made = block()
            made.attn = SceneAttention(dim, heads, rotate_half=True, num_prefix_tokens=0)
            return made

        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.rope = RotaryEmbeddingDinoV3(dim // heads, temperature=ROPE_TEMPERATURE, rotate_half=True)
        self.frame_blocks = nn.ModuleList([block() for _ in range(depth // 2)])
        self.global_blocks = nn.ModuleList([global_block() for _ in range(depth // 2)])
        self.norm = norm_layer(dim)
        self.head = nn.Linear(dim, patch_size * patch_size * 3)

    def forward(self, tokens: Tensor, scenes: SceneLayout, grid: tuple[int, int]) -> Tensor:
        """Tokens of all patches of all views.

        Args:
            tokens: What `fill_in` gave, `[N, 1 + L, D]`; the views of a scene are consecutive.
            scenes: Which of the N views make a scene.
            grid: Rows and columns of the patch grid.

        Returns:
            `[N, L, D]`; `predict` makes pixels of them.
        """
        frame_rope, global_rope = self._rotations(grid, tokens.shape[0])
        for frame_block, global_block in zip(self.frame_blocks, self.global_blocks, strict=True):
            tokens = frame_block(tokens, rope=frame_rope)
            # timm's block hands `attn_mask` to its attention as it is: here it says who may attend to whom.
            together = global_block(tokens.flatten(0, 1).unsqueeze(0), rope=global_rope, attn_mask=scenes)
            tokens = together.reshape_as(tokens)
        return tokens[:, 1:]

    def predict(self, tokens: Tensor) -> Tensor:
        """Normalised pixels of patches.

        Args:
            tokens: Any of the tokens that `forward` gave, `[..., D]`.

        Returns:
            `[..., P*P*3]`.
        """
        return self.head(self.norm(tokens))

    def fill_in(self, encoded: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
        """Put the encoded patches back to their places, and the mask token everywhere else.

        Args:
            encoded: The encoder's tokens `[N, 1 + K, E]`, CLS first.
            visible: Indices of the K visible patches, `[N, K]`.
            grid: Rows and columns of the patch grid.

        Returns:
            `[N, 1 + L, D]`, CLS first.
        """
        tokens = self.embed(encoded)
        n, _, dim = tokens.shape
        full = self.mask_token.to(tokens.dtype).expand(n, grid[0] * grid[1], dim)
        full = full.scatter(1, visible.unsqueeze(-1).expand(-1, -1, dim), tokens[:, 1:])
        return torch.cat([tokens[:, :1], full], dim=1)

    def _rotations(self, grid: tuple[int, int], frames: int) -> tuple[Tensor, Tensor]:
        """Sine and cosine of every token: `[1 + L, 2 * head_dim]` for a view, and the same for all views in a row.

        In frame-wise blocks the CLS token is not rotated (sin 0, cos 1). In global blocks the authors give it sin 0
        *and* cos 0, which blanks its query and key; their weights were trained that way.
        """
        patches = self.rope.get_embed(shape=list(grid))
        blank = torch.zeros_like(patches[:1])
        unrotated = torch.cat([blank.chunk(2, -1)[0], torch.ones_like(blank).chunk(2, -1)[0]], dim=-1)
        return torch.cat([unrotated, patches]), torch.cat([blank, patches]).repeat(frames, 1)
