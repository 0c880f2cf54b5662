"""What is timed, and how much arithmetic is in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mum_model.model.mum import MuMConfig

MASK_RATIO = 0.75


@dataclass(frozen=True)
class Setting:
    """What is the same for all variants.

    Attributes:
        size: Of the model.
        frames: Budget of a step.
        side: Of a frame in pixels.
        views: Fewest and most views of a scene.
        precision: `fp32` or `bf16`.
        threads: Of the CPU.
        steps: Timed in each process.
        dataset: Where frames come from; None for random ones in memory.
        model: Fields of `MuMConfig` that differ from the size, to try the command on something small.
    """

    size: str
    frames: int
    side: int
    views: tuple[int, int]
    precision: str
    threads: int
    steps: int
    dataset: str | None
    model: dict[str, int]


@dataclass(frozen=True)
class Variant:
    """One way to take the step; the defaults are what `mum pretrain` does.

    Attributes:
        packed: Scenes of mixed length fill the budget; else one view count a batch, floor(budget / S) scenes.
        packs: The budget is seen in so many packs one after the other.
        masked_only: Only masked patches are predicted.
        fused: AdamW is one kernel.
        written_out: On a CPU, attention in bf16 by plain matrix products.
        keeps_memory: On a CPU, freed memory stays with the process.
        compiled: Blocks are compiled.
        recompute: Share of the blocks whose activations are computed again going backward.
        precision: Other than the setting's.
        reference: Checkout of the authors' repository, whose step is taken instead.
    """

    packed: bool = True
    packs: int = 1
    masked_only: bool = True
    fused: bool = True
    written_out: bool = True
    keeps_memory: bool = True
    compiled: bool = False
    recompute: float = 0.0
    precision: str | None = None
    reference: str | None = None

    def of(self, setting: Setting) -> Setting:
        """The setting in this variant's precision."""
        return replace(setting, precision=self.precision or setting.precision)


VARIANTS = {
    "default": Variant(),
    "blocks compiled": Variant(compiled=True),
    "one view count a batch": Variant(packed=False),
    "two packs one after the other": Variant(packs=2),
    "all patches predicted": Variant(masked_only=False),
    "AdamW not fused": Variant(fused=False),
    "all blocks recomputed": Variant(recompute=1.0),
    "torch's fused attention everywhere (CPU)": Variant(written_out=False),
    "freed memory back to the kernel (CPU)": Variant(keeps_memory=False),
    "in fp32": Variant(precision="fp32"),
    "in bf16": Variant(precision="bf16"),
}


@dataclass(frozen=True)
class Timing:
    """What one process measured.

    Attributes:
        seconds: Of each step.
        frames: Of each step.
        arithmetic: Floating-point operations of each step.
        matmul_rate: Operations a second of a large matrix product.
        peak_bytes: Of the GPU; on a CPU of the process, less what it held before the model was built.
        waits: Seconds that each step waited for its data.
    """

    seconds: list[float]
    frames: list[int]
    arithmetic: list[float]
    matmul_rate: float
    peak_bytes: int
    waits: list[float]

    @property
    def images_per_second(self) -> float:
        """Over all steps."""
        return sum(self.frames) / sum(self.seconds)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return sum(self.arithmetic) / sum(self.seconds)


def arithmetic(config: MuMConfig, views: Sequence[int], side: int) -> float:
    """Floating-point operations of forward and backward on scenes of these lengths.

    Those of the model as the paper defines it: matrix products and attention, backward counted twice, nothing for
    recomputation, and the head on masked patches.

    Args:
        config: Shape of the model.
        views: Of each scene.
        side: Of a frame in pixels.
    """
    patches = (side // config.patch_size) ** 2
    frames, visible = sum(views), int(patches * (1 - MASK_RATIO))
    pixels = config.patch_size**2 * 3

    def blocks(count: int, dim: int, sequences: list[int]) -> float:
        tokens, pairs = sum(sequences), sum(n * n for n in sequences)
        return count * (2 * 12 * dim**2 * tokens + 4 * dim * pairs)

    half, dim = config.decoder_depth // 2, config.decoder_dim
    forward = (
        2 * pixels * config.encoder_dim * visible * frames
        + blocks(config.encoder_depth, config.encoder_dim, [visible + 1] * frames)
        + 2 * config.encoder_dim * dim * (visible + 1) * frames
        + blocks(half, dim, [patches + 1] * frames)
        + blocks(half, dim, [(patches + 1) * s for s in views])
        + 2 * dim * pixels * (patches - visible) * frames
    )
    return 3 * forward
