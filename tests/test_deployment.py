"""Images: pinned, small and not root. Kubernetes objects are in `tests/k8s`."""

import re
import shutil
import subprocess

import pytest

from tests.first_party import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


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
