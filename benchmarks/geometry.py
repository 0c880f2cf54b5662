"""Does it learn geometry? Tables and a picture of a study: `python -m benchmarks.geometry STUDY --picture FILE`.

STUDY is what `experiment=STUDY` made (geometry_rooms, geometry_rgbd): runs named ARM-seed-N under the folder of its
`paths.run`, and the evaluation of them all beside random weights and pixels. Printed as Markdown:

* EPE of each arm: one number a training seed, their mean and deviation, and the ratio to single views (MAE), seed by
  seed; below them the error of saying that every point stays where it is;
* whether the other views are used at all: the masked loss on the same held-out views under the same masks, when they
  are shown one by one, in twos, in sixes, and all together.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from omegaconf import DictConfig

from mum_model.config import compose
from mum_model.data.batches import Augmentation
from mum_model.data.scenes import SceneIndex
from mum_model.evaluate.benchmarks import open_tasks
from mum_model.evaluate.matching import end_point_errors
from mum_model.evaluate.pairs import PairTask
from mum_model.model import MuM, load_mum
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout
from mum_model.pretrain.telemetry import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ARMS = {"2-24": "MuM, 2 to 24 views", "2-6": "MuM, 2 to 6 views", "1-1": "MAE, single views"}
COLOURS = {"2-24": "#1f5fb4", "2-6": "#d9730d", "1-1": "#2e8b57"}
MEASURES = {"probe_epe": "linear probe", "knn_epe": "nearest neighbour"}
SHOWN_TOGETHER = (1, 2, 6, 24)
VIEWS = max(SHOWN_TOGETHER)
SCENES = 16

ByArm = Mapping[str, Sequence[Path]]


def main() -> None:
    """Print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of its experiment: geometry_rooms, geometry_rgbd")
    parser.add_argument("--picture", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    cfg = compose([f"experiment={options.study}"])
    torch.set_num_threads(cfg.machine.threads)
    metrics = json.loads((Path(cfg.paths.evaluation) / "metrics.json").read_text())
    found = {arm: sorted(Path(cfg.paths.run).parent.glob(f"{arm}-seed-*")) for arm in ARMS}
    judged = {arm: [run for run in runs if run.name in metrics] for arm, runs in found.items()}
    runs = {arm: these for arm, these in judged.items() if these}
    for measure, words in MEASURES.items():
        print(f"\n{words}\n\n{errors_table(runs, metrics, measure)}")
    print(f"\nevery point stays where it is: {stay_put_epe(cfg):.1f}")
    print(f"\nmasked loss on held-out views\n\n{losses_table(runs, cfg)}")
    draw(options.picture, runs, metrics)


def errors_table(runs: ByArm, metrics: Mapping[str, Mapping[str, float]], measure: str) -> str:
    """EPE of each arm, seed by seed."""
    single = epe_of(runs["1-1"], metrics, measure)
    lines = [
        "| | EPE of each seed, px | mean ± deviation | over MAE, paired | over random weights |",
        "|---|---|---|---|---|",
    ]
    for arm, these in runs.items():
        epe = epe_of(these, metrics, measure)
        mean = np.mean(list(epe.values()))
        paired = [error / single[seed] for seed, error in epe.items() if seed in single and arm != "1-1"]
        seeds = " / ".join(f"{error:.1f}" for error in epe.values())
        over = mean / epe_in(metrics["random"], measure)
        lines.append(f"| {ARMS[arm]} | {seeds} | {spread(list(epe.values()), 1)} | {spread(paired, 3)} | {over:.3f} |")
    lines += [f"| {name} | | {epe_in(metrics[name], measure):.1f} | | |" for name in ("random", "pixels")]
    return "\n".join(lines)


def stay_put_epe(cfg: DictConfig) -> float:
    """EPE on the test pairs of a matcher that does not look at the images."""
    (task,) = open_tasks(cfg)
    assert isinstance(task, PairTask)
    grid, truth = task.grid(cfg.model.patch_size), task.truth(cfg.model.patch_size)["test"]
    return float(
        np.mean([error.mean() for error in end_point_errors(grid.centres.expand_as(truth.target), truth, grid)])
    )


def losses_table(runs: ByArm, cfg: DictConfig) -> str:
    """Masked loss of each arm by the number of views that are shown together; means and deviations over seeds."""
    scenes = held_out_scenes(cfg)
    heads = [f"{count} together" if count > 1 else "one by one" for count in SHOWN_TOGETHER]
    lines = [f"| trained on | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for arm, these in runs.items():
        losses = np.array([losses_by_views(load_mum(run / "model"), scenes, cfg) for run in these])
        lines.append(f"| {ARMS[arm]} | {' | '.join(spread(column, 4) for column in losses.T)} |")
    return "\n".join(lines)


def held_out_scenes(cfg: DictConfig) -> list[torch.Tensor]:
    """`VIEWS` views of each of some validation sequences, uint8 `[VIEWS, 3, size, size]`."""
    index = SceneIndex.open(Path(cfg.paths.dataset))
    sequences = index.sequences("val")
    long_enough = np.flatnonzero(sequences.lengths >= VIEWS)
    rng = np.random.default_rng(0)
    whole = Augmentation(cfg.pretrain.size, crop_scale=1.0, crop_ratio=(1, 1), flip=0.0)
    scenes = []
    for chosen in rng.permutation(long_enough)[:SCENES]:
        rows = rng.choice(sequences[int(chosen)], VIEWS, replace=False)
        views = np.stack([whole(index.image(int(row)), rng) for row in rows])
        scenes.append(torch.from_numpy(views).permute(0, 3, 1, 2))
    return scenes


@torch.inference_mode()
def losses_by_views(model: MuM, scenes: Sequence[torch.Tensor], cfg: DictConfig) -> list[float]:
    """The loss for each of `SHOWN_TOGETHER`: always the same views under the same masks."""
    masks = torch.Generator().manual_seed(0)
    patches = (cfg.pretrain.size // cfg.model.patch_size) ** 2
    noises = [torch.rand(VIEWS, patches, generator=masks) for _ in scenes]
    return [
        float(
            np.mean(
                [
                    model.masked_loss(
                        normalise_pixels(views),
                        SceneLayout.of([together] * (VIEWS // together)),
                        cfg.pretrain.mask_ratio,
                        noise,
                    ).item()
                    for views, noise in zip(scenes, noises, strict=True)
                ]
            )
        )
        for together in SHOWN_TOGETHER
    ]


def epe_of(runs: Sequence[Path], metrics: Mapping[str, Mapping[str, float]], measure: str) -> dict[str, float]:
    """The error of each run by its seed."""
    return {run.name.rpartition("-")[2]: epe_in(metrics[run.name], measure) for run in runs}


def epe_in(metrics: Mapping[str, float], measure: str) -> float:
    """An encoder's error."""
    return metrics[f"dataset.matching.{measure}"]


def spread(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """Mean ± sample deviation, where there are several; nothing where there is none."""
    if len(values) < 2:
        return "".join(f"{value:.{digits}f}" for value in values)
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def draw(path: Path, runs: ByArm, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """EPE of each arm, a dot a seed, and the training losses."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", width_ratios=(1, 1, 1.3))
    for axis, (measure, words) in zip(axes, MEASURES.items(), strict=False):
        for place, (arm, these) in enumerate(runs.items()):
            epe = list(epe_of(these, metrics, measure).values())
            axis.plot([place] * len(epe), epe, "o", color=COLOURS[arm], alpha=0.7)
            axis.plot([place - 0.2, place + 0.2], [np.mean(epe)] * 2, color=COLOURS[arm])
        for name, style in (("random", "--"), ("pixels", ":")):
            level = epe_in(metrics[name], measure)
            axis.axhline(level, color="grey", linestyle=style, linewidth=1)
            axis.annotate(name, (len(runs) - 0.5, level), color="grey", va="bottom", ha="right", fontsize=8)
        axis.set_xticks(range(len(runs)), [ARMS[arm].partition(", ")[2] for arm in runs])
        axis.set_xlim(-0.5, len(runs) - 0.5)
        axis.set_title(f"EPE, {words}, px", fontsize=10)
    for arm, these in runs.items():
        for run in these:
            records = read_metrics(run)
            loss = np.convolve([one.loss for one in records], np.ones(5) / 5, mode="valid")
            axes[2].plot([one.step for one in records][4:], loss, color=COLOURS[arm], linewidth=1, alpha=0.8)
        axes[2].plot([], [], color=COLOURS[arm], label=ARMS[arm])
    axes[2].set_title("training loss, mean of 50 steps", fontsize=10)
    axes[2].set_xlabel("step", fontsize=9)
    axes[2].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
