"""Benchmarks of the multi-view task: public datasets in the layout of their download, DTU and ETH3D.

* `captures`: whatever `mum prepare` reads (CO3D v2, RealEstate10K, MegaDepth, ...): `test` has patterns of the names of
  the scenes to judge on; of the others a tenth is held out to choose the model on. CO3D's test sequences are named
  `test/CATEGORY/SEQUENCE`, RealEstate10K's `test/CLIP`.
* `dtu`: `Rectified/scan1/rect_001_3_r5000.png` of the dataset itself at 1600 x 1200, `Cameras/00000000_cam.txt` and
  `Depths_raw/scan1/depth_map_0000.pfm` as MVSNet gives them out (https://github.com/YoYo000/MVSNet), in millimetres.
  MVSNet's cameras put the centre of the first pixel at (0, 0): half a pixel is added here.
* `eth3d`: the training scenes of the high-resolution multi-view benchmark (https://www.eth3d.net/datasets), of each
  `SCENE/images/dslr_images_undistorted`, `SCENE/dslr_calibration_undistorted` (COLMAP, text) and
  `SCENE/dslr_scan_eval/{scan_alignment.mlp,*.ply}`, the laser scans and where they stand; in metres.

DTU and ETH3D have nothing to train on: `train_on` names another benchmark of the evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from omegaconf import DictConfig

from mum_model.data.captures import Capture, Frame, RefusedError, Scene
from mum_model.data.geometry import resize_intrinsics
from mum_model.data.sources import SOURCES, co3d
from mum_model.data.sources.blendedmvs import read_mvsnet_camera, read_pfm
from mum_model.data.sources.colmap import read_model
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks.capture_frames import KEPT, CaptureFrames, described, posed_rows
from mum_model.evaluate.benchmarks.files import DepthFormat, FileFrame, FileFrames
from mum_model.evaluate.benchmarks.laser_scans import LaserScans
from mum_model.evaluate.multiview import MultiViewTask
from mum_model.evaluate.multiview_lessons import MultiViewLessons, MultiViewSettings, Sets, draw_scenes, draw_sets
from mum_model.evaluate.task import Task
from mum_model.evaluate.views import Views

HELD_OUT = 0.1
DTU_VIEWS = 49
DTU_LIGHT = 3  # of seven: the one of all lamps, that MVSNet evaluates on
DTU_ICP = 100.0  # millimetres, the paper's
ETH3D_ICP = 0.1  # metres, the paper's
ALL = 1 << 20  # decoded frames to keep: those of ETH3D are few, and each is seen through all points of its scene
PFM_DEPTH = DepthFormat(read_pfm, lambda path: read_pfm(path).shape[::-1])
ETH3D_SIDE = 448  # pixels of the shorter side: at it the scans are denser than the pixels


def multiview_task(
    views: Views,
    scenes: Mapping[str, Mapping[str, Sequence[int]]],
    benchmark: DictConfig,
    cfg: DictConfig,
    about: str,
) -> MultiViewTask:
    """The task on scenes of posed frames.

    Args:
        views: The frames.
        scenes: Rows of each scene, for `train`, `val` and `test`.
        benchmark: `train_on` where another benchmark is trained on.
        cfg: The composed configuration.
        about: What it is judged on.

    Returns:
        The task.

    Raises:
        UserError: No scene has two posed frames.
    """
    settings = MultiViewSettings.of(cfg.evaluate.multiview)

    def sets_of(split: str) -> Sets:
        return draw_sets(scenes[split], settings.sets, settings.judged_views, cfg.seed)

    elsewhere = benchmark.get("train_on")
    lessons = elsewhere or MultiViewLessons(
        views, draw_scenes(scenes["train"], settings, cfg.seed), sets_of("val"), settings, cfg.evaluate.seeds
    )
    test = sets_of("test")
    if not test:
        raise UserError(f"{views.frames.name}: no test scene has two posed views; leave multiview out of its tasks")
    return MultiViewTask(views, test, lessons, settings, f"{about}; {_counts(lessons, test)}")


def _counts(lessons: MultiViewLessons | str, test: Sets) -> str:
    judged = f"{len(test)} sets of up to {max(map(len, test))} views to test"
    if isinstance(lessons, str):
        return f"the model is trained on {lessons}, {judged}"
    return f"{len(lessons.train)} scenes to train on, {len(lessons.val)} sets to choose, {judged}"


def open_captures(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open a public dataset in the layout of its download.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit`, `test` (patterns of scenes).
        cfg: The composed configuration.

    Returns:
        Its task.

    Raises:
        UserError: The folder is of no known layout, no scene is to be tested on, or something of a scene is broken.
    """
    settings, rng = MultiViewSettings.of(cfg.evaluate.multiview), np.random.default_rng(cfg.seed)
    listed = _listed(name, Path(benchmark.root))
    tested = [scene for scene in listed if any(fnmatch(scene.name, pattern) for pattern in benchmark.test)]
    if not tested:
        raise UserError(
            f"evaluate.benchmarks.{name}.test={list(benchmark.test)}: none of the {len(listed)} scenes of "
            f"{benchmark.root} is named so, the first are {', '.join(scene.name for scene in listed[:3])}"
        )
    names = {scene.name for scene in tested}
    others = [scene for scene in listed if scene.name not in names]
    others = [others[i] for i in rng.permutation(len(others))]
    held_out = max(1, round(HELD_OUT * len(others)))
    chosen = {
        "test": tested,
        "val": others[:held_out][: settings.scenes],
        "train": others[held_out:][: settings.scenes],
    }
    if benchmark.get("train_on"):
        chosen |= {"val": [], "train": []}
    frames, rows = _opened(name, chosen, settings, rng)
    scenes = {split: posed_rows(frames, own) for split, own in rows.items()}
    about = f"{len(scenes['test'])} test scenes of {len(listed)}"
    return [multiview_task(Views(frames, cfg.evaluate.size, benchmark.fit), scenes, benchmark, cfg, about)]


