"""Pinhole geometry: project, unproject, warp by depth, resize and crop cameras.

Cameras are OpenCV's (x right, y down, z forward), poses are world-to-camera `[3, 4]`, the centre of the top-left pixel
is at (0.5, 0.5), depth is along z with 0 = unknown. All in numpy, float64 unless said otherwise.
"""

from typing import NamedTuple

import cv2
import numpy as np


def pixel_grid(height: int, width: int) -> np.ndarray:
    """Centres of all pixels.

    Args:
        height: Rows.
        width: Columns.

    Returns:
        (x, y) in pixels, float64 `[H, W, 2]`; the first is (0.5, 0.5).
    """
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x + 0.5, y + 0.5], axis=-1)


def invert_pose(pose: np.ndarray) -> np.ndarray:
    """World-to-camera from camera-to-world, or the other way round.

    Args:
        pose: Rigid transform `[3, 4]`.

    Returns:
        Its inverse, `[3, 4]`.
    """
    rotation = pose[:, :3].T
    return np.concatenate([rotation, -rotation @ pose[:, 3:]], axis=1)


def relative_pose(world2cam_a: np.ndarray, world2cam_b: np.ndarray) -> np.ndarray:
    """The pose of camera b as seen from camera a: takes points of a's frame to b's.

    Args:
        world2cam_a: Pose `[3, 4]`.
        world2cam_b: Pose `[3, 4]`.

    Returns:
        Rigid transform `[3, 4]`.
    """
    rotation = world2cam_b[:, :3] @ world2cam_a[:, :3].T
    return np.concatenate([rotation, world2cam_b[:, 3:] - rotation @ world2cam_a[:, 3:]], axis=1)


def transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a rigid transform.

    Args:
        pose: `[3, 4]`.
        points: `[..., 3]`.

    Returns:
        Transformed points, `[..., 3]`.
    """
    return points @ pose[:, :3].T + pose[:, 3]


def unproject(pixels: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Points in the camera's frame from pixels and their z-depth.

    Args:
        pixels: (x, y), `[..., 2]`.
        depth: z-depth, `[...]`.
        intrinsics: Camera matrix `[3, 3]`.

    Returns:
        Points, `[..., 3]`.
    """
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
    return homogeneous @ np.linalg.inv(intrinsics).T * np.asarray(depth)[..., None]


def project(points: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and z-depth of points in the camera's frame.

    Args:
        points: `[..., 3]`.
        intrinsics: Camera matrix `[3, 3]`.

    Returns:
        (x, y) in pixels `[..., 2]`, not-a-number for points at or behind the camera, and z-depth `[...]`.
    """
    depth = points[..., 2]
    ahead = np.where(depth > 0, depth, np.nan)
    return (points @ intrinsics.T)[..., :2] / ahead[..., None], depth


class Camera(NamedTuple):
    """A view's geometry.

    Attributes:
        intrinsics: Camera matrix `[3, 3]`.
        world2cam: Pose `[3, 4]`.
        depth: z-depth `[H, W]`, 0 where unknown.
    """

    intrinsics: np.ndarray
    world2cam: np.ndarray
    depth: np.ndarray


def lookup_nearest(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The values of the pixels in which these positions fall.

    Args:
        image: `[H, W]`.
        pixels: (x, y), `[..., 2]`; may be outside or not-a-number.

    Returns:
        Values `[...]`, 0 outside the image.
    """
    height, width = image.shape
    with np.errstate(invalid="ignore"):
        inside = (pixels >= 0).all(-1) & (pixels[..., 0] < width) & (pixels[..., 1] < height)
    column, row = np.where(inside[..., None], pixels, 0).astype(np.int64).transpose(-1, *range(pixels.ndim - 1))
    return np.where(inside, image[row, column], 0)


def warp(pixels: np.ndarray, a: Camera, b: Camera, tolerance: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels of view a appear in view b, by a's depth; co-visible where b's depth agrees.

    Args:
        pixels: (x, y) in view a, `[..., 2]`.
        a: The view the pixels are in.
        b: The view to find them in.
        tolerance: Largest relative difference between the warped depth and b's own that still is the same surface.

    Returns:
        (x, y) in view b, `[..., 2]`, not-a-number where a's depth is unknown or the point is behind b; and a mask
        `[...]` of the co-visible ones: depth known in both views, inside b, and not occluded.
    """
    depth = lookup_nearest(a.depth, pixels).astype(np.float64)
    depth = np.where(depth > 0, depth, np.nan)
    points = transform(relative_pose(a.world2cam, b.world2cam), unproject(pixels, depth, a.intrinsics))
    target, warped_depth = project(points, b.intrinsics)
    seen_depth = lookup_nearest(b.depth, target)
    with np.errstate(invalid="ignore"):
        covisible = (seen_depth > 0) & (np.abs(warped_depth - seen_depth) < tolerance * seen_depth)
    return target, covisible


def resize_intrinsics(intrinsics: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Intrinsics of the resized image; with pixel centres at (0.5, 0.5) this is a plain scaling.

    Args:
        intrinsics: `[3, 3]`.
        scale_x: New width / old width.
        scale_y: New height / old height.

    Returns:
        `[3, 3]`.
    """
    return np.diag([scale_x, scale_y, 1.0]) @ intrinsics


def crop_intrinsics(intrinsics: np.ndarray, left: float, top: float) -> np.ndarray:
    """Intrinsics of a part of the image.

    Args:
        intrinsics: `[3, 3]`.
        left: Columns cut off on the left.
        top: Rows cut off at the top.

    Returns:
        `[3, 3]`.
    """
    return np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]]) @ intrinsics


def mirror_intrinsics(intrinsics: np.ndarray, width: float) -> np.ndarray:
    """Intrinsics of the image with left and right changed: its focal length x has the other sign.

    So the pose stays what it was and every view may be mirrored alone. To mirror the world instead, which keeps focal
    lengths positive, all views of a scene would have to be mirrored.

    Args:
        intrinsics: `[3, 3]`.
        width: Of the image in pixels.

    Returns:
        `[3, 3]`.
    """
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ intrinsics


def resize_depth(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize depth without inventing surfaces between two: each new pixel takes one old pixel's value.

    A sparse map keeps its points: of the old pixels under a new one, the nearest known depth counts.

    Args:
        depth: float32 `[H, W]`, 0 where unknown.
        width: New width.
        height: New height.

    Returns:
        float32 `[height, width]`.
    """
    nearest = cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    sparse = (depth > 0).mean() < SPARSE_BELOW
    return _nearest_surface(depth, width, height) if sparse else nearest


SPARSE_BELOW = 0.2
"""Share of known pixels under which depth counts as sparse, as from structure from motion."""


def _nearest_surface(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    rows, columns = np.nonzero(depth)
    new_rows = (2 * rows + 1) * height // (2 * depth.shape[0])  # where its centre, not its edge, comes to lie
    new_columns = (2 * columns + 1) * width // (2 * depth.shape[1])
    resized = np.full((height, width), np.inf, np.float32)
    np.minimum.at(resized, (new_rows, new_columns), depth[rows, columns])
    return np.where(np.isfinite(resized), resized, 0).astype(np.float32)
