"""Which views each step sees."""

import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import Purpose, StepPacks, ViewCounts, ViewSampler, generator, load_packs
from mum_model.data.scenes import SceneIndex, Sequences
from mum_model.errors import UserError

SEQUENCES = [np.arange(i * 10, i * 10 + length) for i, length in enumerate([8, 8, 5, 3])]


def sampler(sequences=SEQUENCES, **changes):
    settings = {"frames": 12, "views": (2, 4), "single_view_share": 0.0, "mix": {}, "seed": 0}
    sources = changes.pop("sources", ["rooms"] * len(sequences))
    if not isinstance(sequences, Sequences):
        rows = pa.array([rows.tolist() for rows in sequences], pa.list_(pa.int32()))
        sequences = Sequences(pa.table({"frames": rows}))
    return ViewSampler(sequences, np.array(sources), **settings | changes)


def test_a_pack_is_full_of_distinct_views_of_its_sequences():
    for step in range(50):
        scenes = sampler().draw(step, 0)
        assert sum(len(rows) for rows in scenes) == 12
        assert [len(rows) for rows in scenes] == sorted((len(rows) for rows in scenes), reverse=True)
        for rows in scenes:
            assert 2 <= len(rows) <= 4
            assert len(set(rows)) == len(rows)
            assert len({row // 10 for row in rows}) == 1


@pytest.mark.parametrize(("frames", "views"), [(32, (3, 5)), (96, (2, 24)), (128, (2, 12)), (7, (1, 3))])
def test_scenes_of_all_lengths_get_the_same_share_of_the_frames(frames, views):
    """As in the paper, where every step has one view count, drawn uniformly, and as many frames as any other."""
    counts = ViewCounts(frames, views)
    lengths = views[1] - views[0] + 1
    np.testing.assert_allclose(counts.shares, 1 / lengths, rtol=1e-3)
    rng = np.random.default_rng(0)
    drawn = [count for _ in range(1500) for count in counts.draw(rng)]
    frames_by_length = np.bincount(drawn, minlength=views[1] + 1)[views[0] :] * np.arange(views[0], views[1] + 1)
    assert frames_by_length.sum() == 1500 * frames
    np.testing.assert_allclose(frames_by_length / frames_by_length.sum(), 1 / lengths, rtol=0.1)


def test_lengths_are_drawn_from_the_distribution_that_fills_the_pack():
    """Against the definition: independent draws, kept where they happen to fill the pack."""
    counts = ViewCounts(6, (1, 3))
    rng = np.random.default_rng(0)
    ours = [tuple(counts.draw(rng)) for _ in range(8_000)]
    kept = []
    while len(kept) < 8_000:
        stops = rng.choice(counts.lengths, size=(4096, 6), p=counts._weights).cumsum(axis=1)
        for row in stops[(stops == 6).any(axis=1)]:
            lengths = np.diff(row[: row.tolist().index(6) + 1], prepend=0)
            kept.append(tuple(sorted(lengths.tolist(), reverse=True)))
    for filling in set(ours) | set(kept):
        assert ours.count(filling) / len(ours) == pytest.approx(kept.count(filling) / len(kept), abs=0.02)


def test_a_pack_is_a_function_of_seed_step_and_number():
    assert all(np.array_equal(a, b) for a, b in zip(sampler().draw(17, 1), sampler().draw(17, 1), strict=True))
    choices = itertools.product(range(3), range(20), range(2))
    draws = {np.concatenate(sampler(seed=s).draw(t, p)).tobytes() for s, t, p in choices}
    assert len(draws) == 120


def test_no_stream_of_random_numbers_is_a_copy_of_another():
    choices = itertools.product(range(2), range(2), range(2), Purpose, range(2))
    assert len({generator(*choice).random() for choice in choices}) == 2 * 2 * 2 * 3 * 2


def test_long_scenes_need_long_sequences():
    rows = [rows for step in range(30) for rows in sampler(views=(6, 8), frames=16).draw(step, 0)]
    assert {row // 10 for scene in rows for row in scene} == {0, 1}


def test_single_views_take_their_share():
    shares = [len(sampler(single_view_share=0.25).draw(step, 0)) == 12 for step in range(800)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.05)


def test_single_views_are_single_images_where_there_are_any():
    singles = [*SEQUENCES, np.array([90]), np.array([91])]
    rows = np.concatenate(sampler(singles, single_view_share=1.0).draw(0, 0))
    assert set(rows) == {90, 91}
    views = [row for step in range(20) for scene in sampler(singles).draw(step, 0) for row in scene]
    assert not {90, 91} & set(views)


def test_sources_are_mixed_by_weight_whatever_their_size():
    sources = ["large", "large", "large", "small"]
    sequences = [*SEQUENCES[:3], np.arange(30, 38)]

    def share_of_small(mix):
        draw = sampler(sequences, sources=sources, mix=mix)
        rows = [row for step in range(600) for scene in draw.draw(step, 0) for row in scene[:1]]
        return np.mean(np.array(rows) >= 30)

    assert share_of_small({}) == pytest.approx(0.5, abs=0.04)
    assert share_of_small({"small": 3}) == pytest.approx(0.75, abs=0.04)
    with pytest.raises(UserError, match=r"pretrain.mix names \['medium'\].*large.*small"):
        sampler(sequences, sources=sources, mix={"medium": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": (9, 12)}, "longest training sequence has 8"),
        ({"frames": 3, "views": (4, 5)}, "no scenes of 4 to 5 views .* fill 3 frames"),
        ({"frames": 7, "views": (4, 5)}, "fill 7 frames"),
    ],
)
def test_impossible_budgets_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        sampler(**changes)


@pytest.fixture(scope="module")
def index(tiny_dataset):
    return SceneIndex.open(tiny_dataset)


def packs(index, rank=0, world_size=1, count=8):
    sequences = index.sequences("train")
    draw = sampler(sequences, frames=6, views=(2, 4))
    shares = {"packs": count, "rank": rank, "world_size": world_size}
    return StepPacks(index, draw, Augmentation(32, 0.5, (1.0, 1.0), 0.5), **shares)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_step_is_the_same_whatever_the_number_of_ranks(index, world_size):
    whole = packs(index)
    of_ranks = [packs(index, rank, world_size) for rank in range(world_size)]
    for step in (0, 5):
        shared = [rank[position] for rank in of_ranks for position in rank.positions(range(step, step + 1))]
        assert [(pack.step, pack.number) for pack in shared] == [(step, number) for number in range(8)]
        for pack in shared:
            expected = whole[step * 8 + pack.number]
            assert pack.views == expected.views
            assert torch.equal(pack.images, expected.images)


def test_packs_that_cannot_be_shared_are_refused(index):
    with pytest.raises(UserError, match=r"8 packs a step .* cannot be shared by 3 processes"):
        packs(index, 0, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_from_the_middle_gives_the_same_packs(index, workers):
    rank = packs(index, 1, 2, count=4)
    loaded = list(load_packs(rank, range(3, 7), workers))
    assert [[pack.number for pack in step] for step in loaded] == [[2, 3]] * 4
    for step, of_step in zip(range(3, 7), loaded, strict=True):
        for pack in of_step:
            assert pack.images.shape == (6, 3, 32, 32)
            assert pack.images.dtype == torch.uint8
            assert torch.equal(pack.images, rank.make(step, pack.number).images)


def test_the_frames_of_a_pack_can_be_named(index):
    names = packs(index).names(3, 2)
    assert len(names) == 6
    assert all(name.startswith("room-0-") and "/" in name for name in names)


def test_the_memory_of_a_worker_stays(index):
    """Over 12,000 frames, after the first 3,000."""

    def own_megabytes():
        (worker,) = multiprocessing.active_children()
        lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        (anonymous,) = (line.split()[1] for line in lines if line.startswith("Anonymous:"))
        return int(anonymous) / 1024

    before = 0.0
    for number, _ in enumerate(load_packs(packs(index, count=8), range(312), workers=1)):
        if number == 62:
            before = own_megabytes()
        if number == 300:
            assert own_megabytes() < before + 3
