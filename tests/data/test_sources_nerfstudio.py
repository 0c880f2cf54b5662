"""`transforms.json` of nerfstudio and instant-ngp."""

import json
import math

import cv2
import numpy as np
import pytest

from mum_model.data.captures import RefusedError
from mum_model.data.geometry import pixel_grid, relative_pose
from tests.data.made import (
    HEIGHT,
    WIDTH,
    assert_colours,
    colours,
    only,
    open_captures,
    pinhole_rays,
    plain,
    real_capture,
    refusals,
    rotation,
    write_image,
    write_png16,
)

CAMERA = {"fl_x": 90.0, "fl_y": 95.0, "cx": 50.0, "cy": 30.0, "w": WIDTH, "h": HEIGHT}
K = np.array([[90.0, 0, 50], [0, 95, 30], [0, 0, 1]])
POSE = np.eye(4).tolist()


def write(folder, frames, **shared):
    """Write the file, and the images of frames that are not there yet."""
    folder.mkdir(exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps({**shared, "frames": frames}))
    for frame in frames:
        path = folder / frame["file_path"]
        if not path.exists():
            write_image(path, colours(pinhole_rays(HEIGHT, WIDTH, K)))


def frame(name="images/0001.png", pose=POSE, **fields):
    return {"file_path": name, "transform_matrix": pose, **fields}


@pytest.fixture
def scene(tmp_path):
    return tmp_path / "fox"


def test_pinhole_and_axes(scene):
    cam2world = np.eye(4)
    cam2world[2, 3] = 5.0  # OpenGL: at z = 5, looking along -z
    write(scene, [frame(pose=cam2world.tolist())], **CAMERA)
    capture = only(scene)
    assert (capture.scene, capture.source, capture.frames) == ("fox", "nerfstudio", ("images/0001.png",))
    loaded = capture.load("images/0001.png")
    np.testing.assert_allclose(loaded.intrinsics, K)
    np.testing.assert_allclose(loaded.world2cam @ [1, 2, 0, 1], [1, -2, 5], atol=1e-12)
    assert loaded.depth is None
    assert_colours(loaded)


def test_turned_camera(scene):
    cam2world = np.eye(4)
    cam2world[:3, :3], cam2world[:3, 3] = rotation(0.3, -0.8, 0.2), [1, 2, 3]
    write(scene, [frame(pose=cam2world.tolist())], **CAMERA)
    world2cam = only(scene).load("images/0001.png").world2cam
    point = cam2world @ [0.5, 0.25, -2, 1]  # 2 in front, half to the right, a quarter up
    np.testing.assert_allclose(world2cam @ point, [0.5, -0.25, 2], atol=1e-12)


PERSPECTIVE = {"k1": -0.12, "k2": 0.03, "k3": -0.004, "p1": 0.004, "p2": -0.003}
FISHEYE = {"k1": 0.03, "k2": -0.01, "k3": 0.004, "k4": -0.001}


