"""Prepare: raw captures, or rendered scenes, become an indexed, sharded dataset with splits and a card."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig
from tqdm import tqdm

from mum_model.data.captures import Capture, Frame, Refusal, RefusedError
from mum_model.data.covisibility import Covisibility, covisibility
from mum_model.data.geometry import Camera, resize_depth, resize_intrinsics
from mum_model.data.scenes import COVISIBILITY_SCHEMA, FRAME_SCHEMA, SEQUENCE_SCHEMA, SPLITS
from mum_model.data.shards import ShardWriter, encode_depth, encode_image
from mum_model.errors import UserError
from mum_model.files import write_json, written_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenScene:
    """What came of one scene.

    Attributes:
        rows: Index rows, the split still missing.
        covisibility: Pairs by position within the scene.
        refused: Frames left out.
        digest: SHA-256 of the shard.
    """

    rows: list[dict[str, Any]]
    covisibility: Covisibility
    refused: list[Refusal]
    digest: str


def prepare(cfg: DictConfig) -> Path:
    """Write the dataset folder.

    Args:
        cfg: The composed configuration; reads `data`, `machine` and `paths.dataset`.

    Returns:
        The dataset folder (see `mum_model.data.scenes`).

    Raises:
        UserError: The source cannot be read, or more of it is broken than `data.max_refused_share` allows.
    """
    captures, refused = _captures(cfg)
    target = Path(cfg.paths.dataset)
    with written_whole(target) as folder:
        write = partial(write_scene, folder=folder / "shards", settings=_FrameSettings.of(cfg.data))
        scenes = list(_over_processes(write, captures, cfg.machine.workers))
        refused += [refusal for scene in scenes for refusal in scene.refused]
        scenes = [scene for scene in scenes if scene.rows]
        _check_share(refused, sum(len(scene.rows) for scene in scenes), cfg.data.max_refused_share)
        split_scenes(scenes, cfg.data)
        _write_tables(folder, scenes, cfg.data)
        write_json(folder / "dataset.json", _card(cfg.data, scenes, refused))
    for refusal in refused:
        log.warning("left out: %s", refusal)
    log.info("%s: %d frames of %d scenes", target, sum(len(s.rows) for s in scenes), len(scenes))
    return target


def _captures(cfg: DictConfig) -> tuple[list[Capture], list[Refusal]]:
    if cfg.data.source == "rendered":
        from mum_model.data.sources.rendered import rendered_captures

        return rendered_captures(**cfg.data.rendered), []
    from mum_model.data.sources import open_captures

    opened = open_captures(Path(cfg.data.source).expanduser())
    return list(opened.captures), [*opened.refused, *(r for capture in opened.captures for r in capture.refused)]


@dataclass(frozen=True)
class _FrameSettings:
    short_side: int
    jpeg_quality: int | None

    @classmethod
    def of(cls, data: DictConfig) -> "_FrameSettings":
        return cls(data.short_side, data.jpeg_quality)


def _over_processes(write: partial, captures: Sequence[Capture], workers: int) -> Iterator[WrittenScene]:
    """Write the scenes in order, several at once, with a progress bar."""
    bar = partial(tqdm, total=len(captures), desc="prepare", unit="scene", dynamic_ncols=True)
    if workers <= 1 or len(captures) == 1:
        yield from bar(map(write, captures))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        yield from bar(pool.map(write, captures))


def write_scene(capture: Capture, folder: Path, settings: _FrameSettings) -> WrittenScene:
    """Read, resize and pack the frames of one scene, and measure their co-visibility.

    Args:
        capture: The scene.
        folder: Where the shard goes.
        settings: Stored size and quality.

    Returns:
        Its index rows and pairs; broken frames are among the refused.
    """
    name = f"{capture.source}-{re.sub(r'[^A-Za-z0-9._-]', '_', capture.scene)}.tar"
    rows: list[dict[str, Any]] = []
    cameras: list[Camera | None] = []
    refused: list[Refusal] = []
    with _shard(folder / name) as shard:
        for frame_name in capture.frames:
            try:
                frame = resize(capture.load(frame_name), settings.short_side)
            except RefusedError as error:
                refused.append(error.refusal)
                continue
            rows.append(_pack(shard, frame, frame_name, settings) | {"shard": name})
            cameras.append(_camera(frame))
    identity = {"source": capture.source, "scene": capture.scene}
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return WrittenScene([identity | row for row in rows], covisibility(cameras), refused, digest)


@contextmanager
def _shard(path: Path) -> Iterator[ShardWriter]:
    writer = ShardWriter(path)
    yield writer
    writer.close()


def resize(frame: Frame, short_side: int) -> Frame:
    """Shrink a frame so that its shorter side has that many pixels; smaller frames stay as they are.

    Args:
        frame: The frame, with everything known of it.
        short_side: Pixels.

    Returns:
        The frame with image, intrinsics and depth resized alike.
    """
    height, width = frame.image.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return frame
    new_width, new_height = round(width * scale), round(height * scale)
    return Frame(
        image=cv2.resize(frame.image, (new_width, new_height), interpolation=cv2.INTER_AREA),
        intrinsics=None
        if frame.intrinsics is None
        else resize_intrinsics(frame.intrinsics, new_width / width, new_height / height),
        world2cam=frame.world2cam,
        depth=None if frame.depth is None else resize_depth(frame.depth, new_width, new_height),
    )


def _pack(shard: ShardWriter, frame: Frame, name: str, settings: _FrameSettings) -> dict[str, Any]:
    member = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    ending, content = encode_image(frame.image, settings.jpeg_quality)
    image = shard.add(member + ending, content)
    depth = None if frame.depth is None else shard.add(f"{member}.depth.tiff", encode_depth(frame.depth))
    return {
        "frame": name,
        "image_offset": image.offset,
        "image_size": image.size,
        "depth_offset": depth and depth.offset,
        "depth_size": depth and depth.size,
        "height": frame.image.shape[0],
        "width": frame.image.shape[1],
        "intrinsics": None if frame.intrinsics is None else frame.intrinsics.ravel().tolist(),
        "world2cam": None if frame.world2cam is None else frame.world2cam.ravel().tolist(),
    }


def _camera(frame: Frame) -> Camera | None:
    if frame.intrinsics is None or frame.world2cam is None or frame.depth is None:
        return None
    return Camera(frame.intrinsics, frame.world2cam, frame.depth)


def _check_share(refused: list[Refusal], kept: int, allowed: float) -> None:
    """Stop when too much was left out, naming each case."""
    share = len(refused) / max(1, kept + len(refused))
    if kept and share <= allowed:
        return
    lines = "\n  ".join(str(refusal) for refusal in refused[:50])
    raise UserError(
        f"{len(refused)} of {kept + len(refused)} frames cannot be used, {share:.0%}; "
        f"data.max_refused_share={allowed} allows {allowed:.0%}. Mend them or raise the share:\n  {lines}"
    )


def split_scenes(scenes: list[WrittenScene], data: DictConfig) -> None:
    """Give every frame its split: by whole scenes where there are at least three, else by blocks of frames.

    Which scenes go where depends on their names and the seed alone, so a scene keeps its split when others are added
    (up to the rounding of the shares).

    Args:
        scenes: The written scenes; their rows are changed in place.
        data: Reads `data.splits.{val,test,seed}`.
    """
    if len(scenes) >= len(SPLITS):
        order = sorted(scenes, key=lambda scene: _draw(data.splits.seed, scene.rows[0]["scene"]))
        for scene, split in zip(order, _blocks(len(order), data.splits, least=1), strict=True):
            for row in scene.rows:
                row["split"] = split
        return
    for scene in scenes:
        for row, split in zip(scene.rows, _blocks(len(scene.rows), data.splits, least=2), strict=True):
            row["split"] = split


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def _blocks(count: int, shares: DictConfig, least: int) -> list[str]:
    """`count` split names in blocks: test, val, train; at least two frames make a pair to judge on."""
    test, val = max(least, round(shares.test * count)), max(least, round(shares.val * count))
    return (["test"] * test + ["val"] * val + ["train"] * count)[:count]


def _write_tables(folder: Path, scenes: list[WrittenScene], data: DictConfig) -> None:
    rows = [row for scene in scenes for row in scene.rows]
    pq.write_table(pa.Table.from_pylist(rows, schema=FRAME_SCHEMA), folder / "index.parquet")
    pairs = _global_pairs(scenes)
    pq.write_table(pairs, folder / "covisibility.parquet")
    sequences = build_sequences([row["split"] for row in rows], pairs, data.sequence.frames, data.sequence.min_overlap)
    pq.write_table(sequences, folder / "sequences.parquet")


def _global_pairs(scenes: list[WrittenScene]) -> pa.Table:
    """Pairs of all scenes, by row of the index."""
    tables, start = [], 0
    for scene in scenes:
        found = scene.covisibility
        measure = pa.array([found.measure] * len(found.a), pa.string())
        columns = [pa.array(found.a + start), pa.array(found.b + start), pa.array(found.overlap), measure]
        tables.append(pa.table(columns, schema=COVISIBILITY_SCHEMA))
        start += len(scene.rows)
    return pa.concat_tables(tables)


def build_sequences(splits: list[str], pairs: pa.Table, frames: int, min_overlap: float) -> pa.Table:
    """A sequence for each frame as anchor: itself and the views that see most of it (MuM, data).

    Args:
        splits: Split of each row; a sequence never crosses splits.
        pairs: `COVISIBILITY_SCHEMA`.
        frames: Largest length of a sequence, the anchor included.
        min_overlap: Share of the anchor that another view must see.

    Returns:
        `SEQUENCE_SCHEMA`; an anchor that no other view overlaps is a sequence of one.
    """
    others: dict[int, list[tuple[float, int]]] = {row: [] for row in range(len(splits))}
    for a, b, overlap in zip(*(pairs[name].to_pylist() for name in ("a", "b", "overlap")), strict=True):
        if overlap >= min_overlap and splits[a] == splits[b]:
            others[a].append((-overlap, b))
    sequences = [[row, *(b for _, b in sorted(near)[: frames - 1])] for row, near in others.items()]
    return pa.table([pa.array(splits), pa.array(sequences, pa.list_(pa.int32()))], schema=SEQUENCE_SCHEMA)


def _card(data: DictConfig, scenes: list[WrittenScene], refused: list[Refusal]) -> dict[str, Any]:
    rows = [row for scene in scenes for row in scene.rows]
    content = hashlib.sha256("".join(scene.digest for scene in scenes).encode())
    for row in rows:
        content.update(f"{row['scene']}/{row['frame']}/{row['split']}/{row['intrinsics']}/{row['world2cam']}".encode())
    return {
        "content_sha256": content.hexdigest(),
        "frames": len(rows),
        "scenes": len(scenes),
        "sources": dict(Counter(row["source"] for row in rows)),
        "splits": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "split_by": "scene" if len(scenes) >= len(SPLITS) else "blocks of frames",
        "with_pose": sum(row["world2cam"] is not None for row in rows),
        "with_depth": sum(row["depth_size"] is not None for row in rows),
        "covisibility": dict(Counter(scene.covisibility.measure for scene in scenes)),
        "stored": {"short_side": data.short_side, "jpeg_quality": data.jpeg_quality},
        "refused": [asdict(refusal) for refusal in refused],
    }
