"""An exported graph against PyTorch: the same features at sizes it never saw, and how long each takes."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mum_model.errors import UserError
from mum_model.export.contract import output_blocks
from mum_model.export.onnx_graph import features, round_up
from mum_model.inference import graph_input, open_session
from mum_model.model.encoder import Eva

Features = list[np.ndarray]
"""CLS `[N, D]`, patch tokens `[N, L, D]`, and those of the blocks that are outputs, float32."""

Encoder = Callable[[np.ndarray], Features]
"""Features of RGB uint8 pixels `[N, H, W, 3]`."""


class Agreement(NamedTuple):
    """How close two sets of features are.

    Attributes:
        max_abs_difference: Of any two numbers.
        min_cosine: Of any two tokens.
    """

    max_abs_difference: float
    min_cosine: float

    @classmethod
    def of(cls, expected: Features, actual: Features) -> "Agreement":
        """Compare output by output."""
        pairs = list(zip(expected, actual, strict=True))
        return cls(
            max(float(np.abs(theirs - ours).max()) for theirs, ours in pairs),
            min(float(_cosine(theirs, ours).min()) for theirs, ours in pairs),
        )


class OnnxGraph:
    """An exported graph, run on the CPU."""

    def __init__(self, path: Path, contract: Mapping[str, Any], threads: int):
        """Open it.

        Args:
            path: The ONNX file.
            contract: From `input_contract`.
            threads: Threads of one operator.
        """
        self._session = open_session(path, threads)
        self._input = contract["input"]

    def __call__(self, pixels: np.ndarray) -> Features:
        """All outputs for RGB uint8 pixels `[N, H, W, 3]`."""
        return self._session.run(None, {self._input["name"]: graph_input(pixels, self._input)})

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Final-normed patch tokens `[N, L, D]` of RGB uint8 pixels `[N, H, W, 3]`."""
        return self(pixels)[1]


class Reference:
    """The encoder in PyTorch, with the outputs of the graph."""

    def __init__(self, encoder: Eva, contract: Mapping[str, Any]):
        """Wrap it.

        Args:
            encoder: In evaluation mode, of any precision.
            contract: From `input_contract`.
        """
        self._encoder = encoder
        self._mean, self._std = (torch.tensor(contract["input"][name]).reshape(3, 1, 1) for name in ("mean", "std"))
        self._blocks = output_blocks(contract)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Features:
        """All outputs for RGB uint8 pixels `[N, H, W, 3]`, normalised as in training."""
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        images = images.to(self._encoder.cls_token.dtype)
        return [output.numpy() for output in features(self._encoder, images, self._blocks)]

    @property
    def in_double(self) -> "Reference":
        """The same in float64."""
        exact = copy.copy(self)
        exact._encoder = copy.deepcopy(self._encoder).double()
        return exact


def noise(sizes: Iterable[Sequence[int]], patch_size: int, seed: int) -> list[np.ndarray]:
    """Pixels of random images.

    Args:
        sizes: `[N, height, width]`; sides in pixels are rounded up to multiples of the patch size.
        patch_size: Of the encoder.
        seed: Draws them.

    Returns:
        RGB uint8 `[N, H, W, 3]` each.
    """
    generator = np.random.default_rng(seed)
    shapes = [(batch, round_up(height, patch_size), round_up(width, patch_size), 3) for batch, height, width in sizes]
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


class Exact(Protocol):
    """A network in PyTorch that can be asked for more exact numbers."""

    def __call__(self, pixels: np.ndarray) -> Features:
        """Outputs for RGB uint8 pixels `[N, H, W, 3]`."""
        ...

    @property
    def in_double(self) -> Encoder:
        """The same in float64."""
        ...


def require_parity(reference: Exact, graph: Encoder, images: Iterable[np.ndarray], limit: float) -> None:
    """Refuse a float32 graph that is not PyTorch's network.

    A network can magnify rounding so much that float32 itself is not as exact as the limit. Then, and only then, the
    graph may differ from PyTorch by twice what PyTorch in float32 differs from PyTorch in float64.

    Args:
        reference: The network in PyTorch, float32.
        graph: Its exported graph, float32.
        images: Pixels, RGB uint8 `[N, H, W, 3]` each.
        limit: Largest difference of any number that is accepted; features and predicted pixels are of order one.

    Raises:
        UserError: A difference is above the limit or not a number.
    """
    exact = reference.in_double
    for pixels in images:
        expected = reference(pixels)
        difference = Agreement.of(expected, graph(pixels)).max_abs_difference
        if difference <= limit:
            continue
        if not difference <= 2 * Agreement.of(exact(pixels), expected).max_abs_difference:
            raise UserError(
                f"export: at {list(pixels.shape)} ONNX Runtime and PyTorch differ by {difference:.2g}, more than "
                f"export.max_abs_difference={limit:g}; nothing was written. Use the pinned torch, timm and "
                "onnxruntime, or raise the limit if that is good enough"
            )


def measured_agreement(reference: Encoder, graph: Encoder, images: Iterable[np.ndarray]) -> dict[str, Any]:
    """Compare a graph with PyTorch.

    Args:
        reference: The network in PyTorch, float32.
        graph: Its exported graph, of any precision.
        images: Pixels, RGB uint8 `[N, H, W, 3]` each.

    Returns:
        `max_abs_difference` and `min_cosine` over all, and one entry in `checks` for each array of images.
    """
    checks = [
        {"images": list(pixels.shape), **Agreement.of(reference(pixels), graph(pixels))._asdict()} for pixels in images
    ]
    return {
        "max_abs_difference": max(check["max_abs_difference"] for check in checks),
        "min_cosine": min(check["min_cosine"] for check in checks),
        "checks": checks,
    }


def median_milliseconds(encoders: Mapping[str, Encoder], pixels: np.ndarray, runs: int) -> dict[str, float]:
    """Time the same images through each, in turns, so that whatever else the machine does meets all alike.

    Args:
        encoders: By name.
        pixels: RGB uint8 `[N, H, W, 3]`.
        runs: Timed runs of each, after one that is not.

    Returns:
        The median of each.
    """
    seconds = [[_seconds(encoder, pixels) for encoder in encoders.values()] for _ in range(runs + 1)][1:]
    columns = zip(*seconds, strict=True)
    return {name: round(1000 * median(column), 3) for name, column in zip(encoders, columns, strict=True)}


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _seconds(encoder: Encoder, pixels: np.ndarray) -> float:
    start = time.perf_counter()
    encoder(pixels)
    return time.perf_counter() - start
