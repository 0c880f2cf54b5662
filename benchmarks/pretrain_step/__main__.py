"""How fast a training step is, where its time goes, and what each choice in it is worth.

    python -m benchmarks.pretrain_step --size small --frames 8 --side 224 --views 2 8 --threads 2 --precision bf16
    python -m benchmarks.pretrain_step --size large --frames 96 --side 256 --views 2 24 --precision bf16 \
        --reference CHECKOUT_OF_THE_AUTHORS --output benchmarks/large_h200_DATE.md

Every variant runs in a process of its own, round after round in the same order (A B C A B C), so that what the machine
does meanwhile falls on all of them. A step is forward, backward and AdamW on frames that are already in memory; with
`--dataset` they come from a prepared dataset through the training's own loader, and the wait for them is told.
`--reference` takes a checkout of the authors' repository (branch `train-dev`); its step is that of its training loop:
one view count a batch (each in its turn), floor(frames / S) scenes, autocast, torch's AdamW, a look at the loss on the
host each step. Their model needs nothing but torch and numpy.

A GPU is used where torch finds one (flash attention and bf16 need compute capability 8.0 or more). What
`machine=gpu` trains with is the variant "blocks compiled". `--variants` alone leaves only the default, and is quick.

`--output FILE.md` keeps the result, and beside it FILE.png, the timeline of one step.
"""

import argparse
import os
from dataclasses import fields
from pathlib import Path

import mum_model.model  # noqa: F401  isort: skip  (before timm)
from tqdm import tqdm

from benchmarks.pretrain_step.measure import child, in_own_process
from benchmarks.pretrain_step.profile import picture, profile
from benchmarks.pretrain_step.report import hardware, report
from benchmarks.pretrain_step.setting import VARIANTS, Setting, Timing, Variant
from mum_model.model.mum import MUM_SIZES

AUTHORS = "the authors' step"


def main() -> None:
    """Entry point."""
    options = _parser().parse_args()
    if options.child:
        child(options.child)
        return
    values = {field.name: getattr(options, field.name) for field in fields(Setting)}
    setting = Setting(**values | {"views": tuple(options.views), "model": dict(options.model)})
    variants = {name: VARIANTS[name] for name in ["default", *options.variants]}
    if options.reference:
        variants |= {AUTHORS: Variant(packed=False, reference=str(options.reference.absolute()))}
    timings: dict[str, list[Timing]] = {name: [] for name in variants}
    turns = [(name, variant) for _ in range(options.rounds) for name, variant in variants.items()]
    for name, variant in tqdm(turns, desc="measure", unit="process"):
        timings[name].append(in_own_process(setting, variant))
    found = profile(setting)
    text = report(setting, timings, found, AUTHORS if options.reference else "default", options.caveats)
    print(text)
    if options.output:
        image = options.output.with_suffix(".png")
        picture(
            found,
            image,
            f"One step: {setting.size}, {setting.frames} x {setting.side} px, {setting.precision}, {hardware()}",
        )
        options.output.write_text(f"{text}\n![One step over time]({image.name})\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrain_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="small", choices=MUM_SIZES, help="of the model (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="frame budget of a step (%(default)s)")
    parser.add_argument("--side", type=int, default=224, help="of a frame in pixels (%(default)s)")
    parser.add_argument("--views", type=int, nargs=2, default=(2, 8), help="fewest and most views of a scene")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--variants", nargs="*", default=list(VARIANTS)[1:], choices=list(VARIANTS)[1:], help="beside the default (all)"
    )
    parser.add_argument(
        "--model", nargs="*", default=[], type=_field, help="fields that differ, such as encoder_depth=2"
    )
    parser.add_argument("--dataset", type=os.path.abspath, help="take the frames from this prepared dataset")
    parser.add_argument("--reference", type=Path, help="checkout of the authors' repository, branch train-dev")
    parser.add_argument("--output", type=Path, help="write the result to this Markdown file, and a picture beside it")
    parser.add_argument("--caveats", default="", help="what to say about the circumstances, for the result file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def _field(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    return name, int(value)


if __name__ == "__main__":
    main()
