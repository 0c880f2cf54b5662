"""Every public dataset on a miniature in its real layout, its truth known: names, pixels, cameras, depth, rules."""

import gzip
import io
import json
import pickle
import zipfile

import cv2
import h5py
import numpy as np
import pytest

from mum_model.data.sources import SOURCES, find_scenes
from tests.data.made import only, open_captures, plain, refusals, rotation, write_image, write_png16

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


# MegaDepth


def megadepth(root, count=5):
    paths, depths = [], []
    for number in range(count):
        paths.append(f"Undistorted_SfM/0001/images/{number}.jpg")
        depths.append(f"phoenix/S6/zl548/MegaDepth_v1/0001/dense0/depths/{number}.h5")
        photo(root / paths[-1])
        write_hdf5(root / depths[-1], depth=DEPTH)
    overlap = np.full((count + 1, count + 1), -1.0)
    overlap[:count, :count] = 1 - np.abs(np.subtract.outer(np.arange(count), np.arange(count))) / count
    (root / "scene_info").mkdir()
    np.savez(
        root / "scene_info" / "0001.npz",
        image_paths=np.array([*paths, None], object),
        depth_paths=np.array([*depths, None], object),
        intrinsics=np.array([*[K] * count, None], object),
        poses=np.array([*map(pose, range(count)), None], object),
        overlap_matrix=overlap,
    )
    return paths


def test_megadepth_scene_info(tmp_path):
    paths = megadepth(tmp_path)
    capture = only(tmp_path)
    assert (capture.source, capture.scene, capture.frames) == ("megadepth", "0001", tuple(paths))
    assert (capture.rule.kind, capture.rule.frames, capture.rule.anchors) == ("anchor", 256, 1000)
    np.testing.assert_allclose(capture.overlap[0], [1, 0.8, 0.6, 0.4, 0.2])
    for number, name in enumerate(paths):
        check(capture.load(name), number)


def test_megadepth_missing_photo_keeps_the_overlaps_in_step(tmp_path):
    paths = megadepth(tmp_path)
    (tmp_path / paths[1]).unlink()
    capture = only(tmp_path)
    assert capture.frames == (paths[0], *paths[2:])
    np.testing.assert_allclose(capture.overlap[0], [1, 0.6, 0.4, 0.2])
    assert paths[1] in refusals(tmp_path)


class Harmful:
    def __reduce__(self):
        return (print, ("this ran",))


def test_megadepth_scene_file_that_holds_a_program_is_refused_and_not_run(tmp_path, capsys):
    megadepth(tmp_path)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    buffer.write(pickle.dumps(Harmful()))
    with zipfile.ZipFile(tmp_path / "scene_info" / "0002.npz", "w") as archive:
        archive.writestr("image_paths.npy", buffer.getvalue())
    assert [capture.scene for capture in open_captures(tmp_path)[0]] == ["0001"]
    assert "0002.npz: no scene file (holds builtins.print, which is no number and no string)" in refusals(tmp_path)
    assert "this ran" not in capsys.readouterr().out


def test_megadepth_annotations_keep_their_sequences(tmp_path):
    paths = megadepth(tmp_path)
    lists = [
        [{"filepath": name, "id": name} for name in paths[:3]],
        [{"filepath": name, "id": "x"} for name in paths[2:]],
    ]
    write_json(tmp_path / "train.jgz", {"0001": lists})
    capture = only(tmp_path)
    assert capture.sequences == (tuple(paths[:3]), tuple(paths[2:]))
    check(capture.load(paths[0]), 0, posed=False, depth=False)


# BlendedMVS


def blendedmvs(root, scene="5a3ca9cb270f0e3f14d0eddb", count=3):
    for number in range(count):
        name = f"{number:08d}"
        photo(root / scene / "blended_images" / f"{name}.jpg")
        photo(root / scene / "blended_images" / f"{name}_masked.jpg")
        rows = ["extrinsic", *(" ".join(map(str, row)) for row in pose(number)), "", "intrinsic"]
        rows += [" ".join(map(str, row)) for row in K]
        write_text(root / scene / "cams" / f"{name}_cam.txt", "\n".join([*rows, "", "0.5 0.01 128 5.0"]))
        depth = root / scene / "rendered_depth_maps" / f"{name}.pfm"
        depth.parent.mkdir(exist_ok=True)
        depth.write_bytes(f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + DEPTH[::-1].astype("<f4").tobytes())
    write_text(root / scene / "cams" / "pair.txt", "0\n")


