"""Turns a trained encoder into ONNX files, each checked against PyTorch and on the task before it is let out."""

import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from mum_model.data.scenes import open_dataset
from mum_model.data.streaming import LocalCopies
from mum_model.errors import UserError
from mum_model.export.contract import input_contract
from mum_model.export.matching import Pair, cropped, draw_pairs, end_point_error
from mum_model.export.onnx_graph import GraphForm, open_dimensions, require_open_graph, round_up, write_graph
from mum_model.export.provenance import described, provenance
from mum_model.export.reconstruction import FILE_NAME, export_reconstruction
from mum_model.export.variants import Variant, file_name, quantise_dynamically, quantise_statically
from mum_model.export.verification import (
    Encoder,
    OnnxGraph,
    Reference,
    measured_agreement,
    median_milliseconds,
    noise,
    require_parity,
)
from mum_model.files import write_json, written_whole
from mum_model.inference import graph_input
from mum_model.model import load_encoder

logger = logging.getLogger(__name__)

VERSIONS_OF = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")


def export(cfg: DictConfig) -> Path:
    """Export the encoder of a run to ONNX with batch, height and width left open, and verify every variant.

    Args:
        cfg: Reads `<paths.run>/encoder`, `<paths.run>/model` (for `export.reconstruction`), `paths.dataset` (for
            variants in fewer bits), `export`, `machine.threads` and `seed`; writes the folder `paths.export`.

    Returns:
        The folder with `encoder.onnx`, a file for each further variant that is good enough, `reconstruction.onnx` where
        wanted, and `export.json`: agreement and matching error by variant, what was refused and why, latency, files
        with their SHA-256, origin, versions, and what each graph takes and gives. An encoder above 1.5 GB keeps its
        weights beside the graph, since a protobuf message ends at 2 GB.

    Raises:
        UserError: There is no encoder, the graph is tied to one size, the float32 features differ from PyTorch's by
            more than `export.max_abs_difference`, or another variant is wanted and there is no dataset to judge it on.
            Nothing is left behind then, and an older export stays as it was.
    """
    source = Path(cfg.paths.run) / "encoder"
    if not source.is_dir():
        raise UserError(f"paths.run={cfg.paths.run}: no folder {source} to export; `mum pretrain` writes it")
    if cfg.machine.threads is not None:
        torch.set_num_threads(cfg.machine.threads)
    target = Path(cfg.paths.export)
    with written_whole(target) as folder:
        write_json(folder / "export.json", _Export(cfg, source, folder).write())
    return target


@dataclass(frozen=True)
class _Material:
    """What variants in fewer bits are made and judged with.

    Attributes:
        calibration: Pixels of training views, RGB uint8 `[1, H, W, 3]` each.
        pairs: Validation views with known matches; none where the dataset has no depth.
    """

    calibration: list[np.ndarray]
    pairs: list[Pair]


