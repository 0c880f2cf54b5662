"""Dense matching between two views from frozen patch tokens: by nearest neighbour, and by a linear probe.

The protocol is that of the linear probe of MuM (arXiv 2511.17309): one linear projection shared by both images,
L2-normalised, correlation over a temperature, softmax over the other image's patch grid, cross-entropy on the true cell
where co-visible; the prediction is the soft average over the best cell and its four neighbours. Without a projection it
is the nearest-neighbour variant. Unlike the authors' script, the probe is chosen on a validation split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1
PAPER_SIDE = 448  # errors are given in pixels of an image of this side, as in the paper's tables
PCK_WITHIN = (8, 16, 32)  # pixels at 448; the share within 32 is the paper's R


class Table(Protocol):
    """Features of frames by row: a tensor, or a file of them."""

    @property
    def width(self) -> int:
        """Width of a token."""
        ...

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Patch tokens of these rows, float32 `[..., L, D]`."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Pairs of views with the true position in view b of the centre of each patch of view a.

    Attributes:
        a: Row of view a in the feature table, int64 `[P]`.
        b: Row of view b, int64 `[P]`.
        target: (x, y) in view b in pixels at the evaluated resolution, float32 `[P, L, 2]`.
        covisible: Where that position is known and visible in both, bool `[P, L]`.
        scene: Scene of each pair, `[P]`.
    """

    a: Tensor
    b: Tensor
    target: Tensor
    covisible: Tensor
    scene: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """True positions `[L, 2]` and co-visibility `[L]` of one pair."""
        return self.target[number], self.covisible[number]


