"""Prepare through its own door: what is written, how it is split, what is left out."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf

from mum_model.config import compose
from mum_model.data.geometry import pixel_grid, warp
from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError
from mum_model.prepare import prepare
from mum_model.prepare.work import JPEG_FROM
from tests.conftest import TINY, paths, run_mum
from tests.data.made import plain, write_image


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


def photo_capture(root, ending, side):
    """A folder with one photo of a smooth pattern."""
    write_image(root / "photos" / f"0{ending}", plain(side, side + 32))
    return root / "photos"


@pytest.mark.parametrize(
    ("ending", "side", "setting", "exact"),
    [
        (".png", JPEG_FROM, "data.jpeg_quality=90", True),
        (".jpg", JPEG_FROM - 1, "data.jpeg_quality=90", True),
        (".jpg", JPEG_FROM, "data.jpeg_quality=null", True),
        (".jpg", JPEG_FROM, "data.jpeg_quality=90", False),
    ],
    ids=["PNG stays without loss", "so does a small photo", "so does all on request", "a photo is a JPEG again"],
)
def test_only_large_photos_that_were_jpeg_are_stored_with_loss(tmp_path, ending, side, setting, exact):
    capture = photo_capture(tmp_path, ending, side)
    index = SceneIndex.open(prepared(tmp_path, f"data.source={capture}", "data.short_side=256", setting))
    original = cv2.imread(str(capture / f"0{ending}"))[..., ::-1]
    difference = np.abs(index.image(0).astype(int) - original)
    assert (difference.max() == 0) == exact
    assert difference.mean() < 2
    with tarfile.open(tmp_path / "dataset" / "shards" / index.column("shard")[0]) as shard:
        member = shard.getnames()[0]
    assert member == ("0.png.png" if ending == ".png" else "0.jpg.png" if exact else "0.jpg.jpg")


# Doing it again


def rooms_of_photos(root, names="abcd", frames=4):
    """Scenes of photos of noise under `root/captures`."""
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        for i in range(frames):
            path = root / "captures" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    return f"data.source={root / 'captures'}"


def state(folder):
    """Content of every file of a dataset by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written_at(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "shards").iterdir()}


def test_a_second_run_does_no_scene_again_and_gives_the_same(tmp_path):
    source = rooms_of_photos(tmp_path)
    dataset = prepared(tmp_path, source)
    first, times = state(dataset), written_at(dataset)
    prepared(tmp_path, source)
    assert state(dataset) == first
    assert written_at(dataset) == times


def test_an_added_and_a_changed_scene_are_all_that_is_done(tmp_path):
    source = rooms_of_photos(tmp_path)
    before = written_at(prepared(tmp_path, source))
    (tmp_path / "captures" / "b" / "0.png").unlink()
    rooms_of_photos(tmp_path / "more", "f")
    shutil.move(tmp_path / "more" / "captures" / "f", tmp_path / "captures" / "f")
    dataset = prepared(tmp_path, source)
    after = written_at(dataset)
    assert {name for name in after if after[name] != before.get(name)} == {"images-b.tar", "images-f.tar"}
    assert before.keys() < after.keys()
    assert state(prepared(tmp_path / "fresh", source)) == state(dataset)


def test_a_damaged_shard_is_done_again(tmp_path):
    source = rooms_of_photos(tmp_path)
    dataset = prepared(tmp_path, source)
    first = state(dataset)
    shard = dataset / "shards" / "images-a.tar"
    shard.write_bytes(shard.read_bytes()[:-512] + b"x" * 512)
    assert state(prepared(tmp_path, source)) == first


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_goes_on_to_the_same_dataset(tmp_path, kill):
    source = rooms_of_photos(tmp_path, "abcdefghijklmnop", frames=12)
    whole = state(prepared(tmp_path / "whole", source))
    command = [sys.executable, "-m", "mum_model.cli", "prepare", *TINY, *paths(tmp_path), source]
    ledger = tmp_path / ".dataset.ledger.jsonl"
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as run:
        while not (ledger.exists() and ledger.read_text().count("\n") >= 3):
            assert run.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        run.send_signal(kill)
    assert not (tmp_path / "dataset").exists()
    done = ledger.read_text().count("\n")
    assert 3 <= done < 16
    with ledger.open("a") as file:
        file.write('{"state": "cut')
    output = run_mum("prepare", *TINY, *paths(tmp_path), source)
    assert re.search(rf"{done} of 16 scenes are finished already", output)
    assert state(tmp_path / "dataset") == whole


