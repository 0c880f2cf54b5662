"""Heads that read geometry from the tokens of all views of a scene: cameras, depth, and points, as in VGGT.

All is said in the axes of the first view of each scene and in a unit of the scene's own: the mean distance of its
points from that view is one. Cameras are OpenCV's and poses take points of the first view to the view.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn

from mum_model.model.alternating import attend_scenes, scene_block, unrotated
from mum_model.model.scenes import SceneLayout

LEVELS = 4
"""How many depths of the trunk the dense heads read, as in DPT."""

CAMERA_CODE = 14
"""Numbers that say a camera: rotation row by row (9), translation (3), horizontal and vertical field of view (2)."""


class MultiViewOutput(NamedTuple):
    """What the heads say of N views, with h x w predicted pixels each.

    Attributes:
        cameras: Codes of `encode_cameras`, `[N, 14]`; the nine numbers of a rotation need not be one yet.
        depth: z-depth, positive, `[N, h, w]`.
        depth_confidence: Above 1, `[N, h, w]`.
        points: In the axes of the first view of the scene, `[N, h, w, 3]`.
        points_confidence: Above 1, `[N, h, w]`.
    """

    cameras: Tensor
    depth: Tensor
    depth_confidence: Tensor
    points: Tensor
    points_confidence: Tensor


def encode_cameras(poses: Tensor, fields_of_view: Tensor) -> Tensor:
    """Write cameras as the numbers that the camera head predicts.

    Args:
        poses: Takes points of the first view of the scene to the view, `[..., 3, 4]`.
        fields_of_view: Horizontal and vertical, in radians, `[..., 2]`.

    Returns:
        Codes `[..., 14]`.
    """
    return torch.cat([poses[..., :3].flatten(-2), poses[..., 3], fields_of_view], dim=-1)


def decode_cameras(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Read cameras; the inverse of `encode_cameras`, with the rotation that is nearest to the nine numbers.

    Args:
        codes: `[..., 14]`.

    Returns:
        Poses `[..., 3, 4]` and fields of view in radians `[..., 2]`.
    """
    rotation, translation, fields_of_view = codes.split([9, 3, 2], dim=-1)
    return torch.cat([nearest_rotation(rotation), translation.unsqueeze(-1)], dim=-1), fields_of_view


def nearest_rotation(numbers: Tensor) -> Tensor:
    """The rotation matrix of least squared distance, by singular values (Levinson et al., 2020).

    Args:
        numbers: Nine numbers, row by row, `[..., 9]`.

    Returns:
        Of determinant 1, `[..., 3, 3]`.
    """
    u, _, vh = torch.linalg.svd(numbers.unflatten(-1, (3, 3)))
    proper = torch.ones_like(u[..., 0])
    proper[..., 2] = torch.linalg.det(u @ vh)
    return u * proper.unsqueeze(-2) @ vh


class CameraHead(nn.Module):
    """Cameras from one token a view: blocks of attention among the views of a scene, then a linear layer.

    VGGT's head refines its answer four times; this one answers once.
    """

    def __init__(self, level_dim: int, dim: int, depth: int, heads: int, layer_norm_eps: float):
        """Build the head.

        Args:
            level_dim: Width of what it reads.
            dim: Width of its blocks.
            depth: Number of blocks.
            heads: Attention heads.
            layer_norm_eps: Epsilon of every LayerNorm.
        """
        super().__init__()
        self.embed = nn.Sequential(LayerNorm(level_dim, eps=layer_norm_eps), nn.Linear(level_dim, dim))
        self.blocks = nn.ModuleList([scene_block(dim, heads, layer_norm_eps) for _ in range(depth)])
        self.norm = LayerNorm(dim, eps=layer_norm_eps)
        self.output = nn.Linear(dim, CAMERA_CODE)
        self.head_dim = dim // heads

    def forward(self, tokens: Tensor, scenes: SceneLayout) -> Tensor:
        """Codes `[N, 14]` of one token a view `[N, D]`."""
        x = self.embed(tokens).unsqueeze(1)
        rope = unrotated(x.new_zeros(len(x), 2 * self.head_dim))  # views carry no place
        for block in self.blocks:
            x = attend_scenes(block, x, rope, scenes)
        upright = torch.cat([torch.eye(3).flatten(), torch.zeros(3), torch.ones(2)])
        return self.output(self.norm(x[:, 0])) + upright.to(x)


class Residual(nn.Module):
    """Two convolutions beside the identity, DPT's unit."""

    def __init__(self, dim: int):
        """Build the unit for `dim` channels."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, dim, h, w]` of the same."""
        return x + self.layers(x)


