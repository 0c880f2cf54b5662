"""Metrics against closed forms and degenerate cases."""

import numpy as np
import pytest
import torch

from mum_model.data.geometry import Camera
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
from mum_model.evaluate.views import ImageSet, Square, Views, true_matches

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


def test_pure_rotation_is_judged_by_its_rotation():
    pose = np.concatenate([turn(8), np.zeros((3, 1))], axis=1)
    a, b = made_matches(pose)
    assert pose_error(a, b, PosedPair(INTRINSICS, INTRINSICS, pose), 64) < 0.1
    wrong = np.concatenate([turn(11), np.zeros((3, 1))], axis=1)
    assert pose_error(a, b, PosedPair(INTRINSICS, INTRINSICS, wrong), 64) == pytest.approx(3, abs=0.1)


def test_one_inlier_and_degenerate_matches_give_an_error_and_no_crash():
    pose = np.concatenate([turn(8), [[0.3], [0.1], [-0.2]]], axis=1)
    a, b = made_matches(pose)
    pair = PosedPair(INTRINSICS, INTRINSICS, pose)
    b[1:] = np.random.default_rng(1).uniform(0, 64, (len(b) - 1, 2))
    for matches_a, matches_b in ((a, b), (np.ones_like(a), np.ones_like(b)), (a, np.full_like(b, 32.0))):
        assert 0 < pose_error(matches_a, matches_b, pair, 64) <= 180


class OneScene:
    """Two views of a wall at 2 m, the second half a metre to the right; known, and then spoilt."""

    name = "wall"

    def __init__(self, spoil=lambda depth: None):
        self.depths = [np.full((48, 80), 2.0, np.float32) for _ in range(2)]
        spoil(self.depths[0])

    def shape(self, row):
        return 48, 80

    def intrinsics(self, row):
        return np.array([[60.0, 0, 40], [0, 60, 24], [0, 0, 1]])

    def world2cam(self, row):
        return np.eye(3, 4) if row == 0 else np.concatenate([np.eye(3), [[-0.5], [0], [0]]], axis=1)

    def camera(self, row):
        return Camera(self.intrinsics(row), self.world2cam(row), self.depths[row])

    def scene(self, row):
        return "wall"

    def identity(self, row):
        return str(row)


def matched(frames, fit):
    images = ImageSet(Views(frames, 32, fit), [0, 1])
    return true_matches(images, [(0, 1)], GRID)


@pytest.mark.parametrize(("fit", "shift"), [("crop", 15 * 32 / 48), ("stretch", 15 * 32 / 80)])
def test_true_matches_of_a_wall_are_a_shift_in_pixels_of_the_view(fit, shift):
    """Half a metre at 2 m and a focal length of 60 are 15 stored pixels; the square scales each axis by itself."""
    pairs = matched(OneScene(), fit)
    expected = GRID.centres - torch.tensor([shift, 0.0])
    torch.testing.assert_close(pairs.target[0], expected, rtol=0, atol=1e-4)
    assert torch.equal(pairs.covisible[0], expected[:, 0] >= 0)


@pytest.mark.parametrize("value", [0.0, np.inf, 1e9], ids=["hole", "infinite", "at infinity"])
def test_holes_and_points_at_infinity_are_not_covisible(value):
    def spoil(depth):
        depth[:, 40:] = value

    pairs = matched(OneScene(spoil), "stretch")
    right = GRID.centres[:, 0] > 16
    assert not pairs.covisible[0][right].any()
    assert pairs.covisible[0][~right].any()


def test_without_a_covisible_patch_nothing_is_measured():
    pairs = matched(OneScene(lambda depth: depth.fill(0)), "crop")
    (errors,) = end_point_errors(GRID.centres[None], pairs, GRID)
    assert len(errors) == 0


def test_squares_map_pixels_there_and_back():
    square = Square(width=100, height=80, size=40, fit="crop")
    pixels = np.array([[0.0, 0.0], [40.0, 40.0], [3.0, 7.0]])
    assert square.to_stored(pixels).tolist() == [[10, 0], [90, 80], [16, 14]]
    np.testing.assert_allclose(square.from_stored(square.to_stored(pixels)), pixels)
    point = np.array([0.2, -0.1, 2.0])
    stored = (INTRINSICS @ point)[:2] / 2
    evaluated = (square.intrinsics(INTRINSICS) @ point)[:2] / 2
    np.testing.assert_allclose(square.to_stored(evaluated), stored)


def test_stretched_squares_scale_each_axis():
    square = Square(width=100, height=80, size=40, fit="stretch")
    assert square.to_stored(np.array([40.0, 40.0])).tolist() == [100, 80]
    point = np.array([0.2, -0.1, 2.0])
    evaluated = (square.intrinsics(INTRINSICS) @ point)[:2] / 2
    np.testing.assert_allclose(square.to_stored(evaluated), (INTRINSICS @ point)[:2] / 2)
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:24, 50:55] = 255  # a cell of 2 x 2 pixels in the square
    assert square.view(image)[10:12, 20:22].min() == 255
    assert square.view(image).sum() == 4 * 3 * 255
