"""Ablations of the encoder: a pack is its scenes one by one, who sees whom, and positions that plain timm knows."""

import pytest
import timm
import torch

import mum_model
from mum_model.errors import UserError
from mum_model.model.masking import patchify
from mum_model.model.scenes import SceneLayout
from tests.model.test_mum import SMALL

VIEWS = [2, 4, 1, 3]
ABLATIONS = [{"encoder_communication": True}, {"absolute_positions": 32}]
BOTH = {"encoder_communication": True, "absolute_positions": 32}


def create(**ablation):
    torch.manual_seed(0)
    return mum_model.create_mum(**SMALL, patch_size=8, **ablation)


@pytest.fixture
def pack():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 3, 32, 32, generator=generator), torch.rand(10, 16, generator=generator)


@pytest.mark.parametrize("ablation", [*ABLATIONS, BOTH])
def test_a_pack_has_the_loss_and_gradients_of_its_scenes(pack, ablation):
    model, (frames, noise) = create(**ablation), pack
    model.masked_loss(frames, SceneLayout.of(VIEWS), noise=noise).backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for scene, own in zip(frames.split(VIEWS), noise.split(VIEWS), strict=True):
        (model(scene[None], noise=own).loss * len(scene) / sum(VIEWS)).backward()
    for name, parameter in model.named_parameters():
        assert (packed[name] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm(), name


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_loss_is_another_one(pack, ablation):
    frames, noise = pack
    losses = [model(frames[None], noise=noise).loss.item() for model in (create(), create(**ablation))]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(("communicate", "seen"), [(False, 1), (True, 3)])
def test_who_sees_whom_in_the_encoder(pack, communicate, seen):
    """The last scene has three views; what the encoder makes of its last one depends on one view of it, or on all."""
    model, (frames, noise) = create(encoder_communication=communicate), pack
    frames.requires_grad_()
    taken = []
    model.encoder.norm.register_forward_hook(lambda module, inputs, output: taken.append(output))
    model.masked_loss(frames, SceneLayout.of(VIEWS), noise=noise)
    (gradient,) = torch.autograd.grad(taken[0][9].square().sum(), frames)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [False] * (10 - seen) + [True] * seen


def test_a_single_view_has_nobody_to_communicate_with(pack):
    model, plain = create(encoder_communication=True), create()
    plain.load_state_dict(model.state_dict())  # the same names
    frames, noise = pack[0][:1], pack[1][:1]
    assert model(frames[None], noise=noise).loss.item() == pytest.approx(plain(frames[None], noise=noise).loss.item())


def test_equal_views_are_told_apart_by_added_positions_alone(pack):
    """A patch of the encoder's output is where its pixels are: moving them moves it, and changes it."""
    for ablation in ({}, {"absolute_positions": 32}):
        model = create(**ablation)
        flat = torch.ones(1, 3, 32, 32)
        tokens = model.encoder.eval().forward_features(flat)[0, 1:]
        spread = (tokens - tokens[0]).norm(dim=1)[1:]
        assert bool((spread > 1e-3).all()) == ("absolute_positions" in ablation)


def test_added_positions_are_no_parameter_and_take_the_place_of_rope(pack):
    model = create(absolute_positions=32)
    assert model.encoder.rope is None
    assert model.decoder.rope is None
    assert "encoder.pos_embed" in dict(model.named_buffers())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in create().named_parameters()]
    assert model.encoder.pos_embed[0, 0].abs().sum() == 0  # CLS
    model(pack[0][None, :, :, :24], noise=pack[1][:, :12])  # a grid that is not the table's


@pytest.mark.parametrize("ablation", [*ABLATIONS, BOTH])
def test_the_encoder_is_one_of_plain_timm(pack, ablation, tmp_path):
    model = create(**ablation).eval()
    mum_model.model.save_encoder(model.encoder, tmp_path / "encoder")
    plain = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    everything = torch.arange(16).expand(10, -1)
    alone = SceneLayout.of([1] * 10)
    with torch.inference_mode():
        expected = plain.forward_features(pack[0])
        torch.testing.assert_close(model.encoder.forward_features(pack[0]), expected)
        tokens = mum_model.model.encoder.encode_visible(model.encoder, patchify(pack[0], 8), everything, (4, 4), alone)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ablation", [*ABLATIONS, BOTH])
def test_a_saved_model_is_the_same(pack, ablation, tmp_path):
    model, (frames, noise) = create(**ablation), pack
    mum_model.save_mum(model, tmp_path / "model")
    again = mum_model.load_mum(tmp_path / "model")
    assert again.config == model.config
    torch.testing.assert_close(again(frames[None], noise=noise).loss, model(frames[None], noise=noise).loss)


@pytest.mark.parametrize(
    ("ablation", "message"),
    [
        ({"absolute_positions": 30}, "multiple of model.patch_size=8"),
        ({"reference_view": True, "encoder_communication": True}, "one at a time"),
    ],
)
def test_what_cannot_be_is_named(ablation, message):
    with pytest.raises(UserError, match=message):
        create(**ablation)
