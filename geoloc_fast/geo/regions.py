"""Parts of the Earth that a search, a slice or a removal can be restricted to. Degrees, WGS84; borders belong to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from geoloc_fast.geo.sphere import great_circle_m, latitude_band_deg

__all__ = ["Box", "Circle", "Region", "parse_box", "parse_circle"]


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
        near = np.abs(lat - self.lat) <= latitude_band_deg(self.metres)
        near[near] = great_circle_m(self.lat, self.lon, lat[near], lon[near]) <= self.metres
        return near


Region = Box | Circle


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
