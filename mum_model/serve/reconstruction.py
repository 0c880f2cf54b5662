"""The whole model on ONNX Runtime: views of a scene, partly hidden, and what it makes of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mum_model.inference import open_session
from mum_model.serve.contract import RequestError
from mum_model.serve.encoder import OnnxEncoder

GREY = 127
"""Of a hidden patch in a picture."""

GAP = 4
"""White pixels between the views of a picture."""


@dataclass(frozen=True)
class Reconstruction:
    """What a model makes of partly hidden views.

    Attributes:
        views: As the model got them, RGB uint8 `[S, H, W, 3]`.
        visible: Indices of the patches that it saw of each, row by row, int64 `[S, K]`.
        seen: The views, hidden patches grey.
        whole: The views, hidden patches replaced by predicted ones.
    """

    views: np.ndarray
    visible: np.ndarray
    seen: np.ndarray
    whole: np.ndarray

    @property
    def picture(self) -> np.ndarray:
        """A column a view: what it is, what the model saw, what it made of it; RGB uint8 on white."""
        rows = np.stack([self.views, self.seen, self.whole])
        framed = np.pad(rows, [(0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)], constant_values=255)
        _, views, height, width, _ = framed.shape
        return framed.swapaxes(1, 2).reshape(3 * height, views * width, 3)[:-GAP, :-GAP]


class Reconstructor:
    """The graph of a whole model that `mum export export.reconstruction=true` wrote."""

    def __init__(self, path: Path, threads: int | None):
        """Open it.

        Args:
            path: The ONNX file.
            threads: Threads of one operator; the cores that this process may use when None.

        Raises:
            UserError: ONNX Runtime cannot run it.
        """
        self._session = open_session(path, threads)

    @classmethod
    def beside(cls, encoder: OnnxEncoder, folder: Path, threads: int | None) -> "Reconstructor | None":
        """The one that was exported with an encoder into the same folder; None where there is none.

        Raises:
            UserError: ONNX Runtime cannot run it.
        """
        described = encoder.description.get("reconstruction")
        return cls(folder / described["file"], threads) if described else None

    def __call__(self, inputs: dict[str, np.ndarray], outputs: Sequence[str] | None) -> dict[str, np.ndarray]:
        """Run the graph.

        Args:
            inputs: `pixels`, RGB uint8 `[S, H, W, 3]`, and `visible`, int64 `[S, K]`.
            outputs: Names of the wanted ones; all when None.

        Returns:
            By name: `prediction` `[S, L, P*P*3]`, `reconstruction` uint8 `[S, H, W, 3]`.
        """
        names = list(outputs or [output.name for output in self._session.get_outputs()])
        return dict(zip(names, self._session.run(names, inputs), strict=True))


def draw_visible(views: int, patches: int, mask_ratio: float, seed: int) -> np.ndarray:
    """Choose the patches that are seen, in each view on its own, all equally likely.

    Args:
        views: Number S of views.
        patches: Number L of patches of a view.
        mask_ratio: Share of them that is hidden.
        seed: Decides which.

    Returns:
        Ascending indices, int64 `[S, K]` with `K = int(L * (1 - mask_ratio))`.

    Raises:
        RequestError: Nothing would be seen.
    """
    kept = int(patches * (1 - mask_ratio))
    if kept == 0:
        raise RequestError("value", f"mask_ratio: expected one that leaves some of {patches} patches seen")
    noise = np.random.default_rng(seed).random((views, patches))
    return np.sort(noise.argsort(axis=1)[:, :kept], axis=1)


def with_hidden_grey(views: np.ndarray, visible: np.ndarray, patch_size: int) -> np.ndarray:
    """Views, uint8 `[S, H, W, 3]`, with all but the visible patches `[S, K]` painted grey."""
    rows, columns = (side // patch_size for side in views.shape[1:3])
    is_seen = np.zeros((len(views), rows * columns), bool)
    np.put_along_axis(is_seen, visible, True, axis=1)
    pixels = is_seen.reshape(-1, rows, columns).repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    return np.where(pixels[..., np.newaxis], views, np.uint8(GREY))
