"""The pipeline: its compiled form is current and says what Kubernetes is to do, and it runs from end to end."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from kfp import dsl, local

from components import IMAGE
from components.prepare import prepare
from mum_model.errors import UserError
from pipelines.cli import main
from pipelines.graph import DOC, with_graph
from pipelines.pipeline import PIPELINE_YAML, compile_pipeline
from pipelines.platform import Platform, load_platform
from tests.conftest import TINY


@pytest.fixture(scope="module")
def documents():
    """The compiled pipeline and its platform part."""
    return list(yaml.safe_load_all(PIPELINE_YAML.read_text()))


@pytest.fixture(scope="module")
def tasks(documents):
    """Every task by name, out of whatever group it is in."""
    dags = [component["dag"]["tasks"] for component in documents[0]["components"].values() if "dag" in component]
    return {name: task for dag in [documents[0]["root"]["dag"]["tasks"], *dags] for name, task in dag.items()}


@pytest.fixture(scope="module")
def pods(documents):
    """What Kubernetes is told of the pod of each task."""
    options = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): option for name, option in options.items()}


def test_compiled_pipeline_is_current(tmp_path):
    fresh = compile_pipeline(tmp_path / "pipeline.yaml").read_text()
    assert fresh == PIPELINE_YAML.read_text(), "renew it by `mum-pipeline compile`"


def test_the_picture_in_the_docs_is_current():
    assert with_graph(DOC.read_text()) == DOC.read_text(), "renew it by `python -m pipelines.graph`"
    assert "register --> deploy" in DOC.read_text()


def test_one_image_of_this_version(documents):
    containers = [executor["container"] for executor in documents[0]["deploymentSpec"]["executors"].values()]
    assert {container["image"] for container in containers} == {IMAGE}
    assert IMAGE.rpartition(":")[2] == version("mum-pipeline")


def test_graph(tasks):
    groups = re.compile(r"exit-handler|for-loop|condition")
    after = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items() if not groups.match(name)}
    assert after == {
        "prepare": set(),
        "dataset-version": {"prepare"},
        "pretrain": {"dataset-version"},
        "export": {"dataset-version", "pretrain"},
        "plan": set(),
        "evaluate": set(),
        "report": {"for-loop-2", "pretrain"},
        "gate": {"report"},
        "register": set(),
        "deploy": {"register"},
        "finish": {"exit-handler-1"},
    }
    assert set(tasks["for-loop-2"]["dependentTasks"]) == {"plan", "dataset-version", "pretrain"}
    assert set(tasks["condition-3"]["dependentTasks"]) == {"gate", "report", "export", "dataset-version", "pretrain"}
    assert tasks["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_what_is_cached(tasks, pods):
    cached = {name for name in pods if tasks[name]["cachingOptions"].get("enableCache")}
    assert cached == set(pods) - {"pretrain", "gate", "register", "deploy"}


def test_versions_of_a_repository_are_always_looked_up(tmp_path):
    file = compile_pipeline(tmp_path / "pipeline.yaml", Platform(repository="https://git.example/data"))
    spec = next(yaml.safe_load_all(file.read_text()))
    assert spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]["dataset-version"]["cachingOptions"] == {}


def test_every_pod_sees_the_workspace_as_nobody_special(pods):
    for pod in pods.values():
        (mount,) = pod["pvcMount"]
        assert (mount["pvcNameParameter"]["runtimeValue"]["constant"], mount["mountPath"]) == (
            "mum-workspace",
            "/workspace",
        )
        assert pod["podMetadata"]["labels"]["app.kubernetes.io/name"] == "mum"
        assert pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
        assert int(pod["activeDeadlineSeconds"]) > 0
        assert pod["imagePullPolicy"] == "IfNotPresent"


def test_every_task_has_resources_and_retries(documents, tasks, pods):
    executors = documents[0]["deploymentSpec"]["executors"]
    for name in pods:
        resources = executors[f"exec-{name}"]["container"]["resources"]
        assert {
            "resourceCpuRequest",
            "resourceCpuLimit",
            "resourceMemoryRequest",
            "resourceMemoryLimit",
        } <= resources.keys()
        assert tasks[name]["retryPolicy"]["maxRetryCount"] == 2
        assert tasks[name]["retryPolicy"]["backoffFactor"] == 2.0


def test_gpus_go_where_the_network_runs(documents, pods):
    executors = documents[0]["deploymentSpec"]["executors"]
    with_gpu = {name for name in pods if "accelerator" in executors[f"exec-{name}"]["container"]["resources"]}
    assert with_gpu == {"evaluate", "export"}, "the training's GPUs are its TrainJob's"
    assert {name for name, pod in pods.items() if "tolerations" in pod} == {"evaluate", "export", "pretrain"}


def test_training_has_shared_memory_and_hands_its_pod_on(documents, pods):
    assert pods["pretrain"]["emptyDirMounts"] == [{"medium": "Memory", "mountPath": "/dev/shm", "volumeName": "shm"}]
    handed = documents[0]["components"]["comp-pretrain"]["taskConfigPassthroughs"]
    assert {one["field"] for one in handed} >= {"RESOURCES", "KUBERNETES_TOLERATIONS", "KUBERNETES_NODE_SELECTOR"}
    assert {one["field"] for one in handed if one.get("applyToTask")} == {"ENV", "KUBERNETES_VOLUMES"}


def test_credentials_reach_the_step_that_needs_them(pods):
    assert {name for name, pod in pods.items() if "secretAsEnv" in pod or "secretAsVolume" in pod} == {
        "dataset-version"
    }
    (env,) = pods["dataset-version"]["secretAsEnv"]
    assert env["optional"]
    assert {key["envVar"] for key in env["keyToEnv"]} == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ENDPOINT_URL",
    }


def test_a_platform_of_ones_own(tmp_path):
    mine = tmp_path / "platform.yaml"
    mine.write_text(
        "image: registry.example/mum-train:0.1.0\ngpu: {node_selector: {pool: big}, evaluation: 0}\nqueue: mum\n"
    )
    done = CliRunner().invoke(
        main,
        [
            "compile",
            "--platform",
            str(mine),
            "-o",
            str(tmp_path / "mine.yaml"),
            "claim=elsewhere",
            "gpu.type=amd.com/gpu",
        ],
    )
    assert done.exit_code == 0, done.output
    text = (tmp_path / "mine.yaml").read_text()
    spec, platform = yaml.safe_load_all(text)
    assert IMAGE not in re.findall(r"image: (\S+)", text)
    assert "mum-workspace" not in text
    pretrain = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-pretrain"]
    assert pretrain["nodeSelector"] == {"labels": {"pool": "big"}}
    assert not [
        executor
        for executor in spec["deploymentSpec"]["executors"].values()
        if "accelerator" in executor["container"]["resources"]
    ]


@pytest.mark.parametrize("setting", ["gpus=1", "retries.count=many", "nonsense"])
def test_a_mistyped_platform_is_refused(setting):
    with pytest.raises(UserError, match=r"pipelines/platform\.py"):
        load_platform(None, (setting,))


def run(root, *arguments):
    """Run the pipeline here, with a DVC remote beside it; returns the paths that it names."""
    done = CliRunner().invoke(main, ["run", "--root", str(root), "--remote", str(root / "remote"), *TINY, *arguments])
    assert done.exit_code == 0, done.output[-3000:]
    return {name: Path(path) for name, path in re.findall(r"^(\w+) +(/\S+)$", done.output, re.MULTILINE)[-4:]}


def outputs(root, task):
    """Metadata of each artifact of a task in the newest run, as KFP keeps it."""
    newest = max(root.glob("20*"))
    files = sorted(newest.glob(f"**/{task}/executor_output.json"))
    artifacts = [json.loads(file.read_text())["artifacts"] for file in files]
    return [{name: listed["artifacts"][0]["metadata"] for name, listed in one.items()} for one in artifacts]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The root of a first run, and what it left."""
    root = tmp_path_factory.mktemp("root")
    return root, run(root)


