"""Films, in whatever FFmpeg reads, as scenes of keyframes chosen by parallax and sharpness.

Points are tracked from the last keyframe. Once they have moved by `MIN_PARALLAX` of the picture's width, a new
keyframe is due, and of the frames up to `MAX_PARALLAX` the sharpest is taken: a standing camera gives one frame, a fast
one many, and motion blur is passed over. The parallax is that of the picture: a turn of the camera counts too.

Converts from nothing: no intrinsics, no pose, no depth. A phone's rotation is applied.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mum_model.data.captures import Capture, Frame, Refusal, RefusedError, Source, one_scene
from mum_model.data.images import MAX_PIXELS

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".3gp")
MIN_PARALLAX, MAX_PARALLAX = 0.04, 0.08
"""Of the picture's width, by the median of the tracked points."""

TRACKED_WIDTH = 320
POINTS = 200
MIN_TRACKED = 0.5
"""Share of the points; with fewer the view has changed altogether."""


@dataclass(frozen=True)
class _Look:
    """A frame as the choice of keyframes sees it."""

    pts: int
    time: float
    grey: np.ndarray
    sharpness: float


def recognise(path: Path) -> bool:
    """Whether the path is a file named like a film."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def read(path: Path) -> Capture:
    """Choose the keyframes of a film; all of it is decoded once.

    Args:
        path: The file.

    Returns:
        The capture; frames are named by their time in seconds. Where the film breaks off, what comes before is kept.

    Raises:
        RefusedError: It is no film, or its pictures are too large.
    """
    refused: list[Refusal] = []
    chosen = {f"{look.time:09.3f}": look.pts for look in _keyframes(_looks(path, refused))}
    return Capture(
        scene=path.stem, source="video", frames=tuple(chosen), load=partial(_load, path, chosen), refused=tuple(refused)
    )


def _open(path: Path) -> Any:
    import av  # only this source needs it

    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise RefusedError(path, f"cannot be opened as a film ({error.strerror})") from error
    if not container.streams.video:
        raise RefusedError(path, "no pictures in it; expected a film")
    stream = container.streams.video[0]
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        raise RefusedError(path, f"pictures of {size} pixels; at most {MAX_PIXELS // 1_000_000} megapixels are read")
    stream.thread_type = "AUTO"
    return container


def _looks(path: Path, refused: list[Refusal]) -> Iterator[_Look]:
    import av

    with _open(path) as container:
        time = 0.0
        try:
            for frame in container.decode(video=0):
                if frame.pts is not None:
                    time = float(frame.pts * frame.time_base)
                    yield _look(frame, time)
        except av.error.FFmpegError as error:
            refused.append(
                Refusal(str(path), f"damaged after {time:.1f} s ({error.strerror}); what comes before is kept")
            )


def _look(frame: Any, time: float) -> _Look:
    height = max(2, round(frame.height * TRACKED_WIDTH / frame.width))
    grey = frame.reformat(TRACKED_WIDTH, height, "gray").to_ndarray()
    return _Look(frame.pts, time, grey, float(cv2.Laplacian(grey, cv2.CV_32F).var()))


def _keyframes(looks: Iterator[_Look]) -> Iterator[_Look]:
    """The first frame, and then the sharpest of each stretch in which the view has moved on enough and not too far."""
    last = next(looks, None)
    if last is None:
        return
    yield last
    points, due = _corners(last), None
    for look in looks:
        parallax = _parallax(last, look, points)
        if parallax >= MIN_PARALLAX and (due is None or (parallax <= MAX_PARALLAX and look.sharpness > due.sharpness)):
            due = look
        if due is not None and parallax > MAX_PARALLAX:
            yield due
            last, points, due = due, _corners(due), None
    if due is not None:
        yield due


def _corners(look: _Look) -> np.ndarray:
    found = cv2.goodFeaturesToTrack(look.grey, POINTS, qualityLevel=0.01, minDistance=7)
    return np.empty((0, 1, 2), np.float32) if found is None else found


def _parallax(last: _Look, look: _Look, points: np.ndarray) -> float:
    """Median motion of the points as a share of the width; endless where most of them are lost."""
    if not len(points):
        return 0.0 if np.abs(last.grey.astype(float) - look.grey).mean() < 1 else np.inf
    moved, tracked, _ = cv2.calcOpticalFlowPyrLK(last.grey, look.grey, points, np.empty_like(points))
    kept = tracked.ravel() == 1
    if kept.mean() < MIN_TRACKED:
        return np.inf
    return float(np.median(np.linalg.norm((moved - points)[kept].reshape(-1, 2), axis=1))) / TRACKED_WIDTH


def _load(path: Path, chosen: dict[str, int], name: str) -> Frame:
    return Frame(image=_reader(path).picture(chosen[name]), lossy=True)


@lru_cache(maxsize=1)
def _reader(path: Path) -> "_Reader":
    return _Reader(path)


class _Reader:
    """Decodes on from where it stands as long as pictures are asked for in order."""

    def __init__(self, path: Path):
        self.path, self.position = path, -1
        self.container = _open(path)
        self.frames = self.container.decode(video=0)

    def picture(self, pts: int) -> np.ndarray:
        """The picture shown at a time of the film's clock, RGB uint8 `[H, W, 3]`."""
        if pts <= self.position:
            self.container.seek(pts, stream=self.container.streams.video[0])
            self.frames = self.container.decode(video=0)
        for frame in self.frames:
            if frame.pts is not None and frame.pts >= pts:
                self.position = frame.pts
                turns = round(frame.rotation / 90)
                return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
        raise RefusedError(self.path, f"no picture at {pts}, although there was one before; has the file changed?")


SOURCE = Source(
    name="video",
    layout="film: an .mp4, .mov, .mkv, .webm or .avi file, or a folder of such",
    truth="none",
    licence="your own captures: yours",
    origin="any camera",
    recognise=recognise,
    scenes=one_scene("video", read),
)
