"""Geometry as the objective: cameras, depth and points of all views of a scene, read off by heads.

Who says what is right is the difference: the dataset itself (`MultiView`), or another model (`Distillation`).
"""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mum_model.data.augmentation import Augmentation
from mum_model.data.batches import Sampler, ViewSampler
from mum_model.data.endless import EndlessRooms
from mum_model.data.posed import GeometrySource, OwnGeometry, PosedPack, PosedPacks
from mum_model.data.scenes import SceneIndex
from mum_model.data.teacher import TeacherFiles
from mum_model.errors import UserError
from mum_model.model import MultiViewConfig, MultiViewModel, MuM, MuMConfig, save_multiview
from mum_model.model.feedforward import FeedForward, decoder_config, take_decoder
from mum_model.model.multiview_heads import MultiViewOutput
from mum_model.model.multiview_loss import (
    MultiViewLoss,
    MultiViewTarget,
    distillation_loss,
    geometry_loss,
    known_geometry,
)
from mum_model.model.pixels import normalise_pixels
from mum_model.model.scenes import SceneLayout
from mum_model.pretrain.pictures import depth_picture
from mum_model.pretrain.start import load_start


class Geometry(ABC):
    """What the two objectives share; each is an `Objective`.

    Views are seen whole, all patches of them. Everything is said in the axes of the first view of a scene, and in a
    unit of the scene's own (`known_geometry`). Where a view lacks pose or depth, its terms are left out of the loss.
    """

    def __init__(self, cfg: DictConfig):
        """Take the settings.

        Args:
            cfg: The composed configuration; reads `model`, `objective` and `pretrain`.

        Raises:
            UserError: The encoder is to be frozen and there are no weights for it, views are to be mirrored, or the
                model is one of the ablations that see views otherwise.
        """
        self.cfg, self.settings, self.choices = cfg, cfg.pretrain, cfg.objective
        if self.choices.freeze_encoder and self.settings.start_from is None:
            raise UserError(
                f"objective={self.choices.name} with objective.freeze_encoder=true: a frozen encoder needs weights, "
                "name a run or a file with pretrain.start_from"
            )
        if self.settings.flip:
            raise UserError(
                f"pretrain.flip={self.settings.flip}: objective={self.choices.name} needs 0, "
                "since no camera at a view's pose sees it mirrored"
            )
        if self._mum.encoder_communication or self._mum.absolute_positions is not None:
            raise UserError(
                f"objective={self.choices.name}: not for the ablations model.encoder_communication and "
                "model.absolute_positions"
            )

    @abstractmethod
    def create_model(self) -> FeedForward:
        """Encoder, trunk and heads with fresh weights."""

    @abstractmethod
    def geometry(self, index: SceneIndex, sampler: ViewSampler, rank: int, world_size: int) -> GeometrySource:
        """Who says what is right.

        Args:
            index: The dataset.
            sampler: Has the sequences whose frames will be asked for.
            rank: Which share of them this rank checks.
            world_size: In how many shares they are checked.

        Returns:
            The source, checked as far as it can be.

        Raises:
            UserError: It has not what is needed.
        """

    @abstractmethod
    def compare(self, output: MultiViewOutput, target: MultiViewTarget) -> MultiViewLoss:
        """The loss by its parts."""

    def load_start(self, model: FeedForward) -> None:
        """Give the encoder the weights that `pretrain.start_from` names."""
        if self.settings.start_from is not None:
            self.take(model, self._start())

    def take(self, model: FeedForward, start: MuM) -> None:
        """Give a model what it takes of a MuM; more than the encoder where more fits."""
        model.encoder.load_state_dict(start.encoder.state_dict())

    def packs(self, frames: SceneIndex | EndlessRooms, sampler: Sampler, **shares: int) -> PosedPacks:
        """Views with their geometry, cropped alike."""
        settings = self.settings
        augmentation = Augmentation(settings.size, settings.crop_scale, tuple(settings.crop_ratio), flip=0.0)
        if isinstance(frames, EndlessRooms) or not isinstance(sampler, ViewSampler):
            raise UserError(
                f"paths.dataset=rendered: objective={self.choices.name} needs cameras and depth, which only a prepared "
                "dataset has; `mum prepare` renders one"
            )
        geometry = self.geometry(frames, sampler, shares["rank"], shares["world_size"])
        return PosedPacks(frames, sampler, augmentation, geometry, **shares)

    def inputs(self, pack: PosedPack, device: torch.device) -> tuple[Tensor, SceneLayout, MultiViewTarget]:
        """Views, scenes, and what the heads should say."""
        scenes = SceneLayout.of(pack.views, self.settings.views[1]).to(device)
        parts = (pack.images, pack.world2cam, pack.intrinsics, pack.depth)
        images, poses, intrinsics, depth = (part.to(device, non_blocking=True) for part in parts)
        points = None if pack.points is None else pack.points.to(device, non_blocking=True)
        return images, scenes, known_geometry(poses, intrinsics, depth, scenes, points)

    def loss(self, model: FeedForward, images: Tensor, scenes: SceneLayout, target: MultiViewTarget) -> Tensor:
        """The loss over all views of a pack, scalar float32.

        Args:
            model: To be trained.
            images: Views of all scenes end to end, uint8 `[F, 3, H, W]`.
            scenes: Which of them make a scene.
            target: What the heads should say.

        Returns:
            Scalar float32.
        """
        return self.compare(model(normalise_pixels(images), scenes), target).total

    def save(self, model: FeedForward, directory: Path) -> None:
        """Trunk and heads, as `load_multiview` loads them; with the encoder beside, `load_feedforward` does."""
        save_multiview(model.multiview, directory, self._mum)

    @torch.inference_mode()
    def picture(self, model: FeedForward, pack: PosedPack) -> np.ndarray:
        """The views of the longest scene, their known depth and what the model says."""
        images, _, target = self.inputs(pack, torch.device("cpu"))
        views = pack.views[0]
        frames = normalise_pixels(images[:views])
        predicted = model(frames, SceneLayout.of([views])).depth
        return depth_picture(frames, target.depth[:views], predicted)

    @property
    def _mum(self) -> MuMConfig:
        return MuMConfig(**self.cfg.model)

    def _start(self) -> MuM:
        start = MuM(self._mum)
        load_start(start, self.settings.start_from)
        return start


