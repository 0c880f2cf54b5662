"""Benchmarks of single views in their own layouts: ImageNet, ADE20K and NYU Depth v2.

* ImageNet: `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.
* ADE20K (the scene-parsing release): `images/SPLIT/*.jpg` and `annotations/SPLIT/*.png` for the splits `training` and
  `validation`; 8 bits, 0 = not to be judged, 1..150 = the class.
* NYU Depth v2 as BTS and its successors prepare it: `SPLIT/SCENE/rgb_*.jpg` beside `sync_depth_*.png`, 16 bits in
  millimetres, for the splits `train` and `test`. The lens is that of the dataset's toolbox.

What is tested on is the published validation or test split; a tenth of the published training split, whole scenes for
NYU, is held out to choose heads on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from mum_model.data.captures import RefusedError
from mum_model.data.images import is_image_name, read_image
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks.files import FileFrame, FileFrames
from mum_model.evaluate.benchmarks.scannet import PNG_DEPTH
from mum_model.evaluate.classification import ClassificationTask
from mum_model.evaluate.depth import DepthTask
from mum_model.evaluate.segmentation import SegmentationTask
from mum_model.evaluate.task import Task
from mum_model.evaluate.views import Views

HELD_OUT = 0.1
NYU_INTRINSICS = np.array([[518.8579, 0, 325.5824 + 0.5], [0, 519.4696, 253.7362 + 0.5], [0, 0, 1]])


def open_imagenet(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open a folder in ImageNet's layout.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit`.
        cfg: The composed configuration.

    Returns:
        Its task.

    Raises:
        UserError: A folder is missing or empty, a class is in one of the two only, or an image is cut.
    """
    found = {part: _classes(name, Path(benchmark.root) / part) for part in ("train", "val")}
    classes = sorted(found["train"])
    if odd := sorted(found["train"].keys() ^ found["val"].keys()):
        raise UserError(f"{name}: class folders must be the same in train and val; in one only: {', '.join(odd[:5])}")
    listed, tested = (
        [FileFrame(path, scene) for scene in classes for path in found[part][scene]] for part in ("train", "val")
    )
    files = FileFrames(name, listed + tested, None)
    rows = _rows(len(listed), len(tested), cfg.seed)
    about = f"{len(classes)} classes; {_counts(rows)}"
    return [ClassificationTask(Views(files, cfg.evaluate.size, benchmark.fit), rows, classes, cfg.evaluate, about)]


