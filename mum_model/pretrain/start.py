"""Where a training starts from, if not from fresh weights."""

import logging
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from mum_model.errors import UserError
from mum_model.model import MuM, load_mum, load_reference_state_dict

log = logging.getLogger(__name__)

TIMM_PREFIX = "timm/"


def load_start(model: MuM, start_from: str) -> None:
    """Give a model the weights that the setting names.

    Args:
        model: Changed in place.
        start_from: A run folder or its `model/` (encoder and decoder); a file of the authors' release, `.pth` or
            `.safetensors`, of the whole model or of the encoder alone; or `timm/NAME`, any vision transformer of timm
            whose blocks have the encoder's shape (`timm/vit_large_patch16_224.mae`; `timm/local-dir:PATH` for one on
            disk). What is not given keeps its fresh weights.

    Raises:
        UserError: There is nothing there, or it does not fit the model.
    """
    if start_from.startswith(TIMM_PREFIX):
        _load_timm(model, start_from.removeprefix(TIMM_PREFIX))
        return
    path = Path(start_from)
    if path.is_dir():
        folder = path / "model" if (path / "model").is_dir() else path
        model.load_state_dict(_fitting(load_mum(folder).state_dict(), model, start_from))
        return
    if not path.is_file():
        raise UserError(
            f"pretrain.start_from={start_from}: no such file or folder; "
            "expected a run, weights of the authors' release, or timm/NAME"
        )
    weights = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    whole = any(key.startswith("decoder_") for key in weights)
    load_reference_state_dict(model if whole else model.encoder, weights)


def _load_pth(path: Path) -> Mapping[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise UserError(f"pretrain.start_from={path}: cannot be read as weights: {error}") from error


def _load_timm(model: MuM, name: str) -> None:
    try:
        given = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"pretrain.start_from=timm/{name}: timm cannot give these weights: {error}") from error
    expected = model.encoder.state_dict()
    model.encoder.load_state_dict(_fitting({k: v for k, v in given.items() if k in expected}, model.encoder, name))
    ignored = sorted(set(given) - set(expected))
    if ignored:
        log.info("timm/%s: not used, since the encoder has no such weights: %s", name, ", ".join(ignored))


def _fitting(given: Mapping[str, Tensor], module: torch.nn.Module, name: str) -> Mapping[str, Tensor]:
    expected = module.state_dict()
    missing = sorted(set(expected) - set(given))
    wrong = [
        f"{key} is {list(given[key].shape)}, expected {list(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    if missing or wrong:
        problems = "; ".join([*wrong[:5], *(f"{key} is missing" for key in missing[:5])])
        raise UserError(f"pretrain.start_from={name} does not fit the model of this configuration: {problems}")
    return given
