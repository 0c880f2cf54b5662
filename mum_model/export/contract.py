"""What a caller of the exported encoder must hand in, and what comes back: stated once, beside and inside the file."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mum_model.errors import UserError
from mum_model.model.encoder import Eva
from mum_model.model.mum import MuM

Input = Literal["float32", "uint8"]
"""Normalised images, or pixels that the graph normalises itself."""


def input_contract(encoder: Eva, kind: Input, blocks: Sequence[int] = ()) -> dict[str, Any]:
    """State names, types, layout and meaning of the exported encoder's input and outputs.

    A letter in a shape is an open dimension: N images of H x W pixels, L = H/P * W/P patches.

    Args:
        encoder: The encoder to export; its `pretrained_cfg` holds the mean and deviation it was trained with.
        kind: Type of the input.
        blocks: Blocks, counted from 0, whose patch tokens are outputs too.

    Returns:
        What JSON can hold: `input`, `patch_size`, and `outputs` in the order of the graph.

    Raises:
        UserError: The encoder has no such block.
    """
    width, patch_size = encoder.embed_dim, encoder.patch_embed.patch_size[0]
    unknown = [block for block in blocks if not 0 <= block < len(encoder.blocks)]
    if unknown:
        raise UserError(f"export.blocks: there is no block {unknown[0]}; expected 0 to {len(encoder.blocks) - 1}")
    grid = f"L = H/{patch_size} * W/{patch_size}, row by row"
    return {
        "patch_size": patch_size,
        "input": {**_INPUTS[kind], "channels": "RGB", **_normalisation(encoder), "sides_multiple_of": patch_size},
        "outputs": [
            _output("cls", ["N", width], "class token after the final norm: one vector for the whole image"),
            _output("patch_tokens", ["N", "L", width], f"patch tokens after the final norm; {grid}"),
            *(
                _output(f"block_{i}", ["N", "L", width], f"patch tokens after block {i} and the final norm; {grid}")
                for i in sorted(set(blocks))
            ),
        ],
    }


def reconstruction_contract(model: MuM) -> dict[str, Any]:
    """State what the graph of a whole model takes and gives.

    Args:
        model: The model.

    Returns:
        What JSON can hold: `patch_size`, `inputs` and `outputs`, in the order of the graph. S are the views of one
        scene, K the patches that are seen of each, L = H/P * W/P all of them.
    """
    patch_size = model.config.patch_size
    pixels = {**_INPUTS["uint8"], "shape": ["S", "H", "W", 3], "channels": "RGB", **_normalisation(model.encoder)}
    seen = "indices of the patches that the encoder sees of each view, row by row; the others are predicted"
    predicted = "normalised pixels of every patch, by row, column and channel, as the training's loss compares them"
    shown = "the views, hidden patches replaced by predicted ones, with the true mean and deviation of each patch"
    return {
        "patch_size": patch_size,
        "inputs": [
            {**pixels, "sides_multiple_of": patch_size},
            {"name": "visible", "dtype": "int64", "shape": ["S", "K"], "meaning": seen},
        ],
        "outputs": [
            _output("prediction", ["S", "L", 3 * patch_size**2], predicted),
            {**_output("reconstruction", ["S", "H", "W", 3], shown), "dtype": "uint8"},
        ],
    }


def output_blocks(contract: Mapping[str, Any]) -> list[int]:
    """The blocks whose patch tokens a contract names as outputs, in their order."""
    return [int(output["name"].removeprefix("block_")) for output in contract["outputs"][2:]]


_INPUTS: dict[Input, dict[str, Any]] = {
    "float32": {
        "name": "images",
        "dtype": "float32",
        "layout": "NCHW",
        "shape": ["N", 3, "H", "W"],
        "range_before_normalisation": [0.0, 1.0],
        "normalisation": "(pixel - mean) / std, by channel, before the graph",
    },
    "uint8": {
        "name": "pixels",
        "dtype": "uint8",
        "layout": "NHWC",
        "shape": ["N", "H", "W", 3],
        "normalisation": "(pixel / 255 - mean) / std, by channel, inside the graph",
    },
}


def _normalisation(encoder: Eva) -> dict[str, list[float]]:
    pretrained_cfg: Any = encoder.pretrained_cfg  # set by timm's builder, so unknown to type checkers
    return {"mean": list(pretrained_cfg["mean"]), "std": list(pretrained_cfg["std"])}


def _output(name: str, shape: list[int | str], meaning: str) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": shape, "meaning": meaning}
