"""Geometry against closed forms."""

import numpy as np
import pytest

from mum_model.data.geometry import (
    Camera,
    invert_pose,
    lookup_nearest,
    pixel_grid,
    project,
    relative_pose,
    resize_depth,
    resize_intrinsics,
    transform,
    unproject,
    warp,
)

INTRINSICS = np.array([[100.0, 0, 32], [0, 110, 24], [0, 0, 1]])
HEIGHT, WIDTH = 48, 64


def rotation(axis, angle):
    axis = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def pose(axis, angle, translation):
    return np.concatenate([rotation(axis, angle), np.reshape(translation, (3, 1))], axis=1)


IDENTITY = np.eye(3, 4)


def plane_camera(world2cam, distance=2.0):
    """A view of the plane z = distance of the world, with its exact depth."""
    rays = unproject(pixel_grid(HEIGHT, WIDTH), np.ones((HEIGHT, WIDTH)), INTRINSICS)
    cam2world = invert_pose(world2cam)
    depth = (distance - cam2world[2, 3]) / (rays @ cam2world[2, :3])
    return Camera(INTRINSICS, world2cam, depth.astype(np.float32))


def test_first_pixel_centre_is_at_a_half():
    grid = pixel_grid(2, 3)
    assert grid.shape == (2, 3, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5]
    assert grid[1, 2].tolist() == [2.5, 1.5]


def test_project_undoes_unproject():
    rng = np.random.default_rng(0)
    pixels, depth = rng.uniform(0, 60, (50, 2)), rng.uniform(0.5, 9, 50)
    again, z = project(unproject(pixels, depth, INTRINSICS), INTRINSICS)
    np.testing.assert_allclose(again, pixels)
    np.testing.assert_allclose(z, depth)


def test_points_behind_the_camera_project_nowhere():
    pixels, _ = project(np.array([[0.0, 0, -1], [0, 0, 0]]), INTRINSICS)
    assert np.isnan(pixels).all()


def test_relative_pose_chains():
    a, b = pose([1, 2, 3], 0.4, [1, 0, 2]), pose([0, 1, 0], -0.7, [0, 3, 1])
    points = np.random.default_rng(0).normal(size=(10, 3))
    np.testing.assert_allclose(transform(relative_pose(a, b), transform(a, points)), transform(b, points))
    np.testing.assert_allclose(transform(invert_pose(a), transform(a, points)), points)


def test_sideways_step_moves_a_plane_by_focal_times_step_over_depth():
    a, b = plane_camera(IDENTITY), plane_camera(pose([0, 1, 0], 0, [-0.2, 0, 0]))
    pixels = pixel_grid(HEIGHT, WIDTH)[20:28, 30:40]
    target, covisible = warp(pixels, a, b)
    np.testing.assert_allclose(target - pixels, np.broadcast_to([-100 * 0.2 / 2, 0], pixels.shape), atol=1e-5)
    assert covisible.all()


def test_warp_of_a_plane_is_its_homography():
    moved = pose([1, 2, -1], 0.2, [0.1, -0.05, 0.3])
    a, b = plane_camera(IDENTITY), plane_camera(moved)
    normal, distance = np.array([0, 0, 1.0]), 2.0
    homography = INTRINSICS @ (moved[:, :3] + np.outer(moved[:, 3], normal) / distance) @ np.linalg.inv(INTRINSICS)
    pixels = pixel_grid(HEIGHT, WIDTH)
    image = np.concatenate([pixels, np.ones((HEIGHT, WIDTH, 1))], axis=-1) @ homography.T
    expected = image[..., :2] / image[..., 2:]
    target, covisible = warp(pixels, a, b)
    np.testing.assert_allclose(target, expected, atol=1e-4)
    inside = ((expected >= 0) & (expected < [WIDTH, HEIGHT])).all(-1)
    assert (covisible == inside).all()


def test_hidden_and_unknown_surfaces_are_not_covisible():
    a, b = plane_camera(IDENTITY), plane_camera(IDENTITY)
    b.depth[:24] = 1.0  # something nearer stands in front in the upper half of view b
    a.depth[:, :10] = 0  # depth of view a is unknown on the left
    b.depth[:, 60:] = 0  # depth of view b is unknown on the right
    target, covisible = warp(pixel_grid(HEIGHT, WIDTH), a, b)
    assert not covisible[:24].any()
    assert not covisible[:, :10].any()
    assert not covisible[:, 60:].any()
    assert covisible[24:, 10:60].all()
    assert np.isnan(target[:, :10]).all()


