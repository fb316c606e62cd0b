"""Parts of the Earth that a search, a slice or a removal can be restricted to. Degrees, WGS84; borders belong to it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geoloc_fast.geo.sphere import great_circle_m, latitude_band_deg

__all__ = ["Box", "Circle", "Polygon", "Region", "load_polygon", "parse_box", "parse_circle", "polygon_of"]

MAX_CORNERS = 100_000
_MAX_BYTES = 1 << 25
_CHUNK = 1 << 22  # pairs of a point and an edge that are looked at together


@dataclass(frozen=True)
class Box:
    """From `west` eastwards to `east`: with west > east it crosses the antimeridian."""

    south: float
    west: float
    north: float
    east: float

    def __post_init__(self) -> None:
        for name, limit in (("south", 90.0), ("west", 180.0), ("north", 90.0), ("east", 180.0)):
            _degrees(name, getattr(self, name), limit)
        if self.south > self.north:
            raise ValueError(f"south: expected at most north ({self.north}), got {self.south}; are they swapped?")

    def contains(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """Which positions lie in it: bool, of the shape of `lat`."""
        within = (lat >= self.south) & (lat <= self.north)
        if self.west <= self.east:
            return within & (lon >= self.west) & (lon <= self.east)
        return within & ((lon >= self.west) | (lon <= self.east))


@dataclass(frozen=True)
class Circle:
    """All within `metres` of a point."""

    lat: float
    lon: float
    metres: float

    def __post_init__(self) -> None:
        _degrees("lat", self.lat, 90.0)
        _degrees("lon", self.lon, 180.0)
        if not (isinstance(self.metres, (int, float)) and math.isfinite(self.metres) and self.metres >= 0):
            raise ValueError(f"metres: expected a finite number, at least 0, got {self.metres!r}")

    def contains(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """Which positions lie in it: bool, of the shape of `lat`."""
        near = np.abs(lat - self.lat) <= latitude_band_deg(self.metres)
        near[near] = great_circle_m(self.lat, self.lon, lat[near], lon[near]) <= self.metres
        return near


@dataclass(frozen=True)
class Polygon:
    """What lies inside an odd number of rings, so that a ring within another is a hole. Edges are straight in degrees.

    Attributes:
        rings: of (lat, lon) corners, at least three each; closed whether or not the first is repeated at the end. An
            edge takes the short way round: one from 179 to -179 crosses the antimeridian.
    """

    rings: tuple[tuple[tuple[float, float], ...], ...]

    def __post_init__(self) -> None:
        if not self.rings:
            raise ValueError("rings: expected at least one ring of corners, got none")
        if sum(map(len, self.rings)) > MAX_CORNERS:
            raise ValueError(f"rings: expected at most {MAX_CORNERS} corners, got {sum(map(len, self.rings))}")
        for ring in self.rings:
            for lat, lon in ring:
                _degrees("lat", lat, 90.0)
                _degrees("lon", lon, 180.0)
            if len(set(ring)) < 3:
                raise ValueError(f"rings: expected at least three corners in each, got {len(set(ring))}")

    def contains(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """Which positions lie in it: bool, of the shape of `lat`."""
        lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        found = np.zeros(lat.shape, bool)
        border = np.zeros(lat.shape, bool)
        for ring in self.rings:
            corners = np.array(ring, np.float64)
            north = corners[:, 0]
            # The ring unrolled: its longitudes go on beyond 180 where it crosses.
            step = (np.diff(corners[:, 1], prepend=corners[-1, 1]) + 180.0) % 360.0 - 180.0
            east = corners[0, 1] + np.cumsum(np.append(0.0, step[1:]))
            near = np.flatnonzero((lat >= north.min()) & (lat <= north.max()))
            for turn in (-360.0, 0.0, 360.0):
                at = near[(lon[near] + turn >= east.min()) & (lon[near] + turn <= east.max())]
                for begin in range(0, len(at), max(1, _CHUNK // len(ring))):
                    part = at[begin : begin + max(1, _CHUNK // len(ring))]
                    inside, edge = _in_ring(north, east, lat[part], lon[part] + turn)
                    found[part] ^= inside
                    border[part] |= edge
        return found | border

    def __str__(self) -> str:
        return f"a polygon of {sum(map(len, self.rings))} corners"


def _in_ring(north: np.ndarray, east: np.ndarray, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether a ray to the east crosses an odd number of edges; whether the point lies on one."""
    to_north, to_east = np.roll(north, -1), np.roll(east, -1)
    y, x = lat[:, None], lon[:, None]
    rise, run = to_north - north, to_east - east
    side = run * (y - north) - rise * (x - east)  # 0 on the line through both ends
    straddles = (north > y) != (to_north > y)
    crossed = straddles & ((side > 0) != (rise > 0)) & (side != 0)
    between = (y >= np.minimum(north, to_north)) & (y <= np.maximum(north, to_north))
    between &= (x >= np.minimum(east, to_east)) & (x <= np.maximum(east, to_east))
    return crossed.sum(1) % 2 == 1, ((side == 0) & between).any(1)


