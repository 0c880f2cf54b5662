"""Weights that travel: the authors' key names, and folders that plain timm loads.

Two forms on disk, both safetensors beside a `config.json`, never pickle:

* `encoder/` is in timm's own layout, so `timm.create_model("local-dir:PATH", pretrained=True)` loads it;
* `model/` is a whole MuM, its weights under the authors' key names.

The `config.json` of an encoder names one of timm's own architectures together with every argument that matters, so a
timm without this project builds the very same network.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.eva import Eva
from torch import Tensor, nn

from mum_model.errors import UserError
from mum_model.files import written_whole
from mum_model.model.ablations import position_arguments
from mum_model.model.encoder import ENCODER_ARGUMENTS
from mum_model.model.multiview import MultiViewConfig, MultiViewModel
from mum_model.model.mum import MuM, MuMConfig

DECODER_KEYS = {
    "decoder.mask_token": "mask_token",
    "decoder.embed.": "decoder_embed.",
    "decoder.frame_blocks.": "decoder_frame_blocks.",
    "decoder.global_blocks.": "decoder_global_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.head.": "decoder_pred.",
}
"""Our prefix -> the authors' prefix; encoder keys only lose their `encoder.`."""

TIMM_ARCHITECTURE = {1e-5: "vit_small_patch16_dinov3", 1e-6: "vit_medium_patch16_rope_reg1_gap_256"}
"""Entries of timm that build an Eva with that LayerNorm epsilon, the one argument JSON cannot carry."""


def reference_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Weights under the authors' key names, with the RoPE periods that they keep in the file.

    Args:
        model: A `MuM`, giving the keys of `MuM_ViTLarge_BaseDecoder`, or an encoder, giving those of `MuM_ViTLarge`.

    Returns:
        Tensors by name; periods are float32 for a whole model and bfloat16 for an encoder, as released.
    """
    if isinstance(model, MuM):
        state = {_reference_key(key): value for key, value in model.state_dict().items()}
        if model.decoder.rope is None:
            return state
        periods = {
            "rope_embed.periods": model.encoder.rope.periods.clone(),
            "rope_embed_decoder.periods": model.decoder.rope.periods.clone(),
        }
        return state | periods
    return {**model.state_dict(), "rope_embed.periods": _periods(model).to(torch.bfloat16)}


def load_reference_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights that carry the authors' key names, strictly.

    Args:
        model: A `MuM` or an encoder; changed in place.
        state_dict: Weights of the released file of the same kind.

    Raises:
        UserError: Keys are missing or left over, a shape differs, or the RoPE periods are not those of this model;
            the message lists them and nothing is loaded.
    """
    expected = reference_state_dict(model)
    problems = _differences(expected, state_dict)
    if problems:
        raise UserError("these weights do not fit the model: " + "; ".join(problems))
    ours = model.state_dict()
    rename = _reference_key if isinstance(model, MuM) else str
    model.load_state_dict({key: state_dict[rename(key)] for key in ours}, strict=True)


def save_encoder(encoder: Eva, directory: Path, pretrained_cfg: Mapping[str, Any] | None = None) -> Path:
    """Write an encoder so that plain timm loads it: `timm.create_model("local-dir:PATH", pretrained=True)`.

    Args:
        encoder: One of the encoders registered here.
        directory: Where `model.safetensors` and `config.json` go; replaced whole.
        pretrained_cfg: What to add to timm's `pretrained_cfg`, for instance the input size of training.

    Returns:
        The directory.

    Raises:
        UserError: The LayerNorm epsilon is one that no entry of timm has.
    """
    eps = encoder.norm.eps
    if eps not in TIMM_ARCHITECTURE:
        raise UserError(f"model.layer_norm_eps={eps}: timm has an entry for {sorted(TIMM_ARCHITECTURE)} only")
    config = {
        "architecture": TIMM_ARCHITECTURE[eps],
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "global_pool": "",
        "model_args": {
            **ENCODER_ARGUMENTS,
            **position_arguments(None if encoder.rope is not None else encoder.patch_embed.img_size[0]),
            "patch_size": encoder.patch_embed.patch_size[0],
            "embed_dim": encoder.embed_dim,
            "depth": len(encoder.blocks),
            "num_heads": encoder.blocks[0].attn.num_heads,
        },
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "fixed_input_size": False,
            "pool_size": None,
            "mean": list(encoder.default_cfg["mean"]),
            "std": list(encoder.default_cfg["std"]),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "num_classes": 0,
            **(pretrained_cfg or {}),
        },
    }
    return _save(directory, encoder.state_dict(), config)


