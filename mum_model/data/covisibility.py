"""How much of a view another view sees: measured where anything is known to measure by, else guessed from time.

Whatever the measure, a view is a handful of points in the world and every other view says which of them it sees. The
share it sees is the overlap; the angle between the two lines of sight is the baseline angle.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mum_model.data.captures import Frame, Points
from mum_model.data.geometry import pixel_grid, unproject

SAMPLES = 400
MIN_OVERLAP = 0.02  # less is not stored
CANDIDATES = 256  # views nearest in place and direction with which each is compared
TIME_REACH = 12  # frames apart at which two views of a sequence count as no longer co-visible
DEPTH_TOLERANCE = 0.05  # as in `geometry.warp`
FRUSTUM_DEPTHS = (0.5, 1.0, 2.0)  # of the distance at which a camera looks at what the others look at
FRUSTUM_GRID = 10  # pixels a side


@dataclass(frozen=True)
class Covisibility:
    """Ordered pairs of views of one scene that see the same surfaces, stored sparsely, by rising a.

    Attributes:
        a: Position of view a in the scene, int32 `[P]`.
        b: Position of view b, int32 `[P]`.
        overlap: Share of a's surface that b sees, float32 `[P]`, in (0, 1].
        angle: Mean angle between the lines of sight from both to what both see, in degrees, float32 `[P]`;
            not-a-number where unknown.
        measure: `stated` by the dataset; `points` shared in structure from motion; `depth`, warped and compared;
            `frustum`, without knowing what hides what; `time`, the nearness in capture order.
    """

    a: np.ndarray
    b: np.ndarray
    overlap: np.ndarray
    angle: np.ndarray
    measure: str

    def within(self, overlap: tuple[float, float], angle: tuple[float, float]) -> "Covisibility":
        """Those pairs between two overlaps and two angles; an unknown angle fits."""
        fits = (self.overlap >= overlap[0]) & (self.overlap <= overlap[1])
        fits &= ~((self.angle < angle[0]) | (self.angle > angle[1]))
        return Covisibility(self.a[fits], self.b[fits], self.overlap[fits], self.angle[fits], self.measure)

    def of(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Views that see part of this one, and their share of it."""
        start, end = np.searchsorted(self.a, [view, view + 1])
        return self.b[start:end], self.overlap[start:end]


@dataclass(frozen=True, kw_only=True)
class View:
    """What is known of where a view looks.

    Attributes:
        width: In pixels.
        height: In pixels.
        intrinsics: Camera matrix `[3, 3]`, or None.
        world2cam: Pose `[3, 4]`, or None.
        depth: z-depth `[H, W]`, 0 where unknown, or None.
        points: What structure from motion observed, or None.
    """

    width: int
    height: int
    intrinsics: np.ndarray | None = None
    world2cam: np.ndarray | None = None
    depth: np.ndarray | None = None
    points: Points | None = None

    @classmethod
    def of(cls, frame: Frame) -> "View":
        """The view of a frame, without its pixels."""
        height, width = frame.image.shape[:2]
        return cls(
            width=width,
            height=height,
            intrinsics=frame.intrinsics,
            world2cam=frame.world2cam,
            depth=frame.depth,
            points=frame.points,
        )


def covisibility(views: Sequence[View], stated: np.ndarray | None = None) -> Covisibility:
    """Co-visibility of the pairs of views of a scene, by the best measure that at least two of them allow.

    Args:
        views: In capture order.
        stated: The dataset's own overlaps `[views, views]`, row a, column b; goes before any measure.

    Returns:
        The pairs; of a scene of more than `CANDIDATES` views only those of near cameras.
    """
    if stated is not None:
        return _stated(stated)
    posed = [i for i, view in enumerate(views) if view.intrinsics is not None and view.world2cam is not None]
    measures: dict[str, tuple[list[int], Callable[[Sequence[View], list[int]], Iterator[_Seen]]]] = {
        "points": ([i for i in posed if views[i].points is not None], _by_points),
        "depth": ([i for i in posed if (depth := views[i].depth) is not None and depth.any()], _by_depth),
        "frustum": (posed, _by_frustum),
    }
    for measure, (members, measured) in measures.items():
        if len(members) >= 2:
            return _sparse(list(measured(views, members)), measure)
    return _by_time(len(views))


_Seen = tuple[int, int, float, float]
"""View a, view b, the share of a that b sees, and the angle."""


