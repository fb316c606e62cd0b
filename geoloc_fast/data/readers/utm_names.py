"""Folders whose file names hold the position: `@easting@northing@zone@band@lat@lon@pano@tile@heading@...@.jpg`."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import Any

from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.data.readers.photo_folder import find_images
from geoloc_fast.errors import ManifestError
from geoloc_fast.geo.utm import utm_to_lat_lon, zone_is_south

__all__ = ["read_utm_names"]

FIELDS = (
    "", "easting", "northing", "zone", "band", "lat", "lon", "pano", "tile", "heading", "pitch", "roll", "height",
    "date", "note",
)  # fmt: skip
SPLITS = ("train", "val", "test")


def read_utm_names(
    path: str | os.PathLike[str],
    *,
    zone: int | None = None,
    south: bool = False,
    panoramas: bool = False,
) -> Manifest:
    """One photo an image; its folder's name goes into the extra column `role` ("database", "queries", ...).

    Only the easting and northing are always there. Latitude and longitude are taken where a name has them, else
    computed with the name's zone and band, else with `zone` and `south`. The split is a folder of that name above.

    Args:
        panoramas: images in folders called `database` are street panoramas, and become places instead of photos; a
            heading in the name is that of the middle.
    """
    root = Path(path)
    places: list[dict[str, Any]] = []
    photos: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for image in find_images(root):
        folders = image.split("/")[:-1]
        role = folders[-1] if folders else ""
        try:
            found = _parse(image.split("/")[-1], zone, south)
        except ValueError as error:
            problems.append(Problem(image, None, None, str(error)))
            continue
        row = {"id": image, "lat": found["lat"], "lon": found["lon"]}
        heading = found["heading_deg"]
        if panoramas and role == "database":
            column0 = None if heading is None else (heading - 180.0) % 360.0
            places.append(
                {**row, "street": image, "street_date": found["date"], "street_column0_deg": column0, "role": role}
            )
        else:
            split = next((folder for folder in reversed(folders) if folder in SPLITS), None)
            photos.append(
                {**row, "image": image, "heading_deg": heading, "date": found["date"], "split": split, "role": role}
            )
    if problems:
        raise ManifestError(problems)
    return Manifest.from_rows(root, places, photos)


def _parse(name: str, zone: int | None, south: bool) -> dict[str, Any]:
    parts = name.split("@")
    if len(parts) < 4 or parts[0]:
        raise ValueError("expected a name of the form @easting@northing@...@.jpg")
    # The last part is the suffix; a field beyond it is not there.
    fields = {key: value.strip() for key, value in zip(FIELDS, parts[:-1], strict=False)}
    if fields.get("lat") and fields.get("lon"):
        lat, lon = _number(fields, "lat"), _number(fields, "lon")
    else:
        if fields.get("zone") and fields.get("band"):
            zone, south = round(_number(fields, "zone")), zone_is_south(fields["band"])
        if zone is None:
            raise ValueError("has neither latitude and longitude nor a UTM zone: give `zone` and `south`")
        easting, northing = _number(fields, "easting"), _number(fields, "northing")
        lat, lon = (float(value) for value in utm_to_lat_lon(easting, northing, zone, south=south))
    heading = _number(fields, "heading") % 360.0 if fields.get("heading") else None
    return {"lat": lat, "lon": lon, "heading_deg": heading, "date": _date(fields.get("date", ""))}


def _number(fields: dict[str, str], key: str) -> float:
    try:
        number = float(fields[key])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a number as {key}, got {fields[key]!r}")
    return number


def _date(text: str) -> datetime.date | None:
    """Of YYYYMMDD..., or YYYYMM, which is all that panoramas often have. Other timestamps stay unknown."""
    digits = text.replace("-", "").replace("_", "")[:8]
    if len(digits) == 6:
        digits += "01"
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None
