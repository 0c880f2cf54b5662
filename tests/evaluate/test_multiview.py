"""The multi-view task: its metrics against independent references, its benchmarks in their layouts, and the whole."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from mum_model.config import compose
from mum_model.data.geometry import relative_pose
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.benchmarks.laser_scans import read_ply_points
from mum_model.evaluate.clouds import accuracy_and_completeness, refined_by_icp, similarity_between
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.multiview import pairwise_errors
from mum_model.evaluate.multiview_lessons import MultiViewLessons
from mum_model.evaluate.readers import Reader
from mum_model.evaluate.scores import Scores
from mum_model.evaluate.statistics import statistic_of
from mum_model.model import MultiViewConfig, MultiViewModel, save_multiview
from mum_model.model.multiview_heads import MultiViewOutput, decode_cameras
from mum_model.model.scenes import SceneLayout
from tests.conftest import TINY, paths
from tests.evaluate.layouts import HEIGHT, WIDTH, rooms
from tests.evaluate.multiview_layouts import (
    write_co3d,
    write_dtu,
    write_eth3d,
    write_megadepth_scenes,
    write_realestate10k,
)
from tests.evaluate.test_benchmarks import PlaceEncoder, cut_file

SMALL = [
    "evaluate.size=48",
    "evaluate.seeds=1",
    "evaluate.figures=1",
    "evaluate.multiview={trained:{},views:[2,4],judged_views:4,sets:2,scenes:8,frames:4,map_side:24,icp:0.1,batch:8,"
    "model:{dim:16,depth:2,heads:2,camera_depth:1,dense_dim:4},"
    "optimisation:{iterations:3,learning_rates:[1e-3,1e-4],weight_decay:0.05,clip:1.0}}",
    "encoder=[pixels/8]",
]

RNG = np.random.default_rng(0)
TURN = Rotation.from_rotvec([0.3, -0.5, 1.0]).as_matrix()


# Metrics


def test_the_similarity_is_found_again_and_never_mirrors():
    points = RNG.normal(size=(50, 3))
    found = similarity_between(points, 2.5 * points @ TURN.T + [1, 2, 3])
    assert found.scale == pytest.approx(2.5)
    np.testing.assert_allclose(found.rotation, TURN, atol=1e-9)
    np.testing.assert_allclose(found(points), 2.5 * points @ TURN.T + [1, 2, 3], atol=1e-9)
    assert np.linalg.det(similarity_between(points, points * [1, 1, -1]).rotation) == pytest.approx(1)


def test_the_similarity_is_the_one_of_least_squares():
    """Umeyama's closed form, and no nearby similarity is better."""
    points, true = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 3))
    found = similarity_between(points, true)
    a, b = points - points.mean(0), true - true.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.linalg.det(u @ vt)])
    np.testing.assert_allclose(found.rotation, u @ sign @ vt, atol=1e-9)
    assert found.scale == pytest.approx((d * np.diag(sign)).sum() / (a**2).sum())


def test_it_is_colmaps():
    import pycolmap

    points, true = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 3))
    found, theirs = similarity_between(points, true), pycolmap.estimate_sim3d(points, true)
    np.testing.assert_allclose(found(points), points @ theirs.matrix()[:, :3].T + theirs.matrix()[:, 3], atol=1e-9)


def test_points_in_one_place_all_go_to_the_middle():
    true = RNG.normal(size=(9, 3))
    np.testing.assert_allclose(similarity_between(np.ones((9, 3)), true)(np.ones((9, 3))), [true.mean(0)] * 9)


def test_points_on_a_line_go_to_the_nearest_line():
    line = np.linspace(0, 1, 9)[:, None] * [[1, 2, 3]]
    np.testing.assert_allclose(similarity_between(line, 2 * line @ TURN.T)(line), 2 * line @ TURN.T, atol=1e-9)


def test_icp_brings_a_cloud_back_in_any_unit():
    true = RNG.uniform(size=(4000, 3)) * [1, 1, 0.2]
    moved = true @ Rotation.from_rotvec([0.01, 0.02, -0.01]).as_matrix().T + [0.01, 0, -0.01]
    for unit in (1.0, 1000.0):
        np.testing.assert_allclose(refined_by_icp(moved * unit, true * unit, 0.2 * unit) / unit, true, atol=1e-4)


def test_icp_leaves_alone_what_is_beyond_its_threshold():
    true = RNG.uniform(size=(500, 3))
    far = true + np.array([5.0, 0, 0])
    np.testing.assert_array_equal(refined_by_icp(far, true, 0.1), far)


