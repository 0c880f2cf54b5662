"""Features of images in one file: .npz for NumPy, .parquet for tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class ImageFeatures:
    """What an encoder says of one image.

    Attributes:
        name: Of the image.
        grid: Rows and columns of patches.
        outputs: By name: `cls` `[D]`, `patch_tokens` `[L, D]`, and those of blocks.
    """

    name: str
    grid: tuple[int, int]
    outputs: dict[str, np.ndarray]


def write_npz(file: IO[bytes], features: Sequence[ImageFeatures]) -> None:
    """Write `names` `[N]`, `grids` `[N, 2]`, and every output as `[N, ...]`.

    Args:
        file: To write to.
        features: At least one; all with the same outputs. Tokens of smaller images are filled up with NaN.
    """
    arrays: dict[str, Any] = {name: _stacked([one.outputs[name] for one in features]) for name in features[0].outputs}
    np.savez(file, names=[one.name for one in features], grids=[one.grid for one in features], **arrays)


def read_npz(file: IO[bytes]) -> list[ImageFeatures]:
    """Read what `write_npz` wrote."""
    with np.load(file) as archive:
        arrays = dict(archive)
    names, grids = arrays.pop("names"), arrays.pop("grids")
    return [
        ImageFeatures(
            str(name),
            (int(grid[0]), int(grid[1])),
            {key: array[i][: grid[0] * grid[1]] if array.ndim == 3 else array[i] for key, array in arrays.items()},
        )
        for i, (name, grid) in enumerate(zip(names, grids, strict=True))
    ]


def write_parquet(path: Path, features: Sequence[ImageFeatures]) -> None:
    """Write a row an image: `name`, `rows`, `columns`, and each output as a flat list of float32, row-major.

    Args:
        path: The file.
        features: At least one; all with the same outputs.
    """
    columns = {
        "name": pa.array([one.name for one in features]),
        "rows": pa.array([one.grid[0] for one in features], pa.int32()),
        "columns": pa.array([one.grid[1] for one in features], pa.int32()),
    }
    for name in features[0].outputs:
        flat = [one.outputs[name].ravel() for one in features]
        columns[name] = pa.array(flat, pa.large_list(pa.float32()))
    pq.write_table(pa.table(columns), path)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """`[N, ...]`; arrays `[L, D]` of the longest L, the others filled up with NaN."""
    if arrays[0].ndim == 1:
        return np.stack(arrays)
    full = np.full((len(arrays), max(map(len, arrays)), arrays[0].shape[1]), np.nan, np.float32)
    for row, array in zip(full, arrays, strict=True):
        row[: len(array)] = array
    return full
