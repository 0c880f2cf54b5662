"""How fast a training step is, where its time goes, and what each choice in it is worth.

    python benchmarks/pretrain_step.py --size small --frames 8 --side 224 --views 2 8 --threads 2
    python benchmarks/pretrain_step.py --size large --frames 96 --side 256 --views 2 24 --precision bf16 \
        --reference CHECKOUT_OF_THE_AUTHORS

Every variant runs in a process of its own, round after round in the same order (A B C A B C), so that what the machine
does meanwhile falls on all of them. A step is forward, backward and AdamW on frames that are already in memory; with
`--dataset` they come from a prepared dataset through the training's own loader, and the wait for them is told.
`--reference` takes a checkout of the authors' repository (branch `train-dev`); its step is that of its training loop:
one view count a batch, floor(frames / S) scenes, autocast, torch's AdamW, a look at the loss on the host each step.

Arithmetic is that of the model as the paper defines it: matrix products and attention, backward counted twice, and
nothing for recomputation. MFU divides by the rate of one large matrix product, measured in the same process.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import mum_model.model  # noqa: F401  isort: skip  (before timm)
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mum_model.config import compose
from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import StepPacks, ViewCounts, ViewSampler, load_packs
from mum_model.data.scenes import SceneIndex
from mum_model.model import MuM, create_mum
from mum_model.model.mum import MUM_SIZES, MuMConfig
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout
from mum_model.pretrain.module import LossModule, compile_blocks, recompute_blocks
from mum_model.pretrain.objectives.masked import MaskedImages
from mum_model.pretrain.schedule import parameter_groups

MASK_RATIO = 0.75
PARTS = ("encoder", "frame blocks", "global blocks", "head and loss", "optimiser", "wait for data")


@dataclass(frozen=True)
class Variant:
    """What is timed; the defaults are what `mum pretrain` does."""

    packed: bool = True
    masked_only: bool = True
    fused: bool = True
    compiled: bool = False
    recompute: float = 0.0
    reference: str | None = None
    parts: bool = False


VARIANTS = {
    "default": Variant(),
    "blocks compiled": Variant(compiled=True),
    "one view count a batch": Variant(packed=False),
    "all patches predicted": Variant(masked_only=False),
    "AdamW not fused": Variant(fused=False),
    "all blocks recomputed": Variant(recompute=1.0),
}


@dataclass(frozen=True)
class Setting:
    """What is the same for all variants."""

    size: str
    frames: int
    side: int
    views: tuple[int, int]
    precision: str
    threads: int
    steps: int
    dataset: str | None

    @property
    def patches(self) -> int:
        """Of a frame."""
        return (self.side // 16) ** 2


@dataclass(frozen=True)
class Timing:
    """What one process measured.

    Attributes:
        seconds: Of each step.
        frames: Of each step.
        arithmetic: Floating-point operations of each step.
        matmul_rate: Operations a second of a large matrix product.
        peak_bytes: Of the GPU; on a CPU of the process, less what it held before the model was built.
        parts: Seconds of a step by part, where asked for.
    """

    seconds: list[float]
    frames: list[int]
    arithmetic: list[float]
    matmul_rate: float
    peak_bytes: int
    parts: dict[str, float]

    @property
    def images_per_second(self) -> float:
        """Over all steps."""
        return sum(self.frames) / sum(self.seconds)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return sum(self.arithmetic) / sum(self.seconds)


def arithmetic(config: MuMConfig, views: tuple[int, ...], patches: int) -> float:
    """Floating-point operations of forward and backward on scenes of these lengths."""
    frames, visible = sum(views), int(patches * (1 - MASK_RATIO))
    pixels = config.patch_size**2 * 3

    def blocks(count: int, dim: int, sequences: list[int]) -> float:
        tokens, pairs = sum(sequences), sum(n * n for n in sequences)
        return count * (2 * 12 * dim**2 * tokens + 4 * dim * pairs)

    half, dim = config.decoder_depth // 2, config.decoder_dim
    forward = (
        2 * pixels * config.encoder_dim * visible * frames
        + blocks(config.encoder_depth, config.encoder_dim, [visible + 1] * frames)
        + 2 * config.encoder_dim * dim * (visible + 1) * frames
        + blocks(half, dim, [patches + 1] * frames)
        + blocks(half, dim, [(patches + 1) * s for s in views])
        + 2 * dim * pixels * (patches - visible) * frames
    )
    return 3 * forward


def measure(setting: Setting, variant: Variant) -> Timing:
    """Time the steps of a variant in this process."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_rate(device, setting.precision)
    held = resident_peak()
    step = reference_step(setting, variant, device) if variant.reference else our_step(setting, variant, device)
    seconds, frames, operations, waits = [], [], [], []
    warm_up = 3
    supply = batches(setting, variant, device)
    for number in range(setting.steps + warm_up):
        began = time.perf_counter()
        images, views = next(supply)
        waited = time.perf_counter() - began
        step(images, views)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= warm_up:
            seconds.append(time.perf_counter() - began)
            waits.append(waited)
            frames.append(sum(views))
            operations.append(arithmetic(MUM_SIZES[setting.size], views, setting.patches))
        elif device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_peak() - held
    parts = {name: value / setting.steps for name, value in getattr(step, "clock", Clock(device)).totals.items()}
    if variant.parts:
        parts["wait for data"] = statistics.fmean(waits)
    return Timing(seconds, frames, operations, rate, peak, parts)


