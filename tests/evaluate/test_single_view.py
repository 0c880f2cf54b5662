"""Single-view tasks: metrics against closed forms and scipy, and the benchmarks' own layouts end to end."""

import json

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mum_model.config import compose
from mum_model.data.geometry import pixel_grid
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.classification import neighbours_vote
from mum_model.evaluate.depth import depth_errors, normal_errors, normals_from_depth
from mum_model.evaluate.segmentation import intersection_and_union
from mum_model.evaluate.statistics import mean_iou
from tests.conftest import TINY, paths
from tests.evaluate.layouts import cut_file, write_ade20k, write_imagenet, write_nyu

INTRINSICS = np.array([[50.0, 0, 20], [0, 55, 16], [0, 0, 1]])


def plane(normal, distance, height=32, width=40):
    """Depth of the plane `normal . point = distance`."""
    pixels = pixel_grid(height, width)
    rays = np.concatenate([pixels, np.ones((height, width, 1))], -1) @ np.linalg.inv(INTRINSICS).T
    return distance / (rays @ normal)


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.3, -0.2, -0.9), (-0.5, 0.4, -0.7)])
def test_normals_of_a_plane_are_its_own(normal):
    normal = np.array(normal) / np.linalg.norm(normal)
    found = normals_from_depth(plane(normal, -2.0), INTRINSICS)
    np.testing.assert_allclose(found[1:-1, 1:-1], np.broadcast_to(normal, (30, 38, 3)), atol=1e-5)
    assert np.isnan(found[0]).all()


def test_normals_are_unknown_beside_holes_and_steps():
    depth = plane(np.array([0, 0, -1.0]), -2.0)
    depth[10, 10] = 0
    depth[:, 25:] = 4
    found = np.isfinite(normals_from_depth(depth, INTRINSICS)).all(-1)
    for y, x in ((10, 9), (10, 11), (9, 10), (11, 10), (10, 10), (5, 24), (5, 25)):
        assert not found[y, x]
    assert found[20, 15]
    assert found[5, 28]


def test_depth_errors_are_their_closed_forms_over_known_pixels():
    true = np.array([2.0, 4.0, 0.0, 5.0])
    errors = depth_errors(np.array([2.4, 6.0, 9.0, 5.0]), true)
    assert errors["delta1"] == pytest.approx(2 / 3)  # 1.2 and 1 are within 1.25, 1.5 is not
    assert errors["rmse"] == pytest.approx(np.sqrt((0.16 + 4) / 3))
    assert errors["abs_rel"] == pytest.approx((0.2 + 0.5) / 3)
    assert all(np.isnan(value) for value in depth_errors(np.ones(3), np.zeros(3)).values())


def test_normal_errors_agree_with_scipys_rotations():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(50, 3))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    angles = rng.uniform(0, 60, 50)
    axes = np.cross(true, rng.normal(size=(50, 3)))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turned = Rotation.from_rotvec(axes * np.radians(angles)[:, None]).apply(true)
    errors = normal_errors(turned, true)
    assert errors["mean"] == pytest.approx(angles.mean())
    assert errors["within22"] == pytest.approx((angles < 22.5).mean())
    true[:] = np.nan
    assert np.isnan(normal_errors(turned, true)["mean"])


def test_mean_iou_agrees_with_a_confusion_matrix():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(-1, 4, (3, 20, 20)), rng.integers(0, 4, (3, 20, 20))
    confusion = np.zeros((5, 5))  # class 4 never occurs and does not count
    np.add.at(confusion, (true[true >= 0], predicted[true >= 0]), 1)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    expected = (np.diag(confusion)[:4] / union[:4]).mean()
    counts = [intersection_and_union(torch.tensor(p), torch.tensor(t), 5) for p, t in zip(predicted, true, strict=True)]
    assert mean_iou(np.stack(counts)) == pytest.approx(expected)
    assert np.isnan(mean_iou(np.zeros((2, 5, 2))))


def test_neighbours_vote_by_weight_of_similarity():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    votes = torch.eye(3)
    shares = neighbours_vote(bank, votes, torch.tensor([[5.0, 0.0]]), neighbours=2, temperature=0.5)
    weight = 1 / (1 + np.exp(-2))
    assert shares[0].tolist() == pytest.approx([weight, 1 - weight, 0])


SETTINGS = [
    "encoder=[pixels/8]",
    "evaluate.size=32",
    "evaluate.figures=2",
    "evaluate.seeds=1",
    "evaluate.linear={iterations:60,batch:8,learning_rates:[1e-2,1e-1]}",
    "~evaluate.benchmarks.dataset",
]


def settings(root, layout, *more):
    benchmark = f"+evaluate.benchmarks.small={{layout:{layout},root:{root / layout},fit:stretch{''.join(more)}}}"
    return [*SETTINGS, benchmark, *paths(root)]


