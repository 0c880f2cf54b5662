"""Linear heads on frozen tokens: one for each learning rate, trained at once on the same batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mum_model.evaluate.features import device


@dataclass(frozen=True)
class LinearSettings:
    """How linear heads are trained: AdamW, the rate falls to a tenth at 90 %.

    Attributes:
        iterations: Optimiser steps.
        batch: Images a step.
        learning_rates: Each is a head of its own.
    """

    iterations: int
    batch: int
    learning_rates: Sequence[float]


@dataclass(frozen=True)
class Head:
    """A trained head on standardised tokens.

    Attributes:
        weight: `[D, outputs]`.
        bias: `[outputs]`.
        mean: Of the tokens it was trained on, `[D]`.
        deviation: Of the same, `[D]`.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Outputs `[..., outputs]` of tokens `[..., D]`."""
        return (tokens - self.mean) / self.deviation @ self.weight + self.bias


def train_heads(
    read: Callable[[np.ndarray], Tensor],
    loss: Callable[[Tensor, np.ndarray], Tensor],
    count: int,
    outputs: int,
    settings: LinearSettings,
    seed: int,
) -> list[Head]:
    """Train a head for each learning rate.

    Args:
        read: Tokens `[N, ..., D]` of images by place, `0..count-1`.
        loss: Scalar loss of the outputs `[N, ..., outputs]` of these places.
        count: How many images there are to train on.
        outputs: Width of the heads.
        settings: How.
        seed: Decides initialisation and batches.

    Returns:
        The heads, in the order of the learning rates.
    """
    rng = np.random.default_rng(seed)
    sample = read(rng.permutation(count)[:256])
    sample = sample.flatten(0, -2)
    mean, deviation = sample.mean(dim=0), sample.std(dim=0) + 1e-6
    heads = [_fresh(sample.shape[-1], outputs, mean, deviation) for _ in settings.learning_rates]
    optimiser = torch.optim.AdamW(
        [{"params": [h.weight, h.bias], "lr": rate} for h, rate in zip(heads, settings.learning_rates, strict=True)],
        weight_decay=1e-4,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [int(0.9 * settings.iterations)], gamma=0.1)
    for _ in range(settings.iterations):
        places = rng.integers(count, size=min(settings.batch, count))
        tokens = read(places)
        optimiser.zero_grad()
        torch.stack([loss(head(tokens), places) for head in heads]).sum().backward()
        optimiser.step()
        schedule.step()
    return [Head(h.weight.detach(), h.bias.detach(), mean, deviation) for h in heads]


def _fresh(width: int, outputs: int, mean: Tensor, deviation: Tensor) -> Head:
    """Weights of zero: there is no symmetry to break. Biases of one: at zero a ReLU or a norm has no slope."""
    weight = torch.zeros(width, outputs, device=device(), requires_grad=True)
    return Head(weight, torch.ones(outputs, device=device(), requires_grad=True), mean, deviation)
