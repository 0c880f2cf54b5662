"""Crops against torchvision's, and their intrinsics against the pixels they show."""

import cv2
import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

import mum_model.model  # noqa: F401  (torchvision needs it on CPU builds of torch)
from mum_model.data.augmentation import Augmentation, Framing
from tests.data.made import colours, pinhole_rays

RELEASED = Augmentation(224, crop_scale=0.2, crop_ratio=(3 / 4, 4 / 3), flip=0.5)
INTRINSICS = np.array([[110.0, 0, 60.3], [0, 95, 41.7], [0, 0, 1]])


def framings(augmentation, height, width, count=2000):
    return [augmentation.draw(height, width, np.random.default_rng(i)) for i in range(count)]


@pytest.mark.parametrize(("height", "width"), [(480, 640), (256, 256), (300, 500)])
def test_crops_are_distributed_as_those_of_the_authors(height, width):
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)])
    ours = np.array([(f.top, f.left, f.height, f.width) for f in framings(RELEASED, height, width)])
    for a, b in (
        (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        (ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
        (ours[:, 0], theirs[:, 0]),
        (ours[:, 1], theirs[:, 1]),
    ):
        assert scipy.stats.ks_2samp(a, b).statistic < 0.06
    assert np.mean([f.mirrored for f in framings(RELEASED, height, width)]) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("crop", "tolerance"),
    [((10, 20, 100, 75), 2), ((0, 0, 300, 400), 2), ((31, 7, 250, 224), 2), ((40, 9, 60, 90), 9), ((5, 5, 1, 2), 9)],
)
def test_pixels_are_those_of_pillows_bicubic(crop, tolerance):
    """Where the crop grows, OpenCV's filter is a little sharper than Pillow's (its coefficient is -0.75, not -0.5)."""
    left, top, width, height = crop
    frame = np.random.default_rng(0).integers(0, 256, (410, 420, 3), dtype=np.uint8)
    frame = cv2.GaussianBlur(frame, (0, 0), 1.0)
    ours = Framing(left, top, width, height, 96, mirrored=False).image(frame).astype(int)
    part = Image.fromarray(frame[top : top + height, left : left + width])
    theirs = np.asarray(part.resize((96, 96), Image.Resampling.BICUBIC))
    assert np.abs(ours - theirs).max() <= tolerance
    assert np.abs(ours - theirs).mean() < 1


def test_the_papers_recipe_takes_the_largest_square():
    paper = Augmentation(32, crop_scale=1.0, crop_ratio=(1.0, 1.0), flip=0.0)
    found = framings(paper, 40, 60, 200)
    assert {(f.width, f.height, f.top, f.mirrored) for f in found} == {(40, 40, 0, False)}
    assert {f.left for f in found} == set(range(21))


def test_crops_keep_at_least_their_share():
    found = framings(Augmentation(32, 0.25, (1.0, 1.0), 0.0), 100, 100)
    assert all(f.width == f.height for f in found)
    assert min(f.width for f in found) == 50
    assert max(f.width for f in found) == 100


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_the_thinnest_frames_have_crops(size):
    for framing in framings(RELEASED, *size, count=50):
        assert framing.width > 0
        assert framing.height > 0
        assert framing.image(np.zeros((*size, 3), np.uint8)).shape == (224, 224, 3)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("crop", [(0, 0, 120, 90), (13, 5, 60, 44), (40, 20, 71, 64)])
def test_intrinsics_and_depth_follow_the_pixels(crop, mirrored):
    """Every pixel of the view has the colour, and the depth, of the direction that its intrinsics give."""
    rays = pinhole_rays(90, 120, INTRINSICS)
    frame = np.rint(colours(rays)).astype(np.uint8)
    depth = (2 + 0.4 * rays[..., 0] + 0.3 * rays[..., 1]).astype(np.float32)
    framing = Framing(*crop, size=80, mirrored=mirrored)
    seen = pinhole_rays(80, 80, framing.intrinsics(INTRINSICS))
    inner = np.s_[3:-3, 3:-3]  # a filter has nothing beyond the border to go by
    difference = np.abs(framing.image(frame) - colours(seen))[inner]
    assert difference.mean() < 0.8
    assert difference.max() < 4
    of_direction = 2 + 0.4 * seen[..., 0] + 0.3 * seen[..., 1]
    one_pixel = 0.4 / 110 + 0.3 / 95
    assert np.abs(framing.depth(depth) - of_direction).max() < one_pixel


def test_sparse_depth_keeps_its_places_when_enlarged():
    depth = np.zeros((20, 20), np.float32)
    depth[10, 4] = 3.0
    enlarged = Framing(0, 0, 20, 20, 60, mirrored=False).depth(depth)
    assert np.argwhere(enlarged).tolist() == [[31, 13]]
    assert enlarged.max() == 3