def _listed(name: str, root: Path) -> list[Scene]:
    if not root.is_dir():
        raise UserError(f"{name}: no folder {root}; set evaluate.benchmarks.{name}.root")
    source = next((source for source in SOURCES if source.recognise(root)), None)
    if source is None:
        layouts = "; ".join(source.layout for source in SOURCES)
        raise UserError(f"{name}: {root} is no dataset of a known layout. Known are: {layouts}")
    try:
        return [*source.scenes(root), *(co3d.evaluation_scenes(root) if source is co3d.SOURCE else [])]
    except RefusedError as error:
        raise UserError(f"{name}: {error}") from error


def _opened(
    name: str,
    chosen: Mapping[str, Sequence[Scene]],
    settings: MultiViewSettings,
    rng: np.random.Generator,
    kept: int = KEPT,
) -> tuple[CaptureFrames, dict[str, range]]:
    """As many frames of each scene as will be shown, and their rows by split."""
    listed: list[tuple[Capture, str]] = []
    rows: dict[str, range] = {}
    for split, scenes in chosen.items():
        count = settings.frames if split == "train" else settings.sets * settings.judged_views
        start = len(listed)
        for capture in described(name, scenes):
            drawn = sorted(rng.permutation(len(capture.frames))[:count].tolist())
            listed += [(capture, capture.frames[i]) for i in drawn]
        rows[split] = range(start, len(listed))
    return CaptureFrames(name, listed, kept), rows


