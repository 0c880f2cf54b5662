"""Stages as Jobs: the pod is that of the training runtime in `k8s/cluster`."""

import copy

import yaml

from tests.cluster.kube import Namespace, Object, until
from tests.conftest import TINY
from tests.containers import TRAIN
from tests.first_party import ROOT

CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "mum-workspace"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}},
}


def job(name: str, *command: str, retries: int = 0) -> Object:
    """A Job of the training image."""
    runtime = yaml.safe_load((ROOT / "k8s" / "cluster" / "runtime.yaml").read_text())
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    template = copy.deepcopy(replicated["template"]["spec"]["template"])
    (container,) = template["spec"]["containers"]
    container |= {
        "image": TRAIN,
        "imagePullPolicy": "Never",
        "command": [*command],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "3Gi"}},
    }
    container["env"].append({"name": "OMP_NUM_THREADS", "value": "1"})
    spec = {"backoffLimit": retries, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def stage(name: str, stage: str, *overrides: str, retries: int = 0) -> Object:
    """A Job of a stage of the tiny configuration."""
    return job(name, "mum", stage, *TINY, "paths.export=/workspace/export", *overrides, retries=retries)


def finished(namespace: Namespace, name: str, seconds: float = 180) -> str:
    """Wait for the end of a Job: `Complete` or `Failed`."""

    def condition() -> str:
        conditions = namespace.get(f"job/{name}")["status"].get("conditions", [])
        return next((one["type"] for one in conditions if one["status"] == "True"), "")

    return until(condition, seconds)


def log(namespace: Namespace, name: str) -> str:
    """What the newest pod of a Job said."""
    return namespace.kubectl("logs", namespace.pods(f"job-name={name}")[-1]["metadata"]["name"])
