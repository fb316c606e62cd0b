"""Which street view a place is encoded with: a choice that experiments make (`data.street`).

known               only panoramas whose heading the manifest knows; a place with another has none
azimuth, orb, sift  the heading of the others is measured against the satellite image (`data.calibration`)
as_is               the others are taken as they lie, whatever they look at
projected           no street view at all: the satellite image as a camera at its middle would see flat ground
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geoloc_fast.data.calibration import calibrate

__all__ = ["STREET", "chosen_street", "projected"]

STREET = ("known", "azimuth", "orb", "sift", "as_is", "projected")
_CAMERA_M = 1.65
_REACH_M = 25.0  # from the middle of a satellite image to its edge


def chosen_street(
    how: str,
    panorama: Tensor,
    polar: Tensor,
    *,
    has_panorama: Tensor,
    has_satellite: Tensor,
    heading_known: Tensor,
    column0_deg: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Panoramas uint8 [B, 3, H, W], and bool [B] whether there is one and whether it lies in the frame."""
    if how == "known":
        return panorama, has_panorama, heading_known
    if how == "as_is":
        return panorama, has_panorama, has_panorama
    if how == "projected":
        return projected(polar), has_satellite, has_satellite
    todo = (has_panorama & has_satellite & ~heading_known).nonzero()[:, 0]
    if not len(todo):
        return panorama, has_panorama, heading_known
    found = calibrate(panorama[todo], polar[todo], method=how, polar_column0_deg=column0_deg)
    panorama, heading_known = panorama.clone(), heading_known.clone()
    columns = panorama.shape[3]
    for row, looks_at, status in zip(todo.tolist(), found.column0_deg.tolist(), found.status, strict=True):
        if status != "none":
            panorama[row] = panorama[row].roll(round((looks_at - column0_deg) * columns / 360), 2)
            heading_known[row] = True
    return panorama, has_panorama, heading_known


def projected(polar: Tensor) -> Tensor:
    """Polar images [B, C, H, W] ("inner" radii) as panoramas of flat ground. Row i of a panorama looks
    a = d (i + 0.5 - H / 2) down, d = 360 / W degrees, at ground that lies 1.65 m / tan(a) away. Above the horizon and
    beyond the image it is black."""
    rows, columns = polar.shape[2:]
    down = torch.deg2rad((torch.arange(rows) + 0.5 - rows / 2) * 360 / columns)
    away = torch.where(down > 0, _CAMERA_M / down.clamp(min=1e-6, max=math.pi / 2 - 1e-3).tan(), math.inf)
    row = rows - 1 - away / _REACH_M * rows
    taken = polar[:, :, row.clamp(0, rows - 1).round().long()]
    return taken * (row >= 0)[:, None].to(polar.dtype)
