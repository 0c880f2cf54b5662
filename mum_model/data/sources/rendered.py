"""Rendered scenes: procedural rooms with exact depth and pose, ray-traced on the CPU, a pure function of the seed.

They are made to need geometry: textures repeat within a surface and across objects, each scene has few colours, objects
hide each other, the views stand wide apart, and every view has its own light, exposure and white balance, so that
colour alone does not decide a match.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import cv2
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from mum_model.data.captures import Capture, Frame, Scene, Source
from mum_model.data.geometry import invert_pose, pixel_grid, unproject
from mum_model.data.sources.textures import TEXTURE_SIZE, atlas, first_row, palette, texture
from mum_model.errors import UserError

TEXTURES = 10
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Difficulty:
    """What makes the views of a room hard to match.

    Attributes:
        arc: Least and largest share of half a circle that the cameras cover: how wide apart they stand.
        twins: Share of the furniture that repeats another piece, texture and all.
        wall_tile: Least and largest side of a repeat of the walls' textures, in metres.
        tile: The same of the furniture's.
        lamp: How much of the light comes from a lamp that each view has to itself.
        exposure: Least and largest logarithm of each view's exposure.
        balance: How far each view's white balance strays.
    """

    arc: tuple[float, float]
    twins: float
    wall_tile: tuple[float, float]
    tile: tuple[float, float]
    lamp: float
    exposure: tuple[float, float]
    balance: float


DIFFICULTIES = {
    "easy": Difficulty((0.06, 0.15), 0.0, (6.0, 10.0), (1.0, 2.4), 0.3, (-0.05, 0.05), 0.03),
    "medium": Difficulty((0.12, 0.3), 0.25, (5.0, 9.0), (0.6, 1.8), 0.9, (-0.2, 0.15), 0.1),
    "hard": Difficulty((0.25, 0.6), 0.5, (1.2, 2.5), (0.3, 0.8), 1.4, (-0.5, 0.3), 0.3),
}


def rendered_scenes(scenes: int, views: int, size: int, seed: int, difficulty: str = "medium") -> list[Scene]:
    """List rendered scenes; nothing is rendered before a frame is loaded.

    Args:
        scenes: Number of rooms.
        views: Views of each room.
        size: Side of the square views in pixels.
        seed: The same seed gives the same pixels.
        difficulty: One of `DIFFICULTIES`.

    Returns:
        One scene a room.

    Raises:
        UserError: There is no such difficulty.
    """
    require_difficulty(difficulty)
    names = [f"room-{seed}-{scene:05d}" for scene in range(scenes)]
    return [
        Scene(
            "rendered",
            name,
            (),
            partial(_describe, name, seed, scene, views, size, difficulty),
            key=f"{views} {difficulty} views of {size}",
        )
        for scene, name in enumerate(names)
    ]


def require_difficulty(difficulty: str) -> None:
    """Refuse a difficulty that is none.

    Args:
        difficulty: As configured.

    Raises:
        UserError: It is not one of `DIFFICULTIES`.
    """
    if difficulty not in DIFFICULTIES:
        raise UserError(f"data.rendered.difficulty={difficulty}: expected one of {', '.join(DIFFICULTIES)}")


def _describe(name: str, seed: int, scene: int, views: int, size: int, difficulty: str) -> Capture:
    frames = tuple(f"{view:04d}" for view in range(views))
    load = partial(_load, seed, scene, views, size, difficulty)
    return Capture(scene=name, source="rendered", frames=frames, load=load)


def _load(seed: int, scene: int, views: int, size: int, difficulty: str, frame: str) -> Frame:
    return room(seed, scene, difficulty).render(view=int(frame), views=views, size=size)


@lru_cache(maxsize=4)
def room(seed: int, scene: int, difficulty: str) -> "Room":
    """One room; the last few stay, since its views are wanted one after the other.

    Args:
        seed: Of all rooms.
        scene: Its number.
        difficulty: One of `DIFFICULTIES`.

    Returns:
        The room.
    """
    return Room(seed, scene, DIFFICULTIES[difficulty])


@dataclass(frozen=True)
class Solid:
    """A box or a ball in the room.

    Attributes:
        vertices: Triangles in its own frame, `[T, 3, 3]`.
        object2world: Pose `[3, 4]`.
        textures: Index of the texture of each of its three axes.
        tile: Side of one repeat of the texture, in metres.
    """

    vertices: np.ndarray
    object2world: np.ndarray
    textures: tuple[int, int, int]
    tile: float


class Room:
    """One procedural room: its surfaces, textures and cameras."""

    def __init__(self, seed: int, scene: int, difficulty: Difficulty):
        self.seed, self.scene, self.difficulty = seed, scene, difficulty
        rng = np.random.default_rng([seed, scene])
        self.half = rng.uniform([2.0, 1.2, 2.0], [3.2, 1.6, 3.2])  # half extents; y points down
        colours = palette(rng)
        self.atlas = atlas([texture(rng, colours) for _ in range(TEXTURES)])
        solids = [self._walls(rng), *self._furniture(rng)]
        self.path_start = rng.uniform(0, 2 * math.pi)
        self.path_arc = rng.uniform(math.pi * difficulty.arc[0], math.pi * difficulty.arc[1])
        triangles = np.concatenate([_placed(solid) for solid in solids])
        edges = triangles[:, 1:] - triangles[:, :1]
        normals = np.cross(edges[:, 0], edges[:, 1])
        self.normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        self.plane_offsets = (triangles[:, 0] * self.normals).sum(1)
        self.atlas_rows, self.world2uv = _texture_coordinates(solids, self.normals)
        self.mesh = EmbreeScene(robust=True)
        TriangleMesh(self.mesh, triangles.astype(np.float32))

    def render(self, view: int, views: int, size: int) -> Frame:
        """Ray-trace one view.

        Args:
            view: Which one, `0..views-1`.
            views: How many there are along the camera's path.
            size: Side of the image in pixels.

        Returns:
            Image, intrinsics, pose and exact depth.
        """
        image, intrinsics, cam2world = self._photo(view, views, size)
        _, _, depth = self._trace(size, intrinsics, cam2world)
        return Frame(
            image=image,
            intrinsics=intrinsics,
            world2cam=invert_pose(cam2world),
            depth=depth.reshape(size, size).astype(np.float32),
        )

    def image(self, view: int, views: int, size: int) -> np.ndarray:
        """The image of `render` alone, for what needs no depth.

        Args:
            view: Which one, `0..views-1`.
            views: How many there are along the camera's path.
            size: Side of the image in pixels.

        Returns:
            RGB uint8 `[size, size, 3]`.
        """
        return self._photo(view, views, size)[0]

    def _photo(self, view: int, views: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image uint8 `[size, size, 3]`, intrinsics `[3, 3]` and camera-to-world `[3, 4]`."""
        rng = np.random.default_rng([self.seed, self.scene, view])
        cam2world = self._camera(rng, view / views)
        focal = 0.5 * size / math.tan(math.radians(rng.uniform(50, 70)) / 2)
        intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
        fine = np.diag([SUPERSAMPLING, SUPERSAMPLING, 1.0]) @ intrinsics
        points, triangle, _ = self._trace(size * SUPERSAMPLING, fine, cam2world)
        colour = self._light(rng, points, triangle, self._albedo(points, triangle), cam2world[:, 3])
        image = cv2.resize(colour.reshape(size * SUPERSAMPLING, -1, 3), (size, size), interpolation=cv2.INTER_AREA)
        return (image * 255 + 0.5).astype(np.uint8), intrinsics, cam2world

    def _walls(self, rng: np.random.Generator) -> Solid:
        return Solid(_box(self.half), np.eye(3, 4), _three(rng), rng.uniform(*self.difficulty.wall_tile))

    def _furniture(self, rng: np.random.Generator) -> list[Solid]:
        """Boxes and balls on the floor and in the air, some of them twins: the same shape and texture elsewhere."""
        solids: list[Solid] = []
        for _ in range(rng.integers(8, 13)):
            if solids and rng.random() < self.difficulty.twins:
                twin = solids[rng.integers(len(solids))]
                vertices, textures, tile = twin.vertices, twin.textures, twin.tile
            else:
                extent = rng.uniform(0.15, 0.55, 3)
                vertices = _box(extent) if rng.random() < 0.7 else _ball(extent[0])
                textures, tile = _three(rng), rng.uniform(*self.difficulty.tile)
            reach = np.abs(vertices).max((0, 1))
            place = rng.uniform(-0.55, 0.55, 3) * self.half
            if rng.random() < 0.7:
                place[1] = self.half[1] - reach[1]  # on the floor
            turn = _turn_about_y(rng.uniform(0, 2 * math.pi))
            solids.append(Solid(vertices, np.concatenate([turn, place[:, None]], axis=1), textures, tile))
        return solids

    def _camera(self, rng: np.random.Generator, along: float) -> np.ndarray:
        """Camera-to-world on an arc along the walls, looking across the room."""
        angle = self.path_start + self.path_arc * along + rng.normal(0, 0.02)
        reach = self.half[[0, 2]] * rng.uniform(0.82, 0.94)
        height = rng.uniform(-0.55, 0.2) * self.half[1]
        position = np.array([reach[0] * math.cos(angle), height, reach[1] * math.sin(angle)])
        target = rng.normal(0, 0.12, 3) * np.array([1, 0.5, 1]) + [0, 0.25 * self.half[1], 0]
        return look_at(position, target, roll=rng.normal(0, 0.06))

    def _trace(
        self, size: int, intrinsics: np.ndarray, cam2world: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First hit of the ray through each pixel: point in the world `[N, 3]`, triangle `[N]`, z-depth `[N]`."""
        pixels = pixel_grid(size, size).reshape(-1, 2)
        rays = unproject(pixels, np.ones(len(pixels)), intrinsics) @ cam2world[:, :3].T
        origin = cam2world[:, 3]
        triangle = self.mesh.run(np.broadcast_to(origin, rays.shape).astype(np.float32), rays.astype(np.float32))
        # The ray's parameter is z-depth, since rays have z = 1; from the triangle's plane it is exact to float64.
        distance = self.plane_offsets - self.normals @ origin
        depth = distance[triangle] / np.einsum("nk,nk->n", rays, self.normals[triangle])
        return origin + rays * depth[:, None], triangle, depth

    def _albedo(self, points: np.ndarray, triangle: np.ndarray) -> np.ndarray:
        """Colour of each point, float32 `[N, 3]`, its texture projected along the dominant axis of its surface."""
        to_uv = self.world2uv[triangle]
        u, v = (np.einsum("nij,nj->in", to_uv[:, :, :3], points) + to_uv[:, :, 3].T) % 1.0
        side = math.isqrt(len(points))  # remap wants an image
        column = (u * TEXTURE_SIZE + 0.5).reshape(side, side).astype(np.float32)
        row = (self.atlas_rows[triangle] + v * TEXTURE_SIZE).reshape(side, side).astype(np.float32)
        # Two maps: given as one map of two channels, OpenCV 5.0.0 returns not-a-number for some pixels.
        return cv2.remap(self.atlas, column, row, cv2.INTER_LINEAR).reshape(-1, 3)

    def _light(
        self, rng: np.random.Generator, points: np.ndarray, triangle: np.ndarray, albedo: np.ndarray, eye: np.ndarray
    ) -> np.ndarray:
        """Shade with this view's own lamp, exposure, white balance and tone curve; RGB in 0..1, float32."""
        lamp = rng.uniform(-0.8, 0.8, 3) * self.half
        lamp[1] = -0.9 * self.half[1]
        to_lamp = (lamp - points).astype(np.float32)
        normal = self.normals[triangle].astype(np.float32)
        towards_eye = np.sign(self.normals @ eye - self.plane_offsets)[triangle].astype(np.float32)
        square = np.einsum("nk,nk->n", to_lamp, to_lamp)
        facing = np.einsum("nk,nk->n", to_lamp, normal) * towards_eye / np.sqrt(square)
        lambert = np.maximum(facing, 0) / (1 + 0.15 * square)
        brightness = rng.uniform(0.5, 0.75) + self.difficulty.lamp * lambert
        stray = self.difficulty.balance
        gain = rng.uniform(1 - stray, 1 + stray, 3) * math.exp(rng.uniform(*self.difficulty.exposure))
        colour = albedo * brightness[:, None] * gain.astype(np.float32)
        return np.clip(colour, 0, 1) ** np.float32(math.exp(rng.uniform(-0.1, 0.1)))


def _placed(solid: Solid) -> np.ndarray:
    """A solid's triangles in the world, `[T, 3, 3]`."""
    return solid.vertices @ solid.object2world[:, :3].T + solid.object2world[:, 3]


def _texture_coordinates(solids: list[Solid], normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each triangle: its texture's first row in the atlas `[T]`, and the map from world to (u, v) `[T, 2, 4]`."""
    rows, maps = [], []
    start = 0
    for solid in solids:
        world2object = invert_pose(solid.object2world)
        local = normals[start : start + len(solid.vertices)] @ world2object[:, :3].T
        for axis in np.abs(local).argmax(1):
            rows.append(first_row(solid.textures[axis]))
            maps.append(world2object[[(axis + 1) % 3, (axis + 2) % 3]] / solid.tile)
        start += len(solid.vertices)
    return np.array(rows), np.stack(maps)


def look_at(position: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """Camera-to-world of a camera that looks at a point, with the world's y axis pointing down.

    Args:
        position: Camera centre `[3]`.
        target: Point on its optical axis `[3]`.
        roll: Rotation about the optical axis in radians.

    Returns:
        Pose `[3, 4]`, OpenCV axes.
    """
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = math.cos(roll), math.sin(roll)
    return np.stack([c * right + s * down, c * down - s * right, forward, position], axis=1)


def _turn_about_y(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _three(rng: np.random.Generator) -> tuple[int, int, int]:
    a, b, c = rng.integers(TEXTURES, size=3)
    return int(a), int(b), int(c)


def _box(half: np.ndarray) -> np.ndarray:
    """Triangles of an axis-aligned box about the origin, `[12, 3, 3]`."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners[np.array([(q[0], q[i], q[i + 1]) for q in quads for i in (1, 2)])]


def _ball(radius: float) -> np.ndarray:
    """Triangles of a ball about the origin, `[T, 3, 3]`."""
    around, up = np.meshgrid(np.linspace(0, 2 * math.pi, 25), np.linspace(0, math.pi, 13), indexing="ij")
    grid = radius * np.stack([np.sin(up) * np.cos(around), np.cos(up), np.sin(up) * np.sin(around)], axis=-1)
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    upper, lower = np.stack([a, b, c], axis=-2)[:, 1:], np.stack([a, c, d], axis=-2)[:, :-1]
    return np.concatenate([upper.reshape(-1, 3, 3), lower.reshape(-1, 3, 3)])


SOURCE = Source(
    name="rendered",
    layout="data.source=rendered: procedural rooms, made on the spot",
    truth="exact poses, intrinsics and depth",
    licence="Apache-2.0, as this program",
    origin="mum_model.data.sources.rendered",
    recognise=lambda path: False,
    scenes=lambda path: [],
)
