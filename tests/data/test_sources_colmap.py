"""COLMAP models, built through pycolmap with known cameras and points."""

import pickle

import cv2
import numpy as np
import pytest

from mum_model.data.captures import RefusedError
from mum_model.data.geometry import pixel_grid, project, transform
from tests.data.made import (
    HEIGHT,
    WIDTH,
    assert_colours,
    colours,
    depth_disagreement,
    only,
    open_captures,
    plain,
    real_capture,
    refusals,
    rotation,
    write_image,
)

pycolmap = pytest.importorskip("pycolmap")

PINHOLE = ("PINHOLE", [90.0, 95.0, 50.0, 30.0])
CAMERAS = {
    "PINHOLE": [90.0, 95.0, 50.0, 30.0],
    "SIMPLE_RADIAL": [90.0, 50.0, 30.0, -0.08],
    "OPENCV": [90.0, 95.0, 50.0, 30.0, -0.1, 0.02, 0.003, -0.002],
    "OPENCV_FISHEYE": [90.0, 95.0, 50.0, 30.0, 0.02, -0.01, 0.001, 0.0],
    "SIMPLE_FISHEYE": [90.0, 50.0, 30.0],
    "FOV": [90.0, 95.0, 50.0, 30.0, 0.6],
}
POINTS = np.random.default_rng(0).uniform([-1, -0.6, 3], [1, 0.6, 6], (40, 3))
POSES = {
    "a.png": np.column_stack([np.eye(3), [0, 0, 0]]),
    "b.png": np.column_stack([rotation(0.05, -0.1, 0.02), [0.3, -0.1, 0.2]]),
}


def write(folder, camera=PINHOLE, points=POINTS, poses=None, model="sparse/0", text=False):
    """Write a capture; each image observes all points. The colours of the images follow the camera's rays."""
    poses = POSES if poses is None else poses
    camera = pycolmap.Camera(model=camera[0], params=camera[1], width=WIDTH, height=HEIGHT, camera_id=1)
    scene = pycolmap.Reconstruction()
    scene.add_camera_with_trivial_rig(camera)
    for number, (name, pose) in enumerate(poses.items(), start=1):
        image = pycolmap.Image(name=name, keypoints=np.zeros((len(points), 2)), camera_id=1, image_id=number)
        scene.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        write_image(folder / "images" / name, colours(rays(camera)))
    for index, point in enumerate(points):
        track = [pycolmap.TrackElement(number, index) for number in range(1, len(poses) + 1)]
        scene.add_point3D(point, pycolmap.Track(track))
    (folder / model).mkdir(parents=True, exist_ok=True)
    (scene.write_text if text else scene.write_binary)(folder / model)


def rays(camera):
    return camera.cam_from_img(pixel_grid(HEIGHT, WIDTH).reshape(-1, 2)).reshape(HEIGHT, WIDTH, 2)


@pytest.fixture
def scene(tmp_path):
    return tmp_path / "fountain"


@pytest.mark.parametrize("model", CAMERAS)
def test_any_camera_becomes_a_pinhole(scene, model):
    write(scene, camera=(model, CAMERAS[model]))
    frame = only(scene).load("b.png")
    assert_colours(frame)
    np.testing.assert_allclose(frame.world2cam, POSES["b.png"], atol=1e-12)
    pixels, depth = project(transform(POSES["b.png"], POINTS), frame.intrinsics)
    visible = ((pixels >= 0) & (pixels < frame.depth.shape[::-1])).all(axis=1)
    column, row = pixels[visible].astype(int).T
    assert visible.sum() > 20
    assert frame.depth.dtype == np.float32
    assert frame.depth.shape == frame.image.shape[:2]
    assert (frame.depth[row, column] <= depth[visible] + 1e-4).all()  # the point, or a nearer one beside it
    assert np.isin(frame.depth[frame.depth > 0], depth[visible].astype(np.float32)).all()


def test_pinhole_is_passed_through(scene):
    write(scene)
    frame = only(scene).load("a.png")
    assert frame.image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(frame.intrinsics, [[90, 0, 50], [0, 95, 30], [0, 0, 1]])