def numbers(root, layout, *more):
    folder = evaluate(compose(settings(root, layout, *more)))
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((folder / "figures").glob("*.png")))
    return json.loads((folder / "metrics.json").read_text())["pixels-8"]


def test_imagenets_layout(tmp_path):
    write_imagenet(tmp_path / "imagenet")
    found = numbers(tmp_path, "imagenet")
    assert found["small.classification.knn_top1"] == 1
    assert found["small.classification.linear_top1"] == 1


def test_ade20ks_layout(tmp_path):
    write_ade20k(tmp_path / "ade20k")
    found = numbers(tmp_path, "ade20k", ",classes:2")
    assert found["small.segmentation.knn_miou"] > 0.9
    assert found["small.segmentation.linear_miou"] > 0.9


def test_nyus_layout(tmp_path):
    write_nyu(tmp_path / "nyu")
    found = numbers(tmp_path, "nyu")
    assert 0.2 < found["small.depth.delta1"] <= 1
    assert 0 < found["small.depth.abs_rel"] < 1
    assert 0 < found["small.normals.mean"] < 70
    untrained = [*settings(tmp_path, "nyu"), "evaluate.linear={iterations:1,batch:8,learning_rates:[1e-9]}"]
    before = json.loads((evaluate(compose(untrained)) / "metrics.json").read_text())["pixels-8"]
    assert found["small.depth.abs_rel"] < 0.97 * before["small.depth.abs_rel"]
    (task,) = open_tasks(compose(settings(tmp_path, "nyu")))
    scenes = [{task.views.frames.scene(row) for row in images.rows} for images in task.splits.values()]
    assert all(not a & b for i, a in enumerate(scenes) for b in scenes[:i])


BROKEN = {
    "imagenet: folder": ("imagenet", "", lambda r: r.rename(r.with_name("x")), "ImageNet's layout has train/CLASS"),
    "imagenet: class": (
        "imagenet",
        "",
        lambda r: (r / "val/n00000001").rename(r / "val/other"),
        "in one only: n00000001",
    ),
    "imagenet: image": (
        "imagenet",
        "",
        lambda r: (r / "val/n00000001/1_0.JPEG").write_bytes(b"\xff\xd8\xff"),
        r"1_0\.JPEG: cut",
    ),
    "ade20k: annotation": (
        "ade20k",
        ",classes:2",
        lambda r: (r / "annotations/training/ADE_training_0003.png").unlink(),
        r"1 annotations are missing.*ADE_training_0003\.png",
    ),
    "ade20k: cut": (
        "ade20k",
        ",classes:2",
        lambda r: cut_file(r / "annotations/training/ADE_training_0003.png"),
        r"ADE_training_0003\.png: cut",
    ),
    "ade20k: label": ("ade20k", ",classes:1", lambda r: None, "labels up to 2 of 96x64 pixels; expected up to 1"),
    "nyu: depth": ("nyu", "", lambda r: (r / "test/office_0004/sync_depth_00001.png").unlink(), "sync_depth_00001"),
    "nyu: cut": ("nyu", "", lambda r: cut_file(r / "test/office_0004/sync_depth_00001.png"), "00001.png: cut"),
    "nyu: size": (
        "nyu",
        "",
        lambda r: cv2.imwrite(str(r / "test/office_0004/sync_depth_00001.png"), np.ones((48, 64), np.uint16)),
        r"sync_depth_00001\.png: depth of 64x48 pixels; expected 640x480",
    ),
    "nyu: empty": ("nyu", "", lambda r: (r / "test").rename(r / "tests"), r"nothing is .*test/SCENE/rgb_"),
}
WRITE = {"imagenet": write_imagenet, "ade20k": write_ade20k, "nyu": write_nyu}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_before_anything_is_computed(tmp_path, case):
    layout, more, spoil, message = BROKEN[case]
    WRITE[layout](tmp_path / layout)
    spoil(tmp_path / layout)
    with pytest.raises(UserError, match=message):
        evaluate(compose(settings(tmp_path, layout, more)))
    assert not (tmp_path / "features").exists()


def test_depth_and_normals_of_a_prepared_dataset(tiny_run, tiny_root, tmp_path):
    overrides = [
        *TINY,
        *paths(tiny_root),
        f"paths.evaluation={tmp_path / 'out'}",
        "evaluate.benchmarks.dataset.tasks=[depth]",
        "evaluate.linear={iterations:20,batch:4,learning_rates:[1e-2]}",
        "encoder=[run,pixels]",
    ]
    metrics = json.loads((evaluate(compose(overrides)) / "metrics.json").read_text())
    for name in ("mum", "pixels"):
        assert 0 < metrics[name]["dataset.depth.delta1"] <= 1
        assert 0 < metrics[name]["dataset.normals.mean"] < 90
        assert not any("matching" in key for key in metrics[name])
