"""Pictures of an evaluation: matches, error maps and features, a row an encoder."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from mum_model.evaluate.matching import PAPER_SIDE, Pairs, PatchGrid

matplotlib.use("Agg")

WORST = 128.0  # error in pixels at 448 at which the colour scale ends


def principal_colours(features: Tensor, grid: PatchGrid) -> np.ndarray:
    """The first three principal components of the tokens of two or more views as colours, the same map for all.

    Args:
        features: Patch tokens `[N, L, D]`.
        grid: The patches.

    Returns:
        RGB in 0..1, float32 `[N, rows, columns, 3]`.
    """
    tokens = features.flatten(0, 1).float()
    tokens = tokens - tokens.mean(dim=0)
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    # The sign of a component is arbitrary: the largest weight points up, so that pictures repeat.
    top = directions[:3]
    top = top * top.gather(1, top.abs().argmax(dim=1, keepdim=True)).sign()
    colours = tokens @ top.T
    low, high = colours.quantile(0.02, dim=0), colours.quantile(0.98, dim=0)
    colours = ((colours - low) / (high - low)).clamp(0, 1)
    return colours.reshape(len(features), grid.rows, grid.columns, 3).numpy()


def draw_pair(
    path: Path,
    images: tuple[np.ndarray, np.ndarray],
    pairs: Pairs,
    number: int,
    contestants: dict[str, tuple[Tensor, Tensor]],
) -> None:
    """Draw one pair of views: matches, error and features of each encoder.

    Args:
        path: PNG to write.
        images: The two views, RGB uint8 `[H, W, 3]`.
        pairs: The test pairs.
        number: Which of them.
        contestants: Predicted positions `[P, L, 2]` and patch tokens `[F, L, D]` by name.
    """
    side = images[0].shape[0]
    grid = _grid_of(pairs, side)
    figure = Figure(figsize=(11, 2.9 * len(contestants)), layout="constrained")
    axes = figure.subplots(len(contestants), 3, squeeze=False, width_ratios=[2, 1.15, 2])
    for row, (name, (positions, features)) in zip(axes, contestants.items(), strict=True):
        error = (positions[number] - pairs.target[number]).norm(dim=-1).numpy() * PAPER_SIDE / side
        error[~pairs.covisible[number].numpy()] = np.nan
        _draw_matches(row[0], images, grid.centres.numpy(), positions[number].numpy(), error)
        _draw_error(row[1], error.reshape(grid.rows, grid.columns))
        colours = principal_colours(features[torch.stack([pairs.a[number], pairs.b[number]])], grid)
        row[2].imshow(np.concatenate(colours, axis=1), interpolation="nearest")
        row[0].set_ylabel(name, fontsize=12)
        mean = f"mean error {np.nanmean(error):.0f} px at 448" if np.isfinite(error).any() else "true matches unknown"
        row[0].set_title(f"matches, {mean}", fontsize=9)
        row[1].set_title("error of each patch of the left view", fontsize=9)
        row[2].set_title("features (PCA)", fontsize=9)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _grid_of(pairs: Pairs, side: int) -> PatchGrid:
    rows = round(pairs.target.shape[1] ** 0.5)  # views are square
    return PatchGrid(rows, rows, side // rows)


def _draw_matches(
    ax: Axes, images: tuple[np.ndarray, np.ndarray], start: np.ndarray, end: np.ndarray, error: np.ndarray
) -> None:
    """Lines from the patches of the left view to where they were found, green where right, red where wrong."""
    ax.imshow(np.concatenate(images, axis=1), interpolation="bilinear")
    known = np.flatnonzero(np.isfinite(error))
    drawn = known[:: max(1, len(known) // 40)]
    lines = np.stack([start[drawn], end[drawn] + [images[0].shape[1], 0]], axis=1)
    colours = matplotlib.colormaps["RdYlGn_r"](np.clip(error[drawn] / WORST, 0, 1))
    ax.add_collection(LineCollection(list(lines), colors=colours, linewidths=0.9))


def _draw_error(ax: Axes, error: np.ndarray) -> None:
    ax.set_facecolor("0.85")  # not co-visible
    image = ax.imshow(error, cmap="RdYlGn_r", vmin=0, vmax=WORST, interpolation="nearest")
    assert ax.figure is not None
    ax.figure.colorbar(image, ax=ax, shrink=0.85, label="px at 448")
