"""Whether the binary files of a COLMAP model are whole.

pycolmap trusts the counts in them: of a cut `cameras.bin` it makes up the missing parameters, on a cut `frames.bin` it
never returns, on a cut `points3D.bin` it asks for all memory (4.2.1). So each file is stepped through once, by its
format (https://colmap.github.io/format.html#binary-file-format; `rigs.bin` and `frames.bin`:
colmap/src/colmap/scene/reconstruction_io_binary.cc), and must end where its last record does.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mum_model.data.captures import RefusedError


class _Cursor:
    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return values

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self.data):
            raise EOFError


def check_binary_model(model: Path) -> None:
    """Refuse a model of which a binary file is cut, has bytes too many, or is something else.

    Args:
        model: Folder of `cameras.bin` and so on; files that are not there are not missed.

    Raises:
        RefusedError: Names the file.
    """
    for name, step in STEPS.items():
        path = model / name
        if path.is_file():
            _check(path, step)


def _check(path: Path, step: Callable[[_Cursor], None]) -> None:
    cursor = _Cursor(path.read_bytes())
    try:
        (records,) = cursor.take("<Q")
        for _ in range(records):
            step(cursor)
    except (struct.error, EOFError, ValueError) as error:
        raise RefusedError(path, "cut or damaged; expected a COLMAP binary file, copy it again") from error
    if cursor.position != len(cursor.data):
        extra = len(cursor.data) - cursor.position
        raise RefusedError(path, f"{extra} bytes after its {records} records; expected a COLMAP binary file")


def _camera(cursor: _Cursor) -> None:
    import pycolmap  # heavy, and only this source needs it

    _, model, _, _ = cursor.take("<IiQQ")
    camera = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(model), focal_length=1, width=1, height=1)
    cursor.skip(8 * len(camera.params))


def _image(cursor: _Cursor) -> None:
    cursor.skip(4 + 7 * 8 + 4)
    cursor.position = cursor.data.index(b"\0", cursor.position) + 1
    (observations,) = cursor.take("<Q")
    cursor.skip(observations * (2 * 8 + 8))


def _point(cursor: _Cursor) -> None:
    cursor.skip(8 + 3 * 8 + 3 + 8)
    (track,) = cursor.take("<Q")
    cursor.skip(track * (4 + 4))


def _rig(cursor: _Cursor) -> None:
    _, sensors = cursor.take("<II")
    if sensors:
        cursor.skip(4 + 4)  # the reference sensor has no pose
    for _ in range(sensors - 1):
        _, _, has_pose = cursor.take("<iIB")
        cursor.skip(7 * 8 * bool(has_pose))


def _frame(cursor: _Cursor) -> None:
    cursor.skip(4 + 4 + 7 * 8)
    (images,) = cursor.take("<I")
    cursor.skip(images * (4 + 4 + 8))


STEPS: dict[str, Callable[[_Cursor], None]] = {
    "cameras.bin": _camera,
    "images.bin": _image,
    "points3D.bin": _point,
    "rigs.bin": _rig,
    "frames.bin": _frame,
}
"""Steps over one record of each file."""
