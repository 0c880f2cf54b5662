"""The training loop."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from omegaconf import DictConfig
from torch import Tensor, nn

from mum_model.data.batches import Pack, Sampler, StepPacks, ViewSampler, load_packs
from mum_model.data.endless import RENDERED, EndlessRooms, RoomSampler
from mum_model.data.scenes import open_dataset
from mum_model.data.streaming import LocalCopies
from mum_model.errors import UserError
from mum_model.model import save_encoder
from mum_model.pretrain.checkpoints import Checkpoints, Progress, training_fingerprint
from mum_model.pretrain.engine import create_engine, full_state, full_weights, restore_optimiser, take_step
from mum_model.pretrain.judging import Judge
from mum_model.pretrain.module import LossModule, compile_blocks, recompute_blocks, resolve_precision
from mum_model.pretrain.objectives import Objective
from mum_model.pretrain.objectives.geometry import Distillation, MultiView
from mum_model.pretrain.objectives.masked import MaskedImages
from mum_model.pretrain.pictures import write_picture
from mum_model.pretrain.preemption import Preempted, Preemption
from mum_model.pretrain.reports import HostNumbers, Reports, StepReport
from mum_model.pretrain.schedule import learning_rate, set_learning_rate
from mum_model.pretrain.telemetry import Telemetry, memory_bytes
from mum_model.pretrain.watch import Watch

log = logging.getLogger(__name__)

OBJECTIVES: dict[str, Callable[[DictConfig], Objective]] = {
    "masked": MaskedImages,
    "multiview": MultiView,
    "distil": Distillation,
}
"""By the name in the group `objective` of the configuration."""

VALIDATION_STEP = 2**31  # far behind the last step: its masks and crops are never those of a training step


class Trainer:
    """Trains one model; every rank has one."""

    def __init__(self, cfg: DictConfig, preemption: Preemption):
        """Build model, engine and data, and take up an interrupted run where it stopped.

        Args:
            cfg: The composed configuration.
            preemption: Asked after every step whether to stop.
        """
        self.cfg, self.settings, self.preemption = cfg, cfg.pretrain, preemption
        self.run = Path(cfg.paths.run)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.objective = OBJECTIVES[cfg.objective.name](cfg)
        rooms, place = cfg.data.rendered, cfg.paths.dataset
        self.frames = EndlessRooms.of(rooms) if place == RENDERED else open_dataset(place, LocalCopies.of(cfg))
        self.packs, self.held_out = self._packs("train"), self._packs("val")
        fingerprint = training_fingerprint(cfg, self.frames.content_sha256)
        self.checkpoints = Checkpoints(
            self.run / "checkpoints",
            fingerprint,
            keep=self.settings.keep_checkpoints,
            keep_every=self.settings.keep_every,
        )
        self.progress = Progress(0, fingerprint, float("inf"))
        self.engine = self._engine()
        self.reports = Reports(self.engine.device, self.world_size)
        limits = {"max_skipped": self.settings.max_skipped, "skipped": self.progress.skipped}
        self.watch = Watch(self.run, self.packs, **limits)
        self.shown = self.held_out.make(VALIDATION_STEP, 0)

    def train(self) -> nn.Module:
        """Take the remaining steps.

        Returns:
            The trained model on the CPU, on every rank.

        Raises:
            UserError: Too many steps were not finite, or a checkpoint could not be written.
            Preempted: The process was asked to stop, and a checkpoint is written.
        """
        steps = range(self.progress.step, self.settings.steps)
        self.telemetry = self.judge = None
        if self.rank == 0:
            self.telemetry = Telemetry(self.run, self.cfg, self.progress)
            self.judge = Judge(self.run, self.settings.evaluate_every, self.telemetry.evaluated)
        try:
            asked = time.perf_counter()
            for step, packs in zip(steps, load_packs(self.packs, steps, self.cfg.machine.loader_workers), strict=True):
                self._take_step(step, packs, asked)
                asked = time.perf_counter()
            self._read(self.reports.flush())
            self.checkpoints.wait()
            if self.judge is not None:
                self.judge.finish()
        finally:
            if self.telemetry is not None and self.judge is not None:
                self.judge.stop()
                self.telemetry.close()
        return self._model_of(full_weights(self.engine))

    def save_encoder(self, model: nn.Module, directory: Path) -> None:
        """Write a model's encoder as plain timm loads it.

        Args:
            model: What `train` gave.
            directory: Replaced whole.
        """
        save_encoder(model.encoder, directory, {"input_size": [3, self.settings.size, self.settings.size]})

    def _take_step(self, step: int, packs: list[Pack], asked: float) -> None:
        began = time.perf_counter()
        rate = learning_rate(
            step, peak=self.settings.learning_rate, steps=self.settings.steps, warmup=self.settings.warmup
        )
        set_learning_rate(self.engine.optimizer, rate)
        losses = []
        for turn, pack in enumerate(packs):
            loss = self._loss(pack)
            self.engine.backward(loss)
            losses.append(loss)
            if turn < len(packs) - 1:
                self.engine.step()  # counts the pack; the weights move with the last one
        seconds = time.perf_counter() - asked
        norm = take_step(self.engine)
        host = HostNumbers(seconds, began - asked, memory_bytes(), self.preemption.requested)
        before = self.reports.post(step, losses, norm, host)
        self._read(before)
        if before is not None and before.stop:
            self._read(self.reports.flush())
            self._save(step + 1)
            self.checkpoints.wait()
            raise Preempted
        if step + 1 == self.settings.steps or (step + 1) % self.settings.checkpoint_every == 0:
            self._read(self.reports.flush())
            self._save(step + 1)

    def _loss(self, pack: Pack) -> Tensor:
        return self.engine(*self.objective.inputs(pack, self.engine.device))

    def _read(self, report: StepReport | None) -> None:
        """What follows from the report of a step; all ranks read the same."""
        if report is None:
            return
        self.watch.look(report)
        if self.telemetry is not None and self.judge is not None:
            self.telemetry.step_done(report, skipped=self.watch.skipped, spikes=self.watch.spikes)
            self.judge.look()

    def _save(self, step: int) -> None:
        validation_loss = self._validation_loss()
        state = full_state(self.engine)  # every rank has a part of it
        if self.telemetry is None or self.judge is None:
            return
        self.telemetry.validated(step, validation_loss)
        unrecorded = self.telemetry.unrecorded_losses
        progress = Progress(step, self.progress.fingerprint, validation_loss, self.watch.skipped, unrecorded)
        self.checkpoints.save(progress, state, lambda folder: self._write_extras(step, state, folder))
        self.judge.saved(step)

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """The loss on as many packs of held-out scenes as a step has, always the same ones under the same masks."""
        self.engine.eval()
        numbers = range(self.rank * self.packs.per_step, (self.rank + 1) * self.packs.per_step)
        loss = torch.stack([self._loss(self.held_out.make(VALIDATION_STEP, number)) for number in numbers]).mean()
        self.engine.train()
        torch.distributed.all_reduce(loss)
        return loss.item() / self.world_size

    def _engine(self) -> DeepSpeedEngine:
        """The engine, with the weights and the optimiser of the checkpoint that is to be continued."""
        torch.manual_seed(self.cfg.seed)
        model = self.objective.create_model()
        found = self.checkpoints.newest()
        if found is not None:
            self.progress, state = found
            model.load_state_dict(_weights_in(state))
        else:
            self.objective.load_start(model)
        if self.cfg.machine.compile:
            compile_blocks(model)
        recompute_blocks(model, self.settings.recompute)
        module = LossModule(model, self.objective, resolve_precision(self.settings.precision))
        engine = create_engine(module, self.settings, self.packs.per_step)
        if found is not None:
            restore_optimiser(engine, state)
            if self.rank == 0:
                log.info("resuming at step %d", self.progress.step)
        return engine

    def _write_extras(self, step: int, state: dict[str, Tensor], folder: Path) -> None:
        model = self._model_of(_weights_in(state))
        self.save_encoder(model, folder)
        write_picture(self.run / "pictures" / f"step-{step:08d}.png", self.objective.picture(model, self.shown))

    def _model_of(self, weights: dict[str, Tensor]) -> nn.Module:
        model = self.objective.create_model()
        model.load_state_dict(weights)
        return model.eval()

    def _packs(self, split: str) -> StepPacks:
        """The packs of a split; where none of its sequences is long enough, those of the training split."""
        settings = self.settings
        if settings.frames % settings.pack:
            raise UserError(f"pretrain.frames={settings.frames}: must be a multiple of pretrain.pack={settings.pack}")
        shares = {"packs": settings.frames // settings.pack, "rank": self.rank, "world_size": self.world_size}
        return self.objective.packs(self.frames, self._sampler(split), **shares)

    def _sampler(self, split: str) -> Sampler:
        settings = self.settings
        draw = {
            "frames": settings.pack,
            "views": tuple(settings.views),
            "single_view_share": settings.single_view_share,
            "seed": self.cfg.seed,
        }
        if isinstance(self.frames, EndlessRooms):
            return RoomSampler(self.frames, split, **draw)
        sequences = self.frames.sequences(split)
        if sequences.lengths.max(initial=0) < settings.views[0]:
            sequences = self.frames.sequences("train")
        return ViewSampler(sequences, self.frames.sources(sequences), mix=settings.mix, **draw)


def _weights_in(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("weights/"): value for key, value in state.items() if key.startswith("weights/")}
