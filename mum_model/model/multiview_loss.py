"""What the multi-view heads are trained on: geometry that is known in part, or what a teacher says.

Targets are not-a-number where nothing is known, and such places count in no loss.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mum_model.model.multiview_heads import MultiViewOutput, encode_cameras
from mum_model.model.scenes import SceneLayout

CAMERA_WEIGHT = 5.0
CONFIDENCE_PRICE = 0.2  # what VGGT weighs the logarithm of confidence with
GRADIENT_SCALES = 3


class MultiViewTarget(NamedTuple):
    """What the heads should say of N views; not-a-number where unknown.

    Attributes:
        cameras: Codes of `encode_cameras`, `[N, 14]`.
        depth: z-depth, `[N, h, w]`.
        points: In the axes of the first view of the scene, `[N, h, w, 3]`.
    """

    cameras: Tensor
    depth: Tensor
    points: Tensor


class MultiViewLoss(NamedTuple):
    """The loss by what it is on; scalars.

    Attributes:
        camera: Of the cameras, weighted.
        depth: Of the depth.
        points: Of the points.
    """

    camera: Tensor
    depth: Tensor
    points: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.camera + self.depth + self.points


def known_geometry(
    world2cam: Tensor, intrinsics: Tensor, depth: Tensor, scenes: SceneLayout, world_points: Tensor | None = None
) -> MultiViewTarget:
    """The target of views with known geometry, in the axes and the unit of each scene (VGGT, section 3.4).

    The unit is the mean distance of a scene's points from its first view; where none is known, the mean distance of
    its other cameras.

    Args:
        world2cam: Poses `[N, 3, 4]`, not-a-number where unknown.
        intrinsics: Camera matrices in pixels of the depth maps `[N, 3, 3]`, not-a-number where unknown.
        depth: z-depth `[N, h, w]`, 0 or infinite where unknown.
        scenes: Which of the N views make a scene.
        world_points: What each pixel shows, in the axes of the world, not-a-number where unknown `[N, h, w, 3]`; from
            depth and cameras when absent. A teacher that has a head for them says other points than its depth does.

    Returns:
        The target, float32. Without the pose of the first view a scene has neither cameras nor points, but depth.
    """
    poses, intrinsics = world2cam.double(), intrinsics.double()
    depth = torch.where((depth > 0) & depth.isfinite(), depth, torch.nan).double()
    references = poses[scenes.reference]
    poses = _relative(poses, references)
    local = _unproject(depth, intrinsics)
    rotation, translation = poses[:, :, :3], poses[:, :, 3]
    if world_points is None:
        points = (local - translation[:, None, None]) @ rotation[:, None]  # R^T (x - t)
    else:
        points = world_points.double() @ references[:, None, :, :3].mT + references[:, None, None, :, 3]
    parts = zip(*(part.split(scenes.views) for part in (points, local, translation)), strict=True)
    unit = torch.stack([_unit(*part) for part in parts])
    unit = unit.repeat_interleave(torch.tensor(scenes.views, device=unit.device), output_size=len(depth))
    fields_of_view = _fields_of_view(intrinsics, depth.shape[1:])
    scaled = torch.cat([rotation, (translation / unit[:, None])[..., None]], -1)
    cameras = encode_cameras(scaled, fields_of_view)
    return MultiViewTarget(
        cameras.float(), (depth / unit[:, None, None]).float(), (points / unit[:, None, None, None]).float()
    )


def geometry_loss(output: MultiViewOutput, target: MultiViewTarget) -> MultiViewLoss:
    """The loss on known geometry: 5 x camera (L1), depth (confidence, gradient), points (confidence, normals).

    Args:
        output: What the heads say.
        target: What is known.

    Returns:
        The loss; a part of which nothing is known is zero.
    """
    cameras, depth, points = (_compare(said, meant) for said, meant in _pairs(output, target))
    seen = points.known[..., 0]
    length = points.difference.square().sum(-1).clamp(min=1e-12).sqrt()  # the root has no slope at zero
    return MultiViewLoss(
        CAMERA_WEIGHT * _mean(cameras.difference.abs(), cameras.known),
        _confident(depth.difference.abs(), output.depth_confidence, depth.known) + _gradients(depth),
        _confident(length, output.points_confidence, seen) + _normals_apart(output.points, target.points),
    )


def distillation_loss(output: MultiViewOutput, target: MultiViewTarget) -> MultiViewLoss:
    """The unweighted squared error against what a teacher says (MuM, distillation finetuning).

    Args:
        output: What the heads say.
        target: What the teacher said.

    Returns:
        The loss; a part of which the teacher said nothing is zero.
    """
    compared = (_compare(said, meant) for said, meant in _pairs(output, target))
    return MultiViewLoss(*(_mean(part.difference.square(), part.known) for part in compared))


class _Compared(NamedTuple):
    """A difference, zero where the target is unknown, and where it is known."""

    difference: Tensor
    known: Tensor


def _pairs(output: MultiViewOutput, target: MultiViewTarget) -> list[tuple[Tensor, Tensor]]:
    return [(output.cameras, target.cameras), (output.depth, target.depth), (output.points, target.points)]


def _compare(said: Tensor, meant: Tensor) -> _Compared:
    known = meant.isfinite()
    # Filled in before anything is computed: a slope of zero times not-a-number would be not-a-number.
    return _Compared(said - torch.where(known, meant, said.detach()), known)


def _relative(poses: Tensor, reference: Tensor) -> Tensor:
    rotation = poses[:, :, :3] @ reference[:, :, :3].mT
    return torch.cat([rotation, poses[:, :, 3:] - rotation @ reference[:, :, 3:]], dim=-1)


def _unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points `[N, h, w, 3]` in the axes of each view."""
    height, width = depth.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device) + 0.5, torch.arange(width, device=depth.device) + 0.5, indexing="ij"
    )
    fx, fy, cx, cy = (intrinsics[:, i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return torch.stack([(x - cx) / fx * depth, (y - cy) / fy * depth, depth], dim=-1)


def _unit(points: Tensor, local: Tensor, translation: Tensor) -> Tensor:
    """Length of the unit of one scene: by its points, else by those of each view alone, else by its cameras."""
    candidates = points.flatten(0, 2), local.flatten(0, 2), translation[1:]
    means = torch.stack([_mean(lengths, lengths > 0) for lengths in (c.norm(dim=-1) for c in candidates)])
    best = (means > 0).int().argmax()  # the first of them; all without a look at the numbers on the host
    return torch.where(means[best] > 0, means[best], 1.0)


def _fields_of_view(intrinsics: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape
    focal = torch.stack([intrinsics[:, 0, 0] / width, intrinsics[:, 1, 1] / height], dim=-1)
    return 2 * torch.atan(0.5 / focal)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the known, zero where nothing is."""
    return torch.where(known, values, 0).sum() / known.sum().clamp(min=1)


def _confident(errors: Tensor, confidence: Tensor, known: Tensor) -> Tensor:
    return _mean(errors * confidence - CONFIDENCE_PRICE * confidence.log(), known)


def _gradients(compared: _Compared) -> Tensor:
    """L1 of the differences of the error between neighbours, at three scales."""
    total = compared.difference.new_zeros(())
    for scale in range(GRADIENT_SCALES):
        error, known = (t[:, :: 2**scale, :: 2**scale] for t in compared)
        for axis in (1, 2):
            both = known & known.roll(-1, axis)
            total = total + _mean(error.diff(dim=axis).abs(), both.narrow(axis, 0, both.shape[axis] - 1))
    return total / GRADIENT_SCALES


def _normals_apart(points: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine between the normals of predicted and true points."""
    known = _normals(target).isfinite().all(-1)
    return _mean(1 - F.cosine_similarity(_normals(points), _normals(target.nan_to_num()), dim=-1), known)


def _normals(points: Tensor) -> Tensor:
    """Cross products of central differences, `[N, h - 2, w - 2, 3]`."""
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    return torch.linalg.cross(across, down)
