"""From an image file to the encoder's input, with OpenCV and NumPy alone."""

from pathlib import Path

import cv2
import numpy as np

from mum_model.errors import UserError
from mum_model.serve.contract import Contract

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"


class ImageError(UserError):
    """One image cannot be used; others may be."""


def load_image(path: Path, contract: Contract, size: int | None) -> np.ndarray:
    """Read an image as the encoder wants it.

    Args:
        path: Anything OpenCV decodes; turned as its EXIF orientation says, alpha dropped, grey made RGB.
        contract: Mean, deviation and patch size.
        size: Shorter side in pixels, see `target_sides`.

    Returns:
        float32 `[1, 3, H, W]`, RGB, normalised.

    Raises:
        ImageError: The file cannot be opened, or is not a whole image.
    """
    image = read_rgb(path)
    height, width = target_sides(image.shape[0], image.shape[1], size, contract.patch_size)
    shrinks = height * width < image.shape[0] * image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    mean, std = np.array(contract.mean, np.float32), np.array(contract.std, np.float32)
    normalised = (resized.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[np.newaxis])


def read_rgb(path: Path) -> np.ndarray:
    """Decode an image file.

    Args:
        path: The file.

    Returns:
        RGB, uint8 `[H, W, 3]`.

    Raises:
        ImageError: The file cannot be opened, or is not a whole image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened: {error.strerror}") from error
    if _is_cut(data):
        raise ImageError(f"{path}: the file breaks off before the image ends; copy or download it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    except cv2.error as error:
        raise ImageError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"{path}: not an image that can be read; expected JPEG, PNG, WebP or another of OpenCV's")
    return image


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


def _is_cut(data: bytes) -> bool:
    """Whether a JPEG or PNG ends too early; OpenCV would give it back with a grey rest (opencv/opencv#6468)."""
    if data.startswith(JPEG_START):
        return data.find(JPEG_END, _jpeg_scan(data)) < 0
    return data.startswith(PNG_START) and PNG_END not in data


def _jpeg_scan(data: bytes) -> int:
    """Where the first scan begins, or the data ends: behind a thumbnail, whose own end does not count.

    Segments carry their length (ITU T.81, B.1.1.4); a scan does not, but the end marker cannot be part of it.
    """
    position = len(JPEG_START)
    while position + 1 < len(data) and data[position + 1] != JPEG_SCAN:
        is_padding = data[position + 1] == 0xFF
        position += 1 if is_padding else 2 + int.from_bytes(data[position + 2 : position + 4])
    return position
