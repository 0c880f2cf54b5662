"""Deploys an export to KServe: first beside what is served, for good when it answers as it should, or not at all.

In KServe's serverless mode (Knative) the new version gets a share of the traffic at first, and the smoke request goes
to it alone by its tag. In Standard mode (RawDeployment) there is no such share: the Deployment replaces its pods, and
the smoke request is repeated until the new version answers. Which one it is says `status.deploymentMode`, or before
there is a status the annotation `serving.kserve.io/deploymentMode`; Standard is KServe's default.
https://kserve.github.io/website/docs/model-serving/predictive-inference/rollout-strategies/canary
"""

import copy
import json
import logging
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime

from components.cluster import Cluster, Missing, stopped_by_signals
from components.workspace import read_json
from mum_model.errors import UserError

POLL_SECONDS = 2.0
SMOKE_SECONDS = 30.0
"""For a version that is ready to answer rightly: routes take a moment."""

REQUEST_SECONDS = 30.0
MIN_COSINE = 0.99
"""Of each served output with the exported graph's, which is fp32; a server may run another variant of it."""

MODE = "serving.kserve.io/deploymentMode"
TAGS = "serving.kserve.io/enable-tag-routing"
KIND = {"group": "serving.kserve.io", "version": "v1beta1", "plural": "inferenceservices"}
LABELS = {"app.kubernetes.io/name": "mum", "app.kubernetes.io/component": "serve"}

logger = logging.getLogger(__name__)


def deploy(
    service: str,
    folder: Path,
    *,
    claim: str,
    workspace: Path,
    image: str,
    model: str = "mum",
    canary_percent: int = 10,
    timeout: float = 900.0,
) -> str:
    """Serve an export by an InferenceService, which is made where there is none.

    A service that is there already keeps all of its settings but the export and the image. When the new version does
    not get ready, or its smoke request fails, or the step is stopped, the service is as before: with the export of
    before, or gone.

    Args:
        service: Name of the InferenceService.
        folder: What `mum export` wrote, on the workspace volume.
        claim: PersistentVolumeClaim of that volume.
        workspace: Where the volume is mounted here.
        image: Of the server.
        model: Name of the model in the server's URLs.
        canary_percent: Share of the traffic for the new version until its smoke request has passed; serverless only.
        timeout: Seconds for a version to get ready.

    Returns:
        The address of the service within the cluster.

    Raises:
        UserError: The new version is not served; says why.
        Stopped: SIGTERM or SIGINT came.
    """
    if not folder.is_relative_to(workspace):
        raise UserError(f"{folder}: not on the workspace volume {workspace}, so KServe cannot mount it")
    storage = f"pvc://{claim}/{folder.relative_to(workspace)}"
    smoke = _Smoke(folder, model)
    with stopped_by_signals():
        rollout = _Rollout(Cluster(), service, smoke, timeout)
        before = rollout.found()
        if before is None:
            rollout.create(_inference_service(service, storage, image))
        else:
            rollout.update(before, _serving(before["spec"], storage, image), canary_percent)
    logger.info("%s serves %s", service, storage)
    return rollout.address


