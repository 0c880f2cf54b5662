"""The multi-view model on frozen tokens: its shapes, whom it lets see whom, its losses against closed forms."""

import math

import numpy as np
import pytest
import torch

from mum_model.data.geometry import invert_pose, pixel_grid, relative_pose, transform, unproject
from mum_model.errors import UserError
from mum_model.model import MultiViewConfig, MultiViewModel, load_multiview, save_multiview
from mum_model.model.multiview_heads import MultiViewOutput, decode_cameras, encode_cameras, nearest_rotation, spread
from mum_model.model.multiview_loss import MultiViewTarget, distillation_loss, geometry_loss, known_geometry
from mum_model.model.scenes import SceneLayout

GRID, SIZE, VIEWS = (3, 4), (24, 32), [3, 1, 2]
TINY = {"token_dim": 10, "dim": 16, "depth": 4, "heads": 2, "camera_depth": 1, "dense_dim": 8}


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = MultiViewModel(MultiViewConfig(**TINY, layer_scale=1.0))
    return made.eval()


def tokens_of(views, seed=1):
    return torch.randn(sum(views), GRID[0] * GRID[1], 10, generator=torch.Generator().manual_seed(seed))


def rotation(axis, angle):
    """Rodrigues' formula."""
    axis = np.array(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def pose(axis, angle, translation):
    return np.column_stack([rotation(axis, angle), translation])


def test_it_says_cameras_depth_and_points_of_every_view(model):
    out = model(tokens_of(VIEWS), SceneLayout.of(VIEWS), GRID, SIZE)
    assert [tuple(part.shape) for part in out] == [(6, 14), (6, *SIZE), (6, *SIZE), (6, *SIZE, 3), (6, *SIZE)]
    assert (out.depth > 0).all()
    assert (out.depth_confidence > 1).all()
    assert (out.points_confidence > 1).all()


def test_the_default_is_the_papers_shape():
    with torch.device("meta"):
        made = MultiViewModel(MultiViewConfig(token_dim=1024))
    assert len(made.frame_blocks) == len(made.global_blocks) == 6
    block = made.global_blocks[0]
    assert (block.norm1.normalized_shape, block.attn.num_heads, block.init_values) == ((768,), 12, 0.01)
    assert block.attn.q_norm.normalized_shape == (64,)


def test_scenes_of_a_pack_do_not_see_each_other(model):
    packed = model(tokens_of(VIEWS), SceneLayout.of(VIEWS), GRID, SIZE)
    start = 0
    for views in VIEWS:
        alone = model(tokens_of(VIEWS)[start : start + views], SceneLayout.of([views]), GRID, SIZE)
        for ours, own in zip(packed, alone, strict=True):
            torch.testing.assert_close(ours[start : start + views], own, rtol=1e-4, atol=1e-5)
        start += views


def test_the_first_view_alone_is_special(model):
    tokens, scenes = tokens_of([4]), SceneLayout.of([4])
    out = model(tokens, scenes, GRID, SIZE)
    others = model(tokens[[0, 3, 1, 2]], scenes, GRID, SIZE)
    torch.testing.assert_close(others.cameras, out.cameras[[0, 3, 1, 2]], rtol=1e-4, atol=1e-5)
    swapped = model(tokens[[1, 0, 2, 3]], scenes, GRID, SIZE)
    assert not torch.allclose(swapped.cameras, out.cameras[[1, 0, 2, 3]], atol=1e-3)


def test_views_of_a_scene_see_each_other(model):
    tokens = tokens_of([3])
    changed = tokens.clone()
    changed[2] += 1
    before, after = (model(t, SceneLayout.of([3]), GRID, SIZE) for t in (tokens, changed))
    assert not torch.allclose(before.cameras[1], after.cameras[1], atol=1e-4)
    assert not torch.allclose(before.points[1], after.points[1], atol=1e-4)


def test_levels_are_spread_to_the_last():
    assert [spread(depth) for depth in (1, 2, 4, 6, 24)] == [
        [0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3], [1, 2, 4, 5], [5, 11, 17, 23]
    ]  # fmt: skip


def test_cameras_survive_their_code():
    poses = torch.tensor(np.stack([pose([1, 2, 3], angle, [1, -2, 3]) for angle in (0, 0.3, 1.5, math.pi)]))
    fields = torch.tensor([[0.5, 0.7]] * 4, dtype=torch.float64)
    back, fields_back = decode_cameras(encode_cameras(poses, fields))
    torch.testing.assert_close(back, poses)
    torch.testing.assert_close(fields_back, fields)


def test_the_nearest_rotation_is_scipys_and_never_a_reflection():
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    noisy = rotation([1, 0, 2], 0.8) + 0.2 * rng.normal(size=(3, 3))
    found = nearest_rotation(torch.tensor(noisy.reshape(9)))
    np.testing.assert_allclose(found, Rotation.from_matrix(noisy, assume_valid=False).as_matrix(), atol=1e-6)
    mirrored = nearest_rotation(torch.tensor(np.diag([1.0, 1.0, -1.0]).reshape(9)))
    torch.testing.assert_close(torch.linalg.det(mirrored), torch.tensor(1.0, dtype=torch.float64))


def made_scene():
    """Two views of a plane and a slope, the first away from the world's origin; the second turned and moved."""
    intrinsics = np.array([[20.0, 0, 16.5], [0, 21.0, 11.0], [0, 0, 1]])
    world2cam = np.stack([pose([0, 1, 0], 0.4, [3, 1, 2]), pose([0.1, 1, 0], 0.6, [2.5, 1, 2.2])])
    depth = np.stack([np.full(SIZE, 2.0), 3 + 0.05 * pixel_grid(*SIZE)[..., 0]])
    depth[0, :2, :3] = 0
    return world2cam, intrinsics, depth


def as_target(world2cam, intrinsics, depth, views=(2,)):
    n = len(depth)
    return known_geometry(
        torch.tensor(world2cam), torch.tensor(intrinsics).expand(n, 3, 3), torch.tensor(depth), SceneLayout.of(views)
    )


def test_known_geometry_is_in_the_first_views_axes_and_of_unit_distance():
    """Against the data room's numpy geometry, which the tests there hold to closed forms."""
    world2cam, intrinsics, depth = made_scene()
    target = as_target(world2cam, intrinsics, depth)
    local = unproject(pixel_grid(*SIZE), np.where(depth > 0, depth, np.nan), intrinsics)
    to_first = [relative_pose(own, world2cam[0]) for own in world2cam]
    points = np.stack([transform(p, x) for p, x in zip(to_first, local, strict=True)])
    unit = np.nanmean(np.linalg.norm(points, axis=-1))
    np.testing.assert_allclose(target.points, points / unit, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(target.depth, np.where(depth > 0, depth, np.nan) / unit, rtol=1e-6)
    poses, fields = decode_cameras(target.cameras)
    expected = relative_pose(world2cam[0], world2cam[1])
    np.testing.assert_allclose(poses[1, :, :3], expected[:, :3], atol=1e-6)
    np.testing.assert_allclose(poses[1, :, 3], expected[:, 3] / unit, atol=1e-6)
    np.testing.assert_allclose(fields, [[2 * math.atan(16 / 20), 2 * math.atan(12 / 21)]] * 2, rtol=1e-6)
    np.testing.assert_allclose(np.nanmean(np.linalg.norm(target.points, axis=-1)), 1, rtol=1e-5)


def test_known_geometry_does_not_depend_on_world_or_unit():
    world2cam, intrinsics, depth = made_scene()
    world = invert_pose(pose([1, 1, 0], 1.0, [5, 6, 7]))
    moved = np.stack([np.column_stack([p[:, :3] @ world[:, :3], p[:, :3] @ world[:, 3] + p[:, 3]]) for p in world2cam])
    moved[:, :, 3] *= 7
    for ours, theirs in zip(
        as_target(world2cam, intrinsics, depth), as_target(moved, intrinsics, 7 * depth), strict=True
    ):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_what_is_unknown_is_not_a_number():
    world2cam, intrinsics, depth = made_scene()
    poseless = world2cam.copy()
    poseless[0] = np.nan
    target = as_target(poseless, intrinsics, depth)
    assert target.points.isnan().all()
    assert target.cameras[:, :12].isnan().all()
    assert target.depth[1].isfinite().all()
    assert target.cameras[:, 12:].isfinite().all()
    without_depth = as_target(world2cam, intrinsics, np.zeros_like(depth))
    np.testing.assert_allclose(without_depth.cameras[1, 9:12].norm(), 1, rtol=1e-6)


def test_points_at_infinity_are_unknown():
    world2cam, intrinsics, depth = made_scene()
    hole, sky = depth.copy(), depth.copy()
    hole[1, :9], sky[1, :9] = 0, np.inf
    for ours, theirs in zip(as_target(world2cam, intrinsics, sky), as_target(world2cam, intrinsics, hole), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)


def perfect(target, confidence=1.0):
    ones = torch.full_like(target.depth, confidence)
    return MultiViewOutput(target.cameras, target.depth.nan_to_num(), ones, target.points.nan_to_num(), ones)


def test_the_loss_is_zero_at_the_truth_and_what_it_should_be_beside_it():
    target = as_target(*made_scene())
    assert all(abs(float(part)) < 1e-5 for part in geometry_loss(perfect(target), target))
    assert float(distillation_loss(perfect(target), target).total) == 0
    shifted = perfect(target)._replace(
        cameras=target.cameras + 0.1, depth=target.depth.nan_to_num() + 0.5, points=target.points.nan_to_num() + 1.0
    )
    loss = geometry_loss(shifted, target)
    torch.testing.assert_close(loss.camera, torch.tensor(5 * 0.1), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.depth, torch.tensor(0.5), rtol=1e-4, atol=0)  # a constant has no gradient
    torch.testing.assert_close(loss.points, torch.tensor(math.sqrt(3)), rtol=1e-4, atol=0)  # nor other normals
    squared = distillation_loss(shifted, target)
    torch.testing.assert_close(torch.stack(squared), torch.tensor([0.01, 0.25, 1.0]), rtol=1e-4, atol=0)


def test_confidence_is_paid_for():
    """At an error e the best confidence is 0.2 / e, above 1."""
    target = as_target(*made_scene())
    shifted = perfect(target)._replace(depth=target.depth.nan_to_num() + 0.1)
    losses = {
        c: float(geometry_loss(shifted._replace(depth_confidence=torch.full_like(target.depth, c)), target).depth)
        for c in (1.0, 2.0, 4.0)
    }
    assert losses[2.0] < losses[1.0]
    assert losses[2.0] < losses[4.0]
    np.testing.assert_allclose(losses[2.0], 0.1 * 2 - 0.2 * math.log(2), rtol=1e-4)


def test_turned_points_have_other_normals():
    target = as_target(*made_scene())
    turned = target.points.nan_to_num() @ torch.tensor(rotation([0, 1, 0], 0.5).T, dtype=torch.float32)
    same = perfect(target)._replace(points=turned, points_confidence=torch.ones_like(target.depth))
    length = (turned - target.points).norm(dim=-1)
    loss = float(geometry_loss(same, target).points) - float(length[length.isfinite()].mean())
    np.testing.assert_allclose(loss, 1 - math.cos(0.5), atol=2e-3)  # less at the hole's border, that is not counted


@pytest.mark.parametrize("loss", [geometry_loss, distillation_loss])
def test_what_is_unknown_gives_no_loss_and_no_slope(model, loss):
    out = model(tokens_of([2]), SceneLayout.of([2]), GRID, SIZE)
    nothing = MultiViewTarget(*(torch.full_like(t, torch.nan) for t in (out.cameras, out.depth, out.points)))
    assert loss(out, nothing).total.item() == 0
    partly = as_target(*made_scene())
    partly.cameras[1] = torch.nan
    partly.points[1] = torch.nan
    loss(out, partly).total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.slow
def test_it_learns_a_scene():
    """Tokens of three views that say where they are; the loss falls to a fraction and the cameras are found."""
    torch.manual_seed(0)
    model = MultiViewModel(MultiViewConfig(**TINY))
    world2cam, intrinsics, depth = made_scene()
    target, scenes, tokens = as_target(world2cam, intrinsics, depth), SceneLayout.of([2]), tokens_of([2])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = geometry_loss(model(tokens, scenes, GRID, SIZE), target).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    poses, _ = decode_cameras(model(tokens, scenes, GRID, SIZE).cameras)
    expected = relative_pose(world2cam[0], world2cam[1])
    cosine = (np.trace(poses[1, :, :3].detach().numpy().T @ expected[:, :3]) - 1) / 2
    assert math.degrees(math.acos(min(1, cosine))) < 3
    assert losses[-1] < 0.3 * losses[0]


def test_saved_models_come_back(model, tmp_path):
    save_multiview(model, tmp_path / "model")
    again = load_multiview(tmp_path / "model")
    tokens, scenes = tokens_of(VIEWS), SceneLayout.of(VIEWS)
    for ours, theirs in zip(model(tokens, scenes, GRID, SIZE), again(tokens, scenes, GRID, SIZE), strict=True):
        assert torch.equal(ours, theirs)


def test_other_folders_are_named(model, tmp_path):
    with pytest.raises(UserError, match="has no config"):
        load_multiview(tmp_path)
    save_multiview(model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"dense_dim": 8', '"dense_dim": 10'))
    with pytest.raises(UserError, match="do not fit its config"):
        load_multiview(tmp_path / "model")
    config.write_text("{}")
    with pytest.raises(UserError, match="no 'multiview'"):
        load_multiview(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"), [({"heads": 3}, "multiple of 4"), ({"depth": 3}, "pairs"), ({"dense_dim": 7}, "even")]
)
def test_impossible_models_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        MultiViewConfig(**{**TINY, **change})
