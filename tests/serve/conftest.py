"""A tiny exported model, encoder and decoder, and a server of it."""

import pytest
import torch
from served import DIM, PATCH, running_server

import mum_model
from mum_model.config import compose
from mum_model.export import export

SHAPE = {"encoder_dim": DIM, "encoder_depth": 2, "encoder_heads": 2, "patch_size": PATCH}
DECODER_SHAPE = {"decoder_dim": 32, "decoder_depth": 2, "decoder_heads": 2}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The whole model, and the folder of its run."""
    torch.manual_seed(0)
    model = mum_model.create_mum("tiny", **SHAPE, **DECODER_SHAPE).eval()
    run = tmp_path_factory.mktemp("run")
    mum_model.save_mum(model, run / "model")
    return model, run


@pytest.fixture(scope="session")
def encoder(model):
    model, run = model
    folder = run / "encoder"
    mum_model.save_encoder(model.encoder, folder, {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]})
    return mum_model.load_encoder(folder), folder.parent


@pytest.fixture(scope="session")
def features_by_torch(encoder):
    def features(images):
        with torch.no_grad():
            tokens = encoder[0].forward_features(torch.from_numpy(images)).numpy()
        return tokens[:, 0], tokens[:, 1:]

    return features


@pytest.fixture(scope="session")
def exported(encoder, tmp_path_factory):
    target = tmp_path_factory.mktemp("exported") / "export"
    overrides = ["machine.threads=1", "export.checks=[[1,64,96]]", "export.latency.runs=1", "export.variants=[fp32]"]
    overrides.append("export.reconstruction=true")
    return export(compose([f"paths.run={encoder[1]}", f"paths.export={target}", *overrides]))


@pytest.fixture(scope="session")
def server(exported, tmp_path_factory):
    with running_server(exported, tmp_path_factory.mktemp("server") / "log") as server:
        yield server
