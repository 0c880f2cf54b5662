"""The numbers that people see of an evaluation, in the terminal and in the report."""

COLUMNS = {
    "matching_probe_epe": "probe EPE, px",
    "matching_probe_recall": "probe R@32",
    "matching_knn_epe": "kNN EPE, px",
    "matching_knn_recall": "kNN R@32",
    "pose_auc5": "pose AUC@5",
    "pose_auc10": "pose AUC@10",
    "pose_auc20": "pose AUC@20",
}
"""Numbers of an encoder in `evaluation/metrics.json` -> heading; errors are in pixels of an image of side 448."""


def cell(numbers: dict[str, float], key: str) -> str:
    """A number with its deviation over the seeds: errors to a tenth of a pixel, shares to a thousandth.

    Args:
        numbers: Of one encoder.
        key: One of COLUMNS.

    Returns:
        For instance `27.9 ± 0.4`.
    """
    digits = 1 if key.endswith("epe") else 3
    return f"{numbers[key]:.{digits}f} ± {numbers[key + '_std']:.{digits}f}"
