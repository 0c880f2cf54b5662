"""What a run tells: a line of numbers every few steps, a Prometheus endpoint, trackers, a progress bar."""

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import torch
from omegaconf import DictConfig
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from tqdm import tqdm

from mum_model.files import write_text
from mum_model.pretrain.checkpoints import Progress
from mum_model.pretrain.judging import draw_evaluations, is_bound
from mum_model.pretrain.reports import StepReport
from mum_model.pretrain.schedule import learning_rate
from mum_model.pretrain.trackers import open_trackers


@dataclass(frozen=True)
class StepMetrics:
    """Numbers of the steps since the last record.

    Attributes:
        step: Steps done so far.
        loss: Mean over those steps and all ranks; skipped steps left out.
        learning_rate: Of the last step.
        gradient_norm: Of the last step that was not skipped.
        images_per_second: Over all ranks.
        step_seconds: Mean duration of a step, waiting for data included.
        data_wait_seconds: Mean time a step waited for its data, of the rank that waited longest.
        slowest_rank: The rank that took longest from asking for its data to the end of its last backward pass.
        slowest_rank_seconds: Its mean time.
        memory_bytes: Peak of the fullest GPU, or resident memory of the largest process on a CPU.
        gpu_utilisation: Of rank 0, 0 to 1; 0 on a CPU.
        validation_loss: On held-out scenes, as last measured; null before.
        skipped: Steps skipped so far, their loss or gradient not being finite.
        spikes: Steps so far, since the process started, whose loss jumped.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    step_seconds: float
    data_wait_seconds: float
    slowest_rank: int
    slowest_rank_seconds: float
    memory_bytes: int
    gpu_utilisation: float
    validation_loss: float | None
    skipped: int
    spikes: int


HELP = {
    "step": "Steps done",
    "loss": "Loss of the training's objective",
    "learning_rate": "Learning rate",
    "gradient_norm": "Norm of the gradient",
    "images_per_second": "Training images per second over all ranks",
    "step_seconds": "Duration of a step",
    "data_wait_seconds": "Time a step waits for its data, of the rank that waits longest",
    "slowest_rank": "Rank that takes longest for its part of a step",
    "slowest_rank_seconds": "Time the slowest rank takes",
    "memory_bytes": "Peak GPU memory, or resident memory on a CPU, of the fullest rank",
    "gpu_utilisation": "Share of the time in which the GPU of rank 0 was busy",
    "validation_loss": "Loss on held-out scenes",
    "skipped": "Steps skipped since their loss or gradient was not finite",
    "spikes": "Steps whose loss jumped",
}


def memory_bytes() -> int:
    """Peak memory of the GPU, or resident memory of this process where there is none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def gpu_utilisation() -> float:
    """Share of the time in which this process's GPU was busy, as its driver says; 0 without one."""
    return torch.cuda.utilization() / 100 if torch.cuda.is_available() else 0.0


