"""Pictures to send: smooth ones, and every kind that people and attackers have."""

import io
import zlib

import cv2
import numpy as np
from PIL import Image


def picture(height, width, seed=0):
    """A smooth picture, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, "PNG" if path.suffix.lower() == ".png" else "JPEG"))
    return path


def encoded(image, kind="JPEG", mode=None, **options):
    """Bytes of an image file; `mode` is Pillow's."""
    given = Image.fromarray(image)
    buffer = io.BytesIO()
    (given.convert(mode) if mode else given).save(buffer, kind, **options)
    return buffer.getvalue()


def animation(frames=3):
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(picture(16, 16, seed)) for seed in range(frames))
    first.save(buffer, "GIF", save_all=True, append_images=others)
    return buffer.getvalue()


def bomb():
    """A PNG of a few bytes whose header claims 900 megapixels."""
    data = bytearray(encoded(picture(8, 8), "PNG"))
    data[16:24] = (30_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def with_exif(jpeg, orientation, thumbnail=b""):
    """Put an EXIF segment with an orientation behind the JPEG's start, and a thumbnail behind its one entry."""
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    content = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + b"\x00\x00\x00\x00" + thumbnail
    return jpeg[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content + jpeg[2:]
