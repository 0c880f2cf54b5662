"""Intervals against closed forms, and the AUC against an independent computation."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import norm

from mum_model.evaluate.metrics import area_under_recall, rotation_error, translation_error
from mum_model.evaluate.scores import Scores
from mum_model.evaluate.statistics import statistic_of


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(5, 2, (1, 400))
    low, high = Scores(values, np.arange(400)).interval
    half = norm.ppf(0.975) * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_units_of_one_scene_count_once():
    """Ten copies of each unit add no knowledge: the interval stays that of the scenes."""
    scenes = np.random.default_rng(0).normal(5, 2, 40)
    alone = Scores(scenes[None], np.arange(40)).interval
    copied = Scores(np.repeat(scenes, 10)[None], np.repeat(np.arange(40), 10)).interval
    ignored = Scores(np.repeat(scenes, 10)[None], np.arange(400)).interval
    assert np.subtract(*copied[::-1]) == pytest.approx(np.subtract(*alone[::-1]), rel=0.1)
    assert np.subtract(*ignored[::-1]) < 0.5 * np.subtract(*alone[::-1])


def test_seeds_widen_the_interval():
    values = np.zeros((3, 50)) + np.array([[0.0], [1.0], [2.0]])
    low, high = Scores(values, np.arange(50)).interval
    assert (low, high) == (0, 2)
    assert Scores(values, np.arange(50)).value == 1


def test_differences_are_paired():
    """Two encoders that differ little on units that differ much: intervals overlap, the difference is certain."""
    units = np.random.default_rng(0).normal(100, 30, (1, 60))
    worse = units + np.random.default_rng(1).normal(1, 0.5, (1, 60))
    first, second = Scores(units, np.arange(60)), Scores(worse, np.arange(60))
    assert first.interval[1] > second.interval[0]
    assert first.differs_from(second)
    assert not first.differs_from(Scores(units + np.random.default_rng(2).normal(0, 9, (1, 60)), np.arange(60)))


def test_units_without_a_value_are_left_out_and_none_at_all_is_no_number():
    values = np.array([[1.0, np.nan, 3.0]])
    assert Scores(values, np.arange(3)).value == 2
    nothing = Scores(np.full((1, 3), np.nan), np.arange(3))
    assert np.isnan(nothing.value)
    assert np.isnan(nothing.interval).all()


def test_the_auc_is_the_area_by_fine_integration():
    """SuperGlue's curve: recall rises linearly from one error to the next, and is flat after the last."""
    rng = np.random.default_rng(0)
    for threshold in (5, 10, 20):
        errors = rng.gamma(1.5, 8, 37)
        found = np.sort(errors[errors < threshold])
        grid = np.linspace(0, threshold, 200_001)
        curve = np.interp(grid, np.r_[0, found], np.arange(len(found) + 1) / 37)
        assert area_under_recall(errors, threshold) == pytest.approx(curve.mean(), abs=1e-4)
        assert statistic_of(f"pose.auc{threshold}")(np.r_[errors, np.nan]) == pytest.approx(curve.mean(), abs=1e-4)


def test_pose_errors_agree_with_scipy():
    rotations = Rotation.random(20, rng=np.random.default_rng(0))
    for a, b in zip(rotations[:10], rotations[10:], strict=True):
        expected = np.degrees((a.inv() * b).magnitude())
        assert rotation_error(a.as_matrix(), b.as_matrix()) == pytest.approx(expected, abs=1e-9)
        turned = a.apply([0, 0, 3.0])
        angle = Rotation.align_vectors([turned], [[0, 0, 1.0]])[0].magnitude()
        assert translation_error(turned, np.array([0, 0, 1.0])) == pytest.approx(np.degrees(angle), abs=1e-6)
