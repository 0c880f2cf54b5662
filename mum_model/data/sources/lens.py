"""From a camera with lens distortion to a pinhole, by COLMAP's camera models.

COLMAP's models cover OpenCV's, so nerfstudio's cameras go the same way. The pinhole keeps the focal length; its size is
COLMAP's choice (`undistort_camera`) such that no pixel of it is empty. COLMAP puts the centre of the top-left pixel at
(0.5, 0.5), as this project does, and OpenCV's `remap` at (0, 0).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mum_model.data.captures import RefusedError
from mum_model.data.geometry import pixel_grid
from mum_model.data.images import MAX_PIXELS, MAX_SIDE, read_image

BORDER_SLACK = 1.0
"""How far outside the photo, in pixels, the rounding of the pinhole's size may reach."""


@dataclass(frozen=True)
class Lens:
    """A calibrated camera with a distortion; make it with `checked_lens`.

    Attributes:
        model: Name of a COLMAP camera model (https://colmap.github.io/cameras.html).
        params: Its parameters in COLMAP's order, in pixels.
        width: Width of the photo in pixels.
        height: Height of the photo in pixels.
    """

    model: str
    params: tuple[float, ...]
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Pinhole:
    """The distortion-free camera of a lens, and how to get its pictures.

    Attributes:
        intrinsics: Camera matrix, float64 `[3, 3]`.
        width: Width in pixels.
        height: Height in pixels.
        maps: Where in the photo each pixel comes from, as OpenCV's `remap` wants it; None for the photo itself.
    """

    intrinsics: np.ndarray
    width: int
    height: int
    maps: tuple[np.ndarray, np.ndarray] | None

    def undistort(self, image: np.ndarray) -> np.ndarray:
        """The photo, `[H, W, 3]` of the lens, as the pinhole sees it; bilinear, as COLMAP does."""
        return self._remap(image, cv2.INTER_LINEAR)

    def undistort_depth(self, depth: np.ndarray) -> np.ndarray:
        """z-depth, `[H, W]` of the lens, as the pinhole sees it; nearest, so nothing between surfaces appears."""
        return self._remap(depth, cv2.INTER_NEAREST)

    def _remap(self, image: np.ndarray, interpolation: int) -> np.ndarray:
        if self.maps is None:
            return image
        return cv2.remap(image, *self.maps, interpolation, borderMode=cv2.BORDER_REPLICATE)


def checked_lens(model: str, params: tuple[float, ...], width: int, height: int) -> Lens:
    """A lens whose numbers make sense.

    Args:
        model: Name of a COLMAP camera model.
        params: Its parameters in COLMAP's order.
        width: Width of the photo in pixels.
        height: Height of the photo in pixels.

    Returns:
        The lens.

    Raises:
        ValueError: Says which number is wrong and what was expected.
    """
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ValueError(f"size {width}x{height}; expected a photo of at most {MAX_PIXELS // 1_000_000} megapixels")
    if not np.isfinite(params).all():
        raise ValueError(f"{model} parameters {list(params)}; expected finite numbers")
    lens = Lens(model, params, width, height)
    camera = _colmap_camera(lens)
    if not camera.is_perspective():
        raise ValueError(f"camera model {model} is a panorama; expected a perspective or fisheye camera")
    if min(camera.focal_length_x, camera.focal_length_y) <= 0:
        focal = camera.focal_length_x, camera.focal_length_y
        raise ValueError(f"focal length {focal[0]:g} x {focal[1]:g} pixels; expected more than 0")
    return lens


def read_photo(path: Path, lens: Lens) -> tuple[np.ndarray, Pinhole]:
    """Read a photo as the pinhole of its lens sees it.

    Args:
        path: Image file, of the size that the lens says, as stored.
        lens: Its camera.

    Returns:
        RGB, uint8 `[H, W, 3]`, of the pinhole's size, and the pinhole.

    Raises:
        RefusedError: The image cannot be read, has another size than its camera, or the distortion has no pinhole.
    """
    image = read_image(path, upright=False)
    height, width = image.shape[:2]
    if (width, height) != (lens.width, lens.height):
        expected = f"expected the {lens.width}x{lens.height} that its camera was calibrated for"
        raise RefusedError(path, f"image of {width}x{height} pixels; {expected}")
    try:
        pinhole = pinhole_of(lens)
    except ValueError as error:
        raise RefusedError(path, str(error)) from error
    return pinhole.undistort(image), pinhole


@lru_cache(maxsize=4)
def pinhole_of(lens: Lens) -> Pinhole:
    """The pinhole of a lens; the last few are kept, as most captures have one camera.

    Args:
        lens: The camera with distortion.

    Returns:
        Its pinhole.

    Raises:
        ValueError: The distortion leaves pixels empty or folds the photo over: its parameters do not fit the photo.
    """
    import pycolmap

    camera = _colmap_camera(lens)
    if camera.is_perspective_pinhole() and camera.is_undistorted():
        return Pinhole(camera.calibration_matrix(), lens.width, lens.height, None)
    pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    intrinsics = pinhole.calibration_matrix()
    grid = pixel_grid(pinhole.height, pinhole.width)
    rays = np.concatenate([grid, np.ones_like(grid[..., :1])], axis=-1) @ np.linalg.inv(intrinsics).T
    source = camera.img_from_cam(rays.reshape(-1, 3)).reshape(grid.shape)
    _check_distortion(lens, source)
    x, y = np.ascontiguousarray((source - 0.5).transpose(2, 0, 1), np.float32)
    return Pinhole(intrinsics, pinhole.width, pinhole.height, (x, y))


def _check_distortion(lens: Lens, source: np.ndarray) -> None:
    beyond = np.array([lens.width, lens.height]) + BORDER_SLACK
    inside = (source > -BORDER_SLACK) & (source < beyond)  # false for not-a-number too
    onwards = (np.diff(source[..., 0], axis=1) > 0).all() and (np.diff(source[..., 1], axis=0) > 0).all()
    if not (inside.all() and onwards):
        numbers = f"{lens.model} with {[round(value, 6) for value in lens.params]}"
        raise ValueError(
            f"the distortion ({numbers}) folds the {lens.width}x{lens.height} photo over or leaves it; "
            "expected parameters that hold up to its corners: calibrate again, for wide lenses with a fisheye model"
        )


def _colmap_camera(lens: Lens) -> Any:
    import pycolmap  # heavy, and only captures with calibrated cameras need it

    return pycolmap.Camera(model=lens.model, width=lens.width, height=lens.height, params=lens.params)
