"""The tables of a dataset, put together from its shards a batch at a time, however many frames there are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mum_model.data.captures import SequenceRule
from mum_model.data.scenes import COVISIBILITY_SCHEMA, FRAME_FIELDS, FRAME_SCHEMA, SCENE_SCHEMA, SEQUENCE_SCHEMA, SPLITS
from mum_model.data.sequences import build_sequences
from mum_model.prepare.splits import Splits
from mum_model.prepare.work import SceneRecord, WrittenScene, read_record

BATCH = 2**16
"""Rows of a record batch: few batches for a fast opening, small enough to be put together in memory."""

MEASURES = ("stated", "points", "depth", "frustum", "time")
OVERLAP_BINS = 10


class Table:
    """An Arrow IPC file that grows by pieces and is written in batches of about `BATCH` rows."""

    def __init__(self, path: Path, schema: pa.Schema):
        """Begin the file.

        Args:
            path: The file.
            schema: Its columns.
        """
        self._schema, self._rows = schema, 0
        self._pieces: list[pa.Table] = []
        self._writer = pa.ipc.new_file(str(path), schema)

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *failure: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, columns: Sequence[pa.Array]) -> None:
        """Append rows, given as the columns of the schema."""
        self._pieces.append(pa.table(list(columns), schema=self._schema))
        self._rows += self._pieces[-1].num_rows
        if self._rows >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._pieces).combine_chunks())
        self._pieces, self._rows = [], 0


class Names:
    """A dictionary of names that all batches of a table share."""

    def __init__(self, names: Sequence[str]):
        """Number the names in order of first appearance."""
        unique = list(dict.fromkeys(names))
        self.dictionary = pa.array(unique, pa.string())
        self._number = {name: number for number, name in enumerate(unique)}

    def column(self, names: Sequence[str]) -> pa.DictionaryArray:
        """A column of these names."""
        numbers = pa.array([self._number[name] for name in names], pa.int32())
        return pa.DictionaryArray.from_arrays(numbers, self.dictionary)

    def repeated(self, name: str, count: int) -> pa.DictionaryArray:
        """A column of one name."""
        numbers = pa.array(np.full(count, self._number[name], np.int32))
        return pa.DictionaryArray.from_arrays(numbers, self.dictionary)


def fingerprints(shards: Path, scenes: Sequence[WrittenScene]) -> tuple[np.ndarray, np.ndarray]:
    """The perceptual fingerprint of every frame, uint64, and the number of its scene, int32."""
    found = [read_record(shards, scene).frames["fingerprint"].to_numpy() for scene in scenes]
    numbers = np.repeat(np.arange(len(scenes), dtype=np.int32), [scene.frames for scene in scenes])
    return np.concatenate(found), numbers


def write_tables(
    folder: Path, scenes: Sequence[WrittenScene], splits: Splits, rule: SequenceRule | None, default_rule: SequenceRule
) -> dict[str, Any]:
    """Write index, co-visibility, sequences and scenes.

    Args:
        folder: The dataset folder; its shards are written already.
        scenes: What is in them.
        splits: Of their frames.
        rule: How sequences are formed in every scene; None asks the scenes.
        default_rule: How they are formed in scenes that have no rule of their own.

    Returns:
        Counts for the card.
    """
    names = {
        "source": Names([scene.source for scene in scenes]),
        "scene": Names([scene.scene for scene in scenes]),
        "split": Names(SPLITS),
        "shard": Names([scene.shard for scene in scenes]),
        "measure": Names(MEASURES),
    }
    counts = _Counts()
    with ExitStack() as files:
        index = files.enter_context(Table(folder / "index.arrow", FRAME_SCHEMA))
        pairs = files.enter_context(Table(folder / "covisibility.arrow", COVISIBILITY_SCHEMA))
        of_scenes = files.enter_context(Table(folder / "scenes.arrow", SCENE_SCHEMA))
        sequences = {
            split: files.enter_context(Table(folder / f"sequences-{split}.arrow", SEQUENCE_SCHEMA)) for split in SPLITS
        }
        start = 0
        for scene, of_frames in zip(scenes, splits.of_frames, strict=True):
            record = read_record(folder / "shards", scene)
            index.add(_index_columns(scene, record, of_frames, names))
            pairs.add(_pair_columns(record, start, names))
            of_scenes.add(_scene_columns(scene, of_frames))
            found: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
            for split, rows in _sequences(scene, record, of_frames, rule, default_rule):
                found[split].append(rows + np.int32(start))
            for split, rows_of in found.items():
                sequences[split].add([pa.array(rows_of, pa.list_(pa.int32()))])
                counts.lengths[split].update(map(len, rows_of))
            counts.scene(scene, record, of_frames)
            start += scene.frames
    return counts.card()


def _index_columns(
    scene: WrittenScene, record: SceneRecord, of_frames: list[str], names: dict[str, Names]
) -> list[pa.Array]:
    return [
        names["source"].repeated(scene.source, scene.frames),
        names["scene"].repeated(scene.scene, scene.frames),
        names["split"].column(of_frames),
        names["shard"].repeated(scene.shard, scene.frames),
        *(record.frames[name].combine_chunks() for name, _ in FRAME_FIELDS),
    ]


def _pair_columns(record: SceneRecord, start: int, names: dict[str, Names]) -> list[pa.Array]:
    pairs = record.pairs
    measure = names["measure"].repeated(pairs.measure, len(pairs.a))
    return [
        pa.array(pairs.a + np.int32(start)),
        pa.array(pairs.b + np.int32(start)),
        pa.array(pairs.overlap),
        pa.array(pairs.angle),
        measure,
    ]


def _scene_columns(scene: WrittenScene, of_frames: list[str]) -> list[pa.Array]:
    row = {
        "source": scene.source,
        "scene": scene.scene,
        "shard": scene.shard,
        "frames": scene.frames,
        "splits": list(dict.fromkeys(of_frames)),
        "sha256": scene.sha256,
    }
    return pa.Table.from_pylist([row], schema=SCENE_SCHEMA).combine_chunks().columns


def _sequences(
    scene: WrittenScene, record: SceneRecord, of_frames: list[str], rule: SequenceRule | None, default: SequenceRule
) -> Iterator[tuple[str, np.ndarray]]:
    """By the asked rule, else those that the dataset lists, else by its rule, else by the default."""
    if rule is None and record.sequences:
        for sequence in record.sequences:
            for split in dict.fromkeys(of_frames):
                inside = sequence[[of_frames[position] == split for position in sequence]]
                if len(inside):
                    yield split, inside
        return
    yield from build_sequences(record.pairs, of_frames, rule or record.rule or default, f"{scene.source}/{scene.scene}")


class _Counts:
    def __init__(self) -> None:
        self.frames, self.scenes, self.splits = Counter[str](), Counter[str](), Counter[str]()
        self.measures, self.views, self.sequences = Counter[str](), Counter[int](), Counter[str]()
        self.lengths: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
        self.known = Counter[str]()
        self.overlaps = np.zeros(OVERLAP_BINS, np.int64)

    def scene(self, scene: WrittenScene, record: SceneRecord, of_frames: list[str]) -> None:
        self.frames[scene.source] += scene.frames
        self.scenes[scene.source] += 1
        self.splits.update(of_frames)
        self.measures[record.pairs.measure] += 1
        self.views[scene.frames] += 1
        for what, column in (("pose", "world2cam"), ("intrinsics", "intrinsics"), ("depth", "depth_size")):
            self.known[what] += scene.frames - record.frames[column].null_count
        self.overlaps += np.histogram(record.pairs.overlap, OVERLAP_BINS, (0, 1))[0]

    def card(self) -> dict[str, Any]:
        return {
            "frames": sum(self.frames.values()),
            "scenes": sum(self.scenes.values()),
            "sources": dict(self.frames),
            "scenes_of_sources": dict(self.scenes),
            "splits": {split: self.splits[split] for split in SPLITS},
            "with_pose": self.known["pose"],
            "with_intrinsics": self.known["intrinsics"],
            "with_depth": self.known["depth"],
            "covisibility": dict(self.measures),
            "overlap_histogram": self.overlaps.tolist(),
            "views_of_scenes": {str(views): count for views, count in sorted(self.views.items())},
            "sequences": {
                split: {str(length): count for length, count in sorted(lengths.items())}
                for split, lengths in self.lengths.items()
            },
        }
