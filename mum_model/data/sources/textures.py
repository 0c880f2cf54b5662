"""Textures of rendered rooms: they repeat within a surface, and share the few colours of their room."""

from collections.abc import Callable

import cv2
import numpy as np

TEXTURE_SIZE = 128
"""Pixels a side of one repeat."""

COLOURS = 8


def palette(rng: np.random.Generator) -> np.ndarray:
    """Colours of a scene: few, so that surfaces share them.

    Args:
        rng: Decides.

    Returns:
        RGB in 0..1, `[COLOURS, 3]`.
    """
    hue = rng.uniform(0, 180, COLOURS)
    hsv = np.stack([hue, rng.uniform(40, 200, COLOURS), rng.uniform(60, 250, COLOURS)], axis=1)
    return cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0] / 255.0


def texture(rng: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """A texture that repeats without a seam.

    Args:
        rng: Decides.
        colours: Of the scene, `[COLOURS, 3]`.

    Returns:
        RGB in 0..1, float32 `[TEXTURE_SIZE, TEXTURE_SIZE, 3]`.
    """
    patterns: list[Callable[[np.random.Generator], np.ndarray]] = [
        _tiles,
        _stripes,
        _noise,
        _noise,
        _noise,
        _motif,
        _motif,
    ]
    low, high, grout = colours[rng.permutation(COLOURS)[:3]]
    weight = patterns[rng.integers(len(patterns))](rng)[..., None]
    grain = _noise(rng)[..., None]
    return ((1 - weight) * low + weight * high + 0.7 * (grain - 0.5) * grout).clip(0, 1).astype(np.float32)


def atlas(textures: list[np.ndarray]) -> np.ndarray:
    """Textures above one another, each with a border of its own other side, so that bilinear look-up wraps.

    Args:
        textures: float32 `[TEXTURE_SIZE, TEXTURE_SIZE, 3]` each.

    Returns:
        float32 `[textures * (TEXTURE_SIZE + 2), TEXTURE_SIZE + 2, 3]`.
    """
    return np.concatenate([np.pad(texture, ((1, 1), (1, 1), (0, 0)), mode="wrap") for texture in textures])


def first_row(number: int) -> float:
    """Where a texture begins in the atlas.

    Args:
        number: Which one.

    Returns:
        Row of its upper edge as `cv2.remap` counts them, from the centre of the first; its border lies before it.
    """
    return number * (TEXTURE_SIZE + 2) + 0.5


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Periodic noise with a falling spectrum, in 0..1."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TEXTURE_SIZE), np.fft.fftfreq(TEXTURE_SIZE)))
    spectrum = (
        np.fft.fft2(rng.normal(size=(TEXTURE_SIZE, TEXTURE_SIZE))) / np.maximum(frequency, 1 / TEXTURE_SIZE) ** 1.6
    )
    values = np.fft.ifft2(spectrum).real
    return 1 / (1 + np.exp(-2.5 * (values - values.mean()) / values.std()))


def _tiles(rng: np.random.Generator) -> np.ndarray:
    count = int(rng.choice([2, 4]))
    cell = np.indices((TEXTURE_SIZE, TEXTURE_SIZE)) * count // TEXTURE_SIZE
    return (cell.sum(0) % 2).astype(float)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    position = np.arange(TEXTURE_SIZE) / TEXTURE_SIZE * int(rng.choice([2, 3, 4]))
    stripe = np.tile((position % 1 < rng.uniform(0.3, 0.7)).astype(float), (TEXTURE_SIZE, 1))
    return stripe if rng.random() < 0.5 else stripe.T


def _motif(rng: np.random.Generator) -> np.ndarray:
    """A few discs and bars, the same in every repeat."""
    canvas = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE), np.float32)
    for _ in range(rng.integers(2, 5)):
        centre = rng.integers(0, TEXTURE_SIZE, 2)
        cv2.circle(canvas, centre.tolist(), int(rng.integers(10, 28)), float(rng.random() < 0.75), -1)
    for _ in range(rng.integers(0, 3)):
        start = rng.integers(0, TEXTURE_SIZE, 2)
        cv2.line(canvas, start.tolist(), rng.integers(0, TEXTURE_SIZE, 2).tolist(), 1.0, int(rng.integers(4, 12)))
    return canvas.astype(float)
