"""3D Street View (https://github.com/amir32002/3D_Street_View): buildings from Google Street View.

A photo has a text file beside it whose line `d` gives, in this order: numbers of city part, target, patch and view; the
target's latitude, longitude, height; its surface normal; the camera's latitude, longitude, height; distance, heading,
pitch, roll.

Converts from: nothing. The field of view is not given and the signs of pitch and roll are not documented, so intrinsics
and poses stay unknown. Photos of one target follow each other, and chunks are taken in that order.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from mum_model.data.captures import Capture, RefusedError, Scene, SequenceRule, Source
from mum_model.data.sources.common import FileView, file_capture, folders, natural_order

RULE = SequenceRule(kind="chunk", frames=24)
FIELDS = 17


def recognise(path: Path) -> bool:
    """Whether folders named by four digits with photos and text files are under the path."""
    return bool(_parts(path))


def scenes(path: Path) -> list[Scene]:
    """List the parts of cities."""
    return [Scene("streetview", folder.name, (folder,), partial(read, folder)) for folder in _parts(path)]


def _parts(path: Path) -> list[Path]:
    """`0001/0001` as the archives unpack, or `0001`."""
    numbered = [folder for folder in folders(path) if len(folder.name) == 4 and folder.name.isdecimal()]
    places = [nested if (nested := folder / folder.name).is_dir() else folder for folder in numbered]
    return [folder for folder in places if any(file.with_suffix(".txt").is_file() for file in folder.glob("*.jpg"))]


def read(folder: Path) -> Capture:
    """Describe the photos of a part; a photo whose text file is missing or broken is among the refused."""
    names = natural_order(path.name for path in folder.glob("*.jpg"))
    targets: dict[str, tuple[int, int]] = {}
    refused = []
    for name in names:
        try:
            targets[name] = _target(folder / name)
        except RefusedError as error:
            refused.append(error.refusal)
    order = sorted(targets, key=lambda name: targets[name])
    capture = file_capture("streetview", folder.name, order, lambda name: FileView(folder / name), rule=RULE)
    return replace(capture, refused=(*capture.refused, *refused))


def _target(image: Path) -> tuple[int, int]:
    """Numbers of the target and of the view."""
    file = image.with_suffix(".txt")
    if not file.is_file():
        raise RefusedError(file, f"missing; expected the numbers of {image.name}")
    rows = [line.split()[1:] for line in file.read_text(errors="replace").splitlines() if line.startswith("d ")]
    try:
        _, target, _, view = map(int, rows[0][:4])
    except (IndexError, ValueError) as error:
        raise RefusedError(file, f"no line 'd' of {FIELDS} numbers ({error})") from error
    return target, view


SOURCE = Source(
    name="streetview",
    layout="0001/[0001/]{NAME.jpg, NAME.txt} with a line 'd' of 17 numbers",
    truth="which photos show the same target; no intrinsics, poses not used (see the module)",
    licence="for research, not commercial; the photos are Google's",
    origin="https://github.com/amir32002/3D_Street_View",
    recognise=recognise,
    scenes=scenes,
)
