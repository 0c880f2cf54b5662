"""How much of a view another sees, by each measure, against closed forms; and the sequences that follow from it."""

import numpy as np
import pytest

from mum_model.data.captures import Points, SequenceRule
from mum_model.data.covisibility import CANDIDATES, Covisibility, View, covisibility
from mum_model.data.sequences import KINDS, build_sequences
from tests.data.made import rotation

WIDTH, HEIGHT, FOCAL, DISTANCE = 64, 48, 64.0, 2.0
K = np.array([[FOCAL, 0, 32], [0, FOCAL, 24], [0, 0, 1]])


def looking(x=0.0, turned=0.0):
    """Pose of a camera at (x, 0, 0) that looks along z, turned about y."""
    world2cam = np.eye(3, 4)
    world2cam[:, :3] = rotation(0, turned, 0)
    world2cam[:, 3] = -world2cam[:, :3] @ [x, 0, 0]
    return world2cam


def view(world2cam, **known):
    return View(width=WIDTH, height=HEIGHT, intrinsics=K, world2cam=world2cam, **known)


def wall(x=0.0):
    """A view of the wall z = DISTANCE, of which it sees DISTANCE in width."""
    return view(looking(x), depth=np.full((HEIGHT, WIDTH), DISTANCE, np.float32))


def by_pair(found):
    return {(a, b): (o, g) for a, b, o, g in zip(found.a, found.b, found.overlap, found.angle, strict=True)}


@pytest.mark.parametrize("shift", [0.25, 1.0, 1.5])
def test_depth_measures_the_shared_part_of_a_wall(shift):
    found = covisibility([wall(), wall(shift), View(width=WIDTH, height=HEIGHT)])
    assert found.measure == "depth"
    assert list(by_pair(found)) == [(0, 1), (1, 0)]
    np.testing.assert_allclose(found.overlap, 1 - shift / DISTANCE, atol=0.05)


def test_angle_is_that_between_the_lines_of_sight():
    """The middle of what two cameras a metre apart see of a wall at two metres lies before the middle between them."""
    found = covisibility([wall(), wall(1.0)])
    np.testing.assert_allclose(found.angle, 2 * np.degrees(np.arctan(0.5 / DISTANCE)), atol=1.5)


def test_points_count_what_both_observe():
    xyz = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 3], (10, 3))
    seen = [range(8), range(4, 10), range(9, 10)]
    views = [view(looking(0.1 * i), points=Points(np.array(ids), xyz[list(ids)])) for i, ids in enumerate(seen)]
    found = covisibility(views)
    assert found.measure == "points"
    shares = {pair: overlap for pair, (overlap, _) in by_pair(found).items()}
    expected = {(0, 1): 4 / 8, (1, 0): 4 / 6, (1, 2): 1 / 6, (2, 1): 1.0}
    assert shares == pytest.approx(expected)
    shared = xyz[9]
    lines = [shared - [0.1 * i, 0, 0] for i in (1, 2)]
    cosine = lines[0] @ lines[1] / np.prod([np.linalg.norm(line) for line in lines])
    assert by_pair(found)[1, 2][1] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-4)


def test_frustum_needs_no_depth_and_sees_no_backs():
    ring = [view(_on_ring(angle)) for angle in np.radians([0, 10, 40, 180])]
    found = by_pair(covisibility(ring))
    assert covisibility(ring).measure == "frustum"
    assert found[0, 1][0] > found[0, 2][0] > 0.1
    assert found[0, 1][1] == pytest.approx(10, abs=3)
    apart = covisibility([view(looking()), view(looking(turned=np.pi / 2))])
    assert len(apart.a) == 0


def _on_ring(angle):
    """Looking at the origin from two metres away."""
    world2cam = np.eye(3, 4)
    world2cam[:, :3] = rotation(0, angle, 0)
    world2cam[2, 3] = 2
    return world2cam


