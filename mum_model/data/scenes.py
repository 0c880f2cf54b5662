"""The scene index: the one form in which every source's frames reach training and evaluation.

A dataset folder holds

* `index.arrow`, a row a frame, the frames of a scene consecutive and in capture order;
* `covisibility.arrow`, ordered pairs of rows with the share of the first view that the second sees;
* `sequences-train.arrow` and so on, a row a sequence: rows of frames to be shown together;
* `scenes.arrow`, a row a scene: its shard and what came of it;
* `shards/`, a tar a scene with the pixels and depth;
* `dataset.json`, the card, and `card.html`, the same for people.

The tables are Arrow IPC files, mapped into memory: opening reads their footer alone, and all processes of a machine
share the pages that any of them touched.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mum_model.data.arrow import read_table
from mum_model.data.geometry import Camera
from mum_model.data.remote import is_url
from mum_model.data.shards import Extent, LocalShards, decode_depth, decode_image
from mum_model.data.streaming import CARD, LocalCopies, RemoteShards, copied_tables
from mum_model.errors import UserError

SPLITS = ("train", "val", "test")

NAME = pa.dictionary(pa.int32(), pa.string())
"""Names that repeat: stored once, and by number in each row."""

FRAME_FIELDS = [
    ("frame", pa.string()),
    ("image_offset", pa.int64()),
    ("image_size", pa.int32()),
    ("depth_offset", pa.int64()),  # null without depth
    ("depth_size", pa.int32()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("intrinsics", pa.list_(pa.float64(), 9)),  # row-major; null where unknown
    ("world2cam", pa.list_(pa.float64(), 12)),
    ("fingerprint", pa.uint64()),  # perceptual, see mum_model.data.fingerprints
]

FRAME_SCHEMA = pa.schema([("source", NAME), ("scene", NAME), ("split", NAME), ("shard", NAME), *FRAME_FIELDS])

COVISIBILITY_SCHEMA = pa.schema(
    [("a", pa.int32()), ("b", pa.int32()), ("overlap", pa.float32()), ("angle", pa.float32()), ("measure", NAME)]
)

SEQUENCE_SCHEMA = pa.schema([("frames", pa.list_(pa.int32()))])

SCENE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("scene", pa.string()),
        ("shard", pa.string()),
        ("frames", pa.int32()),
        ("splits", pa.list_(pa.string())),
        ("sha256", pa.string()),  # of the shard
    ]
)


INDEX_FILES = ("index.arrow", CARD)
"""What makes a folder a prepared dataset."""


class Sequences(Sequence[np.ndarray]):
    """The sequences of a split: rows of the index, mapped into memory."""

    def __init__(self, table: pa.Table):
        """Wrap a table of `SEQUENCE_SCHEMA`."""
        self._frames = table["frames"]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, position: Any) -> Any:
        """Rows of one sequence, int64."""
        return self._frames[int(position)].values.to_numpy().astype(np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """How many frames each has, int32 `[sequences]`."""
        chunks = [pc.list_value_length(chunk).to_numpy(zero_copy_only=False) for chunk in self._frames.chunks]
        return np.concatenate([np.empty(0, np.int32), *chunks]).astype(np.int32)

    @property
    def rows(self) -> np.ndarray:
        """All rows that are in any of them, int64, sorted."""
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in self._frames.chunks]
        return np.unique(np.concatenate([np.empty(0, np.int64), *chunks])).astype(np.int64)

    @cached_property
    def firsts(self) -> np.ndarray:
        """The first row of each, int64 `[sequences]`."""
        chunks = [pc.list_element(chunk, 0).to_numpy(zero_copy_only=False) for chunk in self._frames.chunks]
        return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64)


class FrameName(NamedTuple):
    """What a frame is called: no two of a dataset share all three."""

    source: str
    scene: str
    frame: str


@dataclass(frozen=True)
class SceneIndex:
    """A prepared dataset, opened for reading.

    Attributes:
        directory: The dataset folder, or the local copy of its tables.
        frames: The index, a row a frame (`FRAME_SCHEMA`).
        card: What `dataset.json` says.
        shards: Where pixels and depth are read from.
    """

    directory: Path
    frames: pa.Table
    card: dict[str, Any]
    shards: LocalShards | RemoteShards

    @classmethod
    def open(cls, directory: Path) -> "SceneIndex":
        """Open a dataset folder that `prepare` wrote.

        Args:
            directory: The folder.

        Returns:
            The index; pixels are read on demand.

        Raises:
            UserError: It is no such folder.
        """
        for name in INDEX_FILES:
            if not (directory / name).is_file():
                raise UserError(f"{directory}: not a prepared dataset, it has no {name}; write one with `mum prepare`")
        return cls._with(directory, LocalShards(directory / "shards"))

    @classmethod
    def stream(cls, url: str, copies: LocalCopies) -> "SceneIndex":
        """Open a dataset folder that was copied to S3 or another storage; its frames are read when they are drawn.

        Args:
            url: Of the folder.
            copies: Where this machine keeps its tables, and as many of its frames as may be.

        Returns:
            The index.

        Raises:
            UserError: It cannot be read, or is no such folder.
        """
        tables = copied_tables(url, copies)
        return cls._with(tables, RemoteShards(url, tables, copies))

    @classmethod
    def _with(cls, tables: Path, shards: LocalShards | RemoteShards) -> "SceneIndex":
        return cls(tables, read_table(tables / "index.arrow"), json.loads((tables / CARD).read_text()), shards)

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Whether a folder is such a dataset."""
        return all((directory / name).is_file() for name in INDEX_FILES)

    def __reduce__(self) -> tuple[Any, tuple[Path, LocalShards | RemoteShards]]:
        """Another process maps the same files instead of being sent them."""
        return SceneIndex._with, (self.directory, self.shards)

    def __len__(self) -> int:
        return self.frames.num_rows

    @property
    def content_sha256(self) -> str:
        """The digest of all that training and evaluation can see of it."""
        return self.card["content_sha256"]

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split's frames, int64."""
        return np.flatnonzero(self._in_split(split))

    def column(self, name: str) -> np.ndarray:
        """One column of the index as a numpy array of strings or numbers."""
        return self.frames[name].to_numpy()

    def image(self, row: int) -> np.ndarray:
        """The pixels of a frame, RGB uint8 `[H, W, 3]`."""
        return self.images([row])[0]

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """The pixels of several frames, which are read from afar at once: RGB uint8 `[H, W, 3]` each."""
        return [decode_image(content) for content in self.shards.read([self.place(row) for row in rows])]

    def labels(self, rows: Sequence[int]) -> list[str]:
        """`scene/frame` of several frames."""
        return [f"{self._cell('scene', row)}/{self._cell('frame', row)}" for row in rows]

    def camera(self, row: int) -> Camera | None:
        """Intrinsics, pose and depth of a frame; None where any of them is unknown."""
        intrinsics, world2cam = self.intrinsics(row), self.world2cam(row)
        if intrinsics is None or world2cam is None:
            return None
        depth = self.depth(row)
        return None if depth is None else Camera(intrinsics, world2cam, depth)

    def depth(self, row: int) -> np.ndarray | None:
        """z-depth float32 `[H, W]`, 0 where unknown; None without any."""
        if self._cell("depth_offset", row) is None:
            return None
        (content,) = self.shards.read([self.place(row, "depth")])
        return decode_depth(content)

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width of a frame's image in pixels."""
        return self._cell("height", row), self._cell("width", row)

    def name(self, row: int) -> FrameName:
        """How a frame is called."""
        return FrameName(*(self._cell(name, row) for name in FrameName._fields))

    def intrinsics(self, row: int) -> np.ndarray | None:
        """Camera matrix `[3, 3]` in pixels of the stored image, or None where unknown."""
        value = self._cell("intrinsics", row)
        return None if value is None else np.array(value).reshape(3, 3)

    def world2cam(self, row: int) -> np.ndarray | None:
        """Pose `[3, 4]`, or None where unknown."""
        value = self._cell("world2cam", row)
        return None if value is None else np.array(value).reshape(3, 4)

    def sequences(self, split: str) -> Sequences:
        """The split's sequences of rows; those of the kind `anchor` begin with it, best overlap first."""
        return Sequences(read_table(self.directory / f"sequences-{split}.arrow"))

    def sources(self, sequences: Sequences) -> np.ndarray:
        """The source of each sequence, `[sequences]`; only their rows of the index are read."""
        return self.frames["source"].take(pa.array(sequences.firsts)).to_numpy()

    def covisible_pairs(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The split's ordered pairs of rows with their overlap: a `[P]`, b `[P]`, overlap `[P]`."""
        table = read_table(self.directory / "covisibility.arrow")
        a, b, overlap = (table[name].to_numpy() for name in ("a", "b", "overlap"))
        inside = self._in_split(split)
        kept = inside[a] & inside[b]
        return a[kept], b[kept], overlap[kept]

    @cached_property
    def scenes(self) -> pa.Table:
        """The scenes (`SCENE_SCHEMA`)."""
        return read_table(self.directory / "scenes.arrow")

    def check_shards(self) -> None:
        """Look whether the shards of a dataset on this machine are as long as the index says; none of them is read.

        Raises:
            UserError: A shard is missing or cut.
        """
        ends = [pc.add(self.frames[f"{what}_offset"], self.frames[f"{what}_size"]) for what in ("image", "depth")]
        named = pa.table({"shard": self.frames["shard"].cast(pa.string()), "end": pc.max_element_wise(*ends)})
        for shard in named.group_by("shard").aggregate([("end", "max")]).to_pylist():
            path = self.directory / "shards" / shard["shard"]
            length = path.stat().st_size if path.is_file() else 0
            if length < shard["end_max"]:
                raise UserError(
                    f"{path}: missing or cut, {length} bytes of at least {shard['end_max']}; copy the dataset again"
                )

    def _in_split(self, split: str) -> np.ndarray:
        return pc.fill_null(pc.equal(self.frames["split"], split), False).to_numpy()

    def _cell(self, name: str, row: int) -> Any:
        return self.frames[name][int(row)].as_py()

    def place(self, row: int, what: str = "image") -> tuple[str, Extent]:
        """The shard of a frame, and where in it its `image` or `depth` lies."""
        return self._cell("shard", row), Extent(self._cell(f"{what}_offset", row), self._cell(f"{what}_size", row))


def open_dataset(place: str, copies: LocalCopies) -> SceneIndex:
    """Open a prepared dataset, wherever it is.

    Args:
        place: A folder, or the URL of one.
        copies: Where this machine keeps what it reads from a URL.

    Returns:
        The index.

    Raises:
        UserError: There is no dataset, or it cannot be read.
    """
    return SceneIndex.stream(place, copies) if is_url(place) else SceneIndex.open(Path(place))
