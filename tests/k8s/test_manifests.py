"""Kubernetes objects: valid, confined, whole, and in step with the code that they deploy."""

import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from components import IMAGE
from components.trainjob import METRICS_PORT
from mum_model.config import compose
from mum_model.pretrain.preemption import EXIT_STATUS
from tests.first_party import ROOT
from tests.k8s.builds import (
    CLUSTER_SCOPED,
    DEPLOYMENTS,
    build,
    containers,
    deployment,
    named,
    of_kind,
    pods,
)

OWN_API = re.compile(r"(v1|apps/v1|batch/v1|autoscaling/.*|policy/.*|.*\.k8s\.io/v1)")
"""API groups of Kubernetes itself; Kueue's, under `x-k8s.io`, is none."""

every_deployment = pytest.mark.parametrize("name", DEPLOYMENTS)


def is_custom(one):
    return OWN_API.fullmatch(one["apiVersion"]) is None


@every_deployment
def test_kubernetes_own_kinds_are_valid(name):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    own = [one for one in deployment(name) if not is_custom(one)]
    assert len(own) > 10
    for one in own:
        validate.validate(one, validate.latest_version(), strict=True)


@every_deployment
def test_custom_kinds_are_valid(name):
    if "MUM_TEST_CLUSTER" not in os.environ:
        pytest.skip("MUM_TEST_CLUSTER does not name a folder with crds/jsonschema/KIND.json")
    jsonschema = pytest.importorskip("jsonschema")
    schemas = Path(os.environ["MUM_TEST_CLUSTER"]) / "crds" / "jsonschema"
    custom = [one for one in deployment(name) if is_custom(one)]
    assert {"ClusterTrainingRuntime", "ClusterQueue", "LocalQueue", "PodMonitor", "PrometheusRule"} <= {
        one["kind"] for one in custom
    }
    for one in custom:
        schema = json.loads((schemas / f"{one['kind']}.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(one)


@every_deployment
def test_objects_are_in_one_namespace_or_in_none(name):
    objects = deployment(name)
    (namespace,) = named(objects, "Namespace")
    for one in objects:
        expected = None if one["kind"] in CLUSTER_SCOPED else namespace
        assert one["metadata"].get("namespace") == expected, one["metadata"]
    for binding in of_kind(objects, "RoleBinding"):
        assert {subject["namespace"] for subject in binding["subjects"]} == {namespace}


@every_deployment
def test_pods_meet_the_restricted_standard_and_more(name):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    (namespace,) = of_kind(deployment(name), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    templates = list(pods(deployment(name)))
    assert len(templates) == 2, "training and serving"
    for _, pod in templates:
        assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}.items()
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert all(volume.keys() & {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@every_deployment
def test_pods_ask_for_what_they_need_and_are_limited(name):
    for _, pod in pods(deployment(name)):
        for container in containers(pod):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= requests.keys() == limits.keys()
        for volume in pod["volumes"]:
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": None}), f"{volume['name']} may fill the node"


@every_deployment
def test_images_are_pinned(name):
    for _, pod in pods(deployment(name)):
        for container in containers(pod):
            image, _, tag = container["image"].rpartition(":")
            assert re.search(r"\d", tag), container["image"]
            if "mum-" in image:
                assert tag == version("mum-pipeline")


def test_there_is_no_secret():
    secret = re.compile(r"kind: Secret|secretGenerator|password|BEGIN [A-Z ]*PRIVATE KEY")
    for path in (ROOT / "k8s").rglob("*"):
        assert path.is_dir() or not secret.search(path.read_text()), path


def storage(pod):
    """What KServe shall mount at /mnt/models: named by the model of a runtime, or by a variable of a container."""
    named_by_variable = [one["value"] for one in pod["containers"][0].get("env", []) if one["name"] == "STORAGE_URI"]
    return [pod["model"]["storageUri"]] if "model" in pod else named_by_variable


@every_deployment
def test_what_is_named_is_there(name):
    objects = deployment(name)
    for _, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claims = {one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "emptyDir" not in one}
        claims |= {uri.removeprefix("pvc://").partition("/")[0] for uri in storage(pod)}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
            assert all(one.keys() == {"name", "value"} for one in container.get("env", [])), "from ConfigMap or Secret"
        assert claims <= named(objects, "PersistentVolumeClaim")
        assert "serviceAccountName" not in pod
    for binding in of_kind(objects, "RoleBinding"):
        assert binding["roleRef"]["name"] in named(objects, "Role")
        assert named(objects, "ServiceAccount") <= {subject["name"] for subject in binding["subjects"]}
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in named(objects, scaler["spec"]["scaleTargetRef"]["kind"])
    (local,), (queue,) = of_kind(objects, "LocalQueue"), of_kind(objects, "ClusterQueue")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    assert {flavor["name"] for flavor in group["flavors"]} == named(objects, "ResourceFlavor")
    (namespace,) = of_kind(objects, "Namespace")
    assert queue["spec"]["namespaceSelector"]["matchLabels"].items() <= namespace["metadata"]["labels"].items()


def selected(objects, selector):
    """Pods that a selector finds, but for the labels that Kubernetes gives a job's pods itself."""
    wanted = {label for label in selector["matchLabels"].items() if not label[0].startswith("batch.kubernetes.io/")}
    return [pod for labels, pod in pods(objects) if wanted <= labels.items()]


def ports_of(pod):
    return {one for container in pod["containers"] for port in container["ports"] for one in port.values()}


@every_deployment
def test_every_selector_finds_its_pods_and_ports(name):
    objects = deployment(name)
    found = 0
    for service in of_kind(objects, "Service"):
        (pod,) = selected(objects, {"matchLabels": service["spec"]["selector"]})
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports_of(pod)
    for budget in of_kind(objects, "PodDisruptionBudget"):
        found += len(selected(objects, budget["spec"]["selector"]))
    monitored = []
    for monitor in of_kind(objects, "PodMonitor"):
        (pod,) = selected(objects, monitor["spec"]["selector"])
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        monitored += [pod] if endpoint["port"] in ports_of(pod) else []
    assert found == 1, "the budget is the server's"
    assert len(monitored) == 2, "training and serving are each scraped once"


@every_deployment
def test_walls_have_doors_for_what_is_meant(name):
    objects = deployment(name)
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for component, policy in (("pretrain", policies["pretrain"]), ("serve", policies["serve"])):
        (pod,) = selected(objects, policy["podSelector"])
        assert policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == component
        monitored = policy["ingress"][-1]
        assert monitored["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == "monitoring"
        assert {port["port"] for port in monitored["ports"]} & ports_of(pod)
    assert "Egress" not in policies["serve"]["policyTypes"], "the server asks nobody anything"


@pytest.mark.parametrize("folder", ["serving/deployment", "serving/kserve"])
def test_server_is_this_one(folder):
    ((_, pod),) = pods(build(folder))
    (container,) = pod["containers"]
    cfg = compose(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": cfg.serve.http_port, "grpc": cfg.serve.grpc_port}
    assert str(cfg.machine.threads) == container["resources"]["limits"]["cpu"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]] + ["/mnt/models" for _ in storage(pod)]
    assert any(Path(cfg.paths.export).is_relative_to(mount) for mount in mounts)
    graceful = cfg.serve.linger_seconds + cfg.serve.drain_seconds
    assert pod.get("terminationGracePeriodSeconds", 30) > graceful


def test_triton_listens_where_it_is_asked():
    (predictor,) = (pod for _, pod in pods(build("serving/triton")))
    (container,) = predictor["containers"]
    arguments = dict(argument.split("=") for argument in container["args"][1:])
    listens = {int(arguments[f"--{what}-port"]) for what in ("http", "grpc", "metrics")}
    assert listens == {port["containerPort"] for port in container["ports"]}
    (layout,) = predictor["initContainers"]
    repository = arguments["--model-repository"]
    assert repository in {mount["mountPath"] for mount in layout["volumeMounts"]}
    assert f"{repository}/mum/1/model.onnx" in layout["command"][-1]


def test_training_is_this_one():
    ((_, pod),) = pods(of_kind(build("cluster"), "ClusterTrainingRuntime"))
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    launcher, stage, *overrides = container["command"][2:]
    assert (launcher, stage) == ("components.launch", "pretrain")
    cfg = compose(overrides)
    assert cfg.pretrain.metrics_port == METRICS_PORT
    assert container["ports"] == [{"name": "metrics", "containerPort": cfg.pretrain.metrics_port}]
    assert pod["terminationGracePeriodSeconds"] > cfg.machine.grace_seconds + 30
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/workspace", "/tmp", "/dev/shm"}


def test_a_preempted_training_is_told_from_a_failed_one():
    (runtime,) = of_kind(build("cluster"), "ClusterTrainingRuntime")
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job = node["template"]["spec"]
    assert (job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (0, "Never")
    lost, preempted = job["podFailurePolicy"]["rules"]
    assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    (container,) = job["template"]["spec"]["containers"]
    assert preempted["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [EXIT_STATUS],
    }