def test_time_is_the_last_resort():
    found = covisibility([View(width=WIDTH, height=HEIGHT)] * 5)
    assert found.measure == "time"
    overlap = {pair: overlap for pair, (overlap, _) in by_pair(found).items()}
    assert overlap[0, 1] == overlap[1, 0] > overlap[0, 2] > overlap[0, 4]
    assert (0, 0) not in overlap
    assert np.isnan(found.angle).all()


def test_what_the_dataset_states_goes_first():
    stated = np.array([[1, 0.7, 0.001], [0.2, 1, 0], [-1, 0, 1]])
    found = covisibility([wall(), wall(0.1), wall(0.2)], stated)
    assert found.measure == "stated"
    assert by_pair(found).keys() == {(0, 1), (1, 0)}
    np.testing.assert_allclose(found.overlap, [0.7, 0.2])


def test_large_scenes_compare_near_cameras_alone():
    views = [view(looking(0.01 * i)) for i in range(CANDIDATES + 40)]
    found = covisibility(views)
    partners = np.bincount(found.a, minlength=len(views))
    assert partners.max() == CANDIDATES
    assert set(range(1, 41)) <= set(found.of(0)[0].tolist())


def made_pairs(overlaps, angles=None):
    """Co-visibility of a matrix of overlaps."""
    a, b = np.nonzero(overlaps)
    angle = np.full(len(a), np.nan) if angles is None else angles[a, b]
    return Covisibility(a.astype(np.int32), b.astype(np.int32), overlaps[a, b].astype(np.float32), angle, "depth")


LINE = np.maximum(0, 1 - np.abs(np.subtract.outer(np.arange(10), np.arange(10))) / 4) * (1 - np.eye(10))
"""Ten views in a row; neighbours share 0.75, 0.5, 0.25."""


def sequences(kind, splits=("train",) * 10, pairs=LINE, **settings):
    rule = SequenceRule(kind=kind, **settings)
    return [found.tolist() for _, found in build_sequences(made_pairs(pairs), splits, rule, "scene")]


def test_anchors_come_with_what_overlaps_most():
    found = sequences("anchor", frames=3)
    assert [sequence[0] for sequence in found] == list(range(10))
    assert found[5] == [5, 4, 6]
    assert sequences("anchor", frames=9, overlap=(0.3, 0.6))[5] == [5, 3, 7]


def test_anchors_are_drawn_by_the_scene_and_not_by_chance():
    few = sequences("anchor", anchors=4)
    assert len(few) == 4
    assert few == sequences("anchor", anchors=4)
    rule = SequenceRule(kind="anchor", anchors=4)
    other = [s.tolist() for _, s in build_sequences(made_pairs(LINE), ("train",) * 10, rule, "other")]
    assert other != few


def test_chains_step_to_the_best_view_left():
    assert sequences("chain", frames=4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert sequences("chain", overlap=(0.4, 0.6)) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_chunks_leave_the_rest_to_the_last():
    """As the paper's authors cut: full chunks, the last of them longer."""
    assert list(map(len, sequences("chunk", frames=3))) == [3, 3, 4]
    assert list(map(len, sequences("chunk", frames=24))) == [10]
    assert [view for sequence in sequences("chunk", frames=3) for view in sequence] == list(range(10))


def test_whole_and_single():
    assert sequences("whole") == [list(range(10))]
    assert sequences("single") == [[i] for i in range(10)]
    assert sequences("whole", least=11) == []


def test_baseline_angle_bounds_the_pairs():
    angles = 10.0 * np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    rule = SequenceRule(kind="anchor", angle=(15, 25))
    found = [s.tolist() for _, s in build_sequences(made_pairs(LINE, angles), ("train",) * 10, rule, "scene")]
    assert found[5] == [5, 3, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_no_sequence_crosses_splits_or_repeats_a_view(kind):
    splits = ["test"] * 3 + ["val"] * 2 + ["train"] * 5
    rule = SequenceRule(kind=kind, frames=4)
    for split, found in build_sequences(made_pairs(LINE), splits, rule, "scene"):
        assert {splits[view] for view in found} == {split}
        assert len(set(found.tolist())) == len(found)
