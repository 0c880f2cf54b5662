"""A namespace on the cluster of these tests: what is applied there, what happens to it."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.containers import STATE, run

Object = dict[str, Any]

OLDER = {"autoscaling/v2": "autoscaling/v2beta2", "policy/v1": "policy/v1beta1"}
"""API versions that Kubernetes 1.20 has of what the manifests use; the fields in use are the same."""


class Namespace:
    """One namespace and a folder of this machine as its workspace volume."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder

    def kubectl(self, *arguments: str, status: int = 0) -> str:
        return run(["kubectl", f"--namespace={self.name}", *arguments], status)

    def apply(self, *objects: Object, status: int = 0, dry: bool = False) -> str:
        """Hand objects to the server, which validates them."""
        file = self.folder.with_suffix(".json")
        file.write_text(
            json.dumps({"apiVersion": "v1", "kind": "List", "items": [self._moved(one) for one in objects]})
        )
        options = ["--dry-run=server"] if dry else []
        return self.kubectl("apply", *options, f"--filename={file}", status=status)

    def _moved(self, one: Object) -> Object:
        """The object in this namespace and for this server, with images that nobody pulls."""
        text = json.dumps({**one, "apiVersion": OLDER.get(one["apiVersion"], one["apiVersion"])})
        return json.loads(text.replace('"mum-dev"', f'"{self.name}"'))

    def get(self, *arguments: str) -> Object:
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def pods(self, selector: str) -> list[Object]:
        """Those that are not on their way out, oldest first."""
        pods = self.get("pods", f"--selector={selector}", "--sort-by=.metadata.creationTimestamp")["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def workspace(self) -> list[Object]:
        """The folder as a volume, bound to the claim that every pod of ours mounts."""
        spec = {
            "capacity": {"storage": "1Ti"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "hostPath": {"path": str(self.folder)},
            "claimRef": {"namespace": self.name, "name": "mum-workspace"},
        }
        return [{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": self.name}, "spec": spec}]

    def kill(self, pod: Object) -> None:
        """SIGKILL for the process of a pod's container, as by a machine that is out of memory."""
        container = pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        socket = STATE / "run" / "containerd.sock"
        run(["ctr", f"--address={socket}", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container])

    def events(self) -> str:
        return self.kubectl("get", "events", "--output=jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}")


def ready(pod: Object) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until a function returns something true; what it returned."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"{what} in vain"
        time.sleep(0.3)
    return answer


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]
