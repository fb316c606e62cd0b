"""Render a city: satellite images, panoramas and photos.

The satellite image looks straight down on the rasters of the city. Street views march a ray per image
column over the height map, then lay trees, posts and people over the result as upright shapes. Each
view is taken on a day of its own: date, hour, weather, cars, paint and exposure are drawn anew for every
image, so that colour does not give the place away while the geometry does. Beside every colour a street
view knows what it is the colour of: one of `CLASSES`.

Begin with `satellite` and `_look`. Both cut a `_Patch` out of the city: the rasters round a point as they are on a
`Day`, with the cars in place. `_look` then finds where each ray ends, `_shade` and `_Walls` colour it, and a `_Canvas`
takes what stands upright. As in `scene`, the order of random draws decides the bytes of every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from geoloc_fast.city.scene import (
    ASPHALT,
    CAR,
    CELL_M,
    COBBLE,
    GLASS,
    GRAIN_SIZE,
    GRASS,
    HEDGE,
    MATERIALS,
    PATCH,
    ROOF,
    VIEW_RANGE_M,
    City,
    generator,
)
from geoloc_fast.city.styles import MIXED, Style

SATELLITE_SIDE_M = 50.0
PANORAMA_EYE_M = 2.2
_SHADOW_RANGE_M = 40.0
_NEAREST_M = 0.8
_CLEAR_M = 3.2  # no car stands nearer to a camera
_LARGE = 256  # rows of an image from which on a pixel is small enough for one ray
_SMOOTH_M = 26.0  # so near, ground is interpolated between cells
_POSTS_M = 45.0
_CARS_M = 65.0  # beyond, they are a pixel

# What a pixel of a street view can be, in the order of its number.
CLASSES = ("sky", "building", "road", "sidewalk", "vegetation", "vehicle", "person", "furniture", "water")
(SKY, BUILDING, ROAD, SIDEWALK_CLASS, VEGETATION, VEHICLE, PERSON, FURNITURE, WATER_CLASS) = range(len(CLASSES))
_CLASS_OF = {
    **dict.fromkeys(("asphalt", "patch", "cobble", "marking", "cycleway"), ROAD),
    **dict.fromkeys(("sidewalk", "paving"), SIDEWALK_CLASS),
    **dict.fromkeys(("grass", "hedge"), VEGETATION),
    **dict.fromkeys(("car", "glass"), VEHICLE),
    **{"roof": BUILDING, "fence": FURNITURE, "water": WATER_CLASS},
}
_MATERIAL_CLASS = np.array([_CLASS_OF[name] for name in MATERIALS], np.uint8)

# Finer: what is no ground by its class (walls are "building", trees "vegetation", posts "furniture"), ground by what it
# is made of. A model learns them from the renderer.
_NO_GROUND = CLASSES[:-1]  # water is a material
KINDS = (*_NO_GROUND, *MATERIALS)
_KIND_CLASS = np.concatenate([np.arange(len(_NO_GROUND), dtype=np.uint8), _MATERIAL_CLASS])

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
    "water": (0.15, 0.23, 0.27),
    "hedge": (0.20, 0.32, 0.14),
    "fence": (0.50, 0.46, 0.41),
}
# How much of each material snow hides.
_SNOW_COVER = {"grass": 0.95, "roof": 0.9, "paving": 0.7, "sidewalk": 0.5, "hedge": 0.6, "car": 0.4, "cobble": 0.3}
_SNOW = np.array([_SNOW_COVER.get(name, 0.15) for name in MATERIALS], np.float32)
_PALETTE = np.array([_COLOURS[name] for name in MATERIALS], np.float32)
# Colour of grass and of leaves, and how much of a crown is leaves: spring, summer, autumn, winter.
_SEASONS = [
    ((0.36, 0.50, 0.20), (0.42, 0.54, 0.24), 0.85),
    ((0.42, 0.48, 0.24), (0.22, 0.36, 0.15), 1.0),
    ((0.44, 0.42, 0.21), (0.60, 0.40, 0.15), 0.85),
    ((0.42, 0.41, 0.29), (0.37, 0.32, 0.27), 0.3),
]
_CONIFER = np.array((0.14, 0.25, 0.15), np.float32)
_PALM = np.array((0.30, 0.40, 0.18), np.float32)
_CLEAR_SKY = np.array([(0.82, 0.87, 0.92), (0.38, 0.56, 0.86)], np.float32)


@dataclass(frozen=True, eq=False)
class Day:
    """Everything that is different on another day."""

    date: np.datetime64  # of the city: what was built and painted by then
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
    snow: float  # 0 to 1
    haze_m: float  # distance over which two thirds of the contrast are lost
    traffic: float  # multiplies the probability of every car
    repaint: float  # deviation of each parcel's colour from its usual one
    gain: np.ndarray  # [3], exposure and white balance
    gamma: float

    @classmethod
    def plain(cls) -> Day:
        """A clear summer day with no cars and everything in its usual colour."""
        return cls(
            date=np.datetime64("2025-06-21"),
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
            snow=0.0,
            haze_m=400.0,
            traffic=0.0,
            repaint=0.0,
            gain=np.ones(3, np.float32),
            gamma=1.0,
        )

    @classmethod
    def draw(
        cls,
        rng: Generator,
        *,
        style: Style = MIXED,
        lat: float = 50.0,
        date: np.datetime64 | None = None,
        above: bool = False,
    ) -> Day:
        """A day at random: the sun and the season of its date and latitude, weather of the style.
        Seen from `above` it is a clear late morning, when satellites pass."""
        if date is None:
            date = np.datetime64("2025-01-01") + int(rng.integers(365))
        day_of_year = int((date - date.astype("datetime64[Y]").astype("datetime64[D]")).astype(int))
        phase = ((day_of_year + 10) / 365.25 + (0.5 if lat < 0 else 0.0)) % 1  # 0 is midwinter
        season = int(np.searchsorted([0.2, 0.42, 0.72, 0.9], phase)) - 1  # of _SEASONS, -1 is winter too
        if abs(lat) < 25 or (style.evergreen and season != 0):
            season = 1
        grass, leaves, leaf_density = _SEASONS[season % len(_SEASONS)]
        snow = bool(rng.random() < style.snow and season % len(_SEASONS) == 3 and abs(lat) > 38)
        palette = _PALETTE.copy()
        palette[GRASS] = grass
        for name, colour in style.colours:
            palette[MATERIALS.index(name)] = colour
        palette[HEDGE] = np.array(leaves) * 0.8
        palette *= rng.uniform(0.75, 1.25, size=(len(palette), 1)).astype(np.float32)
        palette *= rng.uniform(0.95, 1.05, size=palette.shape).astype(np.float32)
        overcast = rng.random() < style.overcast * (0.3 if above else 1.0)
        wet = rng.random() < 0.4 and overcast and not snow
        palette[[ASPHALT, PATCH, COBBLE]] *= 0.65 if wet else 1.0
        azimuth_deg, elevation_deg = _sun(lat, day_of_year, *((-2.0, -0.5) if above else (-5.0, 5.0)), rng.random())
        low = np.clip((40 - elevation_deg) / 22, 0, 1)  # a low sun is yellow
        sun = rng.uniform(0.6, 1.0) * np.array([1.0, 1 - 0.08 * low, 1 - 0.3 * low])
        sun *= 0.12 if overcast else 1.0
        ambient = rng.uniform(0.36, 0.54) * rng.uniform((0.9, 0.95, 0.98), (1.0, 1.02, 1.15))
        ambient *= 1.9 if overcast else 1.0
        grey = rng.uniform(0.7, 0.92)
        sky = _CLEAR_SKY * rng.uniform(0.85, 1.1)
        if overcast:
            sky = np.array([(grey + 0.05,) * 3, (grey - 0.1, grey - 0.08, grey - 0.04)])
        gain = rng.uniform(0.72, 1.3) * rng.uniform(0.91, 1.09, size=3)
        haze_m = rng.uniform(120, 500) * (rng.uniform(0.3, 0.7) if rng.random() < 0.3 and overcast else 1.0)
        return cls(
            date=date,
            seed=int(rng.integers(2**31)),
            sun_azimuth_deg=azimuth_deg,
            sun_elevation_deg=elevation_deg,
            sun=sun.astype(np.float32),
            ambient=ambient.astype(np.float32),
            palette=palette,
            leaves=(np.array(leaves) * rng.uniform(0.8, 1.2)).astype(np.float32),
            leaf_density=leaf_density,
            sky=sky.astype(np.float32),
            cloudiness=float(rng.uniform(0, 0.5)),
            snow=float(rng.uniform(0.7, 1.0)) if snow else 0.0,
            haze_m=float(haze_m),
            traffic=float(rng.uniform(0.3, 1.4)) * style.traffic,
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


def _sun(lat: float, day_of_year: int, earliest: float, latest: float, share: float) -> tuple[float, float]:
    """Azimuth and elevation of the sun between two hours from noon; not below 9 degrees, if it
    rises so high at all."""
    tilt = np.radians(-23.44 * np.cos(2 * np.pi * (day_of_year + 10) / 365.25))
    north = np.radians(lat)
    hour = earliest + share * (latest - earliest)
    for closer in (1.0, 0.75, 0.5, 0.25, 0.0):  # towards noon
        turn = np.radians(15 * hour * closer)
        up = np.sin(north) * np.sin(tilt) + np.cos(north) * np.cos(tilt) * np.cos(turn)
        if up > np.sin(np.radians(9)):
            break
    east_part = -np.cos(tilt) * np.sin(turn)
    north_part = np.cos(north) * np.sin(tilt) - np.sin(north) * np.cos(tilt) * np.cos(turn)
    azimuth_deg = np.degrees(np.arctan2(east_part, north_part)) % 360
    return float(azimuth_deg), float(np.degrees(np.arcsin(np.clip(up, np.sin(np.radians(5)), 0.97))))


# Boxes of a car, a tall car and a van: back, front, half width, height, material.
_VEHICLES = (
    ((-2.1, 2.1, 0.88, 0.82, CAR), (-1.75, 1.0, 0.78, 1.12, GLASS), (-1.35, 0.5, 0.7, 1.42, CAR)),
    ((-2.2, 2.2, 0.92, 1.0, CAR), (-2.1, 1.0, 0.84, 1.4, GLASS), (-2.0, 0.65, 0.8, 1.72, CAR)),
    ((-2.6, 2.5, 1.0, 1.05, CAR), (1.1, 2.1, 0.92, 1.7, GLASS), (-2.6, 1.3, 0.98, 2.25, CAR)),
)


# The same with the corners of each box: (forward, right) [boxes, 4, 2].
_OUTLINES = [(np.array([[(b, -w), (f, -w), (f, w), (b, w)] for b, f, w, _, _ in boxes]), boxes) for boxes in _VEHICLES]


class _Patch:
    """The city round a point on one day: what stood then, cars in place."""

    def __init__(
        self,
        city: City,
        x_m: float,
        y_m: float,
        range_m: float,
        day: Day,
        *,
        cars_m: float,
        clear_m: float = 0.0,
        vehicles: np.ndarray | None = None,
    ):
        reach = int(np.ceil(range_m / CELL_M)) + 2
        row, col = (round(v) for v in city.to_cells(x_m, y_m))
        window = np.s_[row - reach : row + reach + 1, col - reach : col + reach + 1]
        self.city, self.day, self.first_cell = city, day, (row - reach, col - reach)
        self.height_cm = city.height_cm[window].copy()
        self.material = city.material[window].copy()
        self.owner = city.owner[window].copy()
        for stencil in city.changes:
            if stencil.stands(day.date):
                stencil.press(self.height_cm, self.material, self.owner, self.first_cell)
        trees = city.trees[np.abs(city.trees[:, :2] - (x_m, y_m)).max(axis=1) < range_m]
        self.trees = trees[np.argsort(trees[:, 3], kind="stable")]
        rng = generator(day.seed)
        parcels = city.parcels
        count = len(parcels.tint)
        paint = 1 + day.repaint * rng.standard_normal((count, 1), np.float32)
        paint = paint + 0.35 * day.repaint * rng.standard_normal((count, 3), np.float32)
        self.facade = paint * np.where((day.date < parcels.painted)[:, None], parcels.facade_before, parcels.facade)
        slots = city.slots[np.abs(city.slots[:, :2] - (x_m, y_m)).max(axis=1) < cars_m]
        slots = slots[rng.random(len(slots)) < day.traffic * slots[:, 3]]
        slots = slots[np.hypot(*(slots[:, :2] - (x_m, y_m)).T) >= clear_m]
        slots = np.column_stack([slots[:, :3], rng.choice(3, p=(0.66, 0.2, 0.14), size=len(slots))])
        if vehicles is not None:
            slots = np.concatenate([slots, vehicles])
        shades = rng.uniform(0.05, 0.95, size=(len(slots), 1)) + rng.uniform(-0.05, 0.05, size=(len(slots), 3))
        vivid = rng.random(len(slots)) < 0.3
        shades[vivid] = rng.uniform(0.1, 0.7, size=(int(vivid.sum()), 3))
        self.tint = np.concatenate([parcels.tint * paint, shades.astype(np.float32)])
        for number, slot in enumerate(slots, start=len(paint)):
            self._park(number, slot, rng.uniform(0.9, 1.12))

    def to_cells(self, x_m: Any, y_m: Any) -> tuple[Any, Any]:
        row, col = self.city.to_cells(x_m, y_m)
        return row - self.first_cell[0], col - self.first_cell[1]

    def _park(self, number: int, slot: np.ndarray, size: float) -> None:
        x_m, y_m, heading_deg, model = slot
        outline, boxes = _OUTLINES[int(model)]
        turn = np.radians(heading_deg)
        scale = size * 16 / CELL_M  # cv2 takes sixteenths of a cell
        forward, right = outline[..., 0], outline[..., 1]
        row, col = self.to_cells(x_m, y_m)
        across = 16 * col + scale * (forward * np.sin(turn) + right * np.cos(turn))
        down = 16 * row - scale * (forward * np.cos(turn) - right * np.sin(turn))
        points = np.rint(np.stack([across, down], axis=-1)).astype(np.int32)
        for corners, (_, _, _, height_m, material) in zip(points, boxes, strict=True):
            cv2.fillConvexPoly(self.height_cm, corners, int(100 * size * height_m), shift=4)
            cv2.fillConvexPoly(self.material, corners, material, shift=4)
            cv2.fillConvexPoly(self.owner, corners, number, shift=4)

    def grain_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """The ground's texture, which stays where it is from view to view."""
        last = GRAIN_SIZE - 1
        rows, cols = rows + self.first_cell[0], cols + self.first_cell[1]
        return self.city.grain[rows & last, cols & last]

    def albedo(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Colour of ground and roofs at cells, float32 [..., 3]."""
        material = self.material[rows, cols]
        colour = self.day.palette[material] * self.tint[self.owner[rows, cols]]
        grain = self.grain_at(rows, cols)
        if self.day.snow:
            white = np.clip(self.day.snow * _SNOW[material] + 0.12 * grain, 0, 0.95)[..., None]
            colour += white * (np.float32(0.9) - colour)
        return colour * (1 + 0.07 * grain)[..., None]

    def crowded(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Albedo of a rectangle of cells [rows, cols, 3], darker where things stand round and take the
        light of the sky."""
        height_m = self.height_cm[np.ix_(rows, cols)].astype(np.float32) / 100
        blocked = cv2.blur((height_m > 1.2).astype(np.float32), (13, 13)) * (height_m < 1.2)
        return self.albedo(rows[:, None], cols[None, :]) * (1 - 0.5 * blocked)[..., None]

    def shadow_m(self, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """How high the shadow stands over every `stride`-th cell, in metres; and whether the sun
        reaches the ground or roof there, 0 to 1."""
        ground_m = self.height_cm[::stride, ::stride].astype(np.float32) / 100
        step_m = stride * CELL_M
        blockers_m = ground_m.copy()
        rows, cols = self.to_cells(self.trees[:, 0], self.trees[:, 1])
        for row, col, tree in zip(rows / stride, cols / stride, self.trees, strict=True):
            centre = round(16 * col), round(16 * row)
            cv2.circle(blockers_m, centre, int(16 * tree[2] / step_m), float(tree[3]), -1, shift=4)
        # A cell lies in shadow up to the height from which a ray to the sun clears everything on its way. That is the
        # greatest of the heights met step by step towards the sun, each lowered by what the ray has climbed so far.
        east, north, up = self.day.sun_direction
        level = np.hypot(east, north)
        rise_m = np.float32(step_m * up / level)  # of a ray to the sun, per step
        steps = int(min(_SHADOW_RANGE_M / step_m, blockers_m.max() / rise_m)) + 1
        shadow_m = blockers_m - np.float32(0.2)
        size_r, size_c = shadow_m.shape
        for step in range(1, steps):
            dr, dc = round(-step * north / level), round(step * east / level)
            here = np.s_[max(-dr, 0) : size_r - max(dr, 0), max(-dc, 0) : size_c - max(dc, 0)]
            there = np.s_[max(dr, 0) : size_r + min(dr, 0), max(dc, 0) : size_c + min(dc, 0)]
            np.maximum(shadow_m[here], blockers_m[there] - (step * rise_m + np.float32(0.2)), out=shadow_m[here])
        return shadow_m, cv2.GaussianBlur((shadow_m <= ground_m).astype(np.float32), (3, 3), 0)


def class_at(city: City, x_m: float, y_m: float) -> int:
    """What is on the ground at a point: a number in `CLASSES`."""
    row, col = city.to_cells(x_m, y_m)
    return int(_MATERIAL_CLASS[city.material[round(row), round(col)]])


def _develop(colour: np.ndarray, day: Day) -> np.ndarray:
    """Exposure, white balance and contrast; uint8. The camera meters most of the light away, so that
    neither the hour nor the weather is told by brightness alone."""
    metered = np.clip((0.42 / max(float(colour.mean()), 0.02)) ** 0.7, 0.6, 2.4)
    exposed = np.clip(colour * (day.gain * np.float32(metered)), 0, 1) ** np.float32(day.gamma)
    return np.rint(255 * exposed).astype(np.uint8)


def satellite(
    city: City, x_m: float, y_m: float, day: Day, *, size_px: int = 256, side_m: float = SATELLITE_SIDE_M
) -> np.ndarray:
    """The image from above, uint8 [size_px, size_px, 3], `side_m` wide; pixel index size_px / 2 is the point."""
    half_m = side_m / 2
    patch = _Patch(city, x_m, y_m, half_m + _SHADOW_RANGE_M, day, cars_m=half_m + 6)
    _, lit = patch.shadow_m(2)
    row, col = patch.to_cells(x_m, y_m)
    reach = int(half_m / CELL_M) + 3
    first = int(row) - reach, int(col) - reach
    rows, cols = (np.arange(f, f + 2 * reach + 2) for f in first)
    lit = lit[rows // 2][:, cols // 2]
    height_m = patch.height_cm[np.ix_(rows, cols)].astype(np.float32) / 100
    south, east = np.gradient(height_m, CELL_M)
    south, east = np.clip(south, -1, 1), np.clip(east, -1, 1)
    sun = day.sun_direction
    facing = (sun[2] - sun[0] * east + sun[1] * south) / np.sqrt(1 + south**2 + east**2)
    direct = np.maximum(facing, 0).astype(np.float32) * lit
    colour = patch.crowded(rows, cols)
    colour *= day.ambient + day.sun * direct[..., None]
    for tree in patch.trees:
        _draw_crown(colour, patch, tree, first)
    metres_per_pixel = side_m / size_px
    scale = metres_per_pixel / CELL_M
    if scale > 1:
        colour = cv2.GaussianBlur(colour, (0, 0), 0.5 * np.sqrt(scale**2 - 1) + 0.01)
    to_cell = np.array(
        [[scale, 0, col - first[1] - scale * size_px / 2], [0, scale, row - first[0] - scale * size_px / 2]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _develop(cv2.warpAffine(colour, to_cell, (size_px, size_px), flags=flags), day)


def satellite_kinds(city: City, x_m: float, y_m: float, day: Day, *, side_m: float = SATELLITE_SIDE_M) -> np.ndarray:
    """What `satellite` shows, uint8 [n, n], numbers in `KINDS`, in cells of `CELL_M`; index n / 2 is the point."""
    patch = _Patch(city, x_m, y_m, side_m / 2 + _SHADOW_RANGE_M, day, cars_m=side_m / 2 + 6)
    row, col = (round(v) for v in patch.to_cells(x_m, y_m))
    reach = round(side_m / 2 / CELL_M)
    found = patch.material[row - reach : row + reach, col - reach : col + reach] + np.uint8(len(_NO_GROUND))
    for x, y, radius_m, _, _ in patch.trees:
        r, c = patch.to_cells(x, y)
        middle = round(c) - col + reach, round(r) - row + reach
        cv2.circle(found, middle, max(1, int(radius_m / CELL_M)), VEGETATION, -1)
    return found


def _draw_crown(colour: np.ndarray, patch: _Patch, tree: np.ndarray, first: tuple[int, int]) -> None:
    """A tree from above, into an image whose pixels are cells."""
    x_m, y_m, radius_m, _, kind = tree
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
    if kind == 0:
        crown &= _leafy(grain, patch.day.leaf_density)
    elif kind == 2:
        crown &= _fronds(east, south, x_m)
    sun = patch.day.sun_direction
    facing = sun[0] * east - sun[1] * south + sun[2] * np.sqrt(np.maximum(1 - squared, 0.1))
    leaves = (patch.day.leaves, _CONIFER, _PALM)[int(kind)]
    shade = (np.maximum(facing, 0) * (1 + 0.25 * grain))[..., None]
    light = patch.day.ambient * 0.9 + patch.day.sun * shade
    colour[r0:r1, c0:c1][crown] = (leaves * light)[crown]


def _leafy(grain: np.ndarray, density: float) -> np.ndarray:
    """A mask that covers about `density` of a tile of noise."""
    return grain < np.interp(density, [0, 0.3, 0.5, 0.85, 1], [-4, -0.52, 0, 1.04, 9])


def _fronds(across: np.ndarray, down: np.ndarray, turn: float) -> np.ndarray:
    """The star of a palm, whose leaves lie close at the stem."""
    star = np.cos(9 * np.arctan2(down, across) + turn)
    return star > 2.2 * np.hypot(across, down) - 1.3


@dataclass(frozen=True, eq=False)
class _Camera:
    """The rays of an image: slope (rise per metre of level distance) = rise[row] * stretch[col]."""

    azimuth_deg: np.ndarray  # [columns]
    rise: np.ndarray  # [rows], from the top down
    stretch: np.ndarray  # [columns]
    rays: int  # a pixel, each way

    @classmethod
    def panorama(cls, size: tuple[int, int], column0_deg: float) -> _Camera:
        rows, columns = size
        degrees, rays = 360.0 / columns, _rays_of(rows)
        across, down = _samples(columns, rays), _samples(rows, rays)
        elevation_deg = (rows / 2 - 0.5 - down) * degrees
        return cls(column0_deg + across * degrees, np.tan(np.radians(elevation_deg)), np.ones(len(across)), rays)

    @classmethod
    def plane(cls, across: np.ndarray, up: np.ndarray, heading_deg: float, rays: int) -> _Camera:
        """Rays through a grid on the upright plane one metre ahead, `up` from the top down."""
        offset = np.arctan(across)
        return cls(heading_deg + np.degrees(offset), up, np.cos(offset), rays)


def _rays_of(rows: int) -> int:
    """How many rays a pixel of an image of so many rows has, each way."""
    return 1 if rows >= _LARGE else 2


def _samples(count: int, rays: int) -> np.ndarray:
    """Coordinates of the rays, symmetric about each pixel's own coordinate."""
    return (np.arange(count * rays) + 0.5) / rays - 0.5


@dataclass(frozen=True, eq=False)
class _Rays:
    """What every ray of an image sees."""

    colour: np.ndarray  # float32 [rows, columns, 3], before exposure
    kind: np.ndarray  # uint8 [rows, columns], number in KINDS
    each_way: int  # rays per pixel

    def image(self, day: Day) -> np.ndarray:
        n = self.each_way
        rows, columns = (count // n for count in self.kind.shape)
        # The mean of each pixel's rays; exact and quick, unlike a mean over two axes of five.
        parts = [self.colour[r::n, c::n] for r in range(n) for c in range(n)]
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        assert total.shape == (rows, columns, 3)
        return _develop(total * np.float32(1 / len(parts)), day)

    def kinds(self) -> np.ndarray:
        """Of one ray of every pixel: a kind has no mean."""
        n = self.each_way
        return np.ascontiguousarray(self.kind[n // 2 :: n, n // 2 :: n])

    def classes(self) -> np.ndarray:
        """The same in `CLASSES`."""
        return _KIND_CLASS[self.kinds()]


def _look(
    city: City,
    x_m: float,
    y_m: float,
    eye_m: float,
    camera: _Camera,
    day: Day,
    people: np.ndarray | None = None,
    vehicles: np.ndarray | None = None,
) -> _Rays:
    """Follows the rays of a camera. Arrays are [columns, rows] here: neighbours in memory see the
    same wall."""
    patch = _Patch(city, x_m, y_m, VIEW_RANGE_M, day, cars_m=_CARS_M, clear_m=_CLEAR_M, vehicles=vehicles)
    azimuth = np.radians(camera.azimuth_deg)
    sin, cos = np.sin(azimuth), np.cos(azimuth)
    slope = (camera.stretch[:, None] * camera.rise).astype(np.float32)
    count = slope.shape

    # March outward: a row sees the first sample that rises above its ray.
    steps = int(np.log(VIEW_RANGE_M / _NEAREST_M) / np.log(1.022)) + 1
    distance = _NEAREST_M * 1.022 ** np.arange(steps + 1)
    distance = distance[distance < VIEW_RANGE_M - 1]
    row0, col0 = patch.to_cells(x_m, y_m)
    rows = np.rint(row0 - cos[:, None] * (distance / CELL_M)).astype(np.int32)
    cols = np.rint(col0 + sin[:, None] * (distance / CELL_M)).astype(np.int32)
    height_m = patch.height_cm[rows, cols].astype(np.float32) / 100
    # `seen` is the steepest ray that anything up to a sample hides, in units of `rise`; it only grows with distance.
    # `covered` says how many rows, from below, each sample hides. Row m is hidden first by the sample whose number is
    # how many samples hide at most m rows, and a cumulative sum has that number for all rows at once.
    seen = (height_m - np.float32(eye_m)) / (distance * camera.stretch[:, None])
    np.maximum.accumulate(seen, axis=1, out=seen)
    covered = np.searchsorted(camera.rise[::-1], seen.ravel(), side="right")  # rows from below
    covered += np.repeat(np.arange(count[0]) * (count[1] + 1), len(distance))
    tally = np.bincount(covered, minlength=count[0] * (count[1] + 1)).reshape(count[0], -1)
    first = np.cumsum(tally, axis=1)[:, count[1] - 1 :: -1]  # [columns, rows]
    hit = first < len(distance)

    colour = _sky(city, day, camera, slope)
    kind = np.full(count, SKY, np.uint8)
    depth = np.full(count, np.inf, np.float32)
    at, k = np.nonzero(hit)[0], first[hit]
    # Rays one above the other that end at the same sample form a run: they see the same wall.
    start = np.flatnonzero(np.diff(at * len(distance) + k, prepend=-1))
    run = np.repeat(np.arange(len(start)), np.diff(start, append=len(at)))
    cell = rows[at[start], k[start]], cols[at[start], k[start]]
    far = distance[k[start]]
    near = np.where(k[start] > 0, distance[k[start] - 1], 0.0)
    runs = _Runs(
        index=run,
        near=near.astype(np.float32),
        far=far.astype(np.float32),
        east=sin[at[start]].astype(np.float32),
        north=cos[at[start]].astype(np.float32),
        top_m=height_m[at[start], k[start]],
        cell=cell,
        material=patch.material[cell],
        owner=patch.owner[cell],
    )
    colour[hit], kind[hit], depth[hit] = _shade(patch, runs, slope[hit], (x_m, y_m, eye_m))
    canvas = _Canvas((x_m, y_m, eye_m), camera, azimuth, slope, colour, kind, depth)
    for tree in patch.trees:
        _stand_tree(canvas, patch, tree)
    posts = city.posts[np.hypot(*(city.posts[:, :2] - (x_m, y_m)).T) < _POSTS_M]
    for post in posts:
        _stand_post(canvas, day, post)
    for person in () if people is None else people:
        _stand_person(canvas, day, person)
    # Haze: with distance, everything fades to the colour of the horizon. The sky has no distance.
    clear = np.exp(np.minimum(depth, 1e6) * np.float32(-1 / day.haze_m))
    clear[np.isinf(depth)] = 1
    colour -= day.sky[0]
    colour *= clear[..., None]
    colour += day.sky[0]
    return _Rays(np.ascontiguousarray(colour.transpose(1, 0, 2)), np.ascontiguousarray(kind.T), camera.rays)


def _sky(city: City, day: Day, camera: _Camera, slope: np.ndarray) -> np.ndarray:
    """Colour of the sky on [columns, rows]: smooth, so one ray a pixel is enough."""
    few = slope[:: camera.rays, :: camera.rays]
    elevation = np.arctan(few)
    colour = day.sky[0] + np.clip(elevation / 0.7, 0, 1)[..., None] * (day.sky[1] - day.sky[0])
    cols = (camera.azimuth_deg[:: camera.rays] * (GRAIN_SIZE / 360)).astype(int) & (GRAIN_SIZE - 1)
    rows = ((elevation * 160).astype(int) + day.seed) & (GRAIN_SIZE - 1)
    cloud = np.clip(city.clouds[rows, cols[:, None]] * 0.5 + day.cloudiness - 0.2, 0, 0.9)
    colour += cloud[..., None].astype(np.float32) * (np.float32(0.95) - colour)
    colour[few < 0] = day.sky[0]  # beyond the range of sight
    return cv2.resize(colour.astype(np.float32), slope.shape[::-1], interpolation=cv2.INTER_NEAREST)


@dataclass(frozen=True, eq=False)
class _Runs:
    """Rays of one column that end at the same sample of the height map; arrays have a row per run."""

    index: np.ndarray  # [rays], the run of every ray
    near: np.ndarray  # distance of the sample before
    far: np.ndarray  # distance of the sample
    east: np.ndarray  # direction of the column
    north: np.ndarray
    top_m: np.ndarray  # height of the sample
    cell: tuple[np.ndarray, np.ndarray]
    material: np.ndarray
    owner: np.ndarray


def _shade(
    patch: _Patch, runs: _Runs, slope: np.ndarray, eye: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lit colour, class and distance of what rays meet: ground, roofs, walls, cars."""
    day, sun, run = patch.day, patch.day.sun_direction.astype(np.float32), runs.index
    drop_m = runs.top_m - np.float32(eye[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        level_m = drop_m[run] / slope  # where a ray meets the surface, if it is level there
    near, far = runs.near[run], runs.far[run]
    level = (level_m >= near - 0.05) & (level_m <= far)
    wall = _Walls(patch, runs, eye)
    distance = np.where(level, level_m, wall.distance[run])
    z_m = np.float32(eye[2]) + slope * distance
    # A ray that meets nothing level ends on an edge: below the eaves of a building a wall, else the slope of a roof,
    # the side of a car, a hedge, a kerb.
    on_wall = ~level & (runs.material == ROOF)[run]
    on_wall &= z_m < (patch.city.parcels.eaves_m[np.where(runs.material == ROOF, runs.owner, 0)] + 0.05)[run]

    # Ground: cells near the camera are larger than a pixel, so colours are interpolated between them.
    row0, col0 = patch.to_cells(eye[0], eye[1])
    rows = np.float32(row0) - runs.north[run] * (distance * np.float32(1 / CELL_M))
    cols = np.float32(col0) + runs.east[run] * (distance * np.float32(1 / CELL_M))
    row, col = np.rint(rows).astype(np.int32), np.rint(cols).astype(np.int32)
    row, col = np.where(level, row, runs.cell[0][run]), np.where(level, col, runs.cell[1][run])
    kind = patch.material[row, col] + np.uint8(len(_NO_GROUND))
    albedo = np.empty((len(run), 3), np.float32)
    smooth = level & (distance < _SMOOTH_M)
    reach = int(_SMOOTH_M / CELL_M) + 2
    first = int(row0) - reach, int(col0) - reach
    close = patch.crowded(*(np.arange(f, f + 2 * reach + 2) for f in first))
    albedo[smooth] = _sample(close, rows[smooth] - first[0], cols[smooth] - first[1])
    rest = ~(smooth | on_wall)
    albedo[rest] = patch.albedo(row[rest], col[rest])
    fine = 24 * CELL_M  # cells of grain a cell, so that near ground is not smooth
    grain = patch.city.grain[(rows[smooth] * fine).astype(int) & 511, (cols[smooth] * fine).astype(int) & 511]
    albedo[smooth] *= (1 + 0.05 * grain)[:, None]
    wheels = ~level & (runs.material == CAR)[run] & (z_m < 0.33)
    albedo[wheels] = 0.06

    shadow_m, lit = patch.shadow_m(4)
    sunlit = _sample(lit, rows / 4, cols / 4)
    direct = np.where(level, sun[2] * sunlit, (0.35 * sun[2] + 0.15) * (0.4 + 0.6 * sunlit))
    if on_wall.any():
        kind[on_wall] = BUILDING
        albedo[on_wall], direct[on_wall] = wall.paint(on_wall, z_m[on_wall], shadow_m)
    return albedo * (day.ambient + day.sun * direct[:, None]), kind, distance


def _sample(image: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Values of an image between its pixels, at a list of points."""
    wide = 1 << 12  # cv2.remap wants less than 2^15 each way
    tall = -(-len(rows) // wide)
    points = np.zeros((2, tall * wide), np.float32)
    points[0, : len(rows)], points[1, : len(rows)] = cols, rows
    across, down = points.reshape(2, tall, wide)
    if tall == 0:
        return np.empty((0, *image.shape[2:]), np.float32)
    values = cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return values.reshape(tall * wide, *image.shape[2:])[: len(rows)]


class _Walls:
    """Where runs meet the walls of buildings, and what is there."""

    def __init__(self, patch: _Patch, runs: _Runs, eye: tuple[float, float, float]):
        self.patch, self.runs = patch, runs
        self.distance = (runs.near + runs.far) / 2
        self.run = np.flatnonzero(runs.material == ROOF)  # the runs that may be walls
        at, parcels = self.run, patch.city.parcels
        self.owner = runs.owner[at]
        self.which = np.zeros(len(runs.near), np.int32)  # back from a run to its number here
        self.which[at] = np.arange(len(at))
        planes = parcels.walls[self.owner]
        east, north, middle = runs.east[at], runs.north[at], self.distance[at]
        x_m, y_m = eye[0] + east * middle, eye[1] + north * middle
        side = (planes[..., 0] * x_m[:, None] + planes[..., 1] * y_m[:, None] - planes[..., 2]).argmax(1)
        plane = planes[np.arange(len(at)), side]
        self.normal = plane[:, :2]
        # The march is coarse far away; the wall's plane tells where the wall is.
        into = self.normal[:, 0] * east + self.normal[:, 1] * north
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = (plane[:, 2] - self.normal[:, 0] * eye[0] - self.normal[:, 1] * eye[1]) / into
        sure = (into < -0.03) & (np.abs(exact - middle) < 0.6 + 1.5 * (runs.far[at] - runs.near[at]))
        self.distance[at] = np.where(sure, exact, middle)
        self.x_m, self.y_m = eye[0] + east * self.distance[at], eye[1] + north * self.distance[at]

    def paint(self, on_wall: np.ndarray, z_m: np.ndarray, shadow_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colour of rays on walls, and how much sun falls on them."""
        patch, parcels, day = self.patch, self.patch.city.parcels, self.patch.day
        owner, normal = self.owner, self.normal
        # Per run: across the wall. Per ray: up it. `bay` counts windows along the wall, `storey` up it; their fractions
        # say where in its window a ray is.
        along_m = (normal[:, 0] * self.y_m - normal[:, 1] * self.x_m).astype(np.float32)
        bay_m, floor_m = parcels.bay_m[owner].astype(np.float32), parcels.floor_m[owner].astype(np.float32)
        bay = along_m / bay_m
        across = np.abs(bay % 1 - 0.5)
        width, height = parcels.window[owner].astype(np.float32).T
        distance = self.distance[self.run]
        # Far windows are finer than a pixel: they fade into the wall.
        strength = np.clip(1.3 - distance / 70, 0.35, 1)
        in_window, in_shop, in_door = across < width / 2, across < 0.43, across < np.minimum(0.6 / bay_m, 0.35)
        framed = in_window & (np.minimum(width / 2 - across, 1) * bay_m < 0.09) & (distance < 40)
        shuttered = ~in_window & (across < width / 2 + 0.45 / bay_m) & parcels.shutter[owner]
        sun = day.sun_direction.astype(np.float32)
        facing = np.maximum(normal[:, 0] * sun[0] + normal[:, 1] * sun[1], 0)
        ahead = patch.to_cells(self.x_m + 1.2 * normal[:, 0], self.y_m + 1.2 * normal[:, 1])
        last = len(shadow_m) - 1
        spot = tuple(np.clip(np.rint(v / 4).astype(int), 0, last) for v in ahead)
        shade_m = shadow_m[spot]

        i = self.which[self.runs.index[on_wall]]
        storey = z_m / floor_m[i]
        floor = np.floor(storey)
        part = storey - floor
        eaves_m = parcels.eaves_m[owner].astype(np.float32)[i]
        up = np.abs(part - 0.52)
        chance = _chance(owner[i], np.floor(bay).astype(np.int32)[i], floor.astype(np.int32))
        ground, shop = floor < 1, parcels.shop[owner][i]
        shop_front = ground & shop
        window = in_window[i] & (up < height[i] / 2) & (z_m < eaves_m - 0.5)
        window = np.where(shop_front, in_shop[i] & (part < 0.78) & (part > 0.1), window)
        door = ground & ~shop & (chance > 0.8) & in_door[i] & (z_m < 2.2)
        frame = window & ~shop_front & (framed[i] | ((height[i] / 2 - up) * floor_m[i] < 0.08))
        shutter = shuttered[i] & (up < height[i] / 2) & (z_m < eaves_m - 0.5) & ~shop_front
        sign = shop_front & (part > 0.8) & (part < 0.96) & (chance < 0.75)

        paint = patch.facade[owner]
        grain = patch.city.grain
        colour = paint[i]
        rows = (along_m * 10).astype(int) & (GRAIN_SIZE - 1)
        tone = 1 + 0.05 * grain[rows[i], (z_m * 10).astype(int) & (GRAIN_SIZE - 1)]
        tone *= np.where(part < 0.05, 0.88, 1.0) * np.where(z_m < 0.55, 0.8, 1.0)
        tone *= np.where(z_m > eaves_m - 0.35, 1.12, 1.0)  # the cornice
        colour *= tone.astype(np.float32)[:, None]
        accent = np.array(_ACCENTS, np.float32)[owner % len(_ACCENTS)]
        glass = day.palette[GLASS] * (0.6 + 2.2 * chance)[:, None].astype(np.float32) + 0.12 * day.sky[1]
        fade = strength[i][:, None]
        # Most rays meet plain wall: only those that do not are painted over.
        for mask, over in (
            (window, glass),
            (frame, np.float32(0.5) * paint[i] + np.float32(0.4)),
            (shutter, accent[i]),
            (sign, np.array(_SIGNS, np.float32)[(chance * 997).astype(int) % len(_SIGNS)]),
            (door, accent[i] * np.float32(0.8)),
        ):
            at = np.flatnonzero(mask)
            colour[at] += fade[at] * (over[at] - colour[at])
        sunlit = np.clip((z_m - shade_m[i]) / 0.8 + 0.5, 0, 1)
        return colour, (facing[i] * sunlit).astype(np.float32)


_ACCENTS = (
    *((0.20, 0.30, 0.24), (0.24, 0.28, 0.40), (0.42, 0.18, 0.15), (0.34, 0.24, 0.17)),
    *((0.70, 0.68, 0.64), (0.16, 0.16, 0.18), (0.36, 0.44, 0.47)),
)
_SIGNS = (
    *((0.70, 0.16, 0.13), (0.12, 0.28, 0.52), (0.14, 0.40, 0.24), (0.85, 0.83, 0.78)),
    *((0.82, 0.64, 0.16), (0.14, 0.14, 0.15), (0.52, 0.22, 0.40)),
)


def _chance(owner: np.ndarray, bay: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for every window of every building, always the same one."""
    mixed = (owner.astype(np.uint32) * np.uint32(2654435761)) ^ (bay.astype(np.uint32) * np.uint32(2246822519))
    mixed ^= floor.astype(np.uint32) * np.uint32(3266489917)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(739982445)
    mixed ^= mixed >> np.uint32(13)
    return (mixed >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


@dataclass(frozen=True, eq=False)
class _Canvas:
    """An image in the making, [columns, rows], to which upright things are added, nearest in front."""

    eye: tuple[float, float, float]  # x, y, z
    camera: _Camera
    azimuth: np.ndarray  # radians [columns]
    slope: np.ndarray
    colour: np.ndarray  # [columns, rows, 3]
    kind: np.ndarray
    depth: np.ndarray  # level distance in metres

    def behind(self, x_m: float, y_m: float, half_width_m: float, height_m: float) -> _Upright | None:
        """The rays that may meet an upright plane at a point."""
        east, north = x_m - self.eye[0], y_m - self.eye[1]
        distance = np.hypot(east, north)
        if distance <= half_width_m + 0.6:  # nobody photographs from inside a tree
            return None
        turn = self.azimuth - np.arctan2(east, north)
        side_m = distance * np.sin(turn)
        columns = np.flatnonzero((np.abs(side_m) < half_width_m) & (np.cos(turn) > 0))
        if len(columns) == 0:
            return None
        away_m = distance * np.cos(turn[columns])
        # One slice of rows holds the thing in all columns: from the ray to its top, where that looks highest, to the
        # ray just under its foot.
        steepest = 1 / (away_m.min() * self.camera.stretch[columns].min())
        top = (height_m - self.eye[2]) * (steepest if height_m > self.eye[2] else 1 / distance)
        below = -(self.eye[2] + 0.1) * steepest
        r0, r1 = np.searchsorted(-self.camera.rise, (-top - 1e-3, -below + 1e-3))
        rows = slice(int(r0), int(r1))
        z_m = self.eye[2] + self.slope[columns, rows] * away_m[:, None]
        return _Upright(columns, rows, side_m[columns, None], z_m, away_m[:, None].astype(np.float32))

    def add(self, upright: _Upright, mask: np.ndarray, paint: Any, kind: int) -> None:
        """Paints the rays of the mask [columns, rows] that nothing nearer hides."""
        columns, rows = upright.columns, upright.rows
        shown = np.nonzero(mask & (upright.away_m <= self.depth[columns, rows]))
        at = columns[shown[0]], shown[1] + rows.start
        self.colour[at] = paint[shown] if np.ndim(paint) == 3 else paint
        self.kind[at] = kind
        self.depth[at] = upright.away_m[shown[0], 0]


@dataclass(frozen=True, eq=False)
class _Upright:
    """The rays near an upright thing."""

    columns: np.ndarray
    rows: slice
    side_m: np.ndarray  # [columns, 1], to the right of its middle
    z_m: np.ndarray  # [columns, rows]
    away_m: np.ndarray  # [columns, 1]


def _stand_tree(canvas: _Canvas, patch: _Patch, tree: np.ndarray) -> None:
    radius_m, height_m, kind = tree[2:]
    upright = canvas.behind(tree[0], tree[1], 1.15 * radius_m, 1.15 * height_m)
    if upright is None:
        return
    side_m, z_m = upright.side_m, upright.z_m
    base_m = (min(0.35 * height_m, 2.6), 0.4, height_m - 1.6 * radius_m)[int(kind)]
    half_m = (height_m - base_m) / 2
    u, v = side_m / radius_m, (z_m - base_m - half_m) / half_m
    rows = (z_m * 9 + tree[0] * 7).astype(int) & (GRAIN_SIZE - 1)
    grain = patch.city.grain[rows, (side_m * 9 + tree[1] * 7).astype(int) & (GRAIN_SIZE - 1)]
    squared = u**2 + v**2
    if kind == 1:
        crown = (np.abs(v) < 1) & (np.abs(u) < (1 - v) / 2 * (1 + 0.2 * grain))
    elif kind == 2:
        crown = (squared < 1 + 0.2 * grain) & (v > -0.9 * np.abs(u) - 0.2) & _fronds(u, v, tree[0])
    else:
        crown = (squared < 1 + 0.2 * grain) & _leafy(grain, patch.day.leaf_density)
    trunk = (np.abs(side_m) < 0.06 * radius_m + 0.05) & (z_m > 0) & (z_m < base_m + 0.8 * half_m)
    day, sun = patch.day, patch.day.sun_direction
    bearing = canvas.azimuth[upright.columns, None]
    right = sun[0] * np.cos(bearing) - sun[1] * np.sin(bearing)
    back = -sun[0] * np.sin(bearing) - sun[1] * np.cos(bearing)
    facing = right * u + sun[2] * v + back * np.sqrt(np.maximum(1 - squared, 0))
    shade = (np.maximum(0.35 + 0.65 * facing, 0) * (1 + 0.3 * grain))[..., None].astype(np.float32)
    leaves = (day.leaves, _CONIFER, _PALM)[int(kind)] * (day.ambient * 0.9 + day.sun * shade)
    bark = np.array((0.26, 0.21, 0.17), np.float32) * (day.ambient + 0.4 * day.sun)
    canvas.add(upright, trunk, bark, VEGETATION)
    canvas.add(upright, crown, leaves, VEGETATION)


def _stand_post(canvas: _Canvas, day: Day, post: np.ndarray) -> None:
    x_m, y_m, height_m, sign = post
    upright = canvas.behind(x_m, y_m, 0.6, height_m + 0.1)
    if upright is None:
        return
    side_m, z_m, light = upright.side_m, upright.z_m, day.ambient + 0.5 * day.sun
    # Rays are further apart than a far pole is thick: it keeps at least the width of one.
    ray = abs(canvas.camera.azimuth_deg[1] - canvas.camera.azimuth_deg[0])
    half_m = np.maximum(0.06, upright.away_m * np.radians(ray) / 2)
    pole = (np.abs(side_m) < half_m) & (z_m > 0) & (z_m < height_m)
    canvas.add(upright, pole, np.array((0.33, 0.34, 0.35), np.float32) * light, FURNITURE)
    if sign:
        away = np.hypot(side_m, z_m - height_m + 0.35)
        face = np.where((away > 0.24)[..., None], _SIGN_RIMS[int(x_m * 7) % 3], np.float32(0.85))
        canvas.add(upright, away < 0.33, face * light, FURNITURE)
    else:
        head = (np.abs(side_m) < 0.45) & (np.abs(z_m - height_m) < 0.1)
        canvas.add(upright, head, np.array((0.45, 0.46, 0.47), np.float32) * light, FURNITURE)


_SIGN_RIMS = np.array([(0.72, 0.10, 0.10), (0.12, 0.25, 0.62), (0.72, 0.10, 0.10)], np.float32)


def _stand_person(canvas: _Canvas, day: Day, person: np.ndarray) -> None:
    upright = canvas.behind(person[0], person[1], 0.32, person[2])
    if upright is None:
        return
    side_m, z = upright.side_m, upright.z_m / person[2]  # in body heights
    light, clothes = day.ambient + 0.5 * day.sun, person[3:6].astype(np.float32)
    legs = (z > 0) & (z < 0.5) & (np.abs(np.abs(side_m) - 0.09) < 0.075)
    body = (z > 0.46) & (z < 0.84) & (np.abs(side_m) < 0.17 + 0.1 * (z > 0.55) * (z < 0.82))
    head = (side_m / 0.11) ** 2 + ((z - 0.92) / 0.075) ** 2 < 1
    hair = head & (z > 0.94)
    canvas.add(upright, legs, clothes[::-1] * light / 2, PERSON)
    canvas.add(upright, body, clothes * light, PERSON)
    canvas.add(upright, head, np.array((0.7, 0.55, 0.45), np.float32) * light, PERSON)
    canvas.add(upright, hair, np.array((0.2, 0.15, 0.12), np.float32) * light, PERSON)


def panorama_rays(
    city: City,
    x_m: float,
    y_m: float,
    day: Day,
    *,
    size: tuple[int, int] = (64, 256),
    column0_deg: float = 180.0,
    people: np.ndarray | None = None,
) -> _Rays:
    """What every pixel of a panorama at a spot looks at: a ray per pixel, marched through the scene."""
    camera = _Camera.panorama(size, column0_deg)
    eye_m = PANORAMA_EYE_M
    return _look(city, x_m, y_m, eye_m, camera, day, people)


def panorama(
    city: City, x_m: float, y_m: float, day: Day, *, size: tuple[int, int] = (64, 256), column0_deg: float = 180.0
) -> np.ndarray:
    """The street panorama, uint8 [H, W, 3]; column j samples azimuth column0_deg + 360 j / W."""
    return panorama_rays(city, x_m, y_m, day, size=size, column0_deg=column0_deg).image(day)


def photo_rays(
    city: City,
    x_m: float,
    y_m: float,
    heading_deg: float,
    fov_deg: float,
    day: Day,
    *,
    size: tuple[int, int] = (96, 128),
    eye_m: float = 1.6,
    pitch_deg: float = 0.0,
    roll_deg: float = 0.0,
    people: np.ndarray | None = None,
    vehicles: np.ndarray | None = None,
) -> _Rays:
    """What every pixel of a perspective photo looks at; arguments as in `photo`."""
    rows, columns = size
    focal, each_way = columns / 2 / np.tan(np.radians(fov_deg) / 2), _rays_of(rows)
    across = (_samples(columns, each_way) - (columns - 1) / 2) / focal
    up = ((rows - 1) / 2 - _samples(rows, each_way)) / focal
    eye_m += city.height_m(x_m, y_m)
    if pitch_deg == 0 and roll_deg == 0:
        camera = _Camera.plane(across, up, heading_deg, each_way)
        return _look(city, x_m, y_m, eye_m, camera, day, people, vehicles)
    # A turned camera sees what a larger level one does, by a homography of the two image planes.
    pitch, roll = np.radians((pitch_deg, roll_deg))
    lift = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    tip = np.array([[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    turn = lift @ tip  # from (right, up, ahead) of the camera to that of a level one
    corners = np.array([(x, y, 1.0) for x in across[[0, -1]] for y in up[[0, -1]]]) @ turn.T
    if corners[:, 2].min() <= 0.15:
        raise ValueError(f"pitch_deg: expected a photo that looks ahead, got {pitch_deg} with fov_deg {fov_deg}")
    corners = corners[:, :2] / corners[:, 2:]
    ray = across[1] - across[0]
    low, high = corners.min(axis=0) - 2 * ray, corners.max(axis=0) + 2 * ray
    wide = np.arange(low[0], high[0] + ray, ray)
    tall = np.arange(high[1], low[1] - ray, -ray)
    camera = _Camera.plane(wide, tall, heading_deg, each_way)
    rays = _look(city, x_m, y_m, eye_m, camera, day, people, vehicles)
    to_plane = np.array([[ray, 0, across[0]], [0, -ray, up[0]], [0, 0, 1]])  # from (column, row)
    to_level = np.array([[1 / ray, 0, -low[0] / ray], [0, -1 / ray, high[1] / ray], [0, 0, 1]])
    warp = to_level @ turn @ to_plane
    shape = len(across), len(up)
    colour = cv2.warpPerspective(rays.colour, warp, shape, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    kind = cv2.warpPerspective(rays.kind, warp, shape, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    return _Rays(colour, kind, each_way)


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
    pitch_deg: float = 0.0,
    roll_deg: float = 0.0,
    people: np.ndarray | None = None,
    vehicles: np.ndarray | None = None,
) -> np.ndarray:
    """A perspective photo, uint8 [h, w, 3], whose edges lie `fov_deg` apart.

    A positive pitch looks up, a positive roll turns the camera clockwise, so that the horizon sinks to
    the left. `people` holds one row each: x, y, body height, and the colour of the clothes; `vehicles`
    x, y, heading and model.
    """
    rays = photo_rays(
        city,
        x_m,
        y_m,
        heading_deg,
        fov_deg,
        day,
        size=size,
        eye_m=eye_m,
        pitch_deg=pitch_deg,
        roll_deg=roll_deg,
        people=people,
        vehicles=vehicles,
    )
    return rays.image(day)
