"""The encoders that an evaluation compares: whatever gives a token for each patch of an image.

An encoder is named by a spec:

| spec | what it is |
|---|---|
| `run` | the encoder of `paths.run` |
| `random` | the architecture of `paths.run` with fresh weights, others for each seed |
| `random/NAME` | an architecture of timm with fresh weights |
| `pixels` | raw patches of the size that the run's encoder has, no encoder at all; `pixels/16` says the size |
| `timm/NAME` | any model of timm with its pretrained weights; `timm/local-dir:FOLDER` for weights on this machine |
| a folder | a run, an `encoder/` in timm's layout, or what `mum export` wrote |
| a file | `.onnx` of `mum export`; `.pth` or `.safetensors` under the authors' or CroCo's key names |
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from mum_model.errors import UserError
from mum_model.evaluate.encoders.base import Encoder
from mum_model.evaluate.encoders.onnx_file import OnnxEncoder
from mum_model.evaluate.encoders.pixels import PixelEncoder
from mum_model.evaluate.encoders.timm_model import TimmEncoder, create_timm_model
from mum_model.evaluate.encoders.weights import encoder_from_weights
from mum_model.model import MuM, MuMConfig, load_encoder

__all__ = ["Contestant", "Encoder", "open_contestants"]

NAMES = {"run": "mum"}
WEIGHTS = (".pth", ".pt", ".safetensors")
FILES = (".onnx", *WEIGHTS)


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison.

    Attributes:
        name: In the report and as a folder.
        description: Where it came from, in a few words.
        encoders: One for each seed; all the same where the spec leaves nothing to chance.
    """

    name: str
    description: str
    encoders: Sequence[Encoder]


def open_contestants(cfg: DictConfig) -> list[Contestant]:
    """Open the encoders that `encoder` lists.

    Args:
        cfg: The composed configuration; reads `encoder`, `seed`, `evaluate.seeds` and `paths`.

    Returns:
        In the order of the list; the first is the one that the others are compared with.

    Raises:
        UserError: A spec is not known, its files are missing or damaged, or two have the same name.
    """
    specs = [_named(entry) for entry in (cfg.encoder if isinstance(cfg.encoder, ListConfig) else [cfg.encoder])]
    names = [name for name, _ in specs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"encoder: two are named '{name}'; name them, as in encoder=[{{first: ...}},{{second: ...}}]"
            )
    seeds = range(cfg.seed, cfg.seed + cfg.evaluate.seeds)
    return [_contestant(name, spec, seeds, Path(cfg.paths.run)) for name, spec in specs]


def _named(entry: Any) -> tuple[str, str]:
    if isinstance(entry, DictConfig):
        if len(entry) != 1:
            raise UserError(f"encoder: {dict(entry)} must be one name with one encoder, as in {{dinov3: timm/NAME}}")
        ((name, spec),) = entry.items()
        return _checked_name(str(name)), str(spec)
    spec = str(entry)
    if spec.startswith(("pixels/", "random/")):
        return _checked_name(spec.replace("/", "-")), spec
    last = spec.rstrip("/").rpartition("/")[2].rpartition(":")[2] or spec
    return _checked_name(
        NAMES.get(spec, re.sub(r"[^A-Za-z0-9._-]", "_", Path(last).stem if _is_file(last) else last))
    ), spec


def _is_file(name: str) -> bool:
    return Path(name).suffix in FILES


def _checked_name(name: str) -> str:
    if name in ("figures", "ratio") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"encoder: '{name}' cannot name an encoder; use letters, digits, '.', '_' and '-'")
    return name


def _contestant(name: str, spec: str, seeds: range, run: Path) -> Contestant:
    if spec == "random":
        return Contestant(name, "the run's architecture, random weights", [_fresh_run(name, run, s) for s in seeds])
    if spec.startswith("random/"):
        architecture = spec.removeprefix("random/")
        fresh = [_fresh_timm(name, architecture, seed) for seed in seeds]
        return Contestant(name, f"timm's {architecture}, random weights", fresh)
    encoder, description = _open(name, spec, run)
    return Contestant(name, description, [encoder] * len(seeds))


def _open(name: str, spec: str, run: Path) -> tuple[Encoder, str]:
    """One encoder that no seed changes."""
    if spec == "run":
        return TimmEncoder(name, load_encoder(run / "encoder")), f"the encoder of {run}"
    if spec.startswith("pixels"):
        side = spec.removeprefix("pixels").removeprefix("/")
        patch_size = int(side) if side.isdecimal() else load_encoder(run / "encoder").patch_embed.patch_size[0]
        return PixelEncoder(name, patch_size), "raw patches, no encoder"
    if spec.startswith("timm/"):
        model = create_timm_model(spec.removeprefix("timm/"), pretrained=True)
        return TimmEncoder(name, model), f"timm's {spec.removeprefix('timm/')}"
    return _open_path(name, spec)


def _open_path(name: str, spec: str) -> tuple[Encoder, str]:
    path = Path(spec).expanduser()
    if (path / "encoder" / "config.json").is_file():
        return TimmEncoder(name, load_encoder(path / "encoder")), f"the encoder of {path}"
    if (path / "export.json").is_file():
        exported = json.loads((path / "export.json").read_text())
        return OnnxEncoder(name, path / exported["files"][0]["name"]), f"ONNX of {path}"
    if (path / "config.json").is_file():
        return TimmEncoder(name, load_encoder(path)), f"the encoder {path}"
    if path.suffix == ".onnx" and path.is_file():
        return OnnxEncoder(name, path), f"ONNX {path.name}"
    if path.suffix in WEIGHTS and path.is_file():
        model, kind = encoder_from_weights(path)
        return TimmEncoder(name, model), f"{kind}, {path.name}"
    raise UserError(
        f"encoder: '{spec}' is no encoder. Expected run, random, random/NAME, pixels, pixels/SIDE, timm/NAME, the "
        "folder of a run, encoder or export, or a file .onnx, .pth or .safetensors"
    )


def _fresh_run(name: str, run: Path, seed: int) -> Encoder:
    path = run / "model" / "config.json"
    if not path.is_file():
        raise UserError(f"encoder: 'random' takes its architecture from {path}, which is missing; or use random/NAME")
    config = MuMConfig(**json.loads(path.read_text()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TimmEncoder(name, MuM(config).encoder.eval())


def _fresh_timm(name: str, architecture: str, seed: int) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TimmEncoder(name, create_timm_model(architecture, pretrained=False))
