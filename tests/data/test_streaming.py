"""A dataset behind a URL is the dataset of the folder; its cache keeps its bound, and failures say what to do."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from moto.core import set_initial_no_auth_action_count
from s3fs import S3FileSystem

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, load_packs
from mum_model.data.cache import LOG_ROOM, Cache
from mum_model.data.scenes import SceneIndex, open_dataset
from mum_model.data.streaming import LocalCopies
from mum_model.errors import UserError
from tests.conftest import TINY, run_mum
from tests.data.test_batches import sampler

MB = 2**20


@pytest.fixture(scope="module")
def bucket(s3, tiny_dataset):
    """The tiny dataset, copied to S3 as any tool would; a function that deletes its shards or brings them back."""

    def copy(prefix="dataset", dataset=tiny_dataset):
        for path in dataset.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), "lab", f"{prefix}/{path.relative_to(dataset)}")

    copy()
    yield copy
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def copies(tmp_path):
    S3FileSystem.clear_instance_cache()
    return LocalCopies(tmp_path / "cache", 2 * LOG_ROOM)


@pytest.fixture
def remote(bucket, copies):
    return open_dataset("s3://lab/dataset", copies)


def packs(index):
    draw = sampler(index.sequences("train"), frames=6, views=(2, 4))
    return StepPacks(index, draw, Augmentation(32, 0.5, (1.0, 1.0), 0.5), packs=2)


def assert_same(a, b):
    assert a.frames.equals(b.frames)
    assert a.card == b.card
    for row in range(len(a)):
        assert np.array_equal(a.image(row), b.image(row))
    assert np.array_equal(a.camera(3).depth, b.camera(3).depth)
    for split in ("train", "val", "test"):
        assert all(np.array_equal(x, y) for x, y in zip(a.sequences(split), b.sequences(split), strict=True))
        assert all(
            np.array_equal(x, y) for x, y in zip(a.covisible_pairs(split), b.covisible_pairs(split), strict=True)
        )


def test_is_the_dataset_of_the_folder(remote, tiny_dataset):
    assert_same(SceneIndex.open(tiny_dataset), remote)


def test_what_was_read_once_needs_the_storage_no_more(remote, copies, s3, bucket, tiny_dataset):
    wanted = list(range(0, len(remote), 3))
    expected = remote.images(wanted)
    shards = [f"dataset/shards/{path.name}" for path in (tiny_dataset / "shards").iterdir()]
    s3.delete_objects(Bucket="lab", Delete={"Objects": [{"Key": key} for key in shards]})
    try:
        again = open_dataset("s3://lab/dataset", copies)
        assert all(np.array_equal(a, b) for a, b in zip(expected, again.images(wanted), strict=True))
        with pytest.raises(UserError, match=r"^s3://lab/dataset/shards/rendered-room-0-00000.tar: .*upload it again"):
            again.image(1)
    finally:
        bucket()


@pytest.mark.parametrize("workers", [0, 2])
def test_forked_workers_load_the_same_packs(remote, tiny_dataset, workers):
    remote.image(0)  # the training process has read, and holds connections, before it forks
    here, there = packs(SceneIndex.open(tiny_dataset)), packs(remote)
    for a, b in zip(load_packs(here, range(4), 0), load_packs(there, range(4), workers), strict=True):
        assert all(torch.equal(x.images, y.images) for x, y in zip(a, b, strict=True))


def test_what_a_worker_cannot_read_ends_in_one_line(remote, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError) as raised:
        list(load_packs(packs(remote), range(1), 2))
    assert str(raised.value).startswith("s3://lab/dataset/shards/")
    assert "check the network and the endpoint, then run again" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://lab/nothing", r"s3://lab/nothing/dataset.json: .*check the URL"),
        ("s3://no-such-bucket/x", r"s3://no-such-bucket/x/dataset.json: .*check the URL"),
        ("carrier-pigeon://a/b", r"carrier-pigeon://a/b: .*check the URL"),
    ],
)
def test_wrong_url_is_named(bucket, copies, url, said):
    with pytest.raises(UserError, match=said):
        open_dataset(url, copies)


def test_refused_access_is_named(bucket, copies):
    opened = set_initial_no_auth_action_count(0)(open_dataset)  # the server checks keys while it runs
    with pytest.raises(UserError, match=r"s3://lab/dataset/dataset.json: .*check the credentials") as raised:
        opened("s3://lab/dataset", copies)
    assert "a-secret-of-the-test" not in str(raised.value)


def test_tables_are_copied_once_and_again_when_they_change(s3, bucket, copies, tiny_dataset, tmp_path):
    first = open_dataset("s3://lab/dataset", copies).directory
    state = (first / "index.arrow").stat()
    second = open_dataset("s3://lab/dataset", copies).directory
    assert (second / "index.arrow").stat().st_ino == state.st_ino
    changed = tmp_path / "dataset"
    shutil.copytree(tiny_dataset, changed)
    card = json.loads((changed / "dataset.json").read_text())
    (changed / "dataset.json").write_text(json.dumps(card | {"content_sha256": "another"}))
    bucket(dataset=changed)
    try:
        assert open_dataset("s3://lab/dataset", copies).card["content_sha256"] == "another"
    finally:
        bucket()


def test_tables_of_another_dataset_are_refused(s3, bucket, copies):
    bucket(prefix="torn")
    s3.put_object(Bucket="lab", Key="torn/index.arrow", Body=b"of another time")
    with pytest.raises(UserError, match=r"s3://lab/torn/index.arrow: is not the table that dataset.json"):
        open_dataset("s3://lab/torn", copies)
    bucket(prefix="torn")
    assert len(open_dataset("s3://lab/torn", copies)) > 0


def test_shard_that_was_cut_is_named(s3, bucket, copies):
    bucket(prefix="cut")
    s3.put_object(Bucket="lab", Key="cut/shards/rendered-room-0-00000.tar", Body=bytes(2000))
    with pytest.raises(UserError, match=r"s3://lab/cut/shards/rendered-room-0-00000.tar: "):
        open_dataset("s3://lab/cut", copies).image(0)


@pytest.mark.slow
def test_stages_read_from_s3_as_from_the_folder(bucket, tiny_dataset, tiny_run, tmp_path):
    """Training and evaluation through the command, two decoding processes among them."""
    settings = [f"paths.{name}={tmp_path / name}" for name in ("run", "evaluation", "features", "cache")]
    settings += [*TINY, "paths.dataset=s3://lab/dataset", "encoder=[run]", "machine.cache_gb=0.2"]
    run_mum("pretrain", *settings, "machine.loader_workers=2")
    run_mum("evaluate", *settings)
    assert "No test frame is among the" in (tmp_path / "evaluation" / "report.md").read_text()
    here, there = (
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tiny_run, tmp_path / "run")
    )
    assert here == there
    assert len(here) == 6


def test_google_cloud_storage(tiny_dataset, copies, monkeypatch):
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="lab")
    server.start()
    try:
        port = server._api._httpd.server_address[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        client = storage.Client(project="test", credentials=AnonymousCredentials())
        for path in tiny_dataset.rglob("*"):
            if path.is_file():
                client.bucket("lab").blob(f"d/{path.relative_to(tiny_dataset)}").upload_from_filename(str(path))
        assert_same(SceneIndex.open(tiny_dataset), open_dataset("gs://lab/d", copies))
        with pytest.raises(UserError, match=r"gs://lab/nothing/dataset.json: .*check the URL"):
            open_dataset("gs://lab/nothing", copies)
    finally:
        server.stop()


def entry(number):
    """A name and a content that can be told to be whole."""
    rng = random.Random(number)
    return f"entry-{number}", rng.randbytes(rng.randint(20_000, 60_000))


def fill(path, max_bytes, numbers, ready):
    cache = Cache(path, max_bytes)
    ready.set()
    for start in range(0, len(numbers), 5):
        cache.put(dict(entry(number) for number in numbers[start : start + 5]))


def started(path, max_bytes, numbers):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=fill, args=(path, max_bytes, numbers, ready))
    process.start()
    assert ready.wait(30)
    return process


def taken(path):
    return sum(os.stat(file).st_size for file in path.parent.glob(f"{path.name}*"))  # noqa: PTH116


def assert_whole(path, max_bytes, numbers):
    cache = Cache(path, max_bytes)
    found = {name: content for number in numbers for name, content in cache.get([f"entry-{number}"]).items()}
    assert all(dict([entry(int(name.removeprefix("entry-")))])[name] == content for name, content in found.items())
    return len(found)


def test_cache_keeps_its_bound_with_several_writers(tmp_path):
    path, max_bytes = tmp_path / "frames.sqlite", LOG_ROOM + 8 * MB
    numbers = [range(start, start + 500) for start in (0, 400, 800)]  # some by two of them; 50 MB in all
    writers = [started(path, max_bytes, part) for part in numbers]
    while any(writer.is_alive() for writer in writers):
        assert taken(path) <= max_bytes
        time.sleep(0.02)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert path.stat().st_size <= 8 * MB
    assert 60 < assert_whole(path, max_bytes, range(1300)) < 250


def test_a_killed_writer_leaves_whole_entries_and_no_lock(tmp_path):
    path, max_bytes = tmp_path / "frames.sqlite", LOG_ROOM + 8 * MB
    for attempt in range(8):
        writer = started(path, max_bytes, range(attempt * 1000, attempt * 1000 + 1000))
        time.sleep(0.02 + 0.03 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert_whole(path, max_bytes, range(attempt * 1000, attempt * 1000 + 200))
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert path.stat().st_size <= 8 * MB


def test_damaged_cache_is_named(tmp_path):
    path = tmp_path / "frames.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"frames.sqlite: this cache cannot be used .* delete it"):
        Cache(path, LOG_ROOM + MB).get(["a"])


def test_full_disk_keeps_nothing_and_is_warned_of_once(tmp_path, caplog):
    resource = pytest.importorskip("resource")
    cache = Cache(tmp_path / "frames.sqlite", 2 * LOG_ROOM)
    cache.put({"a": bytes(1000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, before[1]))  # files cannot grow: what a full disk does
    try:
        for name in "bcd":
            cache.put({name: bytes(MB)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert cache.get(list("abcd")) == {"a": bytes(1000)}
    assert len([record for record in caplog.records if "not kept" in record.getMessage()]) == 1


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path):
    cache = Cache(tmp_path / "frames.sqlite", LOG_ROOM + MB)
    cache.put({"a": bytes(1000)})
    cache.put({"b": bytes(2 * MB)})
    assert "b" not in cache.get(["a", "b"])
    assert Path(tmp_path / "frames.sqlite").stat().st_size <= MB
