"""Pictures of an evaluation: matches, error maps and features, a row an encoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mum_model.evaluate.matching import PAPER_SIDE, PatchGrid

matplotlib.use("Agg")

Interval = tuple[float, float, float]

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
    contestants: Mapping[str, tuple[PatchGrid, Tensor, tuple[Tensor, Tensor], Tensor]],
) -> None:
    """Draw one pair of views: matches, error and features of each encoder.

    Args:
        path: PNG to write.
        images: The two views, RGB uint8 `[H, W, 3]`.
        contestants: By name: patches, predicted positions `[L, 2]`, true positions `[L, 2]` with co-visibility `[L]`,
            and patch tokens of both views `[2, L, D]`.
    """
    side = images[0].shape[0]
    figure = Figure(figsize=(11, 2.9 * len(contestants)), layout="constrained")
    axes = figure.subplots(len(contestants), 3, squeeze=False, width_ratios=[2, 1.15, 2])
    for row, (name, (grid, positions, (target, covisible), tokens)) in zip(axes, contestants.items(), strict=True):
        error = (positions - target).norm(dim=-1).numpy() * PAPER_SIDE / side
        error[~covisible.numpy()] = np.nan
        _draw_matches(row[0], images, grid.centres.numpy(), positions.numpy(), error)
        _draw_error(row[1], error.reshape(grid.rows, grid.columns))
        row[2].imshow(np.concatenate(principal_colours(tokens, grid), axis=1), interpolation="nearest")
        row[0].set_ylabel(name, fontsize=12)
        mean = f"mean error {np.nanmean(error):.0f} px at 448" if np.isfinite(error).any() else "true matches unknown"
        row[0].set_title(f"matches, {mean}", fontsize=9)
        row[1].set_title("error of each patch of the left view", fontsize=9)
        row[2].set_title("features (PCA)", fontsize=9)
    save(figure, axes, path)


def save(figure: Figure, axes: np.ndarray, path: Path) -> None:
    """Write a figure of pictures, without ticks.

    Args:
        figure: The figure.
        axes: Its axes, of any shape.
        path: PNG to write; its folder is made where missing.
    """
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


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


def draw_intervals(path: Path, benchmark: str, rows: Sequence[tuple[str, Mapping[str, Interval]]]) -> Path:
    """Draw every number of a benchmark with its interval, a small plot a number.

    Args:
        path: PNG to write.
        benchmark: Its name.
        rows: Heading of each number, and (value, low, high) of each encoder.

    Returns:
        The path.
    """
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    names = list(rows[0][1])
    figure = Figure(figsize=(11, lines * (0.7 + 0.22 * len(names))), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax, (heading, cells) in zip(axes.flat, rows, strict=False):
        for place, (name, (value, low, high)) in enumerate(cells.items()):
            colour = f"C{names.index(name)}"
            ax.plot([low, high], [place, place], color=colour, linewidth=2)
            ax.plot([value], [place], "o", color=colour, markersize=4)
        ax.set_yticks(range(len(cells)), list(cells), fontsize=8)
        ax.set_ylim(len(cells) - 0.4, -0.6)
        ax.tick_params(axis="x", labelsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_title(heading, fontsize=9)
    for ax in list(axes.flat)[len(rows) :]:
        ax.set_axis_off()
    figure.suptitle(f"{benchmark}: value and 95 % interval", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    return path


def draw_series(
    path: Path,
    benchmark: str,
    series: str,
    rows: Sequence[tuple[str, Mapping[str, Interval]]],
    places: Mapping[str, int],
) -> Path:
    """Draw every number over the layers of an encoder, or over the steps of a training; others are dashed lines.

    Args:
        path: PNG to write.
        benchmark: Its name.
        series: What the places are, for the axis.
        rows: Heading of each number, and (value, low, high) of each encoder.
        places: Where each encoder of the series stands.

    Returns:
        The path.
    """
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(11, 2.1 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax, (heading, cells) in zip(axes.flat, rows, strict=False):
        ordered = sorted((places[name], *cells[name]) for name in cells if name in places)
        x, value, low, high = zip(*ordered, strict=True)
        ax.fill_between(x, low, high, alpha=0.2)
        ax.plot(x, value, "o-", markersize=3)
        others = [name for name in cells if name not in places]
        for i, name in enumerate(others):
            ax.axhline(cells[name][0], linestyle="--", linewidth=1, color=f"C{i + 1}", label=name)
        ax.set_title(heading, fontsize=9)
        ax.set_xlabel(series, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axes.flat[0].get_legend_handles_labels()[0]:
        axes.flat[0].legend(fontsize=7)
    for ax in list(axes.flat)[len(rows) :]:
        ax.set_axis_off()
    figure.suptitle(f"{benchmark}: by {series}, with 95 % intervals", fontsize=10)
    figure.savefig(path, dpi=90)
    return path
