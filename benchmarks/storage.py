"""Storage libraries on the access pattern of training: n random frames of one sequence, read from a local disk.

`python benchmarks/storage.py [LIBRARY ...]`, with the libraries to compare installed beside this project
(`pip install mosaicml-streaming webdataset litdata pylance`); a library that is not there is passed over. The same
random bytes, of the size of a stored JPEG, are packed by each library's own writer, a shard a scene where it lets us.
Reading gives bytes, nothing is decoded. Every library reads the same draws; the page cache is warm for all.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mum_model.data.shards import Extent, ShardWriter, read_extent

SCENES, FRAMES, SIZE = 40, 100, 30_000
DRAWS = 400
VIEWS = (2, 24)

Reader = Callable[[int, list[int]], list[bytes]]
"""Frames of a scene by their numbers."""


def scene_frames(scene: int) -> list[bytes]:
    """The made frames of a scene."""
    rng = np.random.default_rng(scene)
    return [rng.bytes(SIZE) for _ in range(FRAMES)]


def tar(folder: Path) -> Reader:
    """This project: a tar a scene, offsets in the index, one positioned read a frame."""
    extents: list[list[Extent]] = []
    for scene in range(SCENES):
        writer = ShardWriter(folder / f"{scene}.tar")
        extents.append([writer.add(f"{i}.jpg", content) for i, content in enumerate(scene_frames(scene))])
        writer.close()
    return lambda scene, frames: [read_extent(folder / f"{scene}.tar", extents[scene][i]) for i in frames]


def mosaic(folder: Path) -> Reader:
    """mosaicml-streaming: MDS shards of a scene each, random access by sample number."""
    from streaming import MDSWriter, StreamingDataset

    import mum_model.model  # noqa: F401  (torchvision, which it imports, needs this on CPU builds of torch)

    with MDSWriter(out=str(folder), columns={"frame": "bytes"}, size_limit=FRAMES * (SIZE + 40) + 4096) as writer:
        for scene in range(SCENES):
            for content in scene_frames(scene):
                writer.write({"frame": content})
    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return lambda scene, frames: [dataset[scene * FRAMES + i]["frame"] for i in frames]


def webdataset(folder: Path) -> Reader:
    """WebDataset: a tar a scene; it reads front to back, so a draw walks through its scene's shard."""
    import webdataset as wds

    for scene in range(SCENES):
        with wds.TarWriter(str(folder / f"{scene}.tar")) as writer:
            for i, content in enumerate(scene_frames(scene)):
                writer.write({"__key__": f"{i:04d}", "jpg": content})

    def read(scene: int, frames: list[int]) -> list[bytes]:
        wanted = {f"{i:04d}" for i in frames}
        samples = wds.WebDataset(str(folder / f"{scene}.tar"), shardshuffle=False)
        found = {sample["__key__"]: sample["jpg"] for sample in samples if sample["__key__"] in wanted}
        return [found[f"{i:04d}"] for i in frames]

    return read


def litdata(folder: Path) -> Reader:
    """LitData: chunks of a scene each, random access by sample number."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=FRAMES)
    for scene in range(SCENES):
        for i, content in enumerate(scene_frames(scene)):
            writer.add_item(scene * FRAMES + i, {"frame": content})
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(folder), shuffle=False)
    return lambda scene, frames: [dataset[scene * FRAMES + i]["frame"] for i in frames]


def lance(folder: Path) -> Reader:
    """Lance: one table of all frames, `take` by row number."""
    import lance as library
    import pyarrow as pa

    schema = pa.schema([("frame", pa.large_binary())])
    batches = (pa.record_batch([pa.array(scene_frames(scene), pa.large_binary())], schema) for scene in range(SCENES))
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    dataset = library.write_dataset(reader, str(folder / "frames.lance"))
    return lambda scene, frames: dataset.take([scene * FRAMES + i for i in frames])["frame"].to_pylist()


LIBRARIES = {
    "tar": (tar, "mum-pipeline"),
    "mosaicml-streaming": (mosaic, "mosaicml-streaming"),
    "webdataset": (webdataset, "webdataset"),
    "litdata": (litdata, "litdata"),
    "lance": (lance, "pylance"),
}


def draws() -> list[tuple[int, list[int]]]:
    """Scenes and frames as training draws them."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        views = int(rng.integers(VIEWS[0], VIEWS[1] + 1))
        found.append((int(rng.integers(SCENES)), rng.choice(FRAMES, views, replace=False).tolist()))
    return found


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Frames a second of the best of several passes, the size on disk, and whether every byte came back."""
    pack, package = LIBRARIES[name]
    with tempfile.TemporaryDirectory() as folder:
        read = pack(Path(folder))
        scene, frames = draws()[0]
        expected = scene_frames(scene)
        assert read(scene, frames) == [expected[i] for i in frames]
        passes = []
        for _ in range(repeats):
            start = time.perf_counter()
            count = sum(len(read(scene, frames)) for scene, frames in draws())
            passes.append(count / (time.perf_counter() - start))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "library": name,
        "version": importlib.metadata.version(package),
        "frames_per_s": round(max(passes)),
        "worst_pass": round(min(passes)),
        "bytes_over_content": round(size / (SCENES * FRAMES * SIZE), 4),
    }


def main() -> None:
    """Measure each library that is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=list(LIBRARIES), metavar="LIBRARY")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"# {platform.machine()}, {os.cpu_count()} cores, {SCENES * FRAMES} frames of {SIZE} B")
    for name in chosen.libraries:
        try:
            print(json.dumps(measure(name, chosen.repeats)), flush=True)
        except ImportError as error:
            print(f"# {name}: not installed ({error})")


if __name__ == "__main__":
    main()
