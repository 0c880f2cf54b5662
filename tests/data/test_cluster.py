"""Preparation over a Dask cluster of two workers: the same code path, the same dataset."""

import json

import pytest
from distributed import LocalCluster, get_task_stream

from mum_model.errors import UserError
from tests.data.test_prepare import prepared, rooms_of_photos, state


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


def test_two_workers_give_the_dataset_of_one_process(cluster, tmp_path):
    source = rooms_of_photos(tmp_path, "abcdefgh")
    (tmp_path / "captures" / "a" / "broken.jpg").write_bytes(b"")
    alone = prepared(tmp_path / "alone", source)
    together = prepared(tmp_path / "together", source, f"machine.cluster={cluster.scheduler_address}")
    assert state(together) == state(alone)
    assert json.loads((together / "dataset.json").read_text())["frames"] == 32


def test_both_workers_take_part(cluster, tmp_path):
    source = rooms_of_photos(tmp_path, "abcdefghijklmnop", frames=12)
    with cluster.get_client() as client, get_task_stream(client) as stream:
        prepared(tmp_path, source, f"machine.cluster={cluster.scheduler_address}")
    done = [task["worker"] for task in stream.data if "write_scene" in task["key"]]
    assert len(done) == 16
    assert len(set(done)) == 2


def test_no_scheduler_is_said(tmp_path):
    source = rooms_of_photos(tmp_path)
    with pytest.raises(UserError, match=r"machine\.cluster=tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        prepared(tmp_path, source, "machine.cluster=tcp://127.0.0.1:9")
