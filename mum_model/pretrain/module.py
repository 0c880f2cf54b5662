"""The loss as one module: what DeepSpeed drives, what is compiled, and in which precision it runs."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from mum_model.errors import UserError
from mum_model.model.encoder import transformer_blocks
from mum_model.pretrain.objectives import Objective


class LossModule(nn.Module):
    """A model and its objective, from the inputs of a pack to the loss.

    Weights stay in float32 and are the optimiser's own: bf16 is a matter of autocast, so no second copy of them and
    no rounding of small updates.
    """

    def __init__(self, model: nn.Module, objective: Objective, precision: str):
        """Wrap a model.

        Args:
            model: To be trained.
            objective: Has its loss.
            precision: `fp32` or `bf16`.
        """
        super().__init__()
        self.model, self.objective, self.bf16 = model, objective, precision == "bf16"
        if self.bf16 and not torch.cuda.is_available():
            _attend_by_products(model)

    def forward(self, *inputs: Any) -> Tensor:
        """The loss of one pack.

        Args:
            inputs: As the objective's `inputs` gave them.

        Returns:
            Scalar float32.
        """
        kind = next(self.model.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16), self._attention(kind):
            return self.objective.loss(self.model, *inputs)

    def _attention(self, device: str) -> AbstractContextManager:
        """On a GPU an attention that cannot run fused is an error, not a slow surprise."""
        if device != "cuda":
            return nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION] if self.bf16 else [SDPBackend.EFFICIENT_ATTENTION])


def _attend_by_products(model: nn.Module) -> None:
    """Let timm write out the attention within a view: in bf16 on a CPU torch's fused one is far slower.

    Attention over scenes chooses by itself (`mum_model.model.scenes`).
    """
    for block in transformer_blocks(model):
        block.attn.fused_attn = False


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


def compile_blocks(model: nn.Module) -> None:
    """Compile every block in place.

    Blocks of a kind share one compiled graph, so compilation takes as long as that of three blocks, whatever the depth.

    Args:
        model: Changed in place; its weights and their names stay.
    """
    for block in transformer_blocks(model):
        block.compile()


def recompute_blocks(model: nn.Module, share: float) -> None:
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
