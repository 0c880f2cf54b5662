"""What a caller of the exported encoder must hand in, and what comes back: stated once, beside and inside the file."""

from typing import Any

from mum_model.model.encoder import Eva


def input_contract(encoder: Eva) -> dict[str, Any]:
    """State names, types, layout and meaning of the exported encoder's input and outputs.

    A letter in a shape is an open dimension: N images of H x W pixels, L = H/P * W/P patches.

    Args:
        encoder: The encoder to export; its `pretrained_cfg` holds the mean and deviation it was trained with.

    Returns:
        What JSON can hold: `input`, `patch_size`, and `outputs` in the order of the graph.
    """
    width, patch_size = encoder.embed_dim, encoder.patch_embed.patch_size[0]
    pretrained_cfg: Any = encoder.pretrained_cfg  # set by timm's builder, so unknown to type checkers
    return {
        "patch_size": patch_size,
        "input": {
            "name": "images",
            "dtype": "float32",
            "layout": "NCHW",
            "shape": ["N", 3, "H", "W"],
            "channels": "RGB",
            "range_before_normalisation": [0.0, 1.0],
            "mean": list(pretrained_cfg["mean"]),
            "std": list(pretrained_cfg["std"]),
            "normalisation": "(pixel - mean) / std, by channel",
            "sides_multiple_of": patch_size,
        },
        "outputs": [
            {
                "name": "cls",
                "dtype": "float32",
                "shape": ["N", width],
                "meaning": "class token after the final norm: one vector for the whole image",
            },
            {
                "name": "patch_tokens",
                "dtype": "float32",
                "shape": ["N", "L", width],
                "meaning": f"patch tokens after the final norm; L = H/{patch_size} * W/{patch_size}, row by row",
            },
        ],
    }
