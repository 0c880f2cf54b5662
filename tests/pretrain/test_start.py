"""Where a training may start from: runs, the authors' files, vision transformers of timm; and what does not fit."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import mum_model
from mum_model.errors import UserError
from mum_model.model import MultiViewConfig, MultiViewModel, save_multiview, save_mum
from mum_model.model.interchange import reference_state_dict
from mum_model.pretrain.start import load_start
from tests.conftest import run_mum
from tests.model.test_mum import SMALL
from tests.pretrain.runs import command


def fresh(seed, **changes):
    torch.manual_seed(seed)
    return mum_model.create_mum(**SMALL | changes, patch_size=8)


def same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("folder", ["", "model"])
def test_from_a_run(tmp_path, folder):
    save_mum(fresh(1), tmp_path / "run" / "model")
    model = fresh(0)
    load_start(model, str(tmp_path / "run" / folder))
    assert same(model, fresh(1))


def test_from_the_authors_whole_model(tmp_path):
    torch.save(reference_state_dict(fresh(1)), tmp_path / "MuM_ViTLarge_BaseDecoder.pth")
    model = fresh(0)
    load_start(model, str(tmp_path / "MuM_ViTLarge_BaseDecoder.pth"))
    assert same(model, fresh(1))


def test_from_the_authors_encoder_the_decoder_stays_fresh(tmp_path):
    save_file(reference_state_dict(fresh(1).encoder), tmp_path / "MuM_ViTLarge.safetensors")
    model = fresh(0)
    load_start(model, str(tmp_path / "MuM_ViTLarge.safetensors"))
    assert same(model.encoder, fresh(1).encoder)
    assert same(model.decoder, fresh(0).decoder)


def test_from_a_vision_transformer_of_timm(tmp_path):
    """A plain ViT, as MAE's: its blocks are taken, its absolute positions are not."""
    shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": shape, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = fresh(0)
    load_start(model, f"timm/local-dir:{tmp_path}")
    assert torch.equal(model.encoder.blocks[1].mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight)
    assert torch.equal(model.encoder.patch_embed.proj.weight, vit.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("broken.pth", "broken.pth: cannot be read as weights"),
        ("timm/no_such_model", "timm cannot give these weights"),
        ("heads", r"heads: its config.json is not that of a MuM .*timm/local-dir:RUN/encoder"),
        ("narrow", r"does not fit .* is \[16, 192\]|embed_dim|expected"),
    ],
)
def test_what_cannot_be_started_from_is_named(tmp_path, monkeypatch, start, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    save_mum(fresh(0, encoder_dim=16), tmp_path / "narrow")
    save_multiview(MultiViewModel(MultiViewConfig(token_dim=32, dim=16, depth=2, heads=2)), tmp_path / "heads")
    with pytest.raises(UserError, match=message):
        load_start(fresh(0), start)


@pytest.mark.slow
def test_a_training_starts_from_a_run_by_one_setting(tiny_run, tiny_dataset, tmp_path):
    """Its first loss is that of a trained model, not of a fresh one."""
    run_mum("pretrain", *command(tmp_path, tiny_dataset, "pretrain.steps=1", f"pretrain.start_from={tiny_run}"))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    fresh_first = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first < fresh_first - 0.05