def test_blendedmvs(tmp_path):
    blendedmvs(tmp_path / "BlendedMVS")
    blendedmvs(tmp_path / "BlendedMVS", "5a4a38dad38c8a075495b5d2")
    first, second = captures(tmp_path / "BlendedMVS")
    assert (first.source, first.frames, first.rule.kind) == (
        "blendedmvs",
        ("00000000", "00000001", "00000002"),
        "whole",
    )
    for number, name in enumerate(second.frames):
        check(second.load(name), number)


def test_blendedmvs_broken_files_are_named(tmp_path):
    blendedmvs(tmp_path)
    (scene,) = tmp_path.iterdir()
    write_text(scene / "cams" / "00000000_cam.txt", "extrinsic\n1 0 0\n")
    (scene / "rendered_depth_maps" / "00000001.pfm").write_bytes(b"Pf\n96 64\n-1.0\nshort")
    capture = only(tmp_path)
    assert capture.frames == ("00000001", "00000002")
    assert "00000000_cam.txt: not a camera" in refusals(tmp_path)
    with pytest.raises(Exception, match=r"00000001\.pfm: cut or damaged"):
        capture.load("00000001")


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


# CO3D


def co3d(root, category="apple", sequences=("110_13051_23361", "189_20393_38136"), form="ndc_isotropic"):
    flip = np.diag([-1.0, -1, 1])
    half = np.array([WIDTH, HEIGHT]) / 2
    unit = np.full(2, half.min()) if form == "ndc_isotropic" else half
    frames = []
    for sequence in sequences:
        for number in range(3):
            stem = f"{category}/{sequence}"
            name = f"frame{number + 1:06d}.jpg"
            photo(root / stem / "images" / name)
            bits = DEPTH.astype(np.float16).view(np.uint16)
            write_png16(root / stem / "depths" / f"{name}.geometric.png", bits)
            write_image(
                root / stem / "depth_masks" / f"{name.removesuffix('.jpg')}.png", np.full((HEIGHT, WIDTH, 3), 255)
            )
            frames.append(
                {
                    "sequence_name": sequence,
                    "frame_number": number,
                    "image": {"path": f"{stem}/images/{name}", "size": [HEIGHT, WIDTH]},
                    "depth": {
                        "path": f"{stem}/depths/{name}.geometric.png",
                        "scale_adjustment": 1.0,
                        "mask_path": f"{stem}/depth_masks/{name.removesuffix('.jpg')}.png",
                    },
                    "viewpoint": {
                        "R": (flip @ pose(number)[:3, :3]).T.tolist(),
                        "T": (flip @ pose(number)[:3, 3]).tolist(),
                        "focal_length": (np.array([80, 90]) / unit).tolist(),
                        "principal_point": ((half - [45, 30]) / unit).tolist(),
                        "intrinsics_format": form,
                    },
                }
            )
    write_json(root / category / "frame_annotations.jgz", frames[::-1])
    write_json(root / category / "sequence_annotations.jgz", [{"sequence_name": sequence} for sequence in sequences])
    sets = {"train": [[sequences[0], 0, ""]], "val": [[sequences[1], 0, ""]], "test": []}
    write_json(root / category / "set_lists" / "set_lists_fewview_dev.json", sets)