Region = Box | Circle | Polygon


def load_polygon(path: str | os.PathLike[str]) -> Polygon:
    """The polygons of a GeoJSON file, together."""
    path = Path(path)
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{path}: is larger than {_MAX_BYTES} bytes; simplify the polygon")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected GeoJSON, got text that is not JSON ({error})") from error
    try:
        return polygon_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def polygon_of(geojson: Any) -> Polygon:
    """Of a GeoJSON object that was read: a Polygon, a MultiPolygon, or features and collections of them."""
    rings: list[tuple[tuple[float, float], ...]] = []
    waiting = [geojson]
    while waiting:
        part = waiting.pop(0)
        if not isinstance(part, dict):
            raise ValueError(f"expected a GeoJSON object, got {type(part).__name__}")
        kind = part.get("type")
        if kind in ("FeatureCollection", "GeometryCollection"):
            inner = part.get("features" if kind == "FeatureCollection" else "geometries")
            if not isinstance(inner, list):
                raise ValueError(f"expected a list in a {kind}")
            waiting += inner
        elif kind == "Feature":
            waiting.append(part.get("geometry"))
        elif kind in ("Polygon", "MultiPolygon"):
            polygons: Any = [part.get("coordinates")] if kind == "Polygon" else part.get("coordinates")
            try:
                rings += [
                    tuple((float(lat), float(lon)) for lon, lat, *_ in ring) for polygon in polygons for ring in polygon
                ]
            except (TypeError, ValueError):
                raise ValueError("expected rings of [longitude, latitude] in the coordinates") from None
        else:
            raise ValueError(f"expected polygons, got a {kind!r}")
    return Polygon(tuple(rings))


def parse_box(text: str) -> Box:
    """`south=48.1,west=11.4,north=48.2,east=11.7`, in any order: numbers without names get swapped."""
    return Box(**_named(text, ("south", "west", "north", "east")))


def parse_circle(text: str) -> Circle:
    """`lat=48.1,lon=11.5,metres=500`, in any order."""
    return Circle(**_named(text, ("lat", "lon", "metres")))


def _named(text: str, names: tuple[str, ...]) -> dict[str, float]:
    expected = f"expected {','.join(f'{name}=NUMBER' for name in names)}, got {text!r}"
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ValueError(expected) from None
    if sorted(found) != sorted(names) or len(text.split(",")) != len(names):
        raise ValueError(expected)
    return found


def _degrees(name: str, value: Any, limit: float) -> None:
    if not isinstance(value, (int, float)) or not abs(value) <= limit:  # refuses NaN too
        raise ValueError(f"{name}: expected degrees from {-limit:g} to {limit:g}, got {value!r}")
