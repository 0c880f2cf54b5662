"""What a report makes of numbers side by side: who leads, what is tied, and which units its pictures show."""

import numpy as np

from mum_model.evaluate.page import Judged, table_of
from mum_model.evaluate.parts import BenchmarkCard, EncoderCard, Part
from mum_model.evaluate.scores import Scores
from mum_model.evaluate.task import choose

NUMBER = "matching.knn_epe"


def judged(**values):
    """Encoders of whom each unit of a benchmark gave these errors; every unit is a scene of its own."""
    parts = {}
    for name, errors in values.items():
        scores = Scores(np.array([errors]), np.arange(len(errors)))
        card = EncoderCard(name, name, [name], -1, None, 0)
        part = Part(card, BenchmarkCard("rooms", {}, []), [], {}, {NUMBER: scores}, {})
        parts[name] = Judged(card, [part])
    return parts


def marks(**values):
    (row,) = table_of("rooms", judged(**values))
    return [mark for _, mark in row.cells.values()]


def test_the_best_wins_and_what_cannot_be_told_from_it_is_tied():
    rng = np.random.default_rng(0)
    errors = rng.normal(10, 1, 50)
    noisy = errors + 0.05 + rng.normal(0, 3, 50)
    assert marks(near=errors, noisy=noisy, far=errors + 5) == ["best", "tied", ""]


def test_what_looks_the_same_is_marked_alike():
    """An exported encoder gives what its run gives but for rounding, in every unit a little less."""
    errors = np.arange(1.0, 10)
    assert marks(run=errors, served=errors - 1e-6, far=errors + 9) == ["best", "best", ""]


def test_nobody_leads_where_all_are_alike_or_one_is_alone():
    assert marks(first=np.zeros(9), second=np.zeros(9)) == ["", ""]
    assert marks(only=np.arange(5.0)) == [""]


def test_pictures_are_spread_over_the_order_and_then_show_the_worst():
    errors = np.array([1.0, 9, 2, np.nan, 8, 0, 7, 3, 4])
    few = choose(np.arange(9), errors, 2)
    assert few.units.tolist() == [0, 8, 1]
    assert few.failed.tolist() == [False, False, True]
    many = choose(np.arange(9)[::-1], errors, 6)  # of the three that are left one has no error
    assert many.units[[0, 5]].tolist() == [8, 0]
    assert many.failed.sum() == 2
    assert 3 not in many.units[many.failed]
    assert len(set(many.units.tolist())) == len(many.units)