def test_points_fill_three_by_three_and_the_nearest_wins(scene):
    far, near, beside = [0, 0, 4.0], [0, 0, 2.0], [2.05 / 90 * 3, 0, 3.0]
    corner, behind = [-49.9 / 90, -29.9 / 95, 1.0], [0, 0, -1.0]
    write(scene, points=np.array([far, near, beside, corner, behind]))
    depth = only(scene).load("a.png").depth
    expected = np.zeros((HEIGHT, WIDTH))
    expected[29:32, 51:54] = 3
    expected[29:32, 49:52] = 2
    expected[0:2, 0:2] = 1
    np.testing.assert_allclose(depth, expected, atol=1e-6)


def test_model_without_points(scene):
    write(scene, points=np.zeros((0, 3)))
    assert not only(scene).load("a.png").depth.any()


@pytest.mark.parametrize("model", ["sparse/0", "sparse", "."])
@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_places_and_forms_of_the_model(scene, model, text):
    write(scene, model=model, text=text)
    capture = only(scene)
    assert (capture.scene, capture.source, capture.refused) == ("fountain", "colmap", ())
    assert capture.frames == ("a.png", "b.png")
    frame = pickle.loads(pickle.dumps(capture)).load("b.png")
    np.testing.assert_allclose(frame.world2cam, POSES["b.png"], atol=1e-12)
    assert (frame.depth > 0).any()


def test_several_captures_and_natural_order(tmp_path):
    write(tmp_path / "one", poses={f"cam/{number}.png": POSES["a.png"] for number in (1, 10, 9)})
    write(tmp_path / "two")
    captures, _ = open_captures(tmp_path)
    assert [capture.scene for capture in captures] == ["one", "two"]
    assert captures[0].frames == ("cam/1.png", "cam/9.png", "cam/10.png")


def test_missing_image_and_further_model_are_said(scene):
    write(scene)
    write(scene, model="sparse/1")
    (scene / "images" / "a.png").unlink()
    capture = only(scene)
    assert capture.frames == ("b.png",)
    text = refusals(scene)
    assert f"{scene / 'images' / 'a.png'}: missing, but the model in {scene / 'sparse' / '0'} has it" in text
    assert f"{scene / 'sparse' / '1'}: a further model of the scene" in text


def test_image_name_out_of_the_capture_is_refused(scene):
    write(scene, poses={"good.png": POSES["a.png"], "../../secret.png": POSES["b.png"]})
    assert only(scene).frames == ("good.png",)
    assert "image name '../../secret.png' leads out of the capture" in refusals(scene)


def test_no_images_folder(scene):
    write(scene)
    (scene / "images").rename(scene / "photos")
    assert f"{scene / 'images'}: no such folder; expected the photos of the COLMAP model" in refusals(scene)


MODEL_FILES = ("cameras", "images", "points3D", "rigs", "frames")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("name", MODEL_FILES)
def test_cut_binary_file_refuses_the_scene(scene, name, share):
    write(scene)
    path = scene / "sparse" / "0" / f"{name}.bin"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert open_captures(scene)[0] == []
    assert refusals(scene) == f"{path}: cut or damaged; expected a COLMAP binary file, copy it again"


@pytest.mark.parametrize("name", MODEL_FILES)
def test_something_else_under_the_name_of_a_binary_file(scene, name):
    write(scene)
    path = scene / "sparse" / "0" / f"{name}.bin"
    path.write_bytes(np.random.default_rng(0).bytes(2000))
    assert f"{path}: cut or damaged" in refusals(scene)
    path.write_bytes(b"\0" * 64)
    assert f"{path}: 56 bytes after its 0 records" in refusals(scene)


@pytest.mark.parametrize("ending", ["bin", "txt"])
@pytest.mark.parametrize("name", MODEL_FILES)
def test_missing_file_of_the_model(scene, name, ending):
    write(scene, text=ending == "txt")
    (scene / "sparse" / "0" / f"{name}.{ending}").unlink()
    assert f"{scene / 'sparse' / '0'}: pycolmap cannot read the model" in refusals(scene)


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        (
            "cameras.txt",
            "PINHOLE 96 64 90",
            "PINHOLE 96 64 -90",
            "focal length -90 x 95 pixels; expected more",
        ),
        ("cameras.txt", "PINHOLE 96 64 90", "PINHOLE 0 64 90", "camera 1: size 0x64"),
        ("cameras.txt", "PINHOLE 96 64 90 95 50 30", "EQUIRECTANGULAR 96 64 96 64", "EQUIRECTANGULAR is a panorama"),
        ("cameras.txt", "PINHOLE", "KODAK", "pycolmap cannot read the model (Camera model does not exist)"),
        ("images.txt", "b.png", "a.png", "image 'a.png' is listed twice; the first is kept"),
    ],
)
def test_broken_text_model(scene, file, old, new, reason):
    write(scene, text=True)
    replace(scene / "sparse" / "0" / file, old, new)
    assert refusals(scene).count(reason) == 1
    assert str(scene / "sparse" / "0") in refusals(scene)


