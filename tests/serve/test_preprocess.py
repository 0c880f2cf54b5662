"""Image files of every kind become the same pixels as in training, or an error that says why not."""

import cv2
import numpy as np
import pytest
from pictures import animation, bomb, encoded, picture, with_exif

from mum_model.data.images import read_image
from mum_model.serve.contract import Contract, Tensor
from mum_model.serve.preprocess import ImageError, decode, resize, target_sides

PICTURE = picture(32, 48)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640, 224, 16), (224, 304)),
        ((640, 480, 224, 16), (304, 224)),
        ((100, 100, None, 16), (96, 96)),
        ((33, 47, None, 16), (32, 48)),
        ((4, 4000, None, 16), (16, 4000)),
        ((50, 50, 1, 16), (16, 16)),
    ],
)
def test_target_sides(given, expected):
    assert target_sides(*given) == expected


@pytest.mark.parametrize("name", ["fountain/images/0000.jpg", "fountain/images/0003.jpg"])
def test_real_photos_have_the_pixels_that_training_reads(real_data, name):
    path = real_data / name
    np.testing.assert_array_equal(decode(path.read_bytes(), name), read_image(path, upright=True))


def test_channels_are_rgb_and_normalised():
    contract = Contract(Tensor("images", "FP32", ("N", 3, "H", "W")), (), 8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    image = np.zeros((16, 24, 3), np.uint8)
    image[..., 0] = 255  # red
    tensor = contract.input_of(decode(encoded(image, "PNG"), "red")[np.newaxis])
    assert tensor.shape == (1, 3, 16, 24)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, :, 5, 5], [(1 - 0.4) / 0.2, -0.5 / 0.3, -0.6 / 0.4], rtol=1e-6)


@pytest.mark.parametrize(("size", "interpolation"), [(16, cv2.INTER_AREA), (64, cv2.INTER_CUBIC)])
def test_resized_as_prepare_does(size, interpolation):
    width = size * 48 // 32
    expected = cv2.resize(PICTURE, (width, size), interpolation=interpolation)
    np.testing.assert_array_equal(resize(PICTURE, 8, size), expected)


def test_pictures_are_turned_upright():
    turned = decode(with_exif(encoded(PICTURE), orientation=6), "a")
    np.testing.assert_array_equal(turned, np.rot90(decode(encoded(PICTURE), "a"), -1))


def test_a_thumbnails_end_is_not_the_pictures():
    data = with_exif(encoded(picture(64, 64)), orientation=1, thumbnail=encoded(picture(8, 8)))
    assert decode(data, "a").shape == (64, 64, 3)
    with pytest.raises(ImageError, match="breaks off"):
        decode(data[:-50], "a")


def test_a_film_behind_the_picture_is_ignored():
    """Phones append one; its bytes hold any marker."""
    assert decode(encoded(PICTURE) + b"\xff\xd9 film \xff\xda film", "a").shape == PICTURE.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_every_cut_is_seen(kind):
    data = encoded(picture(32, 32), kind)
    tail = {"PNG": 12, "TIFF": 200}.get(kind, 1)  # the last bytes of a PNG or TIFF hold no pixels
    for length in range(0, len(data) - tail, 37):
        with pytest.raises(ImageError, match=r"a\.file: "):
            decode(data[:length], "a.file")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_modes_become_rgb(mode):
    image = decode(encoded(PICTURE, "PNG", mode), "a")
    assert image.shape == PICTURE.shape
    assert image.dtype == np.uint8
    if mode == "RGBA":
        np.testing.assert_array_equal(image, PICTURE)


def test_cmyk_keeps_its_colours():
    image = decode(encoded(PICTURE, "JPEG", "CMYK", quality=95), "a")
    assert np.abs(image.astype(int) - PICTURE).mean() < 4


def test_sixteen_bits_keep_their_upper_eight():
    grey = (np.arange(32 * 48, dtype=np.uint16) * 40).reshape(32, 48)
    _, data = cv2.imencode(".png", grey)
    np.testing.assert_array_equal(decode(data.tobytes(), "a")[..., 1], grey >> 8)
    _, data = cv2.imencode(".png", np.dstack([grey] * 3))
    np.testing.assert_array_equal(decode(data.tobytes(), "a")[..., 0], grey >> 8)


REFUSED = {
    "animation": (animation(), "an animation or a file of 3 pages; expected one picture"),
    "bomb": (bomb(), "30000 x 30000 pixels; at most 100000000 are read"),
    "float": (encoded(np.zeros((8, 8), np.float32), "TIFF"), "holds numbers of 32 bits, no picture"),
    "text": (b"no image", "not an image that can be read; expected one of JPEG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
    "nothing": (b"", "not an image that can be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case):
    data, reason = REFUSED[case]
    with pytest.raises(ImageError, match=f"photo: {reason}"):
        decode(data, "photo")


def test_damaged_at_any_byte_never_crashes():
    """One byte of a small file changed, one after the other: an image or a refusal, nothing else."""
    outcomes = set()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encoded(picture(16, 16), kind)
        for place in range(0, min(len(data), 700), 3):
            try:
                outcomes.add(decode(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :], "a", 10**6).ndim)
            except ImageError:
                outcomes.add("refused")
    assert outcomes == {3, "refused"}
