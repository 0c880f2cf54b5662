"""Where else the numbers of a run go: TensorBoard and MLflow, each through its own library, if asked for."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig, OmegaConf

from mum_model.errors import UserError


class Tracker(Protocol):
    """Takes the numbers of a run."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Writes event files into the run's `tensorboard/`; look at them with `tensorboard --logdir`."""

    def __init__(self, run: Path, cfg: DictConfig):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(cfg, resolve=True)}```")

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Mlflow:
    """Writes to the MLflow server that the environment variable `MLFLOW_TRACKING_URI` names, experiment `mum`."""

    def __init__(self, run: Path, cfg: DictConfig):
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            raise UserError("pretrain.trackers=[mlflow]: set MLFLOW_TRACKING_URI to the address of the MLflow server")
        self._mlflow = mlflow
        mlflow.set_experiment("mum")
        mlflow.start_run(run_name=run.name)
        mlflow.log_text(OmegaConf.to_yaml(cfg, resolve=True), "config.yaml")

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._mlflow.end_run()


TRACKERS: dict[str, type[TensorBoard] | type[Mlflow]] = {"tensorboard": TensorBoard, "mlflow": Mlflow}


def open_trackers(names: Sequence[str], run: Path, cfg: DictConfig) -> list[Tracker]:
    """Open the trackers that `pretrain.trackers` names.

    Args:
        names: Of `TRACKERS`.
        run: The run folder.
        cfg: The composed configuration.

    Returns:
        The trackers.

    Raises:
        UserError: There is none of such a name, or its library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"pretrain.trackers={list(names)}: expected any of {', '.join(TRACKERS)}")
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"pretrain.trackers={list(names)}: install the extra `trackers` for {name}") from error
    return [TRACKERS[name](run, cfg) for name in names]
