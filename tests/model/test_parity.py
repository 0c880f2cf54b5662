"""Parity with the authors' model: golden vectors, and the key names of the released files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mum_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "tiny_reference.npz") as archive:
        return {key: archive[key] for key in archive.files}


def with_prefix(golden, prefix):
    return {key.removeprefix(prefix): torch.from_numpy(golden[key]) for key in golden if key.startswith(prefix)}


@pytest.fixture
def model(golden):
    config = json.loads(str(golden["config"]))
    model = mum_model.create_mum(
        encoder_dim=config["embed_dim"],
        encoder_depth=config["depth"],
        encoder_heads=config["num_heads"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
        layer_norm_eps=config["layer_norm_eps"],
    )
    mum_model.load_reference_state_dict(model, with_prefix(golden, "state/"))
    return model


def assert_close(actual, expected):
    expected = torch.as_tensor(expected, dtype=torch.float32)
    error = (actual.detach() - expected).abs().max() / expected.abs().max()
    assert error < 1e-4


def test_forward_and_gradients(model, golden):
    output = model(torch.from_numpy(golden["images"]), noise=torch.from_numpy(golden["noise"]))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(float(golden["loss"]), rel=1e-4)
    assert_close(output.prediction, golden["pred"])
    assert torch.equal(output.mask, torch.from_numpy(golden["mask"]))
    expected = with_prefix(golden, "gradnorm/")
    for parameter in model.parameters():  # gradients under the authors' names, by way of the interchange itself
        parameter.data.copy_(parameter.grad)
    gradients = mum_model.reference_state_dict(model)
    ours = {name: gradients[name].norm().item() for name in gradients if not name.endswith("periods")}
    assert ours.keys() == expected.keys()
    for name, norm in ours.items():
        assert norm == pytest.approx(expected[name].item(), rel=1e-4), name


def test_encoder_features(model, golden):
    images = torch.from_numpy(golden["images"]).flatten(0, 1)
    model.encoder.eval()
    tokens = model.encoder.forward_features(images)
    assert_close(tokens[:, 0], golden["cls"])
    assert_close(tokens[:, 1:], golden["patch_tokens"])
    (before_last,) = model.encoder.forward_intermediates(
        images, indices=[0], norm=True, output_fmt="NLC", intermediates_only=True
    )
    assert_close(before_last, golden["intermediate_minus2"])
