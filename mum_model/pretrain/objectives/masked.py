"""MuM's own objective: predict the hidden patches of every view from what is visible of all views."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import Pack, Purpose, Sampler, StepPacks, generator
from mum_model.data.endless import EndlessRooms
from mum_model.data.scenes import SceneIndex
from mum_model.model import MuM, MuMConfig, save_mum
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout
from mum_model.pretrain.pictures import reconstruction
from mum_model.pretrain.start import load_start


class MaskedImages:
    """Masked images (MuM, arXiv 2511.17309, section on the method); an `Objective`."""

    def __init__(self, cfg: DictConfig):
        """Take the settings.

        Args:
            cfg: The composed configuration; reads `model`, `pretrain` and `seed`.
        """
        self.cfg, self.settings = cfg, cfg.pretrain

    def create_model(self) -> MuM:
        """A MuM of the configuration's shape."""
        return MuM(MuMConfig(**self.cfg.model))

    def load_start(self, model: MuM) -> None:
        """The weights that `pretrain.start_from` names."""
        if self.settings.start_from is not None:
            load_start(model, self.settings.start_from)

    def packs(self, frames: SceneIndex | EndlessRooms, sampler: Sampler, **shares: int) -> StepPacks:
        """Pixels alone, each view with a crop and a flip of its own."""
        settings = self.settings
        augmentation = Augmentation(settings.size, settings.crop_scale, tuple(settings.crop_ratio), settings.flip)
        return StepPacks(frames, sampler, augmentation, **shares)

    def inputs(self, pack: Pack, device: torch.device) -> tuple[Tensor, SceneLayout, Tensor]:
        """Views, scenes and what decides the masks."""
        scenes = SceneLayout.of(pack.views, self.settings.views[1]).to(device)
        return pack.images.to(device, non_blocking=True), scenes, self._noise(pack).to(device, non_blocking=True)

    def loss(self, model: MuM, images: Tensor, scenes: SceneLayout, noise: Tensor) -> Tensor:
        """Squared error on the pixels of the masked patches.

        Args:
            model: To be trained.
            images: Views of all scenes end to end, uint8 `[F, 3, H, W]`.
            scenes: Which of them make a scene.
            noise: `[F, L]`, decides the masks.

        Returns:
            Scalar float32.
        """
        frames, ratio = normalise_pixels(images), self.settings.mask_ratio
        return model.masked_loss(frames, scenes, ratio, noise, normalise_target=self.settings.normalise_target)

    def save(self, model: MuM, directory: Path) -> None:
        """Encoder and decoder, as `load_mum` loads them."""
        save_mum(model, directory)

    @torch.inference_mode()
    def picture(self, model: MuM, pack: Pack) -> np.ndarray:
        """The views of the longest scene, what is visible of them, and what the model makes of the rest."""
        views = pack.views[0]
        images = normalise_pixels(pack.images[:views])
        output = model(images[None], mask_ratio=self.settings.mask_ratio, noise=self._noise(pack)[:views])
        return reconstruction(model, images, output)

    def _noise(self, pack: Pack) -> Tensor:
        """What decides the masks of a pack, `[frames, patches]`; the same whichever rank sees it."""
        length = (self.settings.size // self.cfg.model.patch_size) ** 2
        rng = generator(self.cfg.seed, pack.step, pack.number, Purpose.MASK)
        return torch.from_numpy(rng.random((len(pack.images), length), dtype=np.float32))
