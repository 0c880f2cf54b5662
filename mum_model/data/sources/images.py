"""A plain folder of images: one scene, seen without any calibration.

Converts from nothing: no intrinsics, no pose, no depth. EXIF orientation is applied.
"""

from functools import partial
from pathlib import Path

from mum_model.data.captures import Capture, Frame, Source, one_scene
from mum_model.data.images import is_image_name, is_jpeg, read_image
from mum_model.data.sources.common import natural_order


def recognise(folder: Path) -> bool:
    """Whether image files lie in the folder itself."""
    return folder.is_dir() and any(is_image_name(path) and path.is_file() for path in folder.iterdir())


def read(folder: Path) -> Capture:
    """Describe the images of a folder, in natural order of their names.

    Args:
        folder: The folder; deeper ones are not looked at.

    Returns:
        The capture; its frames are named like their files.
    """
    names = (path.name for path in folder.iterdir() if is_image_name(path) and path.is_file())
    return Capture(scene=folder.name, source="images", frames=tuple(natural_order(names)), load=partial(_load, folder))


def _load(folder: Path, frame: str) -> Frame:
    return Frame(image=read_image(folder / frame, upright=True), lossy=is_jpeg(folder / frame))


SOURCE = Source(
    name="images",
    layout="images: a folder of .jpg, .jpeg or .png files, or a folder of such folders",
    truth="none",
    licence="your own captures: yours",
    origin="any camera",
    recognise=recognise,
    scenes=one_scene("images", read),
)
