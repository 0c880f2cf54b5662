"""Numbers of a stage as a KFP `Metrics` artifact."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from mum_model.files import write_json


def log_numbers(metrics: dsl.Metrics, record: Mapping[str, Any]) -> None:
    """Fill a metrics artifact with the numbers of a record.

    The numbers are also written as a file: KFP takes an artifact without one for missing and never finds its task in
    the cache.

    Args:
        metrics: The artifact.
        record: Numbers, nested or flat; what is not a number is left out.
    """
    numbers = dict(_numbers(record))
    for name, value in numbers.items():
        metrics.log_metric(name, value)
    write_json(Path(metrics.path), numbers)


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names joined by dots, and values."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
