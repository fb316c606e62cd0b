"""Distances and small moves on the Earth, taken as a sphere of `EARTH_RADIUS_M`.

Positions are WGS84 degrees, always named `lat` and `lon`. Every function takes floats, NumPy
arrays or torch tensors (of one kind per call), broadcasts, and returns the same kind. Give degrees
in float64: a float32 longitude is exact to about a metre only.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["EARTH_RADIUS_M", "great_circle_m", "latitude_band_deg", "move_m", "offset_m"]

EARTH_RADIUS_M = 6371008.8
_METRES_PER_DEGREE = EARTH_RADIUS_M * np.pi / 180.0


def _maths(*values: Any) -> ModuleType:
    return torch if any(isinstance(value, torch.Tensor) for value in values) else np


def _radians(maths: ModuleType, value: Any) -> Any:
    if maths is torch and not isinstance(value, torch.Tensor):
        value = torch.as_tensor(value, dtype=torch.float64)
    return value * (np.pi / 180.0)


def great_circle_m(lat1: Any, lon1: Any, lat2: Any, lon2: Any) -> Any:
    """Great-circle distance in metres (haversine; exact for near and far points alike)."""
    maths = _maths(lat1, lon1, lat2, lon2)
    north1, east1, north2, east2 = (_radians(maths, v) for v in (lat1, lon1, lat2, lon2))
    half = (
        maths.sin((north2 - north1) / 2) ** 2
        + maths.cos(north1) * maths.cos(north2) * maths.sin((east2 - east1) / 2) ** 2
    )
    # Rounding can put an antipodal pair a hair above 1.
    half = half.clip(0.0, 1.0)
    return 2 * EARTH_RADIUS_M * maths.arcsin(maths.sqrt(half))


def latitude_band_deg(range_m: float) -> float:
    """Who lies more than so many degrees further north or south is more than `range_m` away: a comparison that spares
    most distances."""
    return range_m / _METRES_PER_DEGREE + 1e-9


def offset_m(lat: Any, lon: Any, to_lat: Any, to_lon: Any) -> tuple[Any, Any]:
    """`(east_m, north_m)` from a position to a nearby one, in the plane tangent at the first.

    Good to 2e-4 of the distance within a kilometre, up to 70 degrees of latitude; the way across
    the antimeridian is the short one.
    """
    maths = _maths(lat, lon, to_lat, to_lon)
    turn = (to_lon - lon + 180.0) % 360.0 - 180.0
    east = turn * _METRES_PER_DEGREE * maths.cos(_radians(maths, lat))
    return east, (to_lat - lat) * _METRES_PER_DEGREE


def move_m(lat: Any, lon: Any, east_m: Any, north_m: Any) -> tuple[Any, Any]:
    """`(lat, lon)` of the point `east_m`, `north_m` away: the inverse of `offset_m`."""
    maths = _maths(lat, lon, east_m, north_m)
    to_lon = lon + east_m / (_METRES_PER_DEGREE * maths.cos(_radians(maths, lat)))
    return lat + north_m / _METRES_PER_DEGREE, (to_lon + 180.0) % 360.0 - 180.0
