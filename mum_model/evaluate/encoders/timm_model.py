"""Any model of timm as an encoder: its own patch size, mean and deviation, prefix tokens and final norm."""

import difflib
import hashlib
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.evaluate.encoders.base import Tokens


def create_timm_model(name: str, pretrained: bool) -> nn.Module:
    """Create a model of timm that takes images of any size, where it can.

    Args:
        name: As `timm.create_model` takes it, `local-dir:FOLDER` and `hf-hub:NAME` included.
        pretrained: Whether to load its weights.

    Returns:
        The model without a classifier, in evaluation mode.

    Raises:
        UserError: There is no such model, or its weights cannot be had.
    """
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"encoder: timm has no model '{name}'{hint}")
    try:
        return _create(name, pretrained)
    except Exception as error:  # whatever a hub client, a file system or a damaged file raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"encoder: the weights of '{name}' cannot be loaded ({reason}). Without a network, save them once in "
            "timm's layout (timm.models.save_for_hf) and use timm/local-dir:FOLDER"
        ) from error


def _create(name: str, pretrained: bool) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True).eval()
    except TypeError:  # not a vision transformer: convolutions take any size as they are
        return timm.create_model(name, pretrained=pretrained, num_classes=0).eval()


class TimmEncoder:
    """A model of timm that has `forward_intermediates`: vision transformers, ConvNeXt, ResNet and the like."""

    def __init__(self, name: str, model: Any):
        """Wrap a model.

        Args:
            name: In the report.
            model: In evaluation mode.

        Raises:
            UserError: The model has no `forward_intermediates`.
        """
        if not hasattr(model, "forward_intermediates"):
            raise UserError(f"encoder '{name}': {type(model).__name__} of timm gives no map of features")
        self.name, self._model = name, model
        self.patch_size = _patch_size(model)
        self.layers = len(model.blocks) if hasattr(model, "blocks") else len(model.feature_info)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = model.pretrained_cfg or model.default_cfg
        self._mean, self._deviation = (torch.tensor(settings[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        self.identity = _identity(model, f"{settings['mean']} {settings['std']} {self.patch_size}")

    @torch.inference_mode()
    def tokens(self, images: Tensor, layer: int) -> Tokens:
        """Tokens after the final norm, without class and register tokens; the class token is the summary."""
        self._model.to(images.device)
        pixels = (images.float() / 255 - self._mean.to(images.device)) / self._deviation.to(images.device)
        try:
            return (
                self._transformer(pixels, layer)
                if hasattr(self._model, "num_prefix_tokens")
                else self._map(pixels, layer)
            )
        except (AssertionError, IndexError) as error:
            side = "x".join(map(str, images.shape[-2:]))
            raise UserError(
                f"encoder '{self.name}': no tokens of {side} pixels after layer {layer} ({error})"
            ) from error

    def _transformer(self, pixels: Tensor, layer: int) -> Tokens:
        settings = {"indices": [layer], "norm": True, "output_fmt": "NLC", "intermediates_only": True}
        if not self._model.num_prefix_tokens:
            (patches,) = self._model.forward_intermediates(pixels, **settings)
            patches = self._final_norm(patches)
            return Tokens(patches, patches.mean(dim=1))
        ((patches, prefix),) = self._model.forward_intermediates(pixels, return_prefix_tokens=True, **settings)
        patches, prefix = self._final_norm(patches), self._final_norm(prefix)
        has_class_token = getattr(self._model, "cls_token", None) is not None
        return Tokens(patches, prefix[:, 0] if has_class_token else patches.mean(dim=1))

    def _final_norm(self, tokens: Tensor) -> Tensor:
        """Models that pool before their last norm keep it as `fc_norm` and have none of the other."""
        return self._model.fc_norm(tokens) if isinstance(self._model.norm, nn.Identity) else tokens

    def _map(self, pixels: Tensor, layer: int) -> Tokens:
        (maps,) = self._model.forward_intermediates(
            pixels, indices=[layer], norm=True, output_fmt="NCHW", intermediates_only=True
        )
        patches = maps.flatten(2).transpose(1, 2)
        return Tokens(patches, patches.mean(dim=1))


def _patch_size(model: Any) -> int:
    if hasattr(model, "patch_embed") and hasattr(model, "num_prefix_tokens"):
        return model.patch_embed.patch_size[0]
    return model.feature_info[-1]["reduction"]


def _identity(model: nn.Module, settings: str) -> str:
    digest = hashlib.sha256(f"{type(model).__name__} {settings} {model}".encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
