"""Prepare through its own door: what is written, how it is split, what is left out."""

import json

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf

from mum_model.config import compose
from mum_model.data.geometry import pixel_grid, warp
from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.prepare import prepare
from tests.conftest import TINY, paths


@pytest.fixture(scope="module")
def index(tiny_dataset):
    return SceneIndex.open(tiny_dataset)


def prepared(root, *overrides):
    return prepare(compose([*TINY, *paths(root), *overrides]))


def images_folder(root, count=6):
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    for i in range(count):
        cv2.imwrite(str(root / "photos" / f"{i:02d}.jpg"), rng.integers(0, 255, (90, 120, 3), dtype=np.uint8))
    return root / "photos"


def test_every_frame_comes_back(index):
    from mum_model.data.sources.rendered import rendered_scenes

    assert len(index) == 48
    capture = rendered_scenes(scenes=8, views=6, size=64, seed=0)[3].capture()
    row = int(np.flatnonzero(index.column("scene") == capture.scene)[2])
    frame, camera = capture.load("0002"), index.camera(row)
    assert np.array_equal(camera.depth, frame.depth)  # lossless
    np.testing.assert_array_equal(camera.intrinsics, frame.intrinsics)
    np.testing.assert_array_equal(camera.world2cam, frame.world2cam)
    assert np.array_equal(index.image(row), frame.image)


def test_splits_are_whole_scenes(index):
    scenes, splits = index.column("scene"), index.column("split")
    by_scene = {scene: set(splits[scenes == scene]) for scene in np.unique(scenes)}
    assert all(len(split) == 1 for split in by_scene.values())
    assert set(splits) == {"train", "val", "test"}


def test_sequences_stay_in_their_scene_and_start_at_the_anchor(index):
    scenes, anchors = index.column("scene"), []
    for split in ("train", "val", "test"):
        for sequence in index.sequences(split):
            anchors.append(sequence[0])
            assert len(set(sequence.tolist())) == len(sequence) <= 8
            assert len(set(scenes[sequence])) == 1
            assert set(index.column("split")[sequence]) == {split}
    assert sorted(anchors) == list(range(len(index)))


def test_stored_overlap_is_the_measured_one(index):
    a, b, overlap = index.covisible_pairs("train")
    for i in range(0, len(a), 37):
        _, covisible = warp(pixel_grid(64, 64), index.camera(int(a[i])), index.camera(int(b[i])))
        assert overlap[i] == pytest.approx(covisible.mean(), abs=0.06)


def test_same_input_gives_the_same_dataset(tiny_dataset, tmp_path):
    again = prepared(tmp_path, "machine.workers=2")
    first = json.loads((tiny_dataset / "dataset.json").read_text())
    assert json.loads((again / "dataset.json").read_text()) == first
    for name in ("index.arrow", "scenes.arrow", "sequences-train.arrow", "covisibility.arrow", "card.html"):
        assert (again / name).read_bytes() == (tiny_dataset / name).read_bytes()


def test_one_scene_is_split_by_blocks_and_shrunk(tmp_path):
    index = SceneIndex.open(prepared(tmp_path, f"data.source={images_folder(tmp_path, 10)}"))
    splits = index.column("split").tolist()
    assert splits == ["test"] * 2 + ["val"] * 2 + ["train"] * 6
    assert index.image(0).shape == (64, 85, 3)
    assert index.card["covisibility"] == {"time": 1}
    assert index.camera(0) is None


def test_broken_frames_are_named_and_the_others_stay(tmp_path, caplog):
    folder = images_folder(tmp_path)
    (folder / "03.jpg").write_bytes(b"")
    index = SceneIndex.open(prepared(tmp_path, f"data.source={folder}"))
    assert len(index) == 5
    (refused,) = index.card["refused"]
    assert refused["path"].endswith("03.jpg")
    assert "03.jpg" in caplog.text


def test_too_many_broken_frames_fail_and_leave_nothing(tmp_path):
    folder = images_folder(tmp_path)
    for name in ("01.jpg", "02.jpg", "03.jpg"):
        (folder / name).write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"3 of 6 frames cannot be used(.|\n)*max_refused_share(.|\n)*02\.jpg"):
        prepared(tmp_path, f"data.source={folder}")
    assert not (tmp_path / "dataset").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        prepared(tmp_path, f"data.source={tmp_path / 'nowhere'}")


def test_opening_something_else_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="mum prepare"):
        SceneIndex.open(tmp_path)


def test_short_side_larger_than_the_frame_keeps_it(tmp_path):
    index = SceneIndex.open(prepared(tmp_path, f"data.source={images_folder(tmp_path)}", "data.short_side=500"))
    assert index.image(0).shape == (90, 120, 3)


@pytest.mark.parametrize(
    ("capture", "frames", "refused"), [("fountain", 11, 0), ("fox", 50, 17), ("rgbd_sevenscenes", 250, 0)]
)
@pytest.mark.slow
def test_real_captures(real_data, tmp_path, capture, frames, refused):
    index = SceneIndex.open(prepared(tmp_path, f"data.source={real_data / capture}"))
    assert len(index) == frames
    assert len(index.card["refused"]) == refused
    assert index.card["with_pose"] == frames
    assert len(index.sequences("train")[0]) > 1
    assert OmegaConf.create(index.card).splits.test >= 1


def test_jpeg_is_near_and_smaller(tiny_dataset, index, tmp_path):
    compressed = SceneIndex.open(prepared(tmp_path, "data.jpeg_quality=95"))
    difference = np.abs(compressed.image(5).astype(int) - index.image(5))
    assert 0 < difference.mean() < 4
    assert compressed.column("image_size").sum() < index.column("image_size").sum()