def test_distances_are_those_to_the_nearest():
    points, true = RNG.normal(size=(300, 3)), RNG.normal(size=(500, 3))
    every = np.linalg.norm(points[:, None] - true[None], axis=-1)
    accuracy, completeness = accuracy_and_completeness(points, true)
    assert accuracy == pytest.approx(np.median(every.min(axis=1)))
    assert completeness == pytest.approx(np.median(every.min(axis=0)))
    accuracy, completeness = accuracy_and_completeness(true[:100], true)  # accurate, and a fifth of it
    assert accuracy == 0
    assert completeness > 0


def poses(count):
    return np.stack(
        [
            np.column_stack([Rotation.from_rotvec(RNG.normal(size=3)).as_matrix(), RNG.normal(size=3)])
            for _ in range(count)
        ]
    )


def test_errors_of_all_pairs_do_not_depend_on_world_or_unit():
    true = poses(10)
    errors = pairwise_errors(true, true)
    assert len(errors) == 45
    assert max(errors) < 1e-6
    moved = np.stack([np.column_stack([p[:, :3] @ TURN, p[:, :3] @ [1, 2, 3] + p[:, 3]]) for p in true])
    moved[:, :, 3] *= 3
    assert max(pairwise_errors(moved, true)) < 1e-5


def test_a_turned_camera_is_wrong_in_the_pairs_that_it_is_in():
    true = poses(10)
    wrong = true.copy()
    turn = Rotation.from_rotvec([np.radians(20), 0, 0]).as_matrix()
    wrong[3] = turn @ wrong[3]  # about its own centre
    errors = np.array(pairwise_errors(wrong, true))
    assert (errors > 1e-5).sum() == 9
    assert errors.max() < 20.01


def test_a_mirrored_world_has_the_right_rotations_and_the_wrong_directions():
    """The sign of the translation matters, as in all of this project's pose numbers."""
    true = poses(5)
    mirrored = true.copy()
    mirrored[:, :, 3] *= -1
    np.testing.assert_allclose(pairwise_errors(mirrored, true), 180, atol=1e-4)


def test_where_the_camera_only_turned_the_rotation_alone_counts():
    true = np.stack([np.column_stack([Rotation.from_rotvec([0, a, 0]).as_matrix(), [0, 0, 0]]) for a in (0, 0.5)])
    said = true.copy()
    said[1, :, 3] = [1, 0, 0]
    assert max(pairwise_errors(said, true)) < 1e-6
    assert pairwise_errors(true, np.stack([true[0], said[1]])) == [180.0]  # moved, and the estimate says it did not


def test_auc_counts_every_pair_and_not_the_padding():
    """Two sets of three and of two views: four pairs, of which one is wrong."""
    errors = np.array([[[0.0, 0.0, 180.0], [0.0, np.nan, np.nan]]])
    scores = Scores(errors, np.array(["a", "b"]), statistic_of("multiview.auc30"))
    assert scores.value == pytest.approx(0.75)


# Benchmarks


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


def test_the_whole_on_rooms(tiny_dataset, tiny_root, tmp_path):
    """Two encoders, both trained tasks, in one report; again gives the same numbers."""
    settings = [
        *TINY,
        *SMALL,
        *paths(tmp_path),
        f"paths.dataset={tiny_dataset}",
        "evaluate.benchmarks.dataset.tasks=[multiview,pose_head]",
        "evaluate.pose_head={model:{dim:16,depth:1,heads:2},batch:4,"
        "optimisation:{iterations:3,learning_rates:[1e-3,1e-4],weight_decay:0.05,clip:1.0}}",
        "encoder=[pixels/8,random/vit_tiny_patch16_224]",
    ]
    folder = evaluate(compose(settings))
    first = (folder / "metrics.json").read_text()
    numbers = json.loads(first)["pixels-8"]
    for key in ("multiview.auc30", "multiview.accuracy", "multiview.completeness", "pose_head.auc20"):
        assert numbers[f"dataset.{key}_low"] <= numbers[f"dataset.{key}"] <= numbers[f"dataset.{key}_high"]
    page = (folder / "report.html").read_text()
    assert "multi-view pose AUC@30" in page
    assert "dataset: multi-view geometry" in page
    assert list(folder.glob("figures/dataset-multiview-*.png"))
    assert (evaluate(compose(settings)) / "metrics.json").read_text() == first


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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.benchmarks.dataset.train_on=halls", "train_on=halls: expected a benchmark with multiview"),
        ("evaluate.multiview.views=[1,4]", r"expected views=\[from 2, to\]"),
        ("evaluate.multiview.model.heads=3", "each head must be a multiple of 4 wide"),
    ],
)
def test_settings_that_make_no_sense_are_named(tiny_dataset, tmp_path, override, message):
    key, _, value = override.partition("=")
    prefix = "+" if key.endswith("train_on") else ""
    cfg = compose(
        [
            *TINY,
            *SMALL,
            *paths(tmp_path),
            f"paths.dataset={tiny_dataset}",
            "evaluate.benchmarks.dataset.tasks=[multiview]",
            f"{prefix}{key}={value}",
        ]
    )
    with pytest.raises(UserError, match=message):
        open_tasks(cfg)


