"""Hypersim (https://github.com/apple/ml-hypersim): rendered rooms, their `final_preview` pictures.

Converts from: camera-to-world orientation with OpenGL axes and position in asset units (`_detail/cam_00/*.hdf5`) to
metres by `_detail/metadata_scene.csv`; the distance to the camera in metres (`depth_meters`) to depth along z; the
projection matrix of `metadata_camera_parameters.csv`, without which the usual field of view of 60 degrees is taken.
"""

import csv
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from mum_model.data.captures import Capture, RefusedError, Scene, Source
from mum_model.data.geometry import pixel_grid
from mum_model.data.sources.common import (
    FileView,
    checked_intrinsics,
    file_capture,
    folders,
    known_depth,
    natural_order,
    read_hdf5,
    world2cam_from,
)

PARAMETERS = "metadata_camera_parameters.csv"
USUAL_SIZE = 1024.0, 768.0
USUAL_FOCAL = USUAL_SIZE[0] / 2 / np.tan(np.pi / 6)
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def recognise(path: Path) -> bool:
    """Whether scenes with `images/scene_cam_*_final_preview` are under the path."""
    return bool(_scene_folders(path))


def scenes(path: Path) -> list[Scene]:
    """List the scenes."""
    parameters = next((file for file in (path / PARAMETERS, path.parent / PARAMETERS) if file.is_file()), None)
    inputs = () if parameters is None else (parameters,)
    return [
        Scene("hypersim", folder.name, (folder, *inputs), partial(read, folder, parameters))
        for folder in _scene_folders(path)
    ]


def _scene_folders(path: Path) -> list[Path]:
    return [folder for folder in folders(path) if any(folder.glob("images/scene_cam_*_final_preview"))]


def read(folder: Path, parameters: Path | None) -> Capture:
    """Describe the pictures of all cameras of a scene.

    Args:
        folder: The scene.
        parameters: `metadata_camera_parameters.csv`, or None.

    Returns:
        The capture; frames are named `cam_00/0000`, and those of one camera path form a sequence.

    Raises:
        RefusedError: Its metadata are broken.
    """
    cameras: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    names = []
    unit = _metres_per_unit(folder / "_detail" / "metadata_scene.csv")
    for pictures in sorted(folder.glob("images/scene_cam_*_final_preview")):
        camera = pictures.name.removeprefix("scene_").removesuffix("_final_preview")
        detail = folder / "_detail" / camera
        orientations = read_hdf5(detail / "camera_keyframe_orientations.hdf5", "dataset")
        cameras[camera] = orientations, read_hdf5(detail / "camera_keyframe_positions.hdf5", "dataset") * unit
        names += [f"{camera}/{path.name.split('.')[1]}" for path in pictures.glob("frame.*.color.jpg")]
    view = partial(_view, folder, _intrinsics(parameters, folder.name), cameras)
    return file_capture("hypersim", folder.name, natural_order(names), view, grouped_by=lambda name: name.split("/")[0])


def _metres_per_unit(path: Path) -> float:
    try:
        with path.open(newline="") as file:
            rows = {
                row["parameter_name"]: row["parameter_value"] for row in csv.DictReader(file, skipinitialspace=True)
            }
        return float(rows["meters_per_asset_unit"])
    except (KeyError, ValueError) as error:
        raise RefusedError(path, f"no 'meters_per_asset_unit' in it ({error!r})") from error


def _intrinsics(parameters: Path | None, scene: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Camera matrix and the size of the picture it is for."""
    width, height = USUAL_SIZE
    row = _parameters(parameters).get(scene) if parameters else None
    if row is None:
        return np.array([[USUAL_FOCAL, 0, width / 2], [0, USUAL_FOCAL, height / 2], [0, 0, 1]]), USUAL_SIZE
    assert parameters is not None
    try:
        width, height = float(row["settings_output_img_width"]), float(row["settings_output_img_height"])
        projection = np.array([[float(row[f"M_proj_{i}{j}"]) for j in range(3)] for i in (0, 1, 3)])
    except (KeyError, ValueError) as error:
        raise RefusedError(parameters, f"{scene}: no projection matrix ({error!r})") from error
    screen = np.array([[width / 2, 0, width / 2], [0, -height / 2, height / 2], [0, 0, 1]])
    intrinsics = screen @ projection @ OPENCV_FROM_OPENGL[:3, :3]
    return checked_intrinsics(parameters, intrinsics / intrinsics[2, 2], f"{scene}: "), (width, height)


@lru_cache(maxsize=1)
def _parameters(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["scene_name"]: row for row in csv.DictReader(file) if row.get("scene_name")}


def _view(
    folder: Path,
    lens: tuple[np.ndarray, tuple[float, float]],
    cameras: dict[str, tuple[np.ndarray, np.ndarray]],
    name: str,
) -> FileView:
    camera, number = name.split("/")
    intrinsics, size = lens
    image = folder / "images" / f"scene_{camera}_final_preview" / f"frame.{number}.color.jpg"
    orientations, positions = cameras[camera]
    if int(number) >= min(len(orientations), len(positions)):
        raise RefusedError(image, f"no pose for it in _detail/{camera}")
    cam2world = np.eye(4)
    cam2world[:3, :3], cam2world[:3, 3] = orientations[int(number)], positions[int(number)]
    world2cam = world2cam_from(folder / "_detail" / camera, cam2world @ OPENCV_FROM_OPENGL, f"frame {number}: ")
    distance = folder / "images" / f"scene_{camera}_geometry_hdf5" / f"frame.{number}.depth_meters.hdf5"
    depth = partial(_depth, distance, intrinsics) if distance.is_file() else None
    return FileView(image, intrinsics, world2cam, depth, size)


def _depth(path: Path, intrinsics: np.ndarray) -> np.ndarray:
    """z-depth from the distance to the camera's centre."""
    distance = read_hdf5(path, "dataset")
    grid = pixel_grid(*distance.shape)
    rays = np.concatenate([grid, np.ones_like(grid[..., :1])], axis=-1) @ np.linalg.inv(intrinsics).T
    return known_depth(distance / np.linalg.norm(rays, axis=-1))


SOURCE = Source(
    name="hypersim",
    layout="ai_001_001/{images/scene_cam_00_{final_preview/frame.0000.color.jpg, "
    "geometry_hdf5/frame.0000.depth_meters.hdf5}, _detail/}, metadata_camera_parameters.csv",
    truth="exact poses, intrinsics and depth in metres",
    licence="CC BY-SA 3.0",
    origin="https://github.com/apple/ml-hypersim",
    recognise=recognise,
    scenes=scenes,
)