@pytest.mark.slow
def test_runs_from_end_to_end(first):
    root, left = first
    assert left.keys() == {"run", "encoder", "report", "onnx"}
    assert (left["encoder"] / "model.safetensors").is_file()
    assert left["onnx"].name == "encoder.onnx"
    page = left["report"].read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == [], "the KFP interface shows the page alone"
    (trained,) = outputs(root, "pretrain")
    (versioned,) = outputs(root, "dataset-version")
    assert trained["run"]["dataset_sha256"] == versioned["versioned"]["content_sha256"]
    assert trained["metrics"]["loss"] > 0
    judged = json.loads((left["report"].parent / "metrics.json").read_text())
    assert judged.keys() == {"mum", "random", "pixels", "ratio"}
    (reported,) = outputs(root, "report")
    assert reported["metrics"]["mum.dataset.matching.probe_epe"] == judged["mum"]["dataset.matching.probe_epe"]
    assert len(outputs(root, "evaluate")) == 3, "a step for each encoder"


@pytest.mark.slow
def test_first_model_is_promoted_with_its_lineage(first):
    root, left = first
    models = root / "workspace" / "models" / "mum"
    served = json.loads((models / "served.json").read_text())["version"]
    assert served == left["run"].parent.name
    record = json.loads((models / served / "model.json").read_text())
    (versioned,) = outputs(root, "dataset-version")
    assert record["data"]["revision"] == versioned["versioned"]["revision"]
    assert record["metrics"]["mum"] == json.loads((left["report"].parent / "metrics.json").read_text())["mum"]
    assert record["uri"] == f"pvc://mum-workspace/{left['onnx'].parent.relative_to(root / 'workspace')}"
    ended = json.loads((left["run"].parent / "end.json").read_text())
    assert ended["state"] == "SUCCEEDED"


