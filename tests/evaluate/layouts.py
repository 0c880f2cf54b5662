"""Miniature copies of published benchmarks in their own layouts, made from rendered rooms."""

from dataclasses import replace

import cv2
import h5py
import numpy as np
import torch

from mum_model.data.captures import Frame
from mum_model.data.geometry import invert_pose, pixel_grid, transform, unproject
from mum_model.data.sources.rendered import rendered_scenes
from mum_model.evaluate.encoders.base import Tokens

WIDTH, HEIGHT = 96, 72


def rooms(count, views, seed=5):
    """Frames of rendered rooms, cut to a picture that is not square."""
    for scene in rendered_scenes(count, views, WIDTH, seed):
        capture = scene.capture()
        yield [cut(capture.load(name)) for name in capture.frames]


def cut(frame):
    top = (WIDTH - HEIGHT) // 2
    intrinsics = frame.intrinsics.copy()
    intrinsics[1, 2] -= top
    rows = slice(top, top + HEIGHT)
    return replace(frame, image=frame.image[rows], depth=frame.depth[rows], intrinsics=intrinsics)


def painted_by_place(frame: Frame) -> Frame:
    """The same view of a world whose colour is the place: what matches looks alike, and nothing else does."""
    points = transform(
        invert_pose(frame.world2cam), unproject(pixel_grid(*frame.depth.shape), frame.depth, frame.intrinsics)
    )
    return replace(frame, image=np.clip(points * 38 + 127, 0, 255).astype(np.uint8))


class PlaceEncoder:
    """Tells the places of a world painted by place apart: what a perfect encoder would do."""

    name, identity, patch_size, parameters = "place", "place", 8, 0

    def tokens(self, images, layer):
        centres = images[:, :, 3::8, 3::8].float() / 255
        waves = torch.cat([centres * f for f in (3, 6, 12, 24)], dim=1).flatten(2).transpose(1, 2)
        patches = torch.cat([waves.cos(), waves.sin()], dim=-1)
        return Tokens(patches, patches.mean(1))


def cut_file(path, keep=0.5):
    """What a download that broke off leaves."""
    path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * keep)])


def write_depth(path, depth):
    with h5py.File(path, "w") as file:
        file["depth"] = depth


