"""An exported graph on ONNX Runtime: how it is opened, and what it takes. Without PyTorch, since servers have none."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_state

from mum_model.errors import UserError

ONNXRUNTIME_ERRORS = (
    onnxruntime_state.Fail,
    onnxruntime_state.InvalidArgument,
    onnxruntime_state.InvalidGraph,
    onnxruntime_state.InvalidProtobuf,
    onnxruntime_state.NoSuchFile,
    onnxruntime_state.NotImplemented,
    onnxruntime_state.RuntimeException,
)
"""What ONNX Runtime raises at a file that it cannot run; the classes share no base of their own."""


def open_session(path: Path, threads: int | None) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU.

    Args:
        path: The ONNX file.
        threads: Threads of one operator; the cores that this process may use when None.

    Raises:
        UserError: ONNX Runtime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except ONNXRUNTIME_ERRORS as error:
        raise UserError(f"{path}: ONNX Runtime cannot run it ({error}); copy it again or run `mum export`") from error


def available_cores() -> int:
    """Cores that this process may use: its affinity, within the control group's quota.

    ONNX Runtime itself counts the cores of the whole node, and would be throttled in a container with a limit.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def graph_input(pixels: np.ndarray, described: Mapping[str, Any]) -> np.ndarray:
    """What an exported encoder takes for pixels: themselves, or normalised images.

    Args:
        pixels: RGB uint8 `[N, H, W, 3]`.
        described: The `input` of its contract.

    Returns:
        The pixels, or float32 `[N, 3, H, W]`.
    """
    is_pixels = described["dtype"] == "uint8"
    return np.ascontiguousarray(pixels) if is_pixels else normalised(pixels, described["mean"], described["std"])


def normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """What a graph of float32 input takes.

    Args:
        pixels: RGB uint8 `[N, H, W, 3]`.
        mean: Of each channel, for pixels in 0..1.
        std: Deviation of each channel, likewise.

    Returns:
        float32 `[N, 3, H, W]`, contiguous.
    """
    scaled = (pixels.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
