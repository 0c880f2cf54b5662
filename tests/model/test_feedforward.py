"""Encoder and multi-view model as one network: what is frozen, what a decoder becomes, what comes back from disk."""

import pytest
import torch

import mum_model
from mum_model.errors import UserError
from mum_model.model import MultiViewModel, save_encoder, save_multiview
from mum_model.model.feedforward import FeedForward, decoder_config, load_feedforward, take_decoder
from mum_model.model.multiview_loss import known_geometry
from mum_model.model.scenes import SceneLayout
from tests.model.test_mum import SMALL

VIEWS = (3, 1, 2)


def made(*, freeze_encoder=True, seed=0):
    torch.manual_seed(seed)
    mum = mum_model.create_mum(**SMALL, patch_size=8)
    multiview = MultiViewModel(decoder_config(mum.config, camera_depth=1, dense_dim=8))
    take_decoder(multiview, mum)
    return FeedForward(mum.encoder, multiview, freeze_encoder=freeze_encoder).eval(), mum


def images(seed=1):
    return torch.randn(sum(VIEWS), 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def test_a_pack_gives_what_its_scenes_give_one_by_one():
    model, _ = made()
    packed = model(images(), SceneLayout.of(VIEWS))
    for start, views in ((0, 3), (3, 1), (4, 2)):
        alone = model(images()[start : start + views], SceneLayout.of([views]))
        for ours, own in zip(packed, alone, strict=True):
            torch.testing.assert_close(ours[start : start + views], own, rtol=1e-4, atol=1e-5)


def test_targets_of_a_pack_are_those_of_its_scenes():
    """Axes and unit are each scene's own, whether points come from depth or from a teacher."""
    generator = torch.Generator().manual_seed(2)
    rotations = torch.linalg.qr(torch.randn(6, 3, 3, generator=generator)).Q
    rotations = rotations * torch.linalg.det(rotations)[:, None, None]
    poses = torch.cat([rotations, torch.randn(6, 3, 1, generator=generator)], -1)
    intrinsics = torch.tensor([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]).expand(6, 3, 3)
    depth = torch.rand(6, 16, 24, generator=generator) + 1
    points = torch.randn(6, 16, 24, 3, generator=generator)
    for said in (None, points):
        packed = known_geometry(poses, intrinsics, depth, SceneLayout.of(VIEWS), said)
        for start, views in ((0, 3), (3, 1), (4, 2)):
            own = slice(start, start + views)
            own_points = None if said is None else said[own]
            alone = known_geometry(poses[own], intrinsics[own], depth[own], SceneLayout.of([views]), own_points)
            for ours, theirs in zip(packed, alone, strict=True):
                torch.testing.assert_close(ours[own], theirs)


def test_points_of_the_world_are_those_of_the_depth_where_a_teacher_agrees_with_itself():
    poses = torch.eye(4)[:3].repeat(2, 1, 1)
    poses[1, :, 3] = torch.tensor([0.5, -1, 2])
    intrinsics = torch.tensor([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]]).expand(2, 3, 3)
    depth = torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(3)) + 1
    scenes = SceneLayout.of([2])
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    local = torch.stack([(x - 12) / 20 * depth, (y - 8) / 20 * depth, depth], -1)
    said = local - poses[:, None, None, :, 3]
    expected, ours = (
        known_geometry(poses, intrinsics, depth, scenes),
        known_geometry(poses, intrinsics, depth, scenes, said),
    )
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_takes_no_gradient(frozen):
    model, _ = made(freeze_encoder=frozen)
    sum(part.square().mean() for part in model(images(), SceneLayout.of(VIEWS))).backward()
    assert all((parameter.grad is None) == frozen for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.multiview.parameters())


def test_the_trunk_is_the_decoder():
    """Its blocks, on the same tokens, give what the decoder's give but for the first token's place in attention."""
    model, mum = made()
    for name in ("embed", "frame_blocks", "global_blocks"):
        ours, theirs = getattr(model.multiview, name).state_dict(), getattr(mum.decoder, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(model.multiview.rope.periods, mum.decoder.rope.periods)


def test_what_is_saved_comes_back(tmp_path):
    model, _ = made()
    save_encoder(model.encoder, tmp_path / "encoder")
    save_multiview(model.multiview, tmp_path / "model")
    back = load_feedforward(tmp_path)
    for ours, theirs in zip(back(images(), SceneLayout.of(VIEWS)), model(images(), SceneLayout.of(VIEWS)), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="not the folder of an encoder"):
        load_feedforward(tmp_path / "nowhere")
