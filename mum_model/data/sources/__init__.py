"""Opens folders of captures, whatever their format: a module a format, each with `LAYOUT`, `recognise` and `read`.

To add a format, write its module and put it in `SOURCES`, before the ones it could be mistaken for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mum_model.data.captures import Capture, Refusal, RefusedError
from mum_model.data.sources import colmap, images, nerfstudio, rgbd
from mum_model.errors import UserError


class Source(Protocol):
    """What a module of a format offers.

    Attributes:
        LAYOUT: The format and the files it is made of, in one line for the user.
    """

    LAYOUT: str

    def recognise(self, folder: Path) -> bool:
        """Whether the folder looks like one capture of this format, broken or not."""

    def read(self, folder: Path) -> Capture:
        """Describe the capture in a recognised folder; raises `RefusedError` where nothing of it can be read."""


SOURCES: tuple[Source, ...] = (nerfstudio, colmap, rgbd, images)
"""The first that recognises a folder reads it; `images` is last, as every capture has images somewhere."""


@dataclass(frozen=True)
class Opened:
    """What was found in a folder of captures.

    Attributes:
        captures: The scenes that can be read, by folder name; each has at least one frame, and its own `refused`.
        refused: What belongs to none of them: scenes that cannot be read at all, with all that was refused in them,
            folders of no known format, images that lie beside folders of scenes.
    """

    captures: tuple[Capture, ...]
    refused: tuple[Refusal, ...]


def open_captures(path: Path) -> Opened:
    """Find the captures in a folder: the folder itself, or each of its subfolders.

    A broken scene does not stop the others; it is among `refused`, and `captures` may even come out empty.

    Args:
        path: Folder of one capture, or of folders of captures (one level; hidden folders are passed over).

    Returns:
        The captures, whose frames are yet to be read, and what was refused.

    Raises:
        UserError: There is no such folder, it is empty, or nothing in it looks like a capture.
    """
    path = path.resolve()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a folder of captures")
    found = _find_scenes(path)
    if not found:
        content = "nothing that is recognised" if any(path.iterdir()) else "nothing, it is empty"
        layouts = "; ".join(source.LAYOUT for source in SOURCES)
        raise UserError(f"{path} holds {content}; expected a capture, or folders of captures. Known are: {layouts}")
    captures: list[Capture] = []
    refused = _left_over(path, set(found))
    for folder, source in found.items():
        try:
            captures.append(_read(folder, source))
        except _UnusableSceneError as error:
            refused.extend(error.refused)
    return Opened(tuple(captures), tuple(refused))


class _UnusableSceneError(Exception):
    def __init__(self, *refused: Refusal):
        self.refused = refused
        super().__init__(*refused)


def _source_of(folder: Path) -> Source | None:
    return next((source for source in SOURCES if source.recognise(folder)), None)


def _subfolders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _find_scenes(path: Path) -> dict[Path, Source]:
    source = _source_of(path)
    if source not in (None, images):  # its subfolders are its own
        return _recognised([path])
    return _recognised(_subfolders(path)) or _recognised([path])


def _recognised(folders: list[Path]) -> dict[Path, Source]:
    return {folder: source for folder in folders if (source := _source_of(folder))}


def _left_over(path: Path, scenes: set[Path]) -> list[Refusal]:
    if path in scenes:
        return []
    unknown = [folder for folder in _subfolders(path) if folder not in scenes]
    refused = [Refusal(str(folder), "no capture of a known layout is in it; left out") for folder in unknown]
    if images.recognise(path):
        loose = "images beside folders of scenes; left out, expected in a folder of their own"
        refused.append(Refusal(str(path), loose))
    return refused


def _read(folder: Path, source: Source) -> Capture:
    try:
        capture = source.read(folder)
    except RefusedError as error:
        raise _UnusableSceneError(error.refusal) from error
    except OSError as error:
        raise _UnusableSceneError(
            Refusal(str(error.filename or folder), f"cannot be read: {error.strerror}")
        ) from error
    if not capture.frames:
        nothing = Refusal(str(folder), f"none of the frames of this {capture.source} scene can be used")
        raise _UnusableSceneError(nothing, *capture.refused)
    return capture
