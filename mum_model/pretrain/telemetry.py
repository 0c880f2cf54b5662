"""What a run tells: a line of numbers every few steps, a Prometheus endpoint, a progress bar."""

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil
import torch
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from tqdm import tqdm

from mum_model.files import write_text


@dataclass(frozen=True)
class StepMetrics:
    """Numbers of the steps since the last record.

    Attributes:
        step: Steps done so far.
        loss: Mean over those steps and all ranks.
        learning_rate: Of the last step.
        gradient_norm: Of the last step.
        images_per_second: Over all ranks.
        step_seconds: Mean duration of a step, waiting for data included.
        data_wait_seconds: Mean time a step waited for its batch.
        memory_bytes: Peak of the GPU, or resident memory of this process on a CPU.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    step_seconds: float
    data_wait_seconds: float
    memory_bytes: int


HELP = {
    "loss": "Mean squared error on normalised pixels of masked patches",
    "learning_rate": "Learning rate",
    "gradient_norm": "Norm of the gradient",
    "images_per_second": "Training images per second over all ranks",
    "step_seconds": "Duration of a step",
    "data_wait_seconds": "Time a step waits for its batch",
    "memory_bytes": "Peak GPU memory, or resident memory on a CPU",
    "step": "Steps done",
}


def memory_bytes() -> int:
    """Peak memory of the GPU, or resident memory of this process where there is none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


class Telemetry:
    """Records of one run; only rank 0 has one."""

    def __init__(self, run: Path, *, start: int, steps: int, metrics_port: int | None):
        """Open the records, dropping lines of steps that a resumed run will take again.

        Args:
            run: The run folder.
            start: Steps already done.
            steps: Steps in all.
            metrics_port: Port of the Prometheus endpoint, 0 for any free one; None opens none.
        """
        self.path = run / "metrics.jsonl"
        write_text(self.path, "".join(line for line in _lines(self.path) if json.loads(line)["step"] <= start))
        self._file = self.path.open("a")
        self._bar = tqdm(total=steps, initial=start, desc="pretrain", unit="step", dynamic_ncols=True)
        self._gauges = {}
        self._server = None
        self.port: int | None = None
        if metrics_port is not None:
            registry = CollectorRegistry()
            self._gauges = {name: Gauge(f"mum_pretrain_{name}", text, registry=registry) for name, text in HELP.items()}
            self._server, _ = start_http_server(metrics_port, registry=registry)
            self.port = self._server.server_port

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._bar.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def advance(self) -> None:
        """One step was done."""
        self._bar.update()

    def record(self, metrics: StepMetrics) -> None:
        """Write a line, and show it.

        Args:
            metrics: The numbers.
        """
        values = asdict(metrics)
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, gauge in self._gauges.items():
            gauge.set(values[name])
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
        table = csv.DictWriter(file, fieldnames=list(StepMetrics.__dataclass_fields__))
        table.writeheader()
        table.writerows(asdict(metrics) for metrics in read_metrics(run))
