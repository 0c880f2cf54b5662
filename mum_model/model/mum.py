"""MuM: multi-view masked image modelling, a masked autoencoder over any number of views of a scene."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.model.ablations import fix_positions, let_views_communicate, position_arguments
from mum_model.model.decoder import MultiViewDecoder
from mum_model.model.encoder import DEFAULT_LAYER_NORM_EPS, ENCODER_SIZES, encode_visible, initialise
from mum_model.model.masking import PatchMask, normalise_patches, patchify, select, uniform_mask
from mum_model.model.scenes import SceneLayout


@dataclass(frozen=True, kw_only=True)
class MuMConfig:
    """The shape of a MuM.

    Attributes:
        encoder_dim: Width of the encoder.
        encoder_depth: Blocks of the encoder.
        encoder_heads: Attention heads of the encoder.
        decoder_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder, frame-wise and global together; even.
        decoder_heads: Attention heads of the decoder.
        patch_size: Side of a patch in pixels.
        layer_norm_eps: Epsilon of every LayerNorm.
        reference_view: Whether the first view of each scene of several is seen whole and not predicted, as CroCo does
            and MuM does not: an ablation of the paper. A single view is masked in any case.
        encoder_communication: Whether every second block of the encoder attends over the visible patches of all views
            of the scene: an ablation of the paper.
        absolute_positions: Side in pixels of square views whose positions are added to the tokens of encoder and
            decoder as MAE does, by fixed sines and cosines, instead of RoPE: an ablation of the paper. Views of
            another size get the encoder's positions resampled, as in timm. None for RoPE.
    """

    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    patch_size: int = 16
    layer_norm_eps: float = DEFAULT_LAYER_NORM_EPS
    reference_view: bool = False
    encoder_communication: bool = False
    absolute_positions: int | None = None

    def __post_init__(self) -> None:
        for part in ("encoder", "decoder"):
            dim, heads = getattr(self, f"{part}_dim"), getattr(self, f"{part}_heads")
            if dim % heads or (dim // heads) % 4:
                raise UserError(
                    f"model.{part}_dim={dim} with model.{part}_heads={heads}: "
                    "each head must be a multiple of 4 wide, as axial RoPE needs"
                )
        if self.decoder_depth % 2:
            raise UserError(
                f"model.decoder_depth={self.decoder_depth}: must be even, "
                "since frame-wise and global blocks come in pairs"
            )
        if self.absolute_positions is not None and self.absolute_positions % self.patch_size:
            raise UserError(
                f"model.absolute_positions={self.absolute_positions}: the side of the views, "
                f"a multiple of model.patch_size={self.patch_size}"
            )
        if self.reference_view and self.encoder_communication:
            raise UserError(
                "model.reference_view and model.encoder_communication: one at a time, "
                "since a reference has more visible patches than the views it would communicate with"
            )


def _config(size: str, decoder_dim: int, decoder_depth: int, decoder_heads: int) -> MuMConfig:
    encoder = ENCODER_SIZES[size]
    return MuMConfig(
        encoder_dim=encoder["embed_dim"],
        encoder_depth=encoder["depth"],
        encoder_heads=encoder["num_heads"],
        decoder_dim=decoder_dim,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
    )


MUM_SIZES: dict[str, MuMConfig] = {
    "tiny": _config("tiny", decoder_dim=128, decoder_depth=4, decoder_heads=4),
    "small": _config("small", decoder_dim=256, decoder_depth=8, decoder_heads=8),
    "base": _config("base", decoder_dim=512, decoder_depth=8, decoder_heads=16),
    "large": _config("large", decoder_dim=768, decoder_depth=12, decoder_heads=16),
    "huge": _config("huge", decoder_dim=1024, decoder_depth=24, decoder_heads=16),
}
"""Encoder and decoder by size; base, large and huge as in the authors' code (github.com/davnords/MuM)."""


class MuMOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        loss: Scalar: squared error on normalised pixels, averaged over the masked patches of all views.
        prediction: Predicted normalised pixels of every patch, `[B*S, L, P*P*3]`.
        mask: `[B*S, L]`, 1 where the patch was removed.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class MuM(nn.Module):
    """A masked autoencoder over the views of a scene (MuM, CVPR 2026, arXiv 2511.17309)."""

    def __init__(self, config: MuMConfig):
        """Build the model with fresh weights, drawn from torch's global generator.

        Args:
            config: Its shape.
        """
        super().__init__()
        self.config = config
        self.encoder = timm.create_model(
            "mum_vit_large_patch16",
            embed_dim=config.encoder_dim,
            depth=config.encoder_depth,
            num_heads=config.encoder_heads,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            **position_arguments(config.absolute_positions),
        )
        if config.absolute_positions is not None:
            fix_positions(self.encoder)
        if config.encoder_communication:
            let_views_communicate(self.encoder)
        self.decoder = MultiViewDecoder(
            encoder_dim=config.encoder_dim,
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            rotary=config.absolute_positions is None,
        )
        initialise(self)

    def forward(self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None) -> MuMOutput:
        """Mask every view, encode what is visible of each alone, and predict the rest from all views together.

        Args:
            images: Views `[B, S, 3, H, W]`, normalised by ImageNet's mean and deviation; H and W are multiples of
                the patch size and need not be equal.
            mask_ratio: Share of the patches of each view that is removed.
            noise: `[B*S, L]`; the smallest are kept. Drawn uniformly from torch's global generator when absent.

        Returns:
            Loss, prediction and mask.

        Raises:
            ValueError: The images are not divisible by the patch size, or the mask leaves nothing to see or predict.
        """
        scenes = SceneLayout.of([images.shape[1]] * images.shape[0]).to(images.device)
        patches, mask, tokens = self._see_and_fill_in(images.flatten(0, 1), scenes, mask_ratio, noise)
        prediction = self.decoder.predict(tokens)
        target, _, _ = normalise_patches(self._hidden(patches, mask, scenes))
        loss = _error(self._hidden(prediction, mask, scenes), target)
        removed = torch.zeros(patches.shape[:2], device=images.device).scatter_(1, mask.masked, 1.0)
        if self.config.reference_view:
            removed[list(scenes.references)] = 0.0
        return MuMOutput(loss, prediction, removed)

    def masked_loss(
        self,
        frames: Tensor,
        scenes: SceneLayout,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        *,
        normalise_target: bool = True,
    ) -> Tensor:
        """The loss alone, of scenes of any lengths packed into one batch: what training computes.

        Every frame has as many masked patches, so this is the mean over the scenes' own losses, weighted by their
        views. Pixels are predicted for masked patches only.

        Args:
            frames: Views of all scenes end to end, `[F, 3, H, W]`, normalised as in `forward`.
            scenes: Which of them make a scene.
            mask_ratio: Share of the patches of each view that is removed.
            noise: `[F, L]`; the smallest are kept. Drawn uniformly from torch's global generator when absent.
            normalise_target: Whether each patch is to be predicted with zero mean and unit variance, as in the paper,
                or as it is, an ablation of it.

        Returns:
            Scalar.

        Raises:
            ValueError: As `forward`.
        """
        patches, mask, tokens = self._see_and_fill_in(frames, scenes, mask_ratio, noise)
        target = self._hidden(patches, mask, scenes)
        if normalise_target:
            target, _, _ = normalise_patches(target)
        return _error(self.decoder.predict(self._hidden(tokens, mask, scenes)), target)

    def _hidden(self, tokens: Tensor, mask: PatchMask, scenes: SceneLayout) -> Tensor:
        """The tokens that are to be predicted: the masked ones, of all views but the references."""
        if self.config.reference_view:
            return select(tokens[list(scenes.others)], mask.masked[list(scenes.others)])
        return select(tokens, mask.masked)

    def _see_and_fill_in(
        self, frames: Tensor, scenes: SceneLayout, mask_ratio: float, noise: Tensor | None
    ) -> tuple[Tensor, PatchMask, Tensor]:
        """The pixels of all patches `[F, L, P*P*3]`, the mask, and the decoder's tokens `[F, L, D]`."""
        grid = self._grid(frames, mask_ratio)
        if noise is None:
            noise = torch.rand(len(frames), grid[0] * grid[1], device=frames.device)
        mask = uniform_mask(noise, mask_ratio)
        patches = patchify(frames, self.config.patch_size)
        if self.config.reference_view:
            filled = self._encode_beside_references(patches, mask, scenes, grid)
        else:
            encoded = encode_visible(self.encoder, patches, mask.visible, grid, scenes)
            filled = self.decoder.fill_in(encoded, mask.visible, grid)
        return patches, mask, self.decoder(filled, scenes, grid)

    def _encode_beside_references(
        self, patches: Tensor, mask: PatchMask, scenes: SceneLayout, grid: tuple[int, int]
    ) -> Tensor:
        """References whole, the other views by their visible patches: the decoder's input, in the order of views."""
        all_patches = torch.arange(patches.shape[1], device=patches.device)
        seen = {
            scenes.references: all_patches.expand(len(scenes.references), -1),
            scenes.others: mask.visible[list(scenes.others)],
        }
        parts = [
            self.decoder.fill_in(
                encode_visible(self.encoder, patches[list(views)], visible, grid, scenes), visible, grid
            )
            for views, visible in seen.items()
            if views
        ]
        order = torch.tensor(scenes.references + scenes.others, device=patches.device).argsort()
        return torch.cat(parts)[order]

    def _grid(self, frames: Tensor, mask_ratio: float) -> tuple[int, int]:
        height, width = frames.shape[-2:]
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(f"images are {height} x {width} pixels: both must be multiples of the patch size {patch}")
        rows, columns = height // patch, width // patch
        if not 0 < int(rows * columns * (1 - mask_ratio)) < rows * columns:
            raise ValueError(
                f"mask_ratio={mask_ratio} of {rows * columns} patches must leave some visible and some masked"
            )
        return rows, columns


def _error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, in float32."""
    return (prediction.float() - target).square().mean()


def create_mum(size: str = "large", **overrides: int | float) -> MuM:
    """Create a MuM with fresh weights.

    Args:
        size: `tiny`, `small`, `base`, `large` or `huge`.
        **overrides: Fields of `MuMConfig` that differ from that size.

    Returns:
        The model.

    Raises:
        UserError: No such size or field, or a shape that cannot be built.
    """
    if size not in MUM_SIZES:
        raise UserError(f"model size '{size}' is not known: expected one of {', '.join(MUM_SIZES)}")
    try:
        config = replace(MUM_SIZES[size], **overrides)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"model: {error}; expected fields are {', '.join(MuMConfig.__dataclass_fields__)}") from error
    return MuM(config)
