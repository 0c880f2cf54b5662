"""From an image file that nobody vouches for to the pixels that an encoder takes, with Pillow, OpenCV and NumPy.

Pillow reads size and kind before it decodes anything and refuses a file that breaks off; its JPEG pixels are bit for
bit those of OpenCV, with which training reads. OpenCV resizes, as `mum prepare` does.
"""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mum_model.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""What is read. A JPEG may turn out to be an MPO: phones put a second picture behind the first, which is ignored."""

MAX_PIXELS = 100_000_000
"""More is refused from the header alone: 300 MB decoded."""

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")
"""Pillow's modes of one channel of 16 bits."""

NOT_PICTURES = ("I", "F")
"""Pillow's modes of numbers whose black and white nobody knows."""

Image.MAX_IMAGE_PIXELS = None  # its limit only warns, and at a size of its own; ours is checked below


class ImageError(UserError):
    """One image cannot be used; others may be."""


def load_pixels(path: Path, patch_size: int, size: int | None) -> np.ndarray:
    """Read an image file at a size that patches fill.

    Args:
        path: The file, see `decode`.
        patch_size: Of the encoder, in pixels.
        size: Shorter side in pixels, see `target_sides`.

    Returns:
        RGB, uint8 `[H, W, 3]`.

    Raises:
        ImageError: The file cannot be opened, or is not a whole image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened: {error.strerror}") from error
    return resize(decode(data, str(path)), patch_size, size)


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image; turned as its EXIF says, grey and CMYK made RGB, alpha dropped, 16 bits made 8.

    Args:
        data: The file's content.
        name: Of the file, for messages.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        RGB, uint8 `[H, W, 3]`.

    Raises:
        ImageError: It is not a whole image of a known kind, too large, an animation, or holds no picture.
    """
    _require_whole(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is damaged; the pixels are what counts
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _require_one_picture(image, name, max_pixels)
                return _as_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read; expected one of {', '.join(FORMATS)}") from error
    except ImageError:
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything: OSError, SyntaxError, struct.error
        raise ImageError(f"{name}: cannot be decoded, cut or damaged: {error}; copy or download it again") from error


def resize(image: np.ndarray, patch_size: int, size: int | None) -> np.ndarray:
    """An image `[H, W, 3]` at the sides of `target_sides`: averaged where it shrinks, bicubic where it grows."""
    return _resized(image, *target_sides(image.shape[0], image.shape[1], size, patch_size))


def fill(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image `[H, W, 3]`, as much of it as these sides can show, resized to them like by `resize`."""
    scale = min(image.shape[0] / height, image.shape[1] / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    return _resized(image[top : top + rows, left : left + columns], height, width)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def target_sides(height: int, width: int, size: int | None, patch_size: int) -> tuple[int, int]:
    """Sides that patches fill: the shorter one as wanted, the ratio kept to within half a patch.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        size: Wanted shorter side in pixels; None keeps the image's own.
        patch_size: Both sides become the nearest multiples of it, at least one.

    Returns:
        (height, width) in pixels.
    """
    scale = 1.0 if size is None else size / min(height, width)
    rows, columns = (max(1, round(side * scale / patch_size)) for side in (height, width))
    return rows * patch_size, columns * patch_size


def _require_one_picture(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} pixels; at most {max_pixels} are read: make it smaller")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"{name}: an animation or a file of {frames} pages; expected one picture: extract one")
    if image.mode in NOT_PICTURES:
        raise ImageError(f"{name}: holds numbers of 32 bits, no picture; expected 8 or 16 bits a channel")


def _require_whole(data: bytes, name: str) -> None:
    """Refuse a JPEG without its end, which Pillow forgives where only the last bytes are missing."""
    if data.startswith(JPEG_START) and data.find(JPEG_END, _jpeg_scan(data)) < 0:
        raise ImageError(f"{name}: the file breaks off before the image ends; copy or download it again")


def _jpeg_scan(data: bytes) -> int:
    """Where the first scan begins, or the data ends: behind a thumbnail, whose own end does not count.

    Segments carry their length (ITU T.81, B.1.1.4); a scan does not, but the end marker cannot be part of it.
    """
    position = len(JPEG_START)
    while position + 1 < len(data) and data[position + 1] != JPEG_SCAN:
        is_padding = data[position + 1] == 0xFF
        position += 1 if is_padding else 2 + int.from_bytes(data[position + 2 : position + 4])
    return position


def _as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in SIXTEEN_BITS:
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if "transparency" in image.info or "A" in image.mode:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
