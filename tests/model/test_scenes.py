"""Packing: scenes of different lengths in one batch train exactly as they would one by one."""

import pytest
import torch

import mum_model
from mum_model.model import scenes
from mum_model.model.scenes import SceneLayout
from tests.model.test_mum import SMALL

PATCH, SIDE, LENGTH = 8, (24, 32), 12
VIEWS = [2, 5, 5, 1, 3]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mum_model.create_mum(**SMALL, patch_size=PATCH)


@pytest.fixture
def pack():
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(sum(VIEWS), 3, *SIDE, generator=generator)
    return frames, torch.rand(sum(VIEWS), LENGTH, generator=generator)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_a_pack_has_the_loss_and_gradients_of_its_scenes(model, pack):
    """The unpacked model, scene by scene through its public door, weighted by views: equal to 1e-4 relative."""
    frames, noise = pack
    packed = model.masked_loss(frames, SceneLayout.of(VIEWS), noise=noise)
    packed.backward()
    ours = gradients(model)
    model.zero_grad()
    alone = sum(
        model(scene[None], noise=own).loss * len(scene) / len(frames)
        for scene, own in zip(frames.split(VIEWS), noise.split(VIEWS), strict=True)
    )
    alone.backward()
    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)
    for name, gradient in gradients(model).items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has one way")
@pytest.mark.parametrize("long", [0, 10**9], ids=["fused", "written out"])
def test_a_pack_in_bf16_is_that_of_float32(model, pack, monkeypatch, long):
    """Either way in which a CPU attends over scenes; 8 bits a number leave less than one per cent of a gradient."""
    monkeypatch.setattr(scenes, "LONG_ON_CPU", long)
    for block in model.decoder.global_blocks:
        block.attn.qkv.weight.data *= 10  # fresh weights attend to all alike
    frames, noise = pack
    exact = model.masked_loss(frames, SceneLayout.of(VIEWS), noise=noise)
    exact.backward()
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.masked_loss(frames, SceneLayout.of(VIEWS), noise=noise)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    together = [torch.cat([g.flatten() for g in found.values()]) for found in (expected, gradients(model))]
    assert (together[1] - together[0]).norm() <= 0.05 * together[0].norm()


def test_a_pack_of_equal_scenes_is_the_batch(model, pack):
    frames, noise = pack[0][:6], pack[1][:6]
    batch = model(frames.unflatten(0, (2, 3)), noise=noise)
    assert model.masked_loss(frames, SceneLayout.of([3, 3]), noise=noise).item() == pytest.approx(
        batch.loss.item(), rel=1e-6
    )


def test_scenes_of_a_pack_do_not_see_each_other(model, pack):
    frames, noise = pack
    frames = frames.clone().requires_grad_()
    first = 0
    for views in VIEWS:
        _, _, tokens = model._see_and_fill_in(frames, SceneLayout.of(VIEWS), 0.75, noise)
        (gradient,) = torch.autograd.grad(tokens[first : first + views].square().sum(), frames)
        touched = (gradient.flatten(1).abs().sum(1) > 0).nonzero().flatten()
        assert touched.tolist() == list(range(first, first + views))
        first += views


def test_the_order_of_scenes_does_not_matter(model, pack):
    frames, noise = pack
    order = [3, 0, 4, 2, 1]
    shuffled = [torch.cat([tensor.split(VIEWS)[i] for i in order]) for tensor in (frames, noise)]
    layout = SceneLayout.of([VIEWS[i] for i in order])
    expected = model.masked_loss(frames, SceneLayout.of(VIEWS), noise=noise).item()
    assert model.masked_loss(shuffled[0], layout, noise=shuffled[1]).item() == pytest.approx(expected, rel=1e-6)


def test_the_layout_has_one_shape_whatever_the_scenes():
    layouts = [SceneLayout.of(views, longest=9) for views in ([9], [4, 5], [1] * 9)]
    assert {tuple(layout.starts.shape) for layout in layouts} == {(10,)}
    assert {layout.longest for layout in layouts} == {9}
    assert layouts[1].starts.tolist() == [0, 4, 9, 9, 9, 9, 9, 9, 9, 9]
    assert list(SceneLayout.of(VIEWS).runs) == [(1, 2), (2, 5), (1, 1), (1, 3)]
