"""Classification of images by their summary vector: nearest neighbours as in DINO, and a linear head."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import FeatureStore
from mum_model.evaluate.figures import save
from mum_model.evaluate.linear import LinearSettings, train_heads
from mum_model.evaluate.task import Outcome, Picture
from mum_model.evaluate.views import ImageSet, Views

NEIGHBOURS = 20
TEMPERATURE = 0.07  # DINO (arXiv 2104.14294), as the number of neighbours


def neighbours_vote(bank: Tensor, votes: Tensor, queries: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Votes of the nearest neighbours by cosine similarity, weighted by its exponential.

    Args:
        bank: `[M, D]`.
        votes: What each of the bank votes for, `[M, classes]`.
        queries: `[N, D]`.
        neighbours: How many vote; all of a smaller bank.
        temperature: Of the weights.

    Returns:
        Shares of the votes `[N, classes]`.
    """
    bank = F.normalize(bank, dim=-1)
    shares = []
    for part in F.normalize(queries, dim=-1).split(256):
        similarity, nearest = (part @ bank.T).topk(min(neighbours, len(bank)), dim=-1)
        weights = (similarity / temperature).softmax(dim=-1)
        shares.append((weights.unsqueeze(-1) * votes[nearest]).sum(dim=1))
    return torch.cat(shares)


class ClassificationTask:
    """Which class an image is of."""

    def __init__(
        self, views: Views, rows: Mapping[str, Sequence[int]], classes: Sequence[str], settings: DictConfig, about: str
    ):
        """Open the task.

        Args:
            views: The images; the scene of a frame is its class.
            rows: Images for `train`, `val` and `test`.
            classes: Names.
            settings: `evaluate` of the configuration.
            about: What it is judged on.
        """
        self.benchmark, self.about, self.views = views.frames.name, about, views
        self.name = f"{self.benchmark}: classification"
        self.settings = LinearSettings(**settings.linear)
        self.classes = list(classes)
        number = {name: i for i, name in enumerate(self.classes)}
        self.splits = {split: ImageSet(views, rows[split]) for split in rows}
        self.labels = {
            split: torch.tensor([number[views.frames.scene(row)] for row in images.rows])
            for split, images in self.splits.items()
        }
        self.test = self.splits["test"]
        self.groups = np.arange(len(self.test))  # images are independent

    def judge(self, encoder: Encoder, store: FeatureStore, seed: int) -> Outcome:
        """Nearest neighbours among training and validation images; the head trained on the one, chosen on the other."""
        summary = {}
        for split, images in self.splits.items():
            summary[split] = store.get(encoder, images, "summary")[torch.arange(len(images))]
        place = summary["train"].device
        labels = {split: value.to(place) for split, value in self.labels.items()}
        bank = torch.cat([summary["train"], summary["val"]])
        votes = F.one_hot(torch.cat([labels["train"], labels["val"]]), len(self.classes)).float()
        by_neighbours = neighbours_vote(bank, votes, summary["test"], NEIGHBOURS, TEMPERATURE).argmax(dim=-1)
        heads = train_heads(
            lambda places: summary["train"][torch.from_numpy(places).to(place)],
            lambda outputs, places: F.cross_entropy(outputs, labels["train"][torch.from_numpy(places).to(place)]),
            len(summary["train"]),
            len(self.classes),
            self.settings,
            seed,
        )
        best = max(heads, key=lambda head: float((head(summary["val"]).argmax(-1) == labels["val"]).float().mean()))
        by_head = best(summary["test"]).argmax(dim=-1)
        right = {"knn": by_neighbours == labels["test"], "linear": by_head == labels["test"]}
        values = {f"classification.{kind}_top1": value.cpu().numpy().astype(float) for kind, value in right.items()}
        return Outcome(values, by_head.cpu().numpy())

    def draw(self, folder: Path, outcomes: Mapping[str, Outcome], count: int) -> list[Picture]:
        """Images that the first encoder's head takes for another class, with what every encoder said."""
        first = next(iter(outcomes.values()))
        wrong = np.flatnonzero(first.values["classification.linear_top1"] == 0)[:count]
        if not len(wrong):
            return []
        figure = Figure(figsize=(11, 2.8), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, place in zip(axes.flat, wrong, strict=False):
            ax.imshow(self.views.image(self.test.rows[place]))
            said = "\n".join(
                f"{name}: {self.classes[outcome.predictions[place]]}" for name, outcome in outcomes.items()
            )
            ax.set_title(f"is {self.classes[int(self.labels['test'][place])]}\n{said}", fontsize=7)
        path = folder / f"{self.benchmark}-classification.png"
        save(figure, axes, path)
        return [Picture(path, f"{self.benchmark}: images that the first encoder takes for another class", failure=True)]
