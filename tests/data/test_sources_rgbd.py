"""RGB-D folders in the layout of 7-Scenes."""

import numpy as np
import pytest

from mum_model.data.captures import RefusedError
from tests.data.made import depth_disagreement, only, plain, real_capture, refusals, rotation, write_image, write_png16

K = np.array([[80.0, 0, 40], [0, 90, 30], [0, 0, 1]])
CAM2WORLD = np.eye(4)
CAM2WORLD[:3, :3] = rotation(0.1, -0.2, 0.3)
CAM2WORLD[:3, 3] = [1.0, 2.0, 3.0]


def write_frame(folder, number, cam2world=CAM2WORLD, depth=None, size=(64, 96), ending="color.png"):
    stem = f"frame-{number:06d}"
    write_image(folder / f"{stem}.{ending}", plain(*size))
    write_png16(folder / f"{stem}.depth.png", np.full(size, 1500) if depth is None else depth)
    np.savetxt(folder / f"{stem}.pose.txt", cam2world)


@pytest.fixture
def scene(tmp_path):
    folder = tmp_path / "office"
    write_frame(folder, 0)
    write_frame(folder, 1, ending="color.jpg")
    np.savetxt(folder / "camera-intrinsics.txt", K)
    return folder


def test_conventions(scene):
    depth = np.full((64, 96), 1500)
    depth[0, :3] = 0, 65535, 1
    write_frame(scene, 0, depth=depth)
    capture = only(scene)
    assert (capture.scene, capture.source, capture.refused) == ("office", "rgbd", ())
    assert capture.frames == ("frame-000000", "frame-000001")
    frame = capture.load("frame-000000")
    np.testing.assert_array_equal(frame.intrinsics, K)
    assert frame.depth.dtype == np.float32
    np.testing.assert_allclose(frame.depth[0, :4], [0, 0, 0.001, 1.5], rtol=1e-6)
    camera_centre = frame.world2cam @ [*CAM2WORLD[:3, 3], 1]
    np.testing.assert_allclose(camera_centre, 0, atol=1e-12)
    ahead = frame.world2cam @ (CAM2WORLD @ [0.1, 0.2, 2, 1])
    np.testing.assert_allclose(ahead, [0.1, 0.2, 2], atol=1e-12)
    assert capture.load("frame-000001").image.shape == (64, 96, 3)


def test_sequences_are_one_scene_and_use_its_intrinsics(scene):
    for sequence in ("seq-01", "seq-02"):
        write_frame(scene / sequence, 7)
    capture = only(scene)
    assert capture.frames == ("frame-000000", "frame-000001", "seq-01/frame-000007", "seq-02/frame-000007")
    np.testing.assert_array_equal(capture.load("seq-02/frame-000007").intrinsics, K)


def test_default_intrinsics_are_for_640x480_only(tmp_path):
    write_frame(tmp_path, 0, size=(480, 640))
    write_frame(tmp_path, 1)
    capture = only(tmp_path)
    expected = [[585, 0, 320], [0, 585, 240], [0, 0, 1]]
    np.testing.assert_array_equal(capture.load("frame-000000").intrinsics, expected)
    with pytest.raises(RefusedError, match=r"frame-000001\.color\.png: image of 96x64 .* without it expected 640x480"):
        capture.load("frame-000001")


def scaled():
    return CAM2WORLD @ np.diag([1.1, 1.1, 1.1, 1])


def mirrored():
    return CAM2WORLD @ np.diag([1, 1, -1, 1])


def not_finite():
    return np.where(CAM2WORLD == 1, np.nan, CAM2WORLD)


def projective():
    return CAM2WORLD + np.eye(4, k=-3)


@pytest.mark.parametrize(
    ("pose", "reason"),
    [
        (CAM2WORLD[:3], "matrix of shape (3, 4); expected 4x4"),
        (not_finite(), "numbers that are not finite"),
        (scaled(), "not rigid (determinant 1.331"),
        (mirrored(), "not rigid (determinant -1"),
        (projective(), "the last row is [1.0, 0.0, 0.0, 1.0]; expected [0, 0, 0, 1]"),
    ],
)
def test_broken_pose_is_refused_by_file(scene, pose, reason):
    np.savetxt(scene / "frame-000000.pose.txt", pose)
    assert only(scene).frames == ("frame-000001",)
    assert f"{scene / 'frame-000000.pose.txt'}: " in refusals(scene)
    assert reason in refusals(scene)


@pytest.mark.parametrize("text", ["", "1 2 x 4\n", "1 2 3\n4 5\n", "\xff\xfe"])
def test_pose_file_that_is_no_matrix(scene, text):
    (scene / "frame-000000.pose.txt").write_text(text, encoding="latin-1")
    assert only(scene).frames == ("frame-000001",)
    assert "frame-000000.pose.txt: " in refusals(scene)


@pytest.mark.parametrize("ending", ["color.png", "depth.png", "pose.txt"])
def test_frame_without_one_of_its_files_is_refused(scene, ending):
    (scene / f"frame-000000.{ending}").unlink()
    assert only(scene).frames == ("frame-000001",)
    assert "frame-000000" in refusals(scene)
    assert "expected" in refusals(scene)


def test_two_colour_images_of_one_frame(scene):
    write_image(scene / "frame-000000.color.jpg", plain())
    assert "frame-000000: both of .color.jpg and .color.png are there; expected one" in refusals(scene)


@pytest.mark.parametrize("K", [np.eye(4), np.diag([-80.0, 80, 1]), np.full((3, 3), np.nan), np.ones((3, 3))])
def test_broken_intrinsics_refuse_the_scene(scene, K):
    np.savetxt(scene / "camera-intrinsics.txt", K)
    text = refusals(scene)
    assert text.startswith(f"{scene / 'camera-intrinsics.txt'}: ")
    assert "expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]" in text


def test_depth_of_another_size_and_broken_pixels_are_refused_when_read(scene):
    write_png16(scene / "frame-000000.depth.png", np.zeros((32, 48)))
    (scene / "frame-000001.color.jpg").write_bytes(b"")
    capture = only(scene)
    with pytest.raises(RefusedError, match=r"depth\.png: depth of 48x32 pixels; expected the colour image's 96x64"):
        capture.load("frame-000000")
    with pytest.raises(RefusedError, match=r"color\.jpg: empty file"):
        capture.load("frame-000001")


def test_real_depth_agrees_between_frames():
    capture = only(real_capture("rgbd_sevenscenes"))
    assert len(capture.frames) == 250
    assert capture.refused == ()
    a, b = capture.load("frame-000000"), capture.load("frame-000030")
    difference = depth_disagreement(a, b)
    assert len(difference) > 100_000
    assert np.median(difference) < 0.02
