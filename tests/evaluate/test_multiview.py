"""The multi-view task: errors of poses, and the whole on rooms."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mum_model.config import compose
from mum_model.data.geometry import relative_pose
from mum_model.errors import UserError
from mum_model.evaluate import evaluate
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.multiview import pairwise_errors
from mum_model.evaluate.scores import Scores
from mum_model.evaluate.statistics import statistic_of
from mum_model.model import MultiViewConfig, MultiViewModel, save_multiview
from mum_model.model.multiview_heads import decode_cameras
from mum_model.model.scenes import SceneLayout
from tests.conftest import TINY, paths
from tests.evaluate.layouts import PlaceEncoder
from tests.evaluate.multiview_layouts import SMALL

RNG = np.random.default_rng(0)
TURN = Rotation.from_rotvec([0.3, -0.5, 1.0]).as_matrix()


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
