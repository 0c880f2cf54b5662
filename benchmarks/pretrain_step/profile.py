"""One step under the microscope: when each part of the network runs, and which operations the time goes to."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.pretrain_step.measure import WARM_UP, batches, device_of_this_machine, synchronise
from benchmarks.pretrain_step.setting import Setting, Variant
from benchmarks.pretrain_step.steps import OurStep

PARTS = ("encoder", "frame blocks", "global blocks", "head", "optimiser")
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "fused attention": ("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention", "varlen"),
    "softmax": ("aten::_softmax",),
    "norms and GELU": ("aten::native_layer_norm", "aten::gelu", "aten::var_mean"),
    "copies": ("aten::copy_", "aten::cat", "aten::gather", "aten::scatter", "aten::index", "aten::fill_"),
    "AdamW": ("aten::_fused_adamw",),
}
"""Operations by the beginnings of their names in torch's profiler."""


@dataclass(frozen=True)
class Span:
    """A part of the network at work.

    Attributes:
        part: Of `PARTS`.
        backward: Whether going backward.
        start: In seconds since the step began.
        seconds: How long.
    """

    part: str
    backward: bool
    start: float
    seconds: float


@dataclass(frozen=True)
class Profile:
    """One step.

    Attributes:
        seconds: It took, watched.
        spans: Of its parts, in order.
        kinds: Share of the time by kind of operation; they sum to 1.
    """

    seconds: float
    spans: list[Span]
    kinds: dict[str, float]

    def of(self, part: str, *, backward: bool) -> float:
        """Seconds of a part in one direction."""
        return sum(span.seconds for span in self.spans if (span.part, span.backward) == (part, backward))


class Watch:
    """Notes when modules run."""

    def __init__(self, device: torch.device):
        """Begin."""
        self.device, self.spans = device, list[Span]()
        self.zero = self.began = time.perf_counter()

    def reset(self) -> None:
        """A step begins."""
        self.spans, self.zero = [], time.perf_counter()

    def start(self, *_: object) -> None:
        """A part begins."""
        synchronise(self.device)
        self.began = time.perf_counter()

    def stop(self, part: str, *, backward: bool = False) -> Callable[..., None]:
        """What is to be called when a part ends."""

        def note(*_: object) -> None:
            synchronise(self.device)
            now = time.perf_counter()
            self.spans.append(Span(part, backward, self.began - self.zero, now - self.began))

        return note

    def watch(self, module: nn.Module, part: str) -> None:
        """Note a module, forward and backward."""
        module.register_forward_pre_hook(self.start)
        module.register_forward_hook(self.stop(part))
        module.register_full_backward_pre_hook(self.start)
        module.register_full_backward_hook(self.stop(part, backward=True))


def profile(setting: Setting) -> Profile:
    """Profile a step of the default variant in this process: first by hooks, then another one by torch's profiler."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    device, variant = device_of_this_machine(), Variant()
    step, watch = OurStep(setting, variant, device), Watch(device)
    supply = batches(setting, variant, device)
    for _ in range(WARM_UP):
        step(*next(supply))
    kinds = _kinds(step, supply, device)
    _attach(watch, step)
    step(*next(supply))
    batch = next(supply)
    watch.reset()
    step(*batch)
    synchronise(device)
    return Profile(time.perf_counter() - watch.zero, watch.spans, kinds)


def _attach(watch: Watch, step: OurStep) -> None:
    model = step.model
    for part, modules in (
        ("encoder", model.encoder.blocks),
        ("frame blocks", model.decoder.frame_blocks),
        ("global blocks", model.decoder.global_blocks),
        ("head", [model.decoder.norm, model.decoder.head]),
    ):
        for module in modules:
            watch.watch(module, part)
    step.optimiser.register_step_pre_hook(watch.start)
    step.optimiser.register_step_post_hook(watch.stop("optimiser", backward=True))


def _kinds(step: OurStep, supply, device: torch.device) -> dict[str, float]:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch_profile(activities=activities) as profiler:
        step(*next(supply))
        synchronise(device)
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "other")
        seconds[kind] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    total = sum(seconds.values())
    return {kind: value / total for kind, value in seconds.items()}


def picture(profile: Profile, path: Path, title: str) -> None:
    """Draw a step: a row a part over time, and a bar of the kinds of operation.

    Args:
        profile: What was found.
        path: PNG to write.
        title: What was measured on what.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (line, bar) = plt.subplots(2, 1, figsize=(11, 4.6), height_ratios=[3, 1], layout="constrained")
    for row, part in enumerate(reversed(PARTS)):
        for backward, colour in ((False, "tab:blue"), (True, "tab:orange")):
            spans = [(s.start, s.seconds) for s in profile.spans if (s.part, s.backward) == (part, backward)]
            line.broken_barh(spans, (row - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.4)
        seconds = sum(profile.of(part, backward=backward) for backward in (False, True))
        line.text(profile.seconds * 1.01, row, f"{seconds:.3f} s", va="center")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in ("tab:blue", "tab:orange")]
    line.legend(handles, ["forward", "backward and update"], loc="lower left", frameon=False)
    line.set(yticks=range(len(PARTS)), yticklabels=reversed(PARTS), xlim=(0, profile.seconds * 1.1), title=title)
    line.set_xlabel("seconds since the step began")
    left, colours = 0.0, plt.get_cmap("tab10")
    for number, (kind, share) in enumerate(profile.kinds.items()):
        bar.barh(0, share, left=left, color=colours(number), label=f"{kind} {share:.0%}")
        left += share
    bar.set(yticks=[], xlim=(0, 1), xlabel="share of the time by kind of operation")
    bar.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 2.1), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
