"""Monocular depth and surface normals by a linear head on the tokens of one view.

Depth follows the linear protocol of DINOv2 (arXiv 2304.07193): 256 uniform bins, their normalised outputs weigh the
bins' centres, a scale-invariant logarithmic loss, tokens brought to four times their resolution (which commutes with a
linear layer, so it is done after it). Normals are a second head: three numbers, normalised, one minus the cosine.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from mum_model.data.geometry import pixel_grid, unproject
from mum_model.errors import UserError
from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import Features, FeatureStore
from mum_model.evaluate.figures import kept_map, kept_view, save
from mum_model.evaluate.linear import Head, LinearSettings, train_heads
from mum_model.evaluate.task import Arrays, Outcome, Picture, choose
from mum_model.evaluate.views import ImageSet, Views, sha256_of

BINS = 256
UPSAMPLED = 4
VARIANCE_FOCUS = 0.85  # of the scale-invariant loss, as in BTS and DINOv2
WITHIN = {"within11": 11.25, "within22": 22.5, "within30": 30.0}
SMOOTH = 0.05  # largest relative step of depth between neighbours of one surface


def normals_from_depth(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Surface normals from a depth map, by the cross product of central differences of its points.

    Args:
        depth: z-depth `[H, W]`, 0 where unknown.
        intrinsics: Camera matrix `[3, 3]` of the map.

    Returns:
        Unit normals towards the camera, float32 `[H, W, 3]` in camera axes; not-a-number at the border, beside a hole
        and across a step of depth.
    """
    height, width = depth.shape
    points = unproject(pixel_grid(height, width), np.where(depth > 0, depth, np.nan).astype(np.float64), intrinsics)
    normals = np.full((height, width, 3), np.nan)
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    cross = np.cross(down, across)
    with np.errstate(invalid="ignore"):
        steps = np.maximum(np.abs(across[..., 2]), np.abs(down[..., 2]))
        smooth = steps < 2 * SMOOTH * points[1:-1, 1:-1, 2]
        normals[1:-1, 1:-1] = np.where(smooth[..., None], cross / np.linalg.norm(cross, axis=-1, keepdims=True), np.nan)
    return normals.astype(np.float32)


def depth_errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The field's depth metrics over the pixels whose depth is known.

    Args:
        predicted: z-depth `[...]`, positive.
        true: z-depth `[...]`, 0 where unknown.

    Returns:
        `delta1`, `rmse` and `abs_rel`; not-a-number where no pixel is known.
    """
    known = true > 0
    if not known.any():
        return dict.fromkeys(("delta1", "rmse", "abs_rel"), float("nan"))
    p, t = predicted[known].astype(np.float64), true[known].astype(np.float64)
    return {
        "delta1": float((np.maximum(p / t, t / p) < 1.25).mean()),
        "rmse": float(np.sqrt(((p - t) ** 2).mean())),
        "abs_rel": float((np.abs(p - t) / t).mean()),
    }


def normal_errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Angles between predicted and true normals over the pixels whose normal is known.

    Args:
        predicted: Unit normals `[..., 3]`.
        true: Unit normals `[..., 3]`, not-a-number where unknown.

    Returns:
        `mean` in degrees and the shares within 11.25, 22.5 and 30 degrees; not-a-number where no pixel is known.
    """
    known = np.isfinite(true).all(-1)
    if not known.any():
        return dict.fromkeys(("mean", *WITHIN), float("nan"))
    p, t = predicted[known].astype(np.float64), true[known].astype(np.float64)
    angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(p, t), axis=-1), (p * t).sum(-1)))
    return {"mean": float(angle.mean())} | {name: float((angle < limit).mean()) for name, limit in WITHIN.items()}


