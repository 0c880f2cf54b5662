"""Published benchmarks in their own layouts: what they hold is read as it is meant, and what is broken is named."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.encoders.base import Tokens
from mum_model.evaluate.features import FeatureStore
from tests.conftest import paths
from tests.evaluate.layouts import (
    HEIGHT,
    WIDTH,
    PlaceEncoder,
    cut_file,
    painted_by_place,
    rooms,
    write_depth,
    write_megadepth,
    write_scannet,
)

MEGADEPTH = [
    "evaluate=paper",
    "~evaluate.benchmarks.scannet",
    "evaluate.benchmarks.megadepth.pairs.val=[prep_scene_info/0017.npy]",
    "evaluate.benchmarks.megadepth.pairs.test=[0015_0.1_0.3.npz,0022_0.1_0.3.npz]",
    "evaluate.size=96",
    "evaluate.pairs={train:100,val:20,test:0}",
    "evaluate.probe={dim:32,iterations:20,batch:4,learning_rates:[1e-3],weight_decays:[0.0]}",
    "evaluate.figures=1",
    "encoder=[pixels/8,random/vit_tiny_patch16_224]",
]
SCANNET = [
    "evaluate=paper",
    "~evaluate.benchmarks.megadepth",
    "evaluate.size=96",
    "evaluate.figures=1",
    "encoder=[pixels/8]",
]


def rooted(root, settings):
    return [*settings, f"evaluate.roots={root}", *paths(root / "outputs")]


@pytest.fixture(scope="module")
def megadepth(tmp_path_factory):
    return write_megadepth(tmp_path_factory.mktemp("data") / "megadepth").parent


def test_megadepth_is_judged_on_its_lists(megadepth):
    folder = evaluate(compose(rooted(megadepth, MEGADEPTH)))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() == {"pixels-8", "random-vit_tiny_patch16_224", "ratio"}
    for numbers in list(metrics.values())[:2]:
        assert 0 < numbers["megadepth.matching.probe_epe"] < 450
        assert numbers["megadepth.pose.auc20"] >= 0
    page = (folder / "report.html").read_text()
    assert "16 test pairs of 2 scenes" in page
    assert "No pretraining dataset was at hand" in page


def test_a_perfect_encoder_is_found_perfect(tmp_path):
    """Poses, intrinsics, depth, stretching and pixel centres are read right, or these matches would be wrong."""
    write_megadepth(tmp_path / "megadepth", paint=painted_by_place)
    (task,) = open_tasks(compose(rooted(tmp_path, MEGADEPTH)))
    outcome = task.judge(PlaceEncoder(), FeatureStore(None, -1), seed=0)
    chance = task.judge(Shuffled(), FeatureStore(None, -1), seed=0)
    assert np.nanmean(outcome.values["matching.knn_epe"]) < 0.15 * np.nanmean(chance.values["matching.knn_epe"])
    assert np.nanmean(outcome.values["matching.knn_pck32"]) > 0.75  # a cell is 37 px wide
    assert np.median(outcome.values["pose.auc5"]) < np.median(chance.values["pose.auc5"])


class Shuffled(PlaceEncoder):
    name = identity = "shuffled"

    def tokens(self, images, layer):
        noise = torch.randn(len(images), 144, 8, generator=torch.Generator().manual_seed(int(images.sum())))
        return Tokens(noise, noise.mean(1))


def test_megadepth_frames_are_as_they_were_written(megadepth):
    (task,) = open_tasks(compose(rooted(megadepth, MEGADEPTH)))
    frames = task.views.frames
    expected = dict(zip(("0001", "0017", "0015", "0022"), rooms(4, 5), strict=True))
    for row, frame in enumerate(frames.frames):
        truth = expected[frame.scene][int(frame.image.stem)]
        camera = frames.camera(row)
        np.testing.assert_allclose(camera.intrinsics, truth.intrinsics)
        np.testing.assert_allclose(camera.world2cam, truth.world2cam)
        np.testing.assert_array_equal(camera.depth, truth.depth)
        assert frames.shape(row) == (HEIGHT, WIDTH)


def test_training_pairs_are_never_of_tested_scenes(megadepth):
    (task,) = open_tasks(compose(rooted(megadepth, MEGADEPTH)))
    scene = {split: {task.views.frames.scene(a) for a, _ in pairs} for split, pairs in task.rows.items()}
    assert scene == {"train": {"0001"}, "val": {"0017"}, "test": {"0015", "0022"}}


def test_scannet_poses_are_those_of_its_files_and_of_its_list(tmp_path):
    write_scannet(tmp_path / "with" / "scannet")
    write_scannet(tmp_path / "without" / "scannet", depth=False)
    with_files, without = (open_tasks(compose(rooted(tmp_path / n, SCANNET)))[0] for n in ("with", "without"))
    for first, second in zip(with_files.posed, without.posed, strict=True):
        np.testing.assert_allclose(first.pose, second.pose, atol=1e-9)
    frames = with_files.views.frames
    truth = next(rooms(2, 4))[0]
    camera = frames.camera(0)
    scale = np.diag([640 / WIDTH, 480 / HEIGHT, 1])
    np.testing.assert_allclose(camera.intrinsics, scale @ truth.intrinsics, atol=1e-9)
    np.testing.assert_allclose(camera.world2cam, truth.world2cam, atol=1e-9)
    assert camera.depth[240, 320] == pytest.approx(truth.depth[HEIGHT // 2, WIDTH // 2], abs=1e-3)
    lost = [
        row for row, frame in enumerate(frames.frames) if frame.image.stem == "45" and frame.scene == "scene0708_00"
    ]
    assert frames.camera(lost[0]) is None


def test_scannet_without_training_lists_is_judged_by_nearest_neighbours(tmp_path):
    write_scannet(tmp_path / "scannet")
    metrics = json.loads((evaluate(compose(rooted(tmp_path, SCANNET))) / "metrics.json").read_text())
    numbers = next(iter(metrics.values()))
    assert "scannet.matching.knn_epe" in numbers
    assert "scannet.matching.probe_epe" not in numbers
    assert "scannet.pose.auc5" in numbers


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def add_frame_to_list(root):
    path = root / "prep_scene_info" / "0001.npy"
    info = np.load(path, allow_pickle=True).item()
    info["pairs"][0] = (0, 5)
    np.save(path, np.array(info, object), allow_pickle=True)


BROKEN = {
    "no folder": (
        lambda r: r.rename(r.with_name("gone")),
        r"no folder .*megadepth; set evaluate.benchmarks",
    ),
    "no list": (lambda r: (r / "0015_0.1_0.3.npz").unlink(), r"nothing is .*0015_0.1_0.3.npz"),
    "cut list": (lambda r: cut_file(r / "0015_0.1_0.3.npz"), r"0015_0.1_0.3.npz: damaged"),
    "code in a list": (
        lambda r: np.save(r / "prep_scene_info" / "0001.npy", np.array({"pairs": Evil()}, object), allow_pickle=True),
        r"0001.npy: damaged, or not a published list of pairs \(asks for builtins.print\)",
    ),
    "another list": (lambda r: np.savez(r / "0015_0.1_0.3.npz", a=np.ones(3)), r"no scene info, it has no image_paths"),
    "absent image": (
        lambda r: (r / "Undistorted_SfM/0022/images/3.jpg").unlink(),
        r"1 of \d+ files .*0022/images/3.jpg",
    ),
    "cut image": (lambda r: cut_file(r / "Undistorted_SfM/0022/images/3.jpg"), r"0022/images/3.jpg: cut"),
    "cut depth": (
        lambda r: cut_file(next(r.glob("phoenix/**/0022/**/3.h5"))),
        r"3.h5: cut, or no depth of MegaDepth",
    ),
    "depth of another size": (
        lambda r: write_depth(next(r.glob("phoenix/**/0022/**/3.h5")), np.ones((5, 7), np.float32)),
        r"3.h5: depth of 7x5 pixels; expected 96x72",
    ),
    "unknown frame": (add_frame_to_list, r"0001.npy: a pair names frame 5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_before_anything_is_computed(tmp_path, capsys, case):
    write_megadepth(tmp_path / "megadepth")
    spoil, message = BROKEN[case]
    spoil(tmp_path / "megadepth")
    with pytest.raises(UserError, match=message):
        evaluate(compose(rooted(tmp_path, MEGADEPTH)))
    assert not (tmp_path / "outputs" / "features").exists()
    assert "ran" not in capsys.readouterr().out


def test_the_papers_protocol_is_whole():
    cfg = OmegaConf.to_container(compose(["evaluate=paper", "evaluate.roots=/data"]), resolve=True)["evaluate"]
    assert cfg["size"] == 448
    assert cfg["probe"]["iterations"] == 10000
    assert cfg["benchmarks"]["dataset"] is None
    assert cfg["benchmarks"]["scannet"]["root"] == "/data/scannet"
