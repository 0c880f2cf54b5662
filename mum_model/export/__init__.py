"""Turns a trained encoder into one ONNX file that runs anywhere, checked against PyTorch before it is let out."""

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from mum_model.errors import UserError
from mum_model.export.contract import input_contract
from mum_model.export.onnx_graph import require_open_graph, write_graph
from mum_model.export.verification import median_latency, open_session, require_parity
from mum_model.files import write_json, written_whole
from mum_model.model import load_encoder

logger = logging.getLogger(__name__)

ONNX_FILE = "encoder.onnx"
VERSIONS_OF = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")


def export(cfg: DictConfig) -> Path:
    """Export the encoder of a run to ONNX with batch, height and width left open, and verify it.

    Args:
        cfg: Reads `<paths.run>/encoder`, `export`, `machine.threads` and `seed`; writes the folder `paths.export`.

    Returns:
        The folder with `encoder.onnx` and `export.json`: parity by size, latency, files with their SHA-256, versions,
        and the input contract. An encoder above 1.5 GB keeps its weights beside it in `encoder.onnx.data`, since a
        protobuf message ends at 2 GB.

    Raises:
        UserError: There is no encoder, the graph is tied to one size, or its features differ from PyTorch's by more
            than `export.max_abs_difference`. Nothing is left behind then, and an older export stays as it was.
    """
    source = Path(cfg.paths.run) / "encoder"
    if not source.is_dir():
        raise UserError(f"paths.run={cfg.paths.run}: no folder {source} to export; `mum pretrain` writes it")
    if cfg.machine.threads is not None:
        torch.set_num_threads(cfg.machine.threads)
    target = Path(cfg.paths.export)
    with written_whole(target) as folder:
        write_json(folder / "export.json", _export_into(folder, source, cfg))
    return target


def _export_into(folder: Path, source: Path, cfg: DictConfig) -> dict[str, Any]:
    """Write the graph, verify it, and describe it."""
    reference = load_encoder(source)
    contract = input_contract(reference)
    path = folder / ONNX_FILE
    # Tracing changes the encoder it gets, so the reference is a copy of its own.
    write_graph(load_encoder(source), path, contract, opset=cfg.export.opset, trace_size=cfg.export.trace_size)
    require_open_graph(path)
    threads = torch.get_num_threads()
    session = open_session(path, threads)
    parity = require_parity(reference, session, cfg.export.check_sizes, cfg.export.max_abs_difference, cfg.seed)
    latency = median_latency(reference, session, cfg.export.latency.size, cfg.export.latency.runs)
    logger.info("%s agrees with PyTorch to %.1e", ONNX_FILE, parity["max_abs_difference"])
    return {
        "files": [_described(file) for file in sorted(folder.iterdir())],
        "source": _described(source / "model.safetensors"),
        "opset": cfg.export.opset,
        "versions": {name: version(name) for name in VERSIONS_OF},
        "parity": parity,
        "latency": {**latency, "threads": threads},
        "contract": contract,
    }


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
