"""`transforms.json` as nerfstudio and instant-ngp write it.

Formats: https://docs.nerf.studio/quickstart/data_conventions.html and instant-ngp's `scripts/colmap2nerf.py` and
`src/nerf_loader.cu`. A camera field in a frame goes before the same field of the file.

Converts from: pose camera-to-world 4x4 with OpenGL axes (x right, y up, z backward), to OpenCV and world-to-camera;
OpenCV's distortions, to a pinhole; depth along z in millimetres, 16 bits, 0 unknown, to metres. Intrinsics stay: both
programs shoot the ray of pixel (i, j) through (i + 0.5, j + 0.5) (nerfstudio's `get_image_coords(pixel_offset=0.5)`;
instant-ngp divides `cx` by `w`, and its writer copies COLMAP's), so the centre of the top-left pixel is at (0.5, 0.5).
The world's axes and scale are left as they are; only depth fixes the metre.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mum_model.data.captures import Capture, Frame, Refusal, RefusedError, SequenceRule, Source, one_scene
from mum_model.data.images import IMAGE_SUFFIXES, image_size, is_jpeg, read_png16
from mum_model.data.sources.common import file_inside, natural_order, world2cam_from
from mum_model.data.sources.lens import Lens, checked_lens, read_photo

FILE = "transforms.json"
METRES_PER_UNIT = 1e-3
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])

PERSPECTIVE_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
"""nerfstudio treats all of these as OpenCV's model with the missing terms 0."""

FISHEYE_MODEL = "OPENCV_FISHEYE"

LARGEST_NUMBER = 1e300
"""JSON's integers have no bound; floats have."""


@dataclass(frozen=True)
class _View:
    image: Path
    depth: Path | None
    lens: Lens
    world2cam: np.ndarray


def recognise(folder: Path) -> bool:
    """Whether the folder has a `transforms.json`."""
    return (folder / FILE).is_file()


def read(folder: Path) -> Capture:
    """Describe the frames that a `transforms.json` lists, in natural order of their names.

    Args:
        folder: Folder of the file; images are looked for relative to it.

    Returns:
        The capture; frames are named as the file lists them (`images/0001.jpg`). A frame without an image file, listed
        twice, or with a broken field is among the refused.

    Raises:
        RefusedError: The file is no JSON object with a list of `frames`.
    """
    return read_transforms(folder / FILE, "nerfstudio", folder.name)


def read_transforms(
    file: Path,
    source: str,
    scene: str,
    *,
    place: Callable[[str], str] = str,
    base: Path | None = None,
    shrink: int = 1,
    rule: SequenceRule | None = None,
) -> Capture:
    """Describe the frames that a file in this format lists, in natural order of their names.

    Args:
        file: The file.
        source: Name of the dataset that it belongs to.
        scene: Name of the scene.
        place: Where a file that it lists is, relative to `base`.
        base: What paths are relative to; None is the file's folder.
        shrink: How many times smaller the photos are than the file says.
        rule: How the dataset's makers form sequences.

    Returns:
        The capture; see `read`.

    Raises:
        RefusedError: The file is missing, or no JSON object with a list of `frames`.
    """
    content = _parse(file)
    views: dict[str, _View] = {}
    refused: list[Refusal] = []
    for index, entry in enumerate(content["frames"]):
        try:
            name, view = _view(_Fields(file, f"frames[{index}]", entry, content, base or file.parent, place), shrink)
            if name in views:
                raise RefusedError(file, f"frames[{index}].file_path: '{name}' is listed twice; the first is kept")
            views[name] = view
        except RefusedError as error:
            refused.append(error.refusal)
    return Capture(
        scene=scene,
        source=source,
        frames=tuple(natural_order(views)),
        load=partial(_load, views),
        refused=tuple(dict.fromkeys(refused)),  # a broken field of the whole file is said once
        rule=rule,
    )


