"""Finds scenes under a path, whatever their format: a module a format, each with its `SOURCE`.

To add a format, write its module and put it in `SOURCES`, before the ones it could be mistaken for.
"""

from dataclasses import dataclass
from pathlib import Path

from mum_model.data.captures import Refusal, RefusedError, Scene, Source
from mum_model.data.remote import is_url
from mum_model.data.sources import (
    arkitscenes,
    blendedmvs,
    co3d,
    colmap,
    dl3dv,
    hypersim,
    imagenet,
    images,
    megadepth,
    megascenes,
    nerfstudio,
    realestate10k,
    rgbd,
    scannet,
    scannetpp,
    streetview,
    tum,
    video,
    wildrgbd,
)
from mum_model.data.sources.archives import is_archive, unpacked
from mum_model.data.sources.remote import fetched
from mum_model.errors import UserError

SOURCES: tuple[Source, ...] = tuple(
    module.SOURCE
    for module in (
        megadepth,
        blendedmvs,
        dl3dv,
        scannetpp,
        megascenes,
        co3d,
        wildrgbd,
        streetview,
        arkitscenes,
        realestate10k,
        hypersim,
        imagenet,
        nerfstudio,
        colmap,
        rgbd,
        tum,
        scannet,
        video,
        images,
    )
)
"""The first that recognises a path lists its scenes; `images` is last, as every capture has images somewhere."""


@dataclass(frozen=True)
class Found:
    """What was found under a path.

    Attributes:
        scenes: In a fixed order.
        refused: What belongs to none of them: scenes that cannot even be listed, things of no known format, images that
            lie beside folders of scenes.
        root: What was looked at, as a local path.
    """

    scenes: tuple[Scene, ...]
    refused: tuple[Refusal, ...]
    root: Path


def find_scenes(source: str, work: Path) -> Found:
    """Find the scenes of a source: it is a capture or dataset itself, or holds several.

    Args:
        source: Path or URL of a capture, a public dataset, an archive of either, or a folder of any of these (one
            level; what is hidden is passed over).
        work: Folder to which archives are unpacked and URLs fetched.

    Returns:
        The scenes, yet to be read, and what was refused.

    Raises:
        UserError: There is no such source, it is empty, or nothing in it looks like a capture.
    """
    path = fetched(source, work) if is_url(source) else Path(source).expanduser().resolve()
    if not path.exists():
        raise UserError(f"{path}: no such folder; expected a folder of captures")
    refused: list[Refusal] = []
    archives = [path] if is_archive(path) else [entry for entry in _entries(path) if is_archive(entry)]
    found = {} if is_archive(path) else _recognise(path)
    for archive in archives:
        try:
            found |= _recognise(unpacked(archive, work))
        except RefusedError as error:
            refused.append(error.refusal)
    if not found and not refused:
        content = "nothing that is recognised" if path.is_file() or any(path.iterdir()) else "nothing, it is empty"
        layouts = "; ".join(source.layout for source in SOURCES)
        raise UserError(f"{path} holds {content}; expected a capture, or folders of captures. Known are: {layouts}")
    scenes: list[Scene] = []
    refused += _left_over(path, set(found))
    for place, kind in found.items():
        try:
            listed = list(kind.scenes(place))
            scenes += listed
            refused += _beside(place, kind, listed)
        except RefusedError as error:
            refused.append(error.refusal)
        except OSError as error:
            refused.append(Refusal(str(error.filename or place), f"cannot be read: {error.strerror}"))
    return Found(tuple(scenes), tuple(refused), path)


def source_table() -> str:
    """Layout, ground truth, licence and origin of every source, as text for a person."""
    return "\n\n".join(
        f"{source.name}\n  layout   {source.layout}\n  truth    {source.truth}\n  licence  {source.licence}\n"
        f"  origin   {source.origin}"
        for source in SOURCES
    )


def _source_of(path: Path) -> Source | None:
    return next((source for source in SOURCES if source.recognise(path)), None)


def _entries(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []


def _recognise(path: Path) -> dict[Path, Source]:
    source = _source_of(path)
    if path.is_file() or source not in (None, images.SOURCE):  # what is in it is its own
        return _recognised([path])
    return _recognised(_entries(path)) or _recognised([path])


def _recognised(paths: list[Path]) -> dict[Path, Source]:
    return {path: source for path in paths if (source := _source_of(path))}


def _beside(place: Path, kind: Source, scenes: list[Scene]) -> list[Refusal]:
    """Captures of other formats in the folder of a dataset: none of its scenes is read from them."""
    inside = [path.relative_to(place) for scene in scenes for path in scene.inputs if path.is_relative_to(place)]
    if not inside or Path() in inside:
        return []
    own = {path.parts[0] for path in inside}
    others = [entry for entry in _entries(place) if entry.name not in own and _source_of(entry) not in (None, kind)]
    reason = f"no part of the {kind.name} dataset that it lies in; left out, expected by itself in data.source"
    return [Refusal(str(entry), reason) for entry in others]


def _left_over(path: Path, scenes: set[Path]) -> list[Refusal]:
    if path in scenes or path.is_file():
        return []
    unknown = [entry for entry in _entries(path) if entry.is_dir() and entry not in scenes]
    refused = [Refusal(str(folder), "no capture of a known layout is in it; left out") for folder in unknown]
    if images.SOURCE.recognise(path):
        loose = "images beside folders of scenes; left out, expected in a folder of their own"
        refused.append(Refusal(str(path), loose))
    return refused