def _stated(overlap: np.ndarray) -> Covisibility:
    kept = np.where(np.eye(len(overlap), dtype=bool), 0, overlap) >= MIN_OVERLAP
    a, b = np.nonzero(kept)
    share = np.minimum(overlap[a, b], 1).astype(np.float32)
    return Covisibility(a.astype(np.int32), b.astype(np.int32), share, np.full(len(a), np.nan, np.float32), "stated")


def _by_points(views: Sequence[View], members: list[int]) -> Iterator[_Seen]:
    """Points that both observe, of all that a observes."""
    observed = [points for i in members if (points := views[i].points) is not None]
    identity, compact = np.unique(np.concatenate([points.identity for points in observed]), return_inverse=True)
    xyz = np.concatenate([points.xyz for points in observed])
    observer = np.repeat(np.arange(len(members)), [len(points.identity) for points in observed])
    centres = _Cameras(views, members).centres
    of_a = np.zeros(len(identity), bool)
    for a in range(len(members)):
        own = compact[observer == a]
        of_a[own] = True
        shared = np.flatnonzero(of_a[compact])
        of_a[own] = False
        count = np.bincount(observer[shared], minlength=len(members))
        angles = _angles(xyz[shared] - centres[a], xyz[shared] - centres[observer[shared]])
        angle = np.bincount(observer[shared], angles, len(members)) / np.maximum(count, 1)
        for b in np.flatnonzero(count):
            if a != b:
                yield members[a], members[b], count[b] / len(own), angle[b]


def _by_depth(views: Sequence[View], members: list[int]) -> Iterator[_Seen]:
    """Points of a's depth map that b's depth map has at the same place."""
    cameras = _Cameras(views, members)
    for a in range(len(members)):
        points, others = cameras.surface(a), cameras.near(a)
        pixels, depth = cameras.look(points, others)
        with np.errstate(invalid="ignore"):
            seen_depth = cameras.lookup(pixels, others)
            seen = (seen_depth > 0) & (np.abs(depth - seen_depth) < DEPTH_TOLERANCE * seen_depth)
        yield from cameras.summary(a, others, points, seen)


def _by_frustum(views: Sequence[View], members: list[int]) -> Iterator[_Seen]:
    """Points before a, at distances at which the cameras look at something together, that are in b's picture."""
    cameras = _Cameras(views, members)
    distances = cameras.distances()
    for a in range(len(members)):
        points, others = cameras.frustum(a, distances[a]), cameras.near(a)
        pixels, _ = cameras.look(points, others)
        yield from cameras.summary(a, others, points, cameras.inside(pixels, others))


