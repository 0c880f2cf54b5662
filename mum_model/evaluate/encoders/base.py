"""What an evaluation asks of an encoder."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Tokens(NamedTuple):
    """What an encoder says of a batch of images.

    Attributes:
        patches: A token for each patch, row by row, `[N, L, D]`.
        summary: One vector an image, `[N, D]`: the class token, or the mean of the patches where there is none.
    """

    patches: Tensor
    summary: Tensor


class Encoder(Protocol):
    """Something that gives a token for each patch.

    Attributes:
        name: In the report.
        identity: SHA-256 of everything that decides its tokens; features are cached under it.
        patch_size: Side of a patch in pixels.
        parameters: How many numbers were learned; 0 where that is not known.
        layers: How many there are to choose from.
    """

    name: str
    identity: str
    patch_size: int
    parameters: int
    layers: int

    def tokens(self, images: Tensor, layer: int) -> Tokens:
        """Tokens of a batch.

        Args:
            images: uint8 `[N, 3, H, W]`, RGB; both sides are multiples of the patch size.
            layer: Block after which they are taken, from 0; -1 is the last.

        Returns:
            Tokens after the encoder's own final norm.
        """
        ...
