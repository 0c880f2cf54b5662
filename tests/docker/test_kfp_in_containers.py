"""The whole pipeline by KFP's own DockerRunner: each step in a container of the training image."""

import re

import pytest
from kfp import local

from components.promotion import served_record
from pipelines.pipeline import build
from pipelines.platform import Platform, Retries
from tests.conftest import TINY
from tests.containers import script

pytestmark = [pytest.mark.container, pytest.mark.slow]


@pytest.fixture
def docker_socket(train_image, monkeypatch):
    """podman, behind the API that Docker's client speaks."""
    socket = re.search(r"^export DOCKER_HOST=(\S+)$", script("docker-socket.sh", "start"), re.MULTILINE)[1]
    monkeypatch.setenv("DOCKER_HOST", socket)
    yield socket
    script("docker-socket.sh", "stop")


def test_pipeline_in_containers(docker_socket, train_image, tmp_path):
    # Root, since KFP mounts a folder of its caller for the outputs. This runner reports a failed task as done where
    # podman answers in Docker's place; what is asserted is therefore what the steps wrote.
    local.init(
        runner=local.DockerRunner(user="root", network_mode="none", environment={"OMP_NUM_THREADS": "1"}),
        pipeline_root=str(tmp_path),
    )
    workspace = tmp_path / "workspace"
    platform = Platform(
        image=train_image,
        workspace=str(workspace),
        gpu=None,
        service="",
        parallelism=1,
        retries=Retries(count=0),
    )
    build(platform)(overrides=[*TINY, "encoder=[run,random]"], experiment="containers")
    (run,) = (workspace / "runs").iterdir()
    for pattern in ("pretrain/encoder/model.safetensors", "reports/*/report.html", "exports/*/encoder.onnx"):
        assert list(run.glob(pattern)), pattern
    assert served_record(str(workspace), "containers").is_file(), "the first encoder of an experiment is promoted"
