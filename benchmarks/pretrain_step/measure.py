"""Time the steps of one variant, in a process of its own."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.pretrain_step.setting import Setting, Timing, Variant, arithmetic
from benchmarks.pretrain_step.steps import OurStep, Step, reference_step, shape_of
from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, ViewCounts, ViewSampler, load_packs
from mum_model.data.scenes import SceneIndex

WARM_UP = 3
ROOT = Path(__file__).parents[2]


def device_of_this_machine() -> torch.device:
    """Its GPU, or its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(setting: Setting, variant: Variant) -> Timing:
    """Time the steps of a variant in this process."""
    setting = variant.of(setting)
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    device = device_of_this_machine()
    rate = matmul_rate(device, setting.precision)
    held = resident_peak()
    step = _step(setting, variant, device)
    found = Timing([], [], [], rate, 0, [])
    supply = batches(setting, variant, device)
    for number in range(setting.steps + WARM_UP):
        began = time.perf_counter()
        images, packs = next(supply)
        waited = time.perf_counter() - began
        step(images, packs)
        synchronise(device)
        if number < WARM_UP:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            continue
        found.seconds.append(time.perf_counter() - began)
        found.waits.append(waited)
        found.frames.append(len(images))
        found.arithmetic.append(sum(arithmetic(shape_of(setting), views, setting.side) for views in packs))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_peak() - held
    return Timing(**asdict(found) | {"peak_bytes": peak})


def _step(setting: Setting, variant: Variant, device: torch.device) -> Step:
    if variant.reference is not None:
        return reference_step(setting, variant.reference, device)
    return OurStep(setting, variant, device)


def batches(
    setting: Setting, variant: Variant, device: torch.device
) -> Iterator[tuple[Tensor, Sequence[Sequence[int]]]]:
    """Frames and view counts of one step after another; the same for all variants of a kind."""
    if setting.dataset is not None:
        yield from _from_dataset(setting, device)
    rng, counts = np.random.default_rng(0), ViewCounts(setting.frames // variant.packs, setting.views)
    in_turn = cycle(range(setting.views[0], setting.views[1] + 1))
    generator = torch.Generator().manual_seed(0)
    shape = (setting.frames, 3, setting.side, setting.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    while True:
        if variant.packed:
            yield images, [counts.draw(rng) for _ in range(variant.packs)]
        else:
            count = next(in_turn)
            scenes = setting.frames // count
            yield images[: scenes * count], [(count,) * scenes]


def _from_dataset(setting: Setting, device: torch.device) -> Iterator[tuple[Tensor, Sequence[Sequence[int]]]]:
    assert setting.dataset is not None
    index = SceneIndex.open(Path(setting.dataset))
    sequences = index.sequences("train")
    draw = {"frames": setting.frames, "views": setting.views, "single_view_share": 0.0, "mix": {}, "seed": 0}
    sampler = ViewSampler(sequences, index.sources(sequences), **draw)
    packs = StepPacks(index, sampler, Augmentation(setting.side, 0.8, (1.0, 1.0), 0.5), packs=1)
    for (pack,) in load_packs(packs, range(10**6), workers=1):
        yield pack.images.to(device, non_blocking=True), [pack.views]


def matmul_rate(device: torch.device, precision: str) -> float:
    """Operations a second of a large square matrix product in this precision; the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def resident_peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(setting: Setting, variant: Variant) -> Timing:
    """Measure in a fresh process."""
    request = json.dumps({"setting": asdict(setting), "variant": asdict(variant)})
    arguments = [sys.executable, "-m", "benchmarks.pretrain_step", "--child", request]
    environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def child(request: str) -> None:
    """What such a process does."""
    asked = json.loads(request)
    asked["setting"]["views"] = tuple(asked["setting"]["views"])
    print(json.dumps(asdict(measure(Setting(**asked["setting"]), Variant(**asked["variant"])))))
