"""What the Dockerfiles promise, read from them."""

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.first_party import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


@each_dockerfile
def test_base_is_pinned_by_version_and_digest(dockerfile):
    text = dockerfile.read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base)
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?", text, re.MULTILINE)
    assert {parent for parent, _ in stages} - {name for _, name in stages} == {"${BASE}"}
    assert len(stages) == 4, "installed in one stage, used in another"


def test_images_have_one_base():
    assert len({re.search(r"^ARG BASE=(\S+)", path.read_text(), re.MULTILINE)[1] for path in DOCKERFILES}) == 1


@each_dockerfile
def test_dependencies_are_pinned(dockerfile):
    for install in re.findall(r"pip --python \S+ install (.*?)(?:&&|\n\n)", dockerfile.read_text(), re.DOTALL):
        assert "--no-cache-dir" in install
        assert "-c constraints.txt" in install or "--no-deps" in install


@each_dockerfile
def test_version_is_the_projects(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ARG VERSION={project['version']}\n" in dockerfile.read_text()
    assert f"licenses={project['license']}\n" in dockerfile.read_text()


@each_dockerfile
def test_hadolint(dockerfile):
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not on the PATH")
    done = subprocess.run(["hadolint", dockerfile], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
