"""Augmentation: which part of a stored frame a training view shows, with image, depth and intrinsics in step."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from mum_model.data.geometry import crop_intrinsics, mirror_intrinsics, resize_depth, resize_intrinsics

ATTEMPTS = 10
"""Crops that are drawn, and left when none of them fits into the frame (torchvision's number)."""


@dataclass(frozen=True)
class Framing:
    """A crop of a frame, resized to a square, perhaps mirrored.

    Attributes:
        left: First column of the crop.
        top: First row.
        width: Columns of the crop.
        height: Rows.
        size: Side of the square in pixels.
        mirrored: Whether left and right change places in the square.
    """

    left: int
    top: int
    width: int
    height: int
    size: int
    mirrored: bool

    def image(self, frame: np.ndarray) -> np.ndarray:
        """The square, by a bicubic filter, antialiased as Pillow's and torchvision's where the crop shrinks.

        Args:
            frame: RGB uint8 `[H, W, 3]`.

        Returns:
            RGB uint8 `[size, size, 3]`.
        """
        crop = self._crop(frame)
        if max(self.width, self.height) <= self.size:  # nothing to be aliased; OpenCV takes half the time
            return self._mirror(cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_CUBIC))
        planes = torch.from_numpy(crop).permute(2, 0, 1)[None]
        square = torch.nn.functional.interpolate(planes, (self.size, self.size), mode="bicubic", antialias=True)
        return self._mirror(square[0].permute(1, 2, 0).numpy())

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """The square's depth: each of its pixels takes the value of one of the frame's.

        Args:
            depth: z-depth float32 `[H, W]`, 0 where unknown.

        Returns:
            float32 `[size, size]`.
        """
        return self._mirror(resize_depth(self._crop(depth), self.size, self.size))

    def intrinsics(self, intrinsics: np.ndarray) -> np.ndarray:
        """The square's intrinsics, under the frame's pose. Those of a mirrored view have a negative focal length x.

        Args:
            intrinsics: Of the frame, `[3, 3]`.

        Returns:
            `[3, 3]`.
        """
        cropped = crop_intrinsics(intrinsics, self.left, self.top)
        resized = resize_intrinsics(cropped, self.size / self.width, self.size / self.height)
        return mirror_intrinsics(resized, self.size) if self.mirrored else resized

    def _crop(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]

    def _mirror(self, square: np.ndarray) -> np.ndarray:
        return square[:, ::-1] if self.mirrored else square


@dataclass(frozen=True)
class Augmentation:
    """How a stored frame becomes a training view: both of MuM's recipes, by their parameters.

    The authors' released configuration is torchvision's RandomResizedCrop (scale 0.2 to 1, ratio 3/4 to 4/3, bicubic)
    and a flip; the paper resizes and flips, which here is `crop_scale=1, crop_ratio=(1, 1)`: the largest square. Where
    no crop of the wanted area fits, torchvision takes the largest in the middle; here it lies anywhere.

    Attributes:
        size: Side of the square view in pixels.
        crop_scale: Smallest share of the frame's area that a random crop keeps; the largest is 1.
        crop_ratio: Smallest and largest width of a crop over its height.
        flip: Probability of a horizontal flip, drawn for each view.
    """

    size: int
    crop_scale: float
    crop_ratio: tuple[float, float]
    flip: float

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Framing:
        """Decide what a view shows of a frame.

        Args:
            height: Of the frame.
            width: Of the frame.
            rng: The view's own generator.

        Returns:
            The framing, to be applied to all that is known of the frame.
        """
        area = height * width * rng.uniform(self.crop_scale, 1, ATTEMPTS)
        ratio = np.exp(rng.uniform(np.log(self.crop_ratio[0]), np.log(self.crop_ratio[1]), ATTEMPTS))
        widths, heights = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
        fits = (widths <= width) & (heights <= height) & (widths > 0) & (heights > 0)
        if fits.any():
            wide, high = int(widths[fits.argmax()]), int(heights[fits.argmax()])
        else:
            wide = min(width, round(height * self.crop_ratio[1]))
            high = min(height, round(width / self.crop_ratio[0]))
        left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
        return Framing(left, top, wide, high, self.size, bool(rng.random() < self.flip))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crop, resize and flip an image alone.

        Args:
            image: RGB uint8 `[H, W, 3]`.
            rng: The view's own generator.

        Returns:
            RGB uint8 `[size, size, 3]`.
        """
        return self.draw(image.shape[0], image.shape[1], rng).image(image)
