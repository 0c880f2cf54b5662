"""Which views each step sees."""

import itertools

import numpy as np
import pytest
import torch

from mum_model.data.batches import Augmentation, StepBatches, ViewSampler, step_loader
from mum_model.data.scenes import SceneIndex
from mum_model.errors import UserError

SEQUENCES = [np.arange(i * 10, i * 10 + length) for i, length in enumerate([8, 8, 5, 3])]


def sampler(**changes):
    settings = {"frames": 12, "views": (2, 4), "single_view_share": 0.0, "seed": 0} | changes
    return ViewSampler(SEQUENCES, **settings)


def test_a_step_fills_the_budget_with_distinct_views_of_one_sequence():
    for step in range(50):
        rows = sampler().draw(step)
        assert rows.shape[0] == 12 // rows.shape[1]
        for scene in rows:
            assert len(set(scene)) == len(scene)
            assert len({row // 10 for row in scene}) == 1


def test_view_counts_are_uniform():
    counts = np.bincount([sampler().draw(step).shape[1] for step in range(900)])
    assert counts[:2].sum() == 0
    assert np.abs(counts[2:] / 900 - 1 / 3).max() < 0.05


def test_a_step_is_a_function_of_seed_and_step():
    assert np.array_equal(sampler().draw(17), sampler().draw(17))
    draws = {sampler(seed=s).draw(t).tobytes() for s, t in itertools.product(range(3), range(20))}
    assert len(draws) == 60


def test_long_scenes_need_long_sequences():
    rows = [sampler(views=(6, 8), frames=16).draw(step) for step in range(30)]
    assert {row // 10 for draw in rows for row in draw.ravel()} == {0, 1}


def test_single_views_take_their_share():
    shares = [sampler(single_view_share=0.25).draw(step).shape == (12, 1) for step in range(800)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"), [({"views": (9, 12)}, "longest training sequence has 8"), ({"frames": 3}, "one scene of 4")]
)
def test_impossible_budgets_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        sampler(**changes)


@pytest.fixture(scope="module")
def index(tiny_dataset):
    return SceneIndex.open(tiny_dataset)


def batches(index, rank=0, world_size=1):
    draw = ViewSampler(index.sequences("train"), frames=8, views=(2, 2), single_view_share=0.0, seed=0)
    return StepBatches(index, draw, Augmentation(32, 0.5, 0.5), rank, world_size)


def test_ranks_share_what_one_process_sees(index):
    whole = batches(index)[5]
    assert whole.shape == (4, 2, 3, 32, 32)
    assert whole.dtype == torch.uint8
    assert torch.equal(torch.cat([batches(index, rank, 2)[5] for rank in range(2)]), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_from_the_middle_gives_the_same_batches(index, workers):
    loaded = list(step_loader(batches(index), range(3, 7), workers))
    assert len(loaded) == 4
    for step, batch in zip(range(3, 7), loaded, strict=True):
        assert torch.equal(batch, batches(index)[step])


def test_whole_square_without_crop_or_flip():
    image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    view = Augmentation(40, crop_scale=1.0, flip=0.0)(image, np.random.default_rng(0))
    assert view.shape == (40, 40, 3)
    assert any(np.array_equal(view, image[:, left : left + 40]) for left in range(21))
    flipped = Augmentation(40, crop_scale=1.0, flip=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(flipped, view[:, ::-1])


def test_crops_keep_at_least_their_share():
    ramp = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (100, 1, 3))
    widths = [np.ptp(Augmentation(100, 0.25, 0.0)(ramp, np.random.default_rng(i))[0, :, 0]) for i in range(60)]
    assert min(widths) >= 48
    assert max(widths) > 85