def load_encoder(directory: Path) -> Eva:
    """Load an encoder that `save_encoder` wrote, through plain timm.

    Args:
        directory: The folder with `model.safetensors` and `config.json`.

    Returns:
        The encoder in evaluation mode, float32, on the CPU.

    Raises:
        UserError: The folder lacks one of the two files.
    """
    _require_files(directory, "an encoder")
    return timm.create_model(f"local-dir:{directory}", pretrained=True).eval()


def save_mum(model: MuM, directory: Path) -> Path:
    """Write a whole MuM, encoder and decoder, its weights under the authors' key names.

    Args:
        model: The model.
        directory: Where `model.safetensors` and `config.json` go; replaced whole.

    Returns:
        The directory.
    """
    return _save(directory, reference_state_dict(model), asdict(model.config))


def load_mum(directory: Path) -> MuM:
    """Load a whole MuM that `save_mum` wrote.

    Args:
        directory: The folder with `model.safetensors` and `config.json`.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        UserError: A file is missing, it is another kind of model, or the weights do not fit the configuration.
    """
    _require_files(directory, "a model")
    try:
        config = MuMConfig(**json.loads((directory / "config.json").read_text()))
    except TypeError as error:
        raise UserError(
            f"{directory}: its config.json is not that of a MuM ({error}); of a run with another objective the encoder "
            "alone can be taken, as timm/local-dir:RUN/encoder"
        ) from error
    model = MuM(config)
    load_reference_state_dict(model, load_file(directory / "model.safetensors"))
    return model.eval()


def save_multiview(model: MultiViewModel, directory: Path, mum: MuMConfig | None = None) -> Path:
    """Write a multi-view model, without the encoder whose tokens it reads.

    Args:
        model: The model.
        directory: Where `model.safetensors` and `config.json` go; replaced whole.
        mum: The shape of the MuM whose encoder it reads, to be noted beside its own.

    Returns:
        The directory.
    """
    encoder = {} if mum is None else {"mum": asdict(mum)}
    return _save(directory, model.state_dict(), {"multiview": asdict(model.config), **encoder})


def load_multiview(directory: Path) -> MultiViewModel:
    """Load a multi-view model that `save_multiview` wrote.

    Args:
        directory: The folder with `model.safetensors` and `config.json`.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        UserError: A file is missing, is of another kind of model, or the weights do not fit the configuration.
    """
    _require_files(directory, "a multi-view model")
    config = json.loads((directory / "config.json").read_text()).get("multiview")
    if config is None:
        raise UserError(
            f"{directory}: its config.json has no 'multiview'; expected a multi-view model, as "
            "`save_multiview` writes it"
        )
    model = MultiViewModel(MultiViewConfig(**config))
    weights = load_file(directory / "model.safetensors")
    if problems := _differences(model.state_dict(), weights):
        raise UserError(f"{directory}: the weights do not fit its config.json: " + "; ".join(problems))
    model.load_state_dict(weights)
    return model.eval()


def _reference_key(key: str) -> str:
    for ours, theirs in DECODER_KEYS.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key.removeprefix("encoder.")


def _periods(encoder: nn.Module) -> Tensor:
    assert isinstance(encoder, Eva)
    return encoder.rope.periods


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps the given weights from being loaded, a line each."""
    problems = []
    if missing := sorted(expected.keys() - given.keys()):
        problems.append(f"missing: {', '.join(missing)}")
    if left_over := sorted(given.keys() - expected.keys()):
        problems.append(f"left over: {', '.join(left_over)}")
    for key in sorted(expected.keys() & given.keys()):
        ours, theirs = expected[key], given[key]
        if ours.shape != theirs.shape:
            problems.append(f"{key}: shape {list(theirs.shape)}, expected {list(ours.shape)}")
        elif key.endswith(".periods") and not torch.allclose(ours.float(), theirs.float(), rtol=1e-2):
            problems.append(f"{key}: the model was trained with other RoPE periods")  # 1e-2: bfloat16 rounds them
    return problems


def _require_files(directory: Path, what: str) -> None:
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: not the folder of {what}, it has no {name}")


def _save(directory: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    with written_whole(directory) as partial:
        save_file({key: value.contiguous() for key, value in state.items()}, partial / "model.safetensors")
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return directory
