"""Numbers that judge matches and poses."""

from collections.abc import Sequence

import numpy as np

ANGLES = (5, 10, 20)  # degrees up to which poses of two views are judged, as in the field's tables
NO_ESTIMATE = 180.0
NO_BASELINE = 1e-6  # length of a pose's translation below which its direction is rounding


def rotation_error(estimated: np.ndarray, true: np.ndarray) -> float:
    """Angle of the rotation that is left between two rotations.

    Args:
        estimated: Rotation matrix `[3, 3]`.
        true: Rotation matrix `[3, 3]`.

    Returns:
        Degrees, 0..180.
    """
    residual = estimated.T @ true
    # atan2 of sine and cosine: the arc cosine alone loses half of the digits near 0 and 180 degrees.
    axis = np.array([residual[2, 1] - residual[1, 2], residual[0, 2] - residual[2, 0], residual[1, 0] - residual[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(axis), np.trace(residual) - 1)))


def translation_error(estimated: np.ndarray, true: np.ndarray) -> float:
    """Angle between two directions of translation; their lengths cannot be known from two views.

    Args:
        estimated: `[3]`.
        true: `[3]`.

    Returns:
        Degrees, 0..180: an estimate that points the wrong way counts as wrong.
    """
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(estimated, true)), np.dot(estimated, true))))


def relative_pose_error(estimated: np.ndarray, true: np.ndarray) -> float:
    """Error of a relative pose whose translation is known up to its length.

    Args:
        estimated: `[3, 4]`, its rotation proper.
        true: `[3, 4]`.

    Returns:
        The larger of the errors of rotation and of the direction of translation, in degrees; 180 where the estimate is
        not a number or does not move although the truth does. Where the camera only turned there is no direction, and
        the error is that of the rotation.
    """
    if not np.isfinite(estimated).all():
        return NO_ESTIMATE
    turned = rotation_error(estimated[:, :3], true[:, :3])
    if np.linalg.norm(true[:, 3]) < NO_BASELINE:
        return turned
    if not np.linalg.norm(estimated[:, 3]):
        return NO_ESTIMATE
    return max(turned, translation_error(estimated[:, 3], true[:, 3]))


def area_under_recall(errors: Sequence[float], threshold: float) -> float:
    """Area under the curve of recall over the error, up to a threshold, as a share of the whole (SuperGlue's AUC@t).

    Args:
        errors: One for each pair, infinite or not-a-number where there is no estimate.
        threshold: Where the curve ends, in the unit of the errors.

    Returns:
        0..1.
    """
    every = np.asarray(errors, float)
    found = np.sort(every[every < threshold])  # what is no number is below nothing
    recall = np.arange(1, len(found) + 1) / len(every)
    x = np.concatenate([[0.0], found, [threshold]])
    y = np.concatenate([[0.0], recall, recall[-1:] if len(recall) else [0.0]])
    return float(np.trapezoid(y, x) / threshold)
