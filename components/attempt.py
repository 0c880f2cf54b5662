"""One TrainJob from its creation to its end: what its pods say, whether they can start, and what took them away."""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kubeflow.trainer.constants import constants
from kubernetes.client import V1Pod
from omegaconf import DictConfig

from components.cluster import Cluster, Missing
from components.pods import End, Log, end_of, state_of, unschedulable
from mum_model.errors import UserError

POLL_SECONDS = 2.0
PROGRESS_SECONDS = 60.0

STUCK_SECONDS = 120.0
"""How long a container may be unable to start; a registry may be away for a moment."""

START_SECONDS = 1800.0
"""How long pods may wait for a node; an autoscaler may first have to rent one."""

SETTLE_SECONDS = 150.0
"""After the first pod failed: time for the others to end. One that was told to and does not has lost its node.
More than the grace period of the pods."""

LAST_WORDS_SECONDS = 10.0
"""For what is still on its way of the log of a pod that ended."""

GONE_SECONDS = 900.0
"""How long a deleted TrainJob may take to go away with its pods."""

PREEMPTED = os.EX_TEMPFAIL  # as mum_model.pretrain.preemption says it
LOG_LINES = 30

CANNOT_START = {
    "CreateContainerConfigError": "a secret or config map that it refers to is missing",
    "CreateContainerError": "its node cannot make the container",
    "ErrImageNeverPull": "the image is not on its node, and the pull policy is Never",
    "ErrImagePull": "the image cannot be pulled",
    "ImagePullBackOff": "the image cannot be pulled",
    "InvalidImageName": "there can be no image of that name",
    "RunContainerError": "its node cannot run the container",
}

logger = logging.getLogger(__name__)


def condition(thing: dict[str, Any], kind: str, status: str = "True") -> dict[str, Any] | None:
    """A condition of a Kubernetes object.

    Args:
        thing: As the API gave it.
        kind: Of the condition.
        status: That it must have.

    Returns:
        The condition, or None where there is none of that status.
    """
    conditions = thing.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind and each["status"] == status), None)


