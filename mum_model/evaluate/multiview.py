"""Feed-forward multi-view geometry: the small model on frozen tokens of ten views, judged by its poses and its points.

The protocol is MuM's (arXiv 2511.17309) for VGGT's heads: pose AUC@30 over all pairs of a set of views, and the median
distance between the predicted and the true cloud, each way, after a similarity and point-to-point ICP.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mum_model.data.geometry import invert_pose, pixel_grid, relative_pose, transform, unproject
from mum_model.evaluate.clouds import Similarity, accuracy_and_completeness, refined_by_icp, similarity_between
from mum_model.evaluate.encoders import Encoder
from mum_model.evaluate.features import Features, FeatureStore
from mum_model.evaluate.figures import kept_view
from mum_model.evaluate.metrics import relative_pose_error
from mum_model.evaluate.multiview_figures import draw_scene
from mum_model.evaluate.multiview_lessons import Geometry, MultiViewLessons, MultiViewSettings, Sets, predict
from mum_model.evaluate.readers import Reader
from mum_model.evaluate.task import Arrays, Outcome, Picture, choose
from mum_model.evaluate.views import ImageSet, Views, sha256_of
from mum_model.model.multiview import MultiViewModel
from mum_model.model.multiview_heads import decode_cameras

KEPT_POINTS = 500  # of a set, for pictures


class Scene(NamedTuple):
    """The truth of a set of views, or what was predicted of it; in the axes of its first view.

    Attributes:
        poses: Takes points of the first view to each, `[N, 3, 4]`.
        points: Those whose truth is known, `[P, 3]`.
    """

    poses: np.ndarray
    points: np.ndarray


class JudgedSet(NamedTuple):
    """What was predicted of a set of views, and how far it is from the truth.

    Attributes:
        scene: The prediction, brought over the truth by a similarity.
        angles: Errors of the relative poses of all pairs in degrees, `[pairs]`.
        accuracy: Median distance of predicted to true points after ICP; not-a-number where no point is known.
        completeness: The same the other way round.
    """

    scene: Scene
    angles: np.ndarray
    accuracy: float
    completeness: float


class MultiViewTask:
    """Poses and points of sets of views."""

    kind = "multiview"

    def __init__(
        self,
        views: Views,
        sets: Sets,
        lessons: MultiViewLessons | str,
        settings: MultiViewSettings,
        about: str,
        icp: float | None = None,
    ):
        """Open the task.

        Args:
            views: The frames.
            sets: Rows of each set to judge on; their poses are known.
            lessons: What the model is trained on, or the name of the benchmark that has it.
            settings: How.
            about: What it is judged on.
            icp: Largest distance that ICP bridges, in the unit of the poses; None takes that of the settings.
        """
        self.benchmark, self.about, self.views, self.sets = views.frames.name, about, views, sets
        self.name = f"{self.benchmark}: multi-view geometry"
        self.lessons, self.settings, self.icp = lessons, settings, icp or settings.icp
        self.test = ImageSet(views, np.unique([row for rows in sets for row in rows]))
        self.groups = np.array([views.frames.scene(rows[0]) for rows in sets])
        self.geometry = Geometry(views, settings.map_side)

    @property
    def content(self) -> str:
        """SHA-256 of what the model is trained on and of what it is judged on."""
        assert isinstance(self.lessons, MultiViewLessons)
        return sha256_of([self.lessons.content, self.test.identity, repr(self.sets), str(self.icp)])

    def judge(self, encoder: Encoder, store: FeatureStore, seed: int) -> Outcome:
        """Train the model on the encoder's tokens, unless it was just trained for another benchmark, and judge it."""
        assert isinstance(self.lessons, MultiViewLessons)
        reader = self.lessons.learn(encoder, store, seed)
        features = store.get(encoder, self.test, "patches")
        judged = [self._judge_set(reader, features, rows) for rows in self.sets]
        values = {
            "multiview.auc30": _padded([one.angles for one in judged]),
            "multiview.accuracy": np.array([one.accuracy for one in judged]),
            "multiview.completeness": np.array([one.completeness for one in judged]),
        }
        known = {key: value for key, value in values.items() if np.isfinite(value).any()}
        return Outcome(known, [one.scene for one in judged])

    def _judge_set(self, reader: Reader[MultiViewModel], features: Features, rows: Sequence[int]) -> JudgedSet:
        tokens = features[torch.tensor([self.test.place(row) for row in rows])]
        with torch.inference_mode():
            said = predict(reader, tokens, [len(rows)], self.settings.map_side)
        true, known = self._truth(rows)
        poses, _ = decode_cameras(said.cameras.cpu().double())
        scene = Scene(poses.numpy(), said.points.cpu().double().numpy()[known])
        angles = np.array(pairwise_errors(scene.poses, true.poses))
        aligned = _aligned(scene, true)
        if not len(true.points):
            return JudgedSet(aligned, angles, np.nan, np.nan)
        refined = refined_by_icp(aligned.points, true.points, self.icp)
        return JudgedSet(aligned, angles, *accuracy_and_completeness(refined, true.points))

    def _truth(self, rows: Sequence[int]) -> tuple[Scene, np.ndarray]:
        """The truth of a set, and of which pixels it is known `[N, side, side]`."""
        world2cam, intrinsics, depth = self.geometry.of(rows)
        known = (depth > 0) & np.isfinite(depth) & np.isfinite(intrinsics).all((1, 2))[:, None, None]
        pixels = pixel_grid(*depth.shape[1:])
        poses = np.stack([relative_pose(world2cam[0], pose) for pose in world2cam])
        points = [
            transform(invert_pose(pose), unproject(pixels[seen], z[seen], lens))
            for pose, lens, z, seen in zip(poses, intrinsics, depth, known, strict=True)
        ]
        return Scene(poses, np.concatenate(points)), known

    def keep(self, outcome: Outcome, count: int) -> Arrays:
        """A few sets and those where this encoder is worst; of every set what this encoder predicted."""
        error = np.nanmean(outcome.values["multiview.auc30"], axis=1)
        choice = choose(np.arange(len(error)), error, max(1, count // 3))  # a picture of ten views is large
        chosen = choice.units.tolist()
        truth = [self._truth(self.sets[i])[0] for i in chosen]
        width = max(len(rows) for rows in self.sets)
        return {
            "chosen": choice.units,
            "failed": choice.failed,
            "labels": np.array([self.views.frames.scene(self.sets[i][0]) for i in chosen]),
            "images": _padded([np.stack([kept_view(self.views.image(row)) for row in self.sets[i]]) for i in chosen]),
            "true_cameras": _padded([_centres(scene) for scene in truth], width),
            "true_points": _padded([_some(scene.points) for scene in truth], KEPT_POINTS),
            "cameras": _padded([_centres(scene) for scene in outcome.predictions], width).astype(np.float32),
            "points": _padded([_some(scene.points) for scene in outcome.predictions], KEPT_POINTS).astype(np.float32),
            "error": error,
        }

    @staticmethod
    def draw(folder: Path, benchmark: str, kept: Mapping[str, Arrays]) -> list[Picture]:
        """A picture of each set that the first encoder chose."""
        first = next(iter(kept.values()))
        pictures = []
        for i, number in enumerate(first["chosen"]):
            path = folder / f"{benchmark}-multiview-{number:04d}.png"
            predicted = {
                name: (own["cameras"][number], own["points"][number], float(own["error"][number]))
                for name, own in kept.items()
            }
            draw_scene(path, first["images"][i], first["true_cameras"][i], first["true_points"][i], predicted)
            caption = f"{benchmark}: {first['labels'][i]}, cameras and points from above and from the side"
            pictures.append(Picture(path, caption, bool(first["failed"][i])))
        return pictures


def pairwise_errors(poses: np.ndarray, true: np.ndarray) -> list[float]:
    """Errors of the relative poses of all pairs of views.

    Args:
        poses: Estimated, `[N, 3, 4]`, all in one world, whichever.
        true: `[N, 3, 4]`, in one world.

    Returns:
        Degrees, see `relative_pose_error`; one for each of the `N (N - 1) / 2` pairs.
    """
    return [
        relative_pose_error(relative_pose(poses[i], poses[j]), relative_pose(true[i], true[j]))
        for i, j in combinations(range(len(poses)), 2)
    ]


def _aligned(scene: Scene, true: Scene) -> Scene:
    """A predicted scene brought over the truth, by its points or, where no true point is known, by its cameras."""
    by = (scene.points, true.points) if len(true.points) else (_centres(scene), _centres(true))
    over = similarity_between(*by)
    return Scene(_moved(scene.poses, over), over(scene.points))


def _moved(poses: np.ndarray, over: Similarity) -> np.ndarray:
    """Poses in the world that the similarity leads to."""
    rotation = poses[:, :, :3] @ over.rotation.T
    centres = over(np.stack([invert_pose(pose)[:, 3] for pose in poses]))
    return np.concatenate([rotation, -rotation @ centres[:, :, None]], axis=2)


def _centres(scene: Scene) -> np.ndarray:
    return np.stack([invert_pose(pose)[:, 3] for pose in scene.poses])


def _some(points: np.ndarray) -> np.ndarray:
    return points[np.linspace(0, len(points) - 1, min(KEPT_POINTS, len(points))).astype(int)]


def _padded(arrays: Sequence[np.ndarray], length: int = 0) -> np.ndarray:
    """Arrays of different lengths as one: zeros behind images, not-a-number behind the rest."""
    length = max(length, *(len(array) for array in arrays))
    fill = 0 if arrays[0].dtype == np.uint8 else np.nan
    padded = np.full((len(arrays), length, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for target, array in zip(padded, arrays, strict=True):
        target[: len(array)] = array
    return padded
