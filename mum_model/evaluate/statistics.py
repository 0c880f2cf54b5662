"""How the numbers of a report are made of what each unit gave, where it is not their mean."""

from functools import partial

import numpy as np

from mum_model.evaluate.metrics import ANGLES, area_under_recall
from mum_model.evaluate.scores import Statistic, mean


def _auc(errors: np.ndarray, threshold: float) -> float:
    """AUC over the pairs whose pose is known."""
    known = errors[~np.isnan(errors)]
    return area_under_recall(known, threshold) if len(known) else float("nan")


def mean_iou(counts: np.ndarray) -> float:
    """Mean over the classes that occur of intersection over union, counted over all images.

    Args:
        counts: Pixels of intersection and union of each image and class, `[images, classes, 2]`.

    Returns:
        0..1.
    """
    intersection, union = counts.sum(axis=0).T
    occurs = union > 0
    return float((intersection[occurs] / union[occurs]).mean()) if occurs.any() else float("nan")


STATISTICS: dict[str, Statistic] = {
    **{f"pose.auc{angle}": partial(_auc, threshold=angle) for angle in ANGLES},
    **{f"pose_head.auc{angle}": partial(_auc, threshold=angle) for angle in ANGLES},
    "multiview.auc30": partial(_auc, threshold=30),
    "segmentation.knn_miou": mean_iou,
    "segmentation.linear_miou": mean_iou,
}


def statistic_of(number: str) -> Statistic:
    """How a number is made of its units.

    Args:
        number: `TASK.NUMBER`.

    Returns:
        The mean, unless it is one of the above.
    """
    return STATISTICS.get(number, mean)
