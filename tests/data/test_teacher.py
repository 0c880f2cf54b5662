"""A teacher's files: what is read from them, and what is wrong with them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mum_model.data.augmentation import Augmentation, Framing
from mum_model.data.batches import generator
from mum_model.data.geometry import pixel_grid, project, transform
from mum_model.data.posed import OwnGeometry
from mum_model.data.scenes import SceneIndex
from mum_model.data.teacher import TeacherFiles, TeacherFrame, write_teacher_scene, write_truth_as_teacher
from mum_model.errors import UserError

ROW = 7
WHOLE = Framing(left=0, top=0, width=64, height=64, size=64, mirrored=False)


@pytest.fixture(scope="module")
def index(tiny_dataset):
    return SceneIndex.open(tiny_dataset)


@pytest.fixture(scope="module")
def truth(index, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_truth_as_teacher(index, folder)
    return folder


def test_the_whole_frame_is_what_was_written(index, truth):
    own, said = OwnGeometry(index).view(ROW, WHOLE), TeacherFiles(truth, index).view(ROW, WHOLE)
    np.testing.assert_allclose(said.world2cam, own.world2cam, atol=1e-6)
    np.testing.assert_allclose(said.intrinsics, own.intrinsics, rtol=1e-6)
    assert np.array_equal(said.depth, own.depth)
    assert np.array_equal(np.isnan(said.points).any(-1), own.depth == 0)


@pytest.mark.parametrize("height", [64, 32, 24, 160])
def test_maps_of_any_size_are_cropped_with_their_cameras(index, truth, tmp_path, height):
    """The points of a crop, by the crop's camera, appear at their own pixels, as near as the teacher's pixels are."""
    source, scene, frame = index.name(ROW)
    whole = TeacherFrame(*(load_file(truth / source / f"{scene}.safetensors")[f"{frame}/{f}"] for f in FIELDS))
    rows = ((torch.arange(height) + 0.5) * 64 / height).long()
    taken = torch.arange(48) * 64 // 48
    resized = whole._replace(
        intrinsics=torch.diag(torch.tensor([48 / 64, height / 64, 1.0])) @ whole.intrinsics,
        depth=whole.depth[rows][:, taken],
        points=whole.points[rows][:, taken],
    )
    write_teacher_scene(tmp_path / source / f"{scene}.safetensors", {frame: resized})
    framing = Augmentation(48, 0.3, (0.75, 4 / 3), 0.0).draw(64, 64, generator(0, 0, height, 2))
    view = TeacherFiles(tmp_path, index).view(ROW, framing)
    pixels, depth = project(transform(view.world2cam, view.points), view.intrinsics)
    coarsest = (
        48 / min(framing.width, framing.height) * 64 / min(height, 48)
    )  # pixels of the crop in one of the teacher's
    off = np.abs(pixels - pixel_grid(48, 48)).max(axis=-1)
    assert np.nanmax(off) < 0.5 + 1.5 * coarsest
    np.testing.assert_allclose(depth[view.depth > 0], view.depth[view.depth > 0], rtol=1e-4)


FIELDS = TeacherFrame._fields


def changed(key, value):
    def change(tensors, frame):
        tensors[f"{frame}/{key}"] = value(tensors[f"{frame}/{key}"])

    return change


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda tensors, frame: tensors.pop(f"{frame}/depth"), r"has no '0001/depth'"),
        (changed("depth", lambda t: t[0]), r"'0001/depth' has the shape \[64\], expected \[h, w\]"),
        (
            changed("points", lambda t: t[:10].clone()),
            r"'0001/points' has the shape \[10, 64, 3\], expected \[64, 64, 3",
        ),
        (
            changed("world2cam", lambda t: t[:, :3].clone()),
            r"'0001/world2cam' has the shape \[3, 3\], expected \[3, 4\]",
        ),
        (changed("depth", lambda t: t.index_fill(0, torch.tensor(3), torch.nan)), "'0001/depth' has numbers"),
        (changed("points", lambda t: t / 0), "'0001/points' has numbers that are not finite"),
        (changed("world2cam", lambda t: t * torch.nan), "'0001/world2cam' has numbers that are not finite"),
        (changed("world2cam", lambda t: t * 2), "'0001/world2cam' has no rotation"),
        (changed("depth", lambda t: -t), "'0001/depth' is negative"),
        (changed("depth", lambda t: t.int()), "'0001/depth' is of type torch.int32, expected a floating type"),
        (changed("intrinsics", lambda t: t * 0), "'0001/intrinsics' is no camera matrix"),
    ],
)
def test_a_faulty_field_is_named(index, truth, tmp_path, fault, message):
    source, scene, frame = index.name(ROW)
    tensors = load_file(truth / source / f"{scene}.safetensors")
    fault(tensors, frame)
    path = tmp_path / source / f"{scene}.safetensors"
    path.parent.mkdir()
    save_file(tensors, path)
    with pytest.raises(UserError, match=message) as error:
        TeacherFiles(tmp_path, index).check([ROW - 1, ROW])
    assert str(path) in str(error.value)


def test_a_missing_or_broken_file_is_named(index, tmp_path):
    source, scene, _ = index.name(ROW)
    path = tmp_path / source / f"{scene}.safetensors"
    with pytest.raises(UserError, match=f"{path}: the teacher's outputs for this scene are missing"):
        TeacherFiles(tmp_path, index).check([ROW])
    path.parent.mkdir()
    path.write_bytes(b"not tensors")
    with pytest.raises(UserError, match=f"{path}: cannot be read as safetensors"):
        TeacherFiles(tmp_path, index).check([ROW])


def test_ranks_share_the_files(index, truth, tmp_path):
    """With one file of two broken, one of two ranks finds it."""
    found = []
    rows = [0, 6]
    for row, broken in zip(rows, (False, True), strict=True):
        source, scene, _ = index.name(row)
        target = tmp_path / source / f"{scene}.safetensors"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"" if broken else (truth / source / f"{scene}.safetensors").read_bytes())
    for rank in range(2):
        try:
            TeacherFiles(tmp_path, index).check(rows, rank, 2)
        except UserError:
            found.append(rank)
    assert found == [1]


def test_nothing_faulty_is_written(tmp_path):
    said = TeacherFrame(torch.eye(4)[:3], torch.eye(3), torch.ones(2, 3), torch.ones(2, 3, 2))
    with pytest.raises(UserError, match=r"'0/points' has the shape \[2, 3, 2\], expected \[2, 3, 3\]"):
        write_teacher_scene(tmp_path / "scene.safetensors", {"0": said})
    assert list(tmp_path.iterdir()) == []
