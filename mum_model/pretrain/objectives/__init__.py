"""What a training can minimise; the trainer knows an objective by this protocol alone."""

from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mum_model.data.batches import Pack, Sampler, StepPacks
from mum_model.data.endless import EndlessRooms
from mum_model.data.scenes import SceneIndex

ModelT = TypeVar("ModelT", bound=nn.Module)
PackT = TypeVar("PackT", bound=Pack, contravariant=True)


class Objective(Protocol[ModelT, PackT]):
    """The model that is trained, the packs it is trained on, the loss, and what of it people and later stages see.

    An objective holds settings and no weights: all that changes in a training is in the model, so a checkpoint of the
    model's parameters and of their optimiser is one of the training. The model has an `encoder`, of timm.
    """

    def create_model(self) -> ModelT:
        """The model with fresh weights, drawn from torch's global generator; parameters that need no gradient stay."""

    def load_start(self, model: ModelT) -> None:
        """Give a fresh model the weights that the training starts from, if it has any.

        Args:
            model: Changed in place.

        Raises:
            UserError: There are no such weights, or they do not fit.
        """

    def packs(self, frames: SceneIndex | EndlessRooms, sampler: Sampler, **shares: int) -> StepPacks:
        """What this rank sees.

        Args:
            frames: The dataset, or endless rooms.
            sampler: Draws the views.
            shares: `packs`, `rank` and `world_size`, as `StepPacks` takes them.

        Returns:
            The rank's packs of every step.

        Raises:
            UserError: The dataset has not what the objective needs.
        """

    def inputs(self, pack: PackT, device: torch.device) -> tuple[Any, ...]:
        """What the loss takes of a pack.

        Args:
            pack: One of those of `packs`.
            device: Where it is to be.

        Returns:
            Arguments of `loss`.
        """

    def loss(self, model: ModelT, *inputs: Any) -> Tensor:
        """The loss of a pack; runs under autocast.

        Args:
            model: To be trained.
            inputs: What `inputs` gave.

        Returns:
            Scalar float32.
        """

    def save(self, model: ModelT, directory: Path) -> None:
        """Write the trained model beside its encoder.

        Args:
            model: On the CPU.
            directory: `model/` of a run; replaced whole.
        """

    def picture(self, model: ModelT, pack: PackT) -> np.ndarray:
        """What the model makes of the first scene of a pack, for people to watch it learn.

        Args:
            model: On the CPU, in evaluation mode.
            pack: The same one again and again.

        Returns:
            RGB uint8 `[H, W, 3]`.
        """