@dataclass(frozen=True)
class PatchGrid:
    """The patches of an image.

    Attributes:
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        patch_size: Side of a patch in pixels.
    """

    rows: int
    columns: int
    patch_size: int

    @property
    def centres(self) -> Tensor:
        """(x, y) of each patch centre in pixels, row-major, float32 `[L, 2]`."""
        y, x = torch.meshgrid(torch.arange(self.rows), torch.arange(self.columns), indexing="ij")
        return (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * self.patch_size

    def cell(self, pixels: Tensor) -> Tensor:
        """Index of the patch in which each pixel (x, y) lies, int64; positions outside go to the border."""
        column, row = (torch.nan_to_num(pixels) / self.patch_size).long().unbind(-1)
        return row.clamp(0, self.rows - 1) * self.columns + column.clamp(0, self.columns - 1)

    @property
    def neighbourhood(self) -> Tensor:
        """Boolean `[L, L]`: each cell with its four neighbours."""
        y, x = torch.meshgrid(torch.arange(self.rows), torch.arange(self.columns), indexing="ij")
        place = torch.stack([y, x], dim=-1).reshape(-1, 2)
        return (place[:, None] - place[None]).abs().sum(-1) <= 1


def correlate(tokens_a: Tensor, tokens_b: Tensor) -> Tensor:
    """Cosine similarity of every patch of a with every patch of b, over the temperature.

    Args:
        tokens_a: `[..., L, D]`.
        tokens_b: `[..., L, D]`.

    Returns:
        Logits `[..., L, L]`.
    """
    return F.normalize(tokens_a, dim=-1) @ F.normalize(tokens_b, dim=-1).transpose(-1, -2) / TEMPERATURE


def predict(logits: Tensor, grid: PatchGrid) -> tuple[Tensor, Tensor]:
    """The position in view b of each patch of view a.

    Args:
        logits: `[..., L, L]`.
        grid: The patches of view b.

    Returns:
        (x, y) in pixels `[..., L, 2]`, and the probability of the best cell and its neighbours `[..., L]`.
    """
    probability = logits.softmax(dim=-1)
    near = probability * grid.neighbourhood.to(logits.device)[probability.argmax(dim=-1)]
    confidence = near.sum(dim=-1)
    return near @ grid.centres.to(logits.device) / confidence.unsqueeze(-1), confidence


def end_point_errors(prediction: Tensor, pairs: Pairs, grid: PatchGrid) -> list[np.ndarray]:
    """Distance between predicted and true positions over the co-visible patches of each pair.

    Args:
        prediction: (x, y) in pixels `[P, L, 2]`.
        pairs: The truth.
        grid: The patches.

    Returns:
        Errors of each pair, in pixels of an image whose shorter side is 448.
    """
    scale = PAPER_SIDE / (grid.patch_size * min(grid.rows, grid.columns))
    error = (prediction - pairs.target).norm(dim=-1) * scale
    return [e[m].numpy() for e, m in zip(error, pairs.covisible, strict=True)]


@dataclass(frozen=True)
class ProbeSettings:
    """How the linear probe is trained.

    Attributes:
        dim: Width of the projection.
        iterations: Optimiser steps; the learning rate falls to a tenth at 90 %.
        batch: Pairs a step.
        learning_rates: Each is a probe of its own, trained at once with the others.
        weight_decays: Crossed with the learning rates.
        seed: Decides initialisation and order of pairs.
    """

    dim: int
    iterations: int
    batch: int
    learning_rates: Sequence[float]
    weight_decays: Sequence[float]
    seed: int


def train_probes(features: Table, pairs: Pairs, grid: PatchGrid, settings: ProbeSettings) -> list[Tensor]:
    """Train one projection for each learning rate and weight decay, all on the same pairs in the same order.

    Args:
        features: Patch tokens of all frames, `[F, L, D]`.
        pairs: Pairs to train on.
        grid: The patches.
        settings: How.

    Returns:
        Projections `[D, dim]`, learning rates outermost.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    start = torch.randn(features.width, settings.dim, generator=generator) / features.width**0.5
    choices = [(lr, decay) for lr in settings.learning_rates for decay in settings.weight_decays]
    place = features[pairs.a[:1]].device
    probes = [start.clone().to(place).requires_grad_() for _ in choices]
    optimiser = torch.optim.AdamW(
        [
            {"params": [probe], "lr": lr, "weight_decay": decay}
            for probe, (lr, decay) in zip(probes, choices, strict=True)
        ]
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [int(0.9 * settings.iterations)], gamma=0.1)
    cells = grid.cell(pairs.target)
    for batch in _batches(len(pairs), settings, generator):
        covisible, truth = pairs.covisible[batch], cells[batch]
        a, b = features[pairs.a[batch]], features[pairs.b[batch]]
        covisible, truth = covisible.to(a.device), truth.to(a.device)
        losses = [F.cross_entropy(correlate(a @ probe, b @ probe)[covisible], truth[covisible]) for probe in probes]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
        schedule.step()
    return [probe.detach() for probe in probes]


def _batches(count: int, settings: ProbeSettings, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(settings.iterations):
        yield torch.randint(count, (settings.batch,), generator=generator)


@torch.inference_mode()
def match(features: Table, pairs: Pairs, grid: PatchGrid, projection: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predict the matches of all pairs.

    Args:
        features: Patch tokens of all frames, `[F, L, D]`.
        pairs: The pairs.
        grid: The patches.
        projection: A trained probe `[D, dim]`, or None for nearest neighbours of the tokens themselves.

    Returns:
        (x, y) in view b `[P, L, 2]`, and confidence `[P, L]`.
    """
    found = [
        _match_pair(features[torch.stack([a, b])], grid, projection) for a, b in zip(pairs.a, pairs.b, strict=True)
    ]
    positions, confidences = zip(*found, strict=True)
    return torch.stack(positions), torch.stack(confidences)


def _match_pair(tokens: Tensor, grid: PatchGrid, projection: Tensor | None) -> tuple[Tensor, Tensor]:
    tokens_a, tokens_b = tokens if projection is None else tokens @ projection
    positions, confidence = predict(correlate(tokens_a, tokens_b), grid)
    return positions.cpu(), confidence.cpu()
