"""MegaScenes (https://github.com/MegaScenes/dataset): photos of places from Wikimedia, with COLMAP models.

A scene is a model, `reconstruct/012/345/colmap/0` (in later releases `sparses/0`); its photos lie under
`images/012/345`, by the names that the model has. Scenes of one place share the number `012/345`.

Converts from: COLMAP, see there.
"""

from functools import partial
from pathlib import Path

from mum_model.data.captures import Capture, Scene, SequenceRule, Source
from mum_model.data.sources.colmap import read_model
from mum_model.data.sources.common import folders

RULE = SequenceRule(kind="whole", least=12)


def recognise(path: Path) -> bool:
    """Whether the path has `reconstruct` and `images`."""
    return (path / "reconstruct").is_dir() and (path / "images").is_dir()


def scenes(path: Path) -> list[Scene]:
    """List the models of all places."""
    found = []
    for place in (place for thousand in folders(path / "reconstruct") for place in folders(thousand)):
        number = f"{place.parent.name}/{place.name}"
        for model in (model for kind in ("colmap", "sparses") for model in folders(place / kind)):
            photos = path / "images" / number
            read_it = partial(read, model, photos, f"{number}/{model.name}", number)
            found.append(Scene("megascenes", f"{number}/{model.name}", (model,), read_it))
    return found


def read(model: Path, photos: Path, scene: str, place: str) -> Capture:
    """Describe the photos of a model.

    Args:
        model: Folder of the model.
        photos: Folder of the place's photos.
        scene: Its name.
        place: Number of the place.

    Returns:
        The capture.

    Raises:
        RefusedError: The model cannot be read.
    """
    return read_model(model, photos, "megascenes", scene, rule=RULE, place=place)


SOURCE = Source(
    name="megascenes",
    layout="reconstruct/012/345/{colmap,sparses}/0/{cameras,images,points3D}.bin and "
    "images/012/345/commons/CATEGORY/0/pictures/*",
    truth="poses and intrinsics, sparse depth, points; up to scale",
    licence="CC BY 4.0; the photos have their own",
    origin="https://github.com/MegaScenes/dataset",
    recognise=recognise,
    scenes=scenes,
)
