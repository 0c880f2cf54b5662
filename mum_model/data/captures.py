"""What a source hands to `prepare`: scenes as they were captured, read one frame at a time.

Every source converts to the conventions of this project at its own door:

* cameras are OpenCV pinholes without distortion (x right, y down, z forward);
* intrinsics are in pixels, the centre of the top-left pixel at (0.5, 0.5);
* poses are world-to-camera, `[3, 4]`, float64, in metres where the source knows the scale;
* depth is z-depth in the unit of the poses, 0 where unknown.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Refusal:
    """One thing that was left out, and why.

    Attributes:
        path: The file or folder at fault, as a person would look for it.
        reason: What was found and what was expected, in one line.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class RefusedError(Exception):
    """A frame, or a whole scene, that cannot be used; carries the `Refusal` that the report shows."""

    def __init__(self, path: object, reason: str):
        self.refusal = Refusal(str(path), reason)
        super().__init__(str(self.refusal))


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One view of a scene with everything its source knows of it.

    Attributes:
        image: RGB, uint8 `[H, W, 3]`.
        intrinsics: Camera matrix, float64 `[3, 3]`, or None where unknown.
        world2cam: Pose, float64 `[3, 4]`, or None where unknown.
        depth: z-depth, float32 `[H, W]`, 0 where unknown (sparse for structure from motion); None without any.
    """

    image: np.ndarray
    intrinsics: np.ndarray | None = None
    world2cam: np.ndarray | None = None
    depth: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One scene of a source; its pixels are read by `load`, a frame at a time.

    Attributes:
        scene: Name of the scene, unique within its source.
        source: Name of the format it came from (`colmap`, `nerfstudio`, `rgbd`, `images`, `rendered`).
        frames: Names of the frames in capture order, unique within the scene.
        load: Reads the frame of that name; raises `RefusedError` where it is broken.
        refused: What the source already knows it cannot give: frames listed without a file, and the like.
    """

    scene: str
    source: str
    frames: tuple[str, ...]
    load: Callable[[str], Frame]
    refused: tuple[Refusal, ...] = field(default=())
