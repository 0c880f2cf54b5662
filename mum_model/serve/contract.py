"""What the exported encoder takes and gives, as `export.json` states it; the one place where requests are judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mum_model.inference import normalised

DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
"""The Open Inference Protocol's names of the types that an export has."""

Problem = Literal["name", "datatype", "shape", "size", "value", "format", "image"]


def printable(text: str) -> str:
    """Text that can be sent: JSON may hold halves of characters, which UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


class RequestError(ValueError):
    """A request that cannot be answered, and what was expected instead.

    Attributes:
        problem: What is wrong in one word, for counting.
    """

    def __init__(self, problem: Problem, message: str):
        super().__init__(printable(message))
        self.problem = problem


@dataclass(frozen=True)
class Tensor:
    """An input or output of the graph.

    Attributes:
        name: Its name in the graph and in requests.
        datatype: As the Open Inference Protocol names it.
        shape: Sizes, a letter where any size goes.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @classmethod
    def from_json(cls, tensor: Mapping[str, Any]) -> "Tensor":
        """Read an input or output of the `contract` of an `export.json`."""
        return cls(tensor["name"], DATATYPES[tensor["dtype"]], tuple(tensor["shape"]))

    @property
    def metadata(self) -> dict[str, Any]:
        """As the Open Inference Protocol describes a tensor: open dimensions are -1.

        https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
        """
        shape = [-1 if isinstance(size, str) else size for size in self.shape]
        return {"name": self.name, "datatype": self.datatype, "shape": shape}


@dataclass(frozen=True)
class Contract:
    """What the encoder takes and gives.

    Attributes:
        images: The one input: normalised RGB `[N, 3, H, W]`, or RGB pixels `[N, H, W, 3]`.
        outputs: CLS `[N, D]`, patch tokens `[N, L, D]`, and those of chosen blocks, in the order of the graph.
        patch_size: Side of a patch in pixels; H and W are multiples of it.
        mean: Of each channel, for pixels in 0..1.
        std: Deviation of each channel, likewise.
    """

    images: Tensor
    outputs: tuple[Tensor, ...]
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_json(cls, contract: Mapping[str, Any]) -> "Contract":
        """Read the `contract` of an `export.json`."""
        images = contract["input"]
        return cls(
            images=Tensor.from_json(images),
            outputs=tuple(map(Tensor.from_json, contract["outputs"])),
            patch_size=contract["patch_size"],
            mean=tuple(images["mean"]),
            std=tuple(images["std"]),
        )

    @property
    def expected(self) -> str:
        """The input in words, as every refusal states it."""
        return (
            f"input '{self.images.name}': expected {self.images.datatype} {_bracketed(self.images.shape)} "
            f"with H and W multiples of {self.patch_size}"
        )

    def require_input(self, names: Sequence[str]) -> None:
        """Check the names of a request's inputs.

        Raises:
            RequestError: They are anything but the one input.
        """
        if list(names) != [self.images.name]:
            got = "input " + ", ".join(f"'{name}'" for name in names) if names else "no input"
            raise RequestError("name", f"{self.expected}, got {got}")

    def require_tensor(self, datatype: str, shape: Sequence[int]) -> None:
        """Check type and shape of the images before any of their data is touched.

        Args:
            datatype: As the Open Inference Protocol names it.
            shape: As the request states it.

        Raises:
            RequestError: Another type, another number of dimensions, no image at all, or sides that patches do not
                fill; the graph itself would drop the rest of them without a word.
        """
        got = f"{self.expected}, got {datatype} {_bracketed(shape)}"
        if datatype != self.images.datatype:
            raise RequestError("datatype", got)
        channels = self.images.shape.index(3)
        if len(shape) != 4 or shape[channels] != 3 or min(shape) < 1:
            raise RequestError("shape", got)
        if any(side % self.patch_size for side in self.sides(shape)):
            raise RequestError("shape", got)

    def sides(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width in pixels of a shape of images."""
        return shape[self.images.shape.index("H")], shape[self.images.shape.index("W")]

    def input_of(self, pixels: np.ndarray) -> np.ndarray:
        """What the graph takes for pixels.

        Args:
            pixels: RGB uint8 `[N, H, W, 3]`; H and W are multiples of the patch size.

        Returns:
            The pixels, or normalised float32 `[N, 3, H, W]`.
        """
        if self.images.datatype == DATATYPES["uint8"]:
            return pixels
        return normalised(pixels, self.mean, self.std)

    def require_values(self, images: np.ndarray) -> None:
        """Check that every number is one.

        Raises:
            RequestError: There is a NaN or an infinity.
        """
        wrong = images.size - int(np.isfinite(images).sum())
        if wrong:
            raise RequestError("value", f"{self.expected}, all numbers finite; got {wrong} that are NaN or infinite")

    def require_outputs(self, names: Sequence[str]) -> None:
        """Check the names of the outputs that a request wants.

        Raises:
            RequestError: There is no such output.
        """
        known = [output.name for output in self.outputs]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise RequestError("name", f"outputs: expected any of {', '.join(known)}; got {', '.join(unknown)}")

    def require_pixels(self, shape: Sequence[int], limit: int) -> None:
        """Check that a request is not too large to be computed here.

        Args:
            shape: Of the images.
            limit: Largest N * H * W.

        Raises:
            RequestError: It is larger.
        """
        pixels = math.prod(shape) // 3
        if pixels > limit:
            raise RequestError(
                "size",
                f"input '{self.images.name}': expected at most {limit} pixels (N * H * W) in a request, "
                f"got {pixels} as {_bracketed(shape)}; send fewer or smaller images",
            )


def _bracketed(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
