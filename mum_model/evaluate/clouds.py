"""Point clouds against the truth: brought over it by a similarity, refined, and judged by nearest neighbours.

Umeyama's similarity is COLMAP's (pycolmap), point-to-point ICP is small_gicp's, the search for neighbours scipy's.
"""

from dataclasses import dataclass

import numpy as np
import pycolmap
import small_gicp
from scipy.spatial import cKDTree

MAX_ITERATIONS = 30
CONVERGED = 1e-6  # of the threshold, and in radians: ICP ends when a step is smaller


@dataclass(frozen=True)
class Similarity:
    """A scaled rigid transform.

    Attributes:
        scale: Positive, or 0 where all points fall onto one.
        rotation: `[3, 3]`.
        translation: `[3]`.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Transformed points, `[..., 3]`."""
        return self.scale * points @ self.rotation.T + self.translation


def similarity_between(points: np.ndarray, true: np.ndarray) -> Similarity:
    """The similarity of least squared distance between points that correspond (Umeyama, 1991).

    Args:
        points: `[P, 3]`.
        true: Where they truly are, `[P, 3]`.

    Returns:
        Takes points to the truth. Where there is none, as all points are predicted on a line or in one place, all go
        to the mean of the truth.
    """
    found = pycolmap.estimate_sim3d(points, true) if len(points) >= 3 else None
    if found is None or not np.isfinite(found.matrix()).all():
        return Similarity(0.0, np.eye(3), true.mean(axis=0))
    matrix = found.matrix()
    scale = float(found.scale)
    return Similarity(scale, matrix[:, :3] / scale, matrix[:, 3])


def refined_by_icp(points: np.ndarray, true: np.ndarray, threshold: float) -> np.ndarray:
    """Move a cloud rigidly onto another one, by point-to-point ICP.

    Args:
        points: `[P, 3]`, near the truth already.
        true: `[T, 3]`.
        threshold: Points farther than this from the truth do not pull, in its unit.

    Returns:
        The moved points, `[P, 3]`.
    """
    # In units of the threshold, so that the settings below mean the same for millimetres and metres.
    found = small_gicp.align(
        small_gicp.PointCloud(true / threshold),
        small_gicp.PointCloud(points / threshold),
        registration_type="ICP",
        max_correspondence_distance=1.0,
        max_iterations=MAX_ITERATIONS,
        rotation_epsilon=CONVERGED,
        translation_epsilon=CONVERGED,
    )
    moved = found.T_target_source
    if not np.isfinite(moved).all():
        return points
    return points @ moved[:3, :3].T + moved[:3, 3] * threshold


def accuracy_and_completeness(points: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """How far a cloud is from the truth, and the truth from the cloud.

    Args:
        points: `[P, 3]`.
        true: `[T, 3]`.

    Returns:
        Median distance of a point to the nearest true one, and of a true one to the nearest point.
    """
    return _median_distance(points, true), _median_distance(true, points)


def _median_distance(points: np.ndarray, others: np.ndarray) -> float:
    distances, _ = cKDTree(others).query(points)
    return float(np.median(distances))
