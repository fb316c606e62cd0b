"""Web Mercator, the projection of map tiles."""

from __future__ import annotations

import math

__all__ = ["web_mercator_metres_per_pixel"]


def web_mercator_metres_per_pixel(lat: float, zoom: float) -> float:
    """Ground resolution of a tile of 256 pixels: 0.149 m at zoom 20 at the equator only."""
    return math.cos(math.radians(lat)) * 2 * math.pi * 6378137.0 / (256 * 2**zoom)
