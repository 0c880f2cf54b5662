"""The model by its properties: equivariance, one view, sizes and shapes, weights that travel."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf

import mum_model
from mum_model.config import CONFIG_DIR
from mum_model.errors import UserError
from mum_model.model.encoder import ENCODER_SIZES
from mum_model.model.masking import normalise_patches, patchify, uniform_mask, unpatchify
from mum_model.model.mum import MUM_SIZES
from mum_model.model.pixels import denormalise_pixels, normalise_pixels

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {
    "encoder_dim": 32,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "decoder_dim": 24,
    "decoder_depth": 4,
    "decoder_heads": 2,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mum_model.create_mum(**SMALL, patch_size=8).eval()


def views(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def noise_for(images, patch=8):
    count, length = images.shape[0] * images.shape[1], images.shape[-2] * images.shape[-1] // patch**2
    return torch.rand(count, length, generator=torch.Generator().manual_seed(2))


def test_order_of_views_does_not_matter(model):
    images, order = views(2, 4, 3, 32, 48), torch.tensor([2, 0, 3, 1])
    noise = noise_for(images)
    plain = model(images, noise=noise)
    shuffled_noise = noise.unflatten(0, (2, 4))[:, order].flatten(0, 1)
    shuffled = model(images[:, order], noise=shuffled_noise)
    expected = plain.prediction.unflatten(0, (2, 4))[:, order].flatten(0, 1)
    torch.testing.assert_close(shuffled.prediction, expected, rtol=1e-4, atol=1e-5)
    assert shuffled.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)


def test_scenes_do_not_see_each_other(model):
    images = views(2, 3, 3, 32, 32)
    noise = noise_for(images)
    together = model(images, noise=noise).prediction
    alone = model(images[1:], noise=noise[3:]).prediction
    torch.testing.assert_close(together[3:], alone, rtol=1e-4, atol=1e-5)


def test_views_of_a_scene_see_each_other(model):
    images = views(1, 2, 3, 32, 32)
    noise = noise_for(images)
    before = model(images, noise=noise).prediction[0]
    images[0, 1] += 1.0
    assert not torch.allclose(model(images, noise=noise).prediction[0], before, atol=1e-4)


def test_one_view_attends_globally_to_itself(model):
    images = views(3, 1, 3, 32, 32)
    noise = noise_for(images)
    output = model(images, noise=noise)
    assert output.prediction.shape == (3, 16, 8 * 8 * 3)
    assert output.mask.sum(dim=1).tolist() == [12, 12, 12]
    one = model(images[1:2], noise=noise[1:2])
    torch.testing.assert_close(output.prediction[1:2], one.prediction, rtol=1e-4, atol=1e-5)


def test_masked_pixels_do_not_leak(model):
    images = views(1, 2, 3, 32, 32)
    noise = noise_for(images)
    before = model(images, noise=noise)
    hidden = unpatchify(before.mask.unsqueeze(-1).expand(-1, -1, 192), 8, (4, 4))
    changed = model(images + 5 * hidden.unflatten(0, (1, 2)), noise=noise)
    torch.testing.assert_close(changed.prediction, before.prediction)


def test_loss_counts_masked_patches_only(model):
    images = views(1, 2, 3, 32, 32)
    output = model(images, noise=noise_for(images))
    patches = patchify(images.flatten(0, 1), 8)
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True, unbiased=True)
    target = (patches - mean) / (variance + 1e-6).sqrt()
    error = ((output.prediction - target) ** 2).mean(-1)
    assert output.loss.item() == pytest.approx(error[output.mask.bool()].mean().item(), rel=1e-5)


def test_noise_absent_draws_from_the_global_generator(model):
    images = views(1, 2, 3, 32, 32)
    torch.manual_seed(5)
    first = model(images).mask
    torch.manual_seed(5)
    assert torch.equal(model(images).mask, first)
    assert not torch.equal(model(images).mask, first)


@pytest.mark.parametrize(
    ("size", "message"), [((30, 32), "multiples of the patch size 8"), ((8, 8), "leave some visible")]
)
def test_impossible_images_are_refused(model, size, message):
    with pytest.raises(ValueError, match=message):
        model(views(1, 1, 3, *size))


def test_patches_round_trip():
    images = views(2, 3, 16, 24)
    patches = patchify(images, 8)
    assert patches.shape == (2, 6, 192)
    assert torch.equal(patches[0, 1].reshape(8, 8, 3), images[0, :, :8, 8:16].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 8, (2, 3)), images)
    normalised, mean, deviation = normalise_patches(patches)
    torch.testing.assert_close(normalised * deviation + mean, patches)


def test_mask_keeps_the_smallest_noise():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    mask = uniform_mask(noise, 0.5)
    assert sorted(mask.visible[0].tolist()) == [1, 3]
    assert sorted(mask.masked[0].tolist()) == [0, 2]


def test_pixels_round_trip():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(denormalise_pixels(normalise_pixels(images)) * 255, images.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", ENCODER_SIZES)
def test_encoders_are_registered_with_timm(size):
    with torch.device("meta"):
        encoder = timm.create_model(f"mum_vit_{size}_patch16", pretrained=False)
    assert encoder.embed_dim == ENCODER_SIZES[size]["embed_dim"]
    assert len(encoder.blocks) == ENCODER_SIZES[size]["depth"]


@pytest.mark.parametrize("size", MUM_SIZES)
def test_config_tree_says_what_the_sizes_say(size):
    assert OmegaConf.load(CONFIG_DIR / "model" / f"{size}.yaml") == asdict(MUM_SIZES[size])


@pytest.mark.parametrize(
    ("file", "whole"), [("MuM_ViTLarge_BaseDecoder.keys.json", True), ("MuM_ViTLarge.keys.json", False)]
)
def test_large_model_has_exactly_the_authors_keys(file, whole):
    expected = {key: (tuple(shape), dtype) for key, (shape, dtype) in json.loads((GOLDEN / file).read_text()).items()}
    model = mum_model.create_mum("large")
    state = mum_model.reference_state_dict(model if whole else model.encoder)
    assert {key: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for key, v in state.items()} == expected
    if whole:
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 389.5
    else:
        assert sum(p.numel() for p in model.encoder.parameters()) == 303_099_904


@pytest.mark.parametrize("part", ["model", "encoder"])
def test_reference_weights_go_both_ways(model, part):
    source = model if part == "model" else model.encoder
    other = mum_model.create_mum(**SMALL, patch_size=8)
    target = other if part == "model" else other.encoder
    mum_model.load_reference_state_dict(target, mum_model.reference_state_dict(source))
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_wrong_reference_weights_are_listed(model):
    state = mum_model.reference_state_dict(model)
    del state["decoder_norm.weight"]
    state["decoder_extra"] = torch.zeros(1)
    state["norm.bias"] = torch.zeros(7)
    state["rope_embed.periods"] = state["rope_embed.periods"] * 2
    before = model.state_dict()["encoder.norm.bias"].clone()
    with pytest.raises(UserError) as error:
        mum_model.load_reference_state_dict(model, state)
    message = str(error.value)
    assert "missing: decoder_norm.weight" in message
    assert "left over: decoder_extra" in message
    assert "norm.bias: shape [7], expected [32]" in message
    assert "RoPE periods" in message
    assert torch.equal(model.state_dict()["encoder.norm.bias"], before)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_plain_timm_loads_the_encoder(tmp_path, eps):
    encoder = mum_model.create_mum(**SMALL, patch_size=8, layer_norm_eps=eps).encoder.eval()
    mum_model.save_encoder(encoder, tmp_path / "encoder")
    images = views(2, 3, 32, 48)
    torch.save({"images": images}, tmp_path / "images.pt")
    script = (
        "import sys, importlib.util, torch\n"
        # The shim alone, without this project's registrations: what a CPU build of torch needs to import timm.
        f"spec = importlib.util.spec_from_file_location('shim', {str(shim_path())!r})\n"
        "shim = importlib.util.module_from_spec(spec); spec.loader.exec_module(shim)\n"
        "import timm\n"
        f"model = timm.create_model('local-dir:{tmp_path}/encoder', pretrained=True).eval()\n"
        f"images = torch.load('{tmp_path}/images.pt', weights_only=True)['images']\n"
        f"torch.save(model.forward_features(images).detach(), '{tmp_path}/tokens.pt')\n"
        "assert not any(name.startswith('mum_model') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    tokens = torch.load(tmp_path / "tokens.pt", weights_only=True)
    torch.testing.assert_close(tokens, encoder.forward_features(images).detach())


def shim_path():
    return Path(mum_model.__file__).parent / "model" / "torchvision_on_cpu.py"


def test_saved_models_come_back(model, tmp_path):
    mum_model.save_mum(model, tmp_path / "model")
    again = mum_model.load_mum(tmp_path / "model")
    assert again.config == model.config
    images = views(1, 2, 3, 32, 32)
    torch.testing.assert_close(again(images, noise=noise_for(images)), model(images, noise=noise_for(images)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"size": "giant"}, "expected one of tiny, small"),
        ({"encoder_width": 3}, "expected fields are encoder_dim"),
        ({"decoder_depth": 3}, "decoder_depth=3: must be even"),
        ({"encoder_dim": 30, "encoder_heads": 3}, "multiple of 4 wide"),
    ],
)
def test_impossible_models_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        mum_model.create_mum(**overrides)


def test_folders_that_are_no_model_are_named(tmp_path):
    with pytest.raises(UserError, match=r"it has no config\.json"):
        mum_model.load_encoder(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        mum_model.load_mum(tmp_path)


def test_importing_the_package_is_light():
    script = "import sys, mum_model, mum_model.config; assert 'torch' not in sys.modules; dir(mum_model)"
    subprocess.run([sys.executable, "-c", script], check=True)