def test_text_and_binary_ply_hold_the_same(tmp_path):
    points = RNG.normal(size=(7, 3)).astype(np.float32)
    header = ["ply", "format {} 1.0", "comment made", "element vertex 7", "property float x", "property float y"]
    header += ["property float z", "element face 0", "property list uchar int vertex_indices", "end_header", ""]
    text = "\n".join(header).format("ascii") + "\n".join(" ".join(map(repr, map(float, p))) for p in points) + "\n"
    (tmp_path / "a.ply").write_text(text)
    (tmp_path / "b.ply").write_bytes("\n".join(header).format("binary_little_endian").encode() + points.tobytes())
    for name in ("a.ply", "b.ply"):
        np.testing.assert_allclose(read_ply_points(tmp_path / name), points, rtol=1e-6)


def test_relative_poses_of_a_set_are_those_of_its_frames(tiny_dataset, tmp_path):
    cfg = compose(
        [
            *TINY,
            *SMALL,
            *paths(tmp_path),
            f"paths.dataset={tiny_dataset}",
            "evaluate.benchmarks.dataset.tasks=[multiview]",
        ]
    )
    (task,) = open_tasks(cfg)
    rows = task.sets[0]
    truth, known = task._truth(rows)
    frames = task.views.frames
    expected = [relative_pose(frames.world2cam(rows[0]), frames.world2cam(row)) for row in rows]
    np.testing.assert_allclose(truth.poses, expected)
    assert known.shape == (4, 24, 24)
    assert (WIDTH, HEIGHT) == (96, 72)


def rooms_with_trained(tiny_dataset, tmp_path, run):
    tasks = "evaluate.benchmarks.dataset.tasks=[multiview]"
    trained = f"+evaluate.multiview.trained={{place:{run}}}"
    return compose([*TINY, *SMALL, *paths(tmp_path), f"paths.dataset={tiny_dataset}", tasks, trained])


def test_a_model_that_pretraining_left_is_judged_in_place_of_a_new_one(tiny_dataset, tmp_path):
    torch.manual_seed(0)
    model = MultiViewModel(MultiViewConfig(token_dim=24, dim=16, depth=2, heads=2, camera_depth=1, dense_dim=4))
    save_multiview(model, tmp_path / "run" / "model")
    (task,) = open_tasks(rooms_with_trained(tiny_dataset, tmp_path, tmp_path / "run"))
    values = task.judge(PlaceEncoder(), FeatureStore(None, -1), seed=0).values
    images = task.test.read([task.test.place(row) for row in task.sets[0]])
    with torch.inference_mode():
        tokens = PlaceEncoder().tokens(images, -1).patches.half().float()
        said = model(tokens, SceneLayout.of([len(tokens)]), (6, 6), (24, 24))
    poses = decode_cameras(said.cameras.double())[0].numpy()
    expected = pairwise_errors(poses, task._truth(task.sets[0])[0].poses)
    np.testing.assert_allclose(values["multiview.auc30"][0][: len(expected)], expected, atol=1e-2)


def test_a_model_of_another_encoder_is_named(tiny_dataset, tmp_path):
    model = MultiViewModel(MultiViewConfig(token_dim=7, dim=16, depth=2, heads=2, camera_depth=1, dense_dim=4))
    save_multiview(model, tmp_path / "run" / "model")
    (task,) = open_tasks(rooms_with_trained(tiny_dataset, tmp_path, tmp_path / "run"))
    with pytest.raises(UserError, match=r"trained\.place: its model reads tokens of width 7, the encoder gives 24"):
        task.judge(PlaceEncoder(), FeatureStore(None, -1), seed=0)
    with pytest.raises(UserError, match="not the folder of a multi-view model"):
        open_tasks(rooms_with_trained(tiny_dataset, tmp_path, tmp_path / "nowhere"))
