"""Pictures of an evaluation: matches, error maps and features, a row an encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mum_model.evaluate.matching import PatchGrid

matplotlib.use("Agg")

Interval = tuple[float, float, float]

WORST = 128.0  # error in pixels at 448 at which the colour scale ends
KEPT_SIDE = 192  # pixels: pictures show views no larger, so no more is kept of them


def kept_view(image: np.ndarray) -> np.ndarray:
    """An image as small as pictures show it.

    Args:
        image: RGB uint8 `[side, side, 3]`.

    Returns:
        The same, of `KEPT_SIDE` at most.
    """
    return cv2.resize(image, (KEPT_SIDE,) * 2, interpolation=cv2.INTER_AREA) if len(image) > KEPT_SIDE else image


def kept_map(values: np.ndarray) -> np.ndarray:
    """A map of numbers or labels as small as pictures show it, each pixel that of one pixel.

    Args:
        values: `[side, side]`.

    Returns:
        The same, of `KEPT_SIDE` at most.
    """
    side = len(values)
    places = ((np.arange(min(side, KEPT_SIDE)) + 0.5) * side / min(side, KEPT_SIDE)).astype(int)
    return values[np.ix_(places, places)]


def principal_colours(features: Tensor, grid: PatchGrid) -> np.ndarray:
    """The first three principal components of the tokens of two or more views as colours, the same map for all.

    Args:
        features: Patch tokens `[N, L, D]`.
        grid: The patches.

    Returns:
        RGB uint8 `[N, rows, columns, 3]`.
    """
    tokens = features.flatten(0, 1).float()
    tokens = tokens - tokens.mean(dim=0)
    _, directions = torch.linalg.eigh(tokens.T @ tokens)  # from the least to the largest
    # The sign of a component is arbitrary: the largest weight points up, so that pictures repeat.
    top = directions.T[-3:].flip(0)
    top = top * top.gather(1, top.abs().argmax(dim=1, keepdim=True)).sign()
    colours = tokens @ top.T
    low, high = colours.quantile(0.02, dim=0), colours.quantile(0.98, dim=0)
    colours = ((colours - low) / (high - low)).clamp(0, 1).nan_to_num(0)
    return (255 * colours).byte().reshape(len(features), grid.rows, grid.columns, 3).cpu().numpy()


@dataclass(frozen=True)
class Matched:
    """What a picture shows of the matches of one encoder.

    Attributes:
        positions: Where the patches of the left view were found in the right one, (x, y) as shares of its side
            `[L, 2]`.
        error: Of each patch in pixels at 448, not-a-number where not co-visible, `[L]`.
        colours: Principal components of both views, RGB uint8 `[2, rows, columns, 3]`.
    """

    positions: np.ndarray
    error: np.ndarray
    colours: np.ndarray


def draw_pair(path: Path, images: np.ndarray, matched: Mapping[str, Matched]) -> None:
    """Draw one pair of views: matches, error and features of each encoder.

    Args:
        path: PNG to write.
        images: The two views, RGB uint8 `[2, side, side, 3]`.
        matched: By name.
    """
    figure = Figure(figsize=(11, 2.9 * len(matched)), layout="constrained")
    axes = figure.subplots(len(matched), 3, squeeze=False, width_ratios=[2, 1.15, 2])
    for row, (name, one) in zip(axes, matched.items(), strict=True):
        _draw_matches(row[0], images, one)
        _draw_error(row[1], one.error.reshape(one.colours.shape[1:3]))
        row[2].imshow(np.concatenate(list(one.colours), axis=1), interpolation="nearest")
        row[0].set_ylabel(name, fontsize=12)
        known = np.isfinite(one.error).any()
        mean = f"mean error {np.nanmean(one.error):.0f} px at 448" if known else "true matches unknown"
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


def _draw_matches(ax: Axes, images: np.ndarray, one: Matched) -> None:
    """Lines from the patches of the left view to where they were found, green where right, red where wrong."""
    ax.imshow(np.concatenate(list(images), axis=1), interpolation="bilinear")
    rows, columns = one.colours.shape[1:3]
    y, x = np.indices((rows, columns)).reshape(2, -1) + 0.5
    start, side = np.stack([x / columns, y / rows], axis=-1), images.shape[1]
    known = np.flatnonzero(np.isfinite(one.error))
    drawn = known[:: max(1, len(known) // 40)]
    lines = np.stack([start[drawn], one.positions[drawn] + [1, 0]], axis=1) * side
    colours = matplotlib.colormaps["RdYlGn_r"](np.clip(one.error[drawn] / WORST, 0, 1))
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
