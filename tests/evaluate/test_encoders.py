"""Encoders of every kind: what an evaluation is given is what the other codebase would have computed."""

import json
import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.evaluate.encoders import open_contestants
from mum_model.evaluate.encoders.timm_model import TimmEncoder, create_timm_model
from mum_model.export import export
from mum_model.model import create_mum, load_encoder, reference_state_dict
from tests.conftest import TINY, paths

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 48, 48), dtype=np.uint8))


def opened(spec, *overrides):
    (contestant,) = open_contestants(compose([*TINY, f"encoder=[{spec}]", *overrides]))
    return contestant.encoders[0]


def normalised(images, mean, deviation):
    mean, deviation = (torch.tensor(value).reshape(3, 1, 1) for value in (mean, deviation))
    return (images / 255 - mean) / deviation


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_wildcard_finds_the_runs_and_not_the_hidden_locks_beside_them(tiny_run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tiny_run)
        (tmp_path / f".{name}.lock").touch()
    found = open_contestants(compose([*TINY, f"encoder=[{tmp_path}/*]"]))
    assert [contestant.name for contestant in found] == ["a", "b"]


@torch.no_grad()
def test_a_run_is_its_encoder_without_the_class_token(tiny_run):
    tokens = opened("run", f"paths.run={tiny_run}").tokens(IMAGES, -1)
    expected = load_encoder(tiny_run / "encoder").forward_features(normalised(IMAGES, *IMAGENET))
    torch.testing.assert_close(tokens.patches, expected[:, 1:])
    torch.testing.assert_close(tokens.summary, expected[:, 0])
    same = opened(str(tiny_run)).tokens(IMAGES, -1)
    assert torch.equal(same.patches, tokens.patches)


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_the_exported_file_gives_what_the_run_gives(tiny_run, tmp_path, kind):
    overrides = [f"paths.run={tiny_run}", "export.latency.runs=1", f"export.input={kind}"]
    folder = export(compose([*TINY, *paths(tmp_path), *overrides]))
    description = json.loads((folder / "export.json").read_text())
    description["files"].insert(0, {"name": "encoder.fp16.onnx"})  # as where there are variants
    (folder / "export.json").write_text(json.dumps(description))
    run = opened("run", f"paths.run={tiny_run}").tokens(IMAGES, -1)
    for spec in (folder, folder / "encoder.onnx"):
        encoder = opened(str(spec))
        assert encoder.patch_size == 8
        torch.testing.assert_close(encoder.tokens(IMAGES, -1).patches, run.patches, rtol=0, atol=2e-4)
        torch.testing.assert_close(encoder.tokens(IMAGES, -1).summary, run.summary, rtol=0, atol=2e-4)
    with pytest.raises(UserError, match="its layers are 0 to 0"):
        opened(f"{folder}@1")


def test_an_onnx_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "cut.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"cut\.onnx: ONNX Runtime cannot run it"):
        opened(str(tmp_path / "cut.onnx"))


def test_layers_are_those_of_the_encoder(tiny_run):
    encoder = opened("run", f"paths.run={tiny_run}")
    assert torch.equal(encoder.tokens(IMAGES, 1).patches, encoder.tokens(IMAGES, -1).patches)
    assert not torch.allclose(encoder.tokens(IMAGES, 0).patches, encoder.tokens(IMAGES, 1).patches)


@torch.no_grad()
def test_a_timm_model_keeps_its_patch_size_mean_deviation_and_prefix_tokens(tmp_path):
    """DINOv2's kind: patch 14, absolute positions of another size, registers, a mean and deviation of its own."""
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 4, "patch_size": 14, "img_size": 56}
    own = {"mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.1)}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, **own}
    save_for_hf(model, tmp_path, model_args={**arguments, "dynamic_img_size": True})
    encoder = opened(f"timm/local-dir:{tmp_path}")
    assert encoder.patch_size == 14
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 84, 84), dtype=np.uint8))
    reference = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0, dynamic_img_size=True).eval()
    expected = reference.forward_features(normalised(images, *own.values()))
    tokens = encoder.tokens(images, -1)
    assert tokens.patches.shape == (2, 36, 32)
    torch.testing.assert_close(tokens.patches, expected[:, 5:])
    torch.testing.assert_close(tokens.summary, expected[:, 0])


@pytest.mark.parametrize(
    ("name", "prefix", "side"),
    [
        ("vit_small_patch16_dinov3", 5, 32),
        ("vit_small_patch14_reg4_dinov2", 5, 28),
        ("vit_base_patch16_clip_224", 1, 32),
        ("vit_base_patch16_siglip_224", 0, 32),
        ("vit_base_patch16_224.mae", 1, 32),
    ],
)
@torch.no_grad()
def test_architectures_of_timm_are_taken_as_they_are(name, prefix, side):
    torch.manual_seed(0)
    model = create_timm_model(name, pretrained=False)
    images = IMAGES[..., :side, :side]
    settings = model.pretrained_cfg
    expected = model.forward_features(normalised(images, settings["mean"], settings["std"]))[:, prefix:]
    tokens = TimmEncoder("x", model).tokens(images, -1)
    torch.testing.assert_close(
        tokens.patches, model.fc_norm(expected) if isinstance(model.norm, nn.Identity) else expected
    )


