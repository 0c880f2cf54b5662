"""Processes that work side by side compute on one thread each."""

import numpy as np
import pytest
from omegaconf import OmegaConf
from threadpoolctl import threadpool_info, threadpool_limits

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, load_packs
from mum_model.prepare.executors import over_processes
from tests.data.test_batches import sampler


def threads(_):
    """The most threads that any library of this process computes on."""
    return max(library["num_threads"] for library in threadpool_info())


class Told:
    """Frames whose every value is the number of threads of the process that reads them."""

    def images(self, rows):
        return [np.full((8, 8, 3), threads(row), np.uint8) for row in rows]


@pytest.fixture(autouse=True)
def two_threads():
    with threadpool_limits(2):
        assert threads(None) == 2
        yield


@pytest.mark.parametrize("workers", [1, 2])
def test_preparing(workers):
    machine = OmegaConf.create({"cluster": None, "workers": workers})
    assert [found for _, found in over_processes(threads, [0, 1, 2], machine)] == [1, 1, 1]
    assert threads(None) == 2


def test_loading():
    packs = StepPacks(Told(), sampler(), Augmentation(8, 1, (1, 1), 0), packs=1)
    (step,) = load_packs(packs, range(1), workers=1)
    assert step[0].images.unique().tolist() == [1]
