"""What storing photos as JPEG costs and saves: `python benchmarks/image_formats.py PHOTOS ...`, a folder or several.

Photos are shrunk to a shorter side as `prepare` shrinks them, stored in each way, and read again. Noise is the mean
squared difference of patches, each of mean 0 and variance 1, as the training's loss sees them: what no model can
predict. Time is of one core, the best of several passes.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np

from mum_model.data.images import is_image_name, read_image
from mum_model.data.shards import decode_image

SIDES = {72: 8, 128: 16, 256: 16}
"""Shorter sides, and the side of a patch at each."""

COLOUR = {"half": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "full": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}


def ways() -> dict[str, tuple[str, list[int]]]:
    """Ending and options of each way to store a photo."""
    found: dict[str, tuple[str, list[int]]] = {"PNG": (".png", [])}
    for quality in (90, 95):
        for colour, factor in COLOUR.items():
            options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
            found[f"JPEG {quality}, {colour} colour"] = (".jpg", options)
    return found


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """The photo with that shorter side, RGB."""
    scale = side / min(image.shape[:2])
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def normalised(image: np.ndarray, patch: int) -> np.ndarray:
    """Its patches with mean 0 and variance 1 each, `[patches, values]`."""
    height, width = (length // patch for length in image.shape[:2])
    cells = image[: height * patch, : width * patch].reshape(height, patch, width, patch, 3).swapaxes(1, 2)
    values = cells.reshape(height * width, -1) / 255
    return (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, ddof=1, keepdims=True) + 1e-6)


def seconds(contents: list[bytes], repeats: int = 7) -> float:
    """CPU time of decoding one of them."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        for content in contents:
            decode_image(content)
        best = min(best, time.process_time() - start)
    return best / len(contents)


def main() -> None:
    """Measure each side and way, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=8, help="photos of each folder, spread over it")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    for folder in given.photos:
        paths = sorted(path for path in folder.rglob("*") if is_image_name(path) and "depth" not in path.name)
        chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, given.count).astype(int)]
        photos = [read_image(path, upright=False) for path in chosen]
        for side, patch in SIDES.items():
            images = [shrunk(photo, side) for photo in photos]
            for way, (ending, options) in ways().items():
                contents = [cv2.imencode(ending, image[..., ::-1], options)[1].tobytes() for image in images]
                pairs = [(image, decode_image(content)) for image, content in zip(images, contents, strict=True)]
                noise = np.mean([((normalised(a, patch) - normalised(b, patch)) ** 2).mean() for a, b in pairs])
                about = {"photos": folder.name, "side": side, "stored": way, "us": round(1e6 * seconds(contents))}
                kilobytes = round(float(np.mean([len(content) for content in contents])) / 1e3, 1)
                print(json.dumps({**about, "kb": kilobytes, "noise": round(float(noise), 3)}), flush=True)


if __name__ == "__main__":
    main()
