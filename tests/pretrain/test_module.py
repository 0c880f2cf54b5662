"""The loss as one module: its switches, and what they leave as it is."""

import pytest
import torch

import mum_model
from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.model.encoder import transformer_blocks
from mum_model.model.masking import patchify
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout
from mum_model.pretrain.module import LossModule, compile_blocks, recompute_blocks
from mum_model.pretrain.objectives.masked import MaskedImages
from tests.model.test_mum import SMALL

VIEWS = (3, 2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mum_model.create_mum(**SMALL, patch_size=8)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (5, 3, 16, 24), dtype=torch.uint8, generator=generator)
    return images, SceneLayout.of(VIEWS), torch.rand(5, 6, generator=generator)


def loss_and_gradient(model, batch, **settings):
    model.zero_grad()
    cfg = compose([f"pretrain.{name}={value}" for name, value in settings.items()])
    loss = LossModule(model, MaskedImages(cfg), "fp32")(*batch)
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_recomputed_blocks_give_the_same_gradient(model, batch, share):
    expected = loss_and_gradient(model, batch)
    names = list(model.state_dict())
    recompute_blocks(model, share)
    ours = loss_and_gradient(model, batch)
    assert ours[0] == expected[0]
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-5, atol=1e-7)
    assert list(model.state_dict()) == names
    recomputed = sum("forward" in vars(block) for block in transformer_blocks(model))
    assert recomputed == int(share * len(list(transformer_blocks(model))))


def test_a_share_beyond_one_is_refused(model):
    with pytest.raises(UserError, match="between 0 and 1"):
        recompute_blocks(model, 1.5)


def test_raw_pixels_as_target(model, batch):
    """With a head that predicts zero the loss is the mean square of the masked pixels."""
    torch.nn.init.zeros_(model.decoder.head.weight)
    images, _, noise = batch
    masked = noise.argsort(dim=1)[:, 1:]
    patches = patchify(normalise_pixels(images), 8)
    pixels = patches.gather(1, masked.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    assert loss_and_gradient(model, batch, normalise_target=False)[0] == pytest.approx(pixels.square().mean().item())
    assert loss_and_gradient(model, batch)[0] == pytest.approx(191 / 192, rel=1e-4)  # unit variance, unbiased


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradient(model, batch):
    expected = loss_and_gradient(model, batch)
    compile_blocks(model)
    ours = loss_and_gradient(model, batch)
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-3, atol=1e-5)
