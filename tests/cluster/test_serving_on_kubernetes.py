"""The dev overlay on a real API server, and its Deployment on a real node."""

import random
import threading
import time

import pytest
import requests
import yaml

from tests.cluster.kube import of_kind, ready, until
from tests.containers import run
from tests.first_party import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SELECTOR = "app.kubernetes.io/name=mum,app.kubernetes.io/component=serve"
IMAGES = [1, 3, 64, 64]
REQUEST = {"inputs": [{"name": "images", "datatype": "FP32", "shape": IMAGES, "data": [0.5] * (3 * 64 * 64)}]}


def kustomize(folder):
    return list(yaml.safe_load_all(run(["kubectl", "kustomize", str(ROOT / "k8s" / folder)])))


@pytest.fixture
def overlay():
    return [one for one in kustomize("overlays/dev") if one["kind"] != "Namespace"]


def infer(address):
    answer = requests.post(f"http://{address}:8080/v2/models/mum/infer", json=REQUEST, timeout=10)
    answer.raise_for_status()
    return answer.json()["outputs"]


def address_of(pod):
    return pod["status"]["podIP"]


@pytest.fixture
def serving(chain, new_namespace, overlay):
    """The overlay in a namespace of its own, on the workspace where the stages ran."""
    namespace = new_namespace(chain.folder)
    namespace.apply(*overlay)
    namespace.kubectl("rollout", "status", "deployment/mum-serve", "--timeout=120s")
    yield namespace
    namespace.kubectl("delete", "deployment/mum-serve")


def the_ready_pod(namespace, before=None):
    """The one that answers, when it is another than before."""
    pods = [pod for pod in namespace.pods(SELECTOR) if ready(pod)]
    return next((pod for pod in pods if before is None or pod["metadata"]["uid"] != before["metadata"]["uid"]), None)


def test_server_accepts_every_object(new_namespace):
    namespace = new_namespace()
    everything = [*kustomize("cluster"), *kustomize("overlays/dev"), *kustomize("serving/kserve")]
    moved = [one for one in everything if one["kind"] != "Namespace"]
    for one in moved:
        if one["metadata"].get("namespace") == "mum":
            one["metadata"]["namespace"] = namespace.name
    said = namespace.apply(*moved, dry=True)
    assert said.count("server dry run") == len(moved)


def test_server_refuses_what_is_wrong(namespace, overlay):
    (claim,) = of_kind(overlay, "PersistentVolumeClaim")
    claim["metadata"]["name"] = "another"
    claim["spec"]["resources"]["requests"]["storage"] = "much"
    assert "quantities must match" in namespace.apply(claim, dry=True, status=1)


ALLOWED = [
    *[f"{verb} trainjobs.trainer.kubeflow.org" for verb in ("create", "get", "list", "watch", "delete")],
    *[f"{verb} inferenceservices.serving.kserve.io" for verb in ("create", "get", "patch", "delete")],
    *[f"{verb} pods" for verb in ("get", "list", "watch")],
    "get pods/log",
    "list events",
    "get persistentvolumeclaims",
]
DENIED = [
    *[f"{verb} pods" for verb in ("create", "delete", "patch")],
    *[f"{verb} secrets" for verb in ("get", "list", "create")],
    "create pods/exec",
    "delete persistentvolumeclaims",
    "create deployments.apps",
    "create rolebindings.rbac.authorization.k8s.io",
    "get nodes",
    "get trainingruntimes.trainer.kubeflow.org",
]