@pytest.mark.parametrize("form", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_co3d_training_sequences_of_seen_categories(tmp_path, form):
    co3d(tmp_path, form=form)
    co3d(tmp_path, category="couch")
    (capture,) = captures(tmp_path)
    assert (capture.source, capture.scene) == ("co3d", "apple/110_13051_23361")
    assert (capture.rule.kind, capture.rule.least) == ("whole", 24)
    for number, name in enumerate(capture.frames):
        check(capture.load(name), number, depth=2e-3)  # half-precision floats


# WildRGB-D


def test_wildrgbd(tmp_path):
    scene = tmp_path / "apple" / "scenes" / "scene_000"
    rows = []
    for number in range(3):
        photo(scene / "rgb" / f"{number:05d}.png")
        write_png16(scene / "depth" / f"{number:05d}.png", np.rint(DEPTH * 1000))
        rows.append(" ".join([str(number), *map(str, np.linalg.inv(pose(number)).ravel())]))
    write_text(scene / "cam_poses.txt", "\n".join(rows[:2]))
    write_json(scene / "metadata", {"w": WIDTH, "h": HEIGHT, "K": K.T.ravel().tolist()})
    capture = only(tmp_path)
    assert (capture.source, capture.scene, capture.rule.least) == ("wildrgbd", "apple/scene_000", 24)
    assert capture.frames == ("00000", "00001")
    for number, name in enumerate(capture.frames):
        check(capture.load(name), number, depth=1e-3)
    assert "00002.png: no pose for it in cam_poses.txt" in refusals(tmp_path)


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


# ARKitScenes


@pytest.mark.parametrize("part", ["3dod", "raw"])
def test_arkitscenes(tmp_path, part):
    video = "40753679"
    folder = tmp_path / part / "Training" / video
    folder = folder / f"{video}_frames" if part == "3dod" else folder
    lines = []
    for number in range(4):
        name = f"{video}_{100 + number}.123"
        photo(folder / "lowres_wide" / f"{name}.png")
        write_png16(folder / "lowres_depth" / f"{name}.png", np.rint(DEPTH * 1000))
        write_text(folder / "lowres_wide_intrinsics" / f"{name}.pincam", f"{WIDTH} {HEIGHT} 80 90 45 30\n")
        vector = cv2.Rodrigues(pose(number)[:3, :3])[0].ravel()
        lines.append(" ".join(map(str, [100.124 + number, *vector, *pose(number)[:3, 3]])))
    write_text(folder / "lowres_wide.traj", "\n".join(lines[:3]))
    write_text(tmp_path / "raw" / "metadata.csv", f"video_id,visit_id,fold\n{video},420673,Training\n")
    (capture,) = captures(tmp_path)
    assert (capture.source, capture.scene, capture.place) == ("arkitscenes", video, "420673")
    assert (capture.rule.kind, capture.rule.frames) == ("chunk", 75)
    for number in range(3):
        check(capture.load(capture.frames[number]), number, depth=1e-3)
    assert capture.load(capture.frames[3]).world2cam is None


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


# Hypersim


@pytest.mark.parametrize("parameters", [True, False])
def test_hypersim(tmp_path, parameters):
    scene, unit = tmp_path / "ai_001_001", 0.0254
    intrinsics = K
    if not parameters:
        focal = WIDTH / 2 / np.tan(np.pi / 6)
        intrinsics = np.array([[focal, 0, WIDTH / 2], [0, focal * HEIGHT / WIDTH / 0.75, HEIGHT / 2], [0, 0, 1]])
    grid = np.stack([*np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), np.ones((HEIGHT, WIDTH))], axis=-1)
    stretch = np.linalg.norm(grid @ np.linalg.inv(intrinsics).T, axis=-1)
    opengl = np.diag([1.0, -1, -1, 1])
    for camera in ("cam_00", "cam_01"):
        poses = [np.linalg.inv(pose(number)) @ opengl for number in range(3)]
        detail = scene / "_detail" / camera
        write_hdf5(detail / "camera_keyframe_orientations.hdf5", dataset=np.stack([p[:3, :3] for p in poses]))
        write_hdf5(detail / "camera_keyframe_positions.hdf5", dataset=np.stack([p[:3, 3] for p in poses]) / unit)
        for number in range(3):
            images = scene / "images"
            photo(images / f"scene_{camera}_final_preview" / f"frame.{number:04d}.color.jpg")
            distance = np.where(grid[..., 0] < 1, np.nan, DEPTH * stretch)
            file = images / f"scene_{camera}_geometry_hdf5" / f"frame.{number:04d}.depth_meters.hdf5"
            write_hdf5(file, dataset=distance.astype(np.float32))
    write_text(
        scene / "_detail" / "metadata_scene.csv", f"parameter_name, parameter_value\nmeters_per_asset_unit, {unit}\n"
    )
    if parameters:
        _write_parameters(tmp_path / "metadata_camera_parameters.csv")
    (capture,) = captures(tmp_path)
    assert capture.source == "hypersim"
    assert capture.sequences == tuple(tuple(f"cam_0{c}/000{i}" for i in range(3)) for c in range(2))
    frame = capture.load("cam_01/0002")
    np.testing.assert_allclose(frame.world2cam, pose(2)[:3], atol=1e-6)
    np.testing.assert_allclose(frame.intrinsics, intrinsics, rtol=1e-6)
    if parameters:
        assert (frame.depth[:, 0] == 0).all()
        np.testing.assert_allclose(frame.depth[:, 1:], DEPTH[:, 1:], rtol=1e-5)


