"""Deploying to KServe: over real HTTP to an API that tests play, with a real server behind each version."""

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from jsonschema import Draft202012Validator
from kfp import dsl
from kubernetes.config import kube_config

import mum_model
from components import rollout
from components.deploy import deploy as deploy_component
from components.promotion import served_record
from components.workspace import describe
from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.export import export
from mum_model.files import write_json
from tests.components.kubernetes_stub import KubernetesStub

ROUTE = "/apis/serving.kserve.io/v1beta1"


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """Two exports of different weights on a workspace volume."""
    workspace = tmp_path_factory.mktemp("workspace")
    for name in ("old", "new"):
        encoder = mum_model.create_mum("tiny", encoder_dim=32, encoder_depth=1, encoder_heads=2, patch_size=8).encoder
        mum_model.save_encoder(encoder, workspace / name / "encoder", {"mean": [0.5] * 3, "std": [0.5] * 3})
        overrides = ["machine.threads=1", "export.checks=[[1,64,96]]", "export.latency.runs=1"]
        export(compose([f"paths.run={workspace / name}", f"paths.export={workspace / name / 'export'}", *overrides]))
    return workspace


@pytest.fixture
def stub(tmp_path, monkeypatch):
    stub = KubernetesStub()
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(stub.kubeconfig(tmp_path)))
    for name, seconds in {"POLL_SECONDS": 0.02, "SMOKE_SECONDS": 0.2}.items():
        monkeypatch.setattr(rollout, name, seconds)
    yield stub
    stub.close()


