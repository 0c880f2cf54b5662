"""What kustomize makes of `k8s/`, in the combinations that are applied together."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.first_party import ROOT

DEPLOYMENTS = {
    "dev": ["cluster", "overlays/dev"],
    "gpu with KServe": ["cluster", "overlays/gpu", "serving/kserve"],
    "gpu with Triton": ["cluster", "overlays/gpu", "serving/triton"],
}

CLUSTER_SCOPED = {"Namespace", "ClusterQueue", "ClusterTrainingRuntime", "ResourceFlavor"}

Object = dict[str, Any]


@cache
def build(folder: str) -> list[Object]:
    """The objects of one folder; skips the test where there is no kustomize."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH: kustomize cannot be run")
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return list(yaml.safe_load_all(done.stdout))


def deployment(name: str) -> list[Object]:
    return [one for folder in DEPLOYMENTS[name] for one in build(folder)]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def named(objects: list[Object], kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in of_kind(objects, kind)}


def pods(objects: list[Object]) -> Iterator[tuple[dict[str, str], Object]]:
    """Labels and specification of every pod that an object makes, of whatever kind it is."""
    runtimes = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "ServingRuntime")}
    for one in objects:
        yield from _pods(one.get("spec", {}), runtimes)


def _pods(node: Any, runtimes: dict[str, Object]) -> Iterator[tuple[dict[str, str], Object]]:
    if isinstance(node, list):
        for each in node:
            yield from _pods(each, runtimes)
    elif isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node["metadata"]["labels"], node["spec"]
        elif "predictor" in node:
            runtime = runtimes[node["predictor"]["model"]["runtime"]] if "model" in node["predictor"] else {}
            yield node["predictor"]["labels"], runtime | node["predictor"]  # as KServe merges them
        else:
            yield from _pods(list(node.values()), runtimes)


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]
