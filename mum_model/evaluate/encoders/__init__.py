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

Wildcards in a path list every match (`outputs/run/checkpoints/step-*`), `SPEC@3` takes the tokens after block 3, and
`SPEC@*` those after each block, all of them side by side.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig

from mum_model.errors import UserError
from mum_model.evaluate.encoders.base import Encoder
from mum_model.evaluate.encoders.onnx_file import OnnxEncoder
from mum_model.evaluate.encoders.pixels import PixelEncoder
from mum_model.evaluate.encoders.specs import WEIGHTS, Spec, parse_specs
from mum_model.evaluate.encoders.timm_model import TimmEncoder, create_timm_model
from mum_model.evaluate.encoders.weights import encoder_from_weights
from mum_model.model import MuM, MuMConfig, load_encoder

__all__ = ["Contestant", "Encoder", "Place", "open_contestants"]


@dataclass(frozen=True)
class Place:
    """A place in a series.

    Attributes:
        series: `layer` or `step`.
        number: Block, from 0, or steps of training.
    """

    series: Literal["layer", "step"]
    number: int


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison.

    Attributes:
        name: In the report and as a folder.
        description: Where it came from, in a few words.
        encoders: One for each seed; all the same where the spec leaves nothing to chance.
        layer: Block whose tokens are judged; -1 is the last.
        place: Where it stands in a series of layers or of checkpoints.
    """

    name: str
    description: str
    encoders: Sequence[Encoder]
    layer: int
    place: Place | None


def open_contestants(cfg: DictConfig) -> list[Contestant]:
    """Open the encoders that `encoder` lists.

    Args:
        cfg: The composed configuration; reads `encoder`, `seed`, `evaluate.seeds` and `paths`.

    Returns:
        In the order of the list; the first is the one that the others are compared with.

    Raises:
        UserError: A spec is not known, its files are missing or damaged, it has no such layer, or two have one name.
    """
    seeds = range(cfg.seed, cfg.seed + cfg.evaluate.seeds)
    return [one for spec in parse_specs(cfg.encoder) for one in _contestants(spec, seeds, Path(cfg.paths.run))]


def _contestants(spec: Spec, seeds: range, run: Path) -> list[Contestant]:
    encoders, description = _encoders(spec.name, spec.source, seeds, run)
    depth = encoders[0].layers
    if spec.layer is None:
        place = None if spec.step is None else Place("step", spec.step)
        return [Contestant(spec.name, description, encoders, -1, place)]
    if spec.layer != "*" and int(spec.layer) >= depth:
        raise UserError(f"encoder: '{spec.source}@{spec.layer}': its layers are 0 to {depth - 1}")
    layers = range(depth) if spec.layer == "*" else [int(spec.layer)]
    names = [f"{spec.name}-layer{layer}" if spec.layer == "*" else spec.name for layer in layers]
    return [
        Contestant(name, f"{description}, after block {layer}", encoders, layer, Place("layer", layer))
        for name, layer in zip(names, layers, strict=True)
    ]


def _encoders(name: str, source: str, seeds: range, run: Path) -> tuple[list[Encoder], str]:
    """The encoder of each seed, and where it came from."""
    if source == "random":
        return [_fresh_run(name, run, seed) for seed in seeds], "the run's architecture, random weights"
    if source.startswith("random/"):
        architecture = source.removeprefix("random/")
        return [_fresh_timm(name, architecture, seed) for seed in seeds], f"timm's {architecture}, random weights"
    encoder, description = _open(name, source, run)
    return [encoder] * len(seeds), description


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
        return OnnxEncoder(name, path / exported["variants"]["fp32"]["file"]), f"ONNX of {path}"
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
    content = json.loads(path.read_text())
    config = MuMConfig(**content.get("mum", content))  # a multi-view model notes it beside its own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TimmEncoder(name, MuM(config).encoder.eval())


def _fresh_timm(name: str, architecture: str, seed: int) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TimmEncoder(name, create_timm_model(architecture, pretrained=False))
