"""Pretrain: a dataset becomes a run folder with the trained encoder."""

import logging
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from mum_model.files import alone_in, write_json, write_text
from mum_model.pretrain.allocator import keep_freed_memory
from mum_model.pretrain.engine import join_process_group
from mum_model.pretrain.preemption import Preemption
from mum_model.pretrain.telemetry import read_metrics, write_curves
from mum_model.pretrain.trainer import Trainer

log = logging.getLogger(__name__)


def pretrain(cfg: DictConfig) -> Path:
    """Train what the objective says, a MuM by default, alone or as one of the processes that torchrun started.

    A run that was killed goes on from its newest checkpoint when the same command is given again, and its losses are
    those of an unbroken run. A run folder of another training is begun anew; its checkpoints go when the first new one
    is written.

    Args:
        cfg: The composed configuration; reads `model`, `objective`, `pretrain`, `machine`, `seed` and `paths`.

    Returns:
        The run folder: `encoder/` (for plain timm), `model/` (encoder and decoder, or trunk and heads),
        `metrics.jsonl`, `metrics.json`, `training.csv`, `pictures/`, `checkpoints/` and the resolved `config.yaml`.

    Raises:
        UserError: There is no dataset, a setting cannot be, too many steps were not finite, or another process trains
            in the run folder.
        Preempted: SIGTERM came; a checkpoint is written, and the same command goes on from it.
    """
    if cfg.machine.threads is not None:
        torch.set_num_threads(cfg.machine.threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    join_process_group(cfg.machine.collective_timeout)
    run, is_first = Path(cfg.paths.run), torch.distributed.get_rank() == 0
    with alone_in(run) if is_first else nullcontext(), Preemption(cfg.machine.grace_seconds) as preemption:
        trainer = Trainer(cfg, preemption)
        if is_first:
            write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        model = trainer.train()
        if is_first:
            trainer.save_encoder(model, run / "encoder")
            trainer.objective.save(model, run / "model")
            _write_numbers(run)
    torch.distributed.barrier()
    return run


def _write_numbers(run: Path) -> None:
    write_curves(run)
    last = read_metrics(run)[-1]
    write_json(run / "metrics.json", asdict(last))
    log.info("%s: loss %.4f after %d steps; the encoder is in %s", run, last.loss, last.step, run / "encoder")
