"""The record of a model: complete, the same whenever it is made, and in a registry once."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from kfp import dsl

from components import registry as registry_module
from components.register import register
from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.export import export
from mum_model.files import file_sha256, write_json
from tests.conftest import TINY

IMAGE = "registry.lab/mum-train@sha256:0123"
METRICS = {"run": {"dataset.matching.probe_epe": 3.25, "dataset.pose.auc5": 12}, "random": {"dataset.pose.auc5": 1.5}}


@pytest.fixture(scope="module")
def workspace(tiny_dataset, tiny_run, tmp_path_factory):
    """A workspace volume with what the steps before left on it; the run and the export are real."""
    root = tmp_path_factory.mktemp("workspace")
    folders = {name: root / "runs" / "r-1" / name for name in ("reports", "exports")}
    paths = [f"paths.{name}={folder}" for name, folder in [("dataset", tiny_dataset), ("run", tiny_run)]]
    export(compose([*TINY, *paths, f"paths.export={folders['exports']}", "export.latency.runs=1"]))
    write_json(folders["reports"] / "metrics.json", METRICS)
    return root


@pytest.fixture
def step(workspace, tiny_dataset, tiny_run, tmp_path):
    """Runs the component as KFP would; returns its output."""

    def run(**changed):
        card = json.loads((tiny_dataset / "dataset.json").read_text())
        data = {"revision": "0" * 32 + ".dir", "remote": "s3://lab/x", "content_sha256": card["content_sha256"]}
        registered = artifact(dsl.Model, tmp_path / "registered")
        parameters = {
            "experiment": "rooms",
            "run_id": tmp_path.name,
            "registry": "",
            "workspace": str(workspace),
            "claim": "mum-workspace",
            "image": IMAGE,
            "dataset": artifact(dsl.Dataset, tiny_dataset, **data, store_session_info="{}"),
            "run": artifact(dsl.Model, tiny_run),
            "evaluation": artifact(dsl.Artifact, workspace / "runs" / "r-1" / "reports"),
            "onnx": artifact(dsl.Model, workspace / "runs" / "r-1" / "exports"),
            "registered": registered,
        }
        register.python_func(**parameters | changed)
        return registered

    return run


def artifact(kind, path, **metadata):
    return kind(name=path.name, uri=str(path), metadata={"folder": str(path), **metadata})


def test_record_on_the_workspace(step, workspace, tiny_dataset, tiny_run, tmp_path):
    registered = step()
    folder = workspace / "models" / "rooms" / tmp_path.name
    uri = "pvc://mum-workspace/runs/r-1/exports"
    shown = {"folder": str(folder), "version": tmp_path.name, "uri": uri, "framework": "onnx"}
    assert registered.metadata == shown
    record = json.loads((folder / "model.json").read_text())
    assert json.loads(Path(registered.path).read_text()) == record
    assert record["uri"] == uri
    files = {described["name"]: described["sha256"] for described in record["onnx"]}
    onnx = workspace / "runs" / "r-1" / "exports" / "encoder.onnx"
    assert files["encoder.onnx"] == file_sha256(onnx)
    assert record["weights_sha256"] == file_sha256(tiny_run / "encoder" / "model.safetensors")
    assert record["metrics"] == METRICS
    assert record["config"]["pretrain"]["steps"] == 6
    assert (record["code"]["image"], record["code"]["image_digest"]) == (IMAGE, "sha256:0123")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["code"]["revision"])
    card = json.loads((tiny_dataset / "dataset.json").read_text())
    assert record["data"] == {
        "revision": "0" * 32 + ".dir",
        "remote": "s3://lab/x",
        "content_sha256": card["content_sha256"],
    }


def test_a_version_is_one_model(step, workspace, tmp_path):
    step()
    path = workspace / "models" / "rooms" / tmp_path.name / "model.json"
    before = path.read_text()
    step()
    with pytest.raises(UserError, match=f"{path}: this version is another model"):
        step(image="mum-train:0.2.0")
    assert path.read_text() == before


class Kubernetes(BaseHTTPRequestHandler):
    """An API server that knows one pod."""

    pod = {  # noqa: RUF012
        "metadata": {"name": "step"},
        "status": {
            "containerStatuses": [
                {"name": name, "image": image, "imageID": f"{image}@sha256:{digest}", "ready": True, "restartCount": 0}
                for name, image, digest in (("wait", "argoexec", "aa"), ("main", "lab/mum-train", "bb"))
            ]
        },
    }

    def do_GET(self):
        found = self.path == "/api/v1/namespaces/mum/pods/step"
        answer(self, 200 if found else 404, self.pod if found else {"message": "not found"})

    def log_message(self, *arguments):
        pass


def answer(request, status, body):
    content = json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


@contextmanager
def serving(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_digest_of_an_image_given_by_tag(monkeypatch, tmp_path):
    assert registry_module.digest_of("mum-train:0.1.0") is None, "no cluster to ask"
    monkeypatch.setattr(registry_module, "TOKEN", tmp_path / "token")
    (tmp_path / "token").write_text("of-the-service-account")
    monkeypatch.setenv("HOSTNAME", "step")
    # KUBECONFIG itself is read once, when the client is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    with serving(Kubernetes) as address:
        context = {"cluster": "lab", "user": "lab", "namespace": "mum"}
        kubeconfig = {
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": context}],
            "clusters": [{"name": "lab", "cluster": {"server": address}}],
            "users": [{"name": "lab", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
        assert registry_module.digest_of("mum-train:0.1.0") == "sha256:bb"


class Registry(BaseHTTPRequestHandler):
    """As much of the model registry's REST API as registering takes, with a memory."""

    kept: dict[str, list[dict]] = {}  # noqa: RUF012, one server a test
    fails: set[str] = set()  # noqa: RUF012

    def do_GET(self):
        kind, query = self.asked()
        wanted = {"name": query["name"], "parent": query.get("parentResourceId")}
        found = next((one for one in self.kept.get(kind, []) if wanted.items() <= one.items()), None)
        answer(self, 200 if found else 404, found or {"code": "404", "message": "not found"})

    def do_POST(self):
        kind, _ = self.asked()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if kind in self.fails:
            answer(self, 503, {"code": "503", "message": "the database is away"})
            return
        kept = self.kept.setdefault(kind, [])
        parents = (body.get("registeredModelId"), *re.findall(r"model_versions/(\w+)/artifacts", self.path))
        kept.append({**body, "id": str(len(kept) + 1), "parent": next(filter(None, parents), None), "state": "LIVE"})
        answer(self, 201, kept[-1])

    def asked(self):
        """The kind of thing, by the name that the API gives to one of it."""
        assert self.headers["Authorization"] is None, "no token is sent where there is none"
        url = urlsplit(self.path)
        assert url.path.startswith("/api/model_registry/v1/")
        kind = url.path.rpartition("/")[2].removesuffix("s").removeprefix("model_")
        return kind, {name: values[0] for name, values in parse_qs(url.query).items()}

    def log_message(self, *arguments):
        pass