def test_convolutions_have_a_token_for_each_cell_of_their_map():
    encoder = opened("random/convnext_atto")
    tokens = encoder.tokens(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), -1)
    assert encoder.patch_size == 32
    assert tokens.patches.shape == (1, 6, 320)


def test_weights_that_cannot_be_had_are_named(tmp_path):
    with pytest.raises(UserError, match=r"'local-dir:.*cannot be loaded.*save them once"):
        opened(f"timm/local-dir:{tmp_path}")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@torch.no_grad()
def test_the_authors_files_load_with_and_without_decoder(tmp_path, ending):
    torch.manual_seed(0)
    shape = {"encoder_dim": 32, "encoder_depth": 2, "encoder_heads": 2, "decoder_dim": 24, "decoder_depth": 2}
    model = create_mum("large", **shape, decoder_heads=2).eval()
    expected = model.encoder.forward_features(normalised(IMAGES, *IMAGENET))[:, 1:]
    for name, part in (("encoder", model.encoder), ("whole", model)):
        state = {key: value.contiguous() for key, value in reference_state_dict(part).items()}
        path = tmp_path / f"{name}.{ending}"
        torch.save(state, path) if ending == "pth" else save_file(state, path)
        torch.testing.assert_close(opened(str(path)).tokens(IMAGES, -1).patches, expected)


class CrocoEncoder(nn.Module):
    """CroCo v2's encoder from its description: no class token, and RoPE that turns each half of a head on its own."""

    def __init__(self, dim, depth, heads):
        super().__init__()
        self.heads = heads
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 16, 16)})
        self.enc_blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(dim, eps=1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)}),
                    "norm2": nn.LayerNorm(dim, eps=1e-6),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)}),
                }
            )
            for _ in range(depth)
        )
        self.enc_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, pixels):
        maps = self.patch_embed["proj"](pixels)
        rows, columns = maps.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        tokens = maps.flatten(2).transpose(1, 2)
        for block in self.enc_blocks:
            tokens = tokens + self.attend(block, block["norm1"](tokens), y.flatten(), x.flatten())
            hidden = F.gelu(block["mlp"]["fc1"](block["norm2"](tokens)))
            tokens = tokens + block["mlp"]["fc2"](hidden)
        return self.enc_norm(tokens)

    def attend(self, block, tokens, y, x):
        n, length, dim = tokens.shape
        q, k, v = block["attn"]["qkv"](tokens).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (torch.cat([turn(half, p) for half, p in zip(t.chunk(2, -1), (y, x), strict=True)], -1) for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, dim)
        return block["attn"]["proj"](mixed)


def turn(half, position):
    """Pairs a quarter of the head apart turn together, by 100^(-j / quarter) a patch."""
    quarter = half.shape[-1] // 2
    angle = position[:, None] * 100.0 ** (-torch.arange(quarter) / quarter)
    first, second = half.chunk(2, -1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


@torch.no_grad()
def test_croco_is_mapped_exactly(tmp_path):
    torch.manual_seed(0)
    croco = CrocoEncoder(dim=128, depth=3, heads=2).eval()
    for parameter in croco.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    content = {"model": {**croco.state_dict(), "dec_blocks.0.norm1.weight": torch.ones(3), "mask_token": torch.ones(3)}}
    torch.save(content, tmp_path / "croco.pth")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 48, 80), dtype=np.uint8))
    tokens = opened(str(tmp_path / "croco.pth")).tokens(images, -1)
    torch.testing.assert_close(tokens.patches, croco(normalised(images, *IMAGENET)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.summary, tokens.patches.mean(1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"enc_blocks.0.norm1.weight": torch.ones(3), "enc_pos_embed": torch.ones(3)}}, "absolute positions"),
        ({"something": torch.ones(3)}, "neither the authors' weights"),
        ({}, "holds no weights by name"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message):
        opened(str(tmp_path / "weights.pth"))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": re.compile}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not a file of weights alone"):
        opened(str(tmp_path / "weights.pth"))


def test_random_weights_differ_by_seed_and_pixels_do_not(tiny_run):
    cfg = compose([*TINY, f"paths.run={tiny_run}", "encoder=[random,pixels,random/vit_tiny_patch16_224]"])
    random, pixels, other = open_contestants(cfg)
    for contestant in (random, other):
        first, second = contestant.encoders
        assert first.identity != second.identity
    assert pixels.encoders[0] is pixels.encoders[1]
    assert pixels.encoders[0].patch_size == 8
    assert opened("pixels/12").tokens(IMAGES, -1).patches.shape == (2, 16, 12 * 12 * 3)
    assert json.loads((tiny_run / "model" / "config.json").read_text())["patch_size"] == 8
