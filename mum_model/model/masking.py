"""Patches and masks: cutting images into patches, and choosing which of them the encoder sees."""

from typing import NamedTuple

import torch
from torch import Tensor


class PatchMask(NamedTuple):
    """Which patches of each view are visible, and which are not.

    Attributes:
        visible: Indices of the visible patches, int64 `[N, K]`.
        masked: Indices of all others, int64 `[N, L - K]`.
    """

    visible: Tensor
    masked: Tensor


def uniform_mask(noise: Tensor, mask_ratio: float) -> PatchMask:
    """Keep, in each view on its own, the `int(L * (1 - mask_ratio))` patches of smallest noise (MuM, method).

    Args:
        noise: Uniform random numbers `[N, L]`; they alone decide the mask.
        mask_ratio: Share of patches removed, in `[0, 1)`.

    Returns:
        The mask.
    """
    kept = int(noise.shape[1] * (1 - mask_ratio))
    order = noise.argsort(dim=1)
    return PatchMask(order[:, :kept], order[:, kept:])


def select(tokens: Tensor, indices: Tensor) -> Tensor:
    """Some of the tokens of each view.

    Args:
        tokens: `[N, L, D]`.
        indices: int64 `[N, K]`.

    Returns:
        `[N, K, D]`.
    """
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, channel fastest, as the authors order them.

    Args:
        images: `[N, 3, H, W]`, both sides divisible by the patch size.
        patch_size: Side P of a patch in pixels.

    Returns:
        `[N, L, P*P*3]` with `L = (H/P) * (W/P)` in row-major order; within a patch (row, column, channel).
    """
    n, channels, height, width = images.shape
    p = patch_size
    cut = images.reshape(n, channels, height // p, p, width // p, p)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(n, (height // p) * (width // p), p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Put patches back into images; the inverse of `patchify`.

    Args:
        patches: `[N, L, P*P*3]`.
        patch_size: Side P of a patch in pixels.
        grid: Rows and columns of patches.

    Returns:
        Images `[N, 3, rows*P, columns*P]`.
    """
    rows, columns = grid
    p = patch_size
    cut = patches.reshape(patches.shape[0], rows, columns, p, p, 3)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], 3, rows * p, columns * p)


def normalise_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give each patch zero mean and unit variance, the target of the loss (MuM, method).

    Args:
        patches: `[N, L, P*P*3]`.

    Returns:
        The normalised patches, and the mean and standard deviation `[N, L, 1]` that undo it
        (`normalised * deviation + mean`). The variance is the unbiased one, plus 1e-6.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation
