"""Choose the positions of places: on a grid, at given points, or along lines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geoloc_fast.data.manifest import Problem
from geoloc_fast.errors import ManifestError
from geoloc_fast.geo.regions import Region
from geoloc_fast.geo.sphere import great_circle_m, move_m, offset_m
from geoloc_fast.region.imagery import Ground

__all__ = ["MAX_SPOTS", "Spots", "spots_of"]

MAX_SPOTS = 20_000_000
_MAX_FILE_BYTES = 1 << 30
_NEAREST_M, _FURTHEST_M = 1.0, 10_000.0


class Spots(NamedTuple):
    """Positions at which places are to be made, n of them."""

    id: list[str]
    lat: np.ndarray
    lon: np.ndarray


def spots_of(text: str, ground: Ground, within: Region | None = None) -> Spots:
    """What `--places` says, where the imagery may show it.

    Args:
        text: "grid:10" (a grid of 10 metres), "points.csv" (columns lat and lon, id if there is one), or
            "roads.geojson:5" (every 5 metres along its lines).
        within: only these.
    """
    head, _, tail = text.rpartition(":")
    if head == "grid":
        names, lat, lon = None, *_grid(_metres(tail), ground)
    elif text.lower().endswith(".csv"):
        names, lat, lon = _points(Path(text))
    elif head.lower().endswith((".geojson", ".json")):
        names, lat, lon = None, *_along(Path(head), _metres(tail))
    else:
        raise ValueError(f"places: expected grid:METRES, POINTS.csv or LINES.geojson:METRES, got {text!r}")
    keep = np.ones(len(lat), bool) if names is not None else ground.covers(lat, lon)
    if within is not None:
        keep &= within.contains(lat, lon)
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise ValueError(f"places: none of {text} is on the imagery, which covers {ground.bounds}")
    lat, lon = lat[rows], lon[rows]
    if names is None:  # a name says where, so that two runs give one place one name
        ids = [f"{a:.6f}_{b:.6f}" for a, b in zip(lat.tolist(), lon.tolist(), strict=True)]
    else:
        ids = [names[row] for row in rows.tolist()]
    return Spots(ids, lat, lon)


def _metres(text: str) -> float:
    try:
        metres = float(text)
    except ValueError:
        metres = math.nan
    if not _NEAREST_M <= metres <= _FURTHEST_M:
        raise ValueError(f"places: expected {_NEAREST_M:g} to {_FURTHEST_M:g} metres after the colon, got {text!r}")
    return metres


def _grid(metres: float, ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a fixed distance, and in each row points of that distance; only where the imagery may show something."""
    box = ground.bounds
    height = float(great_circle_m(box.south, box.west, box.north, box.west))
    rows = int(height // metres) + 1
    lats, lons = [], []
    total = 0
    for row in range(rows):
        lat = box.south + (height % metres / 2 + row * metres) / 111_195.0802
        if not -89.9 <= lat <= 89.9:
            continue
        width = max(0.0, float(offset_m(lat, 0.0, lat, 1.0)[0]) * (box.east - box.west))
        count = int(width // metres) + 1
        if count > 4 * MAX_SPOTS:
            raise ValueError(f"places: a grid of {metres:g} m has more than {MAX_SPOTS} points; take a wider one")
        east = width % metres / 2 + np.arange(count) * metres
        lon = box.west + east / max(width, 1e-9) * (box.east - box.west)
        there = ground.covers(np.full(count, lat), lon)
        lons.append(lon[there])
        lats.append(np.full(int(there.sum()), lat))
        total += int(there.sum())
        if total > MAX_SPOTS:
            raise ValueError(f"places: a grid of {metres:g} m has more than {MAX_SPOTS} points; take a wider one")
    return np.concatenate([np.zeros(0), *lats]), np.concatenate([np.zeros(0), *lons])


def _points(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    problems: list[Problem] = []
    ids, lat, lon = [], [], []
    seen: set[str] = set()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = {"lat", "lon"} - set(table.fieldnames or ())
            if missing:
                reason = f"expected columns lat and lon; {' and '.join(sorted(missing))} is not there"
                raise ManifestError([Problem(path.name, None, None, reason)])
            for row, cells in enumerate(table, start=1):
                try:
                    at = float(cells["lat"] or "nan"), float(cells["lon"] or "nan")
                except ValueError:
                    at = math.nan, math.nan
                if not (abs(at[0]) <= 90 and abs(at[1]) <= 180):
                    problems.append(
                        Problem(path.name, row, "lat", f"expected degrees, got {cells['lat']!r}, {cells['lon']!r}")
                    )
                    continue
                name = (cells.get("id") or f"{at[0]:.6f}_{at[1]:.6f}").strip()
                if name in seen:
                    problems.append(Problem(path.name, row, "id", f"{name!r} is there already"))
                    continue
                seen.add(name)
                ids.append(name)
                lat.append(at[0])
                lon.append(at[1])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError([Problem(path.name, None, None, f"is no CSV file that can be read: {error}")]) from error
    if problems:
        raise ManifestError(problems)
    return ids, np.array(lat), np.array(lon)


def _along(path: Path, metres: float) -> tuple[np.ndarray, np.ndarray]:
    """Points along every line, none nearer to another than half the distance."""
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes; cut the region out of it")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected GeoJSON, got text that is not JSON ({error})") from error
    kept: dict[tuple[int, int], list[tuple[float, float]]] = {}
    found: list[tuple[float, float]] = []
    half = metres / 2
    for line in _lines(content, path):
        for lat, lon in _steps(line, metres):
            column = half / max(1e-6, math.cos(math.radians(lat)))
            cell = int(lat * 111_195 // half), int(lon * 111_195 // column)
            near = [p for a in (-1, 0, 1) for b in (-1, 0, 1) for p in kept.get((cell[0] + a, cell[1] + b), ())]
            if any(math.hypot(*offset_m(lat, lon, *other)) < half for other in near):
                continue
            kept.setdefault(cell, []).append((lat, lon))
            found.append((lat, lon))
            if len(found) > MAX_SPOTS:
                raise ValueError(
                    f"places: {path} has more than {MAX_SPOTS} points every {metres:g} m; take a wider step"
                )
    return np.array([p[0] for p in found]), np.array([p[1] for p in found])


def _lines(content: Any, path: Path) -> Iterator[np.ndarray]:
    """[N, 2] latitude and longitude of every line of a GeoJSON object."""
    waiting = [content]
    while waiting:
        part = waiting.pop(0) if len(waiting) == 1 else waiting.pop()
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "FeatureCollection" and isinstance(part.get("features"), list):
            waiting += reversed(part["features"])
        elif kind == "GeometryCollection" and isinstance(part.get("geometries"), list):
            waiting += reversed(part["geometries"])
        elif kind == "Feature":
            if part.get("geometry") is not None:
                waiting.append(part["geometry"])
        elif kind in ("LineString", "MultiLineString"):
            lines: Any = [part.get("coordinates")] if kind == "LineString" else part.get("coordinates")
            try:
                for line in lines:
                    at = np.array([(float(lat), float(lon)) for lon, lat, *_ in line]).reshape(-1, 2)
                    if not (np.abs(at) <= [90, 180]).all():
                        raise ValueError("degrees")
                    yield at
            except (TypeError, ValueError):
                raise ValueError(f"{path}: expected lines of [longitude, latitude] in degrees") from None
        elif kind not in ("Point", "MultiPoint", "Polygon", "MultiPolygon"):
            raise ValueError(f"{path}: expected a GeoJSON object with lines, got {kind!r}")


def _steps(line: np.ndarray, metres: float) -> Iterator[tuple[float, float]]:
    left = 0.0  # until the next point
    for (lat, lon), (to_lat, to_lon) in zip(line[:-1].tolist(), line[1:].tolist(), strict=True):
        east, north = offset_m(lat, lon, to_lat, to_lon)
        length = math.hypot(east, north)
        while left <= length and length > 0:
            share = left / length
            at_lat, at_lon = move_m(lat, lon, east * share, north * share)
            yield float(at_lat), float(at_lon)
            left += metres
        left -= length
