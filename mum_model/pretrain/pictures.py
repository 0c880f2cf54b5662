"""Pictures of what the model reconstructs: the view, what it saw of it, what it made of the rest."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mum_model.data.batches import Pack
from mum_model.model.masking import normalise_patches, patchify, unpatchify
from mum_model.model.mum import MuM, MuMOutput
from mum_model.model.pixels import denormalise_pixels, normalise_pixels

GAP = 4
MASKED_GREY = 0.5


class Painter:
    """Paints the same views under the same masks again and again, as the training goes on."""

    def __init__(self, directory: Path, pack: Pack, noise: Callable[[Pack], Tensor]):
        """Choose the views.

        Args:
            directory: Where the pictures go.
            pack: Its longest scene is painted.
            noise: Decides the masks of a pack, `[frames, L]`.
        """
        self.directory = directory
        views = pack.views[0]
        self._images = normalise_pixels(pack.images[:views])
        self._noise = noise(pack)[:views]

    @torch.inference_mode()
    def paint(self, model: MuM, step: int, mask_ratio: float) -> None:
        """Write the picture of a step.

        Args:
            model: On the CPU.
            step: Steps done.
            mask_ratio: Share of the patches of each view that is hidden.
        """
        output = model(self._images[None], mask_ratio=mask_ratio, noise=self._noise)
        write_picture(self.directory / f"step-{step:08d}.png", reconstruction(model, self._images, output))


def reconstruction(model: MuM, images: Tensor, output: MuMOutput) -> np.ndarray:
    """A picture with a column a view: the input, what the encoder saw, and the prediction for the rest.

    The model predicts normalised patches; the true mean and deviation of each patch give them their brightness back,
    as MAE's own pictures do.

    Args:
        model: For its patch size.
        images: Normalised views of one scene `[S, 3, H, W]`.
        output: What the model made of them.

    Returns:
        RGB uint8, three rows high.
    """
    patch = model.config.patch_size
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    pixels = patchify(images, patch)
    _, mean, deviation = normalise_patches(pixels)
    removed = output.mask.unsqueeze(-1)
    predicted = output.prediction.float() * deviation + mean
    whole = unpatchify(pixels * (1 - removed) + predicted * removed, patch, grid)
    seen = denormalise_pixels(unpatchify(pixels * (1 - removed), patch, grid))
    hidden = unpatchify(removed.expand_as(pixels), patch, grid)
    seen = seen * (1 - hidden) + MASKED_GREY * hidden
    return _tile([denormalise_pixels(images), seen, denormalise_pixels(whole)])


def _tile(rows: list[Tensor]) -> np.ndarray:
    """Rows of images `[S, 3, H, W]` in 0..1 as one picture on white."""
    framed = [torch.nn.functional.pad(row, (0, GAP, 0, GAP), value=1.0) for row in rows]
    picture = torch.cat([torch.cat(list(row), dim=-1) for row in framed], dim=-2).clamp(0, 1)
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()[:-GAP, :-GAP]


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a PNG whole or not at all.

    Args:
        path: The file.
        picture: RGB uint8 `[H, W, 3]`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    cv2.imwrite(str(partial), picture[..., ::-1])
    partial.replace(path)