def test_a_full_disk_says_so_and_the_next_run_goes_on(tmp_path, monkeypatch):
    """The limit on the size of a file stands in for a full disk: both fail in the middle of a write."""
    source = rooms_of_photos(tmp_path)
    limits = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
    start = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from mum_model.cli import main; main()"
    arguments = ["prepare", *TINY, *paths(tmp_path), source]
    done = subprocess.run(
        [sys.executable, "-c", limits + start, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert re.search(r"images-\w\.tar: cannot be written, File too large\. Free some space and run again", done.stderr)
    assert "Traceback" not in done.stderr
    assert state(prepared(tmp_path, source)) == state(prepared(tmp_path / "fresh", source))


def test_content_is_the_same_wherever_the_captures_lie(tmp_path):
    source = rooms_of_photos(tmp_path / "here")
    (tmp_path / "here" / "captures" / "a" / "broken.jpg").write_bytes(b"")
    first = prepared(tmp_path / "first", source)
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    second = prepared(tmp_path / "second", f"data.source={tmp_path / 'elsewhere' / 'captures'}", "machine.workers=2")
    assert state(first) == state(second)
    assert json.loads((first / "dataset.json").read_text())["refused"][0]["path"] == "captures/a/broken.jpg"


# Splits


def test_scenes_with_the_same_pictures_share_a_split(tmp_path):
    source = rooms_of_photos(tmp_path, "abcdefgh")
    for i in range(3):
        picture = cv2.imread(str(tmp_path / "captures" / "a" / f"{i}.png"))
        path = tmp_path / "captures" / "copy of a" / f"{9 - i}.jpg"
        path.parent.mkdir(exist_ok=True)
        smooth = cv2.resize(picture, (160, 120), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(path), smooth, [cv2.IMWRITE_JPEG_QUALITY, 80])
    for seed in range(4):
        index = SceneIndex.open(prepared(tmp_path, source, f"data.splits.seed={seed}", "data.splits.test=0.4"))
        assert index.card["near_duplicates"] == [["images/a", "images/copy of a"]]
        splits = {row["scene"]: row["splits"] for row in index.scenes.to_pylist()}
        assert splits["a"] == splits["copy of a"]


def test_benchmark_scenes_are_for_test_alone(tmp_path):
    source = rooms_of_photos(tmp_path, "abcdefgh")
    index = SceneIndex.open(prepared(tmp_path, source, "data.splits.test_only=[images/b, 'images/[gh]']"))
    splits = {row["scene"]: row["splits"] for row in index.scenes.to_pylist()}
    assert splits["b"] == splits["g"] == splits["h"] == ["test"]
    found = index.card["test_only"]["found"]
    assert found.keys() == {"images/b", "images/g", "images/h"}
    assert all(where["splits"] == ["test"] for where in found.values())
    assert set(index.column("split")) == {"train", "val", "test"}


def test_the_benchmarks_of_the_paper_are_on_the_default_list():
    from fnmatch import fnmatchcase

    patterns = compose().data.splits.test_only

    def listed(name):
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    assert listed("megadepth/0015")
    assert listed("megadepth/0022")
    assert not listed("megadepth/0000")
    assert [listed(f"scannet/scene{number:04d}_00") for number in (706, 707, 759, 806)] == [False, True, True, True]
    assert listed("realestate10k/test/abc")


def test_sequence_kinds_by_the_configuration(tmp_path):
    source = rooms_of_photos(tmp_path, frames=10)
    index = SceneIndex.open(prepared(tmp_path, source, "data.sequence.kind=chunk", "data.sequence.frames=4"))
    lengths = np.concatenate([index.sequences(split).lengths for split in ("train", "val", "test")])
    assert lengths.tolist() == [4, 6] * 4
    assert [len(sequence) for sequence in index.sequences("train")] == index.sequences("train").lengths.tolist()


def test_several_sources_become_one_dataset(tmp_path):
    rooms_of_photos(tmp_path)
    both = f"data.source=[rendered, {tmp_path / 'captures'}]"
    index = SceneIndex.open(prepared(tmp_path, both, "data.rendered.scenes=3"))
    assert index.card["sources"] == {"rendered": 18, "images": 16}
    assert index.card["about_sources"]["rendered"]["truth"] == "exact poses, intrinsics and depth"


def test_the_page_shows_what_the_card_says(tmp_path):
    source = rooms_of_photos(tmp_path)
    (tmp_path / "captures" / "a" / "<b>.jpg").write_bytes(b"")
    dataset = prepared(tmp_path, source)
    page = (dataset / "card.html").read_text()
    card = json.loads((dataset / "dataset.json").read_text())
    for text in (card["content_sha256"], "16 frames", "&lt;b&gt;.jpg", "empty file", "sheets/images.jpg", "scannet"):
        assert text in page
    assert cv2.imread(str(dataset / "sheets" / "images.jpg")).shape == (224, 896, 3)


def test_the_page_stays_short_however_much_there_is_to_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("mum_model.prepare.card.ROWS_SHOWN", 2)
    for views in range(1, 15):
        source = rooms_of_photos(tmp_path, "abcdefghijklmn"[views - 1], views)
    for name in ("x.jpg", "y.jpg", "z.jpg"):
        (tmp_path / "captures" / "k" / name).write_bytes(b"")
    page = (prepared(tmp_path, source) / "card.html").read_text()
    assert page.count("empty file") == 2
    assert "And 1 more: all are in <code>dataset.json</code>" in page
    assert [int(n) for n in re.findall(r'<td class="number">(?:1|2-3|4-7|8-15)<td class="number">(\d+)', page)] == [
        1,
        2,
        4,
        7,
    ]


# Comparing


def test_diff_says_what_changed(tmp_path):
    source = rooms_of_photos(tmp_path, "abcdefgh")
    shutil.copytree(prepared(tmp_path, source), tmp_path / "old")
    assert run_mum("data", "diff", str(tmp_path / "old"), str(tmp_path / "dataset")) == "no difference\n"
    shutil.rmtree(tmp_path / "captures" / "c")
    (tmp_path / "captures" / "d" / "0.png").unlink()
    rooms_of_photos(tmp_path / "more", "xyz")
    shutil.move(tmp_path / "more" / "captures" / "z", tmp_path / "captures" / "z")
    prepared(tmp_path, source)
    lines = run_mum("data", "diff", str(tmp_path / "old"), str(tmp_path / "dataset")).splitlines()
    assert lines[0] == "frames: 32 -> 31"
    assert {line for line in lines[1:] if line[0] in "+-~"} == {"+ images/z", "- images/c", "~ images/d"}
    assert "not a prepared dataset" in run_mum("data", "diff", str(tmp_path), str(tmp_path), status=2)