class _Cameras:
    """The posed views of a scene in arrays, so that one is compared with all others at once."""

    def __init__(self, views: Sequence[View], members: list[int]):
        known = [views[i] for i in members]
        poses = np.stack([view.world2cam for view in known if view.world2cam is not None])
        self.members = members
        self.intrinsics = np.stack([view.intrinsics for view in known if view.intrinsics is not None])
        self.rotations, self.translations = poses[:, :, :3], poses[:, :, 3]
        self.centres = -np.einsum("nij,ni->nj", self.rotations, self.translations)
        self.forward = self.rotations[:, 2]
        self.sizes = np.array([(view.width, view.height) for view in known])
        self.depths = [view.depth for view in known if view.depth is not None]
        self.flat_depth = np.concatenate([np.empty(0, np.float32), *(depth.ravel() for depth in self.depths)])
        self.starts = np.cumsum([0, *(depth.size for depth in self.depths)])
        self.spread = float(np.linalg.norm(self.centres - self.centres.mean(0), axis=1).mean()) or 1.0

    def near(self, a: int) -> np.ndarray:
        """The views with which one is worth comparing: all, or those that stand and look most alike, `[B]`."""
        others = np.flatnonzero(np.arange(len(self.members)) != a)
        if len(others) <= CANDIDATES:
            return others
        apart = np.linalg.norm(self.centres[others] - self.centres[a], axis=1) / self.spread
        unlike = apart - self.forward[others] @ self.forward[a]
        return np.sort(others[np.argpartition(unlike, CANDIDATES)[:CANDIDATES]])

    def look(self, points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points of the world `[N, 3]` appear in each: pixels `[B, N, 2]`, and z-depth `[B, N]`."""
        in_camera = points @ self.rotations[others].transpose(0, 2, 1) + self.translations[others][:, None]
        depth = in_camera[..., 2]
        ahead = np.where(depth > 0, depth, np.nan)
        return (in_camera @ self.intrinsics[others].transpose(0, 2, 1))[..., :2] / ahead[..., None], depth

    def inside(self, pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether pixels are in the pictures, `[B, N]`."""
        with np.errstate(invalid="ignore"):
            return np.all((pixels >= 0) & (pixels < self.sizes[others][:, None]), axis=-1)

    def lookup(self, pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The depth that each has at its pixels, `[B, N]`, 0 outside."""
        inside = self.inside(pixels, others)
        column, row = np.where(inside[..., None], pixels, 0).astype(np.int64).transpose(2, 0, 1)
        where = self.starts[others][:, None] + row * self.sizes[others][:, :1] + column
        return np.where(inside, self.flat_depth[where], 0)

    def summary(self, a: int, others: np.ndarray, points: np.ndarray, seen: np.ndarray) -> Iterator[_Seen]:
        """The share of points that each sees, and the mean angle at those."""
        counts = seen.sum(1)
        to_a, to_others = points - self.centres[a], points - self.centres[others][:, None]
        angles = _angles(to_a, to_others)
        mean = np.where(seen, angles, 0).sum(1) / np.maximum(counts, 1)
        for b, share, angle in zip(others.tolist(), (counts / len(points)).tolist(), mean.tolist(), strict=True):
            yield self.members[a], self.members[b], share, angle

    def surface(self, a: int) -> np.ndarray:
        """Up to SAMPLES points of a depth map in the world, spread evenly over its known pixels, `[N, 3]`."""
        depth = self.depths[a]
        known = np.flatnonzero(depth)
        chosen = known[np.linspace(0, len(known) - 1, min(SAMPLES, len(known))).astype(int)]
        row, column = np.divmod(chosen, depth.shape[1])
        return self._in_world(a, np.stack([column, row], axis=1) + 0.5, depth[row, column].astype(np.float64))

    def frustum(self, a: int, distance: float) -> np.ndarray:
        """A grid of points at several depths before a camera, in the world, `[N, 3]`."""
        pixels = (pixel_grid(FRUSTUM_GRID, FRUSTUM_GRID) / FRUSTUM_GRID * self.sizes[a]).reshape(-1, 2)
        depths = np.repeat(np.array(FRUSTUM_DEPTHS) * distance, len(pixels))
        return self._in_world(a, np.tile(pixels, (len(FRUSTUM_DEPTHS), 1)), depths)

    def distances(self) -> np.ndarray:
        """How far before each lies what they look at: the point nearest to all optical axes, or else their spread."""
        across = np.eye(3) - self.forward[:, :, None] * self.forward[:, None, :]
        focus = np.linalg.lstsq(across.sum(0), np.einsum("nij,nj->i", across, self.centres), rcond=1e-3)[0]
        ahead = np.einsum("ni,ni->n", focus - self.centres, self.forward)
        usual = float(np.median(ahead[ahead > 0])) if (ahead > 0).mean() > 0.5 else self.spread
        return np.where(ahead > 0.1 * usual, ahead, usual)

    def _in_world(self, a: int, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
        return unproject(pixels, depth, self.intrinsics[a]) @ self.rotations[a] + self.centres[a]


def _angles(to_a: np.ndarray, to_b: np.ndarray) -> np.ndarray:
    """Degrees between two directions `[..., 3]`."""
    squares = np.einsum("...i,...i->...", to_a, to_a) * np.einsum("...i,...i->...", to_b, to_b)
    cosine = np.einsum("...i,...i->...", to_a, to_b) / np.sqrt(np.maximum(squares, np.finfo(float).tiny))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _by_time(count: int) -> Covisibility:
    found = [
        (a, b, 1 - abs(a - b) / TIME_REACH, np.nan)
        for a in range(count)
        for b in range(max(0, a - TIME_REACH), min(count, a + TIME_REACH + 1))
        if a != b
    ]
    return _sparse(found, "time")


def _sparse(found: list[_Seen], measure: str) -> Covisibility:
    kept = [row for row in found if row[2] >= MIN_OVERLAP]
    a, b, overlap, angle = zip(*kept, strict=True) if kept else ((), (), (), ())
    return Covisibility(
        np.array(a, np.int32),
        np.array(b, np.int32),
        np.array(overlap, np.float32),
        np.array(angle, np.float32),
        measure,
    )
