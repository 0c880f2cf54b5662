"""Checkpoints of a run: written whole and in the background, checked when read, the newest good one found by itself.

A checkpoint is a folder:

* `state.safetensors`: weights and optimiser state, whole, the same whatever the ZeRO stage and the number of ranks;
* `encoder/`: the encoder as plain timm loads it, so that a checkpoint can be evaluated while the training goes on;
* `training.json`: step, fingerprint of the training, hash of the state.

Masks, crops and the order of data are functions of (seed, step), so there is no generator's state to keep.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mum_model.errors import UserError
from mum_model.files import file_sha256, write_json, written_whole

log = logging.getLogger(__name__)

OPERATIONAL = (
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints",
    "keep_every",
    "log_every",
    "max_skipped",
    "metrics_port",
    "offload_optimiser",
    "pictures_every",
    "recompute",
    "trackers",
    "zero_stage",
)
"""Settings of `pretrain` that do not change what is trained: a training may be continued with others."""


def training_fingerprint(cfg: DictConfig, dataset_sha256: str) -> str:
    """What identifies a training: a checkpoint of another one must not be continued by itself.

    Args:
        cfg: The composed configuration; reads `model`, `objective`, `pretrain` and `seed`.
        dataset_sha256: Content hash of the dataset.

    Returns:
        A hash.
    """
    pretrain = {key: value for key, value in cfg.pretrain.items() if key not in OPERATIONAL}
    groups = [OmegaConf.to_container(group) for group in (cfg.model, cfg.objective)]
    parts = [*groups, pretrain, cfg.seed, dataset_sha256]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=OmegaConf.to_container).encode()).hexdigest()


@dataclass(frozen=True)
class Progress:
    """How far a training is, beside its weights.

    Attributes:
        step: Steps done.
        fingerprint: Of the training.
        validation_loss: Loss on held-out scenes at this step.
        skipped: Steps skipped so far since their gradient was not finite.
        unrecorded_losses: Losses of the steps since the last line of metrics.
    """

    step: int
    fingerprint: str
    validation_loss: float
    skipped: int = 0
    unrecorded_losses: list[float] = field(default_factory=list)


class CheckpointError(Exception):
    """A folder is no whole checkpoint; the message says why."""


def read_checkpoint(directory: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Read a checkpoint and check that its bytes are those that were written.

    Args:
        directory: `step-*` of a run's `checkpoints/`.

    Returns:
        Progress and state.

    Raises:
        CheckpointError: A file is missing, cannot be read, or has changed.
    """
    try:
        content = json.loads((directory / "training.json").read_text())
        expected = content.pop("sha256")
        progress = Progress(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / 'training.json'}: {error}") from error
    path = directory / "state.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if file_sha256(path) != expected:
        raise CheckpointError(f"{path}: its content is not what was written (wrong hash)")
    return progress, load_file(path)


class Checkpoints:
    """The checkpoints of one run; rank 0 writes them."""

    def __init__(self, directory: Path, fingerprint: str, *, keep: int, keep_every: int | None):
        """Open the folder.

        Args:
            directory: `checkpoints/` of the run.
            fingerprint: Of this training.
            keep: How many of the newest stay; the one with the lowest validation loss stays as well.
            keep_every: Checkpoints at multiples of this step stay for good; None: none does.
        """
        self.directory, self.fingerprint, self.keep, self.keep_every = directory, fingerprint, keep, keep_every
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, progress: Progress, state: dict[str, Tensor], write_encoder: Callable[[Path], None]) -> None:
        """Write a checkpoint in the background, once the one before is on disk.

        Args:
            progress: How far the training is.
            state: Of `full_state`, in memory that nobody else changes.
            write_encoder: Writes the encoder into a folder.

        Raises:
            UserError: The one before could not be written.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, progress, state, write_encoder)

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            UserError: It could not be written.
        """
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.directory}: the checkpoint could not be written: {error}") from error

    def newest(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The newest good checkpoint of this training; a damaged one is named and passed over.

        Returns:
            Progress and state, or None where there is nothing to continue.
        """
        for path in reversed(self._folders()):
            try:
                progress, state = read_checkpoint(path)
            except CheckpointError as error:
                log.warning("checkpoint passed over: %s", error)
                continue
            if progress.fingerprint == self.fingerprint:
                return progress, state
        return None

    def _write(self, progress: Progress, state: dict[str, Tensor], write_encoder: Callable[[Path], None]) -> None:
        with written_whole(self.directory / f"step-{progress.step:08d}") as partial:
            save_file(state, partial / "state.safetensors")
            write_encoder(partial / "encoder")
            write_json(
                partial / "training.json", asdict(progress) | {"sha256": file_sha256(partial / "state.safetensors")}
            )
        self._remove_old()

    def _remove_old(self) -> None:
        """Once a checkpoint of this training is there, those of another one in the folder are of no use to it."""
        written = {folder: _about(folder) for folder in self._folders()}
        ours = [folder for folder, about in written.items() if about.get("fingerprint") == self.fingerprint]
        best = min(ours, key=lambda folder: written[folder]["validation_loss"])
        for folder in written:
            for_good = self.keep_every is not None and _step(folder) % self.keep_every == 0
            if folder not in ours or not (folder in ours[-self.keep :] or folder == best or for_good):
                shutil.rmtree(folder)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("step-*") if path.is_dir())


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _about(folder: Path) -> dict[str, Any]:
    """What its `training.json` says; nothing where that is damaged."""
    try:
        return json.loads((folder / "training.json").read_text())
    except (OSError, ValueError):
        return {}
