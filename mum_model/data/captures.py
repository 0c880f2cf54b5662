"""What a source hands to `prepare`: scenes as they were captured, read one frame at a time.

Every source converts to the conventions of this project at its own door:

* cameras are OpenCV pinholes without distortion (x right, y down, z forward);
* intrinsics are in pixels, the centre of the top-left pixel at (0.5, 0.5);
* poses are world-to-camera, `[3, 4]`, float64, in metres where the source knows the scale;
* depth is z-depth in the unit of the poses, 0 where unknown.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
        return printable(f"{self.path}: {self.reason}")


def printable(text: str) -> str:
    """Text for one line of a log or page: what does not print, as escapes (line feeds, bytes that are no UTF-8)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_text(name: str) -> bool:
    """Whether a name can be stored: file systems hold any bytes, tables hold UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


class RefusedError(Exception):
    """A frame, or a whole scene, that cannot be used; carries the `Refusal` that the report shows."""

    def __init__(self, path: object, reason: str):
        self.refusal = Refusal(str(path), reason)
        super().__init__(str(self.refusal))

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.refusal.path, self.refusal.reason)


class UnusableSceneError(Exception):
    """A scene of which nothing can be used; carries every `Refusal` in it."""

    def __init__(self, *refused: Refusal):
        self.refused = refused
        super().__init__(*refused)


class Points(NamedTuple):
    """The points of a structure-from-motion model that a view observes.

    Attributes:
        identity: Their numbers in the model, int64 `[P]`, each once.
        xyz: Where they are in the world, float64 `[P, 3]`.
    """

    identity: np.ndarray
    xyz: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One view of a scene with everything its source knows of it.

    Attributes:
        image: RGB, uint8 `[H, W, 3]`.
        intrinsics: Camera matrix, float64 `[3, 3]`, or None where unknown.
        world2cam: Pose, float64 `[3, 4]`, or None where unknown.
        depth: z-depth, float32 `[H, W]`, 0 where unknown (sparse for structure from motion); None without any.
        points: What structure from motion observed; None without it.
        lossy: Whether its file had lost detail already, as JPEGs and films have.
    """

    image: np.ndarray
    intrinsics: np.ndarray | None = None
    world2cam: np.ndarray | None = None
    depth: np.ndarray | None = None
    points: Points | None = None
    lossy: bool = False


UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SequenceRule:
    """How the frames of a scene form sequences.

    Attributes:
        kind: One of `mum_model.data.sequences.KINDS`: `anchor` (a view and those that see most of it), `chain` (each
            view the one that sees most of the view before), `chunk` (in capture order), `whole` (the scene), `single`
            (each view alone).
        frames: Largest length of a sequence; for chunks, the length of all but the last, which takes what is left.
        least: Shorter sequences are left out.
        anchors: At most so many anchors of a scene, drawn at random; None takes every frame.
        overlap: Least and largest share of a view that another of its sequence sees (anchors and chains).
        angle: Least and largest angle between the two at what both see, in degrees; an unknown angle fits.
    """

    kind: str
    frames: int = UNBOUNDED
    least: int = 1
    anchors: int | None = None
    overlap: tuple[float, float] = (0.0, 1.0)
    angle: tuple[float, float] = (0.0, 180.0)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One scene of a source; its pixels are read by `load`, a frame at a time.

    Attributes:
        scene: Name of the scene, unique within its source.
        source: Name of the format it came from.
        frames: Names of the frames in capture order, unique within the scene.
        load: Reads the frame of that name; raises `RefusedError` where it is broken.
        refused: What the source already knows it cannot give: frames listed without a file, and the like.
        rule: How the makers of the dataset form sequences; None leaves it to `data.sequence`.
        place: Scenes of one place share a split: several recordings of a flat, clips of a film.
        sequences: The sequences themselves, by names of frames, where the dataset lists them.
        overlap: The dataset's own share of frame i that frame j sees, `[frames, frames]`; None where it has none.
    """

    scene: str
    source: str
    frames: tuple[str, ...]
    load: Callable[[str], Frame]
    refused: tuple[Refusal, ...] = field(default=())
    rule: SequenceRule | None = None
    place: str = ""
    sequences: tuple[tuple[str, ...], ...] = ()
    overlap: np.ndarray | None = None


@dataclass(frozen=True)
class Scene:
    """A scene that was found and is yet to be read: light, so that millions can be listed and sent to other machines.

    Attributes:
        source: Name of its format.
        name: Unique within its source.
        inputs: The files and folders that it is read from; it is prepared anew when any of them changes.
        read: Describes it; raises `RefusedError` where nothing of it can be read.
        key: Whatever else it depends on.
    """

    source: str
    name: str
    inputs: tuple[Path, ...]
    read: Callable[[], Capture]
    key: str = ""

    def capture(self) -> Capture:
        """Read the scene's description.

        Returns:
            The capture; it has at least one frame.

        Raises:
            UnusableSceneError: None of its frames can be used.
        """
        try:
            capture = self.read()
        except RefusedError as error:
            raise UnusableSceneError(error.refusal) from error
        except OSError as error:
            path = str(error.filename or (self.inputs or (self.name,))[0])
            raise UnusableSceneError(Refusal(path, f"cannot be read: {error.strerror}")) from error
        if not capture.frames:
            nothing = Refusal(self.place, f"none of the frames of this {self.source} scene can be used")
            raise UnusableSceneError(nothing, *capture.refused)
        return capture

    @property
    def place(self) -> str:
        """Where it was found, for a message."""
        return str(self.inputs[0]) if self.inputs else self.name


@dataclass(frozen=True)
class Source:
    """A format of captures, or a public dataset: what it looks like and how it is read.

    Attributes:
        name: As it appears in the index.
        layout: The files it is made of, in one line for the user.
        truth: What ground truth comes with it.
        licence: Under which its makers give it out.
        origin: Where it comes from.
        recognise: Whether a path looks like this format, broken or not.
        scenes: The scenes under a recognised path, in a fixed order; raises `RefusedError` where none can be listed.
    """

    name: str
    layout: str
    truth: str
    licence: str
    origin: str
    recognise: Callable[[Path], bool]
    scenes: Callable[[Path], Iterable[Scene]]


def one_scene(source: str, read: Callable[[Path], Capture]) -> Callable[[Path], list[Scene]]:
    """`Source.scenes` of a format of which a path is one scene.

    Args:
        source: Name of the format.
        read: Describes the capture at a path.

    Returns:
        A function from the path to its only scene, named like the path.
    """
    return partial(_one_scene, source, read)


def _one_scene(source: str, read: Callable[[Path], Capture], path: Path) -> list[Scene]:
    return [Scene(source, path.name, (path,), partial(read, path))]
