"""From stored pixels to the network's input and back: ImageNet's mean and deviation, as timm's encoders expect."""

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor


def normalise_pixels(images: Tensor) -> Tensor:
    """Network input from stored pixels.

    Args:
        images: uint8 `[..., 3, H, W]`, RGB.

    Returns:
        float32 of the same shape, zero mean and unit deviation over ImageNet.
    """
    mean, deviation = _constants(images.device)
    return (images.float() / 255 - mean) / deviation


def denormalise_pixels(images: Tensor) -> Tensor:
    """Pixels in 0..1 from network input; the inverse of `normalise_pixels` up to the factor 255.

    Args:
        images: float32 `[..., 3, H, W]`.

    Returns:
        float32 of the same shape; may leave 0..1 where the input was predicted.
    """
    mean, deviation = _constants(images.device)
    return images * deviation + mean


def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).reshape(3, 1, 1)
    return mean, torch.tensor(IMAGENET_DEFAULT_STD, device=device).reshape(3, 1, 1)
