"""The components: each compiles alone, does what its stage does, and is described by its README."""

import json

import pytest
import yaml
from kfp import compiler, dsl

from components import IMAGE
from components.metrics import log_numbers
from components.prepare import prepare
from components.readme import STAGES, component_of, readme, readme_path
from tests.conftest import TINY


@pytest.mark.parametrize("stage", STAGES)
def test_compiles_alone(stage, tmp_path):
    compiler.Compiler().compile(component_of(stage), str(tmp_path / "component.yaml"))
    spec = yaml.safe_load((tmp_path / "component.yaml").read_text())
    container = spec["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]
    assert container["image"] == IMAGE
    assert "pip install" not in " ".join(container["command"])


@pytest.mark.parametrize("stage", STAGES)
def test_readme_is_current(stage):
    assert readme_path(stage).read_text() == readme(stage), "renew it by `python -m components.readme`"


@pytest.mark.parametrize("folder_is_there", [False, True])
def test_prepare(tmp_path, folder_is_there):
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "dataset"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    if folder_is_there:
        (tmp_path / "dataset").mkdir()
    prepare.python_func(overrides=[*TINY, "paths.dataset=elsewhere"], dataset=dataset, metrics=metrics)
    card = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
    assert card["frames"] == 48
    assert dataset.metadata["content_sha256"] == card["content_sha256"]
    assert metrics.metadata["splits.train"] == card["splits"]["train"]
    assert json.loads((tmp_path / "metrics").read_text()) == metrics.metadata
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "metrics", ".dataset.ledger.jsonl"}


def test_only_numbers_are_logged(tmp_path):
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    log_numbers(metrics, {"loss": 0.5, "mum": {"pose_auc5": 3, "name": "x"}, "open": True, "none": None})
    assert metrics.metadata == {"loss": 0.5, "mum.pose_auc5": 3}
    assert json.loads((tmp_path / "metrics").read_text()) == metrics.metadata
