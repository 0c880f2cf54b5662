"""The optimiser's groups and the learning rate of each step (MuM, pretraining recipe)."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups: matrices decay; biases, norms and the class, mask and camera tokens do not; none has frozen ones.

    Args:
        named_parameters: Of the model.
        weight_decay: Of the decaying group.

    Returns:
        Groups for `torch.optim.AdamW`.
    """
    decaying: list[nn.Parameter] = []
    still: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        is_matrix = parameter.ndim > 1 and not name.endswith(("_token", "_tokens"))
        if parameter.requires_grad:
            (decaying if is_matrix else still).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]


def learning_rate(step: int, *, peak: float, steps: int, warmup: float) -> float:
    """Linear warm-up, then half a cosine to zero.

    Args:
        step: The step about to be taken, from 0.
        peak: Highest learning rate.
        steps: Length of the training.
        warmup: Share of the steps that warm up.

    Returns:
        The learning rate of that step; positive for every step.
    """
    warmup_steps = max(1, round(warmup * steps))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Give every group of an optimiser the same learning rate.

    Args:
        optimiser: Changed in place.
        value: The rate.
    """
    for group in optimiser.param_groups:
        group["lr"] = value
