"""The scene index: the one form in which every source's frames reach training and evaluation.

A dataset folder holds

* `index.parquet`, a row a frame, the frames of a scene consecutive and in capture order;
* `covisibility.parquet`, ordered pairs of rows with the share of the first view that the second sees;
* `sequences.parquet`, a row an anchor: the rows of the anchor and of the views that overlap it most, best first;
* `shards/`, a tar a scene with the pixels and depth;
* `dataset.json`, the card.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mum_model.data.geometry import Camera
from mum_model.data.shards import Extent, decode_depth, decode_image, read_extent
from mum_model.errors import UserError

SPLITS = ("train", "val", "test")

FRAME_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("scene", pa.string()),
        ("frame", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int32()),
        ("depth_offset", pa.int64()),  # null without depth
        ("depth_size", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("intrinsics", pa.list_(pa.float64(), 9)),  # row-major; null where unknown
        ("world2cam", pa.list_(pa.float64(), 12)),
    ]
)

COVISIBILITY_SCHEMA = pa.schema(
    [("a", pa.int32()), ("b", pa.int32()), ("overlap", pa.float32()), ("measure", pa.string())]
)

SEQUENCE_SCHEMA = pa.schema([("split", pa.string()), ("frames", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class SceneIndex:
    """A prepared dataset, opened for reading.

    Attributes:
        directory: The dataset folder.
        frames: The index, a row a frame (`FRAME_SCHEMA`).
        card: What `dataset.json` says.
    """

    directory: Path
    frames: pa.Table
    card: dict[str, Any]

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
        for name in ("index.parquet", "dataset.json"):
            if not (directory / name).is_file():
                raise UserError(f"{directory}: not a prepared dataset, it has no {name}; write one with `mum prepare`")
        card = json.loads((directory / "dataset.json").read_text())
        return cls(directory, pq.read_table(directory / "index.parquet", memory_map=True), card)

    def __len__(self) -> int:
        return self.frames.num_rows

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split's frames, int64."""
        return np.flatnonzero(self.column("split") == split)

    def column(self, name: str) -> np.ndarray:
        """One column of the index as a numpy array of strings or numbers."""
        return self.frames[name].to_numpy()

    def image(self, row: int) -> np.ndarray:
        """The pixels of a frame, RGB uint8 `[H, W, 3]`."""
        return decode_image(self._read(row, self._image_extents))

    def camera(self, row: int) -> Camera | None:
        """Intrinsics, pose and depth of a frame; None where any of them is unknown."""
        intrinsics, world2cam = self.intrinsics(row), self.world2cam(row)
        if intrinsics is None or world2cam is None or self._depth_extents[row, 1] == 0:
            return None
        return Camera(intrinsics, world2cam, decode_depth(self._read(row, self._depth_extents)))

    def intrinsics(self, row: int) -> np.ndarray | None:
        """Camera matrix `[3, 3]` in pixels of the stored image, or None where unknown."""
        value = self.frames["intrinsics"][row].as_py()
        return None if value is None else np.array(value).reshape(3, 3)

    def world2cam(self, row: int) -> np.ndarray | None:
        """Pose `[3, 4]`, or None where unknown."""
        value = self.frames["world2cam"][row].as_py()
        return None if value is None else np.array(value).reshape(3, 4)

    def sequences(self, split: str) -> list[np.ndarray]:
        """The split's sequences: rows of an anchor and of the views that overlap it most, best first."""
        table = pq.read_table(self.directory / "sequences.parquet", filters=[("split", "=", split)])
        return [np.asarray(frames, np.int64) for frames in table["frames"].to_pylist()]

    def covisible_pairs(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The split's ordered pairs of rows with their overlap: a `[P]`, b `[P]`, overlap `[P]`."""
        table = pq.read_table(self.directory / "covisibility.parquet")
        a, b, overlap = (table[name].to_numpy() for name in ("a", "b", "overlap"))
        splits = self.column("split")
        kept = (splits[a] == split) & (splits[b] == split)
        return a[kept], b[kept], overlap[kept]

    @cached_property
    def _shards(self) -> list[Path]:
        return [self.directory / "shards" / name for name in self.column("shard")]

    @cached_property
    def _image_extents(self) -> np.ndarray:
        return np.stack([self.column("image_offset"), self.column("image_size")], axis=1)

    @cached_property
    def _depth_extents(self) -> np.ndarray:
        columns = [self.frames[name].fill_null(0).to_numpy() for name in ("depth_offset", "depth_size")]
        return np.stack(columns, axis=1)

    def _read(self, row: int, extents: np.ndarray) -> bytes:
        offset, size = extents[row].tolist()
        return read_extent(self._shards[row], Extent(offset, size))
