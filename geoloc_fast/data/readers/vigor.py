"""VIGOR: four cities, satellite images on a grid, panoramas anywhere between them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.data.readers.lists import file_names, lines_of, warn_left_out
from geoloc_fast.errors import ManifestError
from geoloc_fast.geo.mercator import web_mercator_metres_per_pixel

__all__ = ["read_vigor"]

CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")
SPLIT_FOLDERS = ("splits__corrected", "splits")
LABELS = "pano_label_balanced"
SAME_AREA = {"train": "same_area_balanced_train", "test": "same_area_balanced_test"}
_ZOOM = 20


def read_vigor(path: str | os.PathLike[str]) -> Manifest:
    """One place a satellite image, one photo a panorama (north in the middle), each photo with its positive place.

    The other three satellite images that show the photo's position are kept in extra columns of the photos:

    - `semi_positives`: their ids.
    - `rows_px`, `columns_px`: four numbers each, for the place and then the semi-positives: how far the photo's
      position lies below and to the right of the satellite image's centre, in its pixels.

    These offsets are computed from the coordinates in the file names. Those in the original label files rest on one
    wrong ground resolution for all cities; the corrected label files hold the same as computed here, rounded.
    `split` is that of the same-area protocol; the cross-area one trains on the cities NewYork and Seattle.
    """
    root = Path(path)
    folders = [folder for folder in SPLIT_FOLDERS if (root / folder).is_dir()]
    cities = [city for city in CITIES if (root / city).is_dir()]
    if not folders or not cities:
        reason = f"expected folders {' or '.join(SPLIT_FOLDERS)}, and of cities ({', '.join(CITIES)})"
        raise ManifestError([Problem(str(root), None, None, reason)])
    places: list[dict[str, Any]] = []
    photos: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for city in cities:
        _read_city(root, folders[0], city, places, photos, problems)
    if problems:
        raise ManifestError(problems)
    return Manifest.from_rows(root, places, photos)


def _read_city(
    root: Path,
    splits: str,
    city: str,
    places: list[dict[str, Any]],
    photos: list[dict[str, Any]],
    problems: list[Problem],
) -> None:
    there = file_names(root / city / "satellite")
    at: dict[str, tuple[float, float]] = {}
    listing = f"{splits}/{city}/satellite_list.txt"
    missing = []
    names = lines_of(root, listing)
    for row, line in enumerate(names, start=1):
        name = line.strip()
        position = _position(name, "satellite_", "_")
        if position is None:
            problems.append(Problem(listing, row, None, f"expected satellite_<lat>_<lon>.png, got {name!r}"))
        elif name not in there:
            missing.append(name)
        else:
            at[name] = position
            lat, lon = position
            resolution = web_mercator_metres_per_pixel(lat, _ZOOM)
            satellite = f"{city}/satellite/{name}"
            row_of = {"id": name, "lat": lat, "lon": lon, "city": city, "satellite": satellite}
            places.append({**row_of, "metres_per_pixel": resolution})
    warn_left_out(f"satellite images of {city}", missing, len(names))

    split_of: dict[str, str] = {}
    rows: dict[str, tuple[str, int, list[str]]] = {}
    lists = file_names(root / splits / city)
    for label, split in ((LABELS, None), *((name, split) for split, name in SAME_AREA.items())):
        file = next((f"{label}{end}.txt" for end in ("__corrected", "") if f"{label}{end}.txt" in lists), None)
        if file is None:
            continue
        for row, line in enumerate(lines_of(root, f"{splits}/{city}/{file}"), start=1):
            cells = line.split()
            if len(cells) != 13:
                reason = f"expected a panorama and four times (satellite image, row, column), got {len(cells)} cells"
                problems.append(Problem(f"{splits}/{city}/{file}", row, None, reason))
                continue
            rows.setdefault(cells[0], (f"{splits}/{city}/{file}", row, cells[1::3]))
            if split is not None:
                split_of[cells[0]] = split
    if not rows:
        problems.append(
            Problem(f"{splits}/{city}", None, None, f"expected {LABELS}.txt or lists of the same-area split")
        )
    panoramas = file_names(root / city / "panorama")
    no_image, no_place = [], []
    for name, (file, row, satellites) in rows.items():
        position = _position(name, None, ",")
        if position is None:
            problems.append(Problem(file, row, None, f"expected <name>,<lat>,<lon>,.jpg, got {name!r}"))
            continue
        if name not in panoramas:
            no_image.append(name)
            continue
        if any(satellite not in at for satellite in satellites):
            unknown = [satellite for satellite in satellites if satellite not in at and satellite not in missing]
            if unknown:
                problems.append(Problem(file, row, None, f"{unknown[0]!r} is not in satellite_list.txt"))
            else:
                no_place.append(name)
            continue
        offsets = [_offset_px(at[satellite], position) for satellite in satellites]
        photos.append(
            {
                "id": name,
                "image": f"{city}/panorama/{name}",
                "lat": position[0],
                "lon": position[1],
                "heading_deg": 0.0,
                "fov_deg": 360.0,
                "city": city,
                "place": satellites[0],
                "split": split_of.get(name),
                "semi_positives": satellites[1:],
                "rows_px": [below for below, _ in offsets],
                "columns_px": [right for _, right in offsets],
            }
        )
    warn_left_out(f"panoramas of {city}", no_image, len(rows))
    warn_left_out(f"panoramas of {city} (of a satellite image)", no_place, len(rows))


def _position(name: str, prefix: str | None, separator: str) -> tuple[float, float] | None:
    """(lat, lon) of `satellite_<lat>_<lon>.png` or `<id>,<lat>,<lon>,.jpg`."""
    if prefix is not None:
        parts = name.removeprefix(prefix).rsplit(".", 1)[0].split(separator) if name.startswith(prefix) else []
    else:
        parts = name.rsplit(separator, 3)[1:3]
    try:
        lat, lon = (float(part) for part in parts)
    except ValueError:
        return None
    return (lat, lon) if math.isfinite(lat) and math.isfinite(lon) else None


def _offset_px(centre: tuple[float, float], position: tuple[float, float]) -> tuple[float, float]:
    """Pixels below and to the right of the centre, in the Web-Mercator plane the image was cut from."""

    def plane(lat: float, lon: float) -> tuple[float, float]:
        north = math.asinh(math.tan(math.radians(lat)))
        return -north, math.radians(lon)

    scale = 256 * 2**_ZOOM / (2 * math.pi)
    (row0, column0), (row, column) = plane(*centre), plane(*position)
    return (row - row0) * scale, (column - column0) * scale
