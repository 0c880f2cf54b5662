"""RealEstate10K (https://google.github.io/realestate10k/): clips of walks through houses, with cameras.

The dataset lists films and cameras; its frames are fetched by each user, most often with
https://github.com/cashiwamochi/RealEstate10K_Downloader, which names them by time.

Converts from: a text file a clip: the film's address, then a line a frame: time in microseconds, fx, fy, cx, cy as
shares of width and height, two zeros, world-to-camera 3x4 with OpenCV axes. The unit is that of the clip.
"""

from functools import partial
from pathlib import Path

import numpy as np

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    file_capture,
    folders,
    natural_order,
    world2cam_given,
)

RULE = SequenceRule(kind="whole")
PARTS = ("train", "test")
FORM = "expected time, fx, fy, cx, cy, 0, 0 and 12 numbers of the pose"


def recognise(path: Path) -> bool:
    """Whether `RealEstate10K` has camera files, and `dataset` frames."""
    return any((path / "RealEstate10K" / part).is_dir() and (path / "dataset" / part).is_dir() for part in PARTS)


def scenes(path: Path) -> list[Scene]:
    """List the clips that have frames, of both parts; those of `test` are named so."""
    found = []
    for part in PARTS:
        for clip in folders(path / "dataset" / part):
            cameras = path / "RealEstate10K" / part / f"{clip.name}.txt"
            found.append(
                Scene("realestate10k", f"{part}/{clip.name}", (clip, cameras), partial(read, clip, cameras, part))
            )
    return found


def read(clip: Path, cameras: Path, part: str) -> Capture:
    """Describe the frames of a clip, in order of time.

    Args:
        clip: Folder of its frames, `TIME.png` or `TIME.jpg`.
        cameras: Its text file.
        part: `train` or `test`.

    Returns:
        The capture; frames are named by their time. A frame that the text file lacks is among the refused.

    Raises:
        RefusedError: The text file is missing or empty.
    """
    film, rows = _cameras(cameras)
    names = natural_order(path.name for path in clip.iterdir() if path.suffix in (".png", ".jpg"))
    view = partial(_view, clip, cameras, rows)
    return file_capture("realestate10k", f"{part}/{clip.name}", names, view, rule=RULE, place=film)


def _cameras(path: Path) -> tuple[str, dict[str, str]]:
    if not path.is_file():
        raise RefusedError(path, "missing; expected the cameras of the clip")
    film, *lines = path.read_text(errors="replace").splitlines() or [""]
    rows = {line.split()[0]: line for line in lines if line.strip()}
    if not rows:
        raise RefusedError(path, f"no cameras in it; {FORM} a line")
    return film.strip(), rows


def _view(clip: Path, cameras: Path, rows: dict[str, str], name: str) -> FileView:
    time = Path(name).stem
    if time not in rows:
        raise RefusedError(clip / name, f"no camera for it in {cameras.name}")
    try:
        numbers = np.array(rows[time].split()[1:], np.float64)
        fx, fy, cx, cy, _, _ = numbers[:6]
        world2cam = numbers[6:].reshape(3, 4)
    except ValueError as error:
        raise RefusedError(cameras, f"time {time}: {error}; {FORM}") from error
    field = f"time {time}: "
    intrinsics = checked_intrinsics(cameras, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), field)
    return FileView(clip / name, intrinsics, world2cam_given(cameras, world2cam, field), None, (1, 1))


SOURCE = Source(
    name="realestate10k",
    layout="RealEstate10K/{train,test}/CLIP.txt and dataset/{train,test}/CLIP/TIME.png",
    truth="poses and intrinsics; up to scale",
    licence="cameras CC BY 4.0; the films belong to their makers",
    origin="https://google.github.io/realestate10k/",
    recognise=recognise,
    scenes=scenes,
)
