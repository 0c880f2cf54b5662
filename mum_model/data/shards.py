"""Shards: one uncompressed tar a scene, read at random by offset.

A shard is a plain tar that any tool opens: `FRAME.png` or `.jpg`, and `FRAME.depth.tiff` (float32, lossless) if known;
last comes `scene.arrow`, all that is known of the scene, so that a dataset can be put together from its shards alone.
The index keeps offset and size of each member, so a frame is one positioned read, whatever the order.
"""

import io
import os
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from mum_model.data.images import JPEG_START


class Extent(NamedTuple):
    """Where a member lies in its shard.

    Attributes:
        offset: First byte of its content.
        size: Length in bytes.
    """

    offset: int
    size: int


class ShardWriter:
    """Writes one shard; the same members give the same bytes."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  (closed by close)

    def add(self, name: str, content: bytes) -> Extent:
        """Append a member.

        Args:
            name: Its file name.
            content: Its bytes.

        Returns:
            Where its content lies.
        """
        header = tarfile.TarInfo(name)
        header.size = len(content)
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(header, io.BytesIO(content))
        return Extent(offset, len(content))

    def close(self) -> None:
        """Finish the shard."""
        self._tar.close()


def encode_image(image: np.ndarray, jpeg_quality: int | None) -> tuple[str, bytes]:
    """An image file of an RGB image.

    JPEG keeps colour at half the resolution (4:2:0), as cameras do: full colour takes 1.4 times as long to decode for
    two thirds of the noise (`docs/scale.md`). PNG loses nothing.

    Args:
        image: uint8 `[H, W, 3]`.
        jpeg_quality: 1..100, or None for PNG, without loss.

    Returns:
        The file's ending and its bytes.
    """
    if jpeg_quality is None:
        return ".png", cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    half_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality, *half_colour]
    return ".jpg", cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()


def decode_image(content: bytes) -> np.ndarray:
    """RGB image of a JPEG or PNG. Both decoders of JPEG give the same pixels; simplejpeg takes 7 % less time.

    Args:
        content: The file's bytes.

    Returns:
        uint8 `[H, W, 3]`.
    """
    if content.startswith(JPEG_START):
        return simplejpeg.decode_jpeg(content)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None  # we wrote it
    return image


def encode_depth(depth: np.ndarray) -> bytes:
    """Lossless TIFF of a depth map (deflate with the floating-point predictor: about half of the raw size).

    Args:
        depth: float32 `[H, W]`.

    Returns:
        The file's bytes.
    """
    deflate, float_predictor = 8, 3
    options = [cv2.IMWRITE_TIFF_COMPRESSION, deflate, cv2.IMWRITE_TIFF_PREDICTOR, float_predictor]
    return cv2.imencode(".tiff", depth, options)[1].tobytes()


def decode_depth(content: bytes) -> np.ndarray:
    """The depth map of a TIFF.

    Args:
        content: The file's bytes.

    Returns:
        float32 `[H, W]`.
    """
    depth = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert depth is not None  # we wrote it
    return depth


class _Open:
    """A shard open for reading; closed when nobody reads it any more."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)


_open = lru_cache(maxsize=256)(_Open)


def read_extent(path: Path, extent: Extent) -> bytes:
    """Read one member of a shard; safe from several threads and forked processes at once.

    Args:
        path: The shard.
        extent: Where the member lies.

    Returns:
        Its bytes.
    """
    shard = _open(path)  # held while it is read: another thread may push it out of the cache meanwhile
    return os.pread(shard.descriptor, extent.size, extent.offset)


class LocalShards:
    """The shards of a dataset folder."""

    def __init__(self, folder: Path):
        """Set it up.

        Args:
            folder: `shards/` of the dataset.
        """
        self.folder = folder

    def read(self, places: Sequence[tuple[str, Extent]]) -> list[bytes]:
        """Read members of shards.

        Args:
            places: Name of the shard, and where in it the member lies.

        Returns:
            Their bytes, in this order.
        """
        return [read_extent(self.folder / shard, extent) for shard, extent in places]


def read_once(path: Path, extent: Extent) -> bytes:
    """Read one member of a shard that is not needed again, without keeping it open.

    Args:
        path: The shard.
        extent: Where the member lies.

    Returns:
        Its bytes.
    """
    with path.open("rb") as shard:
        shard.seek(extent.offset)
        return shard.read(extent.size)
