"""Images and Kubernetes objects: valid, pinned, and in step with what they deploy."""

import re
import shutil
import subprocess
from importlib.metadata import version

import pytest
import yaml

from components import IMAGE
from mum_model.config import compose
from tests.first_party import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def build(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH: kustomize cannot be run")
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / folder)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def of_kind(objects, kind):
    return next(one for one in objects if one["kind"] == kind)


@pytest.mark.parametrize("folder", ["base", "overlays/dev"])
def test_objects_are_valid(folder):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for one in build(folder):
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", ["base", "overlays/dev"])
def test_all_is_in_one_namespace(folder):
    objects = build(folder)
    assert {one["metadata"].get("namespace", one["metadata"]["name"]) for one in objects} == {
        of_kind(objects, "Namespace")["metadata"]["name"]
    }


@pytest.mark.parametrize("folder", ["base", "overlays/dev"])
def test_server_is_confined(folder):
    pod = of_kind(build(folder), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["resources"].keys() == {"requests", "limits"}
    assert container["image"].rpartition(":")[2] not in ("", "latest")


def test_server_is_this_one():
    objects = build("base")
    (container,) = of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"].rpartition(":")[2] == version("mum-pipeline") == IMAGE.rpartition(":")[2]
    cfg = compose(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": cfg.serve.http_port, "grpc": cfg.serve.grpc_port}
    assert {port["name"] for port in of_kind(objects, "Service")["spec"]["ports"]} == ports.keys()
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(cfg.paths.export.startswith(f"{mount}/") for mount in mounts)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_image_is_pinned_and_not_root(dockerfile):
    text = dockerfile.read_text()
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:3.11-slim"}
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["1000"]
    for install in re.findall(r"pip install [^&\n]*", text):
        assert "-c constraints.txt" in install or "--no-deps" in install


def test_serving_image_has_neither_torch_nor_compiler():
    text = (ROOT / "docker" / "serve.Dockerfile").read_text()
    assert re.findall(r'"\.\[(.*?)\]"', text) == ["serve"]
    assert "apt-get" not in text


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint(dockerfile):
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not on the PATH")
    done = subprocess.run(["hadolint", dockerfile], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
