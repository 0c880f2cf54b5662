"""What has to be there before a run is queued: looked up on the cluster, from the compiled pipeline alone."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import requests
import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from components.versions import require_revision
from mum_model.errors import UserError

_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `ok`, `missing` (the run would fail), or `unknown` (it could not be looked up).
        text: What it is, and for what is missing how to make it.
    """

    state: Literal["ok", "missing", "unknown"]
    text: str


@dataclass(frozen=True)
class Needs:
    """What a compiled pipeline asks of a cluster.

    Attributes:
        images: Of its steps, and of the server that gets the promoted encoder.
        claims: PersistentVolumeClaims.
        secrets: Secrets, and whether the pipeline does without.
        gpu: Name of the GPU resource of the training; empty where it has none.
        runtime: ClusterTrainingRuntime of the training.
        queue: LocalQueue of the training; empty where it does not queue.
        remote: DVC remote of the datasets.
        repository: Git repository of the datasets.
    """

    images: frozenset[str]
    claims: frozenset[str]
    secrets: dict[str, bool]
    gpu: str
    runtime: str
    queue: str
    remote: str
    repository: str


def read_needs(file: Path) -> Needs:
    """What a compiled pipeline asks of a cluster.

    Args:
        file: The compiled pipeline.

    Returns:
        Its needs.

    Raises:
        UserError: The file is not this pipeline.
    """
    try:
        spec, platform = yaml.safe_load_all(file.read_text())
        steps = spec["deploymentSpec"]["executors"].values()
        options = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
        cluster = _constant(spec, "pretrain", "cluster")
        served = {_constant(spec, "deploy", "image")} if _constant(spec, "deploy", "service") else set()
        secrets = [
            secret
            for option in options
            for kind in ("secretAsEnv", "secretAsVolume")
            for secret in option.get(kind, [])
        ]
        return Needs(
            images=frozenset(step["container"]["image"] for step in steps) | served,
            claims=frozenset(
                mount["pvcNameParameter"]["runtimeValue"]["constant"]
                for option in options
                for mount in option["pvcMount"]
            ),
            secrets={
                secret["secretNameParameter"]["runtimeValue"]["constant"]: secret.get("optional", False)
                for secret in secrets
            },
            gpu=cluster["gpu_type"],
            runtime=cluster["runtime"],
            queue=cluster["queue"],
            remote=_constant(spec, "dataset-version", "remote"),
            repository=_constant(spec, "dataset-version", "repository"),
        )
    except (OSError, yaml.YAMLError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: not a pipeline of `mum-pipeline compile` ({error!r}); compile it anew") from error


def _constant(spec: dict[str, Any], task: str, name: str) -> Any:
    """The value of a task's input that was given when the pipeline was compiled."""
    dags = (component["dag"]["tasks"] for component in spec["components"].values() if "dag" in component)
    given = next(tasks[task] for tasks in dags if task in tasks)["inputs"]["parameters"][name]
    return given["runtimeValue"]["constant"]


def look(needs: Needs, namespace: str, *, nodes: int, gpus: int, dataset_revision: str) -> Iterator[Finding]:
    """Look up what a run needs.

    Args:
        needs: Of the compiled pipeline.
        namespace: Where its pods will run.
        nodes: Nodes to train on.
        gpus: GPUs of each.
        dataset_revision: The version of a dataset to train on; empty for none.

    Yields:
        A finding for each thing.
    """
    try:
        config.load_config(config_file=os.environ.get("KUBECONFIG"))
    except config.ConfigException as error:
        yield Finding("unknown", f"cluster: {error}; set KUBECONFIG to let it be looked at")
    else:
        yield from _on_cluster(client.CoreV1Api(), needs, namespace, nodes, gpus)
    if dataset_revision:
        yield _dataset(needs, dataset_revision)


def _on_cluster(core: client.CoreV1Api, needs: Needs, namespace: str, nodes: int, gpus: int) -> Iterator[Finding]:
    found = _read(f"namespace {namespace}", lambda: core.read_namespace(namespace), "kubectl apply -k k8s/overlays/gpu")
    yield found
    if found.state != "ok":
        return
    for claim in sorted(needs.claims):
        yield _read(
            f"volume claim {claim}",
            partial(core.read_namespaced_persistent_volume_claim, claim, namespace),
            "it is the workspace of the steps: kubectl apply -k k8s/overlays/gpu, or name another by `claim`",
        )
    for secret, optional in sorted(needs.secrets.items()):
        yield _secret(core, secret, namespace, optional)
    yield from _images(core, needs.images)
    if nodes:
        yield from _for_training(core, needs, namespace, nodes, gpus)


def _read(what: str, read: Callable[[], Any], remedy: str) -> Finding:
    """Whether an object is there."""
    try:
        read()
    except ApiException as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return Finding("missing", f"{what}: not there; {remedy}")
        return Finding("unknown", f"{what}: {error.status} {error.reason}")
    except urllib3.exceptions.HTTPError as error:
        return Finding("unknown", f"{what}: the cluster cannot be reached, {error}")
    return Finding("ok", what)


def _secret(core: client.CoreV1Api, name: str, namespace: str, optional: bool) -> Finding:
    found = _read(
        f"secret {name}",
        lambda: core.read_namespaced_secret(name, namespace),
        "docs/kubernetes.md says what belongs into it",
    )
    if optional and found.state == "missing":
        return Finding("ok", f"secret {name}: not there; the pipeline does without where no remote asks for it")
    return found


def _for_training(core: client.CoreV1Api, needs: Needs, namespace: str, nodes: int, gpus: int) -> Iterator[Finding]:
    objects = client.CustomObjectsApi()
    yield _read(
        f"training runtime {needs.runtime}",
        lambda: objects.get_cluster_custom_object(
            "trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", needs.runtime
        ),
        "install Kubeflow Trainer v2, then kubectl apply -k k8s/cluster",
    )
    if needs.queue:
        yield _read(
            f"queue {needs.queue}",
            lambda: objects.get_namespaced_custom_object(
                "kueue.x-k8s.io", "v1beta2", namespace, "localqueues", needs.queue
            ),
            "install Kueue, then kubectl apply -k k8s/overlays/gpu; or compile with queue=''",
        )
    if gpus:
        yield _gpus(core, needs.gpu, nodes, gpus)


def _gpus(core: client.CoreV1Api, resource: str, nodes: int, gpus: int) -> Finding:
    if not resource:
        return Finding("missing", f"{gpus} GPUs a node: the pipeline was compiled for a cluster without any (gpu=null)")
    what = f"{nodes} nodes with {gpus} {resource}"
    offered: list[int] = []
    listed = _read(what, lambda: offered.extend(_offered(core, resource)), "")
    fitting = sum(count >= gpus for count in offered)
    if listed.state == "ok" and fitting < nodes:
        return Finding("missing", f"{what}: {fitting} nodes offer as many (all nodes: {offered}); ask for fewer")
    return listed


def _offered(core: client.CoreV1Api, resource: str) -> list[int]:
    nodes = core.list_node().items
    return [int(node.status.allocatable.get(resource, 0)) for node in nodes if not node.spec.unschedulable]


def _images(core: client.CoreV1Api, images: frozenset[str]) -> Iterator[Finding]:
    on_nodes: set[str] = set()
    _read("nodes", lambda: on_nodes.update(_on_nodes(core)), "")
    for image in sorted(images):
        present = any(name == image or name.endswith(f"/{image}") for name in on_nodes)
        yield Finding("ok", f"image {image}") if present else _in_registry(image)


def _on_nodes(core: client.CoreV1Api) -> Iterator[str]:
    for node in core.list_node().items:
        for image in node.status.images or ():
            yield from image.names or ()


def _in_registry(image: str) -> Finding:
    """Ask the registry as its standard says: HEAD /v2/<name>/manifests/<tag or digest>."""
    host, _, path = image.partition("/")
    if not path or not (set(host) & {".", ":"} or host == "localhost"):
        return Finding(
            "unknown", f"image {image}: on no node that could be looked at, and its name has no registry to ask"
        )
    name, at, digest = path.partition("@")
    name, _, tag = name.partition(":")
    try:
        answer = requests.head(
            f"https://{host}/v2/{name}/manifests/{digest if at else tag}", headers={"Accept": _MANIFESTS}, timeout=10
        )
    except requests.RequestException as error:
        return Finding("unknown", f"image {image}: {error}")
    if answer.status_code == HTTPStatus.NOT_FOUND:
        return Finding("missing", f"image {image}: not in the registry; build it from docker/ and push it")
    if answer.ok:
        return Finding("ok", f"image {image}")
    return Finding("unknown", f"image {image}: the registry answers {answer.status_code} {answer.reason}")


def _dataset(needs: Needs, revision: str) -> Finding:
    try:
        require_revision(revision, needs.repository, needs.remote)
    except UserError as error:
        return Finding("missing", f"dataset revision {revision}: {error}")
    return Finding("ok", f"dataset revision {revision}")
