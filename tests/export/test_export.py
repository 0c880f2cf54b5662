"""The exported encoder: right at sizes never traced, in fewer bits only without harm, or not there at all."""

import hashlib
import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import mum_model
from mum_model.config import compose
from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.export import export, matching, onnx_graph
from mum_model.export.provenance import provenance
from mum_model.export.verification import Agreement
from mum_model.model.masking import uniform_mask
from mum_model.model.pixels import normalise_pixels
from mum_model.pretrain.pictures import GAP
from mum_model.pretrain.pictures import reconstruction as reconstruction_picture
from tests.conftest import TINY, paths

PATCH = 8
DIM = 64
BLOCKS = 2


def config(root, *overrides):
    return compose(
        [
            f"paths.run={root / 'run'}",
            f"paths.export={root / 'export'}",
            "machine.threads=1",
            "export.latency.runs=3",
            "export.variants=[fp32]",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = mum_model.create_mum("tiny", encoder_dim=DIM, encoder_depth=BLOCKS, encoder_heads=2, patch_size=PATCH)
    mum_model.save_encoder(model.encoder, root / "run" / "encoder", {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]})
    return root


@pytest.fixture(scope="module")
def exported(root):
    return export(config(root, "export.checks=[[1,61,64],[3,96,160]]"))


def described(folder):
    return json.loads((folder / "export.json").read_text())


@pytest.fixture(scope="module")
def description(exported):
    return described(exported)


def opened(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def session(exported):
    return opened(exported / "encoder.onnx")


def tokens_by_torch(root, images):
    with torch.no_grad():
        return mum_model.load_encoder(root / "run" / "encoder").forward_features(images).numpy()


SIZES = [(1, 3, 8, 8), (3, 3, 96, 96), (2, 3, 16, 200), (1, 3, 136, 72), (16, 3, 24, 40)]


@pytest.mark.parametrize("shape", SIZES)
def test_agrees_with_pytorch_at_sizes_never_exported(root, session, shape):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tokens = tokens_by_torch(root, images)
    cls, patches = session.run(["cls", "patch_tokens"], {"images": images.numpy()})
    assert cls.dtype == patches.dtype == np.float32
    assert patches.shape == (shape[0], shape[2] * shape[3] // PATCH**2, DIM)
    np.testing.assert_allclose(cls, tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(patches, tokens[:, 1:], atol=1e-5)


def test_attention_is_one_operator_a_block(exported):
    """Nothing is left for an optimiser to find, and no softmax ever holds the scores of all pairs of tokens."""
    counts = Counter((node.domain, node.op_type) for node in onnx.load(exported / "encoder.onnx").graph.node)
    assert counts["com.microsoft", "MultiHeadAttention"] == BLOCKS
    assert counts["com.microsoft", "RotaryEmbedding"] == 2 * BLOCKS
    assert counts["", "Softmax"] == 0


@pytest.fixture(scope="module")
def others(root):
    """Another contract: pixels in, a block's tokens out, standard operators only."""
    overrides = ["export.input=uint8", "export.blocks=[0]", "export.operators=standard"]
    return export(config(root, f"paths.export={root / 'others'}", *overrides, "export.checks=[[1,32,64],[2,64,40]]"))


def test_standard_operators(others):
    nodes = onnx.load(others / "encoder.onnx").graph.node
    assert {node.domain for node in nodes} == {""}
    assert Counter(node.op_type for node in nodes)["Attention"] == BLOCKS


@pytest.mark.parametrize("shape", [(1, 24, 200, 3), (5, 72, 64, 3)])
def test_pixels_are_normalised_in_the_graph_as_in_training(others, tmp_path, shape):
    """With ImageNet's statistics, as training normalises."""
    torch.manual_seed(0)
    model = mum_model.create_mum("tiny", encoder_dim=DIM, encoder_depth=BLOCKS, encoder_heads=2, patch_size=PATCH)
    mum_model.save_encoder(model.encoder, tmp_path / "run" / "encoder")
    folder = export(config(tmp_path, "export.input=uint8", "export.checks=[[1,64,64]]"))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tokens = tokens_by_torch(tmp_path, normalise_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    cls, patches = opened(folder / "encoder.onnx").run(["cls", "patch_tokens"], {"pixels": pixels})
    np.testing.assert_allclose(cls, tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(patches, tokens[:, 1:], atol=1e-5)


def test_blocks_are_outputs(root, others):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 24, 40, 3), dtype=np.uint8)
    encoder = mum_model.load_encoder(root / "run" / "encoder")
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    images = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        (expected,) = encoder.forward_intermediates(
            images, indices=[0], norm=True, output_fmt="NLC", intermediates_only=True
        )
    (actual,) = opened(others / "encoder.onnx").run(["block_0"], {"pixels": pixels})
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert [output["name"] for output in described(others)["contract"]["outputs"]] == ["cls", "patch_tokens", "block_0"]


def test_a_block_that_is_not_there(root):
    with pytest.raises(UserError, match=r"export.blocks: there is no block 2; expected 0 to 1"):
        export(config(root, "export.blocks=[0,2]"))


# Variants in fewer bits.


@pytest.fixture(scope="module")
def variants(tiny_run, tiny_dataset, tiny_root):
    wanted = "export.variants=[fp32,fp16,int8_dynamic,int8_static]"
    smaller = ["export.checks=[[1,64,64],[3,40,96]]", "export.latency.runs=1", "export.pairs=8", "machine.threads=1"]
    # Six steps teach nothing: such features match at random, and which random match is found says nothing of harm.
    return export(compose([*TINY, *paths(tiny_root), wanted, "export.max_epe_ratio=2", *smaller]))


@pytest.mark.parametrize(("variant", "cosine"), [("fp16", 0.99999), ("int8_dynamic", 0.999), ("int8_static", 0.999)])
def test_variants_agree_with_fp32_at_other_sizes(variants, variant, cosine):
    images = np.random.default_rng(0).normal(size=(4, 3, 24, 136)).astype(np.float32)
    exact = opened(variants / "encoder.onnx").run(None, {"images": images})
    ours = opened(variants / f"encoder.{variant}.onnx").run(None, {"images": images})
    assert all(output.dtype == np.float32 for output in ours)
    assert Agreement.of(exact, ours).min_cosine > cosine


def test_variants_are_smaller(variants):
    size = {path.name: path.stat().st_size for path in variants.glob("*.onnx")}
    assert size["encoder.fp16.onnx"] < 0.6 * size["encoder.onnx"]
    assert max(size["encoder.int8_dynamic.onnx"], size["encoder.int8_static.onnx"]) < 0.45 * size["encoder.onnx"]


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8_dynamic", "int8_static"])
def test_every_variant_says_where_it_comes_from(variants, tiny_dataset, variant):
    description = described(variants)
    facts = description["variants"][variant]
    inside = opened(variants / facts["file"]).get_modelmeta().custom_metadata_map
    assert json.loads(inside["contract"]) == description["contract"]
    assert json.loads(inside["source"]) == description["source"]
    assert json.loads(inside["dataset"]) == SceneIndex.open(tiny_dataset).card["content_sha256"]
    assert json.loads(inside["licence"]) == "Apache-2.0"
    assert facts["matching_epe"] > 0


def test_an_image_says_which_code_it_was_built_from(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("MUM_REVISION", "c0ffee")
    assert provenance(tiny_run, tmp_path)["git_revision"] == "c0ffee"
    monkeypatch.setenv("MUM_REVISION", "")
    monkeypatch.chdir(tmp_path)
    assert provenance(tiny_run, tmp_path)["git_revision"] is None


def test_a_harmful_variant_is_left_out(tiny_run, tiny_dataset, tiny_root, tmp_path, caplog):
    """By a bar that nothing passes: the error would have to fall to half."""
    overrides = ["export.variants=[fp32,int8_dynamic]", "export.max_epe_ratio=0.5", "export.checks=[[1,64,64]]"]
    folder = export(compose([*TINY, *paths(tiny_root), f"paths.export={tmp_path / 'export'}", *overrides]))
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.onnx", "export.json"]
    description = described(folder)
    assert description["variants"].keys() == description["latency"]["milliseconds"].keys() - {"pytorch"} == {"fp32"}
    assert "x that of fp32, above export.max_epe_ratio=0.5" in description["refused"]["int8_dynamic"]
    assert "int8_dynamic is left out" in caplog.text


def test_unlike_features_are_refused(tiny_run, tiny_dataset, tiny_root, tmp_path):
    overrides = ["export.variants=[fp32,int8_dynamic]", "export.min_cosine=0.9999999", "export.checks=[[1,64,64]]"]
    folder = export(compose([*TINY, *paths(tiny_root), f"paths.export={tmp_path / 'export'}", *overrides]))
    assert "is below export.min_cosine=0.9999999" in described(folder)["refused"]["int8_dynamic"]


def test_variants_want_a_dataset(root):
    with pytest.raises(UserError, match=r"not a prepared dataset.*`mum prepare`"):
        export(config(root, "export.variants=[fp32,int8_dynamic]", f"paths.dataset={root / 'nowhere'}"))


def test_matching_error_of_a_perfect_and_a_blind_encoder(tiny_dataset):
    """Tokens that spell the true match give half a patch of error at most; equal tokens give far more."""
    pairs = matching.draw_pairs(SceneIndex.open(tiny_dataset), PATCH, 8, seed=0)
    (pair,) = pairs[:1]
    height, width = (side // PATCH for side in pair.images[1].shape[:2])
    cell = (np.nan_to_num(pair.target) // PATCH).astype(int).clip(0, [width - 1, height - 1]) @ [1, width]
    of_b = np.eye(height * width)
    answers = iter([of_b[cell][None], of_b[None]])
    assert matching.end_point_error([pair], lambda _: next(answers), PATCH) < PATCH * 448 / 64 * 0.71
    blind = matching.end_point_error(pairs, lambda pixels: np.ones((1, pixels.size // 3 // PATCH**2, 4)), PATCH)
    assert blind > PATCH * 448 / 64


# The whole model.


@pytest.fixture(scope="module", params=["onnxruntime", "standard"])
def reconstruction(request, tmp_path_factory):
    """A model with weights so large that every patch matters, and its export."""
    root = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = mum_model.create_mum(
        "tiny", encoder_dim=DIM, encoder_depth=BLOCKS, encoder_heads=2, decoder_dim=32, decoder_depth=4,
        decoder_heads=2, patch_size=PATCH,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    mum_model.save_encoder(model.encoder, root / "run" / "encoder")
    mum_model.save_mum(model, root / "run" / "model")
    overrides = ["export.reconstruction=true", f"export.operators={request.param}"]
    return model.eval(), export(config(root, *overrides, "export.checks=[[1,64,64],[3,40,96]]"))


SCENES = [(1, 16, 16, 0.75), (1, 64, 64, 0.5), (2, 96, 104, 0.75), (5, 24, 136, 0.3), (24, 40, 32, 0.95)]
"""Views, height, width, share of hidden patches."""


@pytest.mark.parametrize(("views", "height", "width", "mask_ratio"), SCENES)
def test_reconstruction_agrees_with_pytorch_at_sizes_never_exported(reconstruction, views, height, width, mask_ratio):
    model, folder = reconstruction
    pixels = np.random.default_rng(views).integers(0, 256, (views, height, width, 3), dtype=np.uint8)
    images = normalise_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    noise = torch.rand(views, height * width // PATCH**2, generator=torch.Generator().manual_seed(views))
    with torch.no_grad():
        expected = model(images[None], mask_ratio=mask_ratio, noise=noise)
    visible = uniform_mask(noise, mask_ratio).visible.numpy()
    session = opened(folder / "reconstruction.onnx")
    prediction, shown = session.run(None, {"pixels": pixels, "visible": visible})
    np.testing.assert_allclose(prediction, expected.prediction, atol=2e-4)
    third_row = reconstruction_picture(model, images, expected)[2 * (height + GAP) :]
    columns = [third_row[:, view * (width + GAP) :][:, :width] for view in range(views)]
    assert np.abs(np.float32(shown) - np.float32(columns)).max() <= 1


def test_views_change_each_others_reconstruction(reconstruction):
    _, folder = reconstruction
    session = opened(folder / "reconstruction.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    visible = np.array([[0, 5, 10], [1, 2, 3]])
    (together,) = session.run(["prediction"], {"pixels": pixels, "visible": visible})
    (alone,) = session.run(["prediction"], {"pixels": pixels[:1], "visible": visible[:1]})
    assert np.abs(together[0] - alone[0]).max() > 0.01


def test_reconstruction_is_described(reconstruction):
    _, folder = reconstruction
    described_so = described(folder)
    facts = described_so["reconstruction"]
    assert [file["name"] for file in described_so["files"]] == ["encoder.onnx", "reconstruction.onnx"]
    assert facts["file"] == "reconstruction.onnx"
    assert facts["max_abs_difference"] < 1e-4
    assert [check["images"] for check in facts["checks"]] == [[1, 64, 64, 3], [3, 40, 96, 3]]
    session = opened(folder / "reconstruction.onnx")
    for ends, given in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert [one["name"] for one in facts["contract"][ends]] == [one.name for one in given]
    inside = session.get_modelmeta().custom_metadata_map
    assert json.loads(inside["contract"]) == facts["contract"]
    assert json.loads(inside["source"]) == described_so["source"]
    nodes = Counter(node.op_type for node in onnx.load(folder / "reconstruction.onnx").graph.node)
    assert nodes["Softmax"] == nodes["If"] == 0
    assert nodes["MultiHeadAttention"] + nodes["Attention"] == BLOCKS + 4


@pytest.mark.parametrize("ablation", ["reference_view", "encoder_communication"])
def test_an_ablation_has_no_reconstruction(root, ablation):
    torch.manual_seed(0)
    model = mum_model.create_mum("tiny", **{ablation: True})
    mum_model.save_mum(model, root / "run" / "model")
    with pytest.raises(UserError, match=rf"trained with model.{ablation}=true.*leave export.reconstruction=false"):
        export(config(root, "export.reconstruction=true", f"paths.export={root / 'none'}"))
    assert not (root / "none").exists()


def test_an_encoder_with_added_positions_is_refused(tmp_path):
    torch.manual_seed(0)
    model = mum_model.create_mum("tiny", absolute_positions=64)
    mum_model.save_encoder(model.encoder, tmp_path / "run" / "encoder", {"input_size": [3, 64, 64]})
    with pytest.raises(UserError, match=r"model.absolute_positions.*only encoders with RoPE are exported"):
        export(config(tmp_path))


def test_no_model_to_reconstruct_with(root, tmp_path):
    mum_model.save_encoder(mum_model.load_encoder(root / "run" / "encoder"), tmp_path / "run" / "encoder")
    with pytest.raises(UserError, match=r"run/model: not the folder of a model"):
        export(config(tmp_path, "export.reconstruction=true"))


# The file, its description, and what is not let out.


def test_patch_tokens_are_row_major(session):
    images = np.random.default_rng(0).normal(size=(1, 3, 24, 40)).astype(np.float32)
    changed = images.copy()
    changed[:, :, 8:16, 24:32] += 10  # row 1, column 3 of 3 x 5 patches
    before, after = (session.run(["patch_tokens"], {"images": batch})[0][0] for batch in (images, changed))
    assert np.abs(after - before).mean(axis=1).argmax() == 1 * 5 + 3


def test_graph_is_open(exported):
    graph = onnx.load(exported / "encoder.onnx").graph
    dimensions = [dimension.dim_param or dimension.dim_value for dimension in graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["N", 3, "H", "W"]
    assert not any(node.op_type in ("If", "Loop", "Scan") for node in graph.node)


def test_no_folder_of_this_machine_in_the_file(exported):
    assert b"site-packages" not in (exported / "encoder.onnx").read_bytes()
    assert sorted(path.name for path in exported.iterdir()) == ["encoder.onnx", "export.json"]


def test_description(root, exported, description):
    data = (exported / "encoder.onnx").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert description["files"] == [{"name": "encoder.onnx", "bytes": len(data), "sha256": digest}]
    assert description["opset"] == 23
    weights = (root / "run" / "encoder" / "model.safetensors").read_bytes()
    assert description["source"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert set(description["versions"]) == {"torch", "timm", "onnx", "onnxscript", "onnxruntime"}
    facts = description["variants"]["fp32"]
    assert [check["images"] for check in facts["checks"]] == [[1, 64, 64, 3], [3, 96, 160, 3]]
    assert facts["max_abs_difference"] < 1e-5
    assert facts["min_cosine"] > 0.999999
    latency = description["latency"]
    assert latency["images"] == [1, 224, 224, 3]
    assert latency["threads"] == 1
    assert min(latency["milliseconds"].values()) > 0


def test_contract_beside_and_inside_the_file(session, description):
    contract = description["contract"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["contract"]) == contract
    assert contract["patch_size"] == contract["input"]["sides_multiple_of"] == PATCH
    assert contract["input"]["channels"] == "RGB"
    assert contract["input"]["range_before_normalisation"] == [0, 1]
    assert contract["input"]["mean"] == [0.4, 0.5, 0.6]
    assert contract["input"]["std"] == [0.2, 0.3, 0.4]
    assert [output["name"] for output in contract["outputs"]] == [output.name for output in session.get_outputs()]
    assert [output["shape"] for output in contract["outputs"]] == [["N", DIM], ["N", "L", DIM]]


def test_a_graph_tied_to_its_size_is_refused(root, monkeypatch):
    """With timm's own RoPE the grid is frozen into the graph; it must not get out, and an older export must stay."""
    target = root / "refused" / "export"
    target.mkdir(parents=True)
    (target / "older").touch()
    monkeypatch.setattr(onnx_graph, "OpenRotation", lambda rope: rope)
    with pytest.raises(UserError, match=r"differ by .* more than export.max_abs_difference=0.0001"):
        export(config(root, f"paths.export={target}", "export.checks=[[1,64,64]]"))
    assert [path.name for path in target.parent.iterdir()] == ["export"]
    assert [path.name for path in target.iterdir()] == ["older"]


def test_no_encoder(tmp_path):
    with pytest.raises(UserError, match=r"paths.run=.*run/encoder.*`mum pretrain` writes it"):
        export(config(tmp_path))


def test_fixed_batch_is_refused(exported, description, tmp_path):
    model = onnx.load(exported / "encoder.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "encoder.onnx")
    with pytest.raises(UserError, match="fixed N=2"):
        onnx_graph.require_open_graph(tmp_path / "encoder.onnx", {"images": {0: "N", 2: "H", 3: "W"}})
