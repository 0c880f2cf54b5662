"""The objective as one module: what DeepSpeed drives, what is compiled, and in which precision it runs."""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from mum_model.errors import UserError
from mum_model.model import MuM
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout


class Objective(nn.Module):
    """From stored pixels to the loss.

    Weights stay in float32 and are the optimiser's own: bf16 is a matter of autocast, so no second copy of them and
    no rounding of small updates.
    """

    def __init__(self, model: MuM, *, mask_ratio: float, precision: str, normalise_target: bool = True):
        """Wrap a model.

        Args:
            model: To be trained.
            mask_ratio: Share of the patches of each view that is removed.
            precision: `fp32` or `bf16`.
            normalise_target: Predict normalised pixels, as the paper does.
        """
        super().__init__()
        self.model, self.mask_ratio, self.bf16 = model, mask_ratio, precision == "bf16"
        self.normalise_target = normalise_target

    def forward(self, images: Tensor, scenes: SceneLayout, noise: Tensor) -> Tensor:
        """The loss of one pack.

        Args:
            images: Views of all scenes end to end, uint8 `[F, 3, H, W]`.
            scenes: Which of them make a scene.
            noise: `[F, L]`, decides the masks.

        Returns:
            Scalar float32.
        """
        kind = images.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16), self._attention(kind):
            frames = normalise_pixels(images)
            return self.model.masked_loss(
                frames, scenes, self.mask_ratio, noise, normalise_target=self.normalise_target
            )

    def _attention(self, device: str) -> AbstractContextManager:
        """On a GPU an attention that cannot run fused is an error, not a slow surprise."""
        if device != "cuda":
            return nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION] if self.bf16 else [SDPBackend.EFFICIENT_ATTENTION])


def resolve_precision(setting: str) -> str:
    """`fp32` or `bf16` for this device.

    Args:
        setting: `fp32`, `bf16`, or `auto`: bf16 on a GPU that has it, else fp32.

    Returns:
        `fp32` or `bf16`.

    Raises:
        UserError: The setting is none of these.
    """
    if setting not in ("auto", "fp32", "bf16"):
        raise UserError(f"pretrain.precision={setting}: expected auto, fp32 or bf16")
    if setting != "auto":
        return setting
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def transformer_blocks(model: MuM) -> Iterator[nn.Module]:
    """All blocks of encoder and decoder: the pieces that are compiled and recomputed one by one."""
    yield from model.encoder.blocks
    yield from model.decoder.frame_blocks
    yield from model.decoder.global_blocks


def compile_blocks(model: MuM) -> None:
    """Compile every block in place.

    Blocks of a kind share one compiled graph, so compilation takes as long as that of three blocks, whatever the depth.

    Args:
        model: Changed in place; its weights and their names stay.
    """
    for block in transformer_blocks(model):
        block.compile()


def recompute_blocks(model: MuM, share: float) -> None:
    """Trade time for memory: forget the inner activations of some blocks, and compute them again going backward.

    Args:
        model: Changed in place; its weights and their names stay.
        share: Of the blocks, evenly spread; 0 none, 1 all.

    Raises:
        UserError: It is no share.
    """
    if not 0 <= share <= 1:
        raise UserError(f"pretrain.recompute={share}: expected a share of the blocks between 0 and 1")
    for i, block in enumerate(transformer_blocks(model)):
        if int((i + 1) * share) > int(i * share):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
