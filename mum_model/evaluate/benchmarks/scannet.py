"""ScanNet-1500 as LoFTR and RoMa lay it out.

Under the root: `test.npz` with `name` `[N, 4]` (scene, part, two frames) and, in the published file, `rel_pose`
`[N, 12]`; and `SCANS/scene0707_00/` with `color/*.jpg`, `intrinsic/intrinsic_color.txt`, and where they were unpacked
`depth/*.png` in millimetres and `pose/*.txt`, camera-to-world. Lists of LoFTR's `scene_data/train/*.npz` have the same
form, with a `score`. ScanNet's intrinsics put the centre of the first pixel at (0, 0): half a pixel is added here.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mum_model.data.captures import RefusedError
from mum_model.data.geometry import invert_pose
from mum_model.data.images import image_size, read_png16
from mum_model.data.scenes import SPLITS
from mum_model.errors import UserError
from mum_model.evaluate.benchmarks.files import DepthFormat, FileFrame, listed_files, read_arrays
from mum_model.evaluate.benchmarks.pair_lists import ListedPair, PairList, draw_listed, pair_tasks
from mum_model.evaluate.task import Task

SIZE = (640, 480)  # of the depth; colour is stored at 1296 x 968


def open_scannet(name: str, benchmark: DictConfig, cfg: DictConfig) -> Sequence[Task]:
    """Open ScanNet-1500.

    Args:
        name: Of the benchmark.
        benchmark: `root`, `fit`, `tasks`, `scans` (folder of the scenes) and `pairs.{train,val,test}`, each a list of
            files or wildcards relative to the root.
        cfg: The composed configuration.

    Returns:
        Its tasks; the test list is used whole.

    Raises:
        UserError: A list or a file that it names is missing or damaged.
    """
    root = Path(benchmark.root)
    found = {split: listed_files(name, root, benchmark.pairs[split]) for split in SPLITS}
    scans = root / benchmark.scans
    if not scans.is_dir():
        raise UserError(f"{name}: no folder {scans} with the scenes; set evaluate.benchmarks.{name}.scans")
    lists = {split: [_read_list(path, scans) for path in files] for split, files in found.items()}
    pairs = draw_listed(lists, cfg.evaluate, cfg.seed)
    return pair_tasks(name, pairs, benchmark, cfg.evaluate, PNG_DEPTH, SIZE)


def _read_list(path: Path, scans: Path) -> PairList:
    content = read_arrays(path)
    if "name" not in content or content["name"].ndim != 2 or content["name"].shape[1] != 4:
        raise UserError(f"{path}: no list of ScanNet pairs, expected `name` of shape [N, 4]")
    count = len(content["name"])
    relative = content["rel_pose"].reshape(count, -1)[:, :12].reshape(count, 3, 4) if "rel_pose" in content else None
    overlaps = content.get("score", np.full(count, np.nan))
    frames: dict[tuple[int, int, int], FileFrame] = {}
    pairs = []
    for i, (scene, part, first, second) in enumerate(content["name"].tolist()):
        for frame in (first, second):
            if (scene, part, frame) not in frames:
                frames[scene, part, frame] = _frame(scans / f"scene{scene:04d}_{part:02d}", frame)
        a, b = frames[scene, part, first], frames[scene, part, second]
        pairs.append(ListedPair(a, b, float(overlaps[i]), None if relative is None else relative[i].astype(np.float64)))
    return pairs


def _frame(scene: Path, frame: int) -> FileFrame:
    depth, pose = scene / "depth" / f"{frame}.png", scene / "pose" / f"{frame}.txt"
    intrinsics = _matrix(scene / "intrinsic" / "intrinsic_color.txt")[:3, :3]
    intrinsics[:2, 2] += 0.5
    world2cam = invert_pose(_matrix(pose)[:3]) if pose.is_file() else None
    return FileFrame(
        image=scene / "color" / f"{frame}.jpg",
        scene=scene.name,
        depth=depth if depth.is_file() else None,
        intrinsics=intrinsics,
        world2cam=world2cam if world2cam is not None and np.isfinite(world2cam).all() else None,  # tracking was lost
    )


def _matrix(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: missing; unpack the scene again")
    try:
        matrix = np.loadtxt(path)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); unpack the scene again") from error
    if matrix.shape != (4, 4):
        raise UserError(f"{path}: matrix of shape {matrix.shape}, expected 4x4")
    return matrix


def read_depth(path: Path) -> np.ndarray:
    """Depth of ScanNet.

    Args:
        path: 16-bit PNG in millimetres.

    Returns:
        float32 `[H, W]` in metres, 0 where unknown.

    Raises:
        UserError: The file is cut or of another kind.
    """
    try:
        return read_png16(path).astype(np.float32) / 1000
    except RefusedError as error:
        raise UserError(str(error)) from error


PNG_DEPTH = DepthFormat(read_depth, image_size)