def _parse(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise RefusedError(file, "missing; expected the cameras of the scene")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RefusedError(file, f"not valid JSON ({error}); expected an object with a list of 'frames'") from error
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise RefusedError(file, "no list of 'frames'; expected an object with one")
    if not all(isinstance(entry, dict) for entry in content["frames"]):
        raise RefusedError(file, "'frames' holds something else than objects; expected one object a frame")
    return content


@dataclass(frozen=True)
class _Fields:
    """The fields of one frame, over those of the file."""

    file: Path
    where: str
    entry: dict[str, Any]
    shared: dict[str, Any]
    base: Path
    place: Callable[[str], str]

    def name_of(self, key: str) -> str:
        return f"{self.where}.{key}" if key in self.entry else key

    def refuse(self, key: str, problem: str) -> RefusedError:
        return RefusedError(self.file, f"{self.name_of(key)}: {problem}")

    def get(self, key: str) -> Any:
        return self.entry.get(key, self.shared.get(key))

    def number(self, key: str) -> float | None:
        """A finite number, or None where neither the frame nor the file has the field."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_NUMBER:
            raise self.refuse(key, f"found {str(value)[:40]!r}; expected a finite number")
        return float(value)

    def pixels(self, key: str) -> int | None:
        """A size in pixels, which some writers give as 1080.0."""
        value = self.number(key)
        if value is not None and (value <= 0 or value != int(value)):
            raise self.refuse(key, f"found {value:g}; expected a whole number of pixels")
        return None if value is None else int(value)

    def path(self, key: str) -> Path:
        listed = self.entry.get(key)
        if not isinstance(listed, str):
            raise RefusedError(self.file, f"{self.where}.{key}: found {listed!r}; expected the path of a file")
        try:
            return file_inside(self.base, self.place(listed))
        except ValueError as error:
            raise self.refuse(key, str(error)) from error


def _view(fields: _Fields, shrink: int) -> tuple[str, _View]:
    listed = fields.path("file_path")
    image = _existing(fields.file, listed)
    depth = fields.path("depth_file_path") if "depth_file_path" in fields.entry else None
    if depth is not None and not depth.is_file():
        raise RefusedError(depth, f"missing, but {fields.file.name} lists it as {fields.where}.depth_file_path")
    name = listed.relative_to(fields.base).as_posix()
    return name, _View(image, depth, _lens(fields, image, shrink), _world2cam(fields))


def _existing(file: Path, listed: Path) -> Path:
    """The image file; writers of the original NeRF format leave its extension out."""
    candidates = [listed, *(listed.with_name(listed.name + suffix) for suffix in IMAGE_SUFFIXES)]
    for path in candidates:
        if path.is_file():
            return path
    raise RefusedError(listed, f"missing, but {file.name} lists it as a frame")


def _world2cam(fields: _Fields) -> np.ndarray:
    try:
        matrix = np.array(fields.entry.get("transform_matrix", []), dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise fields.refuse("transform_matrix", "not a matrix of numbers; expected 4x4 rows of numbers") from error
    where = f"{fields.where}.transform_matrix: "
    if matrix.shape == (4, 4):
        matrix = matrix @ OPENCV_FROM_OPENGL
    return world2cam_from(fields.file, matrix, where)


def _lens(fields: _Fields, image: Path, shrink: int) -> Lens:
    width, height = fields.pixels("w"), fields.pixels("h")
    if width is None or height is None:
        width, height = image_size(image)
    fx, fy = _focal_lengths(fields, width, height)
    cx, cy = fields.number("cx"), fields.number("cy")
    cx = width / 2 if cx is None else cx
    cy = height / 2 if cy is None else cy
    model, distortion = _distortion(fields)
    try:
        across, down = round(width / shrink), round(height / shrink)
        x, y = across / width, down / height
        return checked_lens(model, (fx * x, fy * y, cx * x, cy * y, *distortion), across, down)
    except ValueError as error:
        raise RefusedError(fields.file, f"camera of '{fields.entry['file_path']}': {error}") from error


def _focal_lengths(fields: _Fields, width: int, height: int) -> tuple[float, float]:
    fx = _focal_length(fields, "x", width)
    fy = _focal_length(fields, "y", height)
    if fx is None:
        raise RefusedError(fields.file, "no focal length; expected 'fl_x' in pixels or 'camera_angle_x' in radians")
    return fx, fx if fy is None else fy


def _focal_length(fields: _Fields, axis: str, size: int) -> float | None:
    focal = fields.number(f"fl_{axis}")
    if focal is not None and focal <= 0:
        raise fields.refuse(f"fl_{axis}", f"found {focal:g}; expected a focal length of more than 0 pixels")
    angle = fields.number(f"camera_angle_{axis}")
    if focal is not None or angle is None:
        return focal
    if not 0 < angle < math.pi:
        raise fields.refuse(f"camera_angle_{axis}", f"found {angle:g}; expected radians between 0 and pi")
    return 0.5 * size / math.tan(0.5 * angle)


def _distortion(fields: _Fields) -> tuple[str, tuple[float, ...]]:
    """Name of COLMAP's model with the same formula, and its parameters after fx, fy, cx, cy."""
    model = fields.get("camera_model") or (FISHEYE_MODEL if fields.get("is_fisheye") else "OPENCV")
    k1, k2, k3, k4, p1, p2 = (fields.number(key) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if model == FISHEYE_MODEL:
        return model, (k1, k2, k3, k4)
    if model not in PERSPECTIVE_MODELS:
        known = ", ".join([*PERSPECTIVE_MODELS, FISHEYE_MODEL])
        raise fields.refuse("camera_model", f"found {model!r}; expected one of {known}")
    if k4:
        raise fields.refuse("k4", f"found {k4:g}; expected 0, or camera_model {FISHEYE_MODEL}")
    return "FULL_OPENCV", (k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)


def _load(views: dict[str, _View], frame: str) -> Frame:
    view = views[frame]
    image, pinhole = read_photo(view.image, view.lens)
    depth = None
    if view.depth is not None:
        depth = pinhole.undistort_depth(_read_depth(view.depth, view.lens))
    return Frame(
        image=image,
        intrinsics=pinhole.intrinsics,
        world2cam=view.world2cam,
        depth=depth,
        lossy=is_jpeg(view.image),
    )


def _read_depth(path: Path, lens: Lens) -> np.ndarray:
    """Depth at the photo's size; phones store it coarser, and nerfstudio takes the nearest too."""
    stored = read_png16(path)
    resized = cv2.resize(stored, (lens.width, lens.height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.float32) * np.float32(METRES_PER_UNIT)


SOURCE = Source(
    name="nerfstudio",
    layout="nerfstudio or instant-ngp: transforms.json with the images that it lists",
    truth="poses and intrinsics, depth where listed; up to scale without it",
    licence="your own captures: yours",
    origin="https://docs.nerf.studio",
    recognise=recognise,
    scenes=one_scene("nerfstudio", read),
)
