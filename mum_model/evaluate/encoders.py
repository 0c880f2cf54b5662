"""The encoders that an evaluation compares, and their frozen features, computed once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mum_model.model import MuM, MuMConfig, load_encoder
from mum_model.model.masking import patchify
from mum_model.model.pixels import normalise_pixels

BATCH = 64


@dataclass(frozen=True)
class JudgedEncoder:
    """Something that gives a token for each patch.

    Attributes:
        name: In the report.
        features: Patch tokens `[N, L, D]` of uint8 images `[N, 3, H, W]`.
    """

    name: str
    features: Callable[[Tensor], Tensor]


def trained(directory: Path) -> JudgedEncoder:
    """The encoder of a run.

    Args:
        directory: `encoder/` of the run.

    Returns:
        Its final-normed patch tokens.
    """
    return JudgedEncoder("mum", _tokens(load_encoder(directory)))


def random_weights(run: Path, seed: int) -> JudgedEncoder:
    """An encoder of the same architecture with fresh weights.

    Args:
        run: The run whose architecture it takes.
        seed: Decides the weights.

    Returns:
        Its final-normed patch tokens.
    """
    config = MuMConfig(**json.loads((run / "model" / "config.json").read_text()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = MuM(config).encoder
    return JudgedEncoder("random", _tokens(encoder.eval()))


def raw_pixels(patch_size: int) -> JudgedEncoder:
    """No encoder at all: the normalised pixels of each patch.

    Args:
        patch_size: Side of a patch.

    Returns:
        Tokens of `3 * patch_size**2` numbers.
    """
    return JudgedEncoder("pixels", lambda images: patchify(normalise_pixels(images), patch_size))


def _tokens(encoder: Any) -> Callable[[Tensor], Tensor]:
    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            batches = [encoder.forward_features(normalise_pixels(batch))[:, 1:] for batch in images.split(BATCH)]
        return torch.cat(batches)

    return features