@pytest.fixture
def registry():
    Registry.kept, Registry.fails = {}, set()
    with serving(Registry) as address:
        yield address


def test_registered_with_all_facts(step, registry, tmp_path):
    step(registry=registry)
    (model,), (version,), (stored,) = (Registry.kept[kind] for kind in ("registered_model", "version", "artifact"))
    assert (model["name"], version["name"], version["parent"]) == ("rooms", tmp_path.name, model["id"])
    assert stored["uri"] == "pvc://mum-workspace/runs/r-1/exports"
    assert (stored["modelFormatName"], stored["parent"]) == ("onnx", version["id"])
    facts = version["customProperties"]
    assert facts["metrics.run.dataset.matching.probe_epe"]["double_value"] == 3.25
    assert facts["metrics.run.dataset.pose.auc5"]["int_value"] == "12"
    assert facts["data.revision"]["string_value"] == "0" * 32 + ".dir"
    assert facts["code.image"]["string_value"] == IMAGE
    assert json.loads(facts["config"]["string_value"])["pretrain"]["steps"] == 6
    assert json.loads(facts["onnx"]["string_value"])[0]["name"] == "encoder.onnx"


@pytest.mark.parametrize("failing", ["registered_model", "version", "artifact"])
def test_retried_step_completes_what_is_missing(step, registry, failing):
    Registry.fails = {failing}
    with pytest.raises(UserError, match=f"{registry}: the model registry refused: 503 .*the database is away"):
        step(registry=registry)
    Registry.fails = set()
    step(registry=registry)
    once = json.dumps(Registry.kept)
    step(registry=registry)
    assert json.dumps(Registry.kept) == once
    assert {kind: len(kept) for kind, kept in Registry.kept.items()} == {
        "registered_model": 1,
        "version": 1,
        "artifact": 1,
    }


def test_two_versions_of_one_model(step, registry, tmp_path):
    step(registry=registry)
    step(registry=registry, run_id=f"{tmp_path.name}-2")
    assert len(Registry.kept["registered_model"]) == 1
    assert [version["parent"] for version in Registry.kept["version"]] == ["1", "1"]


def test_other_model_under_the_same_version(step, registry, tmp_path):
    step(registry=registry)
    entered = Registry.kept["version"][0]["customProperties"]
    entered["reviewed"] = {"string_value": "yes", "metadataType": "MetadataStringValue"}
    step(registry=registry)
    entered["code.image"]["string_value"] = "mum-train:0.2.0"
    with pytest.raises(UserError, match=f"version {tmp_path.name} of rooms is another model"):
        step(registry=registry)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1: no model registry can be reached there"),
        ("http://no.such.host.invalid", "http://no.such.host.invalid: no model registry can be reached there"),
        ("registry.lab:8080", "registry=registry.lab:8080: expected a URL with http:// or https://"),
    ],
)
def test_unreachable(step, workspace, tmp_path, address, said):
    with pytest.raises(UserError, match=said):
        step(registry=address)
    assert (workspace / "models" / "rooms" / tmp_path.name / "model.json").is_file(), "known here all the same"
