"""A tiny exported encoder, and a server of it."""

import pytest
import torch
from served import DIM, PATCH, running_server

import mum_model
from mum_model.config import compose
from mum_model.export import export


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    model = mum_model.create_mum("tiny", encoder_dim=DIM, encoder_depth=2, encoder_heads=2, patch_size=PATCH)
    folder = tmp_path_factory.mktemp("run") / "encoder"
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
    return export(compose([f"paths.run={encoder[1]}", f"paths.export={target}", *overrides]))


@pytest.fixture(scope="session")
def server(exported, tmp_path_factory):
    with running_server(exported, tmp_path_factory.mktemp("server") / "log") as server:
        yield server
