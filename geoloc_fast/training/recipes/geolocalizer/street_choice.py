"""Which street view a place is encoded with: choices that experiments make.

Which of those there are (`data.views`), by the rule of `geoloc_fast.data.availability` for the place's first photo:

given               as the manifest has them
real                without what a generator made; those that it stood in for are back
strict              real and available ones; places without one, and their photos, are left out
hybrid              real and available ones; other places have none
nearest             a place without a real and available one has that of the nearest place with a real one, however old
synthetic           real and available ones; other places have the one that `geoloc-fast synthesize` made, or none

How they lie (`data.street`):

known               only panoramas whose heading the manifest knows; a place with another has none
azimuth, orb, sift  the heading of the others is measured against the satellite image (`data.calibration`)
as_is               the others are taken as they lie, whatever they look at
projected           no street view at all: the satellite image as a camera at its middle would see flat ground
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from geoloc_fast.data.availability import available, real_street_views
from geoloc_fast.data.manifest import DEFAULTS, STREET_COLUMNS, Manifest
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.calibration import calibrate

__all__ = ["STREET", "VIEWS", "chosen_street", "chosen_views", "projected"]

VIEWS = ("given", "real", "strict", "hybrid", "nearest", "synthetic")
STREET = ("known", "azimuth", "orb", "sift", "as_is", "projected")
_CAMERA_M = 1.65
_REACH_M = 25.0  # from the middle of a satellite image to its edge


def chosen_views(manifest: Manifest, how: str) -> Manifest:
    """With other street views, and, unless they are as given, a column `street_view` of the photos: "available" where
    their place has a real and available one, else "none"."""
    if how == "given":
        return manifest
    made = manifest.places["street_synthetic"].is_valid()
    if how == "synthetic" and not pc.any(made).as_py():
        raise ValueError("data.views: expected synthetic street views in the manifest, got none; see synthesize")
    places, photos = real_street_views(manifest.places), manifest.photos
    first = pc.index_in(places["id"], value_set=photos["place"].combine_chunks())
    date, lat, lon = (photos[name].take(first).to_numpy() for name in ("date", "lat", "lon"))
    usable = available(places, date.astype("datetime64[D]"), lat, lon)
    of_photo = pc.is_in(photos["place"], value_set=places["id"].filter(pa.array(usable)).combine_chunks())
    photos = photos.append_column("street_view", pc.if_else(of_photo, "available", "none"))
    if how == "real":
        return manifest.replace(places=places, photos=photos)
    if how == "synthetic":
        keep = pa.array(~usable)
        for name in (*STREET_COLUMNS, "street_synthetic"):
            one = pc.if_else(made, manifest.places[name], _nothing(places, name))
            places = _with(places, name, pc.if_else(keep, one, places[name]))
        return manifest.replace(places=places, photos=photos)
    if how == "strict":
        return manifest.replace(places=places.filter(pa.array(usable)), photos=photos.filter(of_photo))
    source = np.arange(len(places))
    if how == "nearest":
        there = np.flatnonzero(pc.or_(places["street"].is_valid(), places["street_views"].is_valid()).to_numpy())
        if not len(there):
            raise ValueError("data.views: expected places with real street views for nearest, got none")
        lat, lon = (places[name].to_numpy() for name in ("lat", "lon"))
        for row in np.flatnonzero(~usable):
            source[row] = there[great_circle_m(lat[row], lon[row], lat[there], lon[there]).argmin()]
        usable[:] = True
    for name in STREET_COLUMNS:
        taken = pc.if_else(pa.array(usable), places[name].take(pa.array(source)), _nothing(places, name))
        places = _with(places, name, taken)
    return manifest.replace(places=places, photos=photos)


def _nothing(places: pa.Table, name: str) -> pa.Scalar:
    return pa.scalar(DEFAULTS.get(name), places.schema.field(name).type)


def _with(places: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return places.set_column(places.schema.get_field_index(name), places.schema.field(name), values)


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
