"""The two steps that are timed: this project's, and that of the authors' training loop on their own model."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.pretrain_step.setting import MASK_RATIO, Setting, Variant
from mum_model.config import compose
from mum_model.model import MuM, scenes
from mum_model.model.encoder import transformer_blocks
from mum_model.model.masking import normalise_patches
from mum_model.model.mum import MUM_SIZES, MuMConfig
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout
from mum_model.pretrain.allocator import keep_freed_memory
from mum_model.pretrain.module import LossModule, compile_blocks, recompute_blocks
from mum_model.pretrain.objectives.masked import MaskedImages
from mum_model.pretrain.schedule import parameter_groups

Step = Callable[[Tensor, Sequence[Sequence[int]]], None]
"""Takes the frames of a step, and the view counts of the scenes of each of its packs."""


def shape_of(setting: Setting) -> MuMConfig:
    """Of the model."""
    return replace(MUM_SIZES[setting.size], **setting.model)


class OurStep:
    """Forward, backward and update as `mum pretrain` does them, without DeepSpeed's bookkeeping."""

    def __init__(self, setting: Setting, variant: Variant, device: torch.device):
        """Build model and optimiser."""
        self.setting, self.variant = setting, variant
        if variant.keeps_memory and device.type == "cpu":
            keep_freed_memory()
        self.model = MuM(shape_of(setting))
        objective = MaskedImages(compose([f"pretrain.mask_ratio={MASK_RATIO}"]))
        self.module = LossModule(self.model, objective, setting.precision).to(device)
        if not variant.written_out:
            scenes.LONG_ON_CPU = 0
            for block in transformer_blocks(self.model):
                block.attn.fused_attn = True
        if variant.compiled:
            compile_blocks(self.model)
        recompute_blocks(self.model, variant.recompute)
        groups = parameter_groups(self.module.named_parameters(), 0.05)
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=variant.fused)

    def __call__(self, images: Tensor, packs: Sequence[Sequence[int]]) -> None:
        """Take a step."""
        for frames, views in zip(images.split([sum(views) for views in packs]), packs, strict=True):
            noise = torch.rand(len(frames), (self.setting.side // self.model.config.patch_size) ** 2)
            layout = SceneLayout.of(views, self.setting.views[1]).to(frames.device)
            loss = self.module if self.variant.masked_only else self._all_patches
            (loss(frames, layout, noise.to(frames.device, non_blocking=True)) / len(packs)).backward()
        self.update()

    def update(self) -> None:
        """Move the weights."""
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _all_patches(self, images: Tensor, layout: SceneLayout, noise: Tensor) -> Tensor:
        """The loss by way of a prediction of every patch, visible ones included."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.setting.precision == "bf16"):
            frames = normalise_pixels(images)
            patches, mask, tokens = self.model._see_and_fill_in(frames, layout, MASK_RATIO, noise)
            target, _, _ = normalise_patches(patches)
            error = (self.model.decoder.predict(tokens).float() - target).square().mean(-1)
            return error.gather(1, mask.masked).mean()


def reference_step(setting: Setting, checkout: str, device: torch.device) -> Step:
    """The step of the authors' training loop, on their own model, of the same shape."""
    sys.path.insert(0, checkout)
    theirs = __import__("mum.model", fromlist=["MuMAutoEncoder"])
    shape = shape_of(setting)
    model = theirs.MuMAutoEncoder(
        img_size=setting.side,
        patch_size=shape.patch_size,
        embed_dim=shape.encoder_dim,
        depth=shape.encoder_depth,
        num_heads=shape.encoder_heads,
        decoder_embed_dim=shape.decoder_dim,
        decoder_depth=shape.decoder_depth,
        decoder_num_heads=shape.decoder_heads,
        norm_layer="layernormbf16",
        device=device,
    ).to(device)
    model.init_weights()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def step(images: Tensor, packs: Sequence[Sequence[int]]) -> None:
        (views,) = packs
        batch = normalise_pixels(images).unflatten(0, (len(views), views[0]))
        bf16 = setting.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            loss, _, _ = model(batch, mask_ratio=MASK_RATIO)
        loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step