def test_lookup_is_zero_outside():
    image = np.array([[1.0, 2.0], [3.0, 4.0]])
    pixels = np.array([[0.0, 0.0], [1.9, 0.1], [0.5, 1.5], [2.0, 0.5], [-0.1, 0.5], [np.nan, 0.5]])
    assert lookup_nearest(image, pixels).tolist() == [1, 2, 3, 0, 0, 0]


def test_resized_intrinsics_project_to_scaled_pixels():
    points = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 5], (20, 3))
    pixels, _ = project(points, INTRINSICS)
    resized, _ = project(points, resize_intrinsics(INTRINSICS, 0.5, 0.25))
    np.testing.assert_allclose(resized, pixels * [0.5, 0.25])


def test_resized_depth_invents_no_values():
    depth = np.where(np.arange(64)[None] < 30, 1.0, 5.0).astype(np.float32).repeat(48, 0).reshape(48, 64)
    assert set(np.unique(resize_depth(depth, 20, 15))) == {1.0, 5.0}


def test_resized_sparse_depth_keeps_its_points():
    depth = np.zeros((48, 64), np.float32)
    depth[3, 5], depth[40, 60] = 2.0, 3.0
    resized = resize_depth(depth, 16, 12)
    assert resized[0, 1] == 2.0
    assert resized[10, 15] == 3.0


@pytest.mark.parametrize("seed", range(3))
def test_rendered_depth_and_pose_agree(seed):
    """The same surface point has the same depth in two rendered views, to a hundredth of a percent."""
    from mum_model.data.sources.rendered import rendered_scenes

    capture = rendered_scenes(scenes=1, views=8, size=64, seed=seed)[0].capture()
    frames = [capture.load(name) for name in capture.frames[2:4]]
    a, b = (Camera(f.intrinsics, f.world2cam, f.depth) for f in frames)
    pixels = pixel_grid(64, 64)
    target, covisible = warp(pixels, a, b)
    back, _ = warp(target, b, a)  # through the nearest pixel of b, so within about a pixel
    assert covisible.mean() > 0.1
    assert np.median(np.linalg.norm((back - pixels)[covisible], axis=-1)) < 0.75


def test_rendered_frames_are_a_function_of_the_seed():
    from mum_model.data.sources.rendered import rendered_scenes

    first, again, other = (rendered_scenes(2, 4, 32, seed)[1].capture().load("0002") for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.depth, again.depth)
    assert not np.array_equal(first.image, other.image)
    assert first.image.std() > 10
    assert (first.depth > 0).all()
    np.testing.assert_allclose(first.world2cam[:, :3] @ first.world2cam[:, :3].T, np.eye(3), atol=1e-12)


def test_rendered_pixels_are_all_of_the_scene():
    """No pixel is left to chance: neighbouring pixels of a smooth room differ little almost everywhere."""
    import warnings

    from mum_model.data.sources.rendered import rendered_scenes

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture = rendered_scenes(scenes=1, views=6, size=64, seed=1)[0].capture()
        for name in capture.frames:
            capture.load(name)


def test_rendered_difficulty_spreads_the_views_and_their_light():
    from mum_model.data.covisibility import View, covisibility
    from mum_model.data.sources.rendered import DIFFICULTIES, rendered_scenes

    overlap, light = {}, {}
    for difficulty in DIFFICULTIES:
        captures = [scene.capture() for scene in rendered_scenes(3, 6, 48, 0, difficulty)]
        frames = [[capture.load(name) for name in capture.frames] for capture in captures]
        found = [covisibility([View.of(frame) for frame in views]) for views in frames]
        overlap[difficulty] = np.mean([pairs.overlap.sum() / 30 for pairs in found])
        light[difficulty] = np.mean([np.std([frame.image.mean() for frame in views]) for views in frames])
    assert overlap["easy"] > overlap["medium"] > overlap["hard"]
    assert light["easy"] < light["medium"] < light["hard"]


def test_rendered_difficulty_that_is_none_is_named():
    from mum_model.data.sources.rendered import rendered_scenes
    from mum_model.errors import UserError

    with pytest.raises(UserError, match=r"data\.rendered\.difficulty=cruel: expected one of easy, medium, hard"):
        rendered_scenes(1, 2, 32, 0, "cruel")
