"""The scene of a city: streets, lots, buildings, trees and parking, in metres, rasterised once to a fine grid.

x points east and y north, in metres from the city's origin. Rasters are maps with north up: cell
(row, col) is centred on x = west_m + col * CELL_M, y = north_m - row * CELL_M. Every cell knows its
height, its material and its owner: the parcel (a lot with its building, or a street) that gives it a
tint. What changes from day to day (cars, light, seasons) is not here but in the renderer. What changes
over the years is: buildings that came or went, and facades that were painted over.

Begin at the end, with `_build`: it lays streets, chooses places on them, paints what the streets leave over (lots,
buildings), then the streets themselves, and plants the gardens. Every step draws from one stream of random numbers,
so a draw that is added, left out or moved changes all cities, and `bench/city_benchmark.py` fails.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from geoloc_fast.city.styles import MIXED, Colour, Style, style_number, style_of
from geoloc_fast.geo.sphere import move_m

CELL_M = 0.2
VIEW_RANGE_M = 90.0  # how far a street view sees; the map reaches this far beyond every place
MIN_PLACE_DISTANCE_M = 20.0
PHOTO_OFFSET_M = 4.0  # a photo is taken at most this far from its place
GRAIN_SIZE = 512  # side of the periodic noise tiles, a power of two

_CROWDING_M = 25.0  # at most three places lie this near to any photo
_KERB_CM = 12

_EDGE_M = VIEW_RANGE_M + 20  # of the map round the places: a street view may stand off its place
# Buildings came and went, and facades were painted, between these dates.
CHANGES = (np.datetime64("2014-01-01"), np.datetime64("2023-06-30"))

MATERIALS = (
    *("asphalt", "patch", "cobble", "sidewalk", "marking", "cycleway", "grass", "paving", "roof", "car", "glass"),
    *("water", "hedge", "fence"),
)
(ASPHALT, PATCH, COBBLE, SIDEWALK, MARKING, CYCLEWAY, GRASS, PAVING, ROOF, CAR, GLASS, WATER, HEDGE, FENCE) = range(
    len(MATERIALS)
)


def generator(seed: int, *stream: int) -> Generator:
    """The random numbers of one stream of a seed; streams do not depend on the order of calls."""
    return Generator(np.random.PCG64([seed, *stream]))


@dataclass(frozen=True, eq=False)
class Parcels:
    """What owns the ground, one row each: lots (with at most one building) and streets.

    A building is a convex prism: `walls[i]` are its half-planes (nx, ny, offset) with the normal
    outward, a point being inside where nx x + ny y <= offset; rows are padded with empty planes.
    """

    tint: np.ndarray  # [n, 3], multiplies the colour of the material: the roof's colour, or about 1
    facade: np.ndarray  # [n, 3]
    facade_before: np.ndarray  # [n, 3], until it was painted over
    painted: np.ndarray  # datetime64[D] [n]
    walls: np.ndarray  # [n, E, 3]
    eaves_m: np.ndarray  # [n], 0 without a building
    floor_m: np.ndarray
    bay_m: np.ndarray  # distance between windows
    window: np.ndarray  # [n, 2], width and height as fractions of bay and floor
    shop: np.ndarray  # bool [n]: wide windows on the ground floor
    shutter: np.ndarray  # bool [n]: coloured shutters beside the windows
    pitch: np.ndarray  # [n], how steep the roof is, 0 where it is flat


@dataclass(frozen=True, eq=False)
class Roads:
    """The streets, one row each, as they were laid: the rasters show them, descriptions tell of them."""

    start: np.ndarray  # [n, 2]: x, y
    end: np.ndarray
    width_m: np.ndarray  # of the carriageway
    owner: np.ndarray  # int [n], row of `parcels`
    cobbled: np.ndarray  # bool [n]
    lined: np.ndarray  # bool [n]: a broken line along the middle
    cycleways: np.ndarray  # bool [n]: on both sides
    crossings: np.ndarray  # [m, 2]: x, y of marked crossings


@dataclass(frozen=True, eq=False)
class Stencil:
    """A building in raster form, at cells (row, col) and on."""

    row: int
    col: int
    height_cm: np.ndarray  # uint16, 0 where the building is not
    owner: int
    built: np.datetime64 | None = None  # None: always
    gone: np.datetime64 | None = None

    def stands(self, date: np.datetime64) -> bool:
        return bool((self.built is None or self.built <= date) and (self.gone is None or date < self.gone))

    def press(self, height_cm: np.ndarray, material: np.ndarray, owner: np.ndarray, first: tuple[int, int]) -> None:
        """Onto rasters whose cell (0, 0) is the map's `first`."""
        row, col = self.row - first[0], self.col - first[1]
        rows, cols = height_cm.shape
        r0, r1 = max(row, 0), min(row + self.height_cm.shape[0], rows)
        c0, c1 = max(col, 0), min(col + self.height_cm.shape[1], cols)
        if r0 >= r1 or c0 >= c1:
            return
        window, own = np.s_[r0:r1, c0:c1], self.height_cm[r0 - row : r1 - row, c0 - col : c1 - col]
        inside = own > 0
        height_cm[window][inside] = own[inside]
        material[window][inside] = ROOF
        owner[window][inside] = self.owner


