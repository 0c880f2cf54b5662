"""Frames a second of the loader against the authors' way, on the same photos: `benchmarks/loader.py CAPTURE ...`.

The authors' way opens the original and takes RandomResizedCrop(0.2-1, bicubic) and a flip in PIL. Ours reads the frame
as `prepare` stored it, decodes it and crops it likewise. Both on one core, in turn, best and worst of several passes.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from mum_model.config import compose
from mum_model.data.augmentation import Augmentation
from mum_model.data.images import is_image_name
from mum_model.data.scenes import SceneIndex
from mum_model.prepare import prepare

SIZE, SCALE, RATIO, FLIP = 224, (0.2, 1.0), (3 / 4, 4 / 3), 0.5


def authors_way(path: Path, rng: np.random.Generator) -> np.ndarray:
    """RandomResizedCrop and flip of the original file, as torchvision does on PIL images."""
    image = Image.open(path).convert("RGB")
    area = image.width * image.height * rng.uniform(*SCALE)
    ratio = np.exp(rng.uniform(*np.log(RATIO)))
    width, height = min(image.width, round((area * ratio) ** 0.5)), min(image.height, round((area / ratio) ** 0.5))
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    crop = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return np.asarray(crop)[:, ::-1] if rng.random() < FLIP else np.asarray(crop)


def passes(views: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Frames a second of each way, in turn."""
    found: dict[str, list[float]] = {name: [] for name in views}
    for _ in range(repeats):
        for name, run in views.items():
            start = time.process_time()
            count = run()
            found[name].append(count / (time.process_time() - start))
    return found


def measure(capture: Path, short_side: int, quality: int | None, repeats: int) -> dict[str, object]:
    """Prepare a capture and compare."""
    photos = sorted(path for path in capture.rglob("*") if is_image_name(path) and "depth" not in path.name)[:64]
    with tempfile.TemporaryDirectory() as name:
        overrides = [f"data.source={capture}", f"data.short_side={short_side}", f"paths.dataset={name}/dataset"]
        settings = [f"data.jpeg_quality={quality or 'null'}", "data.max_refused_share=1", "machine.workers=1"]
        start = time.process_time()
        index = SceneIndex.open(prepare(compose([*overrides, *settings])))
        prepared = time.process_time() - start
        images = int(index.column("image_size").sum())
        depth = int(np.nansum(index.column("depth_size").astype(float)))
        rows = range(min(64, len(index)))
        augmentation = Augmentation(SIZE, SCALE[0], RATIO, FLIP)
        rng = np.random.default_rng(0)
        ways: dict[str, Callable[[], int]] = {
            "authors": lambda: len([authors_way(path, rng) for path in photos]),
            "ours": lambda: sum(len([augmentation(index.image(row), rng) for row in rows]) for _ in range(5)),
        }
        found = passes(ways, repeats)
    best = {name: max(rates) for name, rates in found.items()}
    return {
        "capture": capture.name,
        "photos": f"{len(photos)} of {'x'.join(map(str, Image.open(photos[0]).size))}",
        "stored": f"short side {short_side}, " + ("PNG" if quality is None else f"JPEG {quality}"),
        **{f"{name}_frames_per_cpu_s": round(rate) for name, rate in best.items()},
        "stored_kb_per_frame": round(images / len(index) / 1000, 1),
        "depth_kb_per_frame": round(depth / len(index) / 1000, 1),
        "prepare_cpu_ms_per_frame": round(1000 * prepared / len(index)),
        "ratio": round(best["ours"] / best["authors"], 1),
        "worst_ratio": round(min(found["ours"]) / max(found["authors"]), 1),
    }


def main() -> None:
    """Measure each capture, stored both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captures", type=Path, nargs="+")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(f"# {platform.machine()}, {os.cpu_count()} cores, OpenCV {cv2.__version__}, Pillow {version('pillow')}")
    for capture in chosen.captures:
        for quality in (90, None):
            print(json.dumps(measure(capture, chosen.short_side, quality, chosen.repeats)), flush=True)


if __name__ == "__main__":
    main()