def _write_parameters(path):
    """The projection to OpenGL's clip space, with y up and z backward, of a camera K."""
    projection = np.zeros((4, 4))
    projection[0, 0], projection[0, 2] = 2 * K[0, 0] / WIDTH, 1 - 2 * K[0, 2] / WIDTH
    projection[1, 1], projection[1, 2] = 2 * K[1, 1] / HEIGHT, 2 * K[1, 2] / HEIGHT - 1
    projection[2, 2], projection[2, 3], projection[3, 2] = -1.002, -2.002, -1
    names = [f"M_proj_{i}{j}" for i in range(4) for j in range(4)]
    row = {"scene_name": "ai_001_001", "settings_output_img_width": WIDTH, "settings_output_img_height": HEIGHT}
    row |= dict(zip(names, projection.ravel(), strict=True))
    write_text(path, ",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")


# ImageNet


@pytest.mark.parametrize("nested", ["ILSVRC/Data/CLS-LOC/train", "train", "."])
def test_imagenet_is_single_views(tmp_path, nested):
    for name in ("n01440764", "n01443537"):
        photo(tmp_path / nested / name / f"{name}_10026.JPEG")
    first, second = captures(tmp_path)
    assert (first.source, first.scene, second.scene) == ("imagenet", "n01440764", "n01443537")
    assert first.rule.kind == "single"
    check(first.load(first.frames[0]), 0, posed=False, depth=False)


# TUM and ScanNet exports


def test_tum(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg1_xyz"
    photos, depths, poses = ["# color images"], ["# depth maps"], ["# timestamp tx ty tz qx qy qz qw"]
    for number in range(3):
        photo(folder / "rgb" / f"{number}.png")
        write_png16(folder / "depth" / f"{number}.png", np.rint(DEPTH * 5000))
        photos.append(f"{100 + number}.00 rgb/{number}.png")
        depths.append(f"{100 + number}.01 depth/{number}.png")
        cam2world = np.linalg.inv(pose(number))
        vector = cv2.Rodrigues(cam2world[:3, :3])[0].ravel()
        angle = np.linalg.norm(vector)
        quaternion = [*(vector / angle * np.sin(angle / 2)), np.cos(angle / 2)]
        poses.append(" ".join(map(str, [100.005 + number, *cam2world[:3, 3], *quaternion])))
    write_text(folder / "rgb.txt", "\n".join(photos))
    write_text(folder / "depth.txt", "\n".join(depths))
    write_text(folder / "groundtruth.txt", "\n".join(poses[:3]))
    capture = only(folder)
    assert capture.source == "tum"
    assert capture.frames == ("rgb/0.png", "rgb/1.png")
    for number, name in enumerate(capture.frames):
        expected = np.array([[517.3, 0, 319.1], [0, 516.5, 255.8], [0, 0, 1]])
        check(capture.load(name), number, depth=2e-4, intrinsics=expected)
    assert "rgb/2.png: no pose within 0.02 s of it" in refusals(folder)
    np.savetxt(folder / "camera-intrinsics.txt", K)
    np.testing.assert_array_equal(only(folder).load("rgb/0.png").intrinsics, K)


def test_scannet(tmp_path):
    for scan in ("scene0000_00", "scene0000_01", "scene0707_00"):
        folder = tmp_path / "scans" / scan
        for number in range(3):
            write_image(folder / "color" / f"{number}.jpg", cv2.resize(plain(HEIGHT, WIDTH), (2 * WIDTH, 2 * HEIGHT)))
            write_png16(folder / "depth" / f"{number}.png", np.rint(DEPTH * 1000))
            (folder / "pose").mkdir(exist_ok=True)
            lost = np.full((4, 4), -np.inf)
            np.savetxt(folder / "pose" / f"{number}.txt", lost if number == 1 else np.linalg.inv(pose(number)))
        (folder / "intrinsic").mkdir()
        shifted = np.eye(4)
        shifted[:3, :3] = K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        np.savetxt(folder / "intrinsic" / "intrinsic_depth.txt", shifted)
    found = captures(tmp_path)
    assert [(c.scene, c.place) for c in found[:2]] == [("scene0000_00", "scene0000"), ("scene0000_01", "scene0000")]
    assert found[0].frames == ("0", "2")
    assert "1.txt: the pose holds numbers that are not finite" in refusals(tmp_path)
    check(found[0].load("2"), 2, depth=1e-3)


# All


def test_every_source_says_what_it_is():
    for source in SOURCES:
        for text in (source.layout, source.truth, source.licence, source.origin):
            assert text
            assert "\n" not in text
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_scenes_are_light_to_send(tmp_path):
    megadepth(tmp_path)
    (scene,) = find_scenes(str(tmp_path), tmp_path / ".work").scenes
    again = pickle.loads(pickle.dumps(scene))
    assert again.capture().frames == scene.capture().frames
