"""`mum reconstruct IMAGE...`: mask the views of a scene and show what a trained model makes of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mum_model.data.augmentation import Augmentation
from mum_model.data.captures import RefusedError
from mum_model.data.images import read_image
from mum_model.errors import UserError
from mum_model.model import load_mum
from mum_model.model.pixels import normalise_pixels
from mum_model.pretrain.pictures import reconstruction, write_picture


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: What stands after `mum reconstruct`.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="mum reconstruct",
        description="Mask the given images, all taken as views of one scene, and draw what the model reconstructs: "
        "a row of inputs, a row of what it saw, a row of what it made of them.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="views of one scene")
    parser.add_argument("--model", type=Path, default=Path("outputs/run/model"), help="model folder (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("reconstruction.png"), help="PNG to write (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="side of the views in pixels (%(default)s)")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="share of patches to hide (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which patches are hidden (%(default)s)")
    options = parser.parse_args(argv)
    try:
        views = [read_image(path, upright=True) for path in options.images]
    except RefusedError as error:
        raise UserError(str(error)) from error
    loss = reconstruct(views, options.model, options.output, options.size, options.mask_ratio, options.seed)
    print(f"{options.output}: loss {loss:.4f} on the hidden patches of {len(views)} views")
    return 0


@torch.inference_mode()
def reconstruct(
    views: Sequence[np.ndarray], model_directory: Path, output: Path, size: int, mask_ratio: float, seed: int
) -> float:
    """Draw what a model reconstructs of the views of one scene.

    Args:
        views: RGB uint8 images of any size; their central squares are used.
        model_directory: `model/` of a run.
        output: PNG to write.
        size: Side of the squares in pixels, a multiple of the patch size.
        mask_ratio: Share of patches hidden.
        seed: Decides which.

    Returns:
        The loss on the hidden patches.

    Raises:
        UserError: There is no such model, or the size does not fit it.
    """
    model = load_mum(model_directory)
    patch = model.config.patch_size
    if size % patch:
        raise UserError(f"--size {size}: must be a multiple of the model's patch size {patch}")
    rng = np.random.default_rng(seed)
    square = Augmentation(size, crop_scale=1.0, crop_ratio=(1.0, 1.0), flip=0.0)
    squares = np.stack([square(view, rng) for view in views])
    images = normalise_pixels(torch.from_numpy(squares).permute(0, 3, 1, 2))
    noise = torch.from_numpy(rng.random((len(views), (size // patch) ** 2), dtype=np.float32))
    result = model(images[None], mask_ratio=mask_ratio, noise=noise)
    write_picture(output, reconstruction(model, images, result))
    return result.loss.item()
