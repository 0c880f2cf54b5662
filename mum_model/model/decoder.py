"""The multi-view decoder: frame-wise and global attention in turns over the tokens of all views of a scene."""

import torch
from timm.layers import LayerNorm
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from mum_model.model.ablations import sincos_positions
from mum_model.model.alternating import ROPE_TEMPERATURE, alternate, frame_block, scene_block, unrotated
from mum_model.model.scenes import SceneLayout


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
        rotary: bool,
    ):
        """Build the decoder.

        Args:
            encoder_dim: Width of the encoder's tokens.
            dim: Width of the decoder.
            depth: Number of blocks in all, half of them frame-wise; even.
            heads: Attention heads; `dim / heads` is a multiple of 4, as axial RoPE wants.
            patch_size: Side of a patch in pixels.
            layer_norm_eps: Epsilon of every LayerNorm.
            rotary: Whether positions are rotations of queries and keys; else they are added to the tokens.
        """
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.rope = None
        if rotary:
            self.rope = RotaryEmbeddingDinoV3(dim // heads, temperature=ROPE_TEMPERATURE, rotate_half=True)
        self.frame_blocks = nn.ModuleList([frame_block(dim, heads, layer_norm_eps) for _ in range(depth // 2)])
        self.global_blocks = nn.ModuleList([scene_block(dim, heads, layer_norm_eps) for _ in range(depth // 2)])
        self.norm = LayerNorm(dim, eps=layer_norm_eps)
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
        ropes = self._rotations(grid, tokens.shape[0])
        if self.rope is None:
            tokens = tokens + sincos_positions(grid, tokens.shape[-1]).to(tokens.device)
        mixed = tokens
        for _, across in alternate(self.frame_blocks, self.global_blocks, tokens, ropes, scenes):
            mixed = across
        return mixed[:, 1:]

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

    def _rotations(self, grid: tuple[int, int], frames: int) -> tuple[Tensor | None, Tensor | None]:
        """Sine and cosine of every token: `[1 + L, 2 * head_dim]` for a view, and the same for all views in a row.

        In frame-wise blocks the CLS token is not rotated (sin 0, cos 1). In global blocks the authors give it sin 0
        *and* cos 0, which blanks its query and key; their weights were trained that way.
        """
        if self.rope is None:
            return None, None
        patches = self.rope.get_embed(shape=list(grid))
        blank = torch.zeros_like(patches[:1])
        return torch.cat([unrotated(blank), patches]), torch.cat([blank, patches]).repeat(frames, 1)
