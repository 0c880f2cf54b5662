"""Rooms that are rendered for training, without a dataset."""

import itertools
import json

import numpy as np
import pytest
import torch

from mum_model.config import compose
from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, load_packs
from mum_model.data.endless import NUMBERS, EndlessRooms, RoomSampler
from mum_model.data.sources.rendered import DIFFICULTIES, rendered_scenes
from mum_model.errors import UserError
from tests.conftest import TINY, run_mum


def rooms(**changes):
    return EndlessRooms(**{"views": 6, "size": 32, "seed": 0, "difficulty": "medium"} | changes)


def sampler(split="train", **changes):
    return RoomSampler(rooms(), split, **{"frames": 8, "views": (2, 4), "single_view_share": 0.0, "seed": 0} | changes)


def packs(rank=0, world_size=1):
    return StepPacks(
        rooms(), sampler(), Augmentation(24, 0.5, (1.0, 1.0), 0.5), packs=4, rank=rank, world_size=world_size
    )


def test_a_scene_is_distinct_views_of_one_room_and_no_room_comes_again():
    seen = []
    for step, split in itertools.product(range(200), NUMBERS):
        scenes = sampler(split).draw(step, 0)
        assert sum(map(len, scenes)) == 8
        for rows in scenes:
            assert 2 <= len(set(rows.tolist())) == len(rows) <= 4
            (number,) = {row // 6 for row in rows.tolist()}
            assert NUMBERS[split][0] <= number < NUMBERS[split][1]
            seen.append(number)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_is_the_same_whatever_the_number_of_ranks(world_size):
    whole = [packs().make(3, number) for number in range(4)]
    of_ranks = [packs(rank, world_size) for rank in range(world_size)]
    shared = [rank[position] for rank in of_ranks for position in rank.positions(range(3, 4))]
    assert [pack.number for pack in shared] == [0, 1, 2, 3]
    for pack in shared:
        assert torch.equal(pack.images, whole[pack.number].images)
        assert pack.views == whole[pack.number].views


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_from_the_middle_gives_the_same_packs(workers):
    for step, loaded in zip(range(5, 7), load_packs(packs(1, 2), range(5, 7), workers), strict=True):
        for pack in loaded:
            assert torch.equal(pack.images, packs().make(step, pack.number).images)


def test_views_are_those_that_prepare_renders():
    (scene,) = rendered_scenes(1, 6, 32, 0)
    capture = scene.capture()
    for view, image in enumerate(rooms().images(range(6))):
        assert np.array_equal(image, capture.load(f"{view:04d}").image)


def test_levels_differ():
    assert len({rooms(difficulty=level).images([7])[0].tobytes() for level in DIFFICULTIES}) == 3
    assert len({rooms(difficulty=level).content_sha256 for level in DIFFICULTIES}) == 3
    with pytest.raises(UserError, match="expected one of easy, medium, hard"):
        EndlessRooms.of(compose(["data.rendered.difficulty=brutal"]).data.rendered)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"views": (2, 7)}, "a rendered room has 6 views"), ({"frames": 3, "views": (2, 2)}, "fill 3 frames")],
)
def test_impossible_packs_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        sampler(**changes)


def test_training_needs_no_dataset(tmp_path):
    run_mum("pretrain", *TINY, "paths.dataset=rendered", f"paths.run={tmp_path / 'run'}")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()
