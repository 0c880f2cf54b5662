"""Shared by all tests: one tiny dataset and one tiny run, made through the stages' own doors."""

import os
from pathlib import Path

import pytest

import mum_model.model  # noqa: F401  (before timm is imported anywhere, for CPU builds of torch)

os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = [
    "data.rendered.scenes=8",
    "data.rendered.views=6",
    "data.rendered.size=64",
    "data.short_side=64",
    "data.sequence.min_overlap=0.1",
    "machine.workers=1",
    "machine.loader_workers=0",
    "model.patch_size=8",
    "model.encoder_dim=64",
    "model.encoder_depth=2",
    "model.encoder_heads=2",
    "model.decoder_dim=32",
    "model.decoder_depth=2",
    "model.decoder_heads=2",
    "pretrain.size=48",
    "pretrain.steps=6",
    "pretrain.frames=8",
    "pretrain.views=[2,4]",
    "pretrain.checkpoint_every=3",
    "pretrain.pack=8",
    "pretrain.log_every=1",
    "evaluate.size=48",
    "evaluate.pairs={train:24,val:8,test:12}",
    "evaluate.overlap=[0.1,0.95]",
    "evaluate.probe.iterations=20",
    "evaluate.seeds=2",
    "evaluate.figures=2",
]
"""Overrides with which the whole chain runs in seconds."""


def paths(root: Path) -> list[str]:
    """Overrides that put every result under a folder."""
    return [f"paths.{name}={root / name}" for name in ("dataset", "run", "evaluation", "export")]


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def tiny_dataset(tiny_root):
    """A prepared dataset of eight small rooms."""
    from mum_model.config import compose
    from mum_model.prepare import prepare

    return prepare(compose([*TINY, *paths(tiny_root)]))


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset, tiny_root):
    """A run of six steps on the tiny dataset, by the command a person would give."""
    run_mum("pretrain", *TINY, *paths(tiny_root))
    return tiny_root / "run"


def run_mum(*arguments: str, status: int = 0, **environment: str) -> str:
    """Run the `mum` command in a process of its own; returns what it printed."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "mum_model.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    return output


@pytest.fixture(scope="session")
def real_data():
    """The folder of real captures, which are not ours to ship."""
    folder = os.environ.get("MUM_TEST_DATA")
    if not folder:
        pytest.skip("MUM_TEST_DATA is not set: no real captures to test on")
    return Path(folder)
