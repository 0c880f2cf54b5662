"""The components: each compiles alone, is described by its README, and keeps its data on the workspace."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import yaml
from kfp import compiler, dsl

from components import IMAGE
from components.finish import finish
from components.gate import gate
from components.metrics import log_numbers
from components.plan import plan
from components.prepare import prepare
from components.promotion import record_served, served_record
from components.readme import STAGES, component_of, readme, readme_path
from components.workspace import describe, folder_of, own_folder
from mum_model.errors import UserError
from mum_model.evaluate.gate import Record
from mum_model.evaluate.parts import BenchmarkCard
from mum_model.files import write_json
from tests.conftest import TINY

KILLED = """
import sys
from kfp import dsl
from components.prepare import prepare
root, overrides = sys.argv[1], sys.argv[2:]
dataset, metrics = dsl.Dataset(uri=f"{root}/dataset"), dsl.Metrics(uri=f"{root}/metrics")
prepare.python_func(
    overrides=overrides, dataset_revision="", workspace=root, dataset=dataset, metrics=metrics
)
print(dataset.metadata["content_sha256"])
"""


@pytest.mark.parametrize("stage", STAGES)
def test_compiles_alone(stage, tmp_path):
    compiler.Compiler().compile(component_of(stage), str(tmp_path / "component.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "component.yaml").read_text()))
    container = spec["deploymentSpec"]["executors"][f"exec-{stage.replace('_', '-')}"]["container"]
    assert container["image"] == IMAGE
    assert "pip install" not in " ".join(container["command"])


@pytest.mark.parametrize("stage", STAGES)
def test_readme_is_current(stage):
    assert readme_path(stage).read_text() == readme(stage), "renew it by `python -m components.readme`"


def prepared(root, overrides=TINY, dataset_revision=""):
    """The artifacts of a `prepare` step whose URIs lie in a folder."""
    dataset = dsl.Dataset(name="dataset", uri=str(root / "dataset"))
    metrics = dsl.Metrics(name="metrics", uri=str(root / "metrics"))
    prepare.python_func(
        overrides=overrides, dataset_revision=dataset_revision, workspace=str(root), dataset=dataset, metrics=metrics
    )
    return dataset, metrics


def test_prepare(tmp_path):
    dataset, metrics = prepared(tmp_path, [*TINY, "paths.dataset=elsewhere"])
    folder = folder_of(dataset)
    assert folder.parent == tmp_path / "datasets"
    card = json.loads((folder / "dataset.json").read_text())
    assert card["frames"] == 48
    assert (tmp_path / "dataset").read_text() == (folder / "dataset.json").read_text(), "the artifact is the card alone"
    assert dataset.metadata["content_sha256"] == card["content_sha256"]
    assert metrics.metadata["splits.train"] == card["splits"]["train"]
    assert json.loads((tmp_path / "metrics").read_text()) == metrics.metadata


def test_nothing_is_prepared_where_a_version_is_named(tmp_path):
    dataset, _ = prepared(tmp_path, dataset_revision="v1")
    assert "folder" not in dataset.metadata
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "metrics"}


@pytest.mark.slow
def test_killed_step_that_is_retried_ends_as_an_unbroken_one(tmp_path):
    unbroken, _ = prepared(tmp_path / "unbroken")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), *TINY]
    step = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shards = tmp_path / "killed" / "datasets"
    deadline = time.monotonic() + 120
    while len(list(shards.glob(".*.partial/shards/*"))) < 2:
        assert step.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(step.pid, signal.SIGKILL)
    step.wait()
    assert not list(shards.glob("[!.]*")), "half a dataset under a dataset's name"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == unbroken.metadata["content_sha256"]


def test_two_runs_never_meet_in_a_folder(tmp_path):
    artifacts = [dsl.Dataset(uri=f"minio://mlpipeline/v2/artifacts/mum/{run}/prepare/dataset") for run in ("a", "b")]
    first, second = (own_folder(artifact, tmp_path) for artifact in artifacts)
    assert first != second
    assert own_folder(artifacts[0], tmp_path) == first, "a retried step finds its folder again"


def test_data_that_is_gone_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("{}")
    run = dsl.Model(uri=str(tmp_path / "artifact"))
    describe(run, tmp_path / "run", "metrics.json")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"{tmp_path}/run: gone.*--no-cache"):
        folder_of(run)


def test_plan_is_encoders_times_benchmarks():
    served = "encoder=[run,{served: outputs/served}]"
    other = "+evaluate.benchmarks.rooms={layout: prepared, root: /rooms, fit: crop, tasks: [pairs]}"
    assert plan.python_func([served, other]) == [
        {"encoder": encoder, "benchmark": benchmark}
        for encoder in ("run", {"served": "outputs/served"})
        for benchmark in ("dataset", "rooms")
    ]


def candidate(folder, epe):
    """A report as `mum report` leaves it, as far as the gate reads it."""
    write_json(folder / "metrics.json", {"mum": {"dataset.matching.probe_epe": epe}})
    judged_on = {"dataset": BenchmarkCard("dataset", {"content": "f00d", "seed": 0}, [])}
    record = Record("mum", "run", ["c0de"], judged_on, {"dataset.matching.probe_epe": epe})
    write_json(folder / "candidate.json", asdict(record))
    evaluation = dsl.Artifact(uri=str(folder / "artifact"))
    describe(evaluation, folder, "metrics.json")
    return evaluation


def test_gate_compares_with_what_is_served(tmp_path):
    rules = ["gate=['dataset.matching.probe_epe <= 1.01 * served']"]

    def decide(epe):
        reasons = dsl.Markdown(uri=str(tmp_path / f"reasons-{epe}"))
        evaluation = candidate(tmp_path / f"{epe}", epe)
        promoted = gate.python_func(rules, "rooms", str(tmp_path), evaluation, reasons)
        return promoted, (tmp_path / f"reasons-{epe}").read_text()

    assert served_record(str(tmp_path), "rooms") is None
    promoted, reasons = decide(10.0)
    assert promoted
    assert "nothing is served yet" in reasons
    version = tmp_path / "models" / "rooms" / "r-1"
    version.mkdir(parents=True)
    record_served(version, tmp_path / "10.0")
    assert decide(10.05)[0]
    promoted, reasons = decide(11.0)
    assert not promoted
    assert "**mum is not promoted**" in reasons
    assert "broken" in reasons


def test_end_is_reported_whatever_happened(tmp_path, capsys):
    status = dsl.PipelineTaskFinalStatus("FAILED", "run", "exit-handler-1", 2, "out of memory")
    finish.python_func("r-1", str(tmp_path), status)
    assert json.loads((tmp_path / "runs" / "r-1" / "end.json").read_text()) == {
        "state": "FAILED",
        "error_code": 2,
        "error": "out of memory",
    }
    assert "run r-1: FAILED, out of memory" in capsys.readouterr().out


def test_only_numbers_are_logged(tmp_path):
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    log_numbers(metrics, {"loss": 0.5, "mum": {"pose_auc5": 3, "name": "x"}, "open": True, "none": None})
    assert metrics.metadata == {"loss": 0.5, "mum.pose_auc5": 3}
    assert json.loads((tmp_path / "metrics").read_text()) == metrics.metadata
