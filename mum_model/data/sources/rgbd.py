"""RGB-D sequences in the layout of 7-Scenes (https://www.microsoft.com/research/project/rgb-d-dataset-7-scenes/).

A frame is `frame-XXXXXX.color.jpg` (or `.png`), `.depth.png` and `.pose.txt`, either in the scene's folder or in its
`seq-01`, `seq-02`, ..., which share one world. `camera-intrinsics.txt` (3x3), in the sequence or the scene, may be left
out.

Converts from: depth along z in millimetres, 16 bits, 0 and 65535 unknown, to metres and 0; pose camera-to-world 4x4 in
metres, OpenCV axes, to world-to-camera. Intrinsics stay: 7-Scenes' principal point (320, 240) is the middle of 640x480
in our convention. Colour and depth are taken as registered, as the dataset's users do.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mum_model.data.captures import Capture, Frame, Refusal, RefusedError, Source, one_scene
from mum_model.data.images import is_jpeg, read_image, read_png16
from mum_model.data.sources.common import MILLIMETRE, checked_intrinsics, natural_order, read_matrix, world2cam_from

DEFAULT_SIZE = 640, 480
DEFAULT_INTRINSICS = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])
"""What the dataset's page says of every sequence, for its photos of `DEFAULT_SIZE`."""

UNKNOWN_DEPTH = 65535

COLOUR_ENDINGS = (".color.jpg", ".color.png")


@dataclass(frozen=True)
class _View:
    colour: Path
    depth: Path
    intrinsics: np.ndarray | None
    world2cam: np.ndarray


def recognise(folder: Path) -> bool:
    """Whether the folder, or a sequence in it, has poses or colour images named as in 7-Scenes."""
    return any(_holds_frames(place) for place in [folder, *folder.glob("seq-*")])


def read(folder: Path) -> Capture:
    """Describe the frames of a scene; poses are read now, pixels later.

    Args:
        folder: Folder of the frames, or of the sequences.

    Returns:
        The capture; frames are named `frame-000000` or `seq-01/frame-000000`. A frame that lacks one of its three
        files, or whose pose is broken, is among the refused.

    Raises:
        RefusedError: `camera-intrinsics.txt` is broken.
    """
    views: dict[str, _View] = {}
    refused: list[Refusal] = []
    for place in [folder, *folder.glob("seq-*")]:
        intrinsics = _intrinsics(place, folder)
        for name in {path.name.split(".")[0] for path in place.glob("frame-*.*")}:
            try:
                views[(place / name).relative_to(folder).as_posix()] = _view(place, name, intrinsics)
            except RefusedError as error:
                refused.append(error.refusal)
    return Capture(
        scene=folder.name,
        source="rgbd",
        frames=tuple(natural_order(views)),
        load=partial(_load, views),
        refused=tuple(sorted(refused, key=str)),
    )


def _holds_frames(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("frame-*.pose.txt", "frame-*.color.*"))


def _intrinsics(place: Path, scene: Path) -> np.ndarray | None:
    for path in (place / "camera-intrinsics.txt", scene / "camera-intrinsics.txt"):
        if path.is_file():
            return checked_intrinsics(path, read_matrix(path))
    return None


def _view(place: Path, name: str, intrinsics: np.ndarray | None) -> _View:
    pose, depth = place / f"{name}.pose.txt", place / f"{name}.depth.png"
    colours = [path for ending in COLOUR_ENDINGS if (path := place / f"{name}{ending}").is_file()]
    if len(colours) != 1:
        found = "none of" if not colours else "both of"
        raise RefusedError(place / name, f"{found} .color.jpg and .color.png are there; expected one")
    for path in (depth, pose):
        if not path.is_file():
            raise RefusedError(path, "missing; expected colour, depth and pose of every frame")
    return _View(colours[0], depth, intrinsics, world2cam_from(pose, read_matrix(pose)))


def _load(views: dict[str, _View], frame: str) -> Frame:
    view = views[frame]
    image = read_image(view.colour, upright=False)
    stored = read_png16(view.depth)
    if stored.shape != image.shape[:2]:
        sizes = f"depth of {stored.shape[1]}x{stored.shape[0]} pixels; expected the colour image's"
        raise RefusedError(view.depth, f"{sizes} {image.shape[1]}x{image.shape[0]}")
    intrinsics = view.intrinsics
    if intrinsics is None:
        intrinsics = _default_intrinsics(view.colour, image)
    depth = np.where(stored == UNKNOWN_DEPTH, 0, stored).astype(np.float32) * np.float32(MILLIMETRE)
    return Frame(image=image, intrinsics=intrinsics, world2cam=view.world2cam, depth=depth, lossy=is_jpeg(view.colour))


def _default_intrinsics(path: Path, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if (width, height) != DEFAULT_SIZE:
        raise RefusedError(
            path, f"image of {width}x{height} pixels and no camera-intrinsics.txt; without it expected 640x480"
        )
    return DEFAULT_INTRINSICS


SOURCE = Source(
    name="rgbd",
    layout="RGB-D: frame-XXXXXX.{color.jpg|color.png, depth.png, pose.txt}, in the folder or in its seq-XX (7-Scenes)",
    truth="poses, intrinsics and depth in metres",
    licence="your own captures: yours",
    origin="https://www.microsoft.com/research/project/rgb-d-dataset-7-scenes/",
    recognise=recognise,
    scenes=one_scene("rgbd", read),
)
