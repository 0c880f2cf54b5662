"""The pipeline: its compiled form is current, it runs from end to end, and a server gets what it expects."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from kfp import dsl, local

from components import IMAGE
from components.prepare import prepare
from pipelines.cli import main
from pipelines.pipeline import PIPELINE_YAML, compile_pipeline
from tests.conftest import TINY


@pytest.fixture(scope="module")
def documents():
    """The compiled pipeline and its platform part."""
    return list(yaml.safe_load_all(PIPELINE_YAML.read_text()))


def test_compiled_pipeline_is_current(tmp_path):
    fresh = compile_pipeline(tmp_path / "pipeline.yaml").read_text()
    assert fresh == PIPELINE_YAML.read_text(), "renew it by `mum-pipeline compile`"


def test_one_image_of_this_version(documents):
    containers = [executor["container"] for executor in documents[0]["deploymentSpec"]["executors"].values()]
    assert {container["image"] for container in containers} == {IMAGE}
    assert IMAGE.rpartition(":")[2] == version("mum-pipeline")


def test_graph(documents):
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()} == {
        "prepare": set(),
        "pretrain": {"prepare"},
        "evaluate": {"prepare", "pretrain"},
        "export": {"prepare", "pretrain"},
    }
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"prepare", "evaluate", "export"}


def test_training_has_shared_memory(documents):
    mounts = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-pretrain"]["emptyDirMounts"]
    assert mounts == [{"medium": "Memory", "mountPath": "/dev/shm", "volumeName": "shm"}]


@pytest.mark.slow
def test_runs_from_end_to_end(tmp_path):
    done = CliRunner().invoke(main, ["run", "--root", str(tmp_path), *TINY])
    assert done.exit_code == 0, done.output
    paths = {name: Path(path) for name, path in re.findall(r"^(\w+) +(/\S+)$", done.output, re.MULTILINE)}
    assert paths.keys() == {"dataset", "run", "evaluation", "report", "onnx"}
    assert (paths["run"] / "encoder" / "model.safetensors").is_file()
    assert (paths["onnx"] / "encoder.onnx").is_file()
    report = paths["report"].read_text()
    assert report == (paths["evaluation"] / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', report) == [], "the KFP interface shows the page alone"
    trained = written(paths["run"].with_name("executor_output.json"))
    card = json.loads((paths["dataset"] / "dataset.json").read_text())
    assert trained["run"]["dataset_sha256"] == card["content_sha256"]
    assert trained["metrics"]["loss"] > 0
    judged = json.loads((paths["evaluation"] / "metrics.json").read_text())
    assert written(paths["evaluation"].with_name("executor_output.json"))["metrics"] == {
        f"{encoder}.{name}": value for encoder, numbers in judged.items() for name, value in numbers.items()
    }


def written(executor_output):
    """Metadata of each artifact of a task, as KFP keeps it."""
    artifacts = json.loads(executor_output.read_text())["artifacts"]
    return {name: listed["artifacts"][0]["metadata"] for name, listed in artifacts.items()}


@pytest.mark.slow
def test_second_preparation_comes_from_the_cache(tmp_path):
    @dsl.pipeline
    def preparation(overrides: list) -> dsl.Dataset:
        return prepare(overrides=overrides).outputs["dataset"]

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path), enable_caching=True)
    first, second = (preparation(overrides=TINY).output.uri for _ in range(2))
    assert first == second
    assert first != preparation(overrides=[*TINY, "data.jpeg_quality=80"]).output.uri


@pytest.mark.slow
def test_failed_stage_fails_the_run(tmp_path):
    done = CliRunner().invoke(main, ["run", "--root", str(tmp_path), "data.source=/nothing"])
    assert done.exit_code == 1
    assert "/nothing: no such folder" in done.output
    assert "'prepare'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["run"], ["submit", "--endpoint", "http://127.0.0.1:1", "-e", "x"]])
def test_mistyped_override_fails_at_once(command):
    done = CliRunner().invoke(main, [*command, "pretrain.stepz=3"])
    assert done.exit_code == 2
    assert "pretrain.stepz" in done.output


class Server(BaseHTTPRequestHandler):
    """As much of the KFP API as starting a run takes."""

    posted: dict[str, dict] = {}  # noqa: RUF012, one server a test

    def do_GET(self):
        self.answer({"multi_user": False} if "healthz" in self.path else {})

    def do_POST(self):
        kind = self.path.rpartition("/")[2]
        self.posted[kind] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"experiment_id": "e-1"} if kind == "experiments" else {"run_id": "r-1", "experiment_id": "e-1"})

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_submit(server):
    done = CliRunner().invoke(main, ["submit", "--endpoint", server, "-e", "ablations", "model=small", "seed=1"])
    assert done.exit_code == 0, done.output
    assert f"{server}/#/runs/details/r-1" in done.output
    assert Server.posted["experiments"]["display_name"] == "ablations"
    run = Server.posted["runs"]
    assert run["experiment_id"] == "e-1"
    assert run["runtime_config"]["parameters"] == {"overrides": ["model=small", "seed=1"]}
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "mum"
    assert "exec-pretrain" in json.dumps(run["pipeline_spec"]["platform_spec"])


def test_submit_says_what_is_unreachable():
    done = CliRunner().invoke(main, ["submit", "--endpoint", "http://127.0.0.1:1", "-e", "x"])
    assert done.exit_code == 1
    assert "http://127.0.0.1:1" in done.output
    assert "--endpoint" in done.output
