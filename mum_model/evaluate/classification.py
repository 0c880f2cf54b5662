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
from mum_model.evaluate.figures import KEPT_SIDE, kept_view, save
from mum_model.evaluate.linear import LinearSettings, train_heads
from mum_model.evaluate.task import Arrays, Outcome, Picture
from mum_model.evaluate.views import ImageSet, Views, sha256_of

NEIGHBOURS = 20
TEMPERATURE = 0.07  # DINO (arXiv 2104.14294), as the number of neighbours
COLUMNS = 6  # of a picture, at least: a single image would fill it


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

    kind = "classification"

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
        labels = [str(self.labels[split].tolist()) for split in self.splits]
        self.content = sha256_of([*(images.identity for images in self.splits.values()), *labels])

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

    def keep(self, outcome: Outcome, count: int) -> Arrays:
        """Images that this encoder's head takes for another class."""
        wrong = np.flatnonzero(outcome.values["classification.linear_top1"] == 0)[:count]
        side = min(KEPT_SIDE, self.views.size)
        images = [kept_view(self.views.image(self.test.rows[place])) for place in wrong]
        return {
            "chosen": wrong,
            "images": np.array(images, np.uint8).reshape(-1, side, side, 3),
            "truth": self.labels["test"].numpy()[wrong],
            "predicted": outcome.predictions,
            "classes": np.array(self.classes),
        }

    @staticmethod
    def draw(folder: Path, benchmark: str, kept: Mapping[str, Arrays]) -> list[Picture]:
        """The images that the first encoder's head takes for another class, with what every encoder said."""
        first = next(iter(kept.values()))
        count = len(first["chosen"])
        if not count:
            return []
        figure = Figure(figsize=(11, 2.8), layout="constrained")
        axes = figure.subplots(1, max(count, COLUMNS), squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for i, (ax, place) in enumerate(zip(axes.flat, first["chosen"], strict=False)):
            ax.imshow(first["images"][i])
            said = "\n".join(f"{name}: {own['classes'][own['predicted'][place]]}" for name, own in kept.items())
            ax.set_title(f"is {first['classes'][first['truth'][i]]}\n{said}", fontsize=7)
        path = folder / f"{benchmark}-classification.png"
        save(figure, axes, path)
        return [Picture(path, f"{benchmark}: images that the first encoder takes for another class", failure=True)]
