"""Numbers with their uncertainty: what was measured on each unit, and intervals by the bootstrap."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95

Statistic = Callable[[np.ndarray], float]


def mean(values: np.ndarray) -> float:
    """Mean over the units that have a value; not-a-number where none has."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class Scores:
    """What was measured of one encoder, for one number of a report.

    Attributes:
        values: What each unit (a pair of views, an image) gave, `[seeds, units, ...]`; not-a-number where it gave
            nothing, for instance a pair without a co-visible patch.
        groups: Scene of each unit, `[units]`: units of one scene are not independent, so scenes are drawn whole.
        statistic: Makes the number of the units of one seed.
    """

    values: np.ndarray
    groups: np.ndarray
    statistic: Statistic = mean

    @cached_property
    def value(self) -> float:
        """The number: the mean of the statistic over the seeds."""
        return float(np.mean([self.statistic(seed) for seed in self.values]))

    @cached_property
    def draws(self) -> np.ndarray:
        """The number in resamples of seeds and scenes, `[RESAMPLES]`.

        Scores of two encoders over the same units are resampled alike, so the difference of their draws is that of
        paired resamples. Where all units are of one scene, units are drawn instead: the interval then says nothing of
        other scenes.
        """
        groups = self.groups if len(np.unique(self.groups)) > 1 else np.arange(len(self.groups))
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        rng = np.random.default_rng(zlib.crc32(repr((len(self.groups), len(members))).encode()))
        draws = np.empty(RESAMPLES)
        for i in range(RESAMPLES):
            seeds = rng.integers(len(self.values), size=len(self.values))
            units = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
            once, times = np.unique(seeds, return_counts=True)
            draws[i] = np.average([self.statistic(self.values[seed][units]) for seed in once], weights=times)
        return draws

    @property
    def interval(self) -> tuple[float, float]:
        """Bootstrap interval of 95 % confidence (percentiles)."""
        return _percentiles(self.draws)

    def differs_from(self, other: "Scores") -> bool:
        """Whether the interval of the paired difference leaves zero out."""
        low, high = _percentiles(self.draws - other.draws)
        return low > 0 or high < 0


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
