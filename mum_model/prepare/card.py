"""The data card: `dataset.json` for programs, `card.html` and sample sheets for people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import DictConfig, ListConfig

from mum_model.data.captures import Refusal
from mum_model.data.scenes import SPLITS
from mum_model.data.shards import Extent, decode_image, encode_image, read_once
from mum_model.files import file_sha256, write_json, write_text
from mum_model.prepare.content import content_sha256
from mum_model.prepare.splits import Splits
from mum_model.prepare.work import JPEG_FROM, WrittenScene, read_record

SHEET_COLUMNS, SHEET_ROWS = 8, 3
SHEET_CELL = 112
"""Pixels a side of one sample."""

ROWS_SHOWN = 500
"""Rows of a list on the page; all are in `dataset.json`."""

LENGTHS_SHOWN = 12
"""Different lengths that the page tells one by one."""


def write_card(
    folder: Path,
    data: DictConfig,
    scenes: Sequence[WrittenScene],
    splits: Splits,
    counts: dict[str, Any],
    refused: Sequence[Refusal],
) -> None:
    """Write the card of a dataset whose tables and shards are written already.

    Args:
        folder: The dataset folder.
        data: The configuration it was made by.
        scenes: What is in it.
        splits: Of its frames.
        counts: From `write_tables`.
        refused: What was left out, by paths that are the same on every machine.
    """
    card = {
        "content_sha256": content_sha256(folder),
        **counts,
        "split_by": splits.by,
        "near_duplicates": [[_name(scenes[n]) for n in group] for group in splits.together],
        "test_only": _test_only(scenes, splits, data.splits.test_only),
        "about_sources": {name: about(name) for name in counts["sources"]},
        "stored": {"short_side": data.short_side, "jpeg_quality": data.jpeg_quality},
        "tables": {path.name: file_sha256(path) for path in sorted(folder.glob("*.arrow"))},
        "refused": [asdict(refusal) for refusal in refused],
    }
    write_json(folder / "dataset.json", card)
    for source in counts["sources"]:
        sheet = _sheet(folder / "shards", [scene for scene in scenes if scene.source == source])
        (folder / "sheets").mkdir(exist_ok=True)
        (folder / "sheets" / f"{source}.jpg").write_bytes(sheet)
    write_text(folder / "card.html", _page(card))


def about(source: str) -> dict[str, str]:
    """Where a source comes from, its licence and its ground truth."""
    from mum_model.data.sources import SOURCES, rendered  # heavy, and the card is written once

    known = next(known for known in (*SOURCES, rendered.SOURCE) if known.name == source)
    return {"origin": known.origin, "licence": known.licence, "truth": known.truth}


def _page(card: dict[str, Any]) -> str:
    """The card for people."""
    pages = Environment(loader=PackageLoader("mum_model.prepare", "."), undefined=StrictUndefined, autoescape=True)
    pages.filters["binned"] = _binned
    return pages.get_template("card.html").render(card=card, splits=SPLITS, jpeg_from=JPEG_FROM, shown=ROWS_SHOWN)


def _binned(counts: dict[str, int]) -> list[tuple[str, int]]:
    """Counts by a number; where there are many, of ranges that double: 1, 2-3, 4-7 and so on."""
    if len(counts) <= LENGTHS_SHOWN:
        return list(counts.items())
    bins = Counter[int]()
    for number, count in counts.items():
        bins[int(number).bit_length() - 1] += count
    return [(f"{2**power}-{2 ** (power + 1) - 1}" if power else "1", bins[power]) for power in sorted(bins)]


def _name(scene: WrittenScene) -> str:
    return f"{scene.source}/{scene.scene}"


def _test_only(scenes: Sequence[WrittenScene], splits: Splits, patterns: ListConfig) -> dict[str, Any]:
    """The proof that no scene of a benchmark is trained or chosen on: each that was found, and where it is."""
    found = {_name(scenes[n]): {"pattern": p, "splits": _where(splits, n)} for n, p in splits.test_only.items()}
    return {"patterns": list(patterns), "found": found}


def _where(splits: Splits, number: int) -> list[str]:
    return sorted(set(splits.of_frames[number]))


def _sheet(shards: Path, scenes: Sequence[WrittenScene]) -> bytes:
    """Some frames of some scenes, a JPEG."""
    wanted = SHEET_COLUMNS * SHEET_ROWS
    chosen = [scenes[i] for i in np.unique(np.linspace(0, len(scenes) - 1, wanted).astype(int))]
    cells = [cell for scene in chosen for cell in _cells(shards, scene, -(-wanted // len(chosen)))][:wanted]
    blank = np.full((SHEET_CELL, SHEET_CELL, 3), 255, np.uint8)
    cells += [blank] * (-len(cells) % SHEET_COLUMNS)
    rows = [np.concatenate(cells[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(cells), SHEET_COLUMNS)]
    return encode_image(np.concatenate(rows), jpeg_quality=85)[1]


def _cells(shards: Path, scene: WrittenScene, count: int) -> list[np.ndarray]:
    frames = read_record(shards, scene).frames
    chosen = np.unique(np.linspace(0, scene.frames - 1, count).astype(int)).tolist()
    return [_cell(shards / scene.shard, row) for row in islice(frames.take(chosen).to_pylist(), count)]


def _cell(shard: Path, row: dict[str, Any]) -> np.ndarray:
    image = decode_image(read_once(shard, Extent(row["image_offset"], row["image_size"])))
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (SHEET_CELL, SHEET_CELL), interpolation=cv2.INTER_AREA)
