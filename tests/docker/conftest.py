"""The images, built once, and what the stages in them make of a tiny configuration."""

import pytest

from tests.conftest import TINY
from tests.containers import SERVE, TRAIN, build, cannot_run, confined, own, podman


def _built(image):
    if reason := cannot_run("podman", "buildah"):
        pytest.skip(reason)
    return build(image)


@pytest.fixture(scope="session")
def train_image():
    return _built(TRAIN)


@pytest.fixture(scope="session")
def serve_image():
    return _built(SERVE)


@pytest.fixture(scope="session")
def workspace(train_image, tmp_path_factory):
    """A workspace volume on which all four stages ran, and what they said."""
    folder = own(tmp_path_factory.mktemp("workspace"))
    said = {
        stage: podman(*confined(f"-v={folder}:/workspace"), "--rm", train_image, "mum", stage, *TINY)
        for stage in ("prepare", "pretrain", "evaluate", "export")
    }
    return folder, said
