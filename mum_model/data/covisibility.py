"""How much of a view another view sees: measured from depth, or guessed from time where nothing else is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mum_model.data.geometry import Camera, pixel_grid, warp

SAMPLES = 400
MIN_OVERLAP = 0.02  # less is not stored


@dataclass(frozen=True)
class Covisibility:
    """Ordered pairs of views of one scene that see the same surfaces, stored sparsely.

    Attributes:
        a: Position of view a in the scene, int32 `[P]`.
        b: Position of view b, int32 `[P]`.
        overlap: Share of a's surface that b sees, float32 `[P]`, in (0, 1].
        measure: `depth` where it was measured by warping depth (dense, or the sparse depth of SfM points), `time` where
            it is the nearness in capture order.
    """

    a: np.ndarray
    b: np.ndarray
    overlap: np.ndarray
    measure: str


def covisibility(cameras: Sequence[Camera | None]) -> Covisibility:
    """Co-visibility of all pairs of views of a scene.

    Args:
        cameras: One for each view in capture order, None where pose or depth is unknown.

    Returns:
        From depth where at least two views have a pose and depth, else from time.
    """
    posed = [i for i, camera in enumerate(cameras) if camera is not None and camera.depth.any()]
    return _by_depth(cameras, posed) if len(posed) >= 2 else _by_time(len(cameras))


def _by_depth(cameras: Sequence[Camera | None], posed: list[int]) -> Covisibility:
    found: list[tuple[int, int, float]] = []
    for a in posed:
        camera = cameras[a]
        assert camera is not None
        samples = _samples(camera.depth)
        for b in posed:
            other = cameras[b]
            assert other is not None
            if a != b:
                _, covisible = warp(samples, camera, other)
                found.append((a, b, float(covisible.mean())))
    return _sparse(found, "depth")


def _samples(depth: np.ndarray) -> np.ndarray:
    """Up to SAMPLES pixels of known depth, spread evenly, (x, y) `[N, 2]`."""
    known = pixel_grid(*depth.shape)[depth > 0]
    return known[np.linspace(0, len(known) - 1, min(SAMPLES, len(known))).astype(int)]


TIME_REACH = 12  # frames apart at which two views of a sequence count as no longer co-visible


def _by_time(count: int) -> Covisibility:
    found = [
        (a, b, 1 - abs(a - b) / TIME_REACH)
        for a in range(count)
        for b in range(max(0, a - TIME_REACH), min(count, a + TIME_REACH + 1))
        if a != b
    ]
    return _sparse(found, "time")


def _sparse(found: list[tuple[int, int, float]], measure: str) -> Covisibility:
    kept = [row for row in found if row[2] >= MIN_OVERLAP]
    a, b, overlap = zip(*kept, strict=True) if kept else ((), (), ())
    return Covisibility(np.array(a, np.int32), np.array(b, np.int32), np.array(overlap, np.float32), measure)
