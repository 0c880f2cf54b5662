"""Scenes packed end to end, and attention that stays within each of them.

A batch is a row of views; scenes of different lengths lie one behind the other in it, and no view is padding. All of
the network but the global attention is per view, so only that has to know where a scene ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.layers.attention import AttentionRope
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

LONG_ON_CPU = 2048
"""Tokens up to which attention in bf16 on a CPU is written out in matrix products: torch's fused one takes 1.5 to 8
times as long forward and backward (ViT-S, AVX-512). The weights are kept, 2 * heads * tokens**2 bytes a scene."""


@dataclass(frozen=True)
class SceneLayout:
    """Where each scene lies in a row of views.

    Attributes:
        views: Number of views of each scene, in order.
        longest: No scene is longer; the same for all batches of a training, so that a compiled graph stays.
        starts: First view of each scene and the end of the last one, int32 `[frames + 1]`, filled up with that end: a
            fixed shape however many scenes there are.
    """

    views: tuple[int, ...]
    longest: int
    starts: Tensor

    @classmethod
    def of(cls, views: Sequence[int], longest: int | None = None) -> "SceneLayout":
        """The layout of scenes of these lengths.

        Args:
            views: Number of views of each scene; all positive.
            longest: Upper bound of them; the longest of these when absent.
        """
        frames = sum(views)
        starts = torch.full((frames + 1,), frames, dtype=torch.int32)
        starts[: len(views)] = torch.tensor([0, *views[:-1]]).cumsum(0)
        return cls(tuple(views), longest or max(views), starts)

    def to(self, device: torch.device) -> "SceneLayout":
        """The same with its tensor on a device."""
        return SceneLayout(self.views, self.longest, self.starts.to(device, non_blocking=True))

    @property
    def reference(self) -> Tensor:
        """The first view of the scene of each view, int64 `[frames]`."""
        views = torch.tensor(self.views, device=self.starts.device)
        return self.starts[: len(views)].long().repeat_interleave(views, output_size=sum(self.views))

    @property
    def references(self) -> tuple[int, ...]:
        """The first view of every scene of several."""
        return tuple(end - views for end, views in zip(accumulate(self.views), self.views, strict=True) if views > 1)

    @property
    def others(self) -> tuple[int, ...]:
        """All views but the references, in order."""
        return tuple(sorted(set(range(sum(self.views))).difference(self.references)))

    @property
    def runs(self) -> Iterator[tuple[int, int]]:
        """Neighbouring scenes of equal length: (how many, of how many views)."""
        return ((len(list(group)), length) for length, group in groupby(self.views))


class SceneAttention(AttentionRope):
    """timm's rotary attention over packed scenes: each token attends to all tokens of its own scene.

    The parameters are those of timm's class, under the same names; not told of scenes, it is timm's own.
    """

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: SceneLayout | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend.

        Args:
            x: Tokens of all views of all scenes, `[1, N * tokens, D]`, all views with as many tokens.
            rope: Sine and cosine of every token, `[N * tokens, 2 * head_dim]`; None rotates none.
            attn_mask: The scenes, in the place where timm's block passes a mask on.
            is_causal: Not used; timm's block passes it.

        Returns:
            `[1, N * tokens, D]`.
        """
        if attn_mask is None:
            return super().forward(x, rope=rope)
        q, k, v = self.qkv(x[0]).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # each [N * tokens, heads, head_dim]
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            rotation = rope.unsqueeze(1)
            q, k = (apply_rot_embed_cat(t, rotation, half=self.rotate_half).type_as(v) for t in (q, k))
        attend = _attend_by_flash if x.is_cuda else _attend_by_runs
        return self.proj(attend(q, k, v, attn_mask).flatten(1)).unsqueeze(0)


def _attend_by_flash(q: Tensor, k: Tensor, v: Tensor, scenes: SceneLayout) -> Tensor:
    """One kernel for all scenes (variable-length flash attention); `[tokens, heads, head_dim]` each."""
    tokens = len(q) // (len(scenes.starts) - 1)
    starts, longest = scenes.starts * tokens, scenes.longest * tokens
    together = varlen_attn(q, k, v, starts, starts, longest, longest)
    assert isinstance(together, Tensor)
    return together


@torch.compiler.disable  # its shapes differ by batch
def _attend_by_runs(q: Tensor, k: Tensor, v: Tensor, scenes: SceneLayout) -> Tensor:
    """One batched call for each run of scenes of equal length; no token outside a scene is ever multiplied."""
    tokens = len(q) // sum(scenes.views)
    lengths = [count * views * tokens for count, views in scenes.runs]
    runs = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_attend_batched(*run, count) for run, (count, _) in zip(runs, scenes.runs, strict=True)])


def _attend_batched(q: Tensor, k: Tensor, v: Tensor, scenes: int) -> Tensor:
    q, k, v = (t.unflatten(0, (scenes, -1)).transpose(1, 2) for t in (q, k, v))
    if q.dtype == torch.bfloat16 and q.shape[-2] <= LONG_ON_CPU:
        together = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
    else:
        together = F.scaled_dot_product_attention(q, k, v)
    return together.transpose(1, 2).flatten(0, 1)
