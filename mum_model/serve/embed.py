"""`mum embed`: image files to features, by an exported encoder here or behind a server, without PyTorch."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mum_model.errors import UserError
from mum_model.serve.client import OUTPUTS, ServedEncoder
from mum_model.serve.encoder import OnnxEncoder
from mum_model.serve.features import ImageFeatures, write_npz, write_parquet
from mum_model.serve.preprocess import ImageError, load_pixels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""What counts as an image in a folder; a file that is named itself may be called anything."""

SENT_AT_ONCE = 4
"""Files on their way to a server: enough that it can compute them together."""

Embed = Callable[[Path, int | None], ImageFeatures]
"""CLS and patch tokens of an image file with this shorter side in pixels; raises ImageError."""

DESCRIPTION = """\
Compute the features of images with an exported encoder (`mum export`), here or behind `mum serve`, and store them in
one file: .parquet, or else .npz.

Images keep their aspect ratio: the shorter side becomes --size, both sides the nearest multiples of the patch size.
A broken image is named in a warning and left out; the command fails only when no image is left."""

EPILOG = """\
the .npz file holds, in the order of the images:
  names         path of each image
  cls           float32 [N, D]: one vector for each image, for search and classification
  patch_tokens  float32 [N, L, D]: one vector for each patch, row by row
  grids         int64 [N, 2]: rows and columns of patches; images with fewer patches than L are filled up with NaN

the .parquet file holds a row an image: name, rows, columns, and cls and patch_tokens as flat lists of float32.

examples:
  mum embed photo.jpg
  mum embed captures/ more/*.png --size 448 --output features.npz
  mum embed captures/ --server http://localhost:8080 --output features.parquet

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
        UserError: See `embed` and `local_encoder`.
    """
    given = _parser().parse_args(argv)
    encoder = ServedEncoder(given.server, given.name) if given.server else local_encoder(given.model, given.variant)
    print(embed(given.images, encoder, given.output, given.size))
    return 0


def local_encoder(folder: Path, variant: str = "fp32") -> Embed:
    """An encoder in this process.

    Args:
        folder: That `mum export` wrote.
        variant: Which of its variants.

    Returns:
        What embeds one file.

    Raises:
        UserError: The folder or the variant cannot be used.
    """
    return partial(_embed_here, OnnxEncoder(folder, variant))


def embed(images: Sequence[Path], encoder: Embed, output: Path, size: int | None) -> Path:
    """Compute the features of images and store them in one file.

    Broken images are refused one by one: each is named in a warning on stderr and left out, and the others are
    embedded all the same. The features of all images are held in memory until they are written.

    Args:
        images: Files, and folders that stand for the images anywhere below them.
        encoder: Here or behind a server.
        output: The file to write, whole or not at all: .parquet as by `write_parquet`, anything else as by `write_npz`.
        size: Shorter side in pixels that images are resized to; None keeps their own, which for photos takes memory
            with the square of their pixels.

    Returns:
        `output`.

    Raises:
        UserError: A folder has no images, no image could be read, the server cannot be used, or the output not be
            written.
    """
    paths = [path for given in images for path in _expanded(given)]
    features = list(_features(encoder, paths, size))
    if not features:
        raise UserError(f"none of {len(paths)} images could be read; nothing was written")
    _write(output, features)
    return output


def _write(output: Path, features: Sequence[ImageFeatures]) -> None:
    partial_output = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".parquet":
            write_parquet(partial_output, features)
        else:
            with partial_output.open("wb") as file:
                write_npz(file, features)
        partial_output.replace(output)
    except OSError as error:
        partial_output.unlink(missing_ok=True)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"{output}: cannot be written, {reason}; make room there or choose another --output") from error


def _features(encoder: Embed, paths: Sequence[Path], size: int | None) -> Iterator[ImageFeatures]:
    """Of every image that can be read, in order."""
    # A local encoder takes all cores for one image; a server gets several, so that it is never idle.
    at_once = SENT_AT_ONCE if isinstance(encoder, ServedEncoder) else 1
    with ThreadPoolExecutor(at_once) as executor:
        answers = executor.map(lambda path: _or_error(encoder, path, size), paths)
        for answer in tqdm(answers, total=len(paths), desc="embed", unit="image"):
            if isinstance(answer, ImageError):
                tqdm.write(f"warning: {answer}; left out", file=sys.stderr)
            else:
                yield answer


def _or_error(encoder: Embed, path: Path, size: int | None) -> ImageFeatures | ImageError:
    try:
        return encoder(path, size)
    except ImageError as error:
        return error


def _embed_here(encoder: OnnxEncoder, path: Path, size: int | None) -> ImageFeatures:
    patch = encoder.contract.patch_size
    pixels = load_pixels(path, patch, size)
    features = encoder(encoder.contract.input_of(pixels[np.newaxis]), OUTPUTS)
    grid = (pixels.shape[0] // patch, pixels.shape[1] // patch)
    return ImageFeatures(str(path), grid, {name: array[0] for name, array in features.items()})


def _expanded(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not inside:
        raise UserError(f"{path}: no images in this folder; expected files named {', '.join(IMAGE_SUFFIXES)}")
    return inside


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
    parser.add_argument("--variant", default="fp32", help="of that export: fp32, fp16, int8_dynamic, int8_static")
    parser.add_argument("--server", metavar="URL", help="ask this `mum serve` instead of a folder")
    parser.add_argument("--name", default="mum", help="model name on the server, or NAME:VERSION (%(default)s)")
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
