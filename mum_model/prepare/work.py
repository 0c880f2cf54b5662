"""The work on one scene: its frames, resized, and their measured co-visibility become one self-describing shard."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from omegaconf import DictConfig

from mum_model.data.captures import (
    Capture,
    Frame,
    Refusal,
    RefusedError,
    Scene,
    SequenceRule,
    UnusableSceneError,
    is_text,
)
from mum_model.data.covisibility import Covisibility, View, covisibility
from mum_model.data.fingerprints import fingerprint
from mum_model.data.geometry import resize_depth, resize_intrinsics
from mum_model.data.scenes import FRAME_FIELDS
from mum_model.data.shards import Extent, ShardWriter, encode_depth, encode_image, read_once
from mum_model.errors import UserError
from mum_model.files import file_sha256

RECORD_SCHEMA = pa.schema(
    [
        *FRAME_FIELDS,
        ("neighbours", pa.list_(pa.int32())),  # positions in the scene
        ("overlap", pa.list_(pa.float32())),
        ("angle", pa.list_(pa.float32())),
    ]
)


JPEG_FROM = 128
"""Pixels of the shorter side. Smaller photos are stored without loss: they decode fast anyway, and JPEG's noise weighs
most in them (`docs/scale.md`)."""


@dataclass(frozen=True)
class FrameSettings:
    """How frames are stored.

    Attributes:
        short_side: Pixels of the shorter side; smaller frames stay as they are.
        jpeg_quality: 1..100, of photos and films; None to store them without loss.
    """

    short_side: int
    jpeg_quality: int | None

    @classmethod
    def of(cls, data: DictConfig) -> "FrameSettings":
        """Those of `data`."""
        return cls(data.short_side, data.jpeg_quality)

    def quality(self, frame: Frame) -> int | None:
        """The quality of the JPEG that a frame is stored as; None for PNG."""
        return self.jpeg_quality if frame.lossy and min(frame.image.shape[:2]) >= JPEG_FROM else None


@dataclass(frozen=True)
class WrittenScene:
    """What came of one scene.

    Attributes:
        source: Name of its format.
        scene: Its name.
        place: Scenes of one place share a split; empty for a place of its own.
        shard: File name of its shard.
        frames: How many are in the shard; with none there is no shard.
        sha256: Of the shard.
        record: Where the shard's `scene.arrow` lies.
        refused: What was left out.
    """

    source: str
    scene: str
    place: str
    shard: str
    frames: int
    sha256: str
    record: Extent
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class SceneRecord:
    """All that a shard says of its scene.

    Attributes:
        frames: A row a frame (`RECORD_SCHEMA`).
        pairs: Co-visible pairs.
        rule: The dataset's own rule for sequences, if it has one.
        sequences: The dataset's own sequences, by position, if it lists them.
    """

    frames: pa.Table
    pairs: Covisibility
    rule: SequenceRule | None
    sequences: list[np.ndarray]


def write_scene(scene: Scene, folder: Path, settings: FrameSettings) -> WrittenScene:
    """Read, resize and pack the frames of one scene, and measure their co-visibility.

    Args:
        scene: The scene.
        folder: Where the shard goes; it appears there whole or not at all.
        settings: How frames are stored.

    Returns:
        What came of it; broken frames are among the refused.

    Raises:
        UserError: The disk is full.
    """
    try:
        capture = scene.capture()
    except UnusableSceneError as error:
        return WrittenScene(scene.source, scene.name, "", "", 0, "", Extent(0, 0), error.refused)
    path = folder / f"{scene.source}-{safe_name(scene.name)}.tar"
    try:
        return _write(capture, path, settings)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written, {error.strerror}. Free some space and run again: finished scenes are kept"
        ) from error


def safe_name(name: str) -> str:
    """A file name for any name: unusual characters replaced, and told apart by a digest where that was done."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if safe == name and len(name) <= 100:
        return name
    return f"{safe[:80]}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:10]}"


def _write(capture: Capture, path: Path, settings: FrameSettings) -> WrittenScene:
    rows: list[dict[str, Any]] = []
    views: list[View] = []
    refused = list(capture.refused)
    with _shard(path) as shard:
        for name in capture.frames:
            try:
                if not is_text(name):
                    raise RefusedError(f"{capture.scene}/{name}", "the name is not UTF-8; rename the file")
                frame = resize(capture.load(name), settings.short_side)
            except RefusedError as error:
                refused.append(error.refusal)
                continue
            rows.append(_pack(shard, frame, name, settings))
            views.append(View.of(frame))
        positions = {row["frame"]: position for position, row in enumerate(rows)}
        kept = [capture.frames.index(name) for name in positions] if capture.overlap is not None else []
        stated = None if capture.overlap is None else capture.overlap[np.ix_(kept, kept)]
        together = not (capture.rule and capture.rule.kind == "single")
        pairs = covisibility(views if together else [], stated)
        record = shard.add("scene.arrow", _record(capture, rows, pairs, positions))
    frames = len(rows)
    if not frames:
        path.unlink()
    digest = file_sha256(path) if frames else ""
    return WrittenScene(
        capture.source,
        capture.scene,
        capture.place,
        path.name if frames else "",
        frames,
        digest,
        record,
        tuple(refused),
    )


