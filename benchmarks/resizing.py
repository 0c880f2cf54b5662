"""How much another library's resizing changes features: `python benchmarks/resizing.py EXPORT PHOTO...`.

Training and serving average over areas (OpenCV). The same photos at the same sides, resized by what other clients would
use; pixels are compared in steps of 0..255, tokens by their cosine with those of ours.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mum_model.serve.encoder import OnnxEncoder
from mum_model.serve.preprocess import decode, resize

RESIZERS: dict[str, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    "Pillow, bicubic (antialiased)": lambda image, sides: np.asarray(
        Image.fromarray(image).resize(sides, Image.BICUBIC)
    ),
    "Pillow, bilinear (antialiased)": lambda image, sides: np.asarray(
        Image.fromarray(image).resize(sides, Image.BILINEAR)
    ),
    "OpenCV, bilinear (not antialiased)": lambda image, sides: cv2.resize(image, sides),
}


def compare(encoder: OnnxEncoder, photos: list[Path], size: int) -> dict[str, dict[str, float]]:
    """By resizer: mean difference of pixels, mean and least cosine of patch tokens."""
    patch = encoder.contract.patch_size
    images = [decode(path.read_bytes(), str(path)) for path in photos]
    ours = [resize(image, patch, size) for image in images]
    tokens = [_tokens(encoder, one) for one in ours]
    result = {}
    for name, resizer in RESIZERS.items():
        theirs = [resizer(image, one.shape[1::-1]) for image, one in zip(images, ours, strict=True)]
        pixels = [np.abs(one.astype(int) - other).mean() for one, other in zip(ours, theirs, strict=True)]
        cosines = np.concatenate([(a * _tokens(encoder, b)).sum(-1) for a, b in zip(tokens, theirs, strict=True)])
        result[name] = {
            "mean_pixel_difference": round(float(np.mean(pixels)), 2),
            "mean_cosine": round(float(cosines.mean()), 4),
            "min_cosine": round(float(cosines.min()), 4),
        }
    return result


def _tokens(encoder: OnnxEncoder, pixels: np.ndarray) -> np.ndarray:
    tokens = encoder(encoder.contract.input_of(pixels[np.newaxis]), ["patch_tokens"])["patch_tokens"][0]
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=72)
    given = parser.parse_args()
    print(json.dumps(compare(OnnxEncoder(given.export), given.photos, given.size), indent=2))


if __name__ == "__main__":
    main()
