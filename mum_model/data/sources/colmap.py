"""COLMAP models, binary or text (https://colmap.github.io/format.html), read by pycolmap.

The model is in `sparse/0`, `sparse` or the folder itself, its photos in `images`. Any camera model becomes a pinhole.

Converts from: hardly anything, as COLMAP too has OpenCV's axes, world-to-camera poses and the centre of the top-left
pixel at (0.5, 0.5). The unit is the model's own, not metres. Depth is sparse: the z of the 3-D points that an image
observes, at their projections.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mum_model.data.captures import Capture, Frame, Points, Refusal, RefusedError, SequenceRule, Source, one_scene
from mum_model.data.geometry import project, transform
from mum_model.data.images import is_jpeg
from mum_model.data.sources.colmap_binary import check_binary_model
from mum_model.data.sources.common import check_rigid, file_inside, natural_order
from mum_model.data.sources.lens import Lens, Pinhole, checked_lens, read_photo

MODEL_FILES = [f"{name}.{ending}" for name in ("cameras", "images", "points3D") for ending in ("bin", "txt")]

SPLAT = 3
"""Side in pixels of the square that a 3-D point fills in the depth map."""


@dataclass(frozen=True)
class _View:
    image: Path
    lens: Lens
    world2cam: np.ndarray
    points: Points


def recognise(folder: Path) -> bool:
    """Whether a file of a COLMAP model lies in `sparse/0`, `sparse` or the folder."""
    return bool(_models(folder))


def read(folder: Path) -> Capture:
    """Describe the posed images of a model, in natural order of their names; all of the model is read now.

    Args:
        folder: Folder of the capture.

    Returns:
        The capture; frames are named as the model names its images. An image without a file, without a pose, listed
        twice or with a broken camera is among the refused, and so are further models in `sparse`.

    Raises:
        RefusedError: The model cannot be read, or there is no `images` folder.
    """
    model = _models(folder)[0]
    capture = read_model(model, folder / "images", "colmap", folder.name)
    return replace(capture, refused=(*_further_models(model), *capture.refused))


def read_model(
    model: Path, photos: Path, source: str, scene: str, *, rule: SequenceRule | None = None, place: str = ""
) -> Capture:
    """Describe the posed images of a model.

    Args:
        model: Folder of its files.
        photos: Folder that its images' names are relative to.
        source: Name of the dataset that it belongs to.
        scene: Name of the scene.
        rule: How the dataset's makers form sequences.
        place: Scenes of one place share a split.

    Returns:
        The capture; see `read`.

    Raises:
        RefusedError: The model cannot be read, or there is no such folder of photos.
    """
    if not photos.is_dir():
        raise RefusedError(photos, f"no such folder; expected the photos of the COLMAP model in {model}")
    reconstruction = _reconstruction(model)
    points = _points(reconstruction)
    views: dict[str, _View] = {}
    refused: list[Refusal] = []
    for image in sorted(reconstruction.images.values(), key=lambda image: image.image_id):
        try:
            if image.name in views:
                raise RefusedError(model, f"image '{image.name}' is listed twice; the first is kept")
            views[image.name] = _view(model, photos, image, points)
        except RefusedError as error:
            refused.append(error.refusal)
    return Capture(
        scene=scene,
        source=source,
        frames=tuple(natural_order(views)),
        load=partial(_load, views),
        refused=tuple(dict.fromkeys(refused)),  # what holds for many images is said once
        rule=rule,
        place=place,
    )


def _models(folder: Path) -> list[Path]:
    places = (folder / "sparse" / "0", folder / "sparse", folder)
    return [place for place in places if any((place / name).is_file() for name in MODEL_FILES)]


def _further_models(model: Path) -> list[Refusal]:
    if (model.parent.name, model.name) != ("sparse", "0"):
        return []
    others = [place for place in model.parent.iterdir() if place.is_dir() and place != model]
    reason = "a further model of the scene with a world of its own; only sparse/0 is read"
    return [Refusal(str(place), reason) for place in sorted(others)]


def _reconstruction(model: Path) -> Any:
    import pycolmap  # heavy, and only this source needs it

    check_binary_model(model)
    try:
        return pycolmap.Reconstruction(model)
    except (ValueError, IndexError, RuntimeError, MemoryError) as error:
        raise RefusedError(
            model, f"pycolmap cannot read the model ({error}); expected all files of one model"
        ) from error


def _points(reconstruction: Any) -> dict[int, np.ndarray]:
    return {identity: point.xyz for identity, point in reconstruction.points3D.items()}


def _view(model: Path, photos: Path, image: Any, points: dict[int, np.ndarray]) -> _View:
    path = _photo(model, photos, image.name)
    if not image.has_pose:
        raise RefusedError(path, f"COLMAP found no pose for it in {model}")
    world2cam = image.cam_from_world().matrix()
    check_rigid(model, world2cam, f"image '{image.name}': ")
    observed = {point.point3D_id for point in image.points2D if point.has_point3D()}
    if not observed <= points.keys():
        raise RefusedError(model, "its images observe 3-D points that its points3D lacks; copy the model again")
    identity = np.array(sorted(observed), np.int64)
    xyz = np.array([points[number] for number in identity.tolist()]).reshape(-1, 3)
    return _View(path, _lens(model, image.camera), world2cam, Points(identity, xyz))


def _photo(model: Path, photos: Path, name: str) -> Path:
    try:
        path = file_inside(photos, name)
    except ValueError as error:
        raise RefusedError(model, f"image name {error}") from error
    if not path.is_file():
        raise RefusedError(path, f"missing, but the model in {model} has it")
    return path


def _lens(model: Path, camera: Any) -> Lens:
    try:
        return checked_lens(camera.model_name, tuple(camera.params.tolist()), camera.width, camera.height)
    except ValueError as error:
        raise RefusedError(model, f"camera {camera.camera_id}: {error}") from error


def _load(views: dict[str, _View], frame: str) -> Frame:
    view = views[frame]
    image, pinhole = read_photo(view.image, view.lens)
    depth = _splat(transform(view.world2cam, view.points.xyz), pinhole)
    return Frame(
        image=image,
        intrinsics=pinhole.intrinsics,
        world2cam=view.world2cam,
        depth=depth,
        points=view.points,
        lossy=is_jpeg(view.image),
    )


def _splat(points: np.ndarray, pinhole: Pinhole) -> np.ndarray:
    """Depth map of points in the camera's frame, each a small square; the nearest wins."""
    pixels, z = project(points, pinhole.intrinsics)
    bounds = pinhole.width, pinhole.height
    seen = ((pixels >= 0) & (pixels < bounds)).all(axis=1)  # false behind the camera, where there is no pixel
    order = np.argsort(-z[seen])  # far to near: the last one written stays
    column, row = np.floor(pixels[seen][order]).astype(int).T
    reach = SPLAT // 2
    depth = np.zeros((pinhole.height + 2 * reach, pinhole.width + 2 * reach), np.float32)
    offset_row, offset_column = np.mgrid[0:SPLAT, 0:SPLAT].reshape(2, -1)
    depth[row[:, None] + offset_row, column[:, None] + offset_column] = z[seen][order, None]
    return depth[reach:-reach, reach:-reach].copy()


SOURCE = Source(
    name="colmap",
    layout="COLMAP: a model (cameras, images, points3D as .bin or .txt) in sparse/0, sparse or the folder, and images/",
    truth="poses and intrinsics, sparse depth, points; up to scale",
    licence="your own captures: yours",
    origin="https://colmap.github.io",
    recognise=recognise,
    scenes=one_scene("colmap", read),
)