def batches(setting: Setting, variant: Variant, device: torch.device) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Frames and view counts of one step after another; the same for all variants of a kind."""
    if setting.dataset is not None:
        yield from _from_dataset(setting, device)
    rng, counts = np.random.default_rng(0), ViewCounts(setting.frames, setting.views)
    generator = torch.Generator().manual_seed(0)
    shape = (setting.frames, 3, setting.side, setting.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    while True:
        if variant.packed:
            views = tuple(counts.draw(rng))
        else:
            count = int(rng.integers(setting.views[0], setting.views[1] + 1))
            views = (count,) * (setting.frames // count)
        yield images[: sum(views)], views


def _from_dataset(setting: Setting, device: torch.device) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    assert setting.dataset is not None
    index = SceneIndex.open(Path(setting.dataset))
    sequences = index.sequences("train")
    draw = {"frames": setting.frames, "views": setting.views, "single_view_share": 0.0, "mix": {}, "seed": 0}
    sampler = ViewSampler(sequences, index.sources(sequences), **draw)
    packs = StepPacks(index, sampler, Augmentation(setting.side, 0.8, (1.0, 1.0), 0.5), packs=1)
    for (pack,) in load_packs(packs, range(10**6), workers=1):
        yield pack.images.to(device, non_blocking=True), pack.views


class Clock:
    """Adds up the time of parts, forward and backward."""

    def __init__(self, device: torch.device):
        """Start at zero."""
        self.device, self.totals, self.began = device, dict.fromkeys(PARTS[:-1], 0.0), 0.0

    def start(self, *_: object) -> None:
        """A part begins."""
        self._synchronise()
        self.began = time.perf_counter()

    def stop(self, part: str) -> Callable[..., None]:
        """A part ends."""

        def hook(*_: object) -> None:
            self._synchronise()
            self.totals[part] += time.perf_counter() - self.began

        return hook

    def watch(self, module: nn.Module, part: str) -> None:
        """Time a module."""
        module.register_forward_pre_hook(self.start)
        module.register_forward_hook(self.stop(part))
        module.register_full_backward_pre_hook(self.start)
        module.register_full_backward_hook(self.stop(part))

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class OurStep:
    """Forward, backward and update as `mum pretrain` does them, without DeepSpeed's bookkeeping."""

    def __init__(self, setting: Setting, variant: Variant, device: torch.device):
        """Build model and optimiser."""
        model = create_mum(setting.size)
        self.clock = Clock(device)
        if variant.parts:
            self._watch(model)
        if variant.compiled:
            compile_blocks(model)
        recompute_blocks(model, variant.recompute)
        self.setting, self.variant = setting, variant
        objective = MaskedImages(compose([f"pretrain.mask_ratio={MASK_RATIO}"]))
        self.module = LossModule(model, objective, setting.precision).to(device)
        groups = parameter_groups(self.module.named_parameters(), 0.05)
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=variant.fused)

    def __call__(self, images: Tensor, views: tuple[int, ...]) -> None:
        """Take a step."""
        noise = torch.rand(len(images), self.setting.patches, device=images.device)
        if self.variant.masked_only:
            scenes = SceneLayout.of(views, self.setting.views[1]).to(images.device)
            self.module(images, scenes, noise).backward()
        else:
            self._all_patches(images, views, noise).backward()
        self.clock.start()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.clock.stop("optimiser")()

    def _all_patches(self, images: Tensor, views: tuple[int, ...], noise: Tensor) -> Tensor:
        """The loss by way of a prediction of every patch, visible ones included."""
        model = self.module.model
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.setting.precision == "bf16"):
            layout = SceneLayout.of(views, self.setting.views[1]).to(images.device)
            patches, mask, tokens = model._see_and_fill_in(normalise_pixels(images), layout, MASK_RATIO, noise)
            target = patches.sub(patches.mean(-1, keepdim=True)).div(patches.var(-1, keepdim=True).add(1e-6).sqrt())
            error = (model.decoder.predict(tokens).float() - target).square().mean(-1)
            return error.gather(1, mask.masked).mean()

    def _watch(self, model: MuM) -> None:
        for part, modules in (
            ("encoder", model.encoder.blocks),
            ("frame blocks", model.decoder.frame_blocks),
            ("global blocks", model.decoder.global_blocks),
            ("head and loss", [model.decoder.norm, model.decoder.head]),
        ):
            for module in modules:
                self.clock.watch(module, part)


