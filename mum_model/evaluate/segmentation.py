"""Semantic segmentation from patch tokens: nearest neighbours of patches, and a linear head."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from mum_model.evaluate.classification import TEMPERATURE, neighbours_vote
from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import Features, FeatureStore
from mum_model.evaluate.figures import kept_map, kept_view, save
from mum_model.evaluate.linear import LinearSettings, train_heads
from mum_model.evaluate.statistics import mean_iou
from mum_model.evaluate.task import Arrays, Outcome, Picture
from mum_model.evaluate.views import ImageSet, Views, sha256_of

NEIGHBOURS = 30
BANK = 100_000  # patches of training images among which neighbours are looked for
IGNORED = -1


class SegmentationTask:
    """Which class each pixel is of."""

    kind = "segmentation"

    def __init__(
        self,
        views: Views,
        rows: Mapping[str, Sequence[int]],
        read_labels: Callable[[int], np.ndarray],
        classes: int,
        settings: DictConfig,
        about: str,
    ):
        """Open the task.

        Args:
            views: The images.
            rows: Images for `train`, `val` and `test`.
            read_labels: Labels of a frame as stored, int64 `[H, W]`, `0..classes-1`, or -1 where not to be judged.
            classes: How many.
            settings: `evaluate` of the configuration.
            about: What it is judged on.
        """
        self.benchmark, self.about, self.views, self.classes = views.frames.name, about, views, classes
        self.name = f"{self.benchmark}: segmentation"
        self.settings = LinearSettings(**settings.linear)
        self.read_labels = read_labels
        self.splits = {split: ImageSet(views, rows[split]) for split in rows}
        self.test = self.splits["test"]
        self.groups = np.arange(len(self.test))  # images are independent
        self.content = sha256_of([*(images.identity for images in self.splits.values()), str(classes)])

    def labels(self, row: int) -> Tensor:
        """Labels of the square, int64 `[size, size]`, each pixel that of one stored pixel."""
        stored = self.views.square(row).cut(self.read_labels(row))
        size = self.views.size
        places = ((np.arange(size) + 0.5) / size)[:, None] * stored.shape
        y, x = places.astype(int).T
        return torch.from_numpy(stored[y[:, None], x])

    def judge(self, encoder: Encoder, store: FeatureStore, seed: int) -> Outcome:
        """Nearest neighbours among training patches; the head is trained on training images, chosen on validation."""
        features = {split: store.get(encoder, images, "patches") for split, images in self.splits.items()}
        train = self.splits["train"]

        def loss(outputs: Tensor, places: np.ndarray) -> Tensor:
            labels = torch.stack([self.labels(train.rows[place]) for place in places]).to(outputs.device)
            return F.cross_entropy(self._full_size(outputs), labels, ignore_index=IGNORED)

        heads = train_heads(
            lambda places: features["train"][torch.from_numpy(places)],
            loss,
            len(train),
            self.classes,
            self.settings,
            seed,
        )
        best = max(heads, key=lambda head: mean_iou(self._counts(head, features["val"], self.splits["val"])))
        bank, votes = self._bank(features["train"], encoder.patch_size, seed)

        def by_votes(tokens: Tensor) -> Tensor:
            return neighbours_vote(bank, votes, tokens[0], NEIGHBOURS, TEMPERATURE)[None]

        values = {
            "segmentation.linear_miou": self._counts(best, features["test"], self.test),
            "segmentation.knn_miou": self._counts(by_votes, features["test"], self.test),
        }
        return Outcome(values, lambda place: self._predict(best, features["test"], place).numpy())

    def _bank(self, features: Features, patch_size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Patches `[M, D]` and the share of each class in them `[M, classes]`; patches without a label are left out."""
        train = self.splits["train"]
        per_image = -(-BANK // len(train))
        generator = torch.Generator().manual_seed(seed)
        bank, votes = [], []
        for place in range(len(train)):
            labels = self.labels(train.rows[place])
            cells = labels.unfold(0, patch_size, patch_size).unfold(1, patch_size, patch_size).flatten(0, 1).flatten(1)
            shares = F.one_hot(cells.clamp(min=0), self.classes) * (cells != IGNORED).unsqueeze(-1)
            shares = shares.float().mean(dim=1)
            chosen = torch.randperm(len(cells), generator=generator)[:per_image]
            chosen = chosen[shares[chosen].sum(-1) > 0]
            tokens = features[torch.tensor([place])][0]
            bank.append(tokens[chosen.to(tokens.device)])
            votes.append(shares[chosen])
        known = torch.cat(bank)
        return known, torch.cat(votes).to(known.device)

    @torch.inference_mode()
    def _predict(self, outputs_of: Callable[[Tensor], Tensor], features: Features, place: int) -> Tensor:
        """Labels `[size, size]` of one image."""
        return self._full_size(outputs_of(features[torch.tensor([place])])).argmax(dim=1)[0].cpu()

    def _counts(self, outputs_of: Callable[[Tensor], Tensor], features: Features, images: ImageSet) -> np.ndarray:
        """Intersection and union of each image and class, `[images, classes, 2]`."""
        predicted = (self._predict(outputs_of, features, place) for place in range(len(images)))
        truth = (self.labels(row) for row in images.rows)
        pairs = zip(predicted, truth, strict=True)
        return np.stack([intersection_and_union(labels, true, self.classes) for labels, true in pairs])

    def _full_size(self, outputs: Tensor) -> Tensor:
        side = int(outputs.shape[1] ** 0.5)
        maps = outputs.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(maps, size=(self.views.size, self.views.size), mode="bilinear")

    def keep(self, outcome: Outcome, count: int) -> Arrays:
        """A few images with their labels."""
        places = np.linspace(0, len(self.test) - 1, min(count, len(self.test))).astype(int)
        rows = [self.test.rows[place] for place in places]
        predicted = [kept_map(outcome.predictions(place)) for place in range(len(self.test))]
        return {
            "chosen": places,
            "images": np.stack([kept_view(self.views.image(row)) for row in rows]),
            "truth": np.stack([kept_map(self.labels(row).numpy()) for row in rows]).astype(np.int16),
            "predicted": np.stack(predicted).astype(np.min_scalar_type(self.classes)),
            "classes": np.array(self.classes),
        }

    @staticmethod
    def draw(folder: Path, benchmark: str, kept: Mapping[str, Arrays]) -> list[Picture]:
        """The images with their true labels, and with those by each encoder."""
        first, columns = next(iter(kept.values())), 2 + len(kept)
        count = len(first["chosen"])
        figure = Figure(figsize=(11, 11 / columns * count), layout="constrained")
        axes = figure.subplots(count, columns, squeeze=False)
        shades = {"cmap": "tab20", "vmin": 0, "vmax": int(first["classes"]), "interpolation": "nearest"}
        for i, line in enumerate(axes):
            line[0].imshow(first["images"][i])
            line[1].imshow(np.where(first["truth"][i] == IGNORED, np.nan, first["truth"][i]), **shades)
            for ax, (name, own) in zip(line[2:], kept.items(), strict=True):
                ax.imshow(own["predicted"][first["chosen"][i]], **shades)
                ax.set_title(name, fontsize=8)
        axes[0, 1].set_title("truth", fontsize=8)
        path = folder / f"{benchmark}-segmentation.png"
        save(figure, axes, path)
        return [Picture(path, f"{benchmark}: labels by a linear head")]


def intersection_and_union(predicted: Tensor, true: Tensor, classes: int) -> np.ndarray:
    """Pixels of intersection and union of each class, over the pixels that have a label.

    Args:
        predicted: int64 `[...]`.
        true: int64 `[...]`, -1 where not to be judged.
        classes: How many.

    Returns:
        int64 `[classes, 2]`.
    """
    known = true != IGNORED
    p, t = predicted[known], true[known]
    both = torch.bincount(t[p == t], minlength=classes)
    either = torch.bincount(p, minlength=classes) + torch.bincount(t, minlength=classes) - both
    return torch.stack([both, either], dim=-1).numpy()
