"""Point clouds against the truth: closed forms, and other libraries."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mum_model.evaluate.clouds import accuracy_and_completeness, refined_by_icp, similarity_between

RNG = np.random.default_rng(0)
TURN = Rotation.from_rotvec([0.3, -0.5, 1.0]).as_matrix()


def test_the_similarity_is_found_again_and_never_mirrors():
    points = RNG.normal(size=(50, 3))
    found = similarity_between(points, 2.5 * points @ TURN.T + [1, 2, 3])
    assert found.scale == pytest.approx(2.5)
    np.testing.assert_allclose(found.rotation, TURN, atol=1e-9)
    np.testing.assert_allclose(found(points), 2.5 * points @ TURN.T + [1, 2, 3], atol=1e-9)
    assert np.linalg.det(similarity_between(points, points * [1, 1, -1]).rotation) == pytest.approx(1)


def test_the_similarity_is_the_one_of_least_squares():
    """Umeyama's closed form, and no nearby similarity is better."""
    points, true = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3))
    found = similarity_between(points, true)
    a, b = points - points.mean(0), true - true.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.linalg.det(u @ vt)])
    np.testing.assert_allclose(found.rotation, u @ sign @ vt, atol=1e-9)
    assert found.scale == pytest.approx((d * np.diag(sign)).sum() / (a**2).sum())


def test_it_is_colmaps():
    import pycolmap

    points, true = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 3))
    found, theirs = similarity_between(points, true), pycolmap.estimate_sim3d(points, true)
    np.testing.assert_allclose(found(points), points @ theirs.matrix()[:, :3].T + theirs.matrix()[:, 3], atol=1e-9)


def test_points_in_one_place_all_go_to_the_middle():
    true = RNG.normal(size=(9, 3))
    np.testing.assert_allclose(similarity_between(np.ones((9, 3)), true)(np.ones((9, 3))), [true.mean(0)] * 9)


def test_points_on_a_line_go_to_the_nearest_line():
    line = np.linspace(0, 1, 9)[:, None] * [[1, 2, 3]]
    np.testing.assert_allclose(similarity_between(line, 2 * line @ TURN.T)(line), 2 * line @ TURN.T, atol=1e-9)


def test_icp_brings_a_cloud_back_in_any_unit():
    true = RNG.uniform(size=(4000, 3)) * [1, 1, 0.2]
    moved = true @ Rotation.from_rotvec([0.01, 0.02, -0.01]).as_matrix().T + [0.01, 0, -0.01]
    for unit in (1.0, 1000.0):
        np.testing.assert_allclose(refined_by_icp(moved * unit, true * unit, 0.2 * unit) / unit, true, atol=1e-4)


def test_icp_leaves_alone_what_is_beyond_its_threshold():
    true = RNG.uniform(size=(500, 3))
    far = true + np.array([5.0, 0, 0])
    np.testing.assert_array_equal(refined_by_icp(far, true, 0.1), far)


def test_distances_are_those_to_the_nearest():
    points, true = RNG.normal(size=(300, 3)), RNG.normal(size=(500, 3))
    every = np.linalg.norm(points[:, None] - true[None], axis=-1)
    accuracy, completeness = accuracy_and_completeness(points, true)
    assert accuracy == pytest.approx(np.median(every.min(axis=1)))
    assert completeness == pytest.approx(np.median(every.min(axis=0)))
    accuracy, completeness = accuracy_and_completeness(true[:100], true)  # accurate, and a fifth of it
    assert accuracy == 0
    assert completeness > 0
