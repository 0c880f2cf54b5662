"""The exported encoder: right at sizes it was never traced with, described by its contract, or not there at all."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import mum_model
from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.export import export, onnx_graph

PATCH = 8
DIM = 64


def config(root, *overrides):
    return compose(
        [
            f"paths.run={root / 'run'}",
            f"paths.export={root / 'export'}",
            "machine.threads=1",
            "export.latency.runs=3",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = mum_model.create_mum("tiny", encoder_dim=DIM, encoder_depth=2, encoder_heads=2, patch_size=PATCH)
    mum_model.save_encoder(model.encoder, root / "run" / "encoder", {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]})
    return root


@pytest.fixture(scope="module")
def exported(root):
    return export(config(root, "export.check_sizes=[[61,64],[96,160]]"))


@pytest.fixture(scope="module")
def description(exported):
    return json.loads((exported / "export.json").read_text())


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(exported / "encoder.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 96, 96), (2, 3, 16, 200), (1, 3, 136, 72)])
def test_agrees_with_pytorch_at_sizes_never_exported(root, session, shape):
    encoder = mum_model.load_encoder(root / "run" / "encoder")
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = encoder.forward_features(images).numpy()
    cls, patches = session.run(["cls", "patch_tokens"], {"images": images.numpy()})
    assert cls.dtype == patches.dtype == np.float32
    assert patches.shape == (shape[0], shape[2] * shape[3] // PATCH**2, DIM)
    np.testing.assert_allclose(cls, tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(patches, tokens[:, 1:], atol=1e-5)


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


def test_description(exported, description):
    data = (exported / "encoder.onnx").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert description["files"] == [{"name": "encoder.onnx", "bytes": len(data), "sha256": digest}]
    assert description["opset"] == 20
    assert set(description["versions"]) == {"torch", "timm", "onnx", "onnxscript", "onnxruntime"}
    shapes = [check["images"] for check in description["parity"]["checks"]]
    assert shapes == [[1, 3, 64, 64], [3, 3, 64, 64], [1, 3, 96, 160], [3, 3, 96, 160]]
    assert description["parity"]["max_abs_difference"] < 1e-5
    latency = description["latency"]
    assert latency["images"] == [1, 3, 224, 224]
    assert latency["threads"] == 1
    assert latency["onnxruntime_ms"] > 0
    assert latency["pytorch_ms"] > 0


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

    class TimmsOwn(torch.nn.Module):
        def __init__(self, rope):
            super().__init__()
            self.get_embed = rope.get_embed

    target = root / "refused" / "export"
    target.mkdir(parents=True)
    (target / "older").touch()
    monkeypatch.setattr(onnx_graph, "_OpenRotation", TimmsOwn)
    with pytest.raises(UserError, match=r"differ by .* more than export.max_abs_difference=0.0001"):
        export(config(root, f"paths.export={target}", "export.check_sizes=[[64,64]]"))
    assert [path.name for path in target.parent.iterdir()] == ["export"]
    assert [path.name for path in target.iterdir()] == ["older"]


def test_no_encoder(tmp_path):
    with pytest.raises(UserError, match=r"paths.run=.*run/encoder.*`mum pretrain` writes it"):
        export(config(tmp_path))


def test_fixed_batch_is_refused(exported, tmp_path):
    model = onnx.load(exported / "encoder.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "encoder.onnx")
    with pytest.raises(UserError, match="fixed N=2"):
        onnx_graph.require_open_graph(tmp_path / "encoder.onnx")
