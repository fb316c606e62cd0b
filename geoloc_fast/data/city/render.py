"""The three views of a place: satellite image, street panorama, crowd photo.

The satellite image looks straight down on the rasters of the city. Street views march a ray per image
column over the height map, then lay trees and people over the result as upright ellipsoids. Each view
is taken on a day of its own: sun, season, cars, paint and exposure are drawn anew for every image, so
that colour does not give the place away while the geometry does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from geoloc_fast.data.city.scene import (
    CAR,
    CELL_M,
    GLASS,
    GRAIN_SIZE,
    GRASS,
    MATERIALS,
    PHOTO_OFFSET_M,
    ROOF,
    VIEW_RANGE_M,
    City,
    generator,
)

SATELLITE_SIDE_M = 50.0
PANORAMA_EYE_M = 2.2
_SHADOW_RANGE_M = 40.0
_NEAREST_M = 0.8
_CLEAR_M = 3.2  # no car stands nearer to a camera
_RAYS = 2  # per pixel, each way
_STREAMS = {"satellite": 2, "panorama": 3, "photo": 4}  # of random numbers, beside the scene's

_COLOURS = {
    "asphalt": (0.37, 0.37, 0.38),
    "patch": (0.27, 0.27, 0.28),
    "cobble": (0.47, 0.42, 0.38),
    "sidewalk": (0.60, 0.58, 0.55),
    "marking": (0.92, 0.92, 0.90),
    "cycleway": (0.58, 0.30, 0.25),
    "grass": (0.42, 0.48, 0.24),
    "paving": (0.64, 0.60, 0.53),
    "roof": (1.0, 1.0, 1.0),  # roofs and cars have their owner's colour
    "car": (1.0, 1.0, 1.0),
    "glass": (0.10, 0.12, 0.15),
}
_PALETTE = np.array([_COLOURS[name] for name in MATERIALS], np.float32)
# Colour of grass and of leaves, and how much of a crown is leaves.
_SEASONS = [
    ((0.36, 0.50, 0.20), (0.42, 0.54, 0.24), 0.85),
    ((0.42, 0.48, 0.24), (0.22, 0.36, 0.15), 1.0),
    ((0.44, 0.42, 0.21), (0.60, 0.40, 0.15), 0.85),
    ((0.42, 0.41, 0.29), (0.37, 0.32, 0.27), 0.3),
]
_CONIFER = np.array((0.14, 0.25, 0.15), np.float32)
_CLEAR_SKY = np.array([(0.82, 0.87, 0.92), (0.38, 0.56, 0.86)], np.float32)


@dataclass(frozen=True, eq=False)
class Day:
    """Everything that is different on another day."""

    seed: int  # of the cars and the paint
    sun_azimuth_deg: float
    sun_elevation_deg: float
    sun: np.ndarray  # [3], light of a surface that faces the sun
    ambient: np.ndarray  # [3], light in the shade
    palette: np.ndarray  # [materials, 3]
    leaves: np.ndarray  # [3]
    leaf_density: float
    sky: np.ndarray  # [2, 3], at the horizon and above
    cloudiness: float
    haze_m: float  # distance over which two thirds of the contrast are lost
    traffic: float  # multiplies the probability of every car
    repaint: float  # deviation of each parcel's colour from its usual one
    gain: np.ndarray  # [3], exposure and white balance
    gamma: float

    @classmethod
    def plain(cls) -> Day:
        """A clear summer day with no cars and everything in its usual colour."""
        return cls(
            seed=0,
            sun_azimuth_deg=200.0,
            sun_elevation_deg=50.0,
            sun=np.full(3, 0.75, np.float32),
            ambient=np.full(3, 0.45, np.float32),
            palette=_PALETTE,
            leaves=np.array(_SEASONS[1][1], np.float32),
            leaf_density=1.0,
            sky=_CLEAR_SKY,
            cloudiness=0.0,
            haze_m=400.0,
            traffic=0.0,
            repaint=0.0,
            gain=np.ones(3, np.float32),
            gamma=1.0,
        )

    @classmethod
    def draw(cls, rng: Generator) -> Day:
        """A day at random."""
        grass, leaves, leaf_density = _SEASONS[rng.integers(len(_SEASONS))]
        palette = _PALETTE.copy()
        palette[GRASS] = grass
        palette *= rng.uniform(0.75, 1.25, size=(len(palette), 1)).astype(np.float32)
        palette *= rng.uniform(0.95, 1.05, size=palette.shape).astype(np.float32)
        overcast = rng.random() < 0.35
        elevation_deg = rng.uniform(18, 62)
        low = np.clip((40 - elevation_deg) / 22, 0, 1)  # a low sun is yellow
        sun = rng.uniform(0.6, 1.0) * np.array([1.0, 1 - 0.08 * low, 1 - 0.3 * low])
        sun *= 0.12 if overcast else 1.0
        ambient = rng.uniform(0.32, 0.5) * rng.uniform((0.9, 0.95, 0.98), (1.0, 1.02, 1.15))
        ambient *= 1.9 if overcast else 1.0
        grey = rng.uniform(0.7, 0.92)
        sky = _CLEAR_SKY * rng.uniform(0.85, 1.1)
        if overcast:
            sky = np.array([(grey + 0.05,) * 3, (grey - 0.1, grey - 0.08, grey - 0.04)])
        gain = rng.uniform(0.72, 1.3) * rng.uniform(0.91, 1.09, size=3)
        return cls(
            seed=int(rng.integers(2**31)),
            sun_azimuth_deg=float(rng.uniform(80, 280)),
            sun_elevation_deg=float(elevation_deg),
            sun=sun.astype(np.float32),
            ambient=ambient.astype(np.float32),
            palette=palette,
            leaves=(np.array(leaves) * rng.uniform(0.8, 1.2)).astype(np.float32),
            leaf_density=leaf_density,
            sky=sky.astype(np.float32),
            cloudiness=float(rng.uniform(0, 0.5)),
            haze_m=float(rng.uniform(120, 500)),
            traffic=float(rng.uniform(0.3, 1.4)),
            repaint=0.12,
            gain=gain.astype(np.float32),
            gamma=float(rng.uniform(0.8, 1.25)),
        )

    @property
    def sun_direction(self) -> np.ndarray:
        """Unit vector (east, north, up) towards the sun."""
        azimuth, elevation = np.radians([self.sun_azimuth_deg, self.sun_elevation_deg])
        level = np.cos(elevation)
        return np.array([np.sin(azimuth) * level, np.cos(azimuth) * level, np.sin(elevation)])


class _Patch:
    """The city round a point on one day, cars in place."""

    def __init__(self, city: City, x_m: float, y_m: float, range_m: float, day: Day, clear_m: float = 0.0):
        reach = int(np.ceil(range_m / CELL_M)) + 2
        row, col = (round(v) for v in city.to_cells(x_m, y_m))
        window = np.s_[row - reach : row + reach + 1, col - reach : col + reach + 1]
        self.city, self.day, self.first_cell = city, day, (row - reach, col - reach)
        self.height_cm = city.height_cm[window].copy()
        self.material = city.material[window].copy()
        self.owner = city.owner[window].copy()
        trees = city.trees[np.abs(city.trees[:, :2] - (x_m, y_m)).max(axis=1) < range_m]
        self.trees = trees[np.argsort(trees[:, 3], kind="stable")]
        rng = generator(day.seed)
        parcels = len(city.parcels.tint)
        paint = 1 + day.repaint * rng.standard_normal((parcels, 1), np.float32)
        paint = paint + 0.35 * day.repaint * rng.standard_normal((parcels, 3), np.float32)
        self.facade = city.parcels.facade * paint
        slots = city.slots[np.abs(city.slots[:, :2] - (x_m, y_m)).max(axis=1) < range_m]
        slots = slots[rng.random(len(slots)) < day.traffic * slots[:, 3]]
        slots = slots[np.hypot(*(slots[:, :2] - (x_m, y_m)).T) >= clear_m]
        shades = rng.uniform(0.05, 0.95, size=(len(slots), 1)) + rng.uniform(-0.05, 0.05, size=(len(slots), 3))
        vivid = rng.random(len(slots)) < 0.3
        shades[vivid] = rng.uniform(0.1, 0.7, size=(int(vivid.sum()), 3))
        self.tint = np.concatenate([city.parcels.tint * paint, shades.astype(np.float32)])
        for number, slot in enumerate(slots, start=len(paint)):
            self._park(number, slot, rng.uniform(0.9, 1.12))

    def to_cells(self, x_m: Any, y_m: Any) -> tuple[Any, Any]:
        row, col = self.city.to_cells(x_m, y_m)
        return row - self.first_cell[0], col - self.first_cell[1]

    def _park(self, number: int, slot: np.ndarray, size: float) -> None:
        x_m, y_m, heading_deg, _ = slot
        along = np.array([np.sin(np.radians(heading_deg)), np.cos(np.radians(heading_deg))])
        right = np.array([along[1], -along[0]])
        for back, front, half_width_m, height_m, material in (
            (-2.1, 2.1, 0.9, 0.85, CAR),
            (-1.8, 1.0, 0.8, 1.2, GLASS),
            (-1.5, 0.5, 0.72, 1.45, CAR),
        ):
            corners = [
                (x_m, y_m) + size * (u * along + v * half_width_m * right)
                for u, v in ((back, -1), (front, -1), (front, 1), (back, 1))
            ]
            rows, cols = self.to_cells(*np.array(corners).T[[0, 1]])
            points = np.rint(16 * np.stack([cols, rows], axis=1)).astype(np.int32)
            cv2.fillConvexPoly(self.height_cm, points, int(100 * size * height_m), shift=4)
            cv2.fillConvexPoly(self.material, points, material, shift=4)
            cv2.fillConvexPoly(self.owner, points, number, shift=4)

    def grain_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """The ground's texture, which stays where it is from view to view."""
        last = GRAIN_SIZE - 1
        rows, cols = rows + self.first_cell[0], cols + self.first_cell[1]
        return self.city.grain[rows & last, cols & last]

    def albedo(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Colour of ground and roofs at cells, float32 [..., 3]."""
        colour = self.day.palette[self.material[rows, cols]] * self.tint[self.owner[rows, cols]]
        return colour * (1 + 0.07 * self.grain_at(rows, cols))[..., None]

    def sunlit(self, stride: int) -> np.ndarray:
        """Where the sun reaches the ground, at every `stride`-th cell: float32, 0 to 1."""
        ground_m = self.height_cm[::stride, ::stride].astype(np.float32) / 100
        step_m = stride * CELL_M
        blockers_m = ground_m.copy()
        rows, cols = self.to_cells(self.trees[:, 0], self.trees[:, 1])
        for row, col, tree in zip(rows / stride, cols / stride, self.trees, strict=True):
            centre = round(16 * col), round(16 * row)
            cv2.circle(blockers_m, centre, int(16 * tree[2] / step_m), float(tree[3]), -1, shift=4)
        east, north, up = self.day.sun_direction
        level = np.hypot(east, north)
        rise_m = step_m * up / level  # of a ray to the sun, per step
        steps = int(min(_SHADOW_RANGE_M / step_m, blockers_m.max() / rise_m)) + 1
        lit = np.ones(ground_m.shape, bool)
        size_r, size_c = lit.shape
        for step in range(steps):
            dr, dc = round(-step * north / level), round(step * east / level)
            here = np.s_[max(-dr, 0) : size_r - max(dr, 0), max(-dc, 0) : size_c - max(dc, 0)]
            there = np.s_[max(dr, 0) : size_r + min(dr, 0), max(dc, 0) : size_c + min(dc, 0)]
            lit[here] &= blockers_m[there] - (step * rise_m + 0.2) <= ground_m[here]
        return cv2.GaussianBlur(lit.astype(np.float32), (3, 3), 0)


def _develop(colour: np.ndarray, day: Day) -> np.ndarray:
    """Exposure, white balance and contrast; uint8."""
    exposed = np.clip(colour * day.gain, 0, 1) ** day.gamma
    return np.rint(255 * exposed).astype(np.uint8)


def satellite(city: City, x_m: float, y_m: float, day: Day, *, size_px: int = 256) -> np.ndarray:
    """The image from above, uint8 [size_px, size_px, 3]; pixel index size_px / 2 is the point."""
    patch = _Patch(city, x_m, y_m, SATELLITE_SIDE_M / 2 + _SHADOW_RANGE_M, day)
    lit = patch.sunlit(2)
    row, col = patch.to_cells(x_m, y_m)
    reach = int(SATELLITE_SIDE_M / 2 / CELL_M) + 3
    first = int(row) - reach, int(col) - reach
    rows, cols = (np.arange(f, f + 2 * reach + 2) for f in first)
    lit = lit[rows // 2][:, cols // 2]
    height_m = patch.height_cm[np.ix_(rows, cols)].astype(np.float32) / 100
    south, east = np.gradient(height_m, CELL_M)
    south, east = np.clip(south, -1, 1), np.clip(east, -1, 1)
    sun = day.sun_direction
    facing = (sun[2] - sun[0] * east + sun[1] * south) / np.sqrt(1 + south**2 + east**2)
    direct = np.maximum(facing, 0).astype(np.float32) * lit
    colour = patch.albedo(rows[:, None], cols[None, :])
    colour *= day.ambient + day.sun * direct[..., None]
    for tree in patch.trees:
        _draw_crown(colour, patch, tree, first)
    metres_per_pixel = SATELLITE_SIDE_M / size_px
    scale = metres_per_pixel / CELL_M
    if scale > 1:
        colour = cv2.GaussianBlur(colour, (0, 0), 0.5 * np.sqrt(scale**2 - 1) + 0.01)
    to_cell = np.array(
        [[scale, 0, col - first[1] - scale * size_px / 2], [0, scale, row - first[0] - scale * size_px / 2]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _develop(cv2.warpAffine(colour, to_cell, (size_px, size_px), flags=flags), day)


def _draw_crown(colour: np.ndarray, patch: _Patch, tree: np.ndarray, first: tuple[int, int]) -> None:
    """A tree from above, into an image whose pixels are cells."""
    x_m, y_m, radius_m, _, conifer = tree
    row, col = patch.to_cells(x_m, y_m)
    row, col, reach = row - first[0], col - first[1], radius_m * 1.2 / CELL_M
    r0, r1 = max(int(row - reach), 0), min(int(row + reach) + 2, colour.shape[0])
    c0, c1 = max(int(col - reach), 0), min(int(col + reach) + 2, colour.shape[1])
    if r0 >= r1 or c0 >= c1:
        return
    rows, cols = np.arange(r0, r1)[:, None], np.arange(c0, c1)[None, :]
    south, east = (rows - row) * (CELL_M / radius_m), (cols - col) * (CELL_M / radius_m)
    grain = patch.grain_at(rows + first[0], cols + first[1])
    squared = south**2 + east**2
    crown = squared < 1 + 0.2 * grain
    if not conifer:
        crown &= _leafy(grain, patch.day.leaf_density)
    sun = patch.day.sun_direction
    facing = sun[0] * east - sun[1] * south + sun[2] * np.sqrt(np.maximum(1 - squared, 0.1))
    leaves = _CONIFER if conifer else patch.day.leaves
    shade = (np.maximum(facing, 0) * (1 + 0.25 * grain))[..., None]
    light = patch.day.ambient * 0.9 + patch.day.sun * shade
    colour[r0:r1, c0:c1][crown] = (leaves * light)[crown]


def _leafy(grain: np.ndarray, density: float) -> np.ndarray:
    """A mask that covers about `density` of a tile of noise."""
    return grain < np.interp(density, [0, 0.3, 0.5, 0.85, 1], [-4, -0.52, 0, 1.04, 9])


@dataclass(frozen=True, eq=False)
class _Camera:
    """The rays of an image: slope (rise per metre of level distance) = rise[row] * stretch[col]."""

    azimuth_deg: np.ndarray  # [columns]
    rise: np.ndarray  # [rows], from the top down
    stretch: np.ndarray  # [columns]

    @classmethod
    def panorama(cls, size: tuple[int, int], column0_deg: float) -> _Camera:
        rows, columns = size
        degrees = 360.0 / columns
        across, down = _samples(columns), _samples(rows)
        elevation_deg = (rows / 2 - 0.5 - down) * degrees
        return cls(column0_deg + across * degrees, np.tan(np.radians(elevation_deg)), np.ones(len(across)))

    @classmethod
    def perspective(cls, size: tuple[int, int], heading_deg: float, fov_deg: float) -> _Camera:
        rows, columns = size
        focal_px = columns / 2 / np.tan(np.radians(fov_deg) / 2)
        offset = np.arctan((_samples(columns) - (columns - 1) / 2) / focal_px)
        rise = ((rows - 1) / 2 - _samples(rows)) / focal_px
        return cls(heading_deg + np.degrees(offset), rise, np.cos(offset))


def _samples(count: int) -> np.ndarray:
    """Coordinates of the rays, symmetric about each pixel's own coordinate."""
    return (np.arange(count * _RAYS) + 0.5) / _RAYS - 0.5


def _street_view(
    city: City, x_m: float, y_m: float, eye_m: float, camera: _Camera, day: Day, people: np.ndarray | None = None
) -> np.ndarray:
    """The image a camera sees, uint8; the rays of each pixel are averaged."""
    patch = _Patch(city, x_m, y_m, VIEW_RANGE_M, day, _CLEAR_M)
    azimuth = np.radians(camera.azimuth_deg)
    sin, cos = np.sin(azimuth), np.cos(azimuth)
    slope = (camera.rise[:, None] * camera.stretch).astype(np.float32)
    count = len(camera.rise), len(azimuth)

    # March outward: a row sees the first sample that rises above its ray.
    steps = int(np.log(VIEW_RANGE_M / _NEAREST_M) / np.log(1.022)) + 1
    distance = _NEAREST_M * 1.022 ** np.arange(steps + 1)
    distance = distance[distance < VIEW_RANGE_M - 1]
    row0, col0 = patch.to_cells(x_m, y_m)
    rows = np.rint(row0 - cos[:, None] * (distance / CELL_M)).astype(np.int32)
    cols = np.rint(col0 + sin[:, None] * (distance / CELL_M)).astype(np.int32)
    height_m = patch.height_cm[rows, cols].astype(np.float32) / 100
    seen = (height_m - eye_m) / (distance * camera.stretch[:, None])
    np.maximum.accumulate(seen, axis=1, out=seen)
    covered = np.searchsorted(camera.rise[::-1], seen.ravel(), side="right")  # rows from below
    covered += np.repeat(np.arange(count[1]) * (count[0] + 1), len(distance))
    tally = np.bincount(covered, minlength=count[1] * (count[0] + 1)).reshape(count[1], -1)
    first = np.cumsum(tally, axis=1)[:, count[0] - 1 :: -1].T  # [rows, columns]
    hit = first < len(distance)

    colour = _sky(city, day, camera.azimuth_deg, slope)
    depth = np.full(count, np.inf, np.float32)
    at_col = np.nonzero(hit)[1]
    k = first[hit]
    ray = slope[hit]
    near, far = np.where(k > 0, distance[k - 1], 0.0), distance[k]
    top_m = height_m[at_col, k]
    with np.errstate(divide="ignore", invalid="ignore"):
        level_m = (top_m - eye_m) / ray  # where the ray meets the surface, if it is level there
    level = (level_m >= near - 0.05) & (level_m <= far)
    far = np.where(level, level_m, (near + far) / 2)
    depth[hit] = far
    cell = rows[at_col, k], cols[at_col, k]
    colour[hit] = _shade(patch, cell, level, x_m + far * sin[at_col], y_m + far * cos[at_col], eye_m + ray * far, far)
    canvas = _Canvas((x_m, y_m, eye_m), azimuth, slope, colour, depth)
    for tree in patch.trees:
        _stand_tree(canvas, patch, tree)
    for person in () if people is None else people:
        _stand_person(canvas, day, person)
    clear = np.exp(-np.minimum(depth, 1e6) / day.haze_m)[..., None]
    hazed = np.where(np.isfinite(depth)[..., None], day.sky[0] + (colour - day.sky[0]) * clear, colour)
    shape = count[0] // _RAYS, _RAYS, count[1] // _RAYS, _RAYS, 3
    return _develop(hazed.reshape(shape).mean(axis=(1, 3)), day)


def _sky(city: City, day: Day, azimuth_deg: np.ndarray, slope: np.ndarray) -> np.ndarray:
    elevation = np.arctan(slope)
    blend = np.clip(elevation / 0.7, 0, 1)[..., None]
    colour = day.sky[0] + blend * (day.sky[1] - day.sky[0])
    cols = (azimuth_deg * (GRAIN_SIZE / 360)).astype(int) & (GRAIN_SIZE - 1)
    rows = ((elevation * 160).astype(int) + day.seed) & (GRAIN_SIZE - 1)
    cloud = np.clip(city.clouds[rows, cols[None, :]] * 0.5 + day.cloudiness - 0.2, 0, 0.9)
    colour += cloud[..., None] * (0.95 - colour)
    colour[slope < 0] = day.sky[0]  # beyond the range of sight
    return colour.astype(np.float32)


def _shade(
    patch: _Patch,
    cell: tuple[np.ndarray, np.ndarray],
    level: np.ndarray,
    x_m: np.ndarray,
    y_m: np.ndarray,
    z_m: np.ndarray,
    distance_m: np.ndarray,
) -> np.ndarray:
    """Lit colour of points on the ground, on roofs and on walls."""
    day, sun = patch.day, patch.day.sun_direction
    rows, cols = patch.to_cells(x_m, y_m)
    rows = np.where(level, np.rint(rows).astype(np.int32), cell[0])
    cols = np.where(level, np.rint(cols).astype(np.int32), cell[1])
    albedo = patch.albedo(rows, cols)
    lit = patch.sunlit(4)[rows // 4, cols // 4]
    direct = np.where(level, sun[2] * lit, 0.35 * sun[2] + 0.15).astype(np.float32)
    owner = patch.owner[cell]
    wall = ~level & (patch.material[cell] == ROOF)
    wall &= z_m < patch.city.parcels.eaves_m[np.where(wall, owner, 0)] + 0.05
    if wall.any():
        args = (v[wall] for v in (owner, x_m, y_m, z_m, distance_m))
        albedo[wall], direct[wall] = _facade(patch, *args)
    return albedo * (day.ambient + day.sun * direct[:, None])


def _facade(
    patch: _Patch, owner: np.ndarray, x_m: np.ndarray, y_m: np.ndarray, z_m: np.ndarray, distance_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colour of points on walls, and how much sun falls on them."""
    parcels, sun = patch.city.parcels, patch.day.sun_direction
    walls = parcels.walls[owner]
    side = (walls[..., 0] * x_m[:, None] + walls[..., 1] * y_m[:, None] - walls[..., 2]).argmax(1)
    normal = walls[np.arange(len(owner)), side, :2]
    along_m = normal[:, 0] * y_m - normal[:, 1] * x_m
    bay, storey = along_m / parcels.bay_m[owner], z_m / parcels.floor_m[owner]
    across, up = np.abs(bay % 1 - 0.5), np.abs(storey % 1 - 0.52)
    chance = np.sin(np.floor(bay) * 12.9898 + np.floor(storey) * 78.233 + owner) * 43758.5453 % 1
    ground = storey < 1
    shop = ground & parcels.shop[owner]
    width, height = parcels.window[owner].T
    window = (across < width / 2) & (up < height / 2) & (z_m < parcels.eaves_m[owner] - 0.5)
    window = np.where(shop, (across < 0.42) & (storey < 0.8) & (storey > 0.1), window)
    door = ground & ~shop & (chance > 0.8) & (across < 0.22) & (storey < 0.72)
    paint = patch.facade[owner]
    rows, cols = ((v * 10).astype(int) & (GRAIN_SIZE - 1) for v in (along_m, z_m))
    colour = paint * (1 + 0.05 * patch.city.grain[rows, cols])[:, None]
    colour *= np.where(storey % 1 < 0.05, 0.88, 1.0)[:, None]
    glass = patch.day.palette[GLASS] * (0.6 + 2.2 * chance)[:, None]
    # Far windows are finer than a pixel: they fade into the wall.
    strength = np.clip(1.3 - distance_m / 70, 0.35, 1)[:, None]
    colour = np.where(window[:, None], colour + strength * (glass - colour), colour)
    colour = np.where(door[:, None], paint[:, ::-1] * 0.45, colour)
    return colour, np.maximum(normal[:, 0] * sun[0] + normal[:, 1] * sun[1], 0)


@dataclass(frozen=True, eq=False)
class _Canvas:
    """An image in the making, to which upright things are added, nearest in front."""

    eye: tuple[float, float, float]  # x, y, z
    azimuth: np.ndarray  # radians [columns]
    slope: np.ndarray  # [rows, columns]
    colour: np.ndarray  # [rows, columns, 3]
    depth: np.ndarray  # [rows, columns], level distance in metres

    def behind(self, x_m: float, y_m: float, half_width_m: float) -> tuple[np.ndarray, ...]:
        """Columns that meet an upright plane at a point; how far to the right of it, at what height
        and how far away they do."""
        east, north = x_m - self.eye[0], y_m - self.eye[1]
        distance = np.hypot(east, north)
        turn = self.azimuth - np.arctan2(east, north)
        side_m, away_m = distance * np.sin(turn), distance * np.cos(turn)
        near = distance > half_width_m + 0.6  # nobody photographs from inside a tree
        columns = np.flatnonzero((np.abs(side_m) < half_width_m) & (away_m > 0) & near)
        z_m = self.eye[2] + self.slope[:, columns] * away_m[columns]
        return columns, side_m[columns], z_m, away_m[columns]

    def add(self, columns: np.ndarray, away_m: np.ndarray, mask: np.ndarray, paint: Any) -> None:
        """Paints the pixels of the mask [rows, len(columns)] that nothing nearer hides."""
        rows, which = np.nonzero(mask & (away_m <= self.depth[:, columns]))
        self.colour[rows, columns[which]] = paint[rows, which] if paint.ndim == 3 else paint
        self.depth[rows, columns[which]] = away_m[which]


def _stand_tree(canvas: _Canvas, patch: _Patch, tree: np.ndarray) -> None:
    radius_m, height_m, conifer = tree[2:]
    columns, side_m, z_m, away_m = canvas.behind(tree[0], tree[1], 1.15 * radius_m)
    if len(columns) == 0:
        return
    base_m = 0.4 if conifer else min(0.35 * height_m, 2.6)
    half_m = (height_m - base_m) / 2
    u, v = side_m / radius_m, (z_m - base_m - half_m) / half_m
    rows = (z_m * 9 + tree[0] * 7).astype(int) & (GRAIN_SIZE - 1)
    grain = patch.city.grain[rows, (side_m * 9 + tree[1] * 7).astype(int) & (GRAIN_SIZE - 1)]
    squared = u**2 + v**2
    if conifer:
        crown = (np.abs(v) < 1) & (np.abs(u) < (1 - v) / 2 * (1 + 0.2 * grain))
    else:
        crown = (squared < 1 + 0.2 * grain) & _leafy(grain, patch.day.leaf_density)
    trunk = (np.abs(side_m) < 0.06 * radius_m + 0.05) & (z_m > 0) & (z_m < base_m + 0.8 * half_m)
    day, sun = patch.day, patch.day.sun_direction
    bearing = canvas.azimuth[columns]
    right = sun[0] * np.cos(bearing) - sun[1] * np.sin(bearing)
    back = -sun[0] * np.sin(bearing) - sun[1] * np.cos(bearing)
    facing = right * u + sun[2] * v + back * np.sqrt(np.maximum(1 - squared, 0))
    shade = (np.maximum(0.35 + 0.65 * facing, 0) * (1 + 0.3 * grain))[..., None]
    leaves = (_CONIFER if conifer else day.leaves) * (day.ambient * 0.9 + day.sun * shade)
    bark = np.array((0.26, 0.21, 0.17), np.float32) * (day.ambient + 0.4 * day.sun)
    canvas.add(columns, away_m, trunk, bark)
    canvas.add(columns, away_m, crown, leaves)


def _stand_person(canvas: _Canvas, day: Day, person: np.ndarray) -> None:
    columns, side_m, z_m, away_m = canvas.behind(person[0], person[1], 0.32)
    z = z_m / person[2]  # in body heights
    light, clothes = day.ambient + 0.5 * day.sun, person[3:6]
    head = (side_m / 0.12) ** 2 + ((z - 0.93) / 0.075) ** 2 < 1
    canvas.add(columns, away_m, (z > 0) & (z < 0.5) & (np.abs(side_m) < 0.18), clothes * light / 2)
    canvas.add(columns, away_m, (z > 0.48) & (z < 0.85) & (np.abs(side_m) < 0.27), clothes * light)
    canvas.add(columns, away_m, head, np.array((0.7, 0.55, 0.45)) * light)


def panorama(
    city: City, x_m: float, y_m: float, day: Day, *, size: tuple[int, int] = (64, 256), column0_deg: float = 180.0
) -> np.ndarray:
    """The street panorama, uint8 [H, W, 3]; column j samples azimuth column0_deg + 360 j / W."""
    camera = _Camera.panorama(size, column0_deg)
    return _street_view(city, x_m, y_m, PANORAMA_EYE_M, camera, day)


def photo(
    city: City,
    x_m: float,
    y_m: float,
    heading_deg: float,
    fov_deg: float,
    day: Day,
    *,
    size: tuple[int, int] = (96, 128),
    eye_m: float = 1.6,
    people: np.ndarray | None = None,
) -> np.ndarray:
    """A level perspective photo, uint8 [h, w, 3], whose edges lie `fov_deg` apart.

    `people` holds one row each: x, y, body height, and the colour of the clothes.
    """
    camera = _Camera.perspective(size, heading_deg, fov_deg)
    eye_m += city.height_m(x_m, y_m)
    return _street_view(city, x_m, y_m, eye_m, camera, day, people)


def _hand_held(image: np.ndarray, rng: Generator) -> np.ndarray:
    """What a phone does to a photo: blur, noise, compression."""
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 7)
    return _compress(np.clip(np.rint(image + noise), 0, 255).astype(np.uint8), rng)


def _compress(image: np.ndarray, rng: Generator) -> np.ndarray:
    quality = int(rng.integers(45, 93))
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1]


def _stand_point(city: City, place: np.ndarray, rng: Generator) -> np.ndarray:
    """Where the photographer stands: anywhere near the place that is street or sidewalk."""
    for _ in range(32):
        radius_m, angle = PHOTO_OFFSET_M * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        point = place + radius_m * np.array([np.sin(angle), np.cos(angle)])
        if city.height_m(*point) < 0.5:
            return point
    return place


@dataclass(frozen=True, eq=False)
class CityViews:
    """N places of a synthetic city, each seen from above, from the street and by one photo.

    Positions are WGS84 degrees, headings degrees clockwise from true north, images RGB uint8.
    """

    seed: int
    lat: np.ndarray  # float64 [N], the places
    lon: np.ndarray
    satellite: np.ndarray  # [N, S, S, 3], north up; pixel index (S/2, S/2) is the place
    metres_per_pixel: float
    panorama: np.ndarray  # [N, H, W, 3], column j samples azimuth column0_deg + 360 j / W;
    # rows have the columns' degrees per pixel, the horizon lies between rows H/2-1 and H/2
    photo: np.ndarray  # [N, h, w, 3], perspective, level, within 4 m of the place
    photo_lat: np.ndarray  # float64 [N]
    photo_lon: np.ndarray
    heading_deg: np.ndarray  # float64 [N] in [0, 360), of the photo's centre
    fov_deg: np.ndarray  # float64 [N], horizontal
    column0_deg: float = 180.0  # north is in the middle of the panorama

    def __len__(self) -> int:
        return len(self.lat)


def make_city(
    seed: int,
    *,
    places: int,
    satellite_px: int = 256,
    panorama_size: tuple[int, int] = (64, 256),
    photo_size: tuple[int, int] = (96, 128),
    fov_range: tuple[float, float] = (70.0, 110.0),
    progress: Callable[[int, int], None] | None = None,
) -> CityViews:
    """Makes a city and renders every view of its places.

    Args:
        seed: a city is a function of its seed and its number of places, whatever is drawn before.
        places: how many, at least 20 m apart, at most three of them within 25 m of any photo.
        satellite_px: side of the satellite images, which always show 50 m x 50 m; even.
        panorama_size: (rows, columns) of the panoramas, both even.
        photo_size: (rows, columns) of the photos.
        fov_range: least and greatest horizontal field of view of the photos, in degrees.
        progress: called as progress(done, places) after every place.
    """
    _check(seed, places, satellite_px, panorama_size, photo_size, fov_range)
    city = City.build(seed, places=places)
    satellites = np.empty((places, satellite_px, satellite_px, 3), np.uint8)
    panoramas = np.empty((places, *panorama_size, 3), np.uint8)
    photos = np.empty((places, *photo_size, 3), np.uint8)
    stands = np.empty((places, 2))
    heading_deg, fov_deg = np.empty(places), np.empty(places)
    for n, (x_m, y_m) in enumerate(city.places):
        rng = generator(seed, _STREAMS["satellite"], n)
        satellites[n] = satellite(city, x_m, y_m, Day.draw(rng), size_px=satellite_px)
        rng = generator(seed, _STREAMS["panorama"], n)
        panoramas[n] = panorama(city, x_m, y_m, Day.draw(rng), size=panorama_size)
        rng = generator(seed, _STREAMS["photo"], n)
        stands[n] = _stand_point(city, city.places[n], rng)
        heading_deg[n], fov_deg[n] = rng.uniform(0, 360), rng.uniform(*fov_range)
        crowd = rng.poisson(1.2)
        bearing = np.radians(heading_deg[n] + rng.uniform(-0.5, 0.5, size=crowd) * fov_deg[n])
        away_m = rng.uniform(2.5, 12, size=(crowd, 1))
        spots = stands[n] + away_m * np.stack([np.sin(bearing), np.cos(bearing)], axis=1)
        people = np.column_stack([spots, rng.uniform(1.5, 1.9, crowd), rng.random((crowd, 3)) * 0.8])
        shot = photo(
            city,
            stands[n, 0],
            stands[n, 1],
            heading_deg[n],
            fov_deg[n],
            Day.draw(rng),
            size=photo_size,
            eye_m=rng.uniform(1.45, 1.8),
            people=people,
        )
        photos[n] = _hand_held(shot, rng)
        if progress is not None:
            progress(n + 1, places)
    lat, lon = city.to_lat_lon(*city.places.T)
    photo_lat, photo_lon = city.to_lat_lon(*stands.T)
    return CityViews(
        seed=seed,
        lat=lat,
        lon=lon,
        satellite=satellites,
        metres_per_pixel=SATELLITE_SIDE_M / satellite_px,
        panorama=panoramas,
        photo=photos,
        photo_lat=photo_lat,
        photo_lon=photo_lon,
        heading_deg=heading_deg,
        fov_deg=fov_deg,
    )


def _check(
    seed: int,
    places: int,
    satellite_px: int,
    panorama_size: tuple[int, int],
    photo_size: tuple[int, int],
    fov_range: tuple[float, float],
) -> None:
    def require(ok: Any, name: str, expected: str, got: object) -> None:
        if not ok:
            raise ValueError(f"{name}: expected {expected}, got {got!r}")

    require(isinstance(seed, int | np.integer) and seed >= 0, "seed", "an integer >= 0", seed)
    require(isinstance(places, int | np.integer) and places > 0, "places", "an integer > 0", places)
    require(satellite_px >= 16 and satellite_px % 2 == 0, "satellite_px", "an even size >= 16", satellite_px)
    for name, size in (("panorama_size", panorama_size), ("photo_size", photo_size)):
        require(len(size) == 2 and min(size) >= 8, name, "(rows, columns), each >= 8", size)
    rows, columns = panorama_size
    require(
        rows % 2 == 0 and columns % 2 == 0 and 2 * rows <= columns,
        "panorama_size",
        "even rows and columns with rows <= columns / 2",
        panorama_size,
    )
    low, high = fov_range
    require(10 <= low <= high <= 150, "fov_range", "10 <= low <= high <= 150 degrees", fov_range)
