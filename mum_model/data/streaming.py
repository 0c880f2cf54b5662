"""A prepared dataset behind a URL: its tables are copied once, of its shards only the frames that are drawn are read.

By ranged reads, a pack's all at once, through a bounded cache. Whole shards would be fewer requests, but a pack draws
few of the frames of any scene, so that as soon as the cache is smaller than the dataset most bytes would be read for
nothing (`docs/scale.md` has the figures).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fsspec.callbacks import TqdmCallback
from omegaconf import DictConfig

from mum_model.data.arrow import read_table
from mum_model.data.cache import Cache
from mum_model.data.remote import reach, unreadable
from mum_model.data.shards import Extent
from mum_model.errors import UserError
from mum_model.files import alone_in, file_sha256, write_json, written_whole

CARD = "dataset.json"


@dataclass(frozen=True)
class LocalCopies:
    """Where a machine keeps what it reads from afar, and how much of it.

    Attributes:
        folder: On a disk of the machine; processes share it.
        max_bytes: Of frames. The tables, 2 to 3 per cent of a dataset, come on top.
    """

    folder: Path
    max_bytes: int

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """Those that `paths.cache` and `machine.cache_gb` name."""
        return cls(Path(cfg.paths.cache), int(cfg.machine.cache_gb * 1e9))


def remote_card(url: str) -> dict[str, Any]:
    """The card of a dataset.

    Args:
        url: Of the dataset folder.

    Returns:
        What its `dataset.json` says.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    storage, root = reach(url)
    try:
        return json.loads(storage.cat_file(f"{root}/{CARD}"))
    except Exception as error:
        raise unreadable(f"{url.rstrip('/')}/{CARD}", error) from error


def copied_tables(url: str, copies: LocalCopies) -> Path:
    """The tables of a dataset as a local folder, to be mapped into memory: copied once, and again when it changes.

    Args:
        url: Of the dataset folder.
        copies: Where to.

    Returns:
        A folder with the tables and the card.

    Raises:
        UserError: They cannot be read, or are not those that the card tells of.
    """
    card = remote_card(url)
    folder = copies.folder / f"tables-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    with alone_in(folder, wait=True):  # one process copies, the others find it done
        if not (folder / CARD).is_file() or json.loads((folder / CARD).read_text()) != card:
            with written_whole(folder) as partial:
                for name, sha256 in card["tables"].items():
                    _copy(f"{url.rstrip('/')}/{name}", partial / name, sha256)
                write_json(partial / CARD, card)
    return folder


def _copy(url: str, target: Path, sha256: str) -> None:
    storage, path = reach(url)
    bar = {"desc": f"copy {target.name}", "unit": "B", "unit_scale": True, "dynamic_ncols": True}
    try:
        storage.get_file(path, str(target), callback=TqdmCallback(tqdm_kwargs=bar))
    except Exception as error:
        raise unreadable(url, error) from error
    if file_sha256(target) != sha256:
        raise UserError(f"{url}: is not the table that {CARD} beside it tells of; upload the dataset again")


class RemoteShards:
    """The shards of a dataset behind a URL."""

    def __init__(self, url: str, tables: Path, copies: LocalCopies):
        """Set it up; nothing is read yet.

        Args:
            url: Of the dataset folder.
            tables: The local copy of its tables.
            copies: Where frames that were read are kept.
        """
        self.url, self.tables, self.copies = url.rstrip("/"), tables, copies
        self._cache = Cache(copies.folder / "frames.sqlite", copies.max_bytes)
        scenes = read_table(tables / "scenes.arrow")
        self._digests = dict(zip(scenes["shard"].to_pylist(), scenes["sha256"].to_pylist(), strict=True))

    def __reduce__(self) -> tuple[type["RemoteShards"], tuple[str, Path, LocalCopies]]:
        """Another process opens the same cache."""
        return RemoteShards, (self.url, self.tables, self.copies)

    def read(self, places: Sequence[tuple[str, Extent]]) -> list[bytes]:
        """Read members of shards, all that are not kept already at once.

        Args:
            places: Name of the shard, and where in it the member lies.

        Returns:
            Their bytes, in this order.

        Raises:
            UserError: One of them cannot be read.
        """
        # By content, so that another version of the dataset shares what is the same and mistakes nothing.
        names = [f"{self._digests[shard]}/{extent.offset}" for shard, extent in places]
        held = self._cache.get(names)
        missing = {name: place for name, place in zip(names, places, strict=True) if name not in held}
        if missing:
            fetched = dict(zip(missing, self._fetch(list(missing.values())), strict=True))
            self._cache.put(fetched)
            held |= fetched
        return [held[name] for name in names]

    def _fetch(self, places: Sequence[tuple[str, Extent]]) -> list[bytes]:
        urls = [f"{self.url}/shards/{shard}" for shard, _ in places]
        storage, root = reach(self.url)
        paths = [f"{root}/shards/{shard}" for shard, _ in places]
        starts, stops = zip(*((extent.offset, extent.offset + extent.size) for _, extent in places), strict=True)
        contents = storage.cat_ranges(paths, list(starts), list(stops), on_error="return")
        for url, content, (_, extent) in zip(urls, contents, places, strict=True):
            if isinstance(content, BaseException):
                raise unreadable(url, content) from content
            if len(content) != extent.size:
                raise UserError(f"{url}: ends before byte {extent.offset + extent.size}; upload the dataset again")
        return contents
