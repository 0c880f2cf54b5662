"""Frames drawn from a dataset on S3: `python benchmarks/streaming.py DATASET`, against an S3 server on this machine.

The packs that training draws, read by frame (ranged reads of what is drawn, through the project's cache) and by whole
shard (downloaded when a frame of it is drawn, the longest unused dropped), with a cache as large as the dataset and
with a quarter and a twentieth of that; then again warm, and from the folder. Bytes and requests over frames drawn say
what a real storage would be asked for; frames a second include decoding, and a server written in Python that shares the
cores. Disk is what the cache takes of it in the end; the bound of the project's own adds 67 MB for SQLite's log.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from moto.server import ThreadedMotoServer

from mum_model.data.batches import ViewSampler
from mum_model.data.cache import LOG_ROOM
from mum_model.data.remote import reach
from mum_model.data.scenes import SceneIndex
from mum_model.data.shards import Extent, decode_image, read_once
from mum_model.data.streaming import LocalCopies, RemoteShards

URL = "s3://bench/dataset"
FRAMES, VIEWS = 48, (2, 12)


class CountedShards(RemoteShards):
    """The project's own way, with a count of what it asks for."""

    read_bytes = requests = 0

    def _fetch(self, places: Sequence[tuple[str, Extent]]) -> list[bytes]:
        self.requests += len(places)
        self.read_bytes += sum(extent.size for _, extent in places)
        return super()._fetch(places)


class WholeShards:
    """The other way: whole shards, the longest unused dropped."""

    read_bytes = requests = 0

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self.held: OrderedDict[str, int] = OrderedDict()

    def read(self, places: Sequence[tuple[str, Extent]]) -> list[bytes]:
        """As `RemoteShards.read`."""
        return [self._read(shard, extent) for shard, extent in places]

    def _read(self, shard: str, extent: Extent) -> bytes:
        path = self.folder / shard
        if shard not in self.held:
            storage, root = reach(URL)
            storage.get_file(f"{root}/shards/{shard}", str(path))
            self.held[shard] = path.stat().st_size
            self.requests += 1
            self.read_bytes += self.held[shard]
            while sum(self.held.values()) > self.max_bytes:
                (self.folder / self.held.popitem(last=False)[0]).unlink()
        self.held.move_to_end(shard)
        return read_once(path, extent)


def serve(dataset: Path) -> ThreadedMotoServer:
    """An S3 server with the dataset in it, and the environment that leads to it."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-secret"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    client = boto3.client("s3")
    client.create_bucket(Bucket="bench")
    for path in dataset.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "bench", f"dataset/{path.relative_to(dataset)}")
    return server


def main() -> None:
    """Measure each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--packs", type=int, default=100)
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the server's line for every request
    server = serve(given.dataset)
    index = SceneIndex.open(given.dataset)
    sequences = index.sequences("train")
    sampler = ViewSampler(
        sequences, index.sources(sequences), frames=FRAMES, views=VIEWS, single_view_share=0, mix={}, seed=0
    )
    draws = [np.concatenate(sampler.draw(step, 0)).tolist() for step in range(given.packs)]
    size = sum(path.stat().st_size for path in (given.dataset / "shards").iterdir())
    print(f"# {platform.machine()}, {os.cpu_count()} cores; {len(index)} frames, {size / 1e6:.0f} MB of shards")
    print(f"# {given.packs} packs of {FRAMES} frames, {len({row for rows in draws for row in rows})} of them different")

    def measure(way: str, cache: str, shards: Any, folder: Path | None = None) -> None:
        start = time.perf_counter()
        for rows in draws:
            for content in shards.read([index.place(row) for row in rows]):
                decode_image(content)
        drawn = given.packs * FRAMES
        seconds = time.perf_counter() - start
        asked = {"kb_per_frame": getattr(shards, "read_bytes", 0) / drawn / 1e3}
        asked["requests_per_frame"] = getattr(shards, "requests", 0) / drawn
        rates = {name: round(value, 3) for name, value in asked.items()}
        disk = sum(path.stat().st_size for path in folder.iterdir()) if folder else 0
        rates |= {"frames_per_s": round(drawn / seconds), "disk_mb": round(disk / 1e6, 1)}
        print(json.dumps({"way": way, "cache": cache, **rates}), flush=True)

    measure("folder", "-", index.shards)
    for name, share in (("whole dataset", 1.1), ("a quarter", 0.25), ("a twentieth", 0.05)):
        with tempfile.TemporaryDirectory() as folder:
            copies = LocalCopies(Path(folder), LOG_ROOM + int(share * size))
            measure("frames, cold", name, CountedShards(URL, given.dataset, copies), copies.folder)
            measure("frames, warm", name, CountedShards(URL, given.dataset, copies), copies.folder)
        with tempfile.TemporaryDirectory() as folder:
            whole = WholeShards(Path(folder), int(share * size))
            measure("shards, cold", name, whole, whole.folder)
            whole.read_bytes = whole.requests = 0
            measure("shards, warm", name, whole, whole.folder)
    server.stop()


if __name__ == "__main__":
    main()