@contextmanager
def _shard(path: Path) -> Iterator[ShardWriter]:
    partial = path.with_name(f".{path.name}.partial")
    writer = ShardWriter(partial)
    try:
        yield writer
    finally:
        writer.close()
    partial.replace(path)


def is_whole(path: Path, sha256: str) -> bool:
    """Whether a shard is there with the content it was written with."""
    return path.is_file() and file_sha256(path) == sha256


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
        points=frame.points,
        lossy=frame.lossy,
    )


def _pack(shard: ShardWriter, frame: Frame, name: str, settings: FrameSettings) -> dict[str, Any]:
    member = safe_name(name)
    ending, content = encode_image(frame.image, settings.quality(frame))
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
        "fingerprint": fingerprint(frame.image),
    }


def _record(capture: Capture, rows: list[dict[str, Any]], pairs: Covisibility, positions: dict[str, int]) -> bytes:
    cuts = np.searchsorted(pairs.a, np.arange(len(rows) + 1))
    columns = {"neighbours": pairs.b, "overlap": pairs.overlap, "angle": pairs.angle}
    lists = {name: pa.ListArray.from_arrays(pa.array(cuts, pa.int32()), values) for name, values in columns.items()}
    frames = pa.Table.from_pylist(rows, schema=pa.schema(FRAME_FIELDS))
    about = {
        "source": capture.source,
        "scene": capture.scene,
        "measure": pairs.measure,
        "rule": capture.rule and asdict(capture.rule),
        "sequences": [[positions[name] for name in names if name in positions] for names in capture.sequences],
    }
    schema = RECORD_SCHEMA.with_metadata({"scene": json.dumps(about)})
    table = pa.table([*frames.columns, *lists.values()], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read_record(folder: Path, scene: WrittenScene) -> SceneRecord:
    """What a shard says of its scene.

    Args:
        folder: Where the shards are.
        scene: What came of the scene.

    Returns:
        Its record.
    """
    frames = pa.ipc.open_stream(read_once(folder / scene.shard, scene.record)).read_all()
    about = json.loads(frames.schema.metadata[b"scene"])
    lists = {name: frames[name].combine_chunks() for name in ("neighbours", "overlap", "angle")}
    counts = np.diff(lists["neighbours"].offsets.to_numpy())
    pairs = Covisibility(
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        lists["neighbours"].values.to_numpy(),
        lists["overlap"].values.to_numpy(),
        lists["angle"].values.to_numpy(),
        about["measure"],
    )
    rule = about["rule"] and SequenceRule(
        **about["rule"] | {name: tuple(about["rule"][name]) for name in ("overlap", "angle")}
    )
    sequences = [np.array(sequence, np.int32) for sequence in about["sequences"]]
    return SceneRecord(frames, pairs, rule, sequences)


def input_state(scene: Scene, settings: FrameSettings, code: str) -> str:
    """A digest of all that a scene's shard depends on, cheap to take: names, sizes and times of its inputs.

    Args:
        scene: The scene.
        settings: How frames are stored.
        code: State of the code.

    Returns:
        It changes when anything does.
    """
    listed = [entry for path in scene.inputs for entry in _listing(path)]
    state = [scene.source, scene.name, scene.key, asdict(settings), code, listed]
    return hashlib.sha256(json.dumps(state).encode(errors="surrogatepass")).hexdigest()


def _listing(path: Path) -> list[tuple[str, int, int]]:
    """Path, size and time of a file, or of all below a folder; a link that leads nowhere counts as absent."""
    if not path.is_dir():
        return [_stat(str(path))] if path.exists() else []
    files = (os.path.join(place, name) for place, _, names in os.walk(path) for name in names)  # noqa: PTH118
    return sorted(_stat(file) for file in files if os.path.exists(file))  # noqa: PTH110


def _stat(path: str) -> tuple[str, int, int]:
    state = os.stat(path)  # noqa: PTH116  (millions of them)
    return path, state.st_size, state.st_mtime_ns


def code_state() -> str:
    """A digest of the code that turns captures into shards."""
    package = Path(__file__).parent.parent
    files = sorted([*package.joinpath("data").rglob("*.py"), Path(__file__)])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
