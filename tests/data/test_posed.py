"""Posed packs: geometry that stays in step with the pixels, and what is unknown."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, ViewSampler
from mum_model.data.geometry import invert_pose, pixel_grid, project, transform, unproject
from mum_model.data.posed import OwnGeometry, PosedPacks
from mum_model.data.scenes import SceneIndex

CROPS = Augmentation(size=48, crop_scale=0.3, crop_ratio=(0.75, 4 / 3), flip=0.5)


@pytest.fixture(scope="module")
def index(tiny_dataset):
    return SceneIndex.open(tiny_dataset)


def sampler(index):
    sequences = index.sequences("train")
    sources = index.sources(sequences)
    return ViewSampler(sequences, sources, frames=8, views=(2, 4), single_view_share=0, mix={}, seed=3)


def posed(index, augmentation=CROPS):
    return PosedPacks(index, sampler(index), augmentation, OwnGeometry(index), packs=2)


def world_points(pack, view):
    depth, intrinsics, pose = (part[view].numpy() for part in (pack.depth, pack.intrinsics, pack.world2cam))
    return transform(invert_pose(pose), unproject(pixel_grid(*depth.shape), depth, intrinsics)), depth > 0


def test_crops_show_the_surfaces_of_the_frame(index):
    """Points of a cropped, distorted view lie, by the frame's own camera, on the depth of the frame."""
    packs = posed(index)
    rows = np.concatenate(packs.sampler.draw(5, 1))
    pack = packs.make(5, 1)
    for view, row in enumerate(rows.tolist()):
        points, known = world_points(pack, view)
        camera = index.camera(row)
        pixels, depth = project(transform(camera.world2cam, points[known]), camera.intrinsics)
        column, line = np.floor(pixels + 1e-6).astype(int).T  # 1e-6: on the edge between two
        assert ((column >= 0) & (column < 64) & (line >= 0) & (line < 64)).all()
        off = np.abs(camera.depth[line, column] - depth)
        assert np.median(off) < 1e-3
        assert (off < 0.05 * depth).mean() > 0.95  # the rest is at silhouettes


def test_the_pixels_are_those_of_packs_without_geometry(index):
    """The same draws and the same crops; nothing is mirrored, whatever the augmentation says."""
    plain = StepPacks(index, sampler(index), replace(CROPS, flip=0.0), packs=2).make(2, 0)
    pack = posed(index).make(2, 0)
    assert torch.equal(pack.images, plain.images)
    assert pack.views == plain.views
    assert (pack.intrinsics[:, 0, 0] > 0).all()
    assert (pack.images.dtype, pack.world2cam.dtype, pack.depth.dtype) == (torch.uint8, torch.float64, torch.float32)


def test_what_the_dataset_does_not_know_is_not_a_number_and_zero(index):
    """A dataset of which poses, intrinsics and depth of the odd rows are lost."""
    odd = np.arange(len(index)) % 2 == 1
    table = index.frames
    for name in ("world2cam", "intrinsics", "depth_offset"):
        kept = pa.array([None if lost else value for lost, value in zip(odd, table[name].to_pylist(), strict=True)])
        table = table.set_column(table.column_names.index(name), name, kept.cast(table.schema.field(name).type))
    packs = posed(replace(index, frames=table))
    rows, pack = np.concatenate(packs.sampler.draw(0, 0)), packs.make(0, 0)
    lost = torch.from_numpy(odd[rows])
    assert 0 < lost.sum() < len(lost)
    assert torch.equal(pack.world2cam.isnan().all((1, 2)), lost)
    assert torch.equal(pack.intrinsics.isnan().all((1, 2)), lost)
    assert torch.equal((pack.depth == 0).all(2).all(1), lost)