class Attempt:
    """One TrainJob, from its creation to its end."""

    def __init__(self, cluster: Cluster, job: dict[str, Any], progress: "Progress"):
        """Create nothing yet.

        Args:
            cluster: Where.
            job: The TrainJob.
            progress: Asked to tell how far it is.
        """
        self._cluster, self._job, self._progress = cluster, job, progress
        self._name: str = job["metadata"]["name"]
        self._what = f"TrainJob {cluster.namespace}/{self._name}"
        self._nodes: int = job["spec"]["trainer"]["numNodes"]
        self._seen: dict[str, V1Pod] = {}  # by uid, as last seen: a pod that is taken away leaves nothing else
        self._logs: dict[str, Log] = {}  # by name of the pod
        self._stuck_since: dict[str, float] = {}  # by name of the pod
        self._waits_since = time.monotonic()
        self._is_queued = False

    def run(self) -> str | None:
        """Train.

        Returns:
            None when the training is done, or what took a pod away: then it shall be started again.

        Raises:
            UserError: It failed, or could not be started.
        """
        self._delete()
        try:
            self._create()
            return self._wait()
        finally:
            self._delete()

    def _create(self) -> None:
        try:
            self._ask(self._cluster.custom.create_namespaced_custom_object, body=self._job)
        except Missing as error:
            raise UserError(f"{error}. Is Kubeflow Trainer (2.2 or later) installed?") from error
        except UserError as error:
            if "TrainingRuntime" not in str(error):
                raise
            runtime = self._job["spec"]["runtimeRef"]["name"]
            raise UserError(f"{error}. Expected the ClusterTrainingRuntime {runtime}: apply k8s/") from error
        logger.info("%s: created", self._what)

    def _delete(self) -> None:
        """Delete the TrainJob with its pods, and wait until they are gone: no two trainings may write one run."""
        delete = self._cluster.custom.delete_namespaced_custom_object
        deadline = time.monotonic() + GONE_SECONDS
        try:
            self._ask(delete, name=self._name, propagation_policy="Foreground")
            logger.info("%s: deleting", self._what)
            while self._get():
                if time.monotonic() > deadline:
                    raise UserError(self._stays())
                time.sleep(POLL_SECONDS)
        except Missing:
            return

    def _stays(self) -> str:
        pods = ", ".join(f"{pod.metadata.name} on node {pod.spec.node_name}" for pod in self._pods())
        return (
            f"{self._what}: deleted, but still there after {GONE_SECONDS:.0f} s, with pods: {pods or 'none'}. If a "
            "node is gone for good, tell Kubernetes so: kubectl delete node NAME"
        )

    def _wait(self) -> str | None:
        while True:
            job, pods = self._get(), self._pods()
            self._follow(pods)
            if condition(job, constants.TRAINJOB_COMPLETE):
                self._hear_out()
                return None
            if job["spec"].get("suspend"):
                self._suspended()
            else:
                self._is_queued = False
                gone = self._look(pods)
                # A node that lost its place among the processes cannot come back to it: one failed pod is the end.
                if gone or condition(job, constants.TRAINJOB_FAILED) or any(end.failed for end in self._ends()):
                    return self._preemption(job)
                self._require_start(pods)
            self._progress.report(job)
            time.sleep(POLL_SECONDS)

    def _suspended(self) -> None:
        """In the queue, or in it again: pods that end now were asked to by Kueue."""
        if not self._is_queued:
            logger.info("%s: waits for its turn in the queue", self._what)
        self._is_queued = True
        self._seen.clear()
        self._waits_since = time.monotonic()

    def _look(self, pods: Sequence[V1Pod]) -> list[str]:
        """Take note of the pods; returns those that went away without a word on how they ended."""
        self._seen |= {pod.metadata.uid: pod for pod in pods}
        gone = self._seen.keys() - {pod.metadata.uid for pod in pods}
        return [self._seen[uid].metadata.name for uid in gone if end_of(self._seen[uid]) is None]

    def _ends(self) -> list[End]:
        """How pods ended so far, the first one first."""
        ends = [end for pod in self._seen.values() if (end := end_of(pod))]
        return sorted(ends, key=lambda end: end.when)

    def _preemption(self, job: dict[str, Any]) -> str | None:
        """What took a pod away.

        Raises:
            UserError: Nothing did: the training failed.
        """
        lost, gone = self._settle()
        self._hear_out()
        failures = [end for end in self._ends() if end.failed]
        disrupted = next((end for end in failures if end.disrupted), None)
        if disrupted is not None:
            return str(disrupted)
        # The first to fail is to blame. The others are told to leave then, and do so as if they were preempted.
        first = [end for end in failures if end.when == failures[0].when]
        preempted = next((end for end in first if end.status == PREEMPTED), None)
        if preempted is not None:
            return str(preempted)
        if lost:
            return f"the nodes of {', '.join(lost)} do not answer"
        if failures:
            raise UserError(self._account(failures[0]))
        if gone:
            return f"{', '.join(gone)} deleted"
        failed = condition(job, constants.TRAINJOB_FAILED) or {}
        raise UserError(f"{self._what} failed: {failed.get('reason')}: {failed.get('message')}{self._events()}")

    def _settle(self) -> tuple[list[str], list[str]]:
        """Wait for the other pods to end.

        Returns:
            Pods that were told to and do not, and pods that went away without a word.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            pods = self._pods()
            self._follow(pods)
            gone = self._look(pods)
            open_ended = [pod for pod in pods if end_of(pod) is None]
            if not open_ended or time.monotonic() > deadline:
                return [pod.metadata.name for pod in open_ended if pod.metadata.deletion_timestamp], gone
            time.sleep(POLL_SECONDS)

    def _account(self, end: End) -> str:
        """What a person needs to know of a training that failed."""
        read = self._cluster.core.read_namespaced_pod_log
        where = {"name": end.pod, "namespace": self._cluster.namespace, "container": constants.NODE}
        hint = ": its memory limit is too low for this training" if end.reason == "OOMKilled" else ""
        try:
            log = self._cluster.ask(f"log of pod {end.pod}", read, tail_lines=LOG_LINES, **where).rstrip()
        except UserError as error:  # the pod is gone, or its node
            log = f"({error})"
        return f"{self._what} failed: {end}{hint}. Its last lines:\n{log}"

    def _follow(self, pods: Sequence[V1Pod]) -> None:
        """Hand on what rank 0 says."""
        for pod in pods:
            name, state = pod.metadata.name, state_of(pod)
            is_first = pod.metadata.labels[constants.JOB_INDEX_LABEL] == "0"
            if is_first and state and not state.waiting and name not in self._logs:
                self._logs[name] = Log(self._cluster, name)
                self._logs[name].start()

    def _hear_out(self) -> None:
        """Wait for the rest of the logs: they go with their pods."""
        for log in self._logs.values():
            log.join(LAST_WORDS_SECONDS)

    def _require_start(self, pods: Sequence[V1Pod]) -> None:
        """Raise what keeps the pods from starting, once that has lasted long."""
        now = time.monotonic()
        for pod in pods:
            name, state = pod.metadata.name, state_of(pod)
            waits = state.waiting if state else None
            if not (waits and waits.reason in CANNOT_START):
                self._stuck_since.pop(name, None)
            elif now - self._stuck_since.setdefault(name, now) > STUCK_SECONDS:
                raise UserError(
                    f"{self._what}: pod {name} cannot start: {CANNOT_START[waits.reason]} ({waits.reason}: "
                    f"{waits.message}); image {self._job['spec']['trainer']['image']}"
                )
        if sum(pod.status.phase != constants.POD_PENDING for pod in pods) == self._nodes:
            self._waits_since = now
        elif now - self._waits_since > START_SECONDS:
            reason = next((f": {reason}" for pod in pods if (reason := unschedulable(pod))), "")
            raise UserError(
                f"{self._what}: {self._nodes} pods should run, and do not after {START_SECONDS:.0f} s{reason}; ask "
                f"for less, or add nodes{self._events()}"
            )

    def _events(self) -> str:
        """Warnings about the TrainJob and what was made of it, a line each."""
        try:
            events = self._cluster.ask("events", self._cluster.core.list_namespaced_event, self._cluster.namespace)
        except UserError:  # what is being reported is worth more
            return ""
        lines = {
            f"\n  {event.involved_object.kind} {event.involved_object.name}: {event.reason}: {event.message}"
            for event in events.items
            if event.type == "Warning" and event.involved_object.name.startswith(self._name)
        }
        return "".join(sorted(lines))

    def _get(self) -> dict[str, Any]:
        return self._ask(self._cluster.custom.get_namespaced_custom_object, name=self._name)

    def _pods(self) -> list[V1Pod]:
        selector = f"{constants.JOBSET_NAME_LABEL}={self._name},{constants.JOBSET_RJOB_NAME_LABEL}={constants.NODE}"
        pods = self._cluster.core.list_namespaced_pod
        return self._cluster.ask("pods", pods, self._cluster.namespace, label_selector=selector).items

    def _ask(self, call: Callable[..., Any], **kwargs: Any) -> Any:
        kind = {"group": constants.GROUP, "version": constants.VERSION, "plural": constants.TRAINJOB_PLURAL}
        return self._cluster.ask(self._what, call, namespace=self._cluster.namespace, **kind, **kwargs)


class Progress:
    """How far the training is: as Trainer was told, or as it writes into its run folder."""

    def __init__(self, cfg: DictConfig):
        self._records = Path(cfg.paths.run) / "metrics.jsonl"
        self._steps: int = cfg.pretrain.steps
        self._looked, self._said = time.monotonic(), ""

    def report(self, job: dict[str, Any]) -> None:
        """Say it, once a minute."""
        if time.monotonic() - self._looked < PROGRESS_SECONDS:
            return
        self._looked = time.monotonic()
        text = self._from_trainer(job) or self._from_run()
        if text and text != self._said:
            logger.info("%s", text)
            self._said = text

    def _from_trainer(self, job: dict[str, Any]) -> str:
        status = job.get("status", {}).get("trainerStatus", {})
        if "progressPercentage" not in status:
            return ""
        return f"{status['progressPercentage']} %, {status.get('estimatedRemainingSeconds', 0) / 60:.0f} min to go"

    def _from_run(self) -> str:
        lines = self._records.read_text().splitlines() if self._records.exists() else []
        if not lines:
            return ""
        last = json.loads(lines[-1])
        minutes = (self._steps - last["step"]) * last["step_seconds"] / 60
        return (
            f"step {last['step']} of {self._steps}, loss {last['loss']:.4f}, "
            f"{last['images_per_second']:.0f} images/s, {minutes:.0f} min to go"
        )