@pytest.mark.slow
def test_later_run_on_a_version_goes_on_and_is_held_to_what_is_served(first):
    root, left = first
    (versioned,) = outputs(root, "dataset-version")
    served = (root / "workspace" / "models" / "mum" / "served.json").read_text()
    losses = (left["run"] / "metrics.jsonl").read_text()
    again = run(
        root,
        *("--dataset-revision", versioned["versioned"]["revision"], "--continue-run", left["run"].parent.name),
        *("encoder=[run]", "gate=['dataset.matching.probe_epe <= 0.5 * served']"),
    )
    assert again["run"] == left["run"]
    assert (left["run"] / "metrics.jsonl").read_text() == losses, "it was done already"
    (pulled,) = outputs(root, "dataset-version")
    assert pulled["versioned"]["content_sha256"] == versioned["versioned"]["content_sha256"]
    assert pulled["versioned"]["folder"] != versioned["versioned"]["folder"]
    newest = max(root.glob("20*"))
    (reasons,) = newest.glob("**/gate/reasons")
    assert "not promoted" in reasons.read_text()
    assert "broken" in reasons.read_text()
    assert (root / "workspace" / "models" / "mum" / "served.json").read_text() == served
    assert not list(newest.glob("**/register"))


@pytest.mark.slow
def test_two_runs_at_once_leave_each_other_alone(tmp_path):
    command = [sys.executable, "-m", "pipelines", "run", "--root", str(tmp_path), *TINY, "encoder=[run]"]
    both = [subprocess.Popen([*command, f"seed={seed}"], stdout=subprocess.DEVNULL) for seed in (0, 1)]
    assert [run.wait() for run in both] == [0, 0]
    workspace = tmp_path / "workspace"
    runs = sorted((workspace / "runs").glob("[!.]*"))
    assert [json.loads((run / "end.json").read_text())["state"] for run in runs] == ["SUCCEEDED"] * 2
    seeds = {yaml.safe_load((run / "pretrain" / "config.yaml").read_text())["seed"] for run in runs}
    assert seeds == {0, 1}
    assert len(list((workspace / "datasets").glob("[!.]*/dataset.json"))) == 2
    losses = {json.loads((run / "pretrain" / "metrics.json").read_text())["loss"] for run in runs}
    assert len(losses) == 2
    served = json.loads((workspace / "models" / "mum" / "served.json").read_text())["version"]
    assert served in {run.name for run in runs}
    for run in runs:
        record = json.loads((workspace / "models" / "mum" / run.name / "model.json").read_text())
        assert f"/runs/{run.name}/" in record["uri"]


@pytest.mark.slow
def test_second_preparation_comes_from_the_cache(tmp_path):
    @dsl.pipeline
    def preparation(overrides: list, workspace: str) -> dsl.Dataset:
        return prepare(overrides=overrides, dataset_revision="", workspace=workspace).outputs["dataset"]

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path), enable_caching=True)
    workspace = str(tmp_path / "workspace")
    first, second = (preparation(overrides=TINY, workspace=workspace).output for _ in range(2))
    assert first.uri == second.uri
    assert first.metadata["folder"] == second.metadata["folder"]
    other = preparation(overrides=[*TINY, "data.jpeg_quality=80"], workspace=workspace).output
    assert first.metadata["folder"] != other.metadata["folder"]


@pytest.mark.slow
def test_failed_stage_fails_the_run_and_is_reported(tmp_path):
    done = CliRunner().invoke(main, ["run", "--root", str(tmp_path), "data.source=/nothing"])
    assert done.exit_code == 1
    assert "/nothing: no such folder" in done.output
    assert "'prepare'" in done.stderr
    assert "Traceback" not in done.stderr
    (end,) = (tmp_path / "workspace" / "runs").glob("*/end.json")
    assert json.loads(end.read_text())["state"] == "FAILED"
    assert not list((tmp_path / "workspace" / "datasets").glob("[!.]*")), "nothing to be taken for a dataset"
