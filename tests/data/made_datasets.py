"""What the miniatures of public datasets share: frames whose pixels, cameras and depth are known by their number."""

import gzip
import json

import h5py
import numpy as np

from tests.data.made import open_captures, plain, rotation, write_image

WIDTH, HEIGHT = 96, 64
K = np.array([[80.0, 0, 45], [0, 90, 30], [0, 0, 1]])
DEPTH = np.linspace(1, 3, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32)


def pose(number):
    """World-to-camera `[4, 4]` of frame `number`."""
    world2cam = np.eye(4)
    world2cam[:3, :3] = rotation(0.1 * number, -0.2, 0.05)
    world2cam[:3, 3] = [0.1 * number, 0.2, -0.3]
    return world2cam


def photo(path):
    write_image(path, plain(HEIGHT, WIDTH))


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".jgz" else open
    with opened(path, "wt") as file:
        json.dump(content, file)


def write_hdf5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def check(frame, number, *, posed=True, depth: bool | float = True, intrinsics=K):
    """A frame is that of `number`; `depth` may be the tolerance of its container."""
    assert frame.image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(frame.image - plain(HEIGHT, WIDTH)).mean() < 3
    if posed:
        np.testing.assert_allclose(frame.world2cam, pose(number)[:3], atol=1e-6)
        np.testing.assert_allclose(frame.intrinsics, intrinsics, rtol=1e-6)
    else:
        assert frame.world2cam is None
    if depth:
        np.testing.assert_allclose(frame.depth, DEPTH, atol=1e-5 if depth is True else depth)
    else:
        assert frame.depth is None


def captures(root):
    found, refused = open_captures(root)
    assert refused == []
    return found