def test_rights(namespace, overlay):
    namespace.apply(*of_kind(overlay, "ServiceAccount"), *of_kind(overlay, "Role"), *of_kind(overlay, "RoleBinding"))

    def may(account, what, where=namespace.name):
        user = f"system:serviceaccount:{namespace.name}:{account}"
        asked = ["kubectl", "auth", "can-i", *what.split(), f"--as={user}", f"--namespace={where}"]
        answer = run(asked, status=None).split()
        return answer[-1] == "yes"

    for account in ("mum-pipeline", "pipeline-runner", "default-editor"):
        assert [what for what in ALLOWED if not may(account, what)] == [], account
        assert [what for what in DENIED if may(account, what)] == [], account
        assert not may(account, "create trainjobs.trainer.kubeflow.org", "default"), account
    assert [what for what in ALLOWED if may("default", what)] == []


def test_server_is_confined_and_comes_back(serving):
    pod = the_ready_pod(serving)
    assert infer(address_of(pod))[0]["shape"][0] == 1
    inside = ["exec", pod["metadata"]["name"], "--"]
    assert serving.kubectl(*inside, "id", "--user").strip() == "1000"
    assert "Read-only file system" in serving.kubectl(*inside, "touch", "/opt/mum/file", status=1)
    assert "Read-only file system" in serving.kubectl(*inside, "touch", "/workspace/file", status=1)
    assert serving.kubectl(*inside, "sh", "-c", "ls /var/run/secrets 2>&1; true").count("No such file") == 1
    assert "CapEff:\t0000000000000000" in serving.kubectl(*inside, "cat", "/proc/self/status")
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    assert serving.kubectl(*inside, "sh", "-c", limit).split()[-1] == str(2 << 30)

    serving.kill(pod)

    def restarted():
        (same,) = serving.pods(SELECTOR)
        return same["status"]["containerStatuses"][0]["restartCount"] == 1 and ready(same)

    until(restarted)
    assert infer(address_of(pod))

    serving.kubectl("delete", f"pod/{pod['metadata']['name']}", "--wait=false")
    another = until(lambda: the_ready_pod(serving, before=pod))
    assert infer(address_of(another))


def test_rolling_restart_loses_no_request(serving):
    """Requests go to the addresses that the Service has, as its proxy on a node would send them, a moment late."""
    before, answers, done = the_ready_pod(serving), [], threading.Event()
    addresses = [address_of(before)]

    def follow():
        while not done.is_set():
            subsets = serving.get("endpoints/mum-serve").get("subsets", [])
            addresses[:] = [one["ip"] for subset in subsets for one in subset.get("addresses", [])] or addresses
            time.sleep(0.5)

    def ask():
        while not done.is_set():
            try:
                answers.append(len(infer(random.choice(addresses))))
            except requests.RequestException as error:
                answers.append(str(error))

    threads = [threading.Thread(target=target) for target in (follow, ask)]
    for thread in threads:
        thread.start()
    try:
        serving.kubectl("rollout", "restart", "deployment/mum-serve")
        serving.kubectl("rollout", "status", "deployment/mum-serve", "--timeout=120s")
        until(lambda: len(serving.get("pods", f"--selector={SELECTOR}")["items"]) == 1)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert the_ready_pod(serving, before=before)
    assert len(answers) > 20
    assert [answer for answer in answers if isinstance(answer, str)] == []


def test_model_that_cannot_be_read_is_never_ready(namespace, overlay):
    """As after a copy by another user: the folder is there and its file is not for us."""
    export = namespace.folder / "export"
    export.mkdir()
    (export / "export.json").write_text("{}")
    (export / "export.json").chmod(0)
    namespace.apply(*(one for one in overlay if one["kind"] != "PersistentVolumeClaim"))

    def said():
        pods = namespace.pods(SELECTOR)
        ended = pods and pods[0]["status"].get("containerStatuses", [{}])[0].get("restartCount", 0)
        return ended and namespace.kubectl("logs", pods[0]["metadata"]["name"], "--previous")

    text = until(said)
    assert "/workspace/export/export.json" in text
    assert "Permission denied" in text
    assert "Traceback" not in text
    assert not any(ready(pod) for pod in namespace.pods(SELECTOR))
    assert namespace.get("deployment/mum-serve")["status"].get("readyReplicas", 0) == 0
