"""No encoder at all: the pixels of each patch."""

from torch import Tensor

from mum_model.evaluate.encoders.base import Tokens
from mum_model.model.masking import patchify
from mum_model.model.pixels import normalise_pixels


class PixelEncoder:
    """The normalised pixels of each patch as its token."""

    parameters = 0
    layers = 1

    def __init__(self, name: str, patch_size: int):
        """Name it.

        Args:
            name: In the report.
            patch_size: Side of a patch in pixels.
        """
        self.name, self.patch_size = name, patch_size
        self.identity = f"pixels/{patch_size}"

    def tokens(self, images: Tensor, layer: int) -> Tokens:
        """Tokens of `3 * patch_size**2` numbers; there are no layers to choose from."""
        patches = patchify(normalise_pixels(images), self.patch_size)
        return Tokens(patches, patches.mean(dim=1))
