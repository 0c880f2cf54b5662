"""Alerts and dashboards: right on made-up numbers, and in step with what a real server and a real training tell."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

import mum_model
from mum_model.config import compose
from mum_model.export import export
from mum_model.pretrain.checkpoints import Progress
from mum_model.pretrain.reports import StepReport
from mum_model.pretrain.telemetry import Telemetry
from tests.first_party import ROOT
from tests.k8s.builds import build, of_kind
from tests.serve.served import free_port, running_server

DASHBOARDS = sorted((ROOT / "k8s" / "dashboards").glob("*.json"))
ALERT_TESTS = Path(__file__).with_name("alerts.test.yaml")
METRIC = re.compile(r"\b(?:mum|process)_[a-z0-9_]+\b")


@pytest.fixture
def rules():
    (rule,) = of_kind(build("base"), "PrometheusRule")
    return rule["spec"]


def alerts(rules):
    return [rule for group in rules["groups"] for rule in group["rules"]]


def needs(program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on the PATH (Debian's package prometheus has it)")


def test_alerts_fire_when_they_should_and_only_then(rules, tmp_path):
    needs("promtool")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(ALERT_TESTS, tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", ALERT_TESTS.name]):
        done = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_what_to_do(rules):
    tested, manual = ALERT_TESTS.read_text(), (ROOT / "docs" / "operations.md").read_text()
    headings = re.findall(r"^## (\w+)$", manual, re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts(rules)]
    for alert in alerts(rules):
        assert f'alertname="{alert["alert"]}"' in tested
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"


def test_the_queue_is_long_when_it_is_half_full(rules):
    (alert,) = (one for one in alerts(rules) if one["alert"] == "MumQueueLong")
    assert f"> {compose([]).serve.queued_images // 2} " in f"{alert['expr']} "


def queries(dashboard):
    return [target["expr"] for panel in json.loads(dashboard.read_text())["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_shipped_as_it_is(path):
    shipped = of_kind(build("base"), "ConfigMap")
    (data,) = (one["data"] for one in shipped if one["metadata"]["labels"]["grafana_dashboard"] == "1")
    assert data[path.name] == path.read_text()
    dashboard = json.loads(data[path.name])
    assert dashboard["uid"] == f"mum-{path.stem}"
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len({panel["id"] for panel in dashboard["panels"]})
    assert all(place["x"] + place["w"] <= 24 for place in places)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A server and the endpoint of a training, both real: their addresses."""
    root = tmp_path_factory.mktemp("watched")
    port = free_port()
    with running_server(_exported(root), root / "log") as server:
        training = _training(root / "run", port)
        yield SimpleNamespace(serve=f"127.0.0.1:{server.http_port}", pretrain=f"127.0.0.1:{port}")
        training.close()


def _exported(root):
    model = mum_model.create_mum("tiny", encoder_dim=32, encoder_depth=1, encoder_heads=2, patch_size=8)
    mum_model.save_encoder(model.encoder, root / "encoder", {"mean": [0.5] * 3, "std": [0.25] * 3})
    settings = ["machine.threads=1", "export.checks=[[1,64,96]]", "export.latency.runs=1", "export.variants=[fp32]"]
    return export(compose([f"paths.run={root}", f"paths.export={root / 'export'}", *settings]))


def _training(run, port):
    """What a training tells after its second step and the first evaluation."""
    run.mkdir()
    progress = Progress(step=0, fingerprint="", validation_loss=float("nan"))
    settings = [f"pretrain.metrics_port={port}", "pretrain.log_every=1", "pretrain.evaluate_every=2"]
    training = Telemetry(run, compose(settings), progress)
    rank = np.ones(2)
    for step in range(2):
        report = StepReport(step, np.array([0.9, 0.8]), 1.5, rank, rank / 10, rank * 2**30, False, time.perf_counter())
        training.step_done(report, skipped=0, spikes=0)
    training.evaluated(2, {"dataset.matching.probe_epe": 110.0})
    return training


def ask(address):
    """Requests of each kind: answered, and refused."""
    picture = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    for body in (picture, b"no picture"):
        requests.post(f"http://{address}/v2/models/mum/images?size=32", data=body, timeout=10)


@pytest.mark.slow
def test_every_metric_that_is_asked_for_exists(watched, rules):
    ask(watched.serve)
    exported = set()
    for address in (watched.serve, watched.pretrain):
        page = requests.get(f"http://{address}/metrics", timeout=10).text
        exported |= {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    asked = [query for path in DASHBOARDS for query in queries(path)] + [alert["expr"] for alert in alerts(rules)]
    names = {name for query in asked for name in METRIC.findall(query)}
    assert len(names) > 20
    assert names <= exported


@pytest.mark.slow
def test_prometheus_answers_every_query_of_the_dashboards(watched, rules, tmp_path):
    """A real Prometheus scrapes both with the labels that the PodMonitors give, and evaluates the alerts."""
    needs("prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [_scraped(component, address) for component, address in vars(watched).items()],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        _wait_for_answers(f"http://127.0.0.1:{port}/api/v1", watched.serve, tmp_path / "log")
    finally:
        process.terminate()
        process.wait()


def _scraped(component, address):
    labels = {"namespace": "mum", "pod": f"{component}-0", "app_kubernetes_io_component": component}
    return {"job_name": component, "static_configs": [{"targets": [address], "labels": labels}]}


def _wait_for_answers(api, server, log):
    waiting = [query for path in DASHBOARDS for query in queries(path)]
    deadline = time.monotonic() + 90
    while waiting or not _healthy(api):
        assert time.monotonic() < deadline, f"no answer to {waiting}\n{log.read_text()}"
        ask(server)
        time.sleep(1)
        waiting = [query for query in waiting if not _answer(api, query)]
    firing = requests.get(f"{api}/alerts", timeout=5).json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in firing if alert["state"] == "firing"] == []


def _answer(api, query):
    """Samples of a query with Grafana's variables filled in."""
    text = query.replace("$job", ".*").replace("$__rate_interval", "20s")
    try:
        answer = requests.get(f"{api}/query", params={"query": text}, timeout=5).json()
    except requests.ConnectionError:
        return []
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def _healthy(api):
    """Whether every rule has been evaluated, without an error."""
    groups = requests.get(f"{api}/rules", timeout=5).json()["data"]["groups"]
    return {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
