"""The training loop."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mum_model.data.batches import Augmentation, StepBatches, ViewSampler, step_loader
from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.model import MuM, MuMConfig
from mum_model.model.pixels import normalise_pixels
from mum_model.pretrain.checkpoints import Checkpoints, training_fingerprint
from mum_model.pretrain.engine import create_engine, full_weights, gradient_norm
from mum_model.pretrain.pictures import reconstruction, write_picture
from mum_model.pretrain.schedule import learning_rate, set_learning_rate
from mum_model.pretrain.telemetry import StepMetrics, Telemetry, memory_bytes

log = logging.getLogger(__name__)


@dataclass
class _Interval:
    """What happened since the last record."""

    losses: list[float] = field(default_factory=list)
    images: int = 0
    data_wait: float = 0.0
    began: float = field(default_factory=time.perf_counter)


class Trainer:
    """Trains one MuM; every rank has one."""

    def __init__(self, cfg: DictConfig):
        """Build model, engine and data, and resume where an interrupted run stopped.

        Args:
            cfg: The composed configuration.
        """
        self.cfg, self.settings = cfg, cfg.pretrain
        self.run = Path(cfg.paths.run)
        self.index = SceneIndex.open(Path(cfg.paths.dataset))
        torch.manual_seed(cfg.seed)
        self.engine = create_engine(MuM(MuMConfig(**cfg.model)), self.settings)
        self.rank, self.world_size = self.engine.global_rank, self.engine.world_size
        fingerprint = training_fingerprint(cfg, self.index.card["content_sha256"], self.world_size)
        self.checkpoints = Checkpoints(self.run / "checkpoints", fingerprint, self.settings.keep_checkpoints)
        self.step = self.checkpoints.resume(self.engine)
        if self.step and self.rank == 0:
            log.info("resuming at step %d", self.step)
        self.batches = StepBatches(self.index, self._sampler(), self._augmentation(), self.rank, self.world_size)
        self.interval = _Interval()

    def train(self) -> None:
        """Take the remaining steps."""
        if self.rank != 0:
            self._loop(None)
            return
        settings = {"start": self.step, "steps": self.settings.steps, "metrics_port": self.settings.metrics_port}
        with Telemetry(self.run, **settings) as telemetry:
            self._loop(telemetry)

    def trained_model(self) -> MuM:
        """The model with its weights in fp32, on the CPU; every rank must call it."""
        model = MuM(self.engine.module.config)
        model.load_state_dict(full_weights(self.engine))
        return model.eval()

    def _loop(self, telemetry: Telemetry | None) -> None:
        remaining = range(self.step, self.settings.steps)
        asked = time.perf_counter()
        for batch in step_loader(self.batches, remaining, self.cfg.machine.loader_workers):
            self.interval.data_wait += time.perf_counter() - asked
            self._step(batch, telemetry)
            asked = time.perf_counter()

    def _step(self, batch: Tensor, telemetry: Telemetry | None) -> None:
        rate = learning_rate(
            self.step, peak=self.settings.learning_rate, steps=self.settings.steps, warmup=self.settings.warmup
        )
        set_learning_rate(self.engine.optimizer, rate)
        images = normalise_pixels(batch.to(self.engine.device))
        output = self.engine(images, mask_ratio=self.settings.mask_ratio, noise=self._noise(images))
        loss = self._mean_over_ranks(output.loss)
        self._stop_if_not_finite(loss)
        self.engine.backward(output.loss)
        norm = gradient_norm(self.engine)
        self.engine.step()
        self.step += 1
        self.interval.losses.append(loss)
        self.interval.images += images.shape[0] * images.shape[1] * self.world_size
        self._after_step(rate, self.engine.get_global_grad_norm() if norm is None else norm, telemetry)

    def _after_step(self, rate: float, norm: float, telemetry: Telemetry | None) -> None:
        last = self.step == self.settings.steps
        if telemetry is not None:
            telemetry.advance()
            if last or self.step % self.settings.log_every == 0:
                telemetry.record(self._metrics(rate, norm))
        if last or self.step % self.settings.pictures_every == 0:
            self.draw()
        if last or self.step % self.settings.checkpoint_every == 0:
            self.checkpoints.save(self.engine, self.step)

    def _metrics(self, rate: float, norm: float) -> StepMetrics:
        interval, self.interval = self.interval, _Interval()
        seconds, steps = time.perf_counter() - interval.began, len(interval.losses)
        return StepMetrics(
            step=self.step,
            loss=float(np.mean(interval.losses)),
            learning_rate=rate,
            gradient_norm=float(norm),
            images_per_second=interval.images / seconds,
            step_seconds=seconds / steps,
            data_wait_seconds=interval.data_wait / steps,
            memory_bytes=memory_bytes(),
        )

    def _noise(self, images: Tensor) -> Tensor:
        """What decides the masks of this step: this rank's share of what one process would draw for all views."""
        patch = self.engine.module.config.patch_size
        count, length = images.shape[0] * images.shape[1], (images.shape[-2] // patch) * (images.shape[-1] // patch)
        rng = np.random.default_rng([self.cfg.seed, self.step])
        noise = rng.random((self.world_size, count, length), dtype=np.float32)[self.rank]
        return torch.from_numpy(noise).to(images.device)

    def _mean_over_ranks(self, loss: Tensor) -> float:
        mean = loss.detach().float().clone()
        torch.distributed.all_reduce(mean)
        return mean.item() / self.world_size

    def _stop_if_not_finite(self, loss: float) -> None:
        if np.isfinite(loss):
            return
        rows = self.batches.rows(self.step).ravel()
        frames, scenes = self.index.column("frame")[rows], self.index.column("scene")[rows]
        names = ", ".join(f"{scene}/{frame}" for scene, frame in zip(scenes, frames, strict=True))
        raise UserError(
            f"the loss is {loss} at step {self.step}. Lower pretrain.learning_rate or look at the batch: {names}"
        )

    @torch.no_grad()
    def draw(self) -> None:
        """Write a picture of the reconstruction of one validation scene; every rank must call it."""
        sequences = self.index.sequences("val") or self.index.sequences("train")
        rows = max(sequences, key=len)[: self.settings.views[1]]
        rng = np.random.default_rng(self.cfg.seed)
        whole = Augmentation(self.settings.size, crop_scale=1.0, flip=0.0)
        views = np.stack([whole(self.index.image(int(row)), rng) for row in rows])
        images = normalise_pixels(torch.from_numpy(views).permute(0, 3, 1, 2).to(self.engine.device))[None]
        length = (self.settings.size // self.engine.module.config.patch_size) ** 2
        noise = torch.from_numpy(rng.random((len(rows), length), dtype=np.float32)).to(images.device)
        self.engine.eval()
        output = self.engine(images, mask_ratio=self.settings.mask_ratio, noise=noise)
        self.engine.train()
        if self.rank == 0:
            on_cpu = output._make(value.cpu() for value in output)
            picture = reconstruction(self.engine.module, images[0].cpu(), on_cpu)
            write_picture(self.run / "pictures" / f"step-{self.step:08d}.png", picture)

    def _sampler(self) -> ViewSampler:
        return ViewSampler(
            self.index.sequences("train"),
            frames=self.settings.frames,
            views=tuple(self.settings.views),
            single_view_share=self.settings.single_view_share,
            seed=self.cfg.seed,
        )

    def _augmentation(self) -> Augmentation:
        return Augmentation(self.settings.size, self.settings.crop_scale, self.settings.flip)
