"""Resumable checkpoints of a run: written whole, the newest found without being told, old ones removed.

They hold DeepSpeed's own files (model, optimiser, one set a rank) and belong to one training on one machine; what
travels is `encoder/` and `model/`, which are safetensors.
"""

import hashlib
import json
import shutil
from pathlib import Path

import deepspeed
import torch
from omegaconf import DictConfig, OmegaConf

from mum_model.files import write_json

OPERATIONAL = ("checkpoint_every", "keep_checkpoints", "pictures_every", "log_every", "metrics_port")
"""Settings of `pretrain` that do not change what is trained."""


def training_fingerprint(cfg: DictConfig, dataset_sha256: str, world_size: int) -> str:
    """What identifies a training: a checkpoint of another one must not be continued.

    Args:
        cfg: The composed configuration; reads `model`, `pretrain` and `seed`.
        dataset_sha256: Content hash of the dataset.
        world_size: Number of ranks.

    Returns:
        A hash.
    """
    pretrain = {key: value for key, value in cfg.pretrain.items() if key not in OPERATIONAL}
    parts = [OmegaConf.to_container(cfg.model), pretrain, cfg.seed, dataset_sha256, world_size]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=OmegaConf.to_container).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, fingerprint: str, keep: int):
        """Open the folder.

        Args:
            directory: `checkpoints/` of the run.
            fingerprint: Of this training.
            keep: How many of the newest stay.
        """
        self.directory, self.fingerprint, self.keep = directory, fingerprint, keep

    def save(self, engine: deepspeed.DeepSpeedEngine, step: int) -> None:
        """Write a checkpoint; every rank must call it. It gets its name when all ranks have written.

        Args:
            engine: The engine.
            step: Steps done so far.
        """
        name = f"step-{step:08d}"
        partial = self.directory / f".{name}.partial"
        if engine.global_rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        torch.distributed.barrier()
        engine.save_checkpoint(str(partial), tag="state", save_latest=False)
        torch.distributed.barrier()
        if engine.global_rank == 0:
            write_json(partial / "training.json", {"step": step, "fingerprint": self.fingerprint})
            shutil.rmtree(self.directory / name, ignore_errors=True)
            partial.rename(self.directory / name)
            for old in self._whole()[: -self.keep]:
                shutil.rmtree(old)
        torch.distributed.barrier()

    def resume(self, engine: deepspeed.DeepSpeedEngine) -> int:
        """Load the newest checkpoint of this training; every rank must call it.

        Args:
            engine: Changed in place.

        Returns:
            Steps done so far; 0 where there is nothing to continue.
        """
        newest = self._newest_of_this_training()
        if newest is None:
            return 0
        engine.load_checkpoint(str(newest), tag="state")
        return json.loads((newest / "training.json").read_text())["step"]

    def _whole(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("step-*") if (path / "training.json").is_file())

    def _newest_of_this_training(self) -> Path | None:
        for path in reversed(self._whole()):
            if json.loads((path / "training.json").read_text())["fingerprint"] == self.fingerprint:
                return path
        return None