@pytest.mark.parametrize(
    "lens",
    [PERSPECTIVE, {"camera_model": "OPENCV", **PERSPECTIVE}, {"camera_model": "OPENCV_FISHEYE", **FISHEYE}],
    ids=["unnamed", "OPENCV", "OPENCV_FISHEYE"],
)
def test_distortion_is_undone(scene, lens):
    write_image(scene / "images" / "0001.png", colours(rays_by_opencv(lens)))
    write(scene, [frame()], **CAMERA, **lens)
    loaded = only(scene).load("images/0001.png")
    assert loaded.image.shape != (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(np.diag(loaded.intrinsics), [90, 95, 1])
    assert_colours(loaded)


def rays_by_opencv(lens):
    pixels = pixel_grid(HEIGHT, WIDTH).reshape(-1, 1, 2)
    if "k4" in lens:
        coefficients = np.array([lens[key] for key in ("k1", "k2", "k3", "k4")])
        rays = cv2.fisheye.undistortPoints(pixels, K, coefficients)
    else:
        coefficients = np.array([lens[key] for key in ("k1", "k2", "p1", "p2", "k3")])
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
        rays = cv2.undistortPoints(pixels, K, coefficients, criteria=criteria)
    return rays.reshape(HEIGHT, WIDTH, 2)


def test_is_fisheye_of_instant_ngp(scene):
    write(scene, [frame()], **CAMERA, **FISHEYE, is_fisheye=True)
    ngp = only(scene).load("images/0001.png")
    write(scene, [frame()], **CAMERA, **FISHEYE, camera_model="OPENCV_FISHEYE")
    nerfstudio = only(scene).load("images/0001.png")
    np.testing.assert_array_equal(ngp.image, nerfstudio.image)


def test_intrinsics_of_a_frame_go_before_those_of_the_file(scene):
    write(scene, [frame("a.png"), frame("b.png", fl_x=70.0, cx=40.0)], **CAMERA)
    capture = only(scene)
    assert capture.load("a.png").intrinsics[0].tolist() == [90, 0, 50]
    assert capture.load("b.png").intrinsics[0].tolist() == [70, 0, 40]


def test_camera_angle_alone(scene):
    write(scene, [frame()], camera_angle_x=2 * math.atan(0.5))
    expected = [[WIDTH, 0, WIDTH / 2], [0, WIDTH, HEIGHT / 2], [0, 0, 1]]
    np.testing.assert_allclose(only(scene).load("images/0001.png").intrinsics, expected)


def test_images_without_extension_and_natural_order(scene):
    for number in (10, 2):
        write_image(scene / "train" / f"r_{number}.png", plain())
    write(scene, [], camera_angle_x=1.0)
    frames = [frame("./train/r_10"), frame("./train/r_2")]
    (scene / "transforms.json").write_text(json.dumps({"camera_angle_x": 1.0, "frames": frames}))
    capture = only(scene)
    assert capture.frames == ("train/r_2", "train/r_10")
    assert capture.load("train/r_10").image.shape == (HEIGHT, WIDTH, 3)


def test_depth_in_millimetres_at_the_photos_size(scene):
    write_png16(scene / "depth.png", np.repeat([[0, 1500]], 2, axis=0))
    write(scene, [frame(depth_file_path="depth.png")], **CAMERA)
    depth = only(scene).load("images/0001.png").depth
    assert (depth.dtype, depth.shape) == (np.float32, (HEIGHT, WIDTH))
    np.testing.assert_allclose(depth[:, : WIDTH // 2], 0)
    np.testing.assert_allclose(depth[:, WIDTH // 2 :], 1.5)


def test_depth_is_undistorted_with_the_image(scene):
    write_png16(scene / "depth.png", np.full((HEIGHT, WIDTH), 2000))
    write(scene, [frame(depth_file_path="depth.png")], **CAMERA, **PERSPECTIVE)
    loaded = only(scene).load("images/0001.png")
    assert loaded.depth.shape == loaded.image.shape[:2]
    assert set(np.unique(loaded.depth)) == {np.float32(2)}


def test_missing_images_are_refused_one_by_one(scene):
    write(scene, [frame("a.png"), frame("b.png"), frame("c.png")], **CAMERA)
    (scene / "b.png").unlink()
    capture = only(scene)
    assert capture.frames == ("a.png", "c.png")
    assert [str(refusal) for refusal in capture.refused] == [
        f"{scene / 'b.png'}: missing, but transforms.json lists it as a frame"
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pose": [[1, 0], [0, 1]]}, "frames[1].transform_matrix: matrix of shape (2, 2); expected 4x4"),
        ({"pose": None}, "frames[1].transform_matrix: matrix of shape (); expected 4x4"),
        ({"pose": [["a"] * 4] * 4}, "frames[1].transform_matrix: not a matrix of numbers"),
        ({"pose": [[1, 2], [3]]}, "frames[1].transform_matrix: not a matrix of numbers"),
        ({"pose": [[10**400] * 4] * 4}, "frames[1].transform_matrix: not a matrix of numbers"),
        ({"pose": np.full((4, 4), np.nan).tolist()}, "frames[1].transform_matrix: the pose holds numbers that are not"),
        ({"pose": np.diag([2.0, 2, 2, 1]).tolist()}, "frames[1].transform_matrix: the pose is not rigid"),
        ({"fl_x": "long"}, "frames[1].fl_x: found 'long'; expected a finite number"),
        ({"fl_x": True}, "frames[1].fl_x: found 'True'; expected a finite number"),
        ({"fl_x": float("inf")}, "frames[1].fl_x: found 'inf'; expected a finite number"),
        ({"cx": 10**400}, "frames[1].cx: found '1000"),
        ({"fl_y": 0}, "frames[1].fl_y: found 0; expected a focal length of more than 0 pixels"),
        ({"fl_x": -90}, "frames[1].fl_x: found -90; expected a focal length of more than 0 pixels"),
        ({"w": 95.5}, "frames[1].w: found 95.5; expected a whole number of pixels"),
        ({"h": 0}, "frames[1].h: found 0; expected a whole number of pixels"),
        ({"w": 10**9}, "expected a photo of at most 100 megapixels"),
        ({"k4": 0.1}, "frames[1].k4: found 0.1; expected 0, or camera_model OPENCV_FISHEYE"),
        ({"camera_model": "EQUIRECTANGULAR"}, "frames[1].camera_model: found 'EQUIRECTANGULAR'; expected one of"),
        ({"depth_file_path": "depth.png"}, "depth.png: missing, but transforms.json lists it"),
    ],
)
def test_broken_field_refuses_the_frame(scene, fields, reason):
    write(scene, [frame("good.png"), frame("bad.png", **fields)], **CAMERA)
    assert only(scene).frames == ("good.png",)
    assert reason in refusals(scene)


@pytest.mark.parametrize("listed", ["../secret.png", "images/../../secret.png", "/secret.png"])
def test_path_out_of_the_capture_is_refused(scene, listed):
    write_image(scene.parent / "secret.png", plain())
    write(scene, [frame("good.png")], **CAMERA)
    frames = [frame("good.png"), frame(listed)]
    (scene / "transforms.json").write_text(json.dumps({**CAMERA, "frames": frames}))
    assert only(scene).frames == ("good.png",)
    assert f"frames[1].file_path: '{listed}' leads out of the capture" in refusals(scene)


@pytest.mark.parametrize("listed", [None, 7, "", ".", "a\0b"])
def test_file_path_that_is_no_path(scene, listed):
    write_image(scene.with_suffix(".png"), plain())  # what "." with an extension would be
    write(scene, [frame("good.png")], **CAMERA)
    frames = [frame("good.png"), frame(listed)]
    (scene / "transforms.json").write_text(json.dumps({**CAMERA, "frames": frames}))
    assert only(scene).frames == ("good.png",)
    assert "transforms.json: frames[1].file_path: " in refusals(scene)


def test_duplicate_frame_is_refused(scene):
    write(scene, [frame("a.png"), frame("./a.png", pose=np.diag([1, -1, -1, 1]).tolist())], **CAMERA)
    capture = only(scene)
    assert capture.frames == ("a.png",)
    assert "frames[1].file_path: 'a.png' is listed twice; the first is kept" in refusals(scene)
    np.testing.assert_allclose(capture.load("a.png").world2cam[:, :3], np.diag([1, -1, -1]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no list of 'frames'"),
        ('{"frames": {}}', "no list of 'frames'"),
        ('{"frames": [1]}', "'frames' holds something else than objects"),
        ('{"frames": []}', "none of the frames of this nerfstudio scene can be used"),
    ],
)
def test_broken_file_refuses_the_scene(scene, text, reason):
    scene.mkdir()
    (scene / "transforms.json").write_text(text, encoding="latin-1")
    assert open_captures(scene)[0] == []
    assert reason in refusals(scene)
    assert str(scene) in refusals(scene)


def test_broken_camera_of_the_file_is_said_once(scene):
    write(scene, [frame("a.png"), frame("b.png")], **{**CAMERA, "fl_x": None})
    assert open_captures(scene)[0] == []
    assert refusals(scene).count("no focal length; expected 'fl_x' in pixels or 'camera_angle_x' in radians") == 1


def test_image_of_another_size_than_its_camera_is_refused_when_read(scene):
    write_image(scene / "images" / "0001.png", plain(32, 48))
    write(scene, [frame()], **CAMERA)
    with pytest.raises(RefusedError, match=r"0001\.png: image of 48x32 pixels; expected the 96x64"):
        only(scene).load("images/0001.png")


@pytest.mark.parametrize("distortion", [{"k1": -5.0}, {"k1": 3.0, "k2": -40.0}, {"p1": 9.0}])
def test_distortion_that_folds_the_image_is_refused_when_read(scene, distortion):
    write(scene, [frame()], **CAMERA, **distortion)
    with pytest.raises(RefusedError, match=r"0001\.png: the distortion .* folds the 96x64 photo over or leaves it"):
        only(scene).load("images/0001.png")


def test_real_capture_has_50_frames_and_names_the_17_missing():
    folder = real_capture("fox")
    capture = only(folder)
    assert len(capture.frames) == 50
    assert len(capture.refused) == 17
    assert {refusal.reason for refusal in capture.refused} == {"missing, but transforms.json lists it as a frame"}
    assert all(refusal.path.startswith(str(folder.resolve() / "images")) for refusal in capture.refused)


def test_real_poses_explain_real_matches():
    capture = only(real_capture("fox"))
    a, b = (capture.load(name) for name in ("images/0001.jpg", "images/0004.jpg"))
    pixels_a, pixels_b = matches(a.image, b.image)
    distance = epipolar_distance(a, b, pixels_a, pixels_b)
    assert len(distance) > 100
    assert np.median(distance) < 1


def matches(a, b):
    sift = cv2.SIFT_create(1000)
    keypoints_a, descriptors_a = sift.detectAndCompute(cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), None)
    keypoints_b, descriptors_b = sift.detectAndCompute(cv2.cvtColor(b, cv2.COLOR_RGB2GRAY), None)
    pairs = cv2.BFMatcher().knnMatch(descriptors_a, descriptors_b, k=2)
    kept = [best for best, second in pairs if best.distance < 0.7 * second.distance]
    pixels_a = np.array([keypoints_a[match.queryIdx].pt for match in kept]) + 0.5
    pixels_b = np.array([keypoints_b[match.trainIdx].pt for match in kept]) + 0.5
    return pixels_a, pixels_b


def epipolar_distance(a, b, pixels_a, pixels_b):
    pose = relative_pose(a.world2cam, b.world2cam)
    x, y, z = pose[:, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ pose[:, :3]
    fundamental = np.linalg.inv(b.intrinsics).T @ essential @ np.linalg.inv(a.intrinsics)
    lines = np.column_stack([pixels_a, np.ones(len(pixels_a))]) @ fundamental.T
    algebraic = (lines * np.column_stack([pixels_b, np.ones(len(pixels_b))])).sum(axis=1)
    return np.abs(algebraic) / np.linalg.norm(lines[:, :2], axis=1)