@dataclass(frozen=True, eq=False)
class City:
    """One city and its places; `City.build(seed, places=...)` makes it."""

    seed: int
    style: int | None  # number of the style, None for the mixed city and for a style of one's own
    origin_lat: float
    origin_lon: float
    west_m: float
    north_m: float
    height_cm: np.ndarray  # uint16 [rows, cols]
    material: np.ndarray  # uint8 [rows, cols]
    owner: np.ndarray  # int32 [rows, cols], row of `parcels`
    parcels: Parcels
    roads: Roads
    changes: list[Stencil]  # buildings that are not always there, and not in the rasters
    trees: np.ndarray  # [n, 5]: x, y, crown radius, height, and 0 broad-leaved, 1 conifer, 2 palm
    posts: np.ndarray  # [n, 4]: x, y, height, and 0 street lamp, 1 sign
    slots: np.ndarray  # [n, 4]: x, y, heading_deg, probability that a car is there on a given day
    places: np.ndarray  # [N, 2]: x, y
    grain: np.ndarray  # float32 [GRAIN_SIZE, GRAIN_SIZE], periodic, mean 0, deviation 1
    clouds: np.ndarray  # the same, smoother
    fingerprint: str  # of everything drawn in metres, before anything is rasterised or rendered

    @classmethod
    def build(cls, seed: int, *, places: int, style: int | str | Style | None = None) -> City:
        """Make the city of `seed`, just large enough for `places` places on its streets."""
        if isinstance(style, Style):
            return _build(seed, places, None, style)
        return _build(seed, places, style_number(style), style_of(style))

    def to_cells(self, x_m: Any, y_m: Any) -> tuple[Any, Any]:
        """Fractional (row, col) of points."""
        return (self.north_m - y_m) / CELL_M, (x_m - self.west_m) / CELL_M

    def to_lat_lon(self, x_m: Any, y_m: Any) -> tuple[Any, Any]:
        """WGS84 degrees of points, on the tangent plane at the origin."""
        return move_m(self.origin_lat, self.origin_lon, x_m, y_m)

    def height_m(self, x_m: float, y_m: float) -> float:
        """Height of the ground or roof at one point."""
        row, col = self.to_cells(x_m, y_m)
        return float(self.height_cm[round(row), round(col)]) / 100.0

    def is_free(self, x_m: float, y_m: float) -> bool:
        """Whether a person can stand at a point, whatever the year."""
        row, col = (round(v) for v in self.to_cells(x_m, y_m))
        if self.height_cm[row, col] >= 50 or self.material[row, col] == WATER:
            return False
        for stencil in self.changes:
            r, c = row - stencil.row, col - stencil.col
            if 0 <= r < stencil.height_cm.shape[0] and 0 <= c < stencil.height_cm.shape[1] and stencil.height_cm[r, c]:
                return False
        return True


# Convex polygons: float64 [n, 2], counterclockwise.