class MultiView(Geometry):
    """The protocol of the paper's multi-view evaluation, trained end to end: a new trunk on an encoder.

    Loss on the dataset's own poses and depth: 5 x camera (L1), depth (confidence and gradient), points (confidence and
    normals), as in VGGT (arXiv 2503.11651).
    """

    def create_model(self) -> FeedForward:
        """An encoder of the configuration's shape and a trunk of its own shape."""
        choices = self.choices
        config = MultiViewConfig(
            token_dim=self._mum.encoder_dim,
            dim=choices.dim,
            depth=choices.depth,
            heads=choices.heads,
            camera_depth=choices.camera_depth,
            dense_dim=choices.dense_dim,
            layer_norm_eps=self._mum.layer_norm_eps,
        )
        return FeedForward(MuM(self._mum).encoder, MultiViewModel(config), freeze_encoder=choices.freeze_encoder)

    def geometry(self, index: SceneIndex, sampler: ViewSampler, rank: int, world_size: int) -> OwnGeometry:
        """The dataset's own; some of the frames must have a pose or depth."""
        known = index.frames.select(["world2cam", "depth_offset"]).take(sampler.sequences.rows)
        if all(known[name].null_count == len(known) for name in known.column_names):
            raise UserError(
                f"{index.directory}: none of its frames has a pose or depth; objective=multiview learns from them"
            )
        return OwnGeometry(index)

    def compare(self, output: MultiViewOutput, target: MultiViewTarget) -> MultiViewLoss:
        """L1, confidence, gradients and normals."""
        return geometry_loss(output, target)


class Distillation(Geometry):
    """Distillation finetuning (MuM): the decoder stays as the trunk, heads are added, a teacher says what is right.

    Loss: unweighted squared error on cameras, depth and points.
    """

    def create_model(self) -> FeedForward:
        """Encoder and decoder of a MuM of the configuration's shape, and heads."""
        mum = MuM(self._mum)
        shape = decoder_config(self._mum, camera_depth=self.choices.camera_depth, dense_dim=self.choices.dense_dim)
        model = FeedForward(mum.encoder, MultiViewModel(shape), freeze_encoder=self.choices.freeze_encoder)
        take_decoder(model.multiview, mum)
        return model

    def take(self, model: FeedForward, start: MuM) -> None:
        """Encoder and decoder."""
        super().take(model, start)
        take_decoder(model.multiview, start)

    def geometry(self, index: SceneIndex, sampler: ViewSampler, rank: int, world_size: int) -> TeacherFiles:
        """The teacher's files; all that will be asked for is read once before anything is computed."""
        teacher = TeacherFiles(Path(self.choices.teacher), index)
        teacher.check(sampler.sequences.rows, rank, world_size)
        return teacher

    def compare(self, output: MultiViewOutput, target: MultiViewTarget) -> MultiViewLoss:
        """Squared errors."""
        return distillation_loss(output, target)
