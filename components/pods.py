"""What pods of a training say and how they end."""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubeflow.trainer.constants import constants
from kubernetes.client import ApiException, V1ContainerState, V1Pod
from urllib3.exceptions import HTTPError

from components.cluster import Cluster

RECONNECT_SECONDS = 2.0
SILENCE_SECONDS = 300.0
"""A log without a new line for so long is asked for anew: the connection may have broken silently."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """How a pod ended.

    Attributes:
        pod: Its name.
        when: Of the end.
        status: Exit status; None where the container never ran, or its node does not say.
        reason: In Kubernetes' words.
        disrupted: Whether the cluster took it away: evicted, preempted, drained, or lost with its node. Kubernetes says
            so from 1.26 on, https://kubernetes.io/docs/concepts/workloads/pods/disruptions.
    """

    pod: str
    when: datetime
    status: int | None
    reason: str
    disrupted: bool = False

    @property
    def failed(self) -> bool:
        """Whether the training cannot have been done."""
        return self.disrupted or self.status != 0

    def __str__(self) -> str:
        return f"pod {self.pod}: {self.reason}" + ("" if self.status is None else f", exit status {self.status}")


def end_of(pod: V1Pod) -> End | None:
    """How a pod ended, or is being taken away.

    Args:
        pod: As the API tells it.

    Returns:
        Its end; None while it goes on.
    """
    name, state = pod.metadata.name, state_of(pod)
    ended = state.terminated if state else None
    disruption = _condition(pod, "DisruptionTarget", "True")
    if disruption is not None:
        status = ended.exit_code if ended else None
        return End(name, disruption.last_transition_time, status, disruption.reason, disrupted=True)
    if ended is not None:
        return End(name, ended.finished_at, ended.exit_code, ended.reason)
    if pod.status.phase == "Failed":  # a node refused it before its container was there
        return End(name, datetime.now(UTC), None, f"{pod.status.reason}: {pod.status.message}")
    return None


def state_of(pod: V1Pod) -> V1ContainerState | None:
    """The state of the container that trains.

    Args:
        pod: As the API tells it.

    Returns:
        The state; None before its node has looked at the pod.
    """
    containers = pod.status.container_statuses or []
    return next((each.state for each in containers if each.name == constants.NODE), None)


def unschedulable(pod: V1Pod) -> str | None:
    """Why no node takes a pod.

    Args:
        pod: As the API tells it.

    Returns:
        The scheduler's message, which names the resource; None where a node took it.
    """
    condition = _condition(pod, "PodScheduled", "False")
    return condition.message if condition else None


def _condition(pod: V1Pod, kind: str, status: str) -> Any:
    conditions = pod.status.conditions or []
    return next((each for each in conditions if each.type == kind and each.status == status), None)


class Log(threading.Thread):
    """Hands the log of a pod on to stdout, line by line, until its container ends."""

    def __init__(self, cluster: Cluster, pod: str):
        """Prepare it.

        Args:
            cluster: Where the pod is.
            pod: Its name.
        """
        super().__init__(name=f"log of pod {pod}", daemon=True)
        self._cluster, self._pod, self._last = cluster, pod, ""

    def run(self) -> None:
        """Read; a stream that breaks is taken up again behind the last line."""
        while True:
            try:
                self._read()
                if not self._is_running():
                    return
            except ApiException as error:
                if error.status < 500:  # the pod is gone, or its log is not for us
                    logger.warning("%s: %s", self.name, error.reason)
                    return
            except (HTTPError, OSError) as error:
                logger.debug("%s: %s", self.name, error)
            time.sleep(RECONNECT_SECONDS)

    def _read(self) -> None:
        stream = self._cluster.core.read_namespaced_pod_log(
            self._pod,
            self._cluster.namespace,
            container=constants.NODE,
            follow=True,
            timestamps=True,
            since_seconds=self._seconds_since_last() if self._last else None,
            _preload_content=False,
            _request_timeout=SILENCE_SECONDS,
        )
        for line in _lines(stream):
            stamp, _, text = line.partition(" ")
            if stamp > self._last:
                print(text, flush=True)
                self._last = stamp

    def _seconds_since_last(self) -> int:
        """With some to spare, since clocks differ; what comes twice is left out by its time."""
        last = datetime.fromisoformat(self._last[: len("2026-01-01T00:00:00")]).replace(tzinfo=UTC)
        return max(1, int((datetime.now(UTC) - last).total_seconds())) + 60

    def _is_running(self) -> bool:
        state = state_of(self._cluster.core.read_namespaced_pod(self._pod, self._cluster.namespace))
        return state is not None and state.running is not None


def _lines(stream: Any) -> Iterator[str]:
    rest = b""
    for chunk in stream.stream(amt=None):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