class Oip:
    """A server of an export that speaks the Open Inference Protocol; `spoil` changes what it answers."""

    def __init__(self, folder, spoil=lambda array: array):
        session = onnxruntime.InferenceSession(folder / "encoder.onnx")
        declared = [{"name": session.get_inputs()[0].name, "datatype": "FP32", "shape": [-1, 3, -1, -1]}]

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                self._answer({"inputs": declared} if self.path == "/v2/models/mum" else {"ready": True})

            def do_POST(self):
                (tensor,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
                array = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
                answers = [spoil(each) for each in session.run(None, {tensor["name"]: array})]
                names = [each.name for each in session.get_outputs()]
                outputs = [
                    {"name": name, "datatype": "FP32", "shape": list(each.shape), "data": each.ravel().tolist()}
                    for name, each in zip(names, answers, strict=True)
                ]
                self._answer({"model_name": "mum", "outputs": outputs})

            def _answer(self, value):
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class KServe:
    """Plays KServe's controller: a server for each export that a spec names."""

    def __init__(self, stub, workspace, mode="Standard"):
        self.stub, self.workspace, self.mode = stub, workspace, mode
        self.spoil, self.failure, self.is_ready = {}, None, True
        self.revisions, self.rolled_out, self.servers, self.shares = [], None, {}, []
        stub.on_change = self._on_change

    def close(self):
        for server in self.servers.values():
            server.close()

    def _on_change(self, method, thing):
        if method == "DELETE":
            self.stub.remove(thing)
            return
        storage, image = served(thing)
        if [storage, image] not in self.revisions[-1:]:
            self.revisions.append([storage, image])
        share = thing["spec"]["predictor"].get("canaryTrafficPercent", 100)
        self.shares.append((storage, share))
        name = storage.removeprefix("pvc://mum-workspace/")
        is_bad = self.failure is not None and name == "new/export"
        if name not in self.servers:
            spoil = self.spoil.get(name, lambda array: array)
            self.servers[name] = Oip(self.workspace / name, spoil)
        if share == 100 and not is_bad:
            self.rolled_out = name
        created = f"rev-{len(self.revisions)}"
        ready = created if self.is_ready and not is_bad else f"rev-{len(self.revisions) - 1}"
        is_ready = "True" if ready == created or self.mode == "Standard" else "False"
        thing["status"] = {
            "deploymentMode": self.mode,
            "conditions": [{"type": "Ready", "status": is_ready, "message": "Revision not ready"}],
            "address": {"url": self.servers[self.rolled_out or name].url},
            "modelStatus": {"transitionStatus": "UpToDate"},
        }
        if self.mode == "Knative":
            tagged = [{"tag": "latest", "url": self.servers[name].url, "percent": share}]
            predictor = {"latestReadyRevision": ready, "latestCreatedRevision": created, "traffic": tagged}
            thing["status"]["components"] = {"predictor": predictor}
        if is_bad:
            thing["status"]["modelStatus"] = {
                "transitionStatus": "BlockedByFailedLoad",
                "lastFailureInfo": self.failure,
            }


def served(thing):
    (container,) = thing["spec"]["predictor"]["containers"]
    (storage,) = [each["value"] for each in container["env"] if each["name"] == "STORAGE_URI"]
    return storage, container["image"]


@pytest.fixture
def kserve(stub, exports):
    played = KServe(stub, exports)
    yield played
    played.close()


def deploy(exports, name="new", timeout=5.0, **settings):
    where = {"claim": "mum-workspace", "workspace": exports, "image": "mum-serve:0.1.0"}
    return rollout.deploy("mum-encoder", exports / name / "export", **where, timeout=timeout, **settings)


def service(stub):
    return stub.objects.get(f"{ROUTE}/namespaces/mum/inferenceservices/mum-encoder")


def test_first_deployment(stub, kserve, exports):
    assert deploy(exports) == kserve.servers["new/export"].url
    assert served(service(stub)) == ("pvc://mum-workspace/new/export", "mum-serve:0.1.0")
    if "MUM_TEST_CLUSTER" in os.environ:
        schema = Path(os.environ["MUM_TEST_CLUSTER"]) / "crds/jsonschema/InferenceService.json"
        Draft202012Validator(json.loads(schema.read_text())).validate(stub.sent("POST", "inferenceservices")[0])


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_update_keeps_other_settings(stub, kserve, exports, mode):
    kserve.mode = mode
    deploy(exports, "old")
    service(stub)["spec"]["predictor"]["minReplicas"] = 3
    service(stub)["spec"]["predictor"]["containers"][0]["env"].append({"name": "A", "value": "b"})
    url = deploy(exports, canary_percent=20)
    assert url == kserve.servers["new/export"].url
    assert served(service(stub)) == ("pvc://mum-workspace/new/export", "mum-serve:0.1.0")
    predictor = service(stub)["spec"]["predictor"]
    assert predictor["minReplicas"] == 3
    assert {"name": "A", "value": "b"} in predictor["containers"][0]["env"]
    shares = [share for storage, share in kserve.shares if storage.endswith("new/export")]
    assert shares == ([20, 100] if mode == "Knative" else [100])


def not_a_number(array):
    return array * np.nan


def other_shape(array):
    return array[..., :-1]


def other_features(array):
    return np.random.default_rng(1).normal(size=array.shape)


SPOILED = {
    "is not finite": not_a_number,
    r"is \[1, 31\]; expected \[1, 32\]": other_shape,
    "is not the export's: cosine": other_features,
}


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("says", SPOILED)
def test_rolled_back_when_the_smoke_request_fails(stub, kserve, exports, mode, says):
    kserve.mode = mode
    deploy(exports, "old")
    before = json.loads(json.dumps(service(stub)["spec"]))
    kserve.spoil["new/export"] = SPOILED[says]
    with pytest.raises(UserError, match=f"smoke request to http.* failed: output 'cls' {says}.*is what it was before"):
        deploy(exports, timeout=0.5)
    assert service(stub)["spec"] == before
    if mode == "Knative":
        # What serves nobody comes first, and everybody is never sent to the new version.
        assert [share for _, share in kserve.shares[1:]] == [10, 0, 100]
        assert kserve.shares[-1][0] == "pvc://mum-workspace/old/export"


def test_first_deployment_that_fails_is_deleted(stub, kserve, exports):
    kserve.spoil["new/export"] = not_a_number
    with pytest.raises(UserError, match="is deleted again"):
        deploy(exports)
    assert service(stub) is None


def test_never_ready(stub, kserve, exports):
    kserve.mode = "Knative"
    deploy(exports, "old")
    before = json.loads(json.dumps(service(stub)["spec"]))
    kserve.is_ready = False
    threading.Timer(3.5, lambda: setattr(kserve, "is_ready", True)).start()
    with pytest.raises(UserError, match=r"not ready after 3 s: Ready: Revision not ready.*is what it was before"):
        deploy(exports, timeout=3.0)
    assert service(stub)["spec"]["predictor"]["containers"] == before["predictor"]["containers"]


def test_model_that_cannot_be_loaded(stub, kserve, exports):
    deploy(exports, "old")
    kserve.failure = {"reason": "ModelLoadFailed", "message": "no such folder on the volume"}
    with pytest.raises(UserError, match="ModelLoadFailed: no such folder on the volume"):
        deploy(exports, timeout=30)
    assert served(service(stub))[0] == "pvc://mum-workspace/old/export"


def test_killed_between_canary_and_full(stub, kserve, exports):
    kserve.mode = "Knative"
    deploy(exports, "old")
    spec = rollout._with_share(rollout._serving(service(stub)["spec"], "pvc://mum-workspace/new/export", "i"), 10)
    service(stub)["spec"] = spec
    kserve._on_change("PATCH", service(stub))
    deploy(exports, canary_percent=10)
    assert "canaryTrafficPercent" not in service(stub)["spec"]["predictor"]
    assert served(service(stub))[0] == "pvc://mum-workspace/new/export"


def test_kserve_missing(stub, exports):
    stub.refusals[("GET", "inferenceservices")] = stub.refusals[("POST", "inferenceservices")] = (404, "page not found")
    with pytest.raises(UserError, match="Is KServe installed"):
        deploy(exports)


def test_outside_of_the_workspace(stub, exports, tmp_path):
    shutil.copytree(exports / "new" / "export", tmp_path / "export")
    with pytest.raises(UserError, match="not on the workspace volume"):
        rollout.deploy("s", tmp_path / "export", claim="c", workspace=exports, image="i")


def described(kind, folder, content, root):
    artifact = kind(uri=str(root / f"artifact-{content}"))
    describe(artifact, folder, content)
    return artifact


def test_component(stub, kserve, exports, tmp_path):
    """It deploys, and only then says what is served."""
    version, report = tmp_path / "models" / "rooms" / "r-1", tmp_path / "report"
    for path in (version / "model.json", report / "metrics.json", report / "candidate.json"):
        write_json(path, {})
    deploy_component.python_func(
        service="mum-encoder",
        image="mum-serve:0.1.0",
        canary_percent=10,
        workspace=str(exports),
        claim="mum-workspace",
        registered=described(dsl.Model, version, "model.json", tmp_path),
        evaluation=described(dsl.Artifact, report, "metrics.json", tmp_path),
        onnx=described(dsl.Model, exports / "new" / "export", "export.json", tmp_path),
    )
    assert served(service(stub))[0] == "pvc://mum-workspace/new/export"
    assert served_record(str(tmp_path), "rooms") == version / "candidate.json"
