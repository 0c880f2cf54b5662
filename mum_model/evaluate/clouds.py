"""Point clouds against the truth: brought over it by a similarity, refined, and judged by nearest neighbours.

The rotation and the search for neighbours are scipy's, point-to-point ICP is small_gicp's.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import small_gicp
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

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
        Takes points to the truth; of scale 0 where all points are in one place.
    """
    centre, true_centre = points.mean(axis=0), true.mean(axis=0)
    around, true_around = points - centre, true - true_centre
    size = np.square(around).sum()
    if size == 0:
        return Similarity(0.0, np.eye(3), true_centre)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of points on a line, about which any turn is as good
        rotation = Rotation.align_vectors(true_around, around)[0].as_matrix()
    scale = float((true_around * (around @ rotation.T)).sum() / size)
    return Similarity(scale, rotation, true_centre - scale * rotation @ centre)


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
