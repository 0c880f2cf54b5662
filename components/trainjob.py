"""Trains on a cluster: a TrainJob of Kubeflow Trainer v2 that lives and dies with the step that started it.

https://www.kubeflow.org/docs/components/trainer: Trainer makes a JobSet of the TrainJob, a pod a node, and tells each
torchrun its place by PET_* variables. The SDK makes the connection and the patch of the runtime; the TrainJob itself is
written here, since the SDK's `train` can state neither the processes of a node, nor variables from secrets, nor
`suspend`, and its `get_job` wants rights on the whole cluster.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

from kfp import dsl
from kubeflow.trainer.constants import constants
from kubeflow.trainer.options.kubernetes import (
    ContainerPatch,
    JobSetSpecPatch,
    JobSetTemplatePatch,
    JobSpecPatch,
    JobTemplatePatch,
    PodSpecPatch,
    PodTemplatePatch,
    ReplicatedJobPatch,
    RuntimePatch,
    TrainingRuntimeSpecPatch,
)

from components.attempt import Attempt, Progress, condition
from components.cluster import Cluster, Missing, stopped_by_signals
from mum_model.config import compose
from mum_model.errors import UserError

RESTARTS = 100
"""After preemptions, in one step. Errors are not counted here: KFP's own retry deals with them."""

METRICS_PORT = 9400
"""The port `metrics` of the runtime."""

LABELS = {"app.kubernetes.io/name": "mum", "app.kubernetes.io/component": "pretrain"}


logger = logging.getLogger(__name__)


def train(
    overrides: Sequence[str],
    *,
    name: str,
    nodes: int,
    gpus: int,
    image: str,
    runtime: str = "mum-torch-distributed",
    queue: str = "",
    gpu_type: str = "nvidia.com/gpu",
    task_config: dsl.TaskConfig,
) -> None:
    """Run `mum pretrain` on the nodes of a cluster, and return when it is done.

    What rank 0 says goes to stdout, and once a minute how far it is. A preempted training is started again at once and
    goes on from its checkpoint in `paths.run`. However this ends, the TrainJob is deleted: on SIGTERM too, and by
    Kubernetes itself when the step's pod is deleted. One of the same name that an earlier attempt left is deleted first
    and not taken over: it may have another image or other overrides, its owner is gone, and being told to leave makes
    it write a checkpoint, so that hardly a step is lost.

    Args:
        overrides: Hydra overrides of `mum pretrain`; `paths` must lie on a volume of `task_config`.
        name: Of the TrainJob: the same in every attempt of a step, and another in every other step.
        nodes: Pods.
        gpus: GPUs of each, and processes, one for each; 0 trains by one process on CPUs.
        image: Container image with `mum`.
        runtime: The ClusterTrainingRuntime.
        queue: The LocalQueue of Kueue that lets all pods in at once; empty starts them as there is room.
        gpu_type: Resource name of a GPU.
        task_config: What KFP hands through to the training: resources, environment, volumes, node selector,
            tolerations and affinity.

    Raises:
        UserError: The training failed, could not be started, or was preempted more than `RESTARTS` times.
        Stopped: SIGTERM or SIGINT came.
    """
    cluster = Cluster()
    trainer = _trainer(overrides, nodes, gpus, gpu_type, image, task_config)
    job = _train_job(name, runtime, queue, trainer)
    _pod_patch(task_config)(job, None, cluster.backend)
    progress = Progress(compose(overrides))
    with stopped_by_signals():
        if queue:
            _require_queue(cluster, queue)
        for restart in range(RESTARTS):
            preemption = Attempt(cluster, job, progress).run()
            if preemption is None:
                return
            logger.warning("preempted (%s): restart %d of at most %d", preemption, restart + 1, RESTARTS)
    raise UserError(f"TrainJob {name}: preempted {RESTARTS} times; train on nodes that are not taken away so often")


def _trainer(
    overrides: Sequence[str], nodes: int, gpus: int, gpu_type: str, image: str, task: dsl.TaskConfig
) -> dict[str, Any]:
    """What each node runs, and on what."""
    resources = {kind: dict(amounts) for kind, amounts in (task.resources or {}).items()}
    if gpus:
        for kind in ("limits", "requests"):
            resources.setdefault(kind, {})[gpu_type] = str(gpus)
    trainer = {
        "image": image,
        "command": [
            "python",
            "-m",
            "mum_model.pretrain.launch",
            "pretrain",
            f"pretrain.metrics_port={METRICS_PORT}",
            *overrides,
        ],
        "numNodes": nodes,
        "numProcPerNode": max(gpus, 1),
        # A bar that is drawn over itself has no place in a log that is read line by line.
        "env": [{"name": "TQDM_DISABLE", "value": "1"}, *(task.env or [])],
    }
    # Nothing is not the same as no word of it: it would take away what the runtime asks for.
    return {**trainer, "resourcesPerNode": resources} if resources else trainer


def _train_job(name: str, runtime: str, queue: str, trainer: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": dict(LABELS), "ownerReferences": _owner()}
    reference = {"apiGroup": constants.GROUP, "kind": "ClusterTrainingRuntime", "name": runtime}
    spec: dict[str, Any] = {"runtimeRef": reference, "trainer": trainer}
    if queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = queue
        spec["suspend"] = True  # until Kueue has room for all of its pods
    return {"apiVersion": constants.API_VERSION, "kind": constants.TRAINJOB_KIND, "metadata": metadata, "spec": spec}


def _pod_patch(task: dsl.TaskConfig) -> RuntimePatch:
    """What the pods get beside the trainer's own settings."""
    pod = PodSpecPatch(
        volumes=task.volumes,
        containers=[ContainerPatch(constants.NODE, volume_mounts=task.volume_mounts)],
        node_selector=task.node_selector,
        affinity=task.affinity,
        tolerations=task.tolerations,
    )
    job = JobTemplatePatch(spec=JobSpecPatch(PodTemplatePatch(metadata={"labels": LABELS}, spec=pod)))
    nodes = ReplicatedJobPatch(constants.NODE, template=job)
    return RuntimePatch(TrainingRuntimeSpecPatch(JobSetTemplatePatch(spec=JobSetSpecPatch([nodes]))))


def _owner() -> list[dict[str, Any]]:
    """The step's own pod, as KFP tells it: Kubernetes deletes the TrainJob with it, should the step be unable to."""
    if "KFP_POD_UID" not in os.environ:
        return []
    return [{"apiVersion": "v1", "kind": "Pod", "name": os.environ["KFP_POD_NAME"], "uid": os.environ["KFP_POD_UID"]}]


def _require_queue(cluster: Cluster, queue: str) -> None:
    what = f"LocalQueue {cluster.namespace}/{queue}"
    get = cluster.custom.get_namespaced_custom_object
    try:
        found = cluster.ask(what, get, "kueue.x-k8s.io", "v1beta2", cluster.namespace, "localqueues", queue)
    except Missing as error:
        raise UserError(
            f"{error}. Expected a queue of Kueue there: install Kueue and apply k8s/, or train without a queue"
        ) from error
    closed = condition(found, "Active", "False")
    if closed is not None:
        raise UserError(f"{what} lets nothing in: {closed.get('message')}; look at its ClusterQueue")