def test_cut_text_file_of_points(scene):
    write(scene, text=True)
    path = scene / "sparse" / "0" / "points3D.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    text = refusals(scene)
    assert text.count("its images observe 3-D points that its points3D lacks; copy the model again") == 1
    assert "none of the frames of this colmap scene can be used" in text


def test_image_of_another_size_than_its_camera_is_refused_when_read(scene):
    write(scene)
    write_image(scene / "images" / "a.png", plain(32, 48))
    with pytest.raises(RefusedError, match=r"a\.png: image of 48x32 pixels; expected the 96x64"):
        only(scene).load("a.png")


def test_distortion_that_folds_the_image_is_refused_when_read(scene):
    write(scene)
    path = scene / "sparse" / "0"
    write(scene, camera=("SIMPLE_RADIAL", [90.0, 50.0, 30.0, -0.08]), text=True)
    for binary in path.glob("*.bin"):
        binary.unlink()
    replace(path / "cameras.txt", "-0.08", "-2.5")
    with pytest.raises(RefusedError, match=r"a\.png: the distortion .* folds the 96x64 photo over or leaves it"):
        only(scene).load("a.png")


def test_real_sparse_depth_agrees_between_views():
    capture = only(real_capture("fountain"))
    assert len(capture.frames) == 11
    assert capture.refused == ()
    a, b = capture.load("0004.jpg"), capture.load("0005.jpg")
    difference = depth_disagreement(a, b)
    assert len(difference) > 10_000
    assert np.median(difference) / np.median(b.depth[b.depth > 0]) < 1e-3


def test_real_points_look_the_same_in_both_views():
    capture = only(real_capture("fountain"))
    a, b = capture.load("0004.jpg"), capture.load("0005.jpg")
    points = points_seen(a)
    here, there = (patches(frame, project(transform(frame.world2cam, points), frame.intrinsics)[0]) for frame in (a, b))
    same = (correlation(here, there) > 0.7).mean()
    shifted = (correlation(here, np.roll(there, 3, axis=2)) > 0.7).mean()
    assert same > 0.8
    assert shifted < 0.3


def points_seen(frame):
    """World points of depth pixels in the middle of their 3x3 splat, away from the border, every 20th."""
    depth = frame.depth
    whole = np.logical_and.reduce([np.roll(depth, shift, (0, 1)) == depth for shift in [(1, 1), (-1, -1), (1, -1)]])
    margin = 250
    inner = np.zeros(depth.shape, bool)
    inner[margin:-margin, margin:-margin] = True
    row, column = np.nonzero((depth > 0) & whole & inner)
    rays_ = np.column_stack([column + 0.5, row + 0.5, np.ones(len(row))]) @ np.linalg.inv(frame.intrinsics).T
    in_camera = rays_ * depth[row, column, None]
    return ((in_camera - frame.world2cam[:, 3]) @ frame.world2cam[:, :3])[::20]


def patches(frame, pixels, size=11):
    offset = np.arange(size) - size // 2
    x = (pixels[:, 0, None, None] - 0.5 + offset[None, None, :]).repeat(size, 1).astype(np.float32)
    y = (pixels[:, 1, None, None] - 0.5 + offset[None, :, None]).repeat(size, 2).astype(np.float32)
    grey = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    flat = cv2.remap(grey, x.reshape(-1, size), y.reshape(-1, size), cv2.INTER_LINEAR)
    return flat.reshape(-1, size, size)


def correlation(a, b):
    a, b = (patch.reshape(len(patch), -1) - patch.mean(axis=(1, 2))[:, None] for patch in (a, b))
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-9)
