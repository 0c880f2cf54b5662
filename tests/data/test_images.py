"""Image files that nobody vouches for."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mum_model.data.captures import RefusedError
from mum_model.data.images import image_size, read_image, read_png16
from tests.data.made import plain, write_image, write_png16


def refusal(path, read=lambda path: read_image(path, upright=True)):
    with pytest.raises(RefusedError) as caught:
        read(path)
    assert caught.value.refusal.path == str(path)
    return caught.value.refusal.reason


def exif_with_orientation(value):
    """An APP1 segment with one TIFF entry, tag 0x0112 (Exif 2.32, 4.6.4)."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff


def insert_after_start(path, segment):
    data = path.read_bytes()
    path.write_bytes(data[:2] + segment + data[2:])


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0.5), ("a.jpg", 6), ("a.JPEG", 6)])
def test_rgb(tmp_path, name, tolerance):
    write_image(tmp_path / name, plain())
    image = read_image(tmp_path / name, upright=True)
    assert image.dtype == np.uint8
    assert image.shape == (64, 96, 3)
    assert np.abs(image - plain()).max() <= tolerance
    assert image_size(tmp_path / name) == (96, 64)


def test_grey_becomes_rgb_and_alpha_is_dropped(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.stack([grey, grey + 1, grey + 2, 0 * grey], axis=-1))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", upright=True), np.stack([grey] * 3, axis=-1))
    expected = np.stack([grey + 2, grey + 1, grey], axis=-1)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png", upright=True), expected)


def test_exif_orientation_is_honoured_for_photos_and_not_for_calibrated_ones(tmp_path):
    path = tmp_path / "turned.jpg"
    write_image(path, plain())
    stored = read_image(path, upright=True)
    insert_after_start(path, exif_with_orientation(6))
    np.testing.assert_array_equal(read_image(path, upright=True), np.rot90(stored, -1))
    np.testing.assert_array_equal(read_image(path, upright=False), stored)
    assert image_size(path) == (96, 64)


def test_missing_empty_and_not_an_image(tmp_path):
    assert "cannot be opened: No such file" in refusal(tmp_path / "none.jpg")
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "empty file (0 bytes)" in refusal(tmp_path / "empty.jpg")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    assert "not an image" in refusal(tmp_path / "page.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_cut_file_is_refused(tmp_path, capfd, suffix, share):
    path = tmp_path / f"cut{suffix}"
    write_image(path, plain(256, 256))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "cut" in refusal(path)
    assert capfd.readouterr().err == ""


def test_cut_jpeg_with_whole_thumbnail_is_refused(tmp_path):
    path = tmp_path / "photo.jpg"
    write_image(path, plain(16, 16))
    thumbnail = path.read_bytes()
    write_image(path, plain())
    insert_after_start(path, b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail)
    assert read_image(path, upright=True).shape == (64, 96, 3)
    path.write_bytes(path.read_bytes()[:-40])
    assert "cut: the JPEG has no end (EOI marker)" in refusal(path)


def test_jpeg_with_something_after_its_end_is_read(tmp_path):
    path = tmp_path / "live.jpg"
    write_image(path, plain())
    path.write_bytes(path.read_bytes() + b"a short film")
    assert read_image(path, upright=True).shape == (64, 96, 3)


def test_damaged_png_is_refused_by_its_checksum(tmp_path, capfd):
    path = tmp_path / "a.png"
    write_image(path, plain())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert "damaged: wrong checksum in the PNG's chunk b'IDAT'" in refusal(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (40_000, 8)])
def test_too_large_is_refused_from_the_header(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))
    assert f"header says {width}x{height} pixels; at most 100 megapixels" in refusal(path)
    assert "at most" in refusal(path, image_size)


def test_png16(tmp_path):
    depth = np.array([[0, 1, 65535], [1000, 2000, 3000]])
    write_png16(tmp_path / "depth.png", depth)
    stored = read_png16(tmp_path / "depth.png")
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, depth)


def test_png16_refuses_other_pictures(tmp_path):
    write_image(tmp_path / "rgb.png", plain())
    assert "3 channel(s) of 8 bits; expected depth as a 16-bit grey PNG" in refusal(tmp_path / "rgb.png", read_png16)


def test_cmyk_becomes_rgb(tmp_path):
    """As printers and Photoshop leave it: a JPEG of four inks."""
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:, :32], colours[:, 32:] = (200, 60, 30), (20, 90, 220)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "inks.jpg", quality=95)
    image = read_image(tmp_path / "inks.jpg", upright=True)
    assert np.abs(image.astype(int) - colours)[:, 2:30].max() < 12
    assert np.abs(image.astype(int) - colours)[:, 34:62].max() < 12
