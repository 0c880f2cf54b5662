"""Frozen features, computed once for each encoder, set of images, layer and resolution, and kept on disk.

Several processes may share the folder: each writes under a name of its own, and the first table that is whole stays.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mum_model.errors import UserError
from mum_model.evaluate.cache import written_once
from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.views import ImageSet, sha256_of
from mum_model.files import write_json

log = logging.getLogger(__name__)

PIXELS_AT_ONCE = {"cpu": 64 * 64 * 64, "cuda": 32 * 448 * 448}  # of a batch: as many images as these hold
FORMAT = 1  # raise it when the same key would hold other numbers

Kind = Literal["patches", "summary"]


def device() -> torch.device:
    """Where encoders and probes run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Features:
    """A table of features in half precision, in memory or in a memory-mapped file."""

    def __init__(self, table: np.ndarray):
        """Wrap a table.

        Args:
            table: float16 `[F, L, D]`, or `[F, D]` for summaries.
        """
        self.table = table

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.table.shape[-1]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Features of these rows, float32, on the device where probes run."""
        return torch.from_numpy(np.asarray(self.table[rows.cpu().numpy()])).to(device()).float()


class FeatureStore:
    """Computes features once and finds them again by content."""

    def __init__(self, folder: Path | None, layer: int):
        """Open the store.

        Args:
            folder: Where tables are kept; None keeps nothing on disk.
            layer: Block after which tokens are taken, see `Encoder.tokens`.
        """
        self.folder, self.layer = folder, layer
        self._seen: dict[str, Features] = {}

    def get(self, encoder: Encoder, images: ImageSet, kind: Kind) -> Features:
        """Features of all images of a set.

        Args:
            encoder: The encoder.
            images: The set.
            kind: `patches` `[F, L, D]`, or `summary` `[F, D]`.

        Returns:
            The table, in the order of the set.

        Raises:
            UserError: A feature is not a finite number.
        """
        key = sha256_of([str(FORMAT), encoder.identity, images.identity, str(self.layer), kind])
        if key not in self._seen:
            self._seen[key] = Features(self._find_or_compute(key, encoder, images, kind))
        return self._seen[key]

    def forget(self) -> None:
        """Let go of what is in memory; what is on disk stays."""
        self._seen.clear()

    def _find_or_compute(self, key: str, encoder: Encoder, images: ImageSet, kind: Kind) -> np.ndarray:
        if self.folder is None:
            return self._compute(encoder, images, kind, None)
        path = self.folder / f"{key}.npy"
        if not path.is_file():
            about = {"encoder": encoder.name, "images": images.name, "count": len(images), "size": images.size}
            with written_once(path) as partial:
                self._compute(encoder, images, kind, partial)
            with written_once(path.with_suffix(".json")) as partial:
                write_json(partial, {**about, "layer": self.layer, "kind": kind})
        return np.load(path, mmap_mode="r")

    def _compute(self, encoder: Encoder, images: ImageSet, kind: Kind, path: Path | None) -> np.ndarray:
        table: np.ndarray | None = None
        for start, batch in _batches(encoder.name, images):
            features = getattr(encoder.tokens(batch.to(device()), self.layer), kind).half().cpu()
            _require_finite(features, encoder, images, start)
            if table is None:
                shape = (len(images), *features.shape[1:])
                table = np.empty(shape, np.float16) if path is None else _open_file(path, shape)
            table[start : start + len(batch)] = features.numpy()
        assert table is not None  # no set is empty
        if isinstance(table, np.memmap):
            table.flush()
        return table


def _open_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _batches(name: str, images: ImageSet) -> Iterable[tuple[int, Tensor]]:
    size = max(1, PIXELS_AT_ONCE[device().type] // images.size**2)
    starts = range(0, len(images), size)
    for start in tqdm(starts, desc=f"features of {name}", unit="batch", leave=False):
        yield start, images.read(range(start, min(start + size, len(images))))


def _require_finite(features: Tensor, encoder: Encoder, images: ImageSet, start: int) -> None:
    wrong = ~features.isfinite().flatten(1).all(dim=1)
    if wrong.any():
        image = images.label(start + int(wrong.nonzero()[0]))
        raise UserError(
            f"encoder '{encoder.name}': its features of {image} are not finite in half precision. Its weights are "
            "damaged, or this layer is not normalised: take another encoder or layer"
        )
