"""Whether the memory of loader workers stays flat: `python benchmarks/loader_memory.py DATASET --minutes 60`.

Loads packs as training does, as fast as the workers can, and looks at each worker every few seconds. *Own* is what a
worker adds to the machine (anonymous pages); *resident* also counts the pages of shards and tables, which all workers
share and which the kernel takes back. The slope is a least-squares line through the own memory after the warm-up.
"""

import argparse
import json
import multiprocessing
import platform
import time
from pathlib import Path

import numpy as np
import torch

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, ViewSampler, load_packs
from mum_model.data.scenes import SceneIndex

SIZE, FRAMES, VIEWS = 224, 48, (2, 12)
WARM_UP = 0.1
"""Share of the time after which a worker has touched what it keeps: libraries, open shards, tables."""


def memory(process: int) -> tuple[float, float]:
    """Own and resident memory of a process in MB."""
    lines = [line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {words[0]: int(words[1]) for words in lines}
    return kilobytes["Anonymous:"] / 1024, kilobytes["Rss:"] / 1024


def watch(packs: StepPacks, workers: int, seconds: float, every: float) -> tuple[np.ndarray, int]:
    """Load for so long.

    Returns:
        Seconds, own and resident MB of each look at each worker, `[looks, workers, 3]`; and the frames loaded.
    """
    looks: list[list[tuple[float, float, float]]] = []
    start, frames = time.monotonic(), 0
    for step in load_packs(packs, range(2**31), workers):
        frames += sum(len(pack.images) for pack in step)
        now = time.monotonic() - start
        if now >= every * len(looks):
            found = sorted(process.pid for process in multiprocessing.active_children() if process.pid)
            looks.append([(now, *memory(process)) for process in found])
        if now >= seconds:
            break
    return np.array(looks), frames


def main() -> None:
    """Load, look, and print a dozen looks and the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    index = SceneIndex.open(given.dataset)
    sequences = index.sequences("train")
    sampler = ViewSampler(
        sequences, index.sources(sequences), frames=FRAMES, views=VIEWS, single_view_share=0.1, mix={}, seed=0
    )
    packs = StepPacks(index, sampler, Augmentation(SIZE, 0.2, (3 / 4, 4 / 3), 0.5), packs=1)
    looks, frames = watch(packs, given.workers, 60 * given.minutes, every=given.minutes * 60 / 240)
    minutes, own = looks[:, 0, 0] / 60, looks[..., 1]
    settled = minutes >= WARM_UP * given.minutes
    slopes = [np.polynomial.Polynomial.fit(minutes[settled], one[settled], 1).convert().coef[1] for one in own.T]
    print(f"# {platform.machine()}, torch {torch.__version__}, {given.workers} workers, dataset of {len(index)} frames")
    for look in looks[:: max(1, len(looks) // 12)]:
        each = {"own_mb": look[:, 1].round(1).tolist(), "resident_mb": look[:, 2].round(1).tolist()}
        print(json.dumps({"minute": round(look[0, 0] / 60, 1), **each}))
    total = {
        "frames": frames,
        "minutes": round(minutes[-1], 1),
        "own_mb_from": own[settled].min(0).round(1).tolist(),
        "own_mb_to": own[settled].max(0).round(1).tolist(),
        "mb_per_hour": [round(60 * slope, 2) for slope in slopes],
    }
    print(json.dumps(total))


if __name__ == "__main__":
    main()