class DenseHead(nn.Module):
    """Maps of some channels from tokens of four depths, coarse to fine (DPT, arXiv 2103.13413)."""

    def __init__(self, level_dim: int, dim: int, channels: int, layer_norm_eps: float):
        """Build the head.

        Args:
            level_dim: Width of the tokens.
            dim: Channels within.
            channels: Of the map.
            layer_norm_eps: Epsilon of the LayerNorm.
        """
        super().__init__()
        self.norm = LayerNorm(level_dim, eps=layer_norm_eps)
        self.project = nn.ModuleList([nn.Conv2d(level_dim, dim, 1) for _ in range(LEVELS)])
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(dim, dim, 4, stride=4),
                nn.ConvTranspose2d(dim, dim, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(dim, dim, 3, stride=2, padding=1),
            ]
        )
        self.read = nn.ModuleList([Residual(dim) for _ in range(LEVELS)])
        self.fuse = nn.ModuleList([Residual(dim) for _ in range(LEVELS)])
        self.narrow = nn.Conv2d(dim, dim // 2, 3, padding=1)
        self.output = nn.Sequential(
            nn.Conv2d(dim // 2, dim // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(dim // 2, channels, 1)
        )

    def forward(self, levels: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Compute the map.

        Args:
            levels: Patch tokens of four depths, the first depth first, `[N, L, D]` each.
            grid: Rows and columns of the patch grid.
            size: Height and width of the map.

        Returns:
            `[N, channels, *size]`.
        """
        maps = [self.norm(tokens).transpose(1, 2).unflatten(2, grid) for tokens in levels]
        maps = [
            resize(project(m)) for project, resize, m in zip(self.project, self.resize, maps, strict=True)
        ]  # 4, 2, 1 and 1/2 times the grid
        x = torch.zeros_like(maps[-1])
        for i in reversed(range(LEVELS)):
            x = self.fuse[i](_scaled(x, maps[i].shape[-2:]) + self.read[i](maps[i]))
        x = self.narrow(_scaled(x, (8 * grid[0], 8 * grid[1])))
        return self.output(_scaled(x, size))


class MultiViewHeads(nn.Module):
    """Camera, depth and point heads on whatever network mixes the views."""

    def __init__(
        self,
        *,
        level_dim: int,
        dim: int,
        heads: int,
        camera_depth: int,
        dense_dim: int,
        layer_norm_eps: float,
    ):
        """Build the heads.

        Args:
            level_dim: Width of the tokens that they read.
            dim: Width of the camera head.
            heads: Attention heads of the camera head.
            camera_depth: Blocks of the camera head.
            dense_dim: Channels within the depth and point heads; even.
            layer_norm_eps: Epsilon of every LayerNorm.
        """
        super().__init__()
        self.camera = CameraHead(level_dim, dim, camera_depth, heads, layer_norm_eps)
        self.depth = DenseHead(level_dim, dense_dim, 2, layer_norm_eps)
        self.points = DenseHead(level_dim, dense_dim, 4, layer_norm_eps)

    def forward(
        self, levels: Sequence[Tensor], scenes: SceneLayout, grid: tuple[int, int], size: tuple[int, int]
    ) -> MultiViewOutput:
        """Predict.

        Args:
            levels: Tokens of four depths of the trunk, the last last, `[N, 1 + L, D]` each; the first token of a view
                stands for all of it.
            scenes: Which of the N views make a scene.
            grid: Rows and columns of the patch grid.
            size: Height and width of the maps.

        Returns:
            The prediction, float32.
        """
        cameras = self.camera(levels[-1][:, 0], scenes).float()
        patches = [tokens[:, 1:] for tokens in levels]
        depth, depth_doubt = self.depth(patches, grid, size).float().unbind(1)
        points, points_doubt = self.points(patches, grid, size).float().split([3, 1], dim=1)
        points = points.permute(0, 2, 3, 1)
        return MultiViewOutput(
            cameras,
            depth.exp(),
            1 + depth_doubt.exp(),
            points.sign() * points.abs().expm1(),  # far points are a matter of scale, too
            1 + points_doubt[:, 0].exp(),
        )


def spread(depth: int) -> list[int]:
    """Which of `depth` layers the four levels are, evenly to the last; with fewer than four some are taken twice."""
    return [-(-depth * level // LEVELS) - 1 for level in range(1, LEVELS + 1)]


def _scaled(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear")
