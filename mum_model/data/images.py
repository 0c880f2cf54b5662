"""Reads image files that nobody vouches for: JPEG and PNG, checked before they are decoded.

OpenCV decodes, but it gives a cut JPEG back with a grey or stale lower half (opencv/opencv#6468, #17862, #26488) and
allocates whatever size a header claims. So the container is looked at first: its kind, its size, whether its end is
there, and a PNG's checksums. Damage in the middle of a JPEG, which has none, cannot be told from picture content.
"""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from mum_model.data.captures import RefusedError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""What counts as an image file by name, in lower case."""

MAX_PIXELS = 100_000_000
"""More is refused from the header alone: 300 MB decoded, and beyond any camera the captures come from."""

MAX_SIDE = 32_766
"""OpenCV's `remap` addresses pixels with 16-bit numbers."""

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START, PNG_LAST_CHUNK = b"\x89PNG\r\n\x1a\n", b"IEND"

JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15 (ITU T.81, table B.1); the three others are tables."""

JPEG_SCAN_MARKER = 0xDA


def is_image_name(path: Path) -> bool:
    """Whether a file's name says that it is an image that can be read here."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as stored in the file, from its header; nothing is decoded.

    Args:
        path: JPEG or PNG file.

    Returns:
        (width, height) in pixels, before any EXIF rotation.

    Raises:
        RefusedError: The file cannot be opened, is empty, cut, too large, or neither JPEG nor PNG.
    """
    return _checked_size(path, _read_bytes(path))


def read_image(path: Path, *, upright: bool) -> np.ndarray:
    """Read a photo as 8-bit RGB; grey becomes three equal channels, alpha is dropped, 16 bits become 8.

    Args:
        path: JPEG or PNG file.
        upright: Turn the picture as its EXIF orientation says. Calibrated captures want it as stored (False):
            COLMAP, nerfstudio and instant-ngp read stored pixels, so their cameras refer to those.

    Returns:
        RGB, uint8 `[H, W, 3]`.

    Raises:
        RefusedError: The file cannot be opened, is empty, cut, damaged, too large, or neither JPEG nor PNG.
    """
    orientation = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    return _decode(path, cv2.IMREAD_COLOR_RGB | orientation)


def is_jpeg(path: Path) -> bool:
    """Whether an image file is a JPEG, by what is in it and not by its name.

    Args:
        path: A file that can be read.

    Returns:
        True for a JPEG.
    """
    with path.open("rb") as file:
        return file.read(len(JPEG_START)) == JPEG_START


def read_png16(path: Path) -> np.ndarray:
    """Read a 16-bit grey PNG, the usual container of depth in millimetres.

    Args:
        path: PNG file.

    Returns:
        The numbers as stored, uint16 `[H, W]`.

    Raises:
        RefusedError: As `read_image`, or the file holds anything but one channel of 16 bits.
    """
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint16 or image.ndim != 2:
        channels = 1 if image.ndim == 2 else image.shape[2]
        bits = 8 * image.dtype.itemsize
        raise RefusedError(path, f"{channels} channel(s) of {bits} bits; expected depth as a 16-bit grey PNG")
    return image


def _decode(path: Path, flags: int) -> np.ndarray:
    data = _read_bytes(path)
    _checked_size(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise RefusedError(path, f"damaged image, cannot be decoded ({error.err})") from error
    if image is None:
        raise RefusedError(path, "damaged image, cannot be decoded")
    return image


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RefusedError(path, f"cannot be opened: {error.strerror}") from error


def _checked_size(path: Path, data: bytes) -> tuple[int, int]:
    if not data:
        raise RefusedError(path, "empty file (0 bytes); expected a JPEG or PNG image")
    try:
        width, height = _header_size(path, data)
    except (struct.error, IndexError) as error:
        raise RefusedError(path, "cut or damaged: the file breaks off too early; copy or download it again") from error
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limit = f"{MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} a side"
        raise RefusedError(path, f"header says {width}x{height} pixels; at most {limit} are read")
    return width, height


def _header_size(path: Path, data: bytes) -> tuple[int, int]:
    if data.startswith(JPEG_START):
        return _jpeg_size(path, data)
    if data.startswith(PNG_START):
        return _png_size(path, data)
    raise RefusedError(path, "not an image: neither a JPEG nor a PNG, whatever its name says")


def _png_size(path: Path, data: bytes) -> tuple[int, int]:
    """Step over all chunks (https://www.w3.org/TR/png-3/#5Chunk-layout) and check their checksums up to the last."""
    view, position, kind = memoryview(data), len(PNG_START), b""
    while kind != PNG_LAST_CHUNK:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if checksum != zlib.crc32(view[position + 4 : end]):
            raise RefusedError(path, f"damaged: wrong checksum in the PNG's chunk {kind!r}; copy or download it again")
        position = end + 4
    width, height = struct.unpack_from(">II", data, len(PNG_START) + 8)
    return width, height


def _jpeg_size(path: Path, data: bytes) -> tuple[int, int]:
    """Step over the segments up to the first scan (ITU T.81, B.1.1.4), so a thumbnail's own end does not count."""
    position, size = 2, (0, 0)
    while True:
        if data[position] != 0xFF:
            raise RefusedError(path, "damaged: the JPEG's header is not a chain of segments")
        marker = data[position + 1]
        if marker == 0xFF:  # padding before a marker
            position += 1
            continue
        if marker in JPEG_FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = width, height
        if marker == JPEG_SCAN_MARKER:
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + length
    if JPEG_END not in data[position:]:
        raise RefusedError(path, "cut: the JPEG has no end (EOI marker); copy or download it again")
    return size