class Telemetry:
    """Records of one run; only rank 0 has one."""

    def __init__(self, run: Path, cfg: DictConfig, progress: Progress):
        """Open the records, dropping lines of steps that a resumed run will take again.

        Args:
            run: The run folder.
            cfg: The composed configuration; reads `pretrain`, and all of it goes to the trackers.
            progress: Where the training stands.
        """
        self.settings = cfg.pretrain
        self.path, self._evaluations = run / "metrics.jsonl", run / "evaluations.jsonl"
        for path in (self.path, self._evaluations):
            if lines := _lines(path):
                write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= progress.step))
        self._file = self.path.open("a")
        steps = self.settings.steps
        self._bar = tqdm(total=steps, initial=progress.step, desc="pretrain", unit="step", dynamic_ncols=True)
        self._trackers = open_trackers(self.settings.trackers, run, cfg)
        self._gauges = {}
        self._evaluation: Gauge | None = None
        self._server = None
        if self.settings.metrics_port is not None:
            registry = CollectorRegistry()
            self._gauges = {name: Gauge(f"mum_pretrain_{name}", text, registry=registry) for name, text in HELP.items()}
            self._server, _ = start_http_server(self.settings.metrics_port, registry=registry)
            if self.settings.evaluate_every is not None:
                text = "Of the checkpoint judged last, by metric"
                self._evaluation = Gauge("mum_pretrain_evaluation", text, ["metric"], registry=registry)
        self.unrecorded_losses = list(progress.unrecorded_losses)
        self._reports: list[StepReport] = []
        self._validation_loss: float | None = None
        self._gradient_norm = 0.0
        self._began = time.perf_counter()

    def close(self) -> None:
        """Close the records and the endpoint."""
        self._file.close()
        self._bar.close()
        for tracker in self._trackers:
            tracker.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def step_done(self, report: StepReport, *, skipped: int, spikes: int) -> None:
        """Take a step's report; every few steps a record is written of them.

        Args:
            report: Of the step.
            skipped: Steps skipped so far.
            spikes: Jumps of the loss so far.
        """
        self._bar.update()
        self._reports.append(report)
        if report.is_finite:
            self.unrecorded_losses.append(report.loss)
            self._gradient_norm = report.gradient_norm
        done = report.step + 1
        if self.unrecorded_losses and (done == self.settings.steps or done % self.settings.log_every == 0):
            self._record(self._metrics(done, skipped, spikes))

    def validated(self, step: int, loss: float) -> None:
        """Take a validation loss; it stands in the records from the next one on.

        Args:
            step: Steps done.
            loss: On held-out scenes.
        """
        self._validation_loss = loss
        self._bar.write(f"step {step}: validation loss {loss:.4f}")

    def evaluated(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take what the evaluation of a checkpoint found: a line of `evaluations.jsonl`, and the curves anew.

        Args:
            step: Of the checkpoint.
            numbers: By name.
        """
        with self._evaluations.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        Thread(target=draw_evaluations, args=[self.path.parent]).start()  # a second in which no step waits
        if self._evaluation is not None:
            for name, value in numbers.items():
                self._evaluation.labels(name).set(value)
        for tracker in self._trackers:
            tracker.record(step, {f"evaluation/{name}": value for name, value in numbers.items()})
        shown = (f"{name} {value:.4g}" for name, value in numbers.items() if not is_bound(name))
        self._bar.write(f"step {step}: {', '.join(shown)}")

    def _metrics(self, done: int, skipped: int, spikes: int) -> StepMetrics:
        losses, self.unrecorded_losses = self.unrecorded_losses, []
        reports, self._reports = self._reports, []
        seconds, self._began = reports[-1].ended - self._began, reports[-1].ended
        by_rank = np.mean([report.seconds for report in reports], axis=0)
        schedule = {"peak": self.settings.learning_rate, "steps": self.settings.steps, "warmup": self.settings.warmup}
        return StepMetrics(
            step=done,
            loss=float(np.mean(losses)),
            learning_rate=learning_rate(done - 1, **schedule),
            gradient_norm=self._gradient_norm,
            images_per_second=len(reports) * self.settings.frames / seconds,
            step_seconds=seconds / len(reports),
            data_wait_seconds=float(np.mean([report.data_wait for report in reports], axis=0).max()),
            slowest_rank=int(by_rank.argmax()),
            slowest_rank_seconds=float(by_rank.max()),
            memory_bytes=int(reports[-1].memory.max()),
            gpu_utilisation=gpu_utilisation(),
            validation_loss=self._validation_loss,
            skipped=skipped,
            spikes=spikes,
        )

    def _record(self, metrics: StepMetrics) -> None:
        values = asdict(metrics)
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        known = {name: value for name, value in values.items() if value is not None}
        for name, gauge in self._gauges.items():
            gauge.set(known.get(name, float("nan")))
        for tracker in self._trackers:
            tracker.record(metrics.step, known)
        self._bar.set_postfix_str(f"loss {metrics.loss:.4f}, {metrics.images_per_second:.0f} images/s")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def read_metrics(run: Path) -> list[StepMetrics]:
    """All records of a run.

    Args:
        run: The run folder.

    Returns:
        One for each line of `metrics.jsonl`.
    """
    return [StepMetrics(**json.loads(line)) for line in _lines(run / "metrics.jsonl")]


def write_curves(run: Path) -> None:
    """Write `training.csv`, the records as a table for `dvc plots`.

    Args:
        run: The run folder.
    """
    with (run / "training.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=[field.name for field in fields(StepMetrics)])
        table.writeheader()
        table.writerows(asdict(metrics) for metrics in read_metrics(run))
