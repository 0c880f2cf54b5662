"""Miniature copies of the multi-view benchmarks in their own layouts, made from rendered rooms."""

import gzip
import json

import cv2
import h5py
import numpy as np

from mum_model.data.geometry import invert_pose, pixel_grid, transform, unproject
from tests.evaluate.layouts import HEIGHT, WIDTH, rooms

SMALL = [
    "evaluate.size=48",
    "evaluate.seeds=1",
    "evaluate.figures=1",
    "evaluate.multiview={trained:{},views:[2,4],judged_views:4,sets:2,scenes:8,frames:4,map_side:24,icp:0.1,batch:8,"
    "model:{dim:16,depth:2,heads:2,camera_depth:1,dense_dim:4},"
    "optimisation:{iterations:3,learning_rates:[1e-3,1e-4],weight_decay:0.05,clip:1.0}}",
    "encoder=[pixels/8]",
]

"""Overrides with which the multi-view task takes seconds."""


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def write_co3d(root, views=4):
    """One category: sequences a, b and c to train on, d to test on."""
    flip, half = np.diag([-1.0, -1, 1]), np.array([WIDTH, HEIGHT]) / 2
    frames = []
    for sequence, own in zip("abcd", rooms(4, views), strict=True):
        for number, frame in enumerate(own):
            stem, name = f"apple/{sequence}", f"frame{number + 1:06d}"
            write_image(root / stem / "images" / f"{name}.png", frame.image)
            depth = root / stem / "depths" / f"{name}.png"
            depth.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(depth), frame.depth.astype(np.float16).view(np.uint16))
            focal = frame.intrinsics[[0, 1], [0, 1]]
            frames.append(
                {
                    "sequence_name": sequence,
                    "frame_number": number,
                    "image": {"path": f"{stem}/images/{name}.png", "size": [HEIGHT, WIDTH]},
                    "depth": {"path": f"{stem}/depths/{name}.png", "scale_adjustment": 1.0, "mask_path": None},
                    "viewpoint": {
                        "R": (flip @ frame.world2cam[:, :3]).T.tolist(),
                        "T": (flip @ frame.world2cam[:, 3]).tolist(),
                        "focal_length": (focal / half.min()).tolist(),
                        "principal_point": ((half - frame.intrinsics[:2, 2]) / half.min()).tolist(),
                        "intrinsics_format": "ndc_isotropic",
                    },
                }
            )
    (root / "apple" / "frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(frames).encode()))
    lists = root / "apple" / "set_lists"
    lists.mkdir()
    named = {"train": [[s, 0, ""] for s in "abc"], "val": [], "test": [["d", 0, ""]]}
    (lists / "set_lists_fewview_dev.json").write_text(json.dumps(named))
    return root


def write_realestate10k(root, views=4):
    """Three clips to train on and one to test on; no depth."""
    for clip, frames in zip(("train/a", "train/b", "train/c", "test/d"), rooms(4, views), strict=True):
        lines = ["https://example.org/film"]
        for number, frame in enumerate(frames):
            write_image(root / "dataset" / clip / f"{1000 * number}.png", frame.image)
            (fx, cx), (fy, cy) = frame.intrinsics[0, [0, 2]] / WIDTH, frame.intrinsics[1, [1, 2]] / HEIGHT
            lines.append(" ".join(map(str, [1000 * number, fx, fy, cx, cy, 0, 0, *frame.world2cam.ravel()])))
        cameras = root / "RealEstate10K" / f"{clip}.txt"
        cameras.parent.mkdir(parents=True, exist_ok=True)
        cameras.write_text("\n".join(lines))
    return root


def write_megadepth_scenes(root, views=4):
    """Scenes 0001, 0002 and 0003 to train on and 0015 to test on, as D2-Net's scene files."""
    (root / "scene_info").mkdir(parents=True)
    for number, frames in zip(("0001", "0002", "0003", "0015"), rooms(4, views), strict=True):
        images = [f"Undistorted_SfM/{number}/images/{i}.png" for i in range(views)]
        depths = [f"phoenix/{number}/depths/{i}.h5" for i in range(views)]
        for frame, image, depth in zip(frames, images, depths, strict=True):
            write_image(root / image, frame.image)
            (root / depth).parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(root / depth, "w") as file:
                file["depth"] = frame.depth
        np.savez(
            root / "scene_info" / f"{number}.npz",
            image_paths=np.array(images, object),
            depth_paths=np.array(depths, object),
            intrinsics=np.array([frame.intrinsics for frame in frames]),
            poses=np.array([np.vstack([frame.world2cam, [0, 0, 0, 1]]) for frame in frames]),
            overlap_matrix=np.full((views, views), 0.5),
        )
    return root


def write_dtu(root, scans=(1, 4)):
    """49 views of each scan by the same cameras, from a room of seven shown seven times; lengths in millimetres."""
    (frames,) = rooms(1, 7)
    for scan in scans:
        (root / "Depths_raw" / f"scan{scan}").mkdir(parents=True)
        (root / "Cameras").mkdir(exist_ok=True)
        for view in range(49):
            frame = frames[view % 7]
            write_image(root / "Rectified" / f"scan{scan}" / f"rect_{view + 1:03d}_3_r5000.png", frame.image)
            depth = (1000 * frame.depth[::-1]).astype("<f4")
            header = f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode()
            (root / "Depths_raw" / f"scan{scan}" / f"depth_map_{view:04d}.pfm").write_bytes(header + depth.tobytes())
            world2cam, intrinsics = np.vstack([frame.world2cam, [0, 0, 0, 1]]), frame.intrinsics.copy()
            world2cam[:3, 3] *= 1000
            intrinsics[:2, 2] -= 0.5  # the first pixel's centre is at (0, 0)
            rows = [" ".join(map(str, row)) for row in world2cam], [" ".join(map(str, row)) for row in intrinsics]
            text = "\n".join(["extrinsic", *rows[0], "", "intrinsic", *rows[1], "", "425.0 2.5"])
            (root / "Cameras" / f"{view:08d}_cam.txt").write_text(text)
    return root


def write_eth3d(root, views=6, scenes=("courtyard",)):
    """A room seen by COLMAP cameras, and two laser scans that together hold its surfaces."""
    for scene, frames in zip(scenes, rooms(len(scenes), views), strict=True):
        model = root / scene / "dslr_calibration_undistorted"
        model.mkdir(parents=True)
        cameras, images = ["# cameras"], ["# images"]
        for i, frame in enumerate(frames, start=1):
            fx, fy, cx, cy = frame.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
            cameras.append(f"{i} PINHOLE {WIDTH} {HEIGHT} {fx} {fy} {cx} {cy}")
            name = f"dslr_images_undistorted/DSC_{i:04d}.png"
            write_image(root / scene / "images" / name, frame.image)
            w, x, y, z = quaternion(frame.world2cam[:, :3])
            images += [f"{i} {w} {x} {y} {z} {' '.join(map(str, frame.world2cam[:, 3]))} {i} {name}", ""]
        (model / "cameras.txt").write_text("\n".join(cameras) + "\n")
        (model / "images.txt").write_text("\n".join(images) + "\n")
        (model / "points3D.txt").write_text("# points\n")
        write_scans(root / scene / "dslr_scan_eval", frames)
    return root


def quaternion(rotation):
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return w, x, y, z


def surfaces(frame, finer=4):
    """Points of the surfaces that a view sees, more than it has pixels."""
    height, width = finer * HEIGHT, finer * WIDTH
    intrinsics = np.diag([finer, finer, 1.0]) @ frame.intrinsics
    depth = cv2.resize(frame.depth, (width, height), interpolation=cv2.INTER_NEAREST)
    points = unproject(pixel_grid(height, width), depth, intrinsics)[depth > 0]
    return transform(invert_pose(frame.world2cam), points)


def write_scans(folder, frames):
    """The first scan stands turned and moved in a file of its own, and its colours are kept beside the points."""
    folder.mkdir()
    matrix = np.array([[0, -1, 0, 2.0], [1, 0, 0, -1.0], [0, 0, 1, 0.5], [0, 0, 0, 1]])
    half = len(frames) // 2
    parts = [np.concatenate([surfaces(frame) for frame in own]) for own in (frames[:half], frames[half:])]
    parts[0] = transform(invert_pose(matrix[:3]), parts[0])
    meshes = []
    for number, (points, placed) in enumerate(zip(parts, (matrix, np.eye(4)), strict=True), start=1):
        table = np.zeros(len(points), [(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
        for i, axis in enumerate("xyz"):
            table[axis] = points[:, i]
        header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
        header += [f"property float {axis}" for axis in "xyz"]
        header += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
        data = "\n".join([*header, "end_header\n"]).encode() + table.tobytes()
        (folder / f"scan{number}.ply").write_bytes(data)
        rows = "\n".join(" ".join(map(str, row)) for row in placed)
        meshes.append(
            f'<MLMesh label="scan{number}.ply" filename="scan{number}.ply"><MLMatrix44>\n{rows}\n</MLMatrix44></MLMesh>'
        )
    (folder / "scan_alignment.mlp").write_text(
        f"<!DOCTYPE MeshLabDocument>\n<MeshLabProject><MeshGroup>{''.join(meshes)}</MeshGroup></MeshLabProject>\n"
    )
