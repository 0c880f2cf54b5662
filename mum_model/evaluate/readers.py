"""What the trained readers of frozen tokens share: standardised tokens, an optimiser, and the choice on validation.

A reader is a network on top of patch tokens, larger than a linear probe. Each learning rate trains one of its own, on
the same batches, and the best on validation is the one that is reported.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mum_model.errors import UserError
from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import Features, FeatureStore, device
from mum_model.evaluate.views import ImageSet

Network = TypeVar("Network", bound=nn.Module)

WARM_UP = 0.05  # share of the steps
FINAL_RATE = 1e-8


@dataclass(frozen=True)
class Optimisation:
    """How a reader is trained: AdamW, linear warm-up and half a cosine (MuM's protocol for VGGT's heads).

    Attributes:
        iterations: Optimiser steps.
        learning_rates: At the peak; each is a reader of its own.
        weight_decay: Of all weights.
        clip: Largest norm of a gradient.
    """

    iterations: int
    learning_rates: Sequence[float]
    weight_decay: float
    clip: float


@dataclass(frozen=True)
class Reader(Generic[Network]):
    """A trained network on standardised tokens.

    Attributes:
        network: The network.
        mean: Of the tokens that it was trained on, `[D]`.
        deviation: Of the same, `[D]`.
    """

    network: Network
    mean: Tensor
    deviation: Tensor

    def standardised(self, tokens: Tensor) -> Tensor:
        """Tokens `[..., D]` of zero mean and unit deviation."""
        return (tokens - self.mean) / self.deviation


class Lessons(ABC, Generic[Network]):
    """What readers are trained on; each is trained once for all benchmarks that are judged by it.

    Attributes:
        images: What features are computed of.
        content: SHA-256 of everything that is trained and chosen on.
    """

    images: ImageSet
    content: str

    def __init__(self, seeds: int):
        """Open the lessons.

        Args:
            seeds: How many readers there are of an encoder: so many are remembered.
        """
        self.seeds = seeds
        self._learned: dict[tuple[str, int, int], Reader[Network]] = {}

    def learn(self, encoder: Encoder, store: FeatureStore, seed: int) -> Reader[Network]:
        """The reader of an encoder's tokens, taught now unless it just was for another benchmark."""
        key = encoder.identity, store.layer, seed
        if key not in self._learned:
            if len(self._learned) >= self.seeds:
                self._learned.pop(next(iter(self._learned)))
            self._learned[key] = self.teach(encoder, store.get(encoder, self.images, "patches"), seed)
        return self._learned[key]

    @abstractmethod
    def teach(self, encoder: Encoder, features: Features, seed: int) -> Reader[Network]:
        """Train a reader.

        Args:
            encoder: The encoder.
            features: Its patch tokens of the images.
            seed: Decides what is random in it.

        Returns:
            The reader.
        """


def train_reader(
    build: Callable[[int], Network],
    features: Features,
    loss: Callable[[Reader[Network], np.random.Generator], Tensor],
    judge: Callable[[Reader[Network]], float],
    settings: Optimisation,
    seed: int,
    name: str,
) -> Reader[Network]:
    """Train a reader for each learning rate and keep the best.

    Args:
        build: Makes the network for tokens of this width, with fresh weights.
        features: Patch tokens that the standardisation is measured on.
        loss: Scalar loss of a batch that the generator decides.
        judge: A number on validation data, less is better.
        settings: How.
        seed: Decides initialisation and batches, alike for all learning rates.
        name: For the progress bar.

    Returns:
        The reader of the best learning rate, in evaluation mode.

    Raises:
        UserError: Every training ended in weights that are not numbers.
    """
    sample = features[torch.from_numpy(np.random.default_rng(seed).permutation(len(features))[:256])].flatten(0, -2)
    mean, deviation = sample.mean(dim=0), sample.std(dim=0) + 1e-6
    readers = []
    for rate in settings.learning_rates:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build(features.width).to(device())
        reader = Reader(network, mean, deviation)
        _train(reader, loss, rate, settings, np.random.default_rng(seed), name)
        network.eval()
        readers.append(reader)
    whole = [reader for reader in readers if all(p.isfinite().all() for p in reader.network.parameters())]
    if not whole:
        raise UserError(f"{name}: no training converged; lower its optimisation.learning_rates")
    return whole[0] if len(whole) == 1 else min(whole, key=judge)


def _train(
    reader: Reader[Network],
    loss: Callable[[Reader[Network], np.random.Generator], Tensor],
    rate: float,
    settings: Optimisation,
    rng: np.random.Generator,
    name: str,
) -> None:
    parameters = list(reader.network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay)
    warm_up = max(1, round(WARM_UP * settings.iterations))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, 1 / warm_up, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, settings.iterations - warm_up), FINAL_RATE),
        ],
        [warm_up],
    )
    for _ in tqdm(range(settings.iterations), desc=name, unit="step", leave=False):
        value = loss(reader, rng)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        schedule.step()


def precision() -> AbstractContextManager[None]:
    """In which numbers readers compute: bfloat16 where there is a GPU, whose packed attention asks for it."""
    return torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda")
