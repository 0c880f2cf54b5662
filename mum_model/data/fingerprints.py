"""Perceptual fingerprints of pictures: alike for the same picture resized, recompressed or slightly re-exposed."""

from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np

SIDE = 8
FLAT = 3.0
"""Standard deviation of grey below which a picture shows too little to be told from others."""

NO_FINGERPRINT = 0

MAX_DISTANCE = 3
"""Bits in which fingerprints of the same picture may differ; found whole by four bands of 16 bits."""

BANDS = 4

MIN_SHARED = 0.2
"""Share of the smaller scene's frames that must be in the other for the two to count as near-duplicates."""

MIN_FRAMES = 2


def fingerprint(image: np.ndarray) -> int:
    """Difference hash: whether each of 8x8 cells is brighter than the one to its right.

    Args:
        image: RGB uint8 `[H, W, 3]`.

    Returns:
        64 bits, or `NO_FINGERPRINT` for a picture that is nearly flat.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    cells = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if cells.std() < FLAT:
        return NO_FINGERPRINT
    return int.from_bytes(np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes(), "big")


def near_duplicates(fingerprints: np.ndarray, scene: np.ndarray) -> list[tuple[int, int]]:
    """Scenes that show the same pictures.

    Args:
        fingerprints: Of every frame, uint64 `[N]`.
        scene: Number of the scene of each frame, `[N]`.

    Returns:
        Pairs of scenes, the smaller number first, sorted.
    """
    shared: dict[tuple[int, int], set[int]] = {}
    for a, b in _alike(fingerprints):
        first, second = sorted((int(scene[a]), int(scene[b])))
        if first != second:
            shared.setdefault((first, second), set()).update((a, b))
    sizes = Counter(scene.tolist())
    return sorted(pair for pair, frames in shared.items() if _is_duplicate(pair, frames, scene, sizes))


def _is_duplicate(pair: tuple[int, int], frames: set[int], scene: np.ndarray, sizes: Counter[int]) -> bool:
    smaller = min(pair, key=lambda number: sizes[number])
    count = sum(int(scene[frame]) == smaller for frame in frames)
    return count >= max(min(MIN_FRAMES, sizes[smaller]), MIN_SHARED * sizes[smaller])


def _alike(fingerprints: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of frames within MAX_DISTANCE: four bands cannot all differ in three bits (pigeonhole)."""
    usable = np.flatnonzero(fingerprints != NO_FINGERPRINT)
    bits = 64 // BANDS
    for band in range(BANDS):
        key = (fingerprints[usable] >> np.uint64(band * bits)) & np.uint64(2**bits - 1)
        order = np.argsort(key, kind="stable")
        for bucket in np.split(usable[order], np.flatnonzero(np.diff(key[order])) + 1):
            yield from _within_bucket(bucket, fingerprints)


def _within_bucket(bucket: np.ndarray, fingerprints: np.ndarray) -> Iterator[tuple[int, int]]:
    for position, frame in enumerate(bucket[:-1]):
        others = bucket[position + 1 :]
        distance = np.bitwise_count(fingerprints[others] ^ fingerprints[frame])
        for other in others[distance <= MAX_DISTANCE]:
            yield int(frame), int(other)
