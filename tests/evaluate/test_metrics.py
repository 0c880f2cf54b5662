"""Metrics against closed forms and degenerate cases."""

import numpy as np
import pytest
import torch

from mum_model.evaluate.features import Features
from mum_model.evaluate.matching import (
    Pairs,
    PatchGrid,
    ProbeSettings,
    correlate,
    end_point_errors,
    match,
    predict,
    train_probes,
)
from mum_model.evaluate.metrics import area_under_recall, rotation_error, translation_error
from mum_model.evaluate.pose import PosedPair, pose_error
from mum_model.evaluate.views import Square

GRID = PatchGrid(rows=4, columns=4, patch_size=8)


def turn(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("angle", [0.0, 1e-5, 5.0, 90.0, 179.999, 180.0])
def test_rotation_error_is_the_angle(angle):
    assert rotation_error(turn(10), turn(10 + angle)) == pytest.approx(angle, abs=1e-9)


def test_translation_error_is_blind_to_length_but_not_to_sign():
    assert translation_error(np.array([0, 0, 3.0]), np.array([0, 0, 0.1])) == 0
    assert translation_error(np.array([1.0, 0, 0]), np.array([0, 2.0, 0])) == pytest.approx(90)
    assert translation_error(np.array([1.0, 0, 0]), np.array([-1.0, 0, 0])) == pytest.approx(180)


def test_area_under_recall():
    assert area_under_recall([0.0, 0.0], 5) == pytest.approx(1.0)
    assert area_under_recall([180.0, np.inf, np.nan], 5) == 0
    assert area_under_recall([0.0, 180.0], 5) == pytest.approx(0.5)
    # One pair at 2.5 of 5: recall rises linearly to 1 at 2.5 and stays there.
    assert area_under_recall([2.5], 5) == pytest.approx((0.5 * 2.5 * 1 + 2.5 * 1) / 5)


def pairs_where(target, covisible=None):
    count, length = target.shape[:2]
    covisible = torch.ones(count, length, dtype=torch.bool) if covisible is None else covisible
    rows = torch.arange(count)
    return Pairs(a=2 * rows, b=2 * rows + 1, target=target, covisible=covisible, scene=np.array(["s"] * count))


def test_unique_tokens_find_themselves():
    tokens = torch.eye(16)[None].repeat(2, 1, 1) * 100
    tokens[1] = tokens[0][torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    positions, confidence = predict(correlate(tokens[0], tokens[1]) * 10, GRID)
    truth = GRID.centres[tokens[1].argmax(dim=-1).argsort()]
    torch.testing.assert_close(positions, truth, rtol=0, atol=1e-3)
    assert (confidence > 0.99).all()


def test_prediction_averages_the_best_cell_with_its_neighbours_only():
    logits = torch.full((1, 16), -50.0)
    logits[0, 5], logits[0, 6], logits[0, 15] = 1.0, 1.0 - np.log(3), 0.9
    positions, _ = predict(logits, GRID)
    assert positions[0].tolist() == pytest.approx([12 + 8 * 0.25, 12], abs=1e-4)


def test_errors_are_in_pixels_at_448_over_covisible_patches():
    target = GRID.centres[None].clone()
    covisible = torch.zeros(1, 16, dtype=torch.bool)
    covisible[0, :2] = True
    shifted = target + torch.tensor([3.0, 4.0])
    (errors,) = end_point_errors(shifted, pairs_where(target, covisible), GRID)
    assert errors.tolist() == pytest.approx([5 * 448 / 32] * 2)
    (none,) = end_point_errors(shifted, pairs_where(target, torch.zeros(1, 16, dtype=torch.bool)), GRID)
    assert len(none) == 0


def test_cells_hold_their_pixels():
    assert GRID.cell(torch.tensor([[0.0, 0.0], [7.9, 8.0], [31.9, 31.9], [99.0, -5.0]])).tolist() == [0, 4, 15, 3]
    assert torch.equal(GRID.cell(GRID.centres), torch.arange(16))


def test_the_probe_finds_the_half_of_the_features_that_matches():
    """Half of each token tells the place, half is noise of ten times its size: kNN fails, the probe learns to look."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(16, 16, generator=generator)
    signal = place.repeat(40, 1, 1)
    noise = 10 * torch.randn(40, 16, 16, generator=generator)
    features = Features(torch.cat([signal, noise], dim=-1).numpy())
    pairs = pairs_where(GRID.centres[None].repeat(20, 1, 1))
    settings = ProbeSettings(dim=16, iterations=200, batch=4, learning_rates=[1e-2, 0.0], weight_decays=[0.0], seed=0)
    trained, untrained = train_probes(features, pairs, GRID, settings)

    def error(probe):
        return np.mean(np.concatenate(end_point_errors(match(features, pairs, GRID, probe)[0], pairs, GRID)))

    assert error(trained) < 10 < 100 < error(None)
    assert error(untrained) > 100


def test_probes_repeat():
    features = Features(torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0)).numpy())
    pairs = pairs_where(GRID.centres[None].repeat(2, 1, 1))
    settings = ProbeSettings(dim=4, iterations=5, batch=2, learning_rates=[1e-2], weight_decays=[0.1], seed=3)
    assert torch.equal(*(train_probes(features, pairs, GRID, settings)[0] for _ in range(2)))


INTRINSICS = np.array([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])


def made_matches(pose, count=60):
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 2], [1, 1, 5], (count, 3))
    moved = points @ pose[:, :3].T + pose[:, 3]
    a, b = ((p @ INTRINSICS.T)[:, :2] / p[:, 2:] for p in (points, moved))
    return a, b


def test_pose_from_true_matches_is_exact_and_survives_outliers():
    pose = np.concatenate([turn(8), [[0.3], [0.1], [-0.2]]], axis=1)
    a, b = made_matches(pose)
    pair = PosedPair(INTRINSICS, INTRINSICS, pose)
    assert pose_error(a, b, pair, 64) < 0.01
    b[::4] = np.random.default_rng(1).uniform(0, 64, (15, 2))
    assert pose_error(a, b, pair, 64) < 0.5


def test_pose_that_points_backwards_is_wrong():
    pose = np.concatenate([turn(8), [[0.3], [0.1], [-0.2]]], axis=1)
    a, b = made_matches(pose)
    backwards = np.concatenate([turn(8), [[-0.3], [-0.1], [0.2]]], axis=1)
    assert pose_error(a, b, PosedPair(INTRINSICS, INTRINSICS, backwards), 64) > 179


def test_too_few_matches_have_no_pose():
    assert pose_error(np.zeros((4, 2)), np.zeros((4, 2)), PosedPair(INTRINSICS, INTRINSICS, np.eye(3, 4)), 64) == 180


def test_squares_map_pixels_there_and_back():
    square = Square(width=100, height=80, size=40)
    pixels = np.array([[0.0, 0.0], [40.0, 40.0], [3.0, 7.0]])
    assert square.to_stored(pixels).tolist() == [[10, 0], [90, 80], [16, 14]]
    np.testing.assert_allclose(square.from_stored(square.to_stored(pixels)), pixels)
    point = np.array([0.2, -0.1, 2.0])
    stored = (INTRINSICS @ point)[:2] / 2
    evaluated = (square.intrinsics(INTRINSICS) @ point)[:2] / 2
    np.testing.assert_allclose(square.to_stored(evaluated), stored)
