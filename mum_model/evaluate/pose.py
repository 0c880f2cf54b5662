"""Two-view relative pose from matches, by a robust estimator (poselib's LO-RANSAC on the five-point solver)."""

from dataclasses import dataclass

import numpy as np
import poselib

from mum_model.evaluate.metrics import NO_ESTIMATE, relative_pose_error

MAX_EPIPOLAR_ERROR = 2.0  # pixels at the evaluated resolution


@dataclass(frozen=True)
class PosedPair:
    """What is known of a pair of views.

    Attributes:
        intrinsics_a: Of the evaluated image of view a, `[3, 3]`.
        intrinsics_b: Of view b.
        pose: Takes points of a's camera to b's, `[3, 4]`.
    """

    intrinsics_a: np.ndarray
    intrinsics_b: np.ndarray
    pose: np.ndarray


def pose_error(matches_a: np.ndarray, matches_b: np.ndarray, pair: PosedPair, side: int) -> float:
    """Error of the relative pose estimated from matches.

    Args:
        matches_a: (x, y) in view a, `[M, 2]`.
        matches_b: (x, y) in view b, `[M, 2]`.
        pair: The truth.
        side: Side of the evaluated images in pixels.

    Returns:
        In degrees, see `relative_pose_error`; 180 without an estimate.
    """
    if len(matches_a) < 5:
        return NO_ESTIMATE
    estimate, _ = poselib.estimate_relative_pose(
        matches_a.astype(np.float64),
        matches_b.astype(np.float64),
        _camera(pair.intrinsics_a, side),
        _camera(pair.intrinsics_b, side),
        {"max_epipolar_error": MAX_EPIPOLAR_ERROR, "seed": 0},
        {},
    )
    return relative_pose_error(np.column_stack([estimate.R, estimate.t]), pair.pose)


def _camera(intrinsics: np.ndarray, side: int) -> dict[str, object]:
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    return {"model": "PINHOLE", "width": side, "height": side, "params": [fx, fy, cx, cy]}
