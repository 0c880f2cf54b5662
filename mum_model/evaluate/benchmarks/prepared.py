"""A dataset that `mum prepare` wrote, as a benchmark."""

import numpy as np

from mum_model.data.geometry import Camera
from mum_model.data.scenes import SceneIndex


class PreparedFrames:
    """The frames of a prepared dataset, by row of its index."""

    def __init__(self, name: str, index: SceneIndex):
        """Open them.

        Args:
            name: Of the benchmark.
            index: The dataset.
        """
        self.name, self.index = name, index
        self._heights, self._widths = index.column("height"), index.column("width")
        self._scenes, self._frames = index.column("scene"), index.column("frame")
        self._content = index.card["content_sha256"]

    def image(self, row: int) -> np.ndarray:
        """RGB uint8 `[H, W, 3]`."""
        return self.index.image(row)

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width."""
        return int(self._heights[row]), int(self._widths[row])

    def camera(self, row: int) -> Camera | None:
        """Intrinsics, pose and depth, where all are known."""
        return self.index.camera(row)

    def depth(self, row: int) -> np.ndarray | None:
        """z-depth, where pose and intrinsics are known too."""
        camera = self.index.camera(row)
        return None if camera is None else camera.depth

    def intrinsics(self, row: int) -> np.ndarray | None:
        """Camera matrix, where known."""
        return self.index.intrinsics(row)

    def world2cam(self, row: int) -> np.ndarray | None:
        """Pose, where known."""
        return self.index.world2cam(row)

    def scene(self, row: int) -> str:
        """Name of the scene."""
        return self._scenes[row]

    def label(self, row: int) -> str:
        """Scene and frame."""
        return f"{self._scenes[row]}/{self._frames[row]}"

    def identity(self, row: int) -> str:
        """The row of this content."""
        return f"{self._content}/{row}"


def draw_pairs(
    index: SceneIndex, split: str, count: int, overlap: tuple[float, float], seed: int
) -> list[tuple[int, int]]:
    """Ordered pairs of views of a split, drawn evenly from its scenes.

    Args:
        index: The dataset.
        split: `train`, `val` or `test`.
        count: How many at most.
        overlap: Least and largest share of view a that view b sees.
        seed: Decides the draw.

    Returns:
        Rows of view a and view b.
    """
    a, b, share = index.covisible_pairs(split)
    fitting = (share >= overlap[0]) & (share <= overlap[1])
    a, b = a[fitting], b[fitting]
    order = np.random.default_rng(seed).permutation(len(a))
    a, b = a[order], b[order]
    scenes = index.column("scene")[a]
    # The n-th pair of each scene comes before the (n+1)-th of any: a scene with many pairs does not crowd out others.
    turn = np.zeros(len(a), int)
    for scene in np.unique(scenes):
        turn[scenes == scene] = np.arange((scenes == scene).sum())
    chosen = np.argsort(turn, kind="stable")[:count]
    return list(zip(a[chosen].tolist(), b[chosen].tolist(), strict=True))
