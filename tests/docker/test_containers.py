"""The images as they are: who they run as, what is in them, what they need, how the server in one lives and ends."""

import json
import subprocess
import time
from contextlib import contextmanager

import pytest

from mum_model.pretrain.telemetry import read_metrics
from tests.containers import SERVE, TRAIN, UID, VERSION, confined, environment, podman, run
from tests.first_party import ROOT

pytestmark = [pytest.mark.container, pytest.mark.slow]

each_image = pytest.mark.parametrize("image", [TRAIN, SERVE], ids=["train", "serve"])


@pytest.fixture
def built(image, request):
    return request.getfixturevalue({TRAIN: "train_image", SERVE: "serve_image"}[image])


def inside(image, *command, status=0):
    return podman(*confined("--rm", "--entrypoint="), image, *command, status=status)


@each_image
def test_runs_as_nobody_special(built):
    assert inside(built, "id", "--user").split() == [str(UID)]
    assert inside(built, "id", "--group").split() == [str(UID)]
    own = "find / -xdev -user mum -not -path '/proc/*' 2>/dev/null; touch /tmp/file"
    assert set(inside(built, "sh", "-c", own).split()) <= {"/workspace"}, "nothing but its mount point"


@each_image
def test_says_what_it_is(built):
    (image,) = json.loads(podman("image", "inspect", built))
    labels = {name.rpartition(".")[2]: value for name, value in image["Labels"].items() if "opencontainers" in name}
    assert labels.keys() == {"title", "version", "revision", "source", "licenses"}
    assert (labels["version"], labels["licenses"]) == (VERSION, "Apache-2.0")
    assert labels["revision"] == run(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()


@each_image
def test_nothing_is_left_of_the_building(built):
    leftovers = "-path */.cache/* -o -path /var/lib/apt/lists/*_* -o -name *.whl -o -name *.deb -o -path /src/*"
    find = ["/", "-xdev", "-type", "f", "-not", "-path", "/usr/share/*", "(", *leftovers.split(), ")"]
    assert podman("run", "--rm", "--user=0", "--network=none", "--entrypoint=find", built, *find) == ""


@each_image
def test_dependencies_agree(built):
    assert "No broken requirements" in inside(built, "pip", "--python", "/opt/mum/bin/python", "check")


@each_image
def test_has_no_compiler(built):
    compilers = "for one in cc gcc g++ c++ clang ld as make nvcc; do command -v $one; done; true"
    assert inside(built, "sh", "-c", compilers) == ""


def test_serving_image_has_no_torch(serve_image):
    for module in ("torch", "torchvision", "timm", "deepspeed", "kfp", "dvc"):
        assert f"No module named '{module}'" in inside(serve_image, "python", "-c", f"import {module}", status=1)
    sizes = [json.loads(podman("image", "inspect", image))[0]["Size"] for image in (SERVE, TRAIN)]
    assert sizes[0] < 1.0e9 < sizes[1] < 4e9


def test_training_image_has_what_components_need(train_image):
    inside(train_image, "python", "-c", "import kfp, kubeflow.trainer, model_registry, dvc.api, dvc_s3, deepspeed")
    inside(train_image, "git", "--version")
    assert "prepare" in inside(train_image, "mum", "--help")
    assert "submit" in inside(train_image, "mum-pipeline", "--help")


def test_stages_run_confined(workspace):
    folder, said = workspace
    outputs = folder / "outputs"
    assert len(read_metrics(outputs / "run")) == 6
    assert (outputs / "evaluation" / "report.html").is_file()
    assert json.loads((outputs / "export" / "export.json").read_text())
    assert {path.stat().st_uid for path in folder.rglob("*")} == {UID}
    for stage, text in said.items():
        for complaint in ("Read-only", "read-only", "Permission denied", "not a writable", "compile", "Traceback"):
            assert complaint not in text, f"{stage}: {text}"


def test_workspace_that_is_not_ours_is_named(train_image, tmp_path):
    tmp_path.chmod(0o755)
    said = podman(*confined(f"-v={tmp_path}:/workspace"), "--rm", train_image, "mum", "prepare", status=2)
    assert "/workspace/outputs" in said
    assert "Permission denied" in said
    assert "Traceback" not in said


CLIENT = """
import json, sys, time, urllib.error, urllib.request

url = "http://127.0.0.1:8080/v2/models/mum"
shape = [1, 3, 64, 64]
body = {"inputs": [{"name": "images", "datatype": "FP32", "shape": shape, "data": [0.5] * (3 * 64 * 64)}]}
while True:
    request = urllib.request.Request(url + "/infer", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        answer = json.load(urllib.request.urlopen(request))
        print("answered", [output["shape"] for output in answer["outputs"]], flush=True)
    except urllib.error.HTTPError as error:
        print("refused", error.code, flush=True)
    except OSError as error:
        sys.exit(f"closed: {error}")
    if len(sys.argv) == 1:
        break
"""


@contextmanager
def server(image, *arguments):
    """A container that serves, confined; its name."""
    name = podman(*confined("--detach", "--memory=1g", *arguments), image).split()[-1]
    try:
        yield name
    finally:
        podman("rm", "--force", "--time=0", name)


def healthy(name):
    check = ["podman", "healthcheck", "run", name]
    return subprocess.run(check, env=environment(), capture_output=True, check=False).returncode == 0


def wait_until_healthy(name):
    deadline = time.monotonic() + 60
    while not healthy(name):
        assert time.monotonic() < deadline, podman("logs", name)
        time.sleep(0.2)


def test_server_answers_and_drains(serve_image, workspace):
    with server(serve_image, f"-v={workspace[0]}/outputs/export:/export:ro") as name:
        assert not healthy(name), "it starts in seconds, not at once"
        wait_until_healthy(name)
        assert podman("exec", name, "python", "-c", CLIENT).startswith("answered [[1, ")
        assert podman("inspect", "--format={{.State.Health.Status}}", name).strip() == "healthy"

        client = subprocess.Popen(
            ["podman", "exec", name, "python", "-c", CLIENT, "forever"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert client.stdout.readline().startswith("answered")
        podman("kill", "--signal=TERM", name)
        time.sleep(1)
        assert not healthy(name), "not ready, though it goes on answering"
        assert podman("wait", name).strip() == "0"
        lines = client.communicate(timeout=30)[0].splitlines()
        assert {line.split()[0] for line in lines} == {"answered"}, "no request was refused or cut off"


def test_server_says_what_it_may_not_read(serve_image, tmp_path):
    said = podman(*confined("--rm", f"-v={tmp_path}:/export:ro"), serve_image, status=2)
    assert "/export" in said
    assert "Permission denied" in said
    assert "Traceback" not in said
