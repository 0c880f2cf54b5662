"""Made captures with a closed-form truth: the colour of a pixel is a smooth function of the direction it looks in."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from mum_model.data.captures import UnusableSceneError
from mum_model.data.geometry import pixel_grid, project, relative_pose, transform, unproject
from mum_model.data.sources import find_scenes

WIDTH, HEIGHT = 96, 64


def real_capture(name):
    """Folder of a real capture; skips the test where there is none."""
    root = os.environ.get("MUM_TEST_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"MUM_TEST_DATA names no folder with the real capture '{name}'")
    return Path(root) / name


def colours(rays):
    """RGB in 0..255, float `[..., 3]`, of directions (x/z, y/z) `[..., 2]`."""
    x, y = rays[..., 0], rays[..., 1]
    return 127.5 + 100 * np.stack([np.sin(4 * x), np.sin(4 * y), np.sin(3 * (x + y))], axis=-1)


def pinhole_rays(height, width, intrinsics):
    """(x/z, y/z) of every pixel of a pinhole, `[H, W, 2]`."""
    return unproject(pixel_grid(height, width), np.ones((height, width)), intrinsics)[..., :2]


def assert_colours(frame):
    """Every pixel of the frame has the colour of the direction that its intrinsics give."""
    expected = colours(pinhole_rays(*frame.image.shape[:2], frame.intrinsics))
    difference = np.abs(frame.image - expected)
    assert difference.max() < 3, f"colours off by up to {difference.max():.1f}"
    assert difference.mean() < 0.6


def write_image(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    assert cv2.imwrite(str(path), rgb[..., ::-1])


def write_png16(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.asarray(values, np.uint16))


def plain(height=HEIGHT, width=WIDTH):
    """A picture that is not the same anywhere, `[H, W, 3]`."""
    return colours(pixel_grid(height, width) / width)


def rotation(*axis_angle):
    return cv2.Rodrigues(np.array(axis_angle, np.float64))[0]


def open_captures(path):
    """The captures under a path that can be read, and what is refused outside of them."""
    found = find_scenes(str(path), path.parent / f".work-of-{path.name}")
    captures, refused = [], list(found.refused)
    for scene in found.scenes:
        try:
            captures.append(scene.capture())
        except UnusableSceneError as error:
            refused += error.refused
    return captures, refused


def only(path):
    """The one capture of a folder, nothing of which was refused outside it."""
    (capture,), refused = open_captures(path)
    assert refused == []
    return capture


def refusals(path):
    """All that is refused in a folder, inside and outside of its captures, one a line."""
    captures, refused = open_captures(path)
    inside = [refusal for capture in captures for refusal in capture.refused]
    return "\n".join(map(str, [*refused, *inside]))


def depth_disagreement(a, b):
    """By how much b's depth differs from a's, taken to b, where both are known: `[N]`."""
    known = np.argwhere(a.depth > 0)
    points = unproject(known[:, ::-1] + 0.5, a.depth[tuple(known.T)], a.intrinsics)
    pixels, depth = project(transform(relative_pose(a.world2cam, b.world2cam), points), b.intrinsics)
    inside = ((pixels >= 0) & (pixels < b.depth.shape[::-1])).all(axis=1)
    column, row = pixels[inside].astype(int).T
    seen = b.depth[row, column]
    return np.abs(seen - depth[inside])[seen > 0]
