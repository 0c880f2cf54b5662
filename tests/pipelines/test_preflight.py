"""Before a run is queued: what it needs is looked up on the cluster, and what is missing is named with its remedy."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from click.testing import CliRunner

from mum_model.errors import UserError
from pipelines.cli import main
from pipelines.pipeline import PIPELINE_YAML, compile_pipeline
from pipelines.platform import Platform, load_platform
from pipelines.preflight import look, read_needs

NAMESPACE = "/api/v1/namespaces/mum"
CLAIM = f"{NAMESPACE}/persistentvolumeclaims/mum-workspace"
RUNTIME = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/mum-torch-distributed"
QUEUE = "/apis/kueue.x-k8s.io/v1beta2/namespaces/mum/localqueues/mum"


IMAGES = ("docker.io/library/mum-train:0.1.0", "docker.io/library/mum-serve:0.1.0")


def node(gpus, images=IMAGES, unschedulable=False):
    return {
        "metadata": {"name": "n"},
        "spec": {"unschedulable": unschedulable},
        "status": {"allocatable": {"cpu": "8", "nvidia.com/gpu": str(gpus)}, "images": [{"names": list(images)}]},
    }


class Api(BaseHTTPRequestHandler):
    """A Kubernetes API that has what `objects` lists, by path."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        status, body = self.server.objects.get(path, (404, {"kind": "Status", "reason": "NotFound"}))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Objects of a cluster that lacks nothing; tests take some away."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as http:
        there = {"metadata": {"name": "x"}}
        http.objects = dict.fromkeys((NAMESPACE, CLAIM, RUNTIME, QUEUE), (200, there)) | {
            "/api/v1/nodes": (200, {"items": [node(8), node(8), node(4), node(8, unschedulable=True)]})
        }
        kubeconfig = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{http.server_port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http.objects
        http.shutdown()


def findings(tmp_path, platform=None, nodes=2, gpus=8, dataset_revision=""):
    file = compile_pipeline(tmp_path / "pipeline.yaml", platform or Platform(queue="mum"))
    found = look(read_needs(file), "mum", nodes=nodes, gpus=gpus, dataset_revision=dataset_revision)
    states = {"ok": [], "missing": [], "unknown": []}
    for finding in found:
        states[finding.state].append(finding.text)
    return states


def test_nothing_is_missing(cluster, tmp_path):
    found = findings(tmp_path)
    assert found["missing"] == found["unknown"] == []
    assert len(found["ok"]) == 9  # namespace, claim, 2 secrets, 2 images, runtime, queue, GPUs


@pytest.mark.parametrize(
    ("path", "named", "remedy"),
    [
        (NAMESPACE, "namespace mum", "kubectl apply"),
        (CLAIM, "volume claim mum-workspace", "kubectl apply"),
        (RUNTIME, "training runtime mum-torch-distributed", "Trainer v2"),
        (QUEUE, "queue mum", "Kueue"),
    ],
)
def test_missing_object_is_named(cluster, tmp_path, path, named, remedy):
    del cluster[path]
    (text,) = findings(tmp_path)["missing"]
    assert text.startswith(named)
    assert remedy in text


def test_too_few_gpus(cluster, tmp_path):
    (text,) = findings(tmp_path, nodes=3)["missing"]
    assert "2 nodes offer as many" in text
    assert findings(tmp_path, nodes=3, gpus=4)["missing"] == []
    (text,) = findings(tmp_path, load_platform(None, ("gpu=null",)))["missing"]
    assert "without any" in text


def test_training_in_the_step_needs_no_trainer(cluster, tmp_path):
    del cluster[RUNTIME], cluster[QUEUE]
    assert findings(tmp_path, nodes=0)["missing"] == []


def test_what_may_not_be_read_is_unknown(cluster, tmp_path):
    cluster[CLAIM] = (403, {"kind": "Status", "reason": "Forbidden"})
    found = findings(tmp_path)
    assert found["missing"] == []
    (text,) = found["unknown"]
    assert "mum-workspace: 403" in text


def test_image_that_no_node_has_and_no_registry_answers_for(cluster, tmp_path):
    cluster["/api/v1/nodes"] = (200, {"items": [node(8, images=())]})
    assert "no registry to ask" in findings(tmp_path, nodes=1)["unknown"][0]
    elsewhere = Platform(image="127.0.0.1:1/mum-train:0.1.0", service="")
    assert "127.0.0.1:1/mum-train:0.1.0" in findings(tmp_path, elsewhere, nodes=1)["unknown"][0]


def test_dataset_revision(cluster, tmp_path):
    (tmp_path / "remote").mkdir()
    platform = Platform(remote=str(tmp_path / "remote"))
    (text,) = findings(tmp_path, platform, nodes=0, dataset_revision=f"{0:032x}.dir")["missing"]
    assert text.startswith(f"dataset revision {0:032x}.dir")
    assert str(tmp_path / "remote") in text


def test_nothing_is_queued_when_something_is_missing(cluster, tmp_path, kubeflow):
    del cluster[CLAIM]
    done = CliRunner().invoke(main, ["submit", "--endpoint", kubeflow.url, "-e", "x"])
    assert done.exit_code == 1
    assert "volume claim mum-workspace: not there" in done.output
    assert "nothing was queued" in done.output
    assert kubeflow.posted == {}


def test_something_else_is_no_pipeline(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="mum-pipeline compile"):
        read_needs(tmp_path / "x.yaml")
    assert read_needs(PIPELINE_YAML).claims == {"mum-workspace"}
