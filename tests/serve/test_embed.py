"""`mum embed`: files in, one file of features out, broken ones named and left out."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from served import DIM, PATCH

from mum_model.errors import UserError
from mum_model.serve.contract import Contract, RequestError, Tensor
from mum_model.serve.embed import embed, main
from mum_model.serve.encoder import OnnxEncoder
from mum_model.serve.preprocess import ImageError, load_image, read_rgb, target_sides

CONTRACT = Contract(Tensor("images", ("N", 3, "H", "W")), (), PATCH, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def picture(height, width, seed=0):
    """A smooth picture, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "in" / "a.png", picture(48, 64))
    write(tmp_path / "in" / "deeper" / "b.JPG", picture(64, 48, seed=1))
    write(tmp_path / "in" / "wide.png", picture(32, 128, seed=2))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def load(path):
    with np.load(path) as archive:
        return dict(archive)


def test_features_are_those_of_torch(exported, folder, features_by_torch, capsys):
    output = folder.parent / "new" / "features.bin"
    arguments = [str(folder), "--model", str(exported), "--output", str(output), "--size", "48"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert [path.name for path in output.parent.iterdir()] == ["features.bin"]
    features = load(output)
    assert list(features["names"]) == [str(folder / name) for name in ("a.png", "deeper/b.JPG", "wide.png")]
    assert features["grids"].tolist() == [[6, 8], [8, 6], [6, 24]]
    assert features["cls"].shape == (3, DIM)
    assert features["patch_tokens"].shape == (3, 6 * 24, DIM)
    image = (np.float32(picture(48, 64)) / 255 - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4])
    cls, patch_tokens = features_by_torch(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
    np.testing.assert_allclose(features["cls"][:1], cls, atol=1e-4)
    np.testing.assert_allclose(features["patch_tokens"][:1, : 6 * 8], patch_tokens, atol=1e-4)
    filled = np.isfinite(features["patch_tokens"]).all(axis=2).sum(axis=1)
    assert filled.tolist() == [48, 48, 144]


def test_broken_images_are_named_and_left_out(exported, folder, capfd):
    whole = (folder / "deeper" / "b.JPG").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    missing = folder / "missing.png"
    output = embed([folder, missing], exported, folder.parent / "features.npz", size=32)
    assert len(load(output)["names"]) == 3
    warnings = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("warning")]
    cut = folder / "cut.jpg"
    assert warnings == [
        f"warning: {cut}: the file breaks off before the image ends; copy or download it again; left out",
        f"warning: {missing}: cannot be opened: No such file or directory; left out",
    ]


def test_nothing_is_written_when_no_image_can_be_read(exported, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of 1 images could be read; nothing was written"):
        embed([tmp_path / "a.png"], exported, tmp_path / "features.npz", size=None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_folder_without_images(exported, tmp_path):
    with pytest.raises(UserError, match=r"no images in this folder; expected files named .jpg"):
        embed([tmp_path], exported, tmp_path / "features.npz", size=None)


def test_missing_model(folder):
    with pytest.raises(UserError, match=r"nowhere: no exported encoder there .*`mum export` writes one"):
        main([str(folder), "--model", str(folder / "nowhere")])


@pytest.mark.parametrize("size", ["0", "-3", "big", "1.5"])
def test_wrong_size(size, capsys):
    with pytest.raises(SystemExit) as status:
        main(["a.png", f"--size={size}"])
    assert status.value.code == 2
    assert f"'{size}': expected a number of pixels above 0, or full" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    for word in ("patch_tokens", "grids", "mum embed photo.jpg", "--size", "outputs/export", "left out"):
        assert word in text


def test_embedding_imports_neither_torch_nor_the_server():
    code = "import sys, mum_model.serve.embed; print([m for m in ('torch', 'timm', 'kserve') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


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


def test_channels_are_rgb_and_normalised(tmp_path):
    image = np.zeros((16, 24, 3), np.uint8)
    image[..., 0] = 255  # red
    tensor = load_image(write(tmp_path / "red.png", image), CONTRACT, None)
    assert tensor.shape == (1, 3, 16, 24)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, :, 5, 5], [(1 - 0.4) / 0.2, -0.5 / 0.3, -0.6 / 0.4], rtol=1e-6)


def with_exif(jpeg, orientation, thumbnail=b""):
    """Put an EXIF segment with an orientation behind the JPEG's start, and a thumbnail behind its one entry."""
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    content = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + b"\x00\x00\x00\x00" + thumbnail
    return jpeg[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content + jpeg[2:]


def test_pictures_are_turned_upright(tmp_path):
    path = write(tmp_path / "a.jpg", picture(32, 64))
    path.write_bytes(with_exif(path.read_bytes(), orientation=6))
    assert read_rgb(path).shape == (64, 32, 3)


def test_a_thumbnails_end_is_not_the_pictures(tmp_path):
    thumbnail = write(tmp_path / "small.jpg", picture(8, 8)).read_bytes()
    path = write(tmp_path / "a.jpg", picture(64, 64))
    data = with_exif(path.read_bytes(), orientation=1, thumbnail=thumbnail)
    path.write_bytes(data)
    assert read_rgb(path).shape == (64, 64, 3)
    path.write_bytes(data[:-50])
    with pytest.raises(ImageError, match="breaks off"):
        read_rgb(path)


def test_a_film_behind_the_picture_is_ignored(tmp_path):
    """Phones append one; its bytes hold any marker."""
    path = write(tmp_path / "a.jpg", picture(32, 32))
    path.write_bytes(path.read_bytes() + b"\xff\xd9 film \xff\xda film")
    assert read_rgb(path).shape == (32, 32, 3)


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_every_cut_is_seen(tmp_path, kind):
    path = write(tmp_path / f"a{kind}", picture(32, 32))
    data = path.read_bytes()
    for length in range(0, len(data) - 12, 7):  # a PNG ends in 12 bytes that hold no pixels
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match=str(path)):
            read_rgb(path)


@pytest.mark.parametrize("image", [picture(16, 16)[..., 0], np.dstack([picture(16, 16), picture(16, 16)[..., :1]])])
def test_grey_and_alpha_become_rgb(tmp_path, image):
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), image)
    assert read_rgb(path).shape == (16, 16, 3)


def test_the_encoder_refuses_sides_that_patches_do_not_fill(exported):
    with pytest.raises(RequestError, match=r"got FP32 \[1, 3, 30, 32\]"):
        OnnxEncoder(exported)(np.zeros((1, 3, 30, 32), np.float32))
