"""Which street views may be used: those near the photo in space and time.

The main paper's rule: a street view is available if it was taken within 50 m of the photo and within one year of it.
Otherwise one is generated from the satellite image. An index has no photo; for it, the distance is to the place, and
the date is the one for which the index should hold.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geoloc_fast.data.manifest import DEFAULTS, PLACES, STREET_COLUMNS, superseded_street
from geoloc_fast.geo.sphere import great_circle_m

__all__ = ["MAX_AGE_DAYS", "MAX_DISTANCE_M", "available", "real_street_views", "street_distance_m"]

MAX_DISTANCE_M = 50.0
MAX_AGE_DAYS = 365


def street_distance_m(places: pa.Table, lat: Any = None, lon: Any = None) -> np.ndarray:
    """Metres from each place's street view to `lat`, `lon` (one position, or one per row; default the place itself).

    A street view without a position of its own is taken to stand at the place. NaN where a position is unknown.
    """
    columns = {
        name: np.asarray(places[name].to_numpy(), np.float64) for name in ("lat", "lon", "street_lat", "street_lon")
    }
    own = np.isfinite(columns["street_lat"])
    street_lat = np.where(own, columns["street_lat"], columns["lat"])
    street_lon = np.where(own, columns["street_lon"], columns["lon"])
    to_lat = columns["lat"] if lat is None else np.asarray(lat, np.float64)
    to_lon = columns["lon"] if lon is None else np.asarray(lon, np.float64)
    return np.asarray(great_circle_m(street_lat, street_lon, to_lat, to_lon))


def available(
    places: pa.Table,
    date: datetime.date | np.ndarray | None,
    lat: Any = None,
    lon: Any = None,
    *,
    max_distance_m: float = MAX_DISTANCE_M,
    max_age_days: int = MAX_AGE_DAYS,
) -> np.ndarray:
    """bool [rows of places]: whether the place has a real street view that may be used.

    What is not known does not rule a street view out: without a date on either side there is no age limit, and without
    a position on either side no distance limit. A view that a generator made (`street_synthetic`) is never available.

    Args:
        places: rows of a manifest's places; for photos, one row per photo.
        date: of the photo, or as of which an index is to be true; one, or datetime64 [rows] with NaT for unknown.
        lat, lon: of the photo, one or a row each, NaN for unknown; default: the place itself, as for an index.
    """
    there = pc.or_(places["street"].is_valid(), places["street_views"].is_valid())
    real = pc.and_(there, places["street_synthetic"].is_null()).to_numpy(zero_copy_only=False)
    distance = street_distance_m(places, lat, lon)
    taken = places["street_date"].to_numpy().astype("datetime64[D]")
    when = np.asarray(np.datetime64("NaT") if date is None else date, "datetime64[D]")
    age_days = np.abs(taken - when) / np.timedelta64(1, "D")  # NaN of NaT
    return real & ~(distance > max_distance_m) & ~(age_days > max_age_days)


def real_street_views(places: pa.Table) -> pa.Table:
    """The places with real street views only: views that synthetic ones replaced are restored, and where there was no
    real view there is none."""
    made = places["street_synthetic"].is_valid().to_numpy(zero_copy_only=False)
    if not made.any():
        return places
    columns = {name: places[name].to_pylist() for name in STREET_COLUMNS}
    superseded = places["street_superseded"].to_pylist()
    for row in np.flatnonzero(made):
        real = {} if superseded[row] is None else superseded_street(superseded[row])
        for name in STREET_COLUMNS:
            columns[name][row] = real.get(name, DEFAULTS.get(name))
    columns |= dict.fromkeys(("street_synthetic", "street_superseded"), [None] * len(places))
    for name, values in columns.items():
        at = places.schema.get_field_index(name)
        places = places.set_column(at, name, pa.array(values, PLACES.field(name).type))
    return places
