"""Images built and run for real, on a machine that can: the scripts in the folder named by MUM_TEST_CLUSTER.

Those scripts make a base image, build with buildah, run with podman and start a Kubernetes of one node, all of it from
Debian's packages where no container registry can be reached.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tests.first_party import ROOT

UID = 1000
"""Of everything in a container of ours."""

VERSION = version("mum-pipeline")
TRAIN, SERVE = f"localhost/mum-train:{VERSION}", f"localhost/mum-serve:{VERSION}"

BASE = "python:3.11-slim"
"""What the scripts make; in its place the Dockerfiles name one by its digest."""

# Packages of the training image for a machine without a GPU. Which torch pip finds is a matter of its configuration.
BUILD_ARGUMENTS = {TRAIN: ["BASE=" + BASE, "PACKAGES=git"], SERVE: ["BASE=" + BASE]}

STATE = Path(os.environ.get("MUM_CLUSTER_HOME", Path.home() / ".cache" / "mum-cluster"))


def cannot_run(*programs: str) -> str | None:
    """Why containers cannot be tried here; None where they can."""
    if "MUM_TEST_CLUSTER" not in os.environ:
        return "MUM_TEST_CLUSTER does not name the folder of scripts for containers: see the README, Tests"
    if os.geteuid() != 0:
        return "containers need root"
    if platform.freedesktop_os_release().get("VERSION_CODENAME") != "bookworm":
        return "the scripts for containers need Debian 12"
    missing = [program for program in programs if shutil.which(program) is None]
    return f"{', '.join(missing)}: not installed (install.sh in MUM_TEST_CLUSTER)" if missing else None


def script(name: str, *arguments: str) -> str:
    """Run one of the scripts; returns what it printed."""
    return run([str(Path(os.environ["MUM_TEST_CLUSTER"]) / name), *arguments], timeout=1800)


def run(command: list[str], status: int | None = 0, timeout: float = 300) -> str:
    """Run a command that has to end with a status, None: with any; returns what it printed."""
    # A log may be cut in the middle of a letter.
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, env=environment()
    )
    output = done.stdout + done.stderr
    assert status in (None, done.returncode), f"{shlex.join(command)}\n{output[-5000:]}"
    return output


def environment() -> dict[str, str]:
    """What podman needs beside this process's own: the scripts' storage and settings."""
    return os.environ | {
        "CONTAINERS_STORAGE_CONF": str(STATE / "storage.conf"),
        "CONTAINERS_CONF": str(STATE / "containers.conf"),
        "KUBECONFIG": str(STATE / "kubeconfig"),
    }


@cache
def build(image: str) -> str:
    """Build an image from its Dockerfile, or from the layers of an earlier build; returns its name."""
    script("base-image.sh")
    dockerfile = ROOT / "docker" / f"{re.search('mum-(.*):', image)[1]}.Dockerfile"
    revision = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
    arguments = [word for one in (*BUILD_ARGUMENTS[image], f"REVISION={revision}") for word in ("--build-arg", one)]
    script("build-image.sh", str(dockerfile), str(ROOT), image, *arguments)
    return image


def podman(*arguments: str, status: int = 0) -> str:
    """Run podman; returns what it and the container printed."""
    return run(["podman", "--log-level=fatal", *arguments], status)


def confined(*arguments: str) -> list[str]:
    """Arguments of `podman run` for a restricted container: no network, no capability, nothing but /tmp to write."""
    limits = ["--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    return ["run", *limits, "--read-only", "--tmpfs=/tmp", *arguments]


def own(folder: Path) -> Path:
    """Give a folder and what is in it to the user of the containers; makes it where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)
    return folder
