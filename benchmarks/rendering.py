"""Views a minute that rooms rendered on the fly give training: `python benchmarks/rendering.py --workers 2`.

Packs of 32 views in rooms of 3 to 5, as the default training takes them, at several sides and levels; a line each.
"""

import argparse
import json
import platform
import time

import torch

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, load_packs
from mum_model.data.endless import EndlessRooms, RoomSampler
from mum_model.data.sources.rendered import DIFFICULTIES

FRAMES, VIEWS = 32, (3, 5)


def views_a_minute(side: int, difficulty: str, workers: int, seconds: float) -> float:
    """Load packs for so long, after those that the workers make while they start."""
    rooms = EndlessRooms(views=16, size=side, seed=0, difficulty=difficulty)
    sampler = RoomSampler(rooms, "train", frames=FRAMES, views=VIEWS, single_view_share=0, seed=0)
    packs = load_packs(StepPacks(rooms, sampler, Augmentation(side, 0.8, (1, 1), 0.5), packs=1), range(2**31), workers)
    for _ in range(2 * workers):
        next(packs)
    start, made = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        made += len(next(packs)[0].images)
    return 60 * made / (time.perf_counter() - start)


def main() -> None:
    """Measure each side and level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# {platform.machine()}, {given.workers} workers")
    for side, difficulty in [(72, level) for level in DIFFICULTIES] + [(128, "medium"), (224, "medium")]:
        rate = views_a_minute(side, difficulty, given.workers, given.seconds)
        print(json.dumps({"side": side, "difficulty": difficulty, "views_a_minute": round(rate)}), flush=True)


if __name__ == "__main__":
    main()