def _classes(name: str, folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UserError(f"{name}: no folder {folder}; ImageNet's layout has train/CLASS/*.JPEG and val/CLASS/*.JPEG")
    classes = {inner.name: _images(inner) for inner in sorted(folder.iterdir()) if inner.is_dir()}
    if empty := [inner for inner, images in classes.items() if not images]:
        raise UserError(f"{name}: no image in {folder / empty[0]}; unpack the benchmark again")
    if not classes:
        raise UserError(f"{name}: no class folder in {folder}; ImageNet's layout has {folder.name}/CLASS/*.JPEG")
    return classes


def open_ade20k(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open a folder in ADE20K's layout.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit` and `classes`, 150 for ADE20K.
        cfg: The composed configuration.

    Returns:
        Its task.

    Raises:
        UserError: A folder, image or annotation is missing, of another size, or cut.
    """
    root = Path(benchmark.root)
    images = {part: _images_or_refuse(name, root / "images" / part) for part in ("training", "validation")}
    frames = [FileFrame(path, path.stem) for part in images.values() for path in part]
    files = FileFrames(name, frames, None)
    annotations = Annotations(root / "annotations", files, benchmark.classes)
    rows = _rows(len(images["training"]), len(images["validation"]), cfg.seed)
    views = Views(files, cfg.evaluate.size, benchmark.fit)
    return [SegmentationTask(views, rows, annotations.labels, benchmark.classes, cfg.evaluate, _counts(rows))]


class Annotations:
    """Labels of images, one file an image."""

    def __init__(self, root: Path, images: FileFrames, classes: int):
        """Read every file once, so that what is broken is named before anything is computed.

        Args:
            root: With a PNG for each image, in a folder of the same name.
            images: The images.
            classes: How many there are.

        Raises:
            UserError: A file is missing, cut, of another size than its image, or names a class beyond the last.
        """
        self.images, self.classes = images, classes
        self.files = [root / f.image.parent.name / f"{f.image.stem}.png" for f in images.frames]
        if missing := [path for path in self.files if not path.is_file()]:
            raise UserError(f"{images.name}: {len(missing)} annotations are missing, the first is {missing[0]}")
        for row in tqdm(range(len(self.files)), desc=f"check {images.name}", leave=False):
            self.labels(row)

    def labels(self, row: int) -> np.ndarray:
        """Labels of an image, int64 `[H, W]`, -1 where not to be judged."""
        path, (height, width) = self.files[row], self.images.shape(row)
        try:
            labels = read_image(path, upright=False)[..., 0].astype(np.int64) - 1
        except RefusedError as error:
            raise UserError(f"{self.images.name}: {error}") from error
        if labels.shape != (height, width) or labels.max() >= self.classes:
            raise UserError(
                f"{path}: labels up to {labels.max() + 1} of {labels.shape[1]}x{labels.shape[0]} pixels; expected up "
                f"to {self.classes}, of {width}x{height} pixels as its image"
            )
        return labels


def open_nyu(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open a folder in the layout of NYU Depth v2.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit`.
        cfg: The composed configuration.

    Returns:
        Its task.

    Raises:
        UserError: A folder, image or depth map is missing or cut.
    """
    frames: dict[str, list[FileFrame]] = {"train": [], "test": []}
    for part, listed in frames.items():
        folder = Path(benchmark.root) / part
        for scene in sorted(folder.iterdir()) if folder.is_dir() else []:
            for image in sorted(scene.glob("rgb_*.jpg")):
                depth = scene / image.name.replace("rgb_", "sync_depth_").replace(".jpg", ".png")
                listed.append(FileFrame(image, scene.name, depth, NYU_INTRINSICS))
        if not listed:
            raise UserError(f"{name}: nothing is {folder}/SCENE/rgb_*.jpg; NYU's layout has it beside sync_depth_*.png")
    files = FileFrames(name, frames["train"] + frames["test"], PNG_DEPTH)
    names = sorted({frame.scene for frame in frames["train"]})
    held_out = {names[i] for i in _hold_out(len(names), cfg.seed)[1]}
    rows = {
        "train": [i for i, frame in enumerate(frames["train"]) if frame.scene not in held_out],
        "val": [i for i, frame in enumerate(frames["train"]) if frame.scene in held_out],
        "test": list(range(len(frames["train"]), len(files.frames))),
    }
    return [DepthTask(Views(files, cfg.evaluate.size, benchmark.fit), rows, cfg.evaluate, _counts(rows))]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image_name(path))


def _images_or_refuse(name: str, folder: Path) -> list[Path]:
    images = _images(folder) if folder.is_dir() else []
    if not images:
        raise UserError(f"{name}: no image in {folder}; ADE20K's layout has images/ and annotations/, each by split")
    return images


def _rows(listed: int, tested: int, seed: int) -> dict[str, list[int]]:
    """Places of each split, where the images to train on come before those to test on."""
    train, held_out = _hold_out(listed, seed)
    return {"train": train, "val": held_out, "test": list(range(listed, listed + tested))}


def _counts(rows: dict[str, list[int]]) -> str:
    return f"{len(rows['train'])} images to train, {len(rows['val'])} to choose, {len(rows['test'])} to test"


def _hold_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Places that are left, and a tenth, at least one, that is held out."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held_out = max(1, round(HELD_OUT * count))
    return sorted(order[held_out:]), sorted(order[:held_out])
