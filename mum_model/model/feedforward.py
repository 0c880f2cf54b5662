"""Images in, cameras, depth and points out: an encoder and a multi-view model on its patch tokens, as one network."""

from pathlib import Path

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from mum_model.model.interchange import load_encoder, load_multiview
from mum_model.model.multiview import MultiViewConfig, MultiViewModel
from mum_model.model.multiview_heads import MultiViewOutput
from mum_model.model.mum import MuM, MuMConfig
from mum_model.model.scenes import SceneLayout


class FeedForward(nn.Module):
    """An encoder that sees each view alone, and what puts the views of a scene together."""

    def __init__(self, encoder: Eva, multiview: MultiViewModel, *, freeze_encoder: bool):
        """Put them together.

        Args:
            encoder: One of the encoders registered here.
            multiview: Reads tokens of its width.
            freeze_encoder: Whether the encoder takes no gradient.
        """
        super().__init__()
        self.encoder, self.multiview, self.freeze_encoder = encoder, multiview, freeze_encoder
        encoder.requires_grad_(not freeze_encoder)

    def forward(self, images: Tensor, scenes: SceneLayout) -> MultiViewOutput:
        """Predict.

        Args:
            images: Views of all scenes end to end, `[N, 3, H, W]`, normalised by ImageNet's mean and deviation; H and
                W are multiples of the patch size. The first view of a scene is its reference.
            scenes: Which of them make a scene.

        Returns:
            Cameras, and maps of H x W.
        """
        height, width = images.shape[-2:]
        rows, columns = self.encoder.patch_embed.patch_size
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            tokens = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :]
        return self.multiview(tokens, scenes, (height // rows, width // columns), (height, width))


def load_feedforward(run: Path) -> FeedForward:
    """Load what a run with the objective `multiview` or `distil` left.

    Args:
        run: Its folder, with `encoder/` (`save_encoder`) and `model/` (`save_multiview`).

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        UserError: One of the two is missing or no such model.
    """
    return FeedForward(load_encoder(run / "encoder"), load_multiview(run / "model"), freeze_encoder=True).eval()


def decoder_config(mum: MuMConfig, *, camera_depth: int, dense_dim: int) -> MultiViewConfig:
    """The multi-view model whose trunk is the decoder of a MuM.

    Args:
        mum: Says the shape of the decoder.
        camera_depth: Blocks of the camera head.
        dense_dim: Channels within the depth and point heads.

    Returns:
        The shape of the model.
    """
    return MultiViewConfig(
        token_dim=mum.encoder_dim,
        dim=mum.decoder_dim,
        depth=mum.decoder_depth,
        heads=mum.decoder_heads,
        camera_depth=camera_depth,
        dense_dim=dense_dim,
        layer_scale=None,
        layer_norm_eps=mum.layer_norm_eps,
    )


def take_decoder(multiview: MultiViewModel, mum: MuM) -> None:
    """Give a multi-view model the trunk of a MuM: its decoder without what only predicts pixels.

    The camera tokens stand where MuM's decoder has the encoder's CLS token. They stay fresh, since MuM has no first
    view for them to mark; unlike the CLS token they have a query and a key in global attention.

    Args:
        multiview: Of the shape of `decoder_config`; changed in place.
        mum: Its decoder is copied.
    """
    for name in ("embed", "frame_blocks", "global_blocks"):
        getattr(multiview, name).load_state_dict(getattr(mum.decoder, name).state_dict())