class DepthTask:
    """Depth and normals of single views."""

    kind = "depth"

    def __init__(self, views: Views, rows: Mapping[str, Sequence[int]], settings: DictConfig, about: str):
        """Open the task.

        Args:
            views: The frames.
            rows: Frames with depth, for `train`, `val` and `test`.
            settings: `evaluate` of the configuration.
            about: What it is judged on.

        Raises:
            UserError: A split has no frame with depth.
        """
        for split in ("train", "val", "test"):
            if not len(rows[split]):
                raise UserError(f"{views.frames.name}: no frame with depth in {split}; leave depth out of its tasks")
        self.benchmark, self.about, self.views = views.frames.name, about, views
        self.name = f"{self.benchmark}: depth and normals"
        self.settings = LinearSettings(**settings.linear)
        self.splits = {split: ImageSet(views, rows[split]) for split in rows}
        self.test = self.splits["test"]
        self.groups = np.array([views.frames.scene(row) for row in self.test.rows])
        self._truth = lru_cache(maxsize=4096)(self._read_truth)
        sample = np.concatenate([d[d > 0] for d in (self._truth(row)[0] for row in self.splits["train"].rows[:200])])
        self.range = (float(np.quantile(sample, 0.001)) * 0.9, float(np.quantile(sample, 0.999)) * 1.1)
        self.content = sha256_of([*(images.identity for images in self.splits.values()), str(self.range)])

    def _read_truth(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Depth `[size, size]` and normals `[size, size, 3]` of a frame."""
        depth, intrinsics = self.views.depth(row), self.views.frames.intrinsics(row)
        assert depth is not None  # rows are those with depth
        if intrinsics is None:
            return depth, np.full((*depth.shape, 3), np.nan, np.float32)
        return depth, normals_from_depth(depth, self.views.square(row).intrinsics(intrinsics))

    def judge(self, encoder: Encoder, store: FeatureStore, seed: int) -> Outcome:
        """Train both heads for each learning rate; each is chosen on validation by itself."""
        features = {split: store.get(encoder, images, "patches") for split, images in self.splits.items()}
        heads = train_heads(
            lambda places: features["train"][torch.from_numpy(places)],
            lambda outputs, places: self._loss(outputs, self.splits["train"].rows, places),
            len(self.splits["train"]),
            BINS + 3,
            self.settings,
            seed,
        )
        judged = [self._errors(head, features["val"], self.splits["val"]) for head in heads]
        by_depth = min(range(len(heads)), key=lambda i: np.nanmean(judged[i]["depth.abs_rel"]))
        by_normals = min(range(len(heads)), key=lambda i: _mean_or_worst(judged[i]["normals.mean"]))
        depth = self._errors(heads[by_depth], features["test"], self.test)
        normals = self._errors(heads[by_normals], features["test"], self.test)
        values = {key: (depth if key.startswith("depth") else normals)[key] for key in depth}
        known = {key: value for key, value in values.items() if np.isfinite(value).any()}
        return Outcome(known, lambda place: self._predict_at(heads[by_depth], features["test"], place)[0])

    def _loss(self, outputs: Tensor, rows: Sequence[int], places: np.ndarray) -> Tensor:
        truth = [self._truth(rows[place]) for place in places]
        depth = torch.from_numpy(np.stack([d for d, _ in truth])).to(outputs.device)
        normals = torch.from_numpy(np.stack([n for _, n in truth])).to(outputs.device)
        predicted, predicted_normals = self._predict(outputs)
        known = depth > 0
        error = predicted[known].log() - depth[known].log()
        spread = (error.square().mean() - VARIANCE_FOCUS * error.mean() ** 2).clamp(min=1e-8).sqrt()
        facing = normals.isfinite().all(-1)
        cosine = (predicted_normals[facing] * normals[facing]).sum(-1)
        return spread + ((1 - cosine).mean() if facing.any() else 0.0)

    def _predict(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Depth `[N, size, size]` and unit normals `[N, size, size, 3]` of outputs `[N, L, BINS + 3]`."""
        side = int(outputs.shape[1] ** 0.5)
        maps = outputs.transpose(1, 2).unflatten(2, (side, side))
        maps = F.interpolate(maps, scale_factor=UPSAMPLED, mode="bilinear")
        weights = maps[:, :BINS].relu() + 0.1
        centres = torch.linspace(*self.range, BINS, device=outputs.device).reshape(1, BINS, 1, 1)
        depth = (weights * centres).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        size = (self.views.size, self.views.size)
        depth = F.interpolate(depth, size=size, mode="bilinear")[:, 0]
        start = torch.tensor([-1.0, -1.0, -2.0], device=outputs.device)  # with biases of one: facing the camera
        normals = F.interpolate(maps[:, BINS:], size=size, mode="bilinear") + start.reshape(1, 3, 1, 1)
        return depth, F.normalize(normals, dim=1).permute(0, 2, 3, 1)

    @torch.inference_mode()
    def _predict_at(self, head: Head, features: Features, place: int) -> tuple[np.ndarray, np.ndarray]:
        depth, normals = self._predict(head(features[torch.tensor([place])]))
        return depth[0].cpu().numpy(), normals[0].cpu().numpy()

    def _errors(self, head: Head, features: Features, images: ImageSet) -> dict[str, np.ndarray]:
        """Errors of each image."""
        found: list[dict[str, float]] = []
        for place in range(len(images)):
            depth, normals = self._predict_at(head, features, place)
            true_depth, true_normals = self._truth(images.rows[place])
            numbers, angles = depth_errors(depth, true_depth), normal_errors(normals, true_normals)
            found.append({f"depth.{k}": v for k, v in numbers.items()} | {f"normals.{k}": v for k, v in angles.items()})
        return {key: np.array([numbers[key] for numbers in found]) for key in found[0]}

    def keep(self, outcome: Outcome, count: int) -> Arrays:
        """A few views, and those where this encoder is worst."""
        error = outcome.values["depth.abs_rel"]
        choice = choose(np.arange(len(error)), error, count)
        rows = [self.test.rows[place] for place in choice.units]
        predicted = [kept_map(outcome.predictions(place)) for place in range(len(self.test))]
        return {
            "chosen": choice.units,
            "failed": choice.failed,
            "images": np.stack([kept_view(self.views.image(row)) for row in rows]),
            "truth": np.stack([kept_map(self._truth(row)[0]) for row in rows]),
            "predicted": np.stack(predicted).astype(np.float16),
            "error": error,
        }

    @staticmethod
    def draw(folder: Path, benchmark: str, kept: Mapping[str, Arrays]) -> list[Picture]:
        """One figure of the views that the first encoder chose, a row each, and one of those where it is worst."""
        failed = next(iter(kept.values()))["failed"]
        pictures = []
        for name, places in (("views", np.flatnonzero(~failed)), ("failures", np.flatnonzero(failed))):
            if len(places):
                path = folder / f"{benchmark}-depth-{name}.png"
                _draw(path, places, kept)
                caption = f"{benchmark}: depth of one view by a linear head, bright is near"
                pictures.append(Picture(path, caption, failure=name == "failures"))
        return pictures


def _draw(path: Path, places: np.ndarray, kept: Mapping[str, Arrays]) -> None:
    """Rows of the view, its true depth and the depth by each encoder, at places of the first encoder's choice."""
    first, columns = next(iter(kept.values())), 2 + len(kept)
    figure = Figure(figsize=(11, 11 / columns * len(places)), layout="constrained")
    axes = figure.subplots(len(places), columns, squeeze=False)
    for line, place in zip(axes, places, strict=True):
        truth, number = np.where(first["truth"][place] > 0, first["truth"][place], np.nan), first["chosen"][place]
        shades = {"cmap": "magma_r", "vmin": np.nanmin(truth), "vmax": np.nanmax(truth)}
        line[0].imshow(first["images"][place])
        line[1].imshow(truth, **shades)
        for ax, (name, own) in zip(line[2:], kept.items(), strict=True):
            ax.imshow(own["predicted"][number].astype(np.float32), **shades)
            ax.set_title(f"{name}: AbsRel {own['error'][number]:.3f}", fontsize=8)
    axes[0, 1].set_title("truth", fontsize=8)
    save(figure, axes, path)


def _mean_or_worst(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 180.0
