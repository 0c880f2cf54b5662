"""Plain folders of images, and how `open_captures` finds scenes and says what it leaves out."""

import pickle

import numpy as np
import pytest

from mum_model.errors import UserError
from tests.data.made import only, open_captures, plain, refusals, write_image


def test_one_folder_in_natural_order(tmp_path):
    for name in ("view10.jpg", "view2.png", "view1.jpg", "view02.jpg"):
        write_image(tmp_path / "shed" / name, plain())
    (tmp_path / "shed" / "notes.txt").write_text("not an image")
    capture = only(tmp_path / "shed")
    assert (capture.scene, capture.source) == ("shed", "images")
    assert capture.frames == ("view1.jpg", "view02.jpg", "view2.png", "view10.jpg")
    frame = pickle.loads(pickle.dumps(capture)).load("view2.png")
    assert np.abs(frame.image - plain()).max() <= 0.5
    assert (frame.intrinsics, frame.world2cam, frame.depth) == (None, None, None)


def test_each_subfolder_is_a_scene(tmp_path):
    for scene in ("b", "a"):
        write_image(tmp_path / scene / "0.png", plain())
    assert [capture.scene for capture in open_captures(tmp_path)[0]] == ["a", "b"]


def test_what_is_left_out_is_said(tmp_path):
    write_image(tmp_path / "a" / "0.png", plain())
    write_image(tmp_path / "preview.png", plain())
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".cache").mkdir()
    captures, refused = open_captures(tmp_path)
    assert [capture.scene for capture in captures] == ["a"]
    assert [str(refusal) for refusal in refused] == [
        f"{tmp_path / 'scripts'}: no capture of a known layout is in it; left out",
        f"{tmp_path}: images beside folders of scenes; left out, expected in a folder of their own",
    ]


def test_broken_scene_beside_good_ones(tmp_path):
    write_image(tmp_path / "good" / "0.png", plain())
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "transforms.json").write_text('{"frames": [')
    (tmp_path / "model" / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "model" / "images").mkdir()
    (tmp_path / "model" / "sparse" / "0" / "cameras.bin").write_bytes(b"\x07")
    (tmp_path / "rgbd").mkdir()
    (tmp_path / "rgbd" / "frame-000000.pose.txt").write_text("1 0 0\n")
    captures, _ = open_captures(tmp_path)
    assert [capture.scene for capture in captures] == ["good"]
    text = refusals(tmp_path)
    assert f"{tmp_path / 'json' / 'transforms.json'}: not valid JSON" in text
    assert f"{tmp_path / 'model' / 'sparse' / '0' / 'cameras.bin'}: cut or damaged" in text
    assert f"{tmp_path / 'rgbd'}: none of the frames of this rgbd scene can be used" in text
    assert "frame-000000: none of .color.jpg and .color.png are there; expected one" in text


def test_no_such_folder_and_file(tmp_path):
    with pytest.raises(UserError, match="no such folder; expected a folder of captures"):
        open_captures(tmp_path / "none")
    (tmp_path / "file.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"file\.jpg holds nothing that is recognised"):
        open_captures(tmp_path / "file.jpg")


def test_empty_and_unknown_folders_name_the_layouts(tmp_path):
    with pytest.raises(UserError) as empty:
        open_captures(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(UserError) as unknown:
        open_captures(tmp_path)
    assert "holds nothing, it is empty" in str(empty.value)
    assert "holds nothing that is recognised" in str(unknown.value)
    for layout in ("transforms.json", "COLMAP", "frame-XXXXXX", ".jpg, .jpeg or .png"):
        assert layout in str(empty.value)
        assert layout in str(unknown.value)
    assert str(tmp_path) in str(empty.value)
    assert "\n" not in str(empty.value)
