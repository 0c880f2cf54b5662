"""The pose head: its losses against closed forms, whom it lets see whom, and that it learns what tokens say."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mum_model.config import compose
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.pose_head import PosedPairs, errors_of
from mum_model.evaluate.readers import Optimisation, train_reader
from mum_model.evaluate.views import relative_truth
from mum_model.model.two_view import TwoViewConfig, TwoViewPose, two_view_loss, two_view_pose
from tests.conftest import TINY, paths
from tests.evaluate.layouts import PlaceEncoder, painted_by_place, write_megadepth, write_scannet
from tests.evaluate.test_benchmarks import MEGADEPTH, rooted

SMALL = (
    "evaluate.pose_head={model:{dim:16,depth:1,heads:2},batch:8,"
    "optimisation:{iterations:2,learning_rates:[1e-3],weight_decay:0.05,clip:1.0}}"
)


def pose(angle, translation):
    return np.column_stack([Rotation.from_rotvec([0, angle, 0]).as_matrix(), translation])


def numbers_of(poses):
    poses = torch.tensor(np.array(poses))
    return torch.cat([poses[..., :3].flatten(-2), poses[..., 3]], dim=-1)


def test_the_loss_is_zero_at_the_truth_whatever_the_length():
    poses = [pose(0.3, [1, 2, 3]), pose(-1.0, [0, 0, 0.1])]
    said = numbers_of(poses)
    said[:, 9:] *= 7
    assert two_view_loss(said, torch.tensor(np.array(poses))).item() == pytest.approx(0, abs=1e-9)


def test_the_opposite_direction_is_the_worst():
    poses = [pose(0.3, [1, 2, 3])]
    said = numbers_of(poses)
    said[:, 9:] *= -1
    assert two_view_loss(said, torch.tensor(np.array(poses))).item() == pytest.approx(2)


def test_a_camera_that_only_turned_teaches_the_rotation_alone():
    poses = torch.tensor(np.array([pose(0.3, [0, 0, 0])]))
    said = numbers_of([pose(0.3, [1, 0, 0])]).requires_grad_()
    loss = two_view_loss(said, poses)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert said.grad[:, 9:].abs().max() == 0
    turned = two_view_loss(numbers_of([pose(0.4, [1, 0, 0])]), poses).item()
    assert turned == pytest.approx(2 * abs(math.cos(0.4) - math.cos(0.3)) + 2 * abs(math.sin(0.4) - math.sin(0.3)))


def test_what_is_said_becomes_a_rotation():
    said = numbers_of([pose(0.3, [1, 2, 3])]) * 2 + 0.01
    rotation = two_view_pose(said)[0, :, :3].numpy()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_each_view_matters_and_pairs_do_not_see_each_other():
    torch.manual_seed(0)
    head = TwoViewPose(TwoViewConfig(token_dim=6, dim=16, depth=2, heads=2)).eval()
    a, b = torch.randn(2, 3, 12, 6)
    said = head(a, b, (3, 4))
    assert said.shape == (3, 12)
    torch.testing.assert_close(head(a[:1], b[:1], (3, 4)), said[:1], rtol=1e-4, atol=1e-5)
    for changed in (head(a + 1, b, (3, 4)), head(a, b + 1, (3, 4)), head(b, a, (3, 4))):
        assert not torch.allclose(changed, said, atol=1e-4)


def test_the_default_is_the_papers_shape():
    with torch.device("meta"):
        head = TwoViewPose(TwoViewConfig(token_dim=1024))
    assert len(head.blocks) == 12
    assert (head.config.dim, head.config.heads) == (768, 12)
    with pytest.raises(UserError, match="multiple of 4"):
        TwoViewConfig(token_dim=8, dim=30, heads=4)


@pytest.mark.slow
def test_it_learns_what_the_tokens_say(tmp_path):
    """Tokens that tell the place of every patch: the poses of the training pairs are found by heart."""
    write_megadepth(tmp_path / "megadepth", paint=painted_by_place)
    (task,) = open_tasks(
        compose([*rooted(tmp_path, MEGADEPTH), "evaluate.benchmarks.megadepth.tasks=[pose_head]", SMALL])
    )
    lessons = task.lessons
    lessons.model = {"dim": 32, "depth": 1, "heads": 2}
    lessons.optimisation = Optimisation(150, [3e-3], 0.05, 1.0)
    store, encoder = FeatureStore(None, -1), PlaceEncoder()
    features = store.get(encoder, lessons.images, "patches")
    before = errors_of(lessons.learn(encoder, store, 0), features, lessons.images, lessons.train)
    assert np.median(before) < 5
    shuffled = np.random.default_rng(0).permutation(len(lessons.train.rows))
    wrong = PosedPairs(lessons.train.rows, lessons.train.poses[shuffled])
    assert np.median(errors_of(lessons.learn(encoder, store, 0), features, lessons.images, wrong)) > 10


def test_pairs_of_published_lists_can_be_judged_by_a_head(tmp_path):
    """MegaDepth trains it; ScanNet, whose list has nothing to train on, is judged by the same head."""
    write_megadepth(tmp_path / "megadepth")
    write_scannet(tmp_path / "scannet", depth=False)
    settings = [
        "evaluate=paper_pose",
        *MEGADEPTH[2:-1],
        "evaluate.benchmarks.scannet.pairs.test=[test.npz]",
        SMALL,
        "encoder=[pixels/8]",
    ]
    megadepth, scannet = open_tasks(compose(rooted(tmp_path, settings)))
    assert scannet.lessons is megadepth.lessons
    store = FeatureStore(None, -1)
    for task, pairs in ((megadepth, 16), (scannet, 6)):
        values = task.judge(PlaceEncoder(), store, 0).values["pose_head.auc5"]
        assert values.shape == (pairs,)
        assert np.isfinite(values).all()
    assert len(megadepth.lessons._learned) == 1
    pair = scannet.pairs.rows[0]
    listed = np.load(tmp_path / "scannet" / "test.npz")["rel_pose"][0].reshape(3, 4)
    np.testing.assert_allclose(scannet.pairs.poses[0], relative_truth(scannet.views, *pair, listed))


def test_without_posed_pairs_it_says_so(tiny_dataset, tmp_path):
    cfg = compose(
        [*TINY, *paths(tmp_path), f"paths.dataset={tiny_dataset}", "evaluate.benchmarks.dataset.tasks=[pose_head]"]
    )
    cfg.evaluate.pairs.train = 0
    with pytest.raises(UserError, match="no pair of known pose to train the pose head on"):
        open_tasks(cfg)


@pytest.mark.parametrize("rates", [[1e9], [1e9, 1e-3]])
def test_a_training_that_diverges_is_left_out_or_named(rates):
    class Table:
        width, table = 4, torch.randn(8, 9, 4)

        def __len__(self):
            return 8

        def __getitem__(self, rows):
            return self.table[rows]

    def loss(reader, rng):
        said = reader.network(reader.standardised(Table.table))
        return said.square().mean() * (torch.nan if reader.network.weight.abs().max() > 1e3 else 1.0)

    def train():
        settings = Optimisation(5, rates, 0.0, 1.0)
        return train_reader(
            lambda width: torch.nn.Linear(width, 2), Table(), loss, lambda reader: 0.0, settings, 0, "made"
        )

    if len(rates) == 1:
        with pytest.raises(UserError, match="made: no training converged"):
            train()
    else:
        assert train().network.weight.abs().max() < 2
