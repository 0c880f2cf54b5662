"""A teacher's outputs in files: what another model says of the geometry of a dataset's frames.

One file a scene, `<folder>/<source>/<scene>.safetensors`, named as in the index, with four tensors a frame, of any
floating type:

| tensor | shape | what |
|---|---|---|
| `<frame>/world2cam` | `[3, 4]` | pose in the scene's world, any world and any unit that all frames of the file share |
| `<frame>/intrinsics` | `[3, 3]` | in pixels of the maps below |
| `<frame>/depth` | `[h, w]` | z-depth in the unit of the poses; 0 where unknown, here and in `points` |
| `<frame>/points` | `[h, w, 3]` | what each pixel shows, in the axes of the world |

Cameras are OpenCV's, the centre of the top-left pixel is at (0.5, 0.5), all numbers are finite. The maps cover the
whole frame as the dataset stores it, resized to any h x w, which may differ by frame. So a teacher is run once over
each scene (all frames, or the chunks that fit, brought into one world), and none of its code is needed afterwards.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mum_model.data.augmentation import Framing
from mum_model.data.geometry import invert_pose, pixel_grid, resize_intrinsics, transform, unproject
from mum_model.data.posed import ViewGeometry
from mum_model.data.scenes import FrameName, SceneIndex
from mum_model.errors import UserError

RIGID_TOLERANCE = 1e-2  # of rotations that a teacher computed in half precision


class TeacherFrame(NamedTuple):
    """What a teacher says of a frame; see the module for conventions."""

    world2cam: Tensor
    intrinsics: Tensor
    depth: Tensor
    points: Tensor


class TeacherFiles:
    """A folder of a teacher's outputs for a dataset; a `GeometrySource`."""

    def __init__(self, directory: Path, index: SceneIndex):
        """Point to them.

        Args:
            directory: The folder.
            index: The dataset that it is about.
        """
        self.directory, self.index = directory, index

    def check(self, rows: Sequence[int] | np.ndarray, rank: int = 0, world_size: int = 1) -> None:
        """Read what the teacher says of frames and look for faults.

        Args:
            rows: Of the index.
            rank: Which share of the files to check.
            world_size: In how many shares they are dealt out.

        Raises:
            UserError: A file or a frame is missing, or has a field of another shape, or numbers that cannot be; the
                message names file and field.
        """
        frames: dict[Path, list[str]] = {}
        columns = self.index.frames.select(list(FrameName._fields)).take(np.asarray(rows))
        for name in map(FrameName._make, zip(*(column.to_pylist() for column in columns), strict=True)):
            frames.setdefault(self._path(name), []).append(name.frame)
        share = list(frames)[rank::world_size]
        for path in tqdm(share, desc="teacher", unit="scene", disable=rank > 0):
            _check_scene(path, frames[path])

    def view(self, row: int, framing: Framing) -> ViewGeometry:
        """The teacher's word on a part of a frame; each pixel takes the value of one of the teacher's."""
        name, (height, width) = self.index.name(row), self.index.shape(row)
        with safe_open(self._path(name), "pt") as file:
            said = _read(file, name.frame)
        rows, columns = said.depth.shape
        across = (framing.left + (np.arange(framing.size) + 0.5) * framing.width / framing.size) * columns / width
        down = (framing.top + (np.arange(framing.size) + 0.5) * framing.height / framing.size) * rows / height
        taken = np.ix_(down.astype(int), across.astype(int))
        depth = said.depth.float().numpy()[taken]
        points = np.where(depth[..., None] > 0, said.points.float().numpy()[taken], np.nan)
        of_frame = resize_intrinsics(said.intrinsics.double().numpy(), width / columns, height / rows)
        return ViewGeometry(said.world2cam.double().numpy(), framing.intrinsics(of_frame), depth, points)

    def _path(self, name: FrameName) -> Path:
        return self.directory / name.source / f"{name.scene}.safetensors"


