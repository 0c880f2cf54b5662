"""What several sources share: natural order, paths that stay inside a capture, rigid poses."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mum_model.data.captures import RefusedError
from mum_model.data.geometry import invert_pose

RIGID_TOLERANCE = 1e-3
"""Largest entry of R^T R - I that still is a rotation written with few digits."""


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as people number them: `view2` before `view10`."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def _natural_key(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def file_inside(folder: Path, listed: str) -> Path:
    """The path of a file that a capture lists by a relative name.

    Args:
        folder: What the name is relative to, and must stay inside of.
        listed: The name as listed, for instance `./images/0001.jpg`.

    Returns:
        The path, without `.` and `..`; the file need not exist. Links on the way are followed as the user made them.

    Raises:
        ValueError: The name is absolute, leads out of the folder, or is no file name; says what was expected.
    """
    relative = Path(os.path.normpath(listed))
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"'{listed}' leads out of the capture; expected a path relative to {folder}")
    if not relative.parts or "\0" in listed:
        raise ValueError(f"{listed!r} is no file name; expected a path relative to {folder}")
    return folder / relative


def check_rigid(path: Path, pose: np.ndarray, field: str = "") -> None:
    """Refuse a transform that is more, or less, than a rotation and a translation.

    Args:
        path: The file that holds it, for the message.
        pose: Transform, float64 `[3, 4]`.
        field: Where in the file, for the message, for instance `frames[3].transform_matrix: `.

    Raises:
        RefusedError: Not finite, or the rotation is scaled, sheared or mirrored.
    """
    if not np.isfinite(pose).all():
        raise RefusedError(path, f"{field}the pose holds numbers that are not finite; expected a rigid transform")
    rotation = pose[:, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    determinant = np.linalg.det(rotation)
    if error > RIGID_TOLERANCE or determinant < 0:
        found = f"determinant {determinant:.4g}, R^T R off the identity by {error:.2g}"
        raise RefusedError(path, f"{field}the pose is not rigid ({found}); expected a rotation without scale")


def world2cam_from(path: Path, cam2world: np.ndarray, field: str = "") -> np.ndarray:
    """World-to-camera from a camera-to-world matrix in OpenCV axes that a file claims to hold.

    Args:
        path: The file, for the message.
        cam2world: Rigid transform, float64 `[4, 4]`.
        field: Where in the file, for the message.

    Returns:
        Pose, float64 `[3, 4]`.

    Raises:
        RefusedError: Not 4x4, or not rigid.
    """
    if cam2world.shape != (4, 4):
        raise RefusedError(path, f"{field}matrix of shape {cam2world.shape}; expected 4x4, camera-to-world")
    check_rigid(path, cam2world[:3], field)
    if not np.allclose(cam2world[3], [0, 0, 0, 1], atol=RIGID_TOLERANCE):
        raise RefusedError(path, f"{field}the last row is {cam2world[3].tolist()}; expected [0, 0, 0, 1]")
    return invert_pose(cam2world[:3])
