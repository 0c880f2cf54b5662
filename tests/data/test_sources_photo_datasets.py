"""Public datasets without depth maps, each on a miniature in its real layout: names, pixels, cameras, rules."""

import pickle

import numpy as np
import pytest

from mum_model.data.sources import SOURCES, find_scenes
from tests.data.made import only, open_captures, refusals
from tests.data.made_datasets import HEIGHT, WIDTH, K, captures, check, photo, pose, write_json, write_text

# DL3DV


def dl3dv(root, count=3):
    opengl = np.diag([1.0, -1, -1, 1])
    frames = []
    for number in range(count):
        photo(root / "images_8" / f"frame_{number + 1:05d}.png")
        matrix = (np.linalg.inv(pose(number)) @ opengl).tolist()
        frames.append({"file_path": f"images/frame_{number + 1:05d}.png", "transform_matrix": matrix})
    camera = {"w": WIDTH * 8, "h": HEIGHT * 8, "fl_x": 640.0, "fl_y": 720.0, "cx": 360.0, "cy": 240.0}
    write_json(root / "transforms.json", {"camera_model": "OPENCV", "k1": 0.0, **camera, "frames": frames})


def test_dl3dv_shrinks_its_camera_with_the_photos(tmp_path):
    dl3dv(tmp_path / "DL3DV-10K" / "1K" / "0a1b7c20a92c43c6b8954b1ac909fb2f0fa8b2997b80604bc8bbec80a1cb2da3")
    (capture,) = captures(tmp_path / "DL3DV-10K")
    assert (capture.source, capture.rule.kind, len(capture.frames)) == ("dl3dv", "whole", 3)
    for number, name in enumerate(capture.frames):
        check(capture.load(name), number, depth=False)


# ScanNet++


