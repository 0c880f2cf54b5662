"""Multi-view benchmarks in their own layouts: read as they are meant, and what is broken is named."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.benchmarks.laser_scans import read_ply_points
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.multiview_lessons import MultiViewLessons
from mum_model.evaluate.readers import Reader
from mum_model.model.multiview_heads import MultiViewOutput
from tests.conftest import TINY, paths
from tests.evaluate.layouts import PlaceEncoder, cut_file, rooms
from tests.evaluate.multiview_layouts import (
    SMALL,
    write_co3d,
    write_dtu,
    write_eth3d,
    write_megadepth_scenes,
    write_realestate10k,
)

RNG = np.random.default_rng(0)


class Oracle(nn.Module):
    """Says the truth of one set after the other, in a unit of its own."""

    def __init__(self, task):
        super().__init__()
        self.targets = iter([task.geometry.target([rows]) for rows in task.sets])

    def forward(self, tokens, scenes, grid, size):
        target = next(self.targets)
        ones = torch.ones_like(target.depth)
        cameras = target.cameras.clone()
        cameras[:, 9:12] *= 3
        return MultiViewOutput(cameras, 3 * target.depth, ones, 3 * target.points, ones)


class Known(MultiViewLessons):
    """In place of a training: the oracle."""

    def __init__(self, task):
        self.task = task

    def learn(self, encoder, store, seed):
        return Reader(Oracle(self.task), torch.zeros(1), torch.ones(1))


def judged_by_oracle(task):
    task.lessons = Known(task)
    return task.judge(PlaceEncoder(), FeatureStore(None, -1), seed=0).values


def with_benchmark(folder, **entry):
    text = ",".join(f"{key}:{value}" for key, value in entry.items())
    made = ["~evaluate.benchmarks.dataset", f"+evaluate.benchmarks.made={{{text}}}"]
    return compose([*SMALL, *made, *paths(folder / "o")])


CAPTURES = {
    "co3d": (write_co3d, "[test/*]", {"a", "b", "c"}, "apple/d", 2e-3),
    "realestate10k": (write_realestate10k, "[test/*]", {"train/a", "train/b", "train/c"}, "test/d", None),
    "megadepth": (write_megadepth_scenes, "['0015']", {"0001", "0002", "0003"}, "0015", 1e-6),
}


@pytest.mark.parametrize("kind", CAPTURES)
def test_captures_are_read_as_they_were_written_and_split_by_name(tmp_path, kind):
    write, test, _, tested, precision = CAPTURES[kind]
    write(tmp_path / kind)
    (task,) = open_tasks(with_benchmark(tmp_path, layout="captures", root=tmp_path / kind, fit="crop", test=test))
    frames, truth = task.views.frames, list(rooms(4, 4))[3]
    assert {frames.scene(row) for rows in task.sets for row in rows} == {tested}
    assert tested not in {frames.scene(row) for row in task.lessons.images.rows}
    for row in {row for rows in task.sets for row in rows}:
        number = int("".join(c for c in Path(frames.label(row)).stem if c.isdigit()))
        own = truth[{"co3d": number - 1, "realestate10k": number // 1000, "megadepth": number}[kind]]
        np.testing.assert_allclose(frames.world2cam(row), own.world2cam, atol=1e-6)
        np.testing.assert_allclose(frames.intrinsics(row), own.intrinsics, atol=1e-6)
        np.testing.assert_array_equal(frames.image(row), own.image)
        if precision is None:
            assert frames.depth(row) is None
        else:
            np.testing.assert_allclose(frames.depth(row), own.depth, rtol=precision)
    values = judged_by_oracle(task)
    assert np.nanmax(values["multiview.auc30"]) < 0.05
    assert ("multiview.accuracy" in values) == (precision is not None)
    if precision is not None:
        assert values["multiview.accuracy"].max() < 1e-3
        assert values["multiview.completeness"].max() < 1e-3


@pytest.fixture(scope="module")
def dtu(tmp_path_factory):
    return write_dtu(tmp_path_factory.mktemp("data") / "dtu")


def open_on_rooms(tiny_dataset, tmp_path, **entry):
    """A benchmark without scenes to train on, beside the rooms that it is trained on."""
    text = ",".join(f"{key}:{value}" for key, value in entry.items())
    return compose(
        [
            *TINY,
            *SMALL,
            *paths(tmp_path / "o"),
            f"evaluate.benchmarks.dataset={{layout:prepared,root:{tiny_dataset},fit:crop,tasks:[multiview]}}",
            f"+evaluate.benchmarks.made={{{text},train_on:dataset}}",
        ]
    )


def test_dtu_is_in_millimetres_and_its_pixels_are_ours(dtu, tiny_dataset, tmp_path):
    _, task = open_tasks(open_on_rooms(tiny_dataset, tmp_path, layout="dtu", root=dtu, fit="crop", scans="[1,4]"))
    assert len(task.sets) == 4
    assert task.icp == 100
    frames, (truth,) = task.views.frames, rooms(1, 7)
    for row in range(len(frames.frames)):
        view = int(frames.frames[row].image.name.split("_")[1]) - 1
        own = truth[view % 7]
        np.testing.assert_allclose(frames.intrinsics(row), own.intrinsics)
        np.testing.assert_allclose(frames.depth(row), 1000 * own.depth, rtol=1e-6)
        np.testing.assert_array_equal(frames.image(row), own.image)
    values = judged_by_oracle(task)
    assert np.nanmax(values["multiview.auc30"]) < 0.05
    assert values["multiview.accuracy"].max() < 1


def test_eth3d_depth_is_that_of_the_laser_scans(tiny_dataset, tmp_path):
    write_eth3d(tmp_path / "eth3d")
    cfg = open_on_rooms(tiny_dataset, tmp_path, layout="eth3d", root=tmp_path / "eth3d", fit="crop")
    _, task = open_tasks(cfg)
    assert task.icp == 0.1
    frames, (truth,) = task.views.frames, rooms(1, 6)
    for row in range(len(frames.listed)):
        own = truth[int(frames.label(row)[-8:-4]) - 1]
        np.testing.assert_allclose(frames.world2cam(row), own.world2cam, atol=1e-6)
        depth = frames.depth(row)
        known = depth > 0
        assert known.mean() > 0.7
        near, far = (f(own.depth, np.ones((3, 3), np.uint8)) for f in (cv2.erode, cv2.dilate))
        between = (depth > 0.99 * near) & (depth < 1.01 * far)  # somewhere in the pixel, not at its centre
        assert between[known].mean() > 0.98
    assert np.nanmax(judged_by_oracle(task)["multiview.auc30"]) < 0.05


def test_what_a_nearer_surface_hides_is_unknown(tmp_path):
    """A wall at 4 behind a sheet of points at 2 with gaps: through them the wall is not seen."""
    from mum_model.evaluate.benchmarks.laser_scans import LaserScans

    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    wall = np.stack([2 * x, 2 * y, np.full_like(x, 4)], -1).reshape(-1, 3)
    sheet = np.stack([x, y, np.full_like(x, 2)], -1)[::10, ::10].reshape(-1, 3)
    points = np.concatenate([wall, sheet])
    text = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n" + "".join(f"property float {a}\n" for a in "xyz")
    lines = "\n".join(" ".join(map(str, p)) for p in points.tolist())
    (tmp_path / "scan1.ply").write_text(f"{text}end_header\n{lines}\n")
    identity = "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"
    (tmp_path / "scan_alignment.mlp").write_text(
        f'<X><MLMesh filename="scan1.ply"><MLMatrix44>{identity}</MLMatrix44></MLMesh></X>'
    )
    depth = LaserScans(tmp_path).depth(np.array([[40.0, 0, 20], [0, 40, 20], [0, 0, 1]]), np.eye(4)[:3], (40, 40))
    assert set(np.unique(depth)) == {0.0, 2.0}


BROKEN = {
    "no folder": (lambda r: r.rename(r.with_name("gone")), "no folder .*set evaluate.benchmarks.made.root"),
    "cut image": (lambda r: cut_file(r / "apple/d/images/frame000002.png"), r"d/images/frame000002.png: cut"),
    "absent image": (lambda r: (r / "apple/d/images/frame000002.png").unlink(), "frame000002.png: missing"),
    "cut depth": (lambda r: cut_file(r / "apple/d/depths/frame000001.png"), "depths/frame000001.png"),
    "cut annotations": (lambda r: cut_file(r / "apple/frame_annotations.jgz"), "frame_annotations.jgz: not valid JSON"),
    "nothing to test": (
        lambda r: (r / "apple/set_lists/set_lists_fewview_dev.json").unlink(),
        r"made.test=\['test/\*'\]: none of the 4 scenes",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_before_anything_is_computed(tmp_path, case):
    write_co3d(tmp_path / "co3d")
    spoil, message = BROKEN[case]
    spoil(tmp_path / "co3d")
    entry = {"layout": "captures", "root": tmp_path / "co3d", "fit": "crop", "test": "[test/*]"}
    with pytest.raises(UserError, match=message):
        evaluate(with_benchmark(tmp_path, **entry))
    assert not (tmp_path / "o" / "features").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: cut_file(next(r.glob("Depths_raw/scan4/*.pfm")).parent / "depth_map_0003.pfm"),
            "depth_map_0003.pfm",
        ),
        (lambda r: [p.unlink() for p in (r / "Rectified/scan4").glob("rect_00*.png")], "files that its lists name"),
        (lambda r: (r / "Cameras/00000003_cam.txt").write_text("extrinsic\n1 0 0"), "00000003_cam.txt: not a camera"),
    ],
)
def test_broken_files_of_dtu_are_named(tiny_dataset, tmp_path, spoil, message):
    spoil(write_dtu(tmp_path / "dtu"))
    cfg = open_on_rooms(tiny_dataset, tmp_path, layout="dtu", root=tmp_path / "dtu", fit="crop", scans="[1,4]")
    cfg.evaluate.multiview.judged_views = 49  # so that every view is shown
    with pytest.raises(UserError, match=message):
        open_tasks(cfg)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: cut_file(r / "scan2.ply"), r"scan2.ply: cut: \d+ of \d+ vertices"),
        (lambda r: (r / "scan1.ply").unlink(), "scan1.ply: missing"),
        (lambda r: (r / "scan1.ply").write_bytes(b"ply\nformat binary_big_endian 1.0\nend_header\n"), "big_endian"),
        (lambda r: (r / "scan_alignment.mlp").write_text("<a>"), "scan_alignment.mlp: missing or no MeshLab project"),
        (lambda r: (r / "scan_alignment.mlp").write_text("<a/>"), "names no scan"),
    ],
)
def test_broken_scans_of_eth3d_are_named(tiny_dataset, tmp_path, spoil, message):
    spoil(write_eth3d(tmp_path / "eth3d") / "courtyard" / "dslr_scan_eval")
    with pytest.raises(UserError, match=message):
        open_tasks(open_on_rooms(tiny_dataset, tmp_path, layout="eth3d", root=tmp_path / "eth3d", fit="crop"))


def test_text_and_binary_ply_hold_the_same(tmp_path):
    points = RNG.normal(size=(7, 3)).astype(np.float32)
    header = ["ply", "format {} 1.0", "comment made", "element vertex 7", "property float x", "property float y"]
    header += ["property float z", "element face 0", "property list uchar int vertex_indices", "end_header", ""]
    text = "\n".join(header).format("ascii") + "\n".join(" ".join(map(repr, map(float, p))) for p in points) + "\n"
    (tmp_path / "a.ply").write_text(text)
    (tmp_path / "b.ply").write_bytes("\n".join(header).format("binary_little_endian").encode() + points.tobytes())
    for name in ("a.ply", "b.ply"):
        np.testing.assert_allclose(read_ply_points(tmp_path / name), points, rtol=1e-6)
