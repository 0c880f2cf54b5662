"""Pictures of what a model learns: the view beside what it reconstructs of it, or the depth that it says."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mum_model.model.masking import normalise_patches, patchify, unpatchify
from mum_model.model.mum import MuM, MuMOutput
from mum_model.model.pixels import denormalise_pixels

GAP = 4
MASKED_GREY = 0.5


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


def depth_picture(images: Tensor, known: Tensor, predicted: Tensor) -> np.ndarray:
    """A picture with a column a view: the input, the depth that is known, and what the model says.

    Args:
        images: Normalised views of one scene `[S, 3, H, W]`.
        known: z-depth `[S, H, W]`, not-a-number where unknown: black.
        predicted: z-depth `[S, H, W]` in the same unit.

    Returns:
        RGB uint8, three rows high; both depths in the same colours, near bright and far dark.
    """
    nearness = [1 / depth for depth in (known, predicted)]
    brightest = (nearness[0] if known.isfinite().any() else nearness[1]).nan_to_num().quantile(0.98)
    return _tile([denormalise_pixels(images), *(_colours(near / brightest) for near in nearness)])


def _colours(values: Tensor) -> Tensor:
    """Numbers in 0..1 `[S, H, W]` as colours `[S, 3, H, W]`, not-a-number as black."""
    bytes_ = (values.clamp(0, 1) * 255).nan_to_num().byte().numpy()
    coloured = np.stack([cv2.applyColorMap(view, cv2.COLORMAP_INFERNO)[..., ::-1] for view in bytes_])
    return torch.from_numpy(coloured).permute(0, 3, 1, 2) / 255


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
