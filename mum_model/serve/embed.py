"""`mum embed`: image files to features, by an exported encoder and without PyTorch."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mum_model.errors import UserError
from mum_model.serve.encoder import OnnxEncoder
from mum_model.serve.preprocess import ImageError, load_pixels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""What counts as an image in a folder; a file that is named itself may be called anything."""

DESCRIPTION = """\
Compute the features of images with an exported encoder (`mum export`), and store them in one .npz file.

Images keep their aspect ratio: the shorter side becomes --size, both sides the nearest multiples of the patch size.
A broken image is named in a warning and left out; the command fails only when no image is left."""

EPILOG = """\
the file holds, in the order of the images:
  names         path of each image
  cls           float32 [N, D]: one vector for each image, for search and classification
  patch_tokens  float32 [N, L, D]: one vector for each patch, row by row
  grids         int64 [N, 2]: rows and columns of patches; images with fewer patches than L are filled up with NaN

examples:
  mum embed photo.jpg
  mum embed captures/ more/*.png --size 448 --output features.npz

  >>> features = numpy.load("features.npz")
  >>> rows, columns = features["grids"][0]
  >>> features["patch_tokens"][0, : rows * columns].reshape(rows, columns, -1)"""


def main(argv: Sequence[str]) -> int:
    """Run the `mum embed` command.

    Args:
        argv: Its arguments, without the command's own name.

    Returns:
        The exit status: 0 when at least one image was embedded.

    Raises:
        UserError: See `embed`.
    """
    arguments = _parser().parse_args(argv)
    print(embed(arguments.images, arguments.model, arguments.output, arguments.size))
    return 0


def embed(images: Sequence[Path], model: Path, output: Path, size: int | None) -> Path:
    """Compute the features of images and store them in one file.

    Broken images are refused one by one: each is named in a warning on stderr and left out, and the others are
    embedded all the same. The features of all images are held in memory until they are written.

    Args:
        images: Files, and folders that stand for the images anywhere below them.
        model: Folder that `mum export` wrote.
        output: The .npz file to write, whole or not at all: `names` `[N]`, `cls` `[N, D]`, `patch_tokens`
            `[N, L, D]`, and `grids` `[N, 2]`, the rows and columns of patches. L is that of the image with most
            patches; the rest of the others is NaN.
        size: Shorter side in pixels that images are resized to; None keeps their own, which for photos takes memory
            with the square of their pixels.

    Returns:
        `output`.

    Raises:
        UserError: The model cannot be opened, a folder has no images, or no image could be read.
    """
    encoder = OnnxEncoder(model)
    paths = [path for given in images for path in _expanded(given)]
    features = list(_features(encoder, paths, size))
    if not features:
        raise UserError(f"none of {len(paths)} images could be read; nothing was written")
    names, grids, cls, patch_tokens = zip(*features, strict=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, names=names, grids=grids, cls=np.stack(cls), patch_tokens=_stacked(patch_tokens))
    partial.replace(output)
    return output


def _features(
    encoder: OnnxEncoder, paths: Sequence[Path], size: int | None
) -> Iterator[tuple[str, tuple[int, int], np.ndarray, np.ndarray]]:
    """Name, grid, CLS `[D]` and patch tokens `[L, D]` of every image that can be read."""
    patch = encoder.contract.patch_size
    for path in tqdm(paths, desc="embed", unit="image"):
        try:
            pixels = load_pixels(path, patch, size)
        except ImageError as error:
            tqdm.write(f"warning: {error}; left out", file=sys.stderr)
            continue
        features = encoder(encoder.contract.input_of(pixels[np.newaxis]))
        grid = (pixels.shape[0] // patch, pixels.shape[1] // patch)
        yield str(path), grid, features["cls"][0], features["patch_tokens"][0]


def _expanded(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not inside:
        raise UserError(f"{path}: no images in this folder; expected files named {', '.join(IMAGE_SUFFIXES)}")
    return inside


def _stacked(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """`[N, L, D]` of the longest L, filled up with NaN."""
    full = np.full((len(tokens), max(map(len, tokens)), tokens[0].shape[1]), np.nan, np.float32)
    for row, image_tokens in zip(full, tokens, strict=True):
        row[: len(image_tokens)] = image_tokens
    return full


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mum embed",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file, or a folder of them")
    parser.add_argument(
        "--model", type=Path, default=Path("outputs/export"), help="folder that `mum export` wrote (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("features.npz"), metavar="FILE", help="file to write (%(default)s)"
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=224,
        metavar="PIXELS",
        help="shorter side in pixels, or `full` for the images' own (%(default)s)",
    )
    return parser


def _size(text: str) -> int | None:
    if text == "full":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}': expected a number of pixels above 0, or full")