def write_megadepth(root, paint=lambda frame: frame):
    """Scenes 0001 (train) and 0017 (val) as RoMa's lists, 0015 and 0022 (test) as LoFTR's."""
    for number, frames in zip(("0001", "0017", "0015", "0022"), rooms(4, 5), strict=True):
        images = root / "Undistorted_SfM" / number / "images"
        depths = root / "phoenix/S6/zl548/MegaDepth_v1" / number / "dense0/depths"
        images.mkdir(parents=True)
        depths.mkdir(parents=True)
        for i, frame in enumerate(frames):
            cv2.imwrite(str(images / f"{i}.jpg"), paint(frame).image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
            write_depth(depths / f"{i}.h5", frame.depth)
        pairs = [(a, b) for a in range(len(frames)) for b in range(len(frames)) if abs(a - b) == 1]
        info = {
            "image_paths": np.array([f"Undistorted_SfM/{number}/images/{i}.jpg" for i in range(5)] + [None], object),
            "depth_paths": np.array([str((depths / f"{i}.h5").relative_to(root)) for i in range(5)] + [None], object),
            "intrinsics": np.array([frame.intrinsics for frame in frames]),
            "poses": np.array([np.vstack([frame.world2cam, [0, 0, 0, 1]]) for frame in frames]),
        }
        if number in ("0001", "0017"):
            (root / "prep_scene_info").mkdir(exist_ok=True)
            listed = {"pairs": np.array(pairs), "overlaps": np.full(len(pairs), 0.5)}
            np.save(root / "prep_scene_info" / f"{number}.npy", np.array(info | listed, object), allow_pickle=True)
        else:
            infos = np.empty(len(pairs), object)
            infos[:] = [(np.array(pair), 0.4, np.zeros((0, 4))) for pair in pairs]
            np.savez(root / f"{number}_0.1_0.3.npz", **info, pair_infos=infos)
    return root


def write_scannet(root, depth=True):
    """Two scenes of four frames; poses are camera-to-world, depth is in millimetres, one pose was lost."""
    names, relative = [], []
    for scene, frames in zip((707, 708), rooms(2, 4), strict=True):
        folder = root / "scans_test" / f"scene{scene:04d}_00"
        for part in ("color", "intrinsic", *(("depth", "pose") if depth else ())):
            (folder / part).mkdir(parents=True)
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = np.diag([2, 2, 1]) @ frames[0].intrinsics  # colour is stored at twice the size of depth
        intrinsics[:2, 2] -= 0.5
        np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", intrinsics)
        for i, frame in enumerate(frames):
            colour = cv2.resize(frame.image[..., ::-1], (2 * WIDTH, 2 * HEIGHT))
            cv2.imwrite(str(folder / "color" / f"{15 * i}.jpg"), colour)
            if depth:
                full = cv2.resize(frame.depth, (640, 480), interpolation=cv2.INTER_NEAREST)
                cv2.imwrite(str(folder / "depth" / f"{15 * i}.png"), (full * 1000).astype(np.uint16))
                cam2world = np.vstack([invert_pose(frame.world2cam), [0, 0, 0, 1]])
                np.savetxt(
                    folder / "pose" / f"{15 * i}.txt", cam2world if (scene, i) != (708, 3) else cam2world - np.inf
                )
        for a, b in ((0, 1), (1, 2), (2, 3)):
            names.append((scene, 0, 15 * a, 15 * b))
            first, second = (np.vstack([frames[i].world2cam, [0, 0, 0, 1]]) for i in (a, b))
            relative.append((second @ np.linalg.inv(first))[:3].ravel())
    np.savez(root / "test.npz", name=np.array(names), rel_pose=np.array(relative))
    return root


def write_imagenet(root, classes=3, train=8, val=4):
    """Classes are colours under noise: easy to tell apart, so a wrong reading shows."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for number in range(classes):
            folder = root / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                colour = np.full(3, 40.0)
                colour[number % 3] = 200
                image = np.clip(colour + rng.normal(0, 20, (40, 56, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{number}_{i}.JPEG"), image)
    return root


def write_ade20k(root, train=8, val=3):
    """Two classes by brightness, left and right of an edge, and a border that is not to be judged."""
    rng = np.random.default_rng(0)
    for part, count in (("training", train), ("validation", val)):
        (root / "images" / part).mkdir(parents=True)
        (root / "annotations" / part).mkdir(parents=True)
        for i in range(count):
            labels = np.ones((64, 96), np.uint8)
            labels[:, 24 * rng.integers(1, 4) :] = 2
            image = np.where(labels == 1, 60, 190)[..., None] + rng.normal(0, 8, (64, 96, 3))
            labels[:4] = 0
            cv2.imwrite(
                str(root / "images" / part / f"ADE_{part}_{i:04d}.jpg"), np.clip(image, 0, 255).astype(np.uint8)
            )
            cv2.imwrite(str(root / "annotations" / part / f"ADE_{part}_{i:04d}.png"), labels)
    return root


def write_nyu(root):
    """Four rooms to train on and one to test on, in NYU's files."""
    for number, frames in enumerate(rooms(5, 4)):
        folder = root / ("test" if number == 4 else "train") / f"office_{number:04d}"
        folder.mkdir(parents=True)
        for i, frame in enumerate(frames):
            image, depth = (cv2.resize(array, (640, 480)) for array in (frame.image[..., ::-1], frame.depth))
            cv2.imwrite(str(folder / f"rgb_{i:05d}.jpg"), image)
            cv2.imwrite(str(folder / f"sync_depth_{i:05d}.png"), (depth * 1000).astype(np.uint16))
    return root
