"""The result as Markdown."""

import platform
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.pretrain_step.profile import PARTS, Profile
from benchmarks.pretrain_step.setting import Setting, Timing

PATHS = ("--reference", "--dataset", "--output")
CAVEATS = """Frames are random and in memory unless `--dataset` is in the command; then they come through the training's
own loader, and the wait is told. DeepSpeed's bookkeeping and the exchange between ranks are in none of the steps. MFU
is against one large matrix product, measured in the same process. Peak memory on a CPU is resident."""


def report(setting: Setting, timings: dict[str, list[Timing]], profile: Profile, baseline: str, caveats: str) -> str:
    """The whole file but for the picture.

    Args:
        setting: Of all variants.
        timings: Of each variant, a round each.
        profile: Of a step of the default.
        baseline: The variant that ratios are to.
        caveats: Of this measurement, from the one who took it.
    """
    rounds = len(timings[baseline])
    waits = statistics.fmean(wait for timing in timings["default"] for wait in timing.waits)
    measured = statistics.median(timing.matmul_rate for timing in timings["default"])
    lines = [
        f"# A training step: {setting.size}, {setting.frames} frames of {setting.side} px, "
        f"{setting.views[0]} to {setting.views[1]} views, {setting.precision}",
        "",
        f"    python -m benchmarks.pretrain_step {' '.join(given_arguments())}",
        "",
        f"{hardware()}; {setting.threads} CPU threads; torch {torch.__version__}, timm {version('timm')}, "
        f"Python {platform.python_version()}; {time.strftime('%Y-%m-%d')}.",
        f"{rounds} rounds of {setting.steps} steps, each variant in a process of its own, in turns. Images/s is the "
        f"median of the rounds (lowest to highest); the ratio is the median of the rounds' own ratios to `{baseline}`.",
        f"One large matrix product: {measured / 1e12:.3f} TFLOP/s. "
        f"Waiting for data in a step of `default`: {waits:.4f} s.",
        "",
        CAVEATS,
        *([caveats] if caveats else []),
        "",
        "| | images/s | ratio | TFLOP/s | MFU | peak memory | its ratio |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, found, timings[baseline]) for name, found in timings.items()),
        "",
        "Time of one step of `default` by part (noting it slows the step a little; what the parts leave out is the",
        "masking, the patches and the gathering of tokens):",
        "",
        "| part | forward, s | backward, s | share of the step |",
        "|---|---|---|---|",
        *(_part(name, profile) for name in PARTS),
        "",
        "By kind of operation: " + ", ".join(f"{kind} {share:.0%}" for kind, share in profile.kinds.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, rounds: list[Timing], base: list[Timing]) -> str:
    speeds = [timing.images_per_second for timing in rounds]
    ratio = statistics.median(ours / b.images_per_second for ours, b in zip(speeds, base, strict=True))
    rate = statistics.median(timing.rate for timing in rounds)
    mfu = statistics.median(timing.rate / timing.matmul_rate for timing in rounds)
    peak, base_peak = (statistics.median(timing.peak_bytes for timing in found) for found in (rounds, base))
    return (
        f"| {name} | {statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f}) | {ratio:.2f} | "
        f"{rate / 1e12:.3f} | {mfu:.0%} | {peak / 2**30:.2f} GiB | {peak / base_peak:.2f} |"
    )


def _part(name: str, profile: Profile) -> str:
    forward, backward = (profile.of(name, backward=backward) for backward in (False, True))
    return f"| {name} | {forward:.4f} | {backward:.4f} | {(forward + backward) / profile.seconds:.0%} |"


def given_arguments() -> Iterator[str]:
    """The command line without the paths of this machine."""
    hide = False
    for argument in sys.argv[1:]:
        yield "PATH" if hide else f"'{argument}'" if " " in argument or not argument else argument
        hide = argument in PATHS


def hardware() -> str:
    """The processor or GPU by its name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"
