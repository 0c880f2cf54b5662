"""The exported graph against PyTorch: the same features at sizes it never saw, and how long each takes."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch

from mum_model.errors import UserError
from mum_model.export.onnx_graph import round_up
from mum_model.model.encoder import Eva

BATCHES = (1, 3)

Features = tuple[np.ndarray, np.ndarray]
"""CLS `[N, D]` and patch tokens `[N, L, D]`, float32."""


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU.

    Args:
        path: The ONNX file.
        threads: Threads of one operator.

    Returns:
        The session.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def require_parity(
    reference: Eva, session: onnxruntime.InferenceSession, sizes: Iterable[Sequence[int]], limit: float, seed: int
) -> dict[str, Any]:
    """Compare both on random images of every size, one at a time and three at once.

    An encoder can magnify rounding so much that float32 itself is not as exact as the limit. Then, and only then, the
    graph may differ from PyTorch by twice what PyTorch in float32 differs from PyTorch in float64.

    Args:
        reference: The encoder in PyTorch, evaluation mode, float32.
        session: Its exported graph.
        sizes: `[height, width]` in pixels, rounded up to multiples of the patch size.
        limit: Largest difference of any number that is accepted; features are layer-normed, so of order one.
        seed: Draws the images.

    Returns:
        `max_abs_difference` over all, the `limit`, and one entry in `checks` for each size and batch, with what float32
        costs PyTorch itself.

    Raises:
        UserError: A difference is above the limit or not a number.
    """
    generator = torch.Generator().manual_seed(seed)
    exact = copy.deepcopy(reference).double()
    checks: list[dict[str, Any]] = []
    for size in sizes:
        height, width = (round_up(side, reference.patch_embed.patch_size[0]) for side in size)
        for batch in BATCHES:
            images = torch.randn(batch, 3, height, width, generator=generator)
            by_pytorch = _by_pytorch(reference, images)
            cls, patch_tokens = _differences(by_pytorch, _by_onnxruntime(session, images.numpy()))
            rounding = max(_differences(_by_pytorch(exact, images.double()), by_pytorch))
            checks.append(
                {
                    "images": [batch, 3, height, width],
                    "cls": cls,
                    "patch_tokens": patch_tokens,
                    "rounding_of_pytorch": rounding,
                }
            )
            if not max(cls, patch_tokens) <= max(limit, 2 * rounding):
                raise UserError(
                    f"export: at images [{batch}, 3, {height}, {width}] ONNX Runtime and PyTorch differ by "
                    f"{max(cls, patch_tokens):.2g}, more than export.max_abs_difference={limit:g}; nothing was "
                    "written. Use the pinned torch, timm and onnxruntime, or raise the limit if that is good enough"
                )
    worst = max(max(check["cls"], check["patch_tokens"]) for check in checks)
    return {"max_abs_difference": worst, "limit": limit, "checks": checks}


def median_latency(
    reference: Eva, session: onnxruntime.InferenceSession, size: Sequence[int], runs: int
) -> dict[str, Any]:
    """Time one image through both, in turns, so that whatever else the machine does meets both alike.

    Args:
        reference: The encoder in PyTorch, evaluation mode, float32; run eagerly.
        session: Its exported graph.
        size: `[height, width]` in pixels, rounded up to multiples of the patch size.
        runs: Timed runs of each, after one that is not.

    Returns:
        The shape of `images`, the number of `runs`, and the medians `onnxruntime_ms` and `pytorch_ms`.
    """
    height, width = (round_up(side, reference.patch_embed.patch_size[0]) for side in size)
    images = torch.zeros(1, 3, height, width)
    array = images.numpy()
    seconds = [
        (_seconds(lambda: _by_onnxruntime(session, array)), _seconds(lambda: _by_pytorch(reference, images)))
        for _ in range(runs + 1)
    ][1:]
    onnxruntime_ms, pytorch_ms = (round(1000 * median(column), 3) for column in zip(*seconds, strict=True))
    return {
        "images": [1, 3, height, width],
        "runs": runs,
        "onnxruntime_ms": onnxruntime_ms,
        "pytorch_ms": pytorch_ms,
    }


@torch.inference_mode()
def _by_pytorch(encoder: Eva, images: torch.Tensor) -> Features:
    tokens = encoder.forward_features(images).numpy()
    return tokens[:, 0], tokens[:, encoder.num_prefix_tokens :]


def _by_onnxruntime(session: onnxruntime.InferenceSession, images: np.ndarray) -> Features:
    cls, patch_tokens = session.run(["cls", "patch_tokens"], {"images": images})
    return cls, patch_tokens


def _differences(expected: Features, actual: Features) -> list[float]:
    return [float(np.abs(theirs - ours).max()) for theirs, ours in zip(expected, actual, strict=True)]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
