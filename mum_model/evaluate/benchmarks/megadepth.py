"""MegaDepth as LoFTR and RoMa lay it out: scene infos with lists of pairs, photos, and depth in HDF5.

Under the root: what the scene infos name, usually `Undistorted_SfM/SCENE/images/*.jpg` and
`phoenix/S6/zl548/MegaDepth_v1/SCENE/dense0/depths/*.h5`; the five lists of MegaDepth-1500, `0015_0.1_0.3.npz` and the
like; and for the probe `prep_scene_info/SCENE.npy` (RoMa) or `scene_info_0.1_0.7/*.npz` (LoFTR). Poses are
world-to-camera and intrinsics COLMAP's, whose pixel centres are those of this project: nothing is converted.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from omegaconf import DictConfig

from mum_model.data.scenes import SPLITS
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks.files import DepthFormat, FileFrame, listed_files, read_arrays
from mum_model.evaluate.benchmarks.pair_lists import ListedPair, PairList, draw_listed, pair_tasks
from mum_model.evaluate.task import Task

T = TypeVar("T")

_SCENE = re.compile(r"(?:Undistorted_SfM|MegaDepth_v1)/([^/]+)/")


def open_megadepth(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open MegaDepth.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit`, `tasks`, and `pairs.{train,val,test}`, each a list of files or wildcards relative to
            the root.
        cfg: The composed configuration.

    Returns:
        Its tasks; the test lists are used whole.

    Raises:
        UserError: A list or a file that it names is missing or damaged.
    """
    root = Path(benchmark.root)
    found = {split: listed_files(name, root, benchmark.pairs[split]) for split in SPLITS}
    lists = {split: [_read_list(path, root) for path in files] for split, files in found.items()}
    pairs = draw_listed(lists, cfg.evaluate, cfg.seed)
    return pair_tasks(name, pairs, benchmark, cfg.evaluate, DepthFormat(read_depth, _depth_size))


def _read_list(path: Path, root: Path) -> PairList:
    content = read_arrays(path)
    kind = "pair_infos" if "pair_infos" in content else "pairs"
    if absent := {"image_paths", "intrinsics", "poses", kind} - content.keys():
        raise UserError(f"{path}: no scene info, it has no {', '.join(sorted(absent))}")
    pairs, overlaps = _pairs(content)
    frames: dict[int, FileFrame] = {}
    for row in {row for pair in pairs for row in pair}:
        frames[row] = _frame(path, root, content, row)
    return [ListedPair(frames[a], frames[b], overlap, None) for (a, b), overlap in zip(pairs, overlaps, strict=True)]


def _pairs(content: dict[str, Any]) -> tuple[list[tuple[int, int]], list[float]]:
    if "pair_infos" in content:  # LoFTR: ((a, b), overlap, central matches)
        infos = content["pair_infos"]
        return [(int(info[0][0]), int(info[0][1])) for info in infos], [float(info[1]) for info in infos]
    return [(int(a), int(b)) for a, b in content["pairs"]], [float(share) for share in content["overlaps"]]


def _frame(path: Path, root: Path, content: dict[str, Any], row: int) -> FileFrame:
    image = content["image_paths"][row] if row < len(content["image_paths"]) else None
    if image is None:
        raise UserError(f"{path}: a pair names frame {row}, of which there is no image in it")
    depth = content["depth_paths"][row] if "depth_paths" in content else None
    found = _SCENE.search(image)
    return FileFrame(
        image=root / image,
        scene=found.group(1) if found else path.stem,
        depth=None if depth is None else root / depth,
        intrinsics=np.asarray(content["intrinsics"][row], np.float64).reshape(3, 3),
        world2cam=np.asarray(content["poses"][row], np.float64)[:3],
    )


def read_depth(path: Path) -> np.ndarray:
    """Depth of MegaDepth.

    Args:
        path: HDF5 with a dataset `depth`, in the unit of the poses.

    Returns:
        float32 `[H, W]`, 0 where unknown.

    Raises:
        UserError: The file is cut or holds no depth.
    """
    return np.maximum(_opened(path, lambda depth: np.asarray(depth, np.float32)), 0)


def _depth_size(path: Path) -> tuple[int, int]:
    height, width = _opened(path, lambda depth: depth.shape)
    return width, height


def _opened(path: Path, use: Callable[[h5py.Dataset], T]) -> T:
    try:
        with h5py.File(path, "r") as file:
            return use(file["depth"])
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: cut, or no depth of MegaDepth ({error}); download it again") from error
