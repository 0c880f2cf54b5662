"""What a variant costs the task: matches between views by the nearest neighbour of its tokens, against depth's truth.

It is the plainest of the field's measures and needs no training: every patch of view a is matched to the patch of view
b with the most similar token. Views are the dataset's stored frames, so that nothing but the variant differs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mum_model.data.geometry import warp
from mum_model.data.scenes import SceneIndex

PAPER_SIDE = 448
"""Errors are in pixels of an image with this shorter side, as in the paper's tables."""

MAX_SIDE = 448
"""Larger frames are cropped to this, so that a check takes seconds."""

SPLIT = "val"
"""Test scenes stay unseen by every choice."""

MIN_OVERLAP = 0.4

Encode = Callable[[np.ndarray], np.ndarray]
"""Patch tokens `[N, L, D]` of pixels, RGB uint8 `[N, H, W, 3]`."""


@dataclass(frozen=True)
class Pair:
    """Two views, and where the patches of the first truly are in the second.

    Attributes:
        images: Pixels of both, RGB uint8 `[H, W, 3]`; sides are multiples of the patch size.
        target: (x, y) in view b of the centre of each patch of a, in pixels, `[L, 2]`.
        covisible: Which of them are known, seen by both and inside, `[L]`.
    """

    images: tuple[np.ndarray, np.ndarray]
    target: np.ndarray
    covisible: np.ndarray


def draw_pairs(index: SceneIndex, patch_size: int, count: int, seed: int) -> list[Pair]:
    """Pairs of validation views whose matches are known.

    Args:
        index: The dataset.
        patch_size: Of the encoder, in pixels.
        count: How many at most.
        seed: Decides which.

    Returns:
        The pairs; none where the dataset has no depth or no poses.
    """
    a, b, overlap = index.covisible_pairs(SPLIT)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(overlap >= MIN_OVERLAP))[:count]
    return list(_known(index, [(int(a[i]), int(b[i])) for i in order], patch_size))


def cropped(image: np.ndarray, patch_size: int) -> np.ndarray:
    """The top left of an image `[H, W, 3]` that whole patches fill, so that positions in it stay what they are."""
    height, width = (min(side, MAX_SIDE) // patch_size * patch_size for side in image.shape[:2])
    return image[:height, :width]


def end_point_error(pairs: Sequence[Pair], encode: Encode, patch_size: int) -> float:
    """Mean distance between matched and true positions: the mean over the pairs of each pair's mean.

    Args:
        pairs: At least one.
        encode: The encoder.
        patch_size: Of the encoder, in pixels.

    Returns:
        The error in pixels of an image with a shorter side of 448.
    """
    return float(np.mean([_pair_error(pair, encode, patch_size) for pair in pairs]))


def _known(index: SceneIndex, rows: Sequence[tuple[int, int]], patch_size: int) -> Iterator[Pair]:
    for a, b in rows:
        camera_a, camera_b = index.camera(a), index.camera(b)
        if camera_a is None or camera_b is None:
            continue
        images = cropped(index.image(a), patch_size), cropped(index.image(b), patch_size)
        target, covisible = warp(_centres(images[0], patch_size), camera_a, camera_b)
        with np.errstate(invalid="ignore"):
            inside = ((target >= 0) & (target < images[1].shape[1::-1])).all(-1)
        if (covisible & inside).any():
            yield Pair(images, target, covisible & inside)


def _pair_error(pair: Pair, encode: Encode, patch_size: int) -> float:
    a, b = (_normalised(encode(image[np.newaxis])[0]) for image in pair.images)
    matched = _centres(pair.images[1], patch_size)[(a[pair.covisible] @ b.T).argmax(axis=1)]
    error = np.linalg.norm(matched - pair.target[pair.covisible], axis=1).mean()
    return error * PAPER_SIDE / min(pair.images[0].shape[:2])


def _normalised(tokens: np.ndarray) -> np.ndarray:
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def _centres(image: np.ndarray, patch_size: int) -> np.ndarray:
    """(x, y) of each patch centre in pixels, row by row, `[L, 2]`."""
    rows, columns = (side // patch_size for side in image.shape[:2])
    y, x = np.mgrid[:rows, :columns]
    return (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * patch_size