class _Export:
    """One export: writes the variants into a folder, keeps the good ones, and describes them."""

    def __init__(self, cfg: DictConfig, source: Path, folder: Path):
        self._settings, self._seed, self._folder, self._source = cfg.export, cfg.seed, folder, source
        encoder = load_encoder(source)
        if encoder.rope is None:
            raise UserError(
                f"{source}: its positions are added to the tokens (model.absolute_positions, an ablation); only "
                "encoders with RoPE are exported"
            )
        self._contract = input_contract(encoder, cfg.export.input, cfg.export.blocks)
        self._patch_size: int = self._contract["patch_size"]
        self._reference = Reference(encoder, self._contract)
        self._origin = provenance(Path(cfg.paths.run), cfg.paths.dataset)
        self._threads = torch.get_num_threads()
        self._images = noise(cfg.export.checks, self._patch_size, cfg.seed)
        self._reduced: list[Variant] = [variant for variant in cfg.export.variants if variant != "fp32"]
        self._material = self._read_material(cfg) if self._reduced else _Material([], [])

    def write(self) -> dict[str, Any]:
        """Write and judge every variant; returns what `export.json` says."""
        self._trace("fp32", torch.float32)
        described_input = self._contract["input"]
        require_open_graph(self._path("fp32"), {described_input["name"]: open_dimensions(described_input)})
        graph = self._open("fp32")
        require_parity(self._reference, graph, self._images, self._settings.max_abs_difference)
        facts: dict[Variant, dict[str, Any]] = {"fp32": self._facts("fp32", graph)}
        logger.info("%s agrees with PyTorch to %.1e", file_name("fp32"), facts["fp32"]["max_abs_difference"])
        refused = {}
        for variant in self._reduced:
            self._write_reduced(variant)
            judged = self._facts(variant, self._open(variant))
            reason = self._refusal(judged, facts["fp32"])
            if reason is None:
                facts[variant] = judged
            else:
                logger.warning("%s is left out: %s", variant, reason)
                refused[variant] = reason
                self._remove(variant)
        reconstruction = self._reconstruction() if self._settings.reconstruction else None
        return {
            "variants": facts,
            "refused": refused,
            "reconstruction": reconstruction,
            "files": [described(file) for file in sorted(self._folder.iterdir())],
            **self._origin,
            "opset": self._settings.opset,
            "operators": self._settings.operators,
            "versions": {name: version(name) for name in VERSIONS_OF},
            "latency": self._latency(list(facts)),
            "contract": self._contract,
        }

    def _read_material(self, cfg: DictConfig) -> _Material:
        index, settings = open_dataset(cfg.paths.dataset, LocalCopies.of(cfg)), self._settings
        rows = np.random.default_rng(self._seed).permutation(index.rows("train"))[: settings.calibration_images]
        views = [cropped(index.image(row), self._patch_size)[np.newaxis] for row in rows]
        pairs = draw_pairs(index, self._patch_size, settings.pairs, self._seed)
        if not pairs:
            logger.warning("%s has no known matches: variants are judged by their cosine alone", index.directory)
        return _Material(views, pairs)

    def _path(self, variant: Variant) -> Path:
        return self._folder / file_name(variant)

    def _open(self, variant: Variant) -> OnnxGraph:
        return OnnxGraph(self._path(variant), self._contract, self._threads)

    def _form(self, dtype: torch.dtype) -> GraphForm:
        return GraphForm(self._settings.opset, self._settings.operators, self._settings.trace_size, dtype)

    def _reconstruction(self) -> dict[str, Any]:
        form, limit = self._form(torch.float32), self._settings.max_abs_difference
        source, path = self._source.with_name("model"), self._folder / FILE_NAME
        return export_reconstruction(source, path, form, self._images, limit, self._threads, self._origin)

    def _trace(self, variant: Variant, dtype: torch.dtype) -> None:
        # Tracing changes the encoder it gets, so it is another copy than the reference.
        encoder = load_encoder(self._source)
        write_graph(encoder, self._path(variant), self._contract, self._form(dtype), self._origin)

    def _write_reduced(self, variant: Variant) -> None:
        if variant == "fp16":
            self._trace(variant, torch.float16)
        elif variant == "int8_dynamic":
            quantise_dynamically(self._path("fp32"), self._path(variant))
        else:
            inputs = (graph_input(pixels, self._contract["input"]) for pixels in self._material.calibration)
            quantise_statically(self._path("fp32"), self._path(variant), inputs)

    def _facts(self, variant: Variant, graph: OnnxGraph) -> dict[str, Any]:
        pairs = self._material.pairs
        return {
            "file": file_name(variant),
            **measured_agreement(self._reference, graph, [*self._images, *self._material.calibration[:1]]),
            "matching_epe": end_point_error(pairs, graph.patch_tokens, self._patch_size) if pairs else None,
        }

    def _refusal(self, facts: dict[str, Any], fp32: dict[str, Any]) -> str | None:
        """Why a variant is not good enough, or None."""
        settings = self._settings
        if not facts["min_cosine"] >= settings.min_cosine:
            return f"cosine with PyTorch {facts['min_cosine']:.5f} is below export.min_cosine={settings.min_cosine}"
        if facts["matching_epe"] is None:
            return None
        ratio = facts["matching_epe"] / fp32["matching_epe"]
        if ratio > settings.max_epe_ratio:
            return f"matching EPE is {ratio:.3f} x that of fp32, above export.max_epe_ratio={settings.max_epe_ratio}"
        return None

    def _remove(self, variant: Variant) -> None:
        for file in self._folder.glob(f"{file_name(variant)}*"):
            file.unlink()

    def _latency(self, variants: list[Variant]) -> dict[str, Any]:
        settings = self._settings.latency
        height, width = (round_up(side, self._patch_size) for side in settings.size)
        encoders: dict[str, Encoder] = {"pytorch": self._reference}
        encoders |= {variant: self._open(variant) for variant in variants}
        pixels = np.zeros((1, height, width, 3), np.uint8)
        return {
            "images": list(pixels.shape),
            "runs": settings.runs,
            "threads": self._threads,
            "milliseconds": median_milliseconds(encoders, pixels, settings.runs),
        }
