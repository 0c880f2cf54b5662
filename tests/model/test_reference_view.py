"""The ablation with an unmasked reference view: what it shows to whom, and what the loss counts."""

import pytest
import torch

import mum_model
from mum_model.model.masking import normalise_patches, patchify
from mum_model.model.scenes import SceneLayout
from tests.model.test_mum import SMALL

VIEWS = [2, 4, 1, 3]
OTHERS = [1, 3, 4, 5, 6, 8, 9]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mum_model.create_mum(**SMALL, patch_size=8, reference_view=True)


@pytest.fixture
def pack():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 3, 24, 32, generator=generator), torch.rand(10, 12, generator=generator)


def test_a_pack_has_the_loss_and_gradients_of_its_scenes(model, pack):
    frames, noise = pack
    model.masked_loss(frames, SceneLayout.of(VIEWS), noise=noise).backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    predicted = [max(views - 1, 1) for views in VIEWS]
    for scene, own, count in zip(frames.split(VIEWS), noise.split(VIEWS), predicted, strict=True):
        (model(scene[None], noise=own).loss * count / sum(predicted)).backward()
    for name, parameter in model.named_parameters():
        assert (packed[name] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm(), name


def test_the_loss_counts_the_masked_patches_of_the_other_views(model, pack):
    frames, noise = pack
    output = model(frames[None], noise=noise)
    assert output.mask.sum(dim=1).tolist() == [0] + [9] * 9
    target, _, _ = normalise_patches(patchify(frames, 8))
    error = (output.prediction - target).square().mean(-1)
    assert output.loss.item() == pytest.approx(error[output.mask.bool()].mean().item(), rel=1e-5)


def test_all_of_the_reference_is_seen_and_little_of_the_others(model, pack):
    frames, noise = pack
    frames.requires_grad_()
    _, _, tokens = model._see_and_fill_in(frames, SceneLayout.of(VIEWS), 0.75, noise)
    (gradient,) = torch.autograd.grad(tokens.square().sum(), frames)
    seen = (patchify(gradient, 8).abs().sum(-1) > 0).sum(1)
    assert seen.tolist() == [3 if view in OTHERS else 12 for view in range(10)]


def test_the_order_of_the_other_views_does_not_matter_but_the_reference_does(model, pack):
    frames, noise = pack[0][:4], pack[1][:4]
    loss = [
        model(frames[order][None], noise=noise[order]).loss.item()
        for order in ([0, 1, 2, 3], [0, 3, 1, 2], [1, 0, 2, 3])
    ]
    assert loss[1] == pytest.approx(loss[0], rel=1e-5)
    assert loss[2] != pytest.approx(loss[0], rel=1e-4)


def test_a_single_view_is_masked_as_ever(model, pack):
    plain = mum_model.create_mum(**SMALL, patch_size=8)
    plain.load_state_dict(model.state_dict())
    frames, noise = pack[0][:1], pack[1][:1]
    assert model(frames[None], noise=noise).loss.item() == plain(frames[None], noise=noise).loss.item()


def test_a_saved_model_knows_its_reference(model, pack, tmp_path):
    mum_model.save_mum(model, tmp_path / "model")
    frames, noise = pack
    again = mum_model.load_mum(tmp_path / "model")
    assert again.config.reference_view
    torch.testing.assert_close(again(frames[None], noise=noise).loss, model(frames[None], noise=noise).loss)
