"""ImageNet-1K (https://image-net.org): single pictures, a folder a class; each is a scene of one view.

Converts from nothing: no intrinsics, no pose, no depth. The pictures of a class are stored together and never shown
together.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from mum_model.data.captures import Capture, Scene, SequenceRule, Source
from mum_model.data.sources import images
from mum_model.data.sources.common import folders

RULE = SequenceRule(kind="single")
CLASS = re.compile(r"n\d{8}")


def recognise(path: Path) -> bool:
    """Whether folders named like classes (`n01440764`) are under the path."""
    return bool(_classes(path))


def scenes(path: Path) -> list[Scene]:
    """List the classes of the training part."""
    return [Scene("imagenet", folder.name, (folder,), partial(read, folder)) for folder in _classes(path)]


def _classes(path: Path) -> list[Path]:
    for part in (path / "ILSVRC" / "Data" / "CLS-LOC" / "train", path / "train", path):
        found = [folder for folder in folders(part) if CLASS.fullmatch(folder.name)]
        if found:
            return found
    return []


def read(folder: Path) -> Capture:
    """Describe the pictures of a class; frames are named like their files."""
    return replace(images.read(folder), source="imagenet", rule=RULE)


SOURCE = Source(
    name="imagenet",
    layout="[ILSVRC/Data/CLS-LOC/]train/n01440764/*.JPEG",
    truth="none",
    licence="for research and teaching, not commercial (image-net.org/download)",
    origin="https://image-net.org",
    recognise=recognise,
    scenes=scenes,
)
