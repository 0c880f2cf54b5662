"""`mum embed`: files in, one file of features out, broken ones named and left out."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import picture, write
from served import DIM

from mum_model.errors import UserError
from mum_model.serve.contract import RequestError
from mum_model.serve.embed import embed, local_encoder, main
from mum_model.serve.encoder import OnnxEncoder


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
    output = embed([folder, missing], local_encoder(exported), folder.parent / "features.npz", size=32)
    assert len(load(output)["names"]) == 3
    warnings = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("warning")]
    cut = folder / "cut.jpg"
    assert warnings == [
        f"warning: {cut}: the file breaks off before the image ends; copy or download it again; left out",
        f"warning: {missing}: cannot be opened: No such file or directory; left out",
    ]


def test_parquet_holds_the_same(exported, folder):
    encoder = local_encoder(exported)
    archive = load(embed([folder], encoder, folder.parent / "features.npz", size=32))
    table = pq.read_table(embed([folder], encoder, folder.parent / "features.parquet", size=32)).to_pylist()
    assert [row["name"] for row in table] == list(archive["names"])
    for i, row in enumerate(table):
        np.testing.assert_array_equal(np.float32(row["cls"]), archive["cls"][i])
        tokens = np.float32(row["patch_tokens"]).reshape(row["rows"] * row["columns"], DIM)
        np.testing.assert_array_equal(tokens, archive["patch_tokens"][i, : len(tokens)])
        assert (row["rows"], row["columns"]) == tuple(archive["grids"][i])


def test_a_server_gives_the_same(exported, server, folder, capfd):
    (folder / "broken.jpg").write_bytes((folder / "deeper" / "b.JPG").read_bytes()[:300])
    here = load(embed([folder], local_encoder(exported), folder.parent / "here.npz", size=48))
    there = folder.parent / "there.npz"
    assert main([str(folder), "--server", server.url, "--size", "48", "--output", str(there)]) == 0
    there = load(there)
    assert here.keys() == there.keys()
    assert list(here["names"]) == list(there["names"])
    for name in ("grids", "cls", "patch_tokens"):
        np.testing.assert_allclose(there[name], here[name], atol=1e-5)
    assert capfd.readouterr().err.count("breaks off before the image ends") == 2


def test_no_server(folder):
    with pytest.raises(UserError, match=r"http://127.0.0.1:9: no answer .* is `mum serve` running there"):
        main([str(folder), "--server", "http://127.0.0.1:9"])


def test_no_such_model_on_the_server(server, folder):
    with pytest.raises(UserError, match=r"HTTP 404 for model 'other': .*does not exist"):
        main([str(folder), "--server", server.url, "--name", "other"])


def test_nothing_is_written_when_no_image_can_be_read(exported, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of 1 images could be read; nothing was written"):
        embed([tmp_path / "a.png"], local_encoder(exported), tmp_path / "features.npz", size=None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_folder_without_images(exported, tmp_path):
    with pytest.raises(UserError, match=r"no images in this folder; expected files named .jpg"):
        embed([tmp_path], local_encoder(exported), tmp_path / "features.npz", size=None)


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


def test_the_encoder_refuses_sides_that_patches_do_not_fill(exported):
    with pytest.raises(RequestError, match=r"got FP32 \[1, 3, 30, 32\]"):
        OnnxEncoder(exported)(np.zeros((1, 3, 30, 32), np.float32))