class _Rollout:
    """From one version of an InferenceService to the next, or back."""

    def __init__(self, cluster: Cluster, service: str, smoke: "_Smoke", timeout: float):
        self._cluster, self._service, self._smoke, self._timeout = cluster, service, smoke, timeout
        self._what = f"InferenceService {cluster.namespace}/{service}"
        self.address = ""
        self._old_failure: dict[str, Any] | None = None

    def found(self) -> dict[str, Any] | None:
        try:
            return self._get()
        except Missing:
            return None

    def create(self, body: dict[str, Any]) -> None:
        try:
            self._ask("create_namespaced_custom_object", body=body)
        except Missing as error:
            raise UserError(f"{error}. Is KServe installed?") from error
        try:
            self._require_good(SMOKE_SECONDS)
        except BaseException as error:
            self._ask("delete_namespaced_custom_object", name=self._service)
            raise _rolled_back(error, f"{self._what} is deleted again") from error

    def update(self, before: dict[str, Any], spec: dict[str, Any], canary_percent: int) -> None:
        is_serverless = _mode(before) in ("Knative", "Serverless")
        self._old_failure = before.get("status", {}).get("modelStatus", {}).get("lastFailureInfo")
        try:
            if is_serverless:
                # A share alone makes no new revision: a step that was killed at this point finds its own.
                is_other = _with_share(before["spec"], 0) != _with_share(spec, 0)
                older = _predictor(before).get("latestCreatedRevision") if is_other else None
                self._apply(_with_share(spec, canary_percent), tags=before)
                self._require_good(SMOKE_SECONDS, older, tag="latest")
                self._apply(spec)
                self._require_good(SMOKE_SECONDS)
            else:
                self._apply(spec)
                self._require_good(self._timeout)
        except BaseException as error:
            self._restore(before["spec"], is_serverless)
            raise _rolled_back(error, f"{self._what} is what it was before") from error

    def _restore(self, spec: dict[str, Any], is_serverless: bool) -> None:
        if is_serverless:
            # Without a share the traffic would go to the newest version that is ready: the bad one, until the old one
            # is up again under a new name. None of it does meanwhile.
            bad = _predictor(self._get()).get("latestCreatedRevision")
            self._apply(_with_share(spec, 0))
            with suppress(UserError):  # back in time or late, it gets what it had
                self._wait_ready(bad)
        if "canaryTrafficPercent" not in spec["predictor"]:
            self._apply(spec)

    def _require_good(self, patience: float, older: str | None = None, tag: str | None = None) -> None:
        """Wait until the newest version is ready and answers rightly.

        Args:
            patience: Seconds for it to answer rightly.
            older: The revision that is not it.
            tag: What the request goes to; None sends it where everybody's go.

        Raises:
            UserError: It does not get ready in time, or answers wrongly for longer than the patience.
        """
        status = self._wait_ready(older)
        url = _url(status, tag)
        self.address = self.address if tag else url
        deadline = time.monotonic() + patience
        while True:
            try:
                self._smoke.test(url)
                return
            except (HTTPException, OSError, ValueError, LookupError) as error:
                self._refuse_failed(self._get())
                if time.monotonic() > deadline:
                    raise UserError(f"{self._what}: smoke request to {url} failed: {error}") from error
            time.sleep(POLL_SECONDS)

    def _wait_ready(self, older: str | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        while True:
            thing = self._get()
            self._refuse_failed(thing)
            if _is_ready(thing, older):
                return thing["status"]
            if time.monotonic() > deadline:
                raise UserError(f"{self._what}: not ready after {self._timeout:.0f} s: {_complaints(thing)}")
            time.sleep(POLL_SECONDS)

    def _refuse_failed(self, thing: dict[str, Any]) -> None:
        """What KServe has given up needs no waiting for."""
        status = thing.get("status", {}).get("modelStatus", {})
        failure = status.get("lastFailureInfo", {})
        if status.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec") and failure != self._old_failure:
            raise UserError(f"{self._what}: {failure.get('reason')}: {failure.get('message')}")

    def _apply(self, spec: dict[str, Any], tags: dict[str, Any] | None = None) -> None:
        patch: list[dict[str, Any]] = [{"op": "replace", "path": "/spec", "value": spec}]
        if tags is not None:
            annotations = {**tags["metadata"].get("annotations", {}), TAGS: "true"}
            patch.append({"op": "add", "path": "/metadata/annotations", "value": annotations})
        self._ask("patch_namespaced_custom_object", name=self._service, body=patch)

    def _get(self) -> dict[str, Any]:
        return self._ask("get_namespaced_custom_object", name=self._service)

    def _ask(self, call: str, **kwargs: Any) -> Any:
        custom = self._cluster.custom
        return self._cluster.ask(self._what, getattr(custom, call), namespace=self._cluster.namespace, **KIND, **kwargs)


class _Smoke:
    """One request, whose answer is known: the exported graph gives it here."""

    def __init__(self, folder: Path, model: str):
        contract = read_json(folder / "export.json")["contract"]
        self._input, self._model = contract["input"], model
        side = 4 * contract["patch_size"]
        shape = [{"N": 1, "H": side, "W": side}.get(each, each) for each in self._input["shape"]]
        pixels = np.random.default_rng(0).integers(0, 256, shape)
        self._tensor = pixels.astype(np.uint8) if self._input["dtype"] == "uint8" else (pixels / 127.5 - 1).astype("f4")
        session = onnxruntime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
        answers = session.run(None, {self._input["name"]: self._tensor})
        self._expected = dict(zip([each.name for each in session.get_outputs()], answers, strict=True))

    def test(self, url: str) -> None:
        """Ask a server, by the Open Inference Protocol.

        Args:
            url: Of the server.

        Raises:
            ValueError: It answers, but not as it should.
            OSError: It does not answer, or refuses.
        """
        path = f"{url.rstrip('/')}/v2/models/{self._model}"
        _call(f"{path}/ready")
        declared = [(each["name"], each["datatype"]) for each in _call(path)["inputs"]]
        wanted = [(self._input["name"], {"float32": "FP32", "uint8": "UINT8"}[self._input["dtype"]])]
        if declared != wanted:
            raise ValueError(f"model '{self._model}' takes {declared}; expected {wanted}")
        (name, datatype), shape = wanted[0], list(self._tensor.shape)
        tensor = {"name": name, "shape": shape, "datatype": datatype, "data": self._tensor.ravel().tolist()}
        outputs = _call(f"{path}/infer", {"inputs": [tensor]})["outputs"]
        answers = {each["name"]: np.array(each["data"], np.float32).reshape(each["shape"]) for each in outputs}
        for output, expected in self._expected.items():
            _require_like(output, answers[output], expected)


def _require_like(name: str, answer: np.ndarray, expected: np.ndarray) -> None:
    if answer.shape != expected.shape:
        raise ValueError(f"output '{name}' is {list(answer.shape)}; expected {list(expected.shape)}")
    if not np.isfinite(answer).all():
        raise ValueError(f"output '{name}' is not finite")
    cosine = float(answer.ravel() @ expected.ravel() / np.linalg.norm(answer) / np.linalg.norm(expected))
    if not cosine >= MIN_COSINE:
        raise ValueError(f"output '{name}' is not the export's: cosine {cosine:.4f}, expected {MIN_COSINE} or more")


def _call(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=REQUEST_SECONDS) as answer:
        return json.loads(answer.read() or "null")


def _inference_service(service: str, storage: str, image: str) -> dict[str, Any]:
    """A new service, as k8s/serving/kserve has it: Standard mode, restricted."""
    container = {
        "name": "kserve-container",
        "image": image,
        "args": ["paths.export=/mnt/models", "machine.threads=4"],
        "env": [{"name": "STORAGE_URI", "value": storage}],
        "ports": [{"name": "http", "containerPort": 8080}],
        "startupProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": "http"},
            "periodSeconds": 2,
            "failureThreshold": 60,
        },
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": "http"}, "periodSeconds": 5},
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "8Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    identity = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000, "runAsNonRoot": True}
    predictor = {
        "labels": LABELS,
        "automountServiceAccountToken": False,
        "securityContext": {**identity, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    return {
        "apiVersion": f"{KIND['group']}/{KIND['version']}",
        "kind": "InferenceService",
        "metadata": {"name": service, "labels": LABELS, "annotations": {MODE: "Standard"}},
        "spec": {"predictor": predictor},
    }


def _serving(spec: dict[str, Any], storage: str, image: str) -> dict[str, Any]:
    """A spec with another export and image; a model of one of KServe's own runtimes keeps the runtime's image."""
    spec = copy.deepcopy(spec)
    predictor = spec["predictor"]
    predictor.pop("canaryTrafficPercent", None)
    if "model" in predictor:
        predictor["model"]["storageUri"] = storage
        return spec
    container = predictor["containers"][0]
    container["image"] = image
    others = [each for each in container.get("env", []) if each["name"] != "STORAGE_URI"]
    container["env"] = [*others, {"name": "STORAGE_URI", "value": storage}]
    return spec


def _with_share(spec: dict[str, Any], percent: int) -> dict[str, Any]:
    return {**spec, "predictor": {**spec["predictor"], "canaryTrafficPercent": percent}}


def _mode(thing: dict[str, Any]) -> str:
    annotated = thing["metadata"].get("annotations", {}).get(MODE, "Standard")
    return thing.get("status", {}).get("deploymentMode") or annotated


def _predictor(thing: dict[str, Any]) -> dict[str, Any]:
    return thing.get("status", {}).get("components", {}).get("predictor", {})


def _is_ready(thing: dict[str, Any], older: str | None) -> bool:
    """Whether the newest version can be asked.

    In Standard mode there are no revisions, and who is ready may be the old one: the smoke request tells them apart.
    """
    ready, created = (_predictor(thing).get(f"latest{state}Revision") for state in ("Ready", "Created"))
    is_newest = ready == created and (older is None or ready != older)
    conditions = {each["type"]: each["status"] for each in thing.get("status", {}).get("conditions", [])}
    return is_newest and conditions.get("Ready") == "True"


def _complaints(thing: dict[str, Any]) -> str:
    conditions = thing.get("status", {}).get("conditions", [])
    said = [f"{each['type']}: {each.get('message') or each.get('reason')}" for each in conditions]
    unfulfilled = [text for text, each in zip(said, conditions, strict=True) if each["status"] != "True"]
    return "; ".join(unfulfilled) or "KServe says nothing; is its controller running?"


def _url(status: dict[str, Any], tag: str | None) -> str:
    traffic = status.get("components", {}).get("predictor", {}).get("traffic", [])
    tagged = next((each.get("url") for each in traffic if tag and each.get("tag") == tag), None)
    return tagged or status["address"]["url"]


def _rolled_back(error: BaseException, state: str) -> BaseException:
    return UserError(f"{error}; {state}") if isinstance(error, UserError) else error
