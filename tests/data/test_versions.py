"""The dataset under DVC: pushed to and pulled from a folder and S3 without git, and an older one out of its history."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mum_model.data.scenes import SceneIndex
from tests.conftest import TINY, run_mum
from tests.data.test_prepare import rooms_of_photos, state


def run(root, *command):
    binaries = Path(sys.executable).parent
    git = {f"GIT_{who}_{what}": f"{what}@test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **git, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def dvc(root, *arguments):
    return run(root, sys.executable, "-m", "dvc", *arguments)


def project(root, *, scm):
    """Captures, and the stage that makes a dataset of them."""
    rooms_of_photos(root)
    command = " ".join(["mum", "prepare", *TINY, "data.source=captures", "paths.dataset=dataset"])
    stage = {"cmd": command, "deps": ["captures"], "outs": [{"dataset": {"persist": True}}]}
    (root / "dvc.yaml").write_text(json.dumps({"stages": {"prepare": stage}}))  # JSON is YAML too
    dvc(root, "init", "--quiet", *([] if scm else ["--no-scm"]))
    dvc(root, "config", "core.analytics", "false")


def remote_of(kind, root, s3):
    """Address of a remote, and how to count what is in it."""
    if kind == "folder":
        return str(root / "remote"), lambda: sum(path.is_file() for path in (root / "remote").rglob("*"))
    prefix = f"dvc/{root.name}"
    return f"s3://lab/{prefix}", lambda: s3.list_objects_v2(Bucket="lab", Prefix=prefix).get("KeyCount", 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_pushed_and_pulled_without_git(tmp_path, s3, kind):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    project(here, scm=False)
    assert not (here / ".git").exists()
    url, objects = remote_of(kind, tmp_path, s3)
    dvc(here, "remote", "add", "--default", "store", url)
    dvc(here, "repro")
    dvc(here, "push", "dataset")
    first = objects()
    shards = {path.name: path.read_bytes() for path in (here / "dataset" / "shards").iterdir()}

    rooms_of_photos(tmp_path / "more", "x")
    shutil.move(tmp_path / "more" / "captures" / "x", here / "captures" / "x")
    assert "4 of 5 scenes are finished already" in dvc(here, "repro")
    dvc(here, "push", "dataset")
    tables = len(state(here / "dataset")) - 5
    assert 1 <= objects() - first <= 1 + tables + 1  # the new shard, the tables and the list of files; no old shard
    assert all((here / "dataset" / "shards" / name).read_bytes() == content for name, content in shards.items())

    there.mkdir()
    for name in ("dvc.yaml", "dvc.lock", ".dvc"):
        copy = shutil.copytree if (here / name).is_dir() else shutil.copy
        copy(here / name, there / name)
    shutil.rmtree(there / ".dvc" / "cache")
    dvc(there, "pull", "dataset")
    assert state(there / "dataset") == state(here / "dataset")
    assert SceneIndex.open(there / "dataset").image(0).shape == (60, 80, 3)


@pytest.mark.slow
def test_an_older_dataset_comes_back_and_is_compared(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    run(root, "git", "init", "--quiet")
    project(root, scm=True)
    dvc(root, "repro")
    run(root, "git", "add", "dvc.yaml", "dvc.lock", ".dvc")
    run(root, "git", "commit", "--quiet", "--message", "first")
    rooms_of_photos(tmp_path / "more", "x")
    shutil.move(tmp_path / "more" / "captures" / "x", root / "captures" / "x")
    dvc(root, "repro")
    dvc(root, "get", ".", "dataset", "--rev", "HEAD", "--out", str(tmp_path / "old"))
    lines = run_mum("data", "diff", str(tmp_path / "old"), str(root / "dataset")).splitlines()
    assert lines[0] == "frames: 16 -> 20"
    assert "+ images/x" in lines
