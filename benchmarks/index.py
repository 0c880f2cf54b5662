"""What the index costs as it grows: `python benchmarks/index.py 10_000 1_000_000 20_000_000`.

Writes a made index of each size with the project's own writer, then opens it in fresh processes and draws sequences and
rows at random, as training does. A process' own memory is what it adds to the machine's (anonymous pages); the pages of
the files are the page cache's, one copy for all processes, and given back when memory is short.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from mum_model.data.scenes import FRAME_SCHEMA, SEQUENCE_SCHEMA, SPLITS, SceneIndex, Sequences
from mum_model.prepare.tables import BATCH, Names, Table

FRAMES_OF_SCENE = 300
FRAMES_OF_SEQUENCE = 100
DRAWS = 1000


def write(folder: Path, rows: int) -> None:
    """A dataset without pixels: `rows` frames in scenes of 300, sequences of 100, poses and depth for all."""
    scenes = -(-rows // FRAMES_OF_SCENE)
    shards = Names([f"made-scene{scene:07d}.tar" for scene in range(scenes)])
    names = Names([f"scene{scene:07d}" for scene in range(scenes)])
    source, split = Names(["made"]), Names(SPLITS)
    rng = np.random.default_rng(0)
    with Table(folder / "index.arrow", FRAME_SCHEMA) as index:
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            scene = pa.array(((start + np.arange(count)) // FRAMES_OF_SCENE).astype(np.int32))
            offsets = pa.array((start + np.arange(count, dtype=np.int64)) % FRAMES_OF_SCENE * 100_000)
            index.add(
                [
                    source.repeated("made", count),
                    pa.DictionaryArray.from_arrays(scene, names.dictionary),
                    split.repeated("train", count),
                    pa.DictionaryArray.from_arrays(scene, shards.dictionary),
                    pa.array([f"{i:06d}.jpg" for i in range(count)]),
                    offsets,
                    pa.array(np.full(count, 50_000, np.int32)),
                    offsets,
                    pa.array(np.full(count, 50_000, np.int32)),
                    pa.array(np.full(count, 340, np.int32)),
                    pa.array(np.full(count, 256, np.int32)),
                    pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=count * 9)), 9),
                    pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=count * 12)), 12),
                    pa.array(rng.integers(2**63, size=count, dtype=np.uint64)),
                ]
            )
    for name in SPLITS:
        with Table(folder / f"sequences-{name}.arrow", SEQUENCE_SCHEMA) as sequences:
            for values in _sequences(rows) if name == "train" else ():
                cuts = pa.array(np.arange(0, len(values) + 1, FRAMES_OF_SEQUENCE, dtype=np.int32))
                sequences.add([pa.ListArray.from_arrays(cuts, pa.array(values))])
    (folder / "dataset.json").write_text("{}")


def _sequences(rows: int) -> Iterator[np.ndarray]:
    step = BATCH * FRAMES_OF_SEQUENCE
    whole = rows // FRAMES_OF_SEQUENCE * FRAMES_OF_SEQUENCE
    for start in range(0, whole, step):
        yield np.arange(start, min(start + step, whole), dtype=np.int32)


def measure(folder: Path) -> dict[str, float]:
    """Open the index, draw 1000 sequences and read a row of each; seconds and MB."""
    before = _memory()
    start = time.perf_counter()
    index = SceneIndex.open(folder)
    sequences = index.sequences("train")
    opened = time.perf_counter() - start
    rng = np.random.default_rng(1)
    _draw(index, sequences, rng, 1)  # pyarrow imports pandas at the first value
    start = time.perf_counter()
    _draw(index, sequences, rng, DRAWS)
    drawn = (time.perf_counter() - start) / DRAWS
    own, resident = (now - then for now, then in zip(_memory(), before, strict=True))
    return {"open_s": opened, "row_us": 1e6 * drawn, "own_mb": own, "mapped_mb": resident - own}


def _draw(index: SceneIndex, sequences: Sequences, rng: np.random.Generator, count: int) -> None:
    for position in rng.integers(len(sequences), size=count):
        row = int(rng.choice(sequences[position]))
        index.world2cam(row), index.intrinsics(row), index.place(row)


def _memory() -> tuple[float, float]:
    """Anonymous and resident memory of this process in MB."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {words[0]: int(words[1]) for words in lines}
    return kilobytes["Anonymous:"] / 1024, kilobytes["Rss:"] / 1024


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2, help="processes that open the index at once")
    chosen = parser.parse_args()
    print(f"# python {sys.version.split()[0]}, pyarrow {pa.__version__}, {chosen.workers} processes at once")
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.perf_counter()
            write(folder, rows)
            written = time.perf_counter() - start
            size = sum(path.stat().st_size for path in folder.iterdir())
            with multiprocessing.get_context("spawn").Pool(chosen.workers) as pool:
                found = pool.map(measure, [folder] * chosen.workers, chunksize=1)
            worst = {key: round(max(each[key] for each in found), 4) for key in found[0]}
            print(json.dumps({"rows": rows, "bytes_per_row": size / rows, "written_s": round(written, 1), **worst}))


if __name__ == "__main__":
    main()
