"""Public datasets with depth, each on a miniature in its real layout: names, pixels, cameras, depth, rules."""

import io
import pickle
import zipfile

import cv2
import numpy as np
import pytest

from tests.data.made import only, open_captures, plain, refusals, write_image, write_png16
from tests.data.made_datasets import (
    DEPTH,
    HEIGHT,
    WIDTH,
    K,
    captures,
    check,
    photo,
    pose,
    write_hdf5,
    write_json,
    write_text,
)

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
