"""Evaluation while a training runs: checkpoints are judged by `mum evaluate`, in a process of its own.

The training only starts that process and reads its numbers when it has ended; no step waits for it. It runs at low
priority, one at a time: a checkpoint that is written meanwhile takes the place of one that still waits.
"""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "checkpoint"
"""What the encoder is called in the evaluation."""

BOUNDS = ("_low", "_high")

SETTINGS = "settings"
"""The run's settings, for the evaluation."""


class Judge:
    """Judges the checkpoints of a run; only rank 0 has one."""

    def __init__(self, run: Path, every: int | None, record: Callable[[int, Mapping[str, float]], None]):
        """Set it up.

        Args:
            run: The run folder, with its `config.yaml`: what it says of `evaluate` is how the checkpoints are judged.
            every: Checkpoints at multiples of this step are judged; None: none is.
            record: Takes the step and the numbers of an evaluation that has ended.
        """
        self.run, self.every, self.record = run, every, record
        self._waiting: int | None = None
        self._judged = 0
        self._process: subprocess.Popen[bytes] | None = None

    def saved(self, step: int) -> None:
        """Hear of a checkpoint that is being written.

        Args:
            step: Of the checkpoint.
        """
        if self.every is None or step % self.every:
            return
        if self._waiting is not None:
            log.warning("step %d is not judged: step %d came before its turn", self._waiting, step)
        self._waiting = step

    def look(self) -> None:
        """Take the numbers of an evaluation that has ended, and begin with the checkpoint that waits; never blocks."""
        if self._process is not None and self._process.poll() is not None:
            self._conclude(self._process.returncode)
        if self._process is None and self._waiting is not None and self._checkpoint(self._waiting).is_dir():
            self._judged, self._waiting = self._waiting, None
            try:
                self._process = self._begin()
            except (OSError, shutil.Error) as error:
                log.warning("step %d is not judged, the training goes on: %s", self._judged, error)

    def finish(self) -> None:
        """Wait for what is being judged or waits for it."""
        self.look()
        while self._process is not None:
            self._process.wait()
            self.look()

    def stop(self) -> None:
        """End what is being judged; it is not recorded."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            shutil.rmtree(self._encoder, ignore_errors=True)
            self._process = None

    def _begin(self) -> "subprocess.Popen[bytes]":
        # Links stay when the checkpoint is removed to make room for newer ones.
        shutil.rmtree(self._encoder, ignore_errors=True)
        shutil.copytree(self._checkpoint(self._judged) / "encoder", self._encoder, copy_function=os.link)
        # Apart and under another name: Hydra would take the folder `encoder/` of the run for a group of settings.
        shutil.copy(self.run / "config.yaml", self._folder.with_name(f"{SETTINGS}.yaml"))
        settings = ["--config-dir", str(self._folder.parent), "--config-name", SETTINGS]
        apart = [f"encoder=[{{{NAME}: '{self._encoder}'}}]", f"paths.evaluation='{self._folder}'"]
        no_gate = ["gate=[]", "paths.served=null"]
        command = [sys.executable, "-m", "mum_model.cli", "evaluate", *settings, *apart, *no_gate]
        with self._log.open("wb") as output:
            return subprocess.Popen(["nice", *command], stdout=output, stderr=subprocess.STDOUT)

    def _conclude(self, status: int) -> None:
        self._process = None
        shutil.rmtree(self._encoder)
        if status:
            log.warning("the evaluation of step %d failed, the training goes on: see %s", self._judged, self._log)
            return
        metrics = json.loads((self._folder / "metrics.json").read_text())
        self.record(self._judged, {name: value for name, value in metrics[NAME].items() if value is not None})

    def _checkpoint(self, step: int) -> Path:
        return self.run / "checkpoints" / f"step-{step:08d}"

    @property
    def _folder(self) -> Path:
        return (self.run / "evaluations" / f"step-{self._judged:08d}").absolute()

    @property
    def _encoder(self) -> Path:
        return self._folder.with_suffix(".encoder")

    @property
    def _log(self) -> Path:
        return self._folder.with_suffix(".log")


def is_bound(name: str) -> bool:
    """Whether a number of an evaluation is the end of another one's interval."""
    return name.endswith(BOUNDS)


def draw_evaluations(run: Path) -> None:
    """Draw `evaluations.png`: each number of `evaluations.jsonl` over the steps, with its interval.

    Args:
        run: The run folder.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    names = [name for name in rows[-1] if name != "step" and not is_bound(name)]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, columns, place)
        middle, low, high = ([row.get(name + end, math.nan) for row in rows] for end in ("", *BOUNDS))
        axes.plot(steps, middle, marker="o")
        axes.fill_between(steps, low, high, alpha=0.2)
        axes.set(title=name, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(run / "evaluations.png", dpi=100)
