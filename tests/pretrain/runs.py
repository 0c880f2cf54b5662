"""Trainings of a few steps, as commands."""

import subprocess
import sys
import time
from pathlib import Path

from mum_model.pretrain.telemetry import read_metrics
from tests.conftest import TINY, paths


def command(root: Path, dataset: Path, *overrides: str) -> list[str]:
    """Overrides of a run of its own, `root/run`, on a dataset that others use too."""
    return [*TINY, *paths(root), f"paths.dataset={dataset}", *overrides]


def losses(run: Path) -> list[float]:
    """Of all steps recorded."""
    return [record.loss for record in read_metrics(run)]


def torchrun_command(stage: str, processes: int, overrides: list[str]) -> list[str]:
    """The command line of a stage on several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    return [*launcher, "--rdzv-endpoint=localhost:0", "-m", "mum_model.cli", stage, *overrides]


def torchrun(stage: str, processes: int, overrides: list[str]) -> str:
    """Run a stage on several processes; returns what they printed."""
    arguments = torchrun_command(stage, processes, overrides)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def wait_for(path: Path, seconds: float = 120) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
