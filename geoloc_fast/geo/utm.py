"""Positions from UTM coordinates, which several published data sets use."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["utm_to_lat_lon", "zone_is_south"]

_A, _F = 6378137.0, 1 / 298.257223563  # WGS84
_N = _F / (2 - _F)
_RADIUS = _A / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64)
_BETA = (
    _N / 2 - 2 / 3 * _N**2 + 37 / 96 * _N**3,
    _N**2 / 48 + _N**3 / 15,
    17 / 480 * _N**3,
)
_DELTA = (2 * _N - 2 / 3 * _N**2 - 2 * _N**3, 7 / 3 * _N**2 - 8 / 5 * _N**3, 56 / 15 * _N**3)


def utm_to_lat_lon(easting_m: Any, northing_m: Any, zone: int, *, south: bool) -> tuple[Any, Any]:
    """`(lat, lon)` in degrees, WGS84, to a millimetre within a zone (Krueger's series to the third order).

    Args:
        zone: 1 to 60.
        south: whether northings are counted from 10 000 km south of the equator.
    """
    if not 1 <= zone <= 60:
        raise ValueError(f"zone: expected 1 to 60, got {zone}")
    north = np.asarray(northing_m, np.float64) - (10_000_000.0 if south else 0.0)
    xi = north / (0.9996 * _RADIUS)
    eta = (np.asarray(easting_m, np.float64) - 500_000.0) / (0.9996 * _RADIUS)
    xi1 = xi - sum(b * np.sin(2 * j * xi) * np.cosh(2 * j * eta) for j, b in enumerate(_BETA, 1))
    eta1 = eta - sum(b * np.cos(2 * j * xi) * np.sinh(2 * j * eta) for j, b in enumerate(_BETA, 1))
    chi = np.arcsin(np.sin(xi1) / np.cosh(eta1))
    lat = chi + sum(d * np.sin(2 * j * chi) for j, d in enumerate(_DELTA, 1))
    lon = np.arctan2(np.sinh(eta1), np.cos(xi1))
    return np.degrees(lat), (np.degrees(lon) + 6 * zone - 183 + 180) % 360 - 180


def zone_is_south(letter: str) -> bool:
    """Whether a latitude band (C to X without I and O) lies south of the equator. Band S, say, is in the north."""
    if len(letter) != 1 or letter.upper() not in "CDEFGHJKLMNPQRSTUVWX":
        raise ValueError(f"expected a latitude band from C to X, got {letter!r}")
    return letter.upper() < "N"