def our_step(setting: Setting, variant: Variant, device: torch.device) -> OurStep:
    """The step of this project."""
    return OurStep(setting, variant, device)


def reference_step(
    setting: Setting, variant: Variant, device: torch.device
) -> Callable[[Tensor, tuple[int, ...]], None]:
    """The step of the authors' training loop, on their own model, of the same shape."""
    assert variant.reference is not None
    sys.path.insert(0, variant.reference)
    theirs = __import__("mum.model", fromlist=["MuMAutoEncoder"])
    shape = MUM_SIZES[setting.size]
    model = theirs.MuMAutoEncoder(
        img_size=setting.side,
        embed_dim=shape.encoder_dim,
        depth=shape.encoder_depth,
        num_heads=shape.encoder_heads,
        decoder_embed_dim=shape.decoder_dim,
        decoder_depth=shape.decoder_depth,
        decoder_num_heads=shape.decoder_heads,
        norm_layer="layernormbf16",
        device=device,
    ).to(device)
    model.init_weights()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def step(images: Tensor, views: tuple[int, ...]) -> None:
        batch = normalise_pixels(images).unflatten(0, (len(views), views[0]))
        bf16 = setting.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            loss, _, _ = model(batch, mask_ratio=MASK_RATIO)
        loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def matmul_rate(device: torch.device, precision: str) -> float:
    """Operations a second of a large square matrix product in this precision; the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def resident_peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(setting: Setting, variant: Variant) -> Timing:
    """Measure in a fresh process."""
    request = json.dumps({"setting": asdict(setting), "variant": asdict(variant)})
    arguments = [sys.executable, __file__, "--child", request]
    environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def child(request: str) -> None:
    """What such a process does."""
    asked = json.loads(request)
    asked["setting"]["views"] = tuple(asked["setting"]["views"])
    print(json.dumps(asdict(measure(Setting(**asked["setting"]), Variant(**asked["variant"])))))


def report(setting: Setting, timings: dict[str, list[Timing]], parts: dict[str, float], baseline: str) -> str:
    """The result as Markdown."""
    base = statistics.median(t.images_per_second for t in timings[baseline])
    lines = [
        f"# A training step: {setting.size}, {setting.frames} frames of {setting.side} px, "
        f"{setting.views[0]} to {setting.views[1]} views, {setting.precision}",
        "",
        f"    python benchmarks/pretrain_step.py {' '.join(given_arguments())}",
        "",
        f"{hardware()}; {setting.threads} threads; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}.",
        f"{len(timings[baseline])} rounds of {setting.steps} steps, each variant in a process of its own, in turns. "
        f"Images/s is the median of the rounds (lowest to highest); the ratio is to `{baseline}`.",
        "",
        "| | images/s | ratio | TFLOP/s | MFU | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, rounds in timings.items():
        speeds = [t.images_per_second for t in rounds]
        speed = statistics.median(speeds)
        rate = statistics.median(t.rate for t in rounds)
        mfu = statistics.median(t.rate / t.matmul_rate for t in rounds)
        peak = statistics.median(t.peak_bytes for t in rounds)
        lines.append(
            f"| {name} | {speed:.2f} ({min(speeds):.2f} to {max(speeds):.2f}) | {speed / base:.2f} | "
            f"{rate / 1e12:.3f} | {mfu:.0%} | {peak / 2**30:.2f} GiB |"
        )
    measured = statistics.median(t.matmul_rate for rounds in timings.values() for t in rounds)
    total = sum(parts.values())
    lines += [
        "",
        f"One large matrix product: {measured / 1e12:.3f} TFLOP/s.",
        "",
        "Time of a step of `default` by part, forward and backward (hooks slow it a little; what is left out is the",
        "masking, the patches and the gathering of tokens):",
        "",
        "| part | seconds | share |",
        "|---|---|---|",
        *(f"| {name} | {parts[name]:.4f} | {parts[name] / total:.0%} |" for name in PARTS),
    ]
    return "\n".join(lines) + "\n"


def picture(parts: dict[str, float], path: Path) -> None:
    """Where the time of a step goes, as one bar."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.9), layout="constrained")
    left = 0.0
    for name in PARTS:
        axes.barh(0, parts[name], left=left, label=f"{name} {parts[name] / sum(parts.values()):.0%}")
        left += parts[name]
    axes.set(yticks=[], xlabel="seconds of a step, forward and backward", xlim=(0, left))
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.55), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def given_arguments() -> Iterator[str]:
    """The command line without the paths of this machine."""
    path = False
    for argument in sys.argv[1:]:
        yield "PATH" if path else argument
        path = argument in ("--reference", "--dataset", "--output")