def open_dtu(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open DTU.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit`, `scans` (their numbers) and `train_on`.
        cfg: The composed configuration.

    Returns:
        Its task.

    Raises:
        UserError: A file is missing, cut or broken.
    """
    root, settings = Path(benchmark.root), MultiViewSettings.of(cfg.evaluate.multiview)
    if not root.is_dir():
        raise UserError(f"{name}: no folder {root}; set evaluate.benchmarks.{name}.root")
    every = {f"scan{number}": range(DTU_VIEWS) for number in benchmark.scans}
    sets = draw_sets(every, settings.sets, settings.judged_views, cfg.seed)
    scans = [scan for scan in every for _ in range(settings.sets)]
    shown = sorted({(scan, view) for scan, views in zip(scans, sets, strict=True) for view in views})
    row = {key: i for i, key in enumerate(shown)}
    frames = FileFrames(name, [_dtu_frame(name, root, *key) for key in shown], PFM_DEPTH)
    test = [[row[scan, view] for view in views] for scan, views in zip(scans, sets, strict=True)]
    about = f"{len(every)} scans; {_counts(benchmark.train_on, test)}"
    views = Views(frames, cfg.evaluate.size, benchmark.fit)
    return [MultiViewTask(views, test, benchmark.train_on, settings, about, DTU_ICP)]


def _dtu_frame(name: str, root: Path, scan: str, view: int) -> FileFrame:
    try:
        world2cam, intrinsics = read_mvsnet_camera(root / "Cameras" / f"{view:08d}_cam.txt")
    except RefusedError as error:
        raise UserError(f"{name}: {error}") from error
    intrinsics[:2, 2] += 0.5
    return FileFrame(
        root / "Rectified" / scan / f"rect_{view + 1:03d}_{DTU_LIGHT}_r5000.png",
        scan,
        root / "Depths_raw" / scan / f"depth_map_{view:04d}.pfm",
        intrinsics,
        world2cam,
    )


def open_eth3d(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open ETH3D.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit` and `train_on`.
        cfg: The composed configuration.

    Returns:
        Its task on all scenes in the root.

    Raises:
        UserError: A file is missing, cut or broken.
    """
    root, settings = Path(benchmark.root), MultiViewSettings.of(cfg.evaluate.multiview)
    models = sorted(root.glob("*/dslr_calibration_undistorted"))
    if not models:
        raise UserError(f"{name}: nothing is {root}/SCENE/dslr_calibration_undistorted; unpack ETH3D's training scenes")
    found = [Scene("eth3d", model.parent.name, (model.parent,), partial(_eth3d_capture, model)) for model in models]
    chosen = {"test": found, "val": [], "train": []}
    frames, rows = _opened(name, chosen, settings, np.random.default_rng(cfg.seed), kept=ALL)
    test = draw_sets(posed_rows(frames, rows["test"]), settings.sets, settings.judged_views, cfg.seed)
    about = f"{len(models)} scenes, depth by the laser scans; {_counts(benchmark.train_on, test)}"
    views = Views(frames, cfg.evaluate.size, benchmark.fit)
    return [MultiViewTask(views, test, benchmark.train_on, settings, about, ETH3D_ICP)]


def _eth3d_capture(model: Path) -> Capture:
    scene = model.parent
    capture = read_model(model, scene / "images", "eth3d", scene.name)
    return replace(capture, load=partial(_scanned, LaserScans(scene / "dslr_scan_eval"), capture))


def _scanned(scans: LaserScans, capture: Capture, name: str) -> Frame:
    """A frame, smaller, with the depth of the laser scans in place of the model's."""
    frame = capture.load(name)
    assert frame.intrinsics is not None  # a COLMAP model knows both
    assert frame.world2cam is not None
    height, width = frame.image.shape[:2]
    scale = min(1.0, ETH3D_SIDE / min(height, width))
    size = round(width * scale), round(height * scale)
    intrinsics = resize_intrinsics(frame.intrinsics, size[0] / width, size[1] / height)
    return Frame(
        image=cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA),
        intrinsics=intrinsics,
        world2cam=frame.world2cam,
        depth=scans.depth(intrinsics, frame.world2cam, size),
    )