@pytest.mark.parametrize("undistorted", [True, False])
def test_scannetpp_takes_training_frames_of_training_scenes(tmp_path, undistorted):
    photos, file = (
        ("resized_undistorted_images", "transforms_undistorted.json")
        if undistorted
        else ("resized_images", "transforms.json")
    )
    opengl = np.diag([1.0, -1, -1, 1])
    camera = {"w": WIDTH, "h": HEIGHT, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    camera["camera_model"] = "PINHOLE" if undistorted else "OPENCV_FISHEYE"
    for scene in ("036bce3393", "09c1414f1b"):
        dslr = tmp_path / "data" / scene / "dslr"
        frames = []
        for number in range(4):
            photo(dslr / photos / f"DSC0{number}.JPG")
            matrix = (np.linalg.inv(pose(number)) @ opengl).tolist()
            frames.append({"file_path": f"DSC0{number}.JPG", "transform_matrix": matrix, "is_bad": False})
        write_json(dslr / "nerfstudio" / file, {**camera, "frames": frames[:3], "test_frames": frames[3:]})
    write_text(tmp_path / "splits" / "nvs_sem_train.txt", "036bce3393\n")
    (capture,) = captures(tmp_path)
    assert (capture.source, capture.scene) == ("scannetpp", "036bce3393")
    assert (capture.rule.kind, capture.rule.frames) == ("chunk", 100)
    assert [name.split("/")[-1] for name in capture.frames] == ["DSC00.JPG", "DSC01.JPG", "DSC02.JPG"]
    if undistorted:
        check(capture.load(capture.frames[1]), 1, depth=False)
    else:
        np.testing.assert_allclose(capture.load(capture.frames[1]).world2cam, pose(1)[:3], atol=1e-9)


# MegaScenes


@pytest.mark.parametrize("kind", ["colmap", "sparses"])
def test_megascenes_models_of_a_place_share_it(tmp_path, kind):
    pycolmap = pytest.importorskip("pycolmap")
    for model in ("0", "1"):
        reconstruction = pycolmap.Reconstruction()
        camera = pycolmap.Camera(camera_id=1, model="PINHOLE", width=WIDTH, height=HEIGHT, params=[80, 90, 45, 30])
        reconstruction.add_camera_with_trivial_rig(camera)
        for number in range(2):
            name = f"commons/Arco_degli_Argentari/0/pictures/{model}{number}.jpg"
            photo(tmp_path / "images" / "000" / "007" / name)
            image = pycolmap.Image(image_id=number + 1, camera_id=1, name=name)
            world2cam = pycolmap.Rigid3d(pose(number)[:3])
            reconstruction.add_image_with_trivial_frame(image, world2cam)
        folder = tmp_path / "reconstruct" / "000" / "007" / kind / model
        folder.mkdir(parents=True)
        reconstruction.write_binary(str(folder))
    first, second = captures(tmp_path)
    assert (first.scene, second.scene) == ("000/007/0", "000/007/1")
    assert first.place == second.place == "000/007"
    assert (first.rule.kind, first.rule.least) == ("whole", 12)
    for number, name in enumerate(first.frames):
        frame = first.load(name)
        np.testing.assert_allclose(frame.world2cam, pose(number)[:3], atol=1e-9)
        np.testing.assert_allclose(frame.intrinsics, K)


# 3D Street View


def test_streetview_orders_by_target(tmp_path):
    part = tmp_path / "0001" / "0001"
    for name, target, view in (("a", 7, 1), ("b", 3, 2), ("c", 7, 0), ("d", 3, 1)):
        photo(part / f"{name}.jpg")
        numbers = [1, target, 4, view, 40.1, -74.2, 3, 0, 0, 1, 40.2, -74.1, 2, 25.0, 180, 5, 0]
        write_text(part / f"{name}.txt", f"d {' '.join(map(str, numbers))}\np 0 0\n")
    photo(part / "e.jpg")
    write_text(part / "e.txt", "nothing\n")
    capture = only(tmp_path)
    assert (capture.source, capture.frames) == ("streetview", ("d.jpg", "b.jpg", "c.jpg", "a.jpg"))
    assert (capture.rule.kind, capture.rule.frames) == ("chunk", 24)
    check(capture.load("d.jpg"), 0, posed=False, depth=False)
    assert "e.txt: no line 'd' of 17 numbers" in refusals(tmp_path)


# RealEstate10K


def test_realestate10k(tmp_path):
    for part in ("train", "test"):
        lines = ["https://www.youtube.com/watch?v=abc"]
        for number in range(3):
            photo(tmp_path / "dataset" / part / "0000cc6d8b108390" / f"{5000 * number}.png")
            numbers = [80 / WIDTH, 90 / HEIGHT, 45 / WIDTH, 30 / HEIGHT, 0, 0, *pose(number)[:3].ravel()]
            lines.append(f"{5000 * number} {' '.join(map(str, numbers))}")
        write_text(tmp_path / "RealEstate10K" / part / "0000cc6d8b108390.txt", "\n".join(lines))
    train, test = captures(tmp_path)
    assert (train.source, train.scene, test.scene) == (
        "realestate10k",
        "train/0000cc6d8b108390",
        "test/0000cc6d8b108390",
    )
    assert train.place == test.place == "https://www.youtube.com/watch?v=abc"
    assert train.frames == ("0.png", "5000.png", "10000.png")
    for number, name in enumerate(train.frames):
        check(train.load(name), number, depth=False)


# ImageNet


@pytest.mark.parametrize("nested", ["ILSVRC/Data/CLS-LOC/train", "train", "."])
def test_imagenet_is_single_views(tmp_path, nested):
    for name in ("n01440764", "n01443537"):
        photo(tmp_path / nested / name / f"{name}_10026.JPEG")
    first, second = captures(tmp_path)
    assert (first.source, first.scene, second.scene) == ("imagenet", "n01440764", "n01443537")
    assert first.rule.kind == "single"
    check(first.load(first.frames[0]), 0, posed=False, depth=False)


# All


def test_every_source_says_what_it_is():
    for source in SOURCES:
        for text in (source.layout, source.truth, source.licence, source.origin):
            assert text
            assert "\n" not in text
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_scenes_are_light_to_send(tmp_path):
    dl3dv(tmp_path)
    (scene,) = find_scenes(str(tmp_path), tmp_path / ".work").scenes
    again = pickle.loads(pickle.dumps(scene))
    assert again.capture().frames == scene.capture().frames


def test_another_capture_in_a_datasets_folder_is_said(tmp_path):
    photo(tmp_path / "n01440764" / "n01440764_1.JPEG")
    photo(tmp_path / "garden" / "0.png")
    (capture,), refused = open_captures(tmp_path)
    assert capture.scene == "n01440764"
    (said,) = map(str, refused)
    assert said == f"{tmp_path / 'garden'}: no part of the imagenet dataset that it lies in; " + (
        "left out, expected by itself in data.source"
    )
