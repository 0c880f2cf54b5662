"""`mum-pipeline` and KFP's own command against a server: what it is sent, and what people are told."""

import json

import pytest
from click.testing import CliRunner
from kfp.cli.cli import cli as kfp

from pipelines.cli import main
from pipelines.pipeline import PIPELINE_YAML


def order(command, kubeflow, *arguments):
    return CliRunner().invoke(main, [command, "--endpoint", kubeflow.url, "-e", "rooms", "--no-preflight", *arguments])


def test_submit(kubeflow):
    done = order("submit", kubeflow, "--nodes", "2", "--gpus", "8", "model=small", "seed=1")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"{kubeflow.url}/#/runs/details/r-1"
    assert kubeflow.posted["experiments"]["display_name"] == "rooms"
    run = kubeflow.posted["runs"]
    assert run["experiment_id"] == "e-1"
    assert run["runtime_config"]["parameters"] == {
        "overrides": ["model=small", "seed=1"],
        "dataset_revision": "",
        "nodes": 2,
        "gpus": 8,
        "experiment": "rooms",
        "continue_run": "",
    }
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "mum"
    assert "exec-pretrain" in json.dumps(run["pipeline_spec"]["platform_spec"])
    assert tasks_of(run)["prepare"]["cachingOptions"] == {"enableCache": True}
    assert tasks_of(run)["pretrain"]["cachingOptions"] == {}


def tasks_of(run):
    spec = run["pipeline_spec"]["pipeline_spec"]
    dags = [component["dag"]["tasks"] for component in spec["components"].values() if "dag" in component]
    return {name: task for dag in dags for name, task in dag.items()}


def test_submit_without_the_cache(kubeflow):
    assert order("submit", kubeflow, "--no-cache").exit_code == 0
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks_of(kubeflow.posted["runs"]).values())


def test_kfps_own_command_as_the_readme_has_it(kubeflow):
    command = ["--endpoint", kubeflow.url, "run", "create", "-e", "rooms", "-f", str(PIPELINE_YAML)]
    done = CliRunner().invoke(kfp, [*command, 'overrides=["model=small"]', "nodes=2"], obj={})
    assert done.exit_code == 0, done.output
    run = kubeflow.posted["runs"]
    assert run["runtime_config"]["parameters"] == {"overrides": ["model=small"], "nodes": 2}
    assert "exec-pretrain" in json.dumps(run["pipeline_spec"]["platform_spec"])


def test_gpus_without_nodes_are_refused(kubeflow):
    done = order("submit", kubeflow, "--gpus", "8")
    assert done.exit_code == 1
    assert "--nodes" in done.output
    assert kubeflow.posted == {}


def test_token_and_namespace_reach_a_shared_server(kubeflow, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "s3cret")
    kubeflow.shared = True
    done = order("submit", kubeflow, "--namespace", "team")
    assert done.exit_code == 0, done.output
    assert kubeflow.tokens == {"Bearer s3cret"}
    assert kubeflow.posted["experiments"]["namespace"] == "team"
    assert "s3cret" not in done.output


def test_refusal_says_what_to_do(kubeflow):
    kubeflow.refuses = 403
    done = order("submit", kubeflow)
    assert done.exit_code == 1
    assert "403" in done.output
    assert "KF_PIPELINES_TOKEN" in done.output
    assert "Traceback" not in done.output


def test_schedule(kubeflow):
    done = order("schedule", kubeflow, "--cron", "0 0 3 * * 1", "model=small")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "s-1"
    sent = kubeflow.posted["recurringruns"]
    assert sent["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert sent["max_concurrency"] == 1
    assert sent["no_catchup"]
    assert sent["runtime_config"]["parameters"]["overrides"] == ["model=small"]


def test_status(kubeflow):
    listed = CliRunner().invoke(main, ["status", "--endpoint", kubeflow.url])
    assert "r-1" in listed.output
    assert "RUNNING" in listed.output
    one = CliRunner().invoke(main, ["status", "r-1", "--endpoint", kubeflow.url])
    assert "prepare" in one.output
    assert "out of memory" in one.output


def test_submit_says_what_is_unreachable():
    done = CliRunner().invoke(main, ["submit", "--endpoint", "http://127.0.0.1:1", "-e", "x"])
    assert done.exit_code == 1
    assert "http://127.0.0.1:1" in done.output
    assert "--endpoint" in done.output


@pytest.mark.parametrize("command", [["run"], ["submit", "--endpoint", "http://127.0.0.1:1", "-e", "x"]])
def test_mistyped_override_fails_at_once(command):
    done = CliRunner().invoke(main, [*command, "pretrain.stepz=3"])
    assert done.exit_code == 2
    assert "pretrain.stepz" in done.output
