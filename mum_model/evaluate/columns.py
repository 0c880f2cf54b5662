"""The numbers of an evaluation: what people call them, which way is better, and how they are written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """How people see a number.

    Attributes:
        heading: Its name, with the unit.
        lower_is_better: Whether less is better.
        digits: Behind the point.
    """

    heading: str
    lower_is_better: bool
    digits: int


def _error(heading: str, digits: int = 1) -> Column:
    return Column(heading, lower_is_better=True, digits=digits)


def _share(heading: str) -> Column:
    return Column(heading, lower_is_better=False, digits=3)


COLUMNS = {
    "matching.probe_epe": _error("probe EPE, px"),
    "matching.probe_pck32": _share("probe R@32"),
    "matching.probe_pck16": _share("probe PCK@16"),
    "matching.probe_pck8": _share("probe PCK@8"),
    "matching.knn_epe": _error("kNN EPE, px"),
    "matching.knn_pck32": _share("kNN R@32"),
    "matching.knn_pck16": _share("kNN PCK@16"),
    "matching.knn_pck8": _share("kNN PCK@8"),
    "pose.auc5": _share("pose AUC@5"),
    "pose.auc10": _share("pose AUC@10"),
    "pose.auc20": _share("pose AUC@20"),
    "pose_head.auc5": _share("pose head AUC@5"),
    "pose_head.auc10": _share("pose head AUC@10"),
    "pose_head.auc20": _share("pose head AUC@20"),
    "multiview.auc30": _share("multi-view pose AUC@30"),
    "multiview.accuracy": _error("points, accuracy", 3),
    "multiview.completeness": _error("points, completeness", 3),
    "depth.delta1": _share("depth δ1"),
    "depth.rmse": _error("depth RMSE", 3),
    "depth.abs_rel": _error("depth AbsRel", 3),
    "normals.mean": _error("normals, mean angle"),
    "normals.within11": _share("normals < 11.25°"),
    "normals.within22": _share("normals < 22.5°"),
    "normals.within30": _share("normals < 30°"),
    "classification.knn_top1": _share("kNN top-1"),
    "classification.linear_top1": _share("linear top-1"),
    "segmentation.knn_miou": _share("kNN mIoU"),
    "segmentation.linear_miou": _share("linear mIoU"),
}
"""`TASK.NUMBER` -> how it is shown. In `metrics.json` the name of the benchmark stands before it."""

INTERVAL = ("_low", "_high")
"""What is appended to a number's name for the ends of its interval."""


def column_of(key: str) -> Column:
    """How a number is shown.

    Args:
        key: `BENCHMARK.TASK.NUMBER`.

    Returns:
        Its column.
    """
    return COLUMNS[key.partition(".")[2]]


def numbers_of(metrics: dict[str, float]) -> list[str]:
    """The numbers of an encoder without the ends of their intervals, in the order of a report.

    Args:
        metrics: Of one encoder, by `BENCHMARK.TASK.NUMBER`.

    Returns:
        Their keys, benchmark by benchmark.
    """
    benchmarks = list(dict.fromkeys(key.partition(".")[0] for key in metrics))
    return [f"{benchmark}.{key}" for benchmark in benchmarks for key in COLUMNS if f"{benchmark}.{key}" in metrics]


def cell(metrics: dict[str, float], key: str) -> str:
    """A number with its interval.

    Args:
        metrics: Of one encoder.
        key: `BENCHMARK.TASK.NUMBER`.

    Returns:
        For instance `27.9 [26.1, 29.8]`.
    """
    digits = column_of(key).digits
    value, low, high = (f"{metrics[key + end]:.{digits}f}" for end in ("", *INTERVAL))
    return f"{value} [{low}, {high}]"