def write_teacher_scene(path: Path, frames: Mapping[str, TeacherFrame]) -> None:
    """Write the file of a scene, whole or not at all.

    Args:
        path: `<folder>/<source>/<scene>.safetensors`.
        frames: What the teacher says, by the name of the frame.

    Raises:
        UserError: Something in it would be refused on reading.
    """
    for name, said in frames.items():
        _check_frame(path, name, said)
    tensors = {f"{name}/{field}": t for name, said in frames.items() for field, t in said._asdict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial)
    partial.replace(path)


def write_truth_as_teacher(index: SceneIndex, directory: Path) -> None:
    """Write a dataset's own geometry as if a teacher had said it: to try a distillation, and to see the format.

    No teacher is involved: what is trained on these files learns from ground truth.

    Args:
        index: A dataset; frames without intrinsics, pose or depth are left out.
        directory: Where the files go.
    """
    scenes: dict[Path, dict[str, TeacherFrame]] = {}
    for row in range(len(index)):
        camera = index.camera(row)
        if camera is not None:
            source, scene, frame = index.name(row)
            local = unproject(pixel_grid(*camera.depth.shape), camera.depth, camera.intrinsics)
            points = transform(invert_pose(camera.world2cam), local)
            parts = (camera.world2cam, camera.intrinsics, camera.depth, points)
            said = (torch.from_numpy(np.asarray(part, np.float32)) for part in parts)
            scenes.setdefault(directory / source / f"{scene}.safetensors", {})[frame] = TeacherFrame(*said)
    for path, frames in scenes.items():
        write_teacher_scene(path, frames)


def _read(file: safe_open, frame: str) -> TeacherFrame:
    return TeacherFrame(*(file.get_tensor(f"{frame}/{field}") for field in TeacherFrame._fields))


def _check_scene(path: Path, frames: Sequence[str]) -> None:
    try:
        with safe_open(path, "pt") as file:
            known = set(file.keys())
            for frame in frames:
                if missing := [field for field in TeacherFrame._fields if f"{frame}/{field}" not in known]:
                    raise UserError(f"{path}: has no '{frame}/{missing[0]}'; expected it for every frame")
                _check_frame(path, frame, _read(file, frame))
    except FileNotFoundError as error:
        raise UserError(f"{path}: the teacher's outputs for this scene are missing") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from error


def _check_frame(path: Path, frame: str, said: TeacherFrame) -> None:
    """Raise a UserError for the first thing that cannot be."""
    maps = tuple(said.depth.shape)
    if len(maps) != 2:
        raise UserError(f"{path}: '{frame}/depth' has the shape {list(maps)}, expected [h, w]")
    expected = {"world2cam": (3, 4), "intrinsics": (3, 3), "depth": maps, "points": (*maps, 3)}
    for field, tensor in said._asdict().items():
        where = f"{path}: '{frame}/{field}'"
        if tuple(tensor.shape) != expected[field]:
            raise UserError(f"{where} has the shape {list(tensor.shape)}, expected {list(expected[field])}")
        if not tensor.is_floating_point():
            raise UserError(f"{where} is of type {tensor.dtype}, expected a floating type")
        if not tensor.isfinite().all():
            raise UserError(f"{where} has numbers that are not finite; say depth 0 where nothing is known")
    rotation, intrinsics = said.world2cam[:, :3].double(), said.intrinsics.double()
    if (rotation @ rotation.T - torch.eye(3)).abs().max() > RIGID_TOLERANCE or torch.linalg.det(rotation) < 0:
        raise UserError(f"{path}: '{frame}/world2cam' has no rotation in its first three columns")
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or intrinsics[2].tolist() != [0, 0, 1]:
        raise UserError(f"{path}: '{frame}/intrinsics' is no camera matrix with positive focal lengths")
    if (said.depth < 0).any():
        raise UserError(f"{path}: '{frame}/depth' is negative somewhere; it is along the viewing axis, 0 where unknown")
