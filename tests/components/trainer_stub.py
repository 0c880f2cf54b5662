"""Plays Trainer, JobSet, the scheduler and the kubelet: each pod of a TrainJob is a real process of this machine."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.components.kubernetes_stub import NAMESPACE, KubernetesStub, now

LABELS = {
    "jobset.sigs.k8s.io/replicatedjob-name": "node",
    "trainer.kubeflow.org/trainjob-ancestor-step": "trainer",
}


class TrainerStub:
    """Runs TrainJobs.

    Attributes:
        attempts: TrainJobs seen so far.
        deleted: When each was deleted, whether its processes were still running.
    """

    def __init__(self, stub: KubernetesStub, folder: Path, command: Callable[[dict, int, int], Sequence[str] | dict]):
        """Set it up.

        Args:
            stub: The API.
            folder: For logs.
            command: TrainJob, attempt and rank -> what the pod runs, or the `status` of a pod that does not start.
        """
        self.stub, self.folder, self.command = stub, folder, command
        self.attempts, self.running = 0, {}
        stub.on_change = self._on_change

    def pods(self) -> list[dict]:
        with self.stub.lock:
            return [each for path, each in self.stub.objects.items() if "/pods/" in path]

    def start(self, job: dict) -> None:
        """Make the pods of a TrainJob; what Kueue has done to do when it lets one in."""
        self.attempts += 1
        for rank in range(job["spec"]["trainer"]["numNodes"]):
            self._start(job, self.attempts, rank)

    def disrupt(self, pod: dict, reason: str = "EvictionByEvictionAPI") -> None:
        """Take a pod away, as a drain of its node does."""
        with self.stub.lock:
            pod["status"].setdefault("conditions", []).append(
                {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": now()}
            )
        self._terminate(pod)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()

    def _on_change(self, method, thing):
        if thing["kind"] != "TrainJob":
            return
        if method == "POST" and not thing["spec"].get("suspend"):
            self.start(thing)
        if method == "DELETE":
            threading.Thread(target=self._delete, args=(thing,), daemon=True).start()

    def _start(self, job, attempt, rank):
        name = f"{job['metadata']['name']}-node-0-{rank}-{attempt}"
        labels = LABELS | {
            "jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"],
            "batch.kubernetes.io/job-completion-index": str(rank),
        }
        container = {"name": "node", "image": job["spec"]["trainer"]["image"]}
        pod = {"kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}}
        command = self.command(job, attempt, rank)
        if isinstance(command, dict):
            pod["status"] = command
            self.stub.put("/api/v1", "pods", pod)
            return
        pod["status"] = _status("Running", {"running": {"startedAt": now()}})
        log = self.stub.logs[name] = self.folder / f"{name}.log"
        log.touch()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **_environment(job, rank)},
            start_new_session=True,
        )
        self.running[name] = process
        self.stub.put("/api/v1", "pods", pod)
        threading.Thread(target=self._run, args=(job, pod, process, log), daemon=True).start()

    def _run(self, job, pod, process, log):
        with log.open("a", buffering=1) as file:
            for line in process.stdout:
                file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z {line}")
        code = process.wait()
        code = code if code >= 0 else 128 - code
        reason = "Error" if code else "Completed"
        ended = {"exitCode": code, "reason": reason, "finishedAt": now()}
        with self.stub.lock:
            conditions = pod["status"].get("conditions", [])
            pod["status"] = {
                **_status("Failed" if code else "Succeeded", {"terminated": ended}),
                "conditions": conditions,
            }
            del self.running[pod["metadata"]["name"]]
        self._conclude(job)

    def _conclude(self, job):
        """The TrainJob's condition; a failed pod ends the others, as a Job without retries does."""
        mine = [pod for pod in self.pods() if _is_of(pod, job)]
        phases = {pod["status"]["phase"] for pod in mine}
        if "Failed" in phases:
            _set(job, "Failed", "FailedJobs", "jobset failed due to one or more job failures")
            for pod in mine:
                if pod["status"]["phase"] == "Running":
                    self._terminate(pod)
        elif phases == {"Succeeded"}:
            _set(job, "Complete", "AllJobsCompleted", "jobset completed successfully")

    def _terminate(self, pod):
        process = self.running.get(pod["metadata"]["name"])
        if process is not None and "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = now()
            os.killpg(process.pid, signal.SIGTERM)

    def _delete(self, job):
        """In the foreground: first the pods, then the TrainJob."""
        mine = [pod for pod in self.pods() if _is_of(pod, job)]
        for pod in mine:
            self._terminate(pod)
        while any(pod["metadata"]["name"] in self.running for pod in mine):
            time.sleep(0.02)
        for thing in [*mine, job]:
            self.stub.remove(thing)


def _is_of(pod, job):
    return pod["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"] == job["metadata"]["name"]


def _status(phase, state):
    return {"phase": phase, "containerStatuses": [{"name": "node", "state": state, **_NO_MATTER}]}


_NO_MATTER = {"image": "", "imageID": "", "ready": True, "restartCount": 0}


def waiting(reason: str, message: str) -> dict:
    """Status of a pod whose container cannot start."""
    return _status("Pending", {"waiting": {"reason": reason, "message": message}})


def without_node(message: str) -> dict:
    """Status of a pod that no node takes."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def _set(job, kind, reason, message):
    condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
    job["status"] = {"conditions": [condition]}


def _environment(job, rank):
    """What Trainer's torch plugin and the TrainJob say."""
    trainer = job["spec"]["trainer"]
    return {
        **{each["name"]: each["value"] for each in trainer["env"] if "value" in each},
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": os.environ.get("MASTER_PORT_OF_TEST", "29533"),
    }


__all__ = ["NAMESPACE", "KubernetesStub", "TrainerStub", "waiting", "without_node"]
