"""Pictures of predicted cameras and points beside the true ones."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mum_model.evaluate.figures import save

SIDES = {"from above": (0, 2), "from the side": (2, 1)}
"""Which coordinates a picture shows, to the right and up; those of the first view: x right, y down, z forward."""


def draw_scene(
    path: Path,
    images: np.ndarray,
    true_cameras: np.ndarray,
    true_points: np.ndarray,
    predicted: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
) -> None:
    """Draw the views of a set, and its cameras and points as each encoder's model has them, from two sides.

    Args:
        path: PNG to write.
        images: The views, RGB uint8 `[N, side, side, 3]`.
        true_cameras: Centres `[N, 3]`; rows that are not-a-number are no camera.
        true_points: `[P, 3]`, the same.
        predicted: Centres `[N, 3]`, points `[P, 3]` and mean error of the relative poses in degrees, by encoder.
    """
    rows = -(-len(predicted) // 2)
    figure = Figure(figsize=(11, 1.5 + 2.6 * rows), layout="constrained")
    strip, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.2, 0.3 + 2.6 * rows])[:, 0]
    top = np.atleast_1d(strip.subplots(1, len(images)))
    for ax, image in zip(top, images, strict=True):
        ax.imshow(image)
    axes = below.subplots(rows, 4, squeeze=False)
    for ax in axes.flat[2 * len(predicted) :]:
        ax.set_axis_off()
    limits = np.concatenate([true_cameras, true_points])
    for place, (name, (cameras, points, error)) in enumerate(predicted.items()):
        for ax, (side, shown) in zip(axes.flat[2 * place :], SIDES.items(), strict=False):
            _draw_side(ax, shown, (true_cameras, true_points), (cameras, points), limits)
            ax.set_title(f"{name} {side}, mean error {error:.0f}°", fontsize=9)
    below.legend(
        *axes.flat[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4, markerscale=2
    )
    save(figure, np.concatenate([top, axes.ravel()]), path)


def _draw_side(
    ax: Axes,
    shown: tuple[int, int],
    true: tuple[np.ndarray, np.ndarray],
    predicted: tuple[np.ndarray, np.ndarray],
    limits: np.ndarray,
) -> None:
    (right, up), flip = shown, np.array([1, -1, 1])  # y points down
    true_cameras, true_points = (array * flip for array in true)
    cameras, points = (array * flip for array in predicted)
    ax.scatter(true_points[:, right], true_points[:, up], s=2, color="0.75", label="true points")
    ax.scatter(points[:, right], points[:, up], s=2, color="C0", alpha=0.6, label="predicted points")
    for truth, found in zip(true_cameras, cameras, strict=False):
        ax.plot([truth[right], found[right]], [truth[up], found[up]], color="C3", linewidth=0.6)
    ax.scatter(true_cameras[:, right], true_cameras[:, up], s=18, marker="^", color="black", label="true cameras")
    ax.scatter(cameras[:, right], cameras[:, up], s=14, marker="^", color="C3", label="predicted cameras")
    low, high = np.nanmin(limits * flip, axis=0), np.nanmax(limits * flip, axis=0)
    middle, reach = (low + high) / 2, 0.6 * (high - low).max() + 1e-6
    ax.set_xlim(middle[right] - reach, middle[right] + reach)
    ax.set_ylim(middle[up] - reach, middle[up] + reach)
    ax.set_aspect("equal")