def _half_planes(polygon: np.ndarray) -> np.ndarray:
    """[n, 3], (nx, ny, offset) of each side: a point is inside where nx x + ny y <= offset."""
    along = np.roll(polygon, -1, axis=0) - polygon
    normal = np.stack([along[:, 1], -along[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return np.column_stack([normal, (normal * polygon).sum(axis=1)])


def _clip(polygon: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """The part of the polygon inside the half-plane; empty when nothing is left."""
    outside = polygon @ plane[:2] - plane[2]
    kept = []
    for k in range(len(polygon)):
        a, b = outside[k - 1], outside[k]
        if (a < 0) != (b < 0):
            kept.append(polygon[k - 1] + a / (a - b) * (polygon[k] - polygon[k - 1]))
        if b < 0:
            kept.append(polygon[k])
    corners = np.array(kept).reshape(-1, 2)
    if len(corners):  # corners that coincide would give a wall without direction
        step = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
        corners = corners[step > 0.05]
    return corners if len(corners) >= 3 else np.empty((0, 2))


def _inset(polygon: np.ndarray, margins_m: Any) -> np.ndarray:
    """The polygon with its sides moved inward, all by one margin or each by its own; empty when nothing is left."""
    planes = _half_planes(polygon)
    planes[:, 2] -= margins_m
    for plane in planes:
        if len(polygon):
            polygon = _clip(polygon, plane)
    return polygon


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T if len(polygon) else np.zeros((2, 1))
    return float(0.5 * np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def _split(polygon: np.ndarray, target_m2: float, rng: Generator) -> list[np.ndarray]:
    """Cut across the longer side until no part is larger than the target."""
    if len(polygon) == 0 or _area(polygon) <= target_m2:
        return [polygon] if len(polygon) else []
    along = np.roll(polygon, -1, axis=0) - polygon
    longest = along[np.argmax((along**2).sum(axis=1))]
    axes = np.stack([longest, [-longest[1], longest[0]]]) / np.hypot(*longest)
    low, high = (polygon @ axes.T).min(axis=0), (polygon @ axes.T).max(axis=0)
    side = int(np.argmax(high - low))
    cut = low[side] + (high - low)[side] * rng.uniform(0.4, 0.6)
    plane = np.array([*axes[side], cut])
    parts = _clip(polygon, plane), _clip(polygon, -plane)
    return [lot for part in parts for lot in _split(part, target_m2, rng)]


# Streets: a jittered, turned grid with varying blocks, some streets missing, some diagonal.


@dataclass(frozen=True, eq=False)
class _Streets:
    start: np.ndarray  # [n, 2]
    end: np.ndarray
    road_m: np.ndarray  # width of the carriageway
    walk_m: np.ndarray  # width of each sidewalk
    look: np.ndarray  # [n, 4] uniform numbers that choose surface, markings, trees, parking
    blocks: list[np.ndarray]  # what the streets leave over
    parking: float  # share of wide streets with parked cars

    def frame(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Start, unit vector along, unit vector to the right, length."""
        along = self.end[k] - self.start[k]
        length = float(np.hypot(*along))
        along = along / length
        return self.start[k], along, np.array([along[1], -along[0]]), length

    def parks(self, k: int) -> bool:
        return bool(self.road_m[k] >= 9 and self.look[k, 3] < self.parking)


def _lay_streets(rng: Generator, half_m: float, style: Style) -> _Streets:
    """Streets as edges between the nodes of a grid, and the blocks between them.

    `u` and `v` are the positions of the lines of the grid. Node (i, j) has two edges: along axis 0 to (i + 1, j), along
    axis 1 to (i, j + 1). A block lies between four nodes; a diagonal street cuts it in two.
    """
    reach_m = half_m * 1.45 + 60 + style.bend_m  # the turned grid covers the corners too
    lines = []
    for low, high in style.spacing_m:
        steps = rng.uniform(low, high, size=int(2 * reach_m / low) + 2)
        lines.append(np.cumsum(steps) - steps.sum() * rng.uniform(0.48, 0.52))
    u, v = lines
    nodes = np.stack(np.meshgrid(u, v, indexing="ij"), axis=-1)
    nodes += rng.uniform(-style.jitter_m, style.jitter_m, size=nodes.shape)
    if style.bend_m:  # each coordinate swings along the other
        wave = 2 * np.pi / rng.uniform(240, 380, size=2)
        nodes += style.bend_m * np.sin(wave * nodes[..., ::-1] + rng.uniform(0, 2 * np.pi, size=2))
    turn = np.radians(rng.uniform(0, 90))
    nodes = nodes @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    line_road = [rng.choice(style.road_m, p=style.road_share, size=len(line)) for line in (v, u)]
    line_walk = [rng.uniform(*style.walk_m, size=len(line)) for line in (v, u)]
    missing = rng.random((2, len(u), len(v))) < style.missing  # axis, i, j: this edge is no street
    if style.staggered:
        # Every other edge along axis 0, like bricks.
        missing[0] |= np.add.outer(np.arange(len(u)), np.arange(len(v))) % 2 == 1
    diagonal = rng.random((len(u), len(v)))

    rows = []

    def half_width(axis: int, i: int, j: int) -> float:  # of the corridor along the edge that leaves node (i, j)
        line = j if axis == 0 else i
        if missing[axis, i, j]:
            return 0.5  # blocks meet back to back, a metre apart
        return float(line_road[axis][line] / 2 + line_walk[axis][line])

    blocks = []
    for i in range(len(u) - 1):
        for j in range(len(v) - 1):
            a, b, c, d = nodes[i, j], nodes[i + 1, j], nodes[i + 1, j + 1], nodes[i, j + 1]
            if np.abs([a, b, c, d]).max() > half_m + 80:
                continue
            for axis, end in ((0, b), (1, d)):
                if not missing[axis, i, j]:
                    line = j if axis == 0 else i
                    rows.append([*a, *end, line_road[axis][line], line_walk[axis][line]])
            south, west = half_width(0, i, j), half_width(1, i, j)
            north, east = half_width(0, i, j + 1), half_width(1, i + 1, j)
            if diagonal[i, j] < style.diagonal:
                rows.append([*a, *c, 6.5, 2.5])
                # 5.75: half of its carriageway and one sidewalk.
                blocks.append(_inset(np.array([a, b, c]), [south, east, 5.75]))
                blocks.append(_inset(np.array([a, c, d]), [5.75, north, west]))
            else:
                blocks.append(_inset(np.array([a, b, c, d]), [south, east, north, west]))
    table = np.array(rows)
    look = rng.random((len(table), 4))
    blocks = [block for block in blocks if _area(block) > 60]
    return _Streets(table[:, :2], table[:, 2:4], table[:, 4], table[:, 5], look, blocks, style.parking)


def _choose_places(rng: Generator, streets: _Streets, half_m: float, count: int) -> np.ndarray:
    """Points on the carriageways; fewer than asked for when the streets have no room."""
    candidates = []
    for k in range(len(streets.start)):
        start, along, right, length = streets.frame(k)
        free_m = streets.road_m[k] / 2 - (3.4 if streets.parks(k) else 1.4)
        at = rng.uniform(0, 20)
        while at < length:
            candidates.append(start + at * along + rng.uniform(-1, 1) * free_m * right)
            at += rng.uniform(MIN_PLACE_DISTANCE_M + 1, 34)
    points = np.array(candidates)
    points = points[np.abs(points).max(axis=1) < half_m]
    points = points[rng.permutation(len(points))]
    # A photo stands off its place, so places count as near from farther away. No place has more than two such
    # neighbours, which is what `_CROWDING_M` promises.
    crowding_m = _CROWDING_M + PHOTO_OFFSET_M
    kept = np.empty((count, 2))
    near = np.zeros(count, dtype=np.int64)
    n = 0
    for point in points:
        if n == count:
            break
        distance_m = np.hypot(*(kept[:n] - point).T)
        close = np.flatnonzero(distance_m < crowding_m)
        if distance_m.min(initial=np.inf) < MIN_PLACE_DISTANCE_M:
            continue
        if len(close) > 2 or (near[close] >= 2).any():
            continue
        near[close] += 1
        kept[n], near[n] = point, len(close)
        n += 1
    return kept[:n]


# Lots, and what stands on them.


class _Painter:
    """Fills the rasters and collects the parcels."""

    def __init__(self, half_m: float, style: Style):
        self.style = style
        cells = int(np.ceil(2 * half_m / CELL_M)) + 1
        self.west_m, self.north_m = -half_m, half_m
        self.height_cm = np.full((cells, cells), _KERB_CM, dtype=np.uint16)
        self.material = np.full((cells, cells), GRASS, dtype=np.uint8)
        self.owner = np.zeros((cells, cells), dtype=np.int32)
        self.rows: list[tuple] = []  # of the parcels, in the order of `parcel`; `_build` makes columns of them
        self.slots: list[tuple] = []
        self.posts: list[tuple] = []
        self.pitch: dict[int, float] = {}  # of buildings, by parcel
        self.crossings: list[np.ndarray] = []

    def parcel(self, rng: Generator, tint: np.ndarray, building: np.ndarray | None = None, storeys: int = 0) -> int:
        """Adds a row to the parcels; its number."""
        style = self.style
        floor_m = rng.uniform(*style.storey_m)
        facade = _colour(rng, style.facades) * rng.uniform(0.85, 1.15)
        walls = np.empty((0, 3)) if building is None else _half_planes(building)
        eaves_m = 0.0 if building is None else storeys * floor_m + rng.uniform(0.3, 1.2)
        window = rng.uniform((0.3, 0.4), (0.75, 0.65)) if rng.random() >= style.bands else (1.0, 0.45)
        shop = storeys > 2 and rng.random() < style.shops
        bay_m = rng.uniform(*style.bay_m)
        before, painted = facade, CHANGES[0]
        if building is not None and rng.random() < _REPAINTED:
            before = _colour(rng, style.facades) * rng.uniform(0.7, 1.3)
            painted = _date_of_change(rng)
        shutter = window[0] < 0.6 and rng.random() < style.shutters
        self.rows.append((tint, facade, before, painted, walls, eaves_m, floor_m, bay_m, window, shop, shutter))
        return len(self.rows) - 1

    def fill(
        self, polygon: Any, material: int | None = None, owner: int | None = None, height_cm: int | None = None
    ) -> None:
        """Paints a convex polygon."""
        corners = np.asarray(polygon) - (self.west_m, self.north_m)
        corners = np.rint(corners * (16 / CELL_M, -16 / CELL_M)).astype(np.int32)
        for raster, value in ((self.material, material), (self.owner, owner), (self.height_cm, height_cm)):
            if value is not None:
                cv2.fillConvexPoly(raster, corners, int(value), shift=4)

    def strip(self, start: np.ndarray, end: np.ndarray, right_m: float, width_m: float, **paint: int) -> None:
        """Paints a band from start to end, its middle `right_m` to the right of the line."""
        along = (end - start) / np.hypot(*(end - start))
        right = np.array([along[1], -along[0]])
        inner, outer = right * (right_m - width_m / 2), right * (right_m + width_m / 2)
        self.fill([start + inner, end + inner, end + outer, start + outer], **paint)

    def disc(self, centre: np.ndarray, radius_m: float, **paint: int) -> None:
        angle = np.arange(24) * (2 * np.pi / 24)
        self.fill(centre + radius_m * np.stack([np.cos(angle), np.sin(angle)], axis=1), **paint)

    def stencil(self, number: int, building: np.ndarray, pitch: float, boxes: list[np.ndarray]) -> Stencil | None:
        """The prism over a footprint; a pitched roof climbs with the distance to the wall, boxes
        (x, y, half side, height) stand on it."""
        _, _, _, _, walls, eaves_m, *_ = self.rows[number]
        low, high = building.min(axis=0), building.max(axis=0)
        c0, r0 = np.floor((low[0] - self.west_m) / CELL_M), np.floor((self.north_m - high[1]) / CELL_M)
        c1, r1 = np.ceil((high[0] - self.west_m) / CELL_M) + 1, np.ceil((self.north_m - low[1]) / CELL_M) + 1
        rows, cols = self.material.shape
        first_row, first_col = int(max(r0, 0)), int(max(c0, 0))
        y = self.north_m - CELL_M * np.arange(first_row, int(min(r1, rows)))[:, None]
        x = self.west_m + CELL_M * np.arange(first_col, int(min(c1, cols)))[None, :]
        if x.size == 0 or y.size == 0:
            return None
        depth_m = np.min([offset - nx * x - ny * y for nx, ny, offset in walls], axis=0)
        climb_m = np.minimum(pitch * depth_m, 4.2 + 0.12 * depth_m) if self.style.mansard else pitch * depth_m
        roof_m = eaves_m + np.minimum(climb_m, 6.0 * pitch)
        for box_x, box_y, half_m, height_m in boxes:
            on = (np.abs(x - box_x) < half_m) & (np.abs(y - box_y) < half_m)
            roof_m = np.where(on, eaves_m + pitch * 1.5 + height_m, roof_m)
        height_cm = np.where(depth_m >= 0, np.rint(100 * roof_m), 0).astype(np.uint16)
        return Stencil(first_row, first_col, height_cm, number)


# Share of the buildings that came or went, and of the facades that were painted, in the years of change.
_CHANGED = 0.14
_REPAINTED = 0.3


def _colour(rng: Generator, colours: tuple[Colour, ...]) -> np.ndarray:
    return np.array(colours[rng.integers(len(colours))])


def _date_of_change(rng: Generator) -> np.datetime64:
    days = int((CHANGES[1] - CHANGES[0]) / np.timedelta64(1, "D"))
    return np.datetime64(CHANGES[0] + int(rng.integers(days)))


@dataclass(frozen=True, eq=False)
class _Building:
    number: int  # of its parcel
    footprint: np.ndarray
    pitch: float
    boxes: list[np.ndarray]  # chimneys, stair heads: x, y, half side, height above the roof
    built: np.datetime64 | None
    gone: np.datetime64 | None


def _paint_block(painter: _Painter, rng: Generator, block: np.ndarray, centrality: float) -> list[_Building]:
    """Paints the lots of a block and returns its buildings, raised after the streets are laid.

    A block has one use (houses, plaza, parking, ...), one distance to the street and one height, and each of its lots
    varies them a little. `centrality` is 1 in the middle of the city and 0 at its edge.
    """
    style = painter.style
    share = np.array([lots.share for _, lots in style.lots])
    if style.centred:  # the first use of the style gathers in the middle, the second at the edge
        share[:2] *= (0.3 + 1.4 * centrality, 1.7 - 1.4 * centrality)
    kind, lots = style.lots[rng.choice(len(share), p=share / share.sum())]
    setback, storeys = lots.setback_m, lots.storeys
    common_setback_m, common_storeys = rng.uniform(*setback), rng.integers(storeys[0], storeys[1] + 1)
    block_planes = _half_planes(block)
    buildings = []
    for lot in _split(block, rng.uniform(*lots.lot_m2), rng):
        inset_m = common_setback_m + rng.uniform(0, 0.2 + 0.2 * setback[1])
        levels = int(np.clip(common_storeys + rng.integers(-1, 2), storeys[0], storeys[1]))
        margins_m = np.maximum(inset_m * rng.uniform(0.7, 1.4, size=len(lot)), 0.05)
        footprint = _inset(lot, margins_m)
        side_middles = (lot + np.roll(lot, -1, axis=0)) / 2
        to_street_m = (block_planes[:, 2] - side_middles @ block_planes[:, :2].T).min(axis=1)
        front = int(np.argmin(to_street_m))
        # A lot that touches no street is left open, more often than not.
        courtyard = to_street_m[front] > 2 and rng.random() < 0.7
        room = len(_inset(footprint, 2.0)) > 0 and rng.random() < 0.95
        built = levels > 0 and room and not courtyard
        ground = {"paving": PAVING, "asphalt": ASPHALT, "water": WATER}.get(lots.ground, GRASS)
        if lots.ground == "paved":
            ground = PAVING if rng.random() < 0.6 else GRASS
        level_cm = {ASPHALT: 2, WATER: 0}.get(ground, _KERB_CM)
        tone = painter.parcel(rng, np.full(3, rng.uniform(0.85, 1.12)))
        painter.fill(lot, ground, tone, level_cm)
        middle = lot.mean(axis=0)
        if rng.random() < lots.fenced and kind != "water":
            _fence(painter, rng, lot, front)
        for _ in range(rng.integers(1, 3) if ground == GRASS else 0):  # drives and paths
            side = lot[(front + 1) % len(lot)] - lot[front]
            gate = lot[front] + rng.uniform(0.15, 0.85) * side
            painter.strip(middle, gate, 0, rng.uniform(1.4, 3.4), material=PAVING, height_cm=_KERB_CM)
        if kind == "plaza":
            for _ in range(rng.integers(1, 4)):  # flower beds
                bed = middle + (lot[rng.integers(len(lot))] - middle) * rng.uniform(0, 0.6)
                painter.disc(bed, rng.uniform(1.5, 4.5), material=GRASS)
        if kind == "parking" or (kind == "sheds" and ground == ASPHALT and not built):
            _paint_parking(painter, lot)
        if built:
            roof = _colour(rng, style.roofs) * rng.uniform(0.8, 1.2)
            number = painter.parcel(rng, roof, footprint, levels)
            pitch = rng.uniform(*style.pitch) if rng.random() < lots.pitched else 0.0
            painter.pitch[number] = pitch
            boxes = _roof_boxes(rng, footprint, pitch)
            dates: list[np.datetime64 | None] = [None, None]
            if rng.random() < _CHANGED:
                dates[rng.integers(2)] = _date_of_change(rng)
            buildings.append(_Building(number, footprint, pitch, boxes, *dates))
    return buildings


def _fence(painter: _Painter, rng: Generator, lot: np.ndarray, front: int) -> None:
    """A hedge or a fence round a lot, with a gate to the street."""
    hedge = rng.random() < 0.6
    width_m = rng.uniform(0.5, 0.9) if hedge else 0.25
    looks = {"material": HEDGE if hedge else FENCE, "height_cm": int(rng.uniform(70, 140))}
    for side in range(len(lot)):
        start, end = lot[side], lot[(side + 1) % len(lot)]
        length = np.hypot(*(end - start))
        if length < 3:
            continue
        inward = width_m / 2  # a lot's corners go counterclockwise: its inside is on the left
        gate = rng.uniform(0.2, 0.7) if side == front else 1.0
        painter.strip(start, start + gate * (end - start), -inward, width_m, **looks)
        if gate < 1 and (1 - gate) * length > 4:
            painter.strip(start + (gate + 3 / length) * (end - start), end, -inward, width_m, **looks)


def _roof_boxes(rng: Generator, footprint: np.ndarray, pitch: float) -> list[np.ndarray]:
    boxes = []
    middle = footprint.mean(axis=0)
    for _ in range(rng.integers(0, 4)):
        spot = middle + (footprint[rng.integers(len(footprint))] - middle) * rng.uniform(0, 0.7)
        size = (0.45, rng.uniform(0.8, 1.8)) if pitch else (rng.uniform(0.7, 1.9), rng.uniform(0.8, 2.8))
        boxes.append(np.array([*spot, *size]))
    return boxes


def _paint_parking(painter: _Painter, lot: np.ndarray) -> None:
    """Rows of bays across the lot, along its first side."""
    along = (lot[1] - lot[0]) / np.hypot(*(lot[1] - lot[0]))
    left = np.array([-along[1], along[0]])
    planes = _half_planes(lot)
    heading_deg = float(np.degrees(np.arctan2(left[0], left[1])))
    for row_m in np.arange(3.2, 60, 8.5):
        for at_m in np.arange(1.5, 80, 2.6):
            bay = lot[0] + at_m * along + row_m * left
            if (planes[:, :2] @ bay - planes[:, 2]).max() < -3:
                side = bay - 1.3 * along
                painter.strip(side - 2.4 * left, side + 2.4 * left, 0, 0.2, material=MARKING)
                painter.slots.append((*bay, heading_deg, 0.5))


def _paint_streets(painter: _Painter, rng: Generator, streets: _Streets) -> tuple[list[np.ndarray], Roads]:
    """Paints sidewalks, carriageways and markings; where the street trees stand, and what was laid."""
    count = len(streets.start)
    style = painter.style
    surface = np.where(streets.look[:, 0] < 1 - style.cobbled, ASPHALT, COBBLE)
    surface[streets.road_m > 9] = ASPHALT
    owners = [painter.parcel(rng, np.full(3, rng.uniform(0.88, 1.12))) for _ in range(count)]
    for k in range(count):
        walk = {"material": SIDEWALK, "owner": owners[k], "height_cm": _KERB_CM}
        reach_m = streets.road_m[k] / 2 + streets.walk_m[k]
        painter.strip(streets.start[k], streets.end[k], 0, 2 * reach_m, **walk)
        painter.disc(streets.start[k], reach_m, **walk)
        painter.disc(streets.end[k], reach_m, **walk)
    for k in np.argsort(streets.road_m, kind="stable"):  # the wider street keeps its surface
        road = {"material": surface[k], "owner": owners[k], "height_cm": 0}
        painter.strip(streets.start[k], streets.end[k], 0, streets.road_m[k], **road)
        painter.disc(streets.start[k], streets.road_m[k] / 2, **road)
        painter.disc(streets.end[k], streets.road_m[k] / 2, **road)
    trees = []
    lined, cycleways = np.zeros((2, count), bool)
    for k in range(count):
        start, along, right, length = streets.frame(k)
        road_m, (_, marked, planted, _) = streets.road_m[k], streets.look[k]
        for _ in range(rng.poisson(length / 40)):  # where the road was opened and closed again
            cut = start + rng.uniform(0, length) * along
            end, right_m = cut + rng.uniform(1, 6) * along, rng.uniform(-1, 1) * road_m / 3
            painter.strip(cut, end, right_m, rng.uniform(0.8, 2.5), material=PATCH)
        heading_deg = float(np.degrees(np.arctan2(along[0], along[1])))
        clear_m = 9.5  # markings, trees and cars keep off the crossings
        if length < 2 * clear_m + 12:
            continue

        line = partial(_paint_line, painter, start, along)
        if surface[k] == ASPHALT and marked < style.marked:
            lined[k] = True
            if road_m >= 9 and marked < 0.3:
                cycleways[k] = True
                for side in (-1, 1):
                    line(clear_m, length - clear_m, side * (road_m / 2 - 0.9), 1.6, CYCLEWAY)
            for at in np.arange(clear_m + 3, length - clear_m - 3, 6.0):
                line(at, at + 3, 0, 0.25)
            for begin, sign in ((clear_m, -1), (length - clear_m, 1)):
                if rng.random() < style.crossings:
                    painter.crossings.append(start + begin * along)
                    for across in np.arange(-road_m / 2 + 0.5, road_m / 2 - 0.3, 1.1):
                        line(begin - 1.6, begin + 1.6, across + 0.25, 0.55)
                    stop_m = begin - sign * 3.0
                    line(stop_m - 0.2, stop_m + 0.2, -sign * road_m / 4, road_m / 2 - 0.4)
        for side in (-1, 1):
            flow_deg = heading_deg if side > 0 else heading_deg + 180
            if streets.parks(k):
                for at in np.arange(clear_m + 5, length - clear_m - 3, 5.8):
                    slot = start + at * along + side * (road_m / 2 - 1.1) * right
                    painter.slots.append((*slot, flow_deg, 0.6))
            for at in np.arange(rng.uniform(0, 12), length, 14):
                lane = start + at * along + side * road_m / 5 * right
                painter.slots.append((*lane, flow_deg, 0.07))
            lamps = np.arange(clear_m + 1 + (7 if side > 0 else 20), length - clear_m, 27.0)
            for at in lamps if road_m > 5 else ():
                spot = start + at * along + side * (road_m / 2 + 0.5) * right
                painter.posts.append((*spot, 5.2 + 0.2 * road_m, 0))
            if side > 0 or rng.random() < 0.4:
                spot = start + (clear_m - 1.5) * along + side * (road_m / 2 + 0.45) * right
                painter.posts.append((*spot, 2.6, 1))
            wanted = style.planted
            if planted < wanted and (planted > 0.45 * wanted or side > 0) and streets.walk_m[k] > 1.9:
                spacing_m = 7 + 7 * planted / wanted
                stems = np.arange(clear_m + 2, length - clear_m, spacing_m)[:, None]
                row = start + stems * along + side * (road_m / 2 + 0.8) * right
                row = row[rng.random(len(row)) < 0.9]
                radius_m = rng.uniform(1.4, 2.6, size=len(row))
                height_m = radius_m * rng.uniform(2.2, 3.2) + 2
                palm = np.where(marked < style.palms, 2.0, 0.0)  # a street has one kind of tree
                trees.append(np.column_stack([row, radius_m, height_m, np.full(len(row), palm)]))
    return trees, Roads(
        start=streets.start,
        end=streets.end,
        width_m=streets.road_m,
        owner=np.array(owners),
        cobbled=surface == COBBLE,
        lined=lined,
        cycleways=cycleways,
        crossings=np.array(painter.crossings).reshape(-1, 2),
    )


def _paint_line(
    painter: _Painter,
    start: np.ndarray,
    along: np.ndarray,
    begin_m: float,
    end_m: float,
    right_m: float,
    width_m: float,
    material: int = MARKING,
) -> None:
    begin, end = start + begin_m * along, start + end_m * along
    painter.strip(begin, end, right_m, width_m, material=material)


def _noise(rng: Generator, slope: float) -> np.ndarray:
    """A periodic tile of noise whose amplitude falls with frequency to the power `slope`."""
    frequency = np.fft.fftfreq(GRAIN_SIZE)
    radius = np.hypot(frequency[:, None], frequency[None, : GRAIN_SIZE // 2 + 1])
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((GRAIN_SIZE, GRAIN_SIZE))) / radius**slope
    tile = np.fft.irfft2(spectrum, s=(GRAIN_SIZE, GRAIN_SIZE))
    return (tile / tile.std()).astype(np.float32)


def _build(seed: int, count: int, number: int | None, style: Style) -> City:
    half_m = 30 + 0.5 * np.sqrt(1250.0 * count)
    while True:  # the core grows until its streets have room for every place
        rng = generator(seed, 0)
        streets = _lay_streets(rng, half_m + VIEW_RANGE_M, style)
        places = _choose_places(rng, streets, half_m, count)
        if len(places) == count:
            break
        half_m *= 1.08
    painter = _Painter(half_m + _EDGE_M, style)
    painter.parcel(rng, np.ones(3))  # owner 0: nobody's ground
    buildings = []
    for block in streets.blocks:
        outward = np.hypot(*block.mean(axis=0)) / (half_m + VIEW_RANGE_M)
        centrality = np.clip(1.1 - outward + rng.uniform(-0.4, 0.4), 0, 1)
        buildings += _paint_block(painter, rng, block, float(centrality))
    trees, roads = _paint_streets(painter, rng, streets)
    usual = asdict(MIXED)  # so that a new field of styles does not touch the cities that do without
    manner = {name: value for name, value in asdict(style).items() if value != usual[name]}
    drawn = (manner, places, streets.start, streets.end, streets.road_m, streets.blocks)
    fingerprint = _fingerprint(drawn, painter, [vars(building) for building in buildings], trees)
    changes = []
    for building in buildings:
        stencil = painter.stencil(building.number, building.footprint, building.pitch, building.boxes)
        if stencil is not None and building.built is building.gone is None:
            stencil.press(painter.height_cm, painter.material, painter.owner, (0, 0))
        elif stencil is not None:
            changes.append(replace(stencil, built=building.built, gone=building.gone))

    columns = list(zip(*painter.rows, strict=True))
    walls = columns[4]
    padded = np.zeros((len(walls), max(len(w) for w in walls), 3), dtype=np.float32)
    padded[..., 2] = 1e9
    for row, planes in zip(padded, walls, strict=True):
        row[: len(planes)] = planes
    tint, facade, before = (np.array(values, np.float32) for values in columns[:3])
    eaves_m, floor_m, bay_m, window, shop, shutter = (np.array(values) for values in columns[5:])
    parcels = Parcels(
        tint=tint,
        facade=facade,
        facade_before=before,
        painted=np.array(columns[3], "datetime64[D]"),
        walls=padded,
        eaves_m=eaves_m,
        floor_m=floor_m,
        bay_m=bay_m,
        window=window,
        shop=shop,
        shutter=shutter,
        pitch=np.array([painter.pitch.get(number, 0.0) for number in range(len(tint))]),
    )

    edge_m = half_m + _EDGE_M
    garden = rng.uniform(-edge_m, edge_m, size=(int((2 * edge_m) ** 2 / 55 * max(style.wooded, 1)), 2))
    rows, cols = (painter.north_m - garden[:, 1]) / CELL_M, (garden[:, 0] - painter.west_m) / CELL_M
    spot = np.rint(rows).astype(int), np.rint(cols).astype(int)
    wooded = rng.uniform(0.05, 1.0, size=len(tint))[painter.owner[spot]] ** 2 * min(style.wooded, 1)
    grown = (painter.material[spot] == GRASS) & (rng.random(len(garden)) < wooded)
    for stencil in changes:  # nothing grows where a building was or will be
        inside = (spot[0] >= stencil.row) & (spot[0] < stencil.row + stencil.height_cm.shape[0])
        inside &= (spot[1] >= stencil.col) & (spot[1] < stencil.col + stencil.height_cm.shape[1])
        inside[inside] = stencil.height_cm[spot[0][inside] - stencil.row, spot[1][inside] - stencil.col] > 0
        grown &= ~inside
    garden = garden[grown]
    radius_m = rng.uniform(1.0, 3.6, size=len(garden))
    kind = np.digitize(rng.random(len(garden)), [1 - style.palms - style.conifers * (1 - style.palms), 1 - style.palms])
    height_m = radius_m * rng.uniform(1.7, 2.8, size=len(garden)) + np.array([1.5, 1.5, 2.5])[kind]
    radius_m = np.minimum(radius_m * np.array([1, 0.6, 0.8])[kind], np.array([9, 9, 2.4])[kind])
    trees.append(np.column_stack([garden, radius_m, height_m, kind]))
    origin = generator(seed, 1)
    return City(
        seed=seed,
        style=number,
        origin_lat=float(origin.uniform(*style.lat)),
        origin_lon=float(origin.uniform(*style.lon)),
        west_m=painter.west_m,
        north_m=painter.north_m,
        height_cm=painter.height_cm,
        material=painter.material,
        owner=painter.owner,
        parcels=parcels,
        roads=roads,
        changes=changes,
        trees=np.concatenate(trees),
        posts=np.array(painter.posts).reshape(-1, 4),
        slots=np.array(painter.slots).reshape(-1, 4),
        places=places,
        grain=_noise(rng, 0.7),
        clouds=_noise(rng, 1.8),
        fingerprint=fingerprint,
    )


def _fingerprint(drawn: tuple, painter: _Painter, buildings: list[dict], trees: list[np.ndarray]) -> str:
    """A hash of the scene as drawn, to the centimetre: what rounding a library's sine could change by
    an ulp does not change it. Trees of gardens stand where the rasters say, and are not in it."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            return np.rint(100 * value).astype(np.int64).tolist()
        if isinstance(value, float | np.floating):
            return round(100 * value)
        if isinstance(value, np.ndarray | np.generic | np.datetime64):
            return value.tolist() if not isinstance(value, np.datetime64) else str(value)
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    scene = [drawn, painter.rows, painter.slots, painter.posts, buildings, trees]
    return hashlib.sha256(json.dumps(plain(scene), sort_keys=True).encode()).hexdigest()