def hardware() -> str:
    """The processor or GPU by its name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=MUM_SIZES, help="of the model (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frame budget of a step (%(default)s)")
    parser.add_argument("--side", type=int, default=224, help="of a frame in pixels (%(default)s)")
    parser.add_argument("--views", type=int, nargs=2, default=(2, 8), help="fewest and most views of a scene")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS, help="which to time (all)")
    parser.add_argument("--dataset", help="take the frames from this prepared dataset")
    parser.add_argument("--reference", help="checkout of the authors' repository, branch train-dev")
    parser.add_argument("--output", type=Path, help="write the result to this Markdown file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    values = {field.name: getattr(options, field.name) for field in fields(Setting)}
    setting = Setting(**{**values, "views": tuple(options.views)})
    variants = {name: VARIANTS[name] for name in options.variants}
    if options.reference:
        variants["the authors' step"] = Variant(packed=False, reference=options.reference)
    timings: dict[str, list[Timing]] = {name: [] for name in variants}
    turns = [(name, variant) for _ in range(options.rounds) for name, variant in variants.items()]
    for name, variant in tqdm(turns, desc="measure", unit="process"):
        timings[name].append(in_own_process(setting, variant))
    parts = in_own_process(setting, Variant(parts=True)).parts
    baseline = "the authors' step" if options.reference else next(iter(variants))
    text = report(setting, timings, parts, baseline)
    print(text)
    if options.output:
        image = options.output.with_suffix(".png")
        picture(parts, image)
        options.output.write_text(f"{text}\n![Time of a step by part]({image.name})\n")


if __name__ == "__main__":
    main()
