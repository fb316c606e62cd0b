"""Folders of street photos as Mapillary and KartaView give them out: images, and what their interfaces said of them.

The metadata is JSON as it came: one object, a list, `{"data": [...]}`, GeoJSON, or a line each (`.jsonl`), in any files
of the folder. An image belongs to the object whose id, or whose name, is its file name without the suffix.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from geoloc_fast.data.manifest import Manifest, ManifestError, Problem
from geoloc_fast.data.readers.photo_folder import find_images

__all__ = ["read_kartaview", "read_mapillary"]

_MAX_METADATA_BYTES = 1 << 28
_JSON = (".json", ".geojson", ".jsonl")
_KEPT = ("sequence", "sequence_id", "sequenceId")


def read_mapillary(path: str | os.PathLike[str]) -> Manifest:
    """Panoramas (`is_pano`) become places, other images photos.

    Position and compass are the computed ones where there are any, else those of the device. The middle of a panorama
    looks along the compass.
    """
    return _read(Path(path), _of_mapillary)


def read_kartaview(path: str | os.PathLike[str]) -> Manifest:
    """Images of projection SPHERE become places, other images photos, looking where their heading says."""
    return _read(Path(path), _of_kartaview)


def _of_mapillary(found: dict[str, Any]) -> dict[str, Any]:
    point = found.get("computed_geometry") or found.get("geometry") or {}
    lon, lat, *_ = point["coordinates"]
    compass = found.get("computed_compass_angle", found.get("compass_angle"))
    taken = found.get("captured_at")
    return {
        "lat": float(lat),
        "lon": float(lon),
        "heading_deg": None if compass is None else float(compass),
        "date": None if taken is None else _day(float(taken) / 1000),
        "panorama": bool(found.get("is_pano")) or found.get("camera_type") in ("spherical", "equirectangular"),
    }


def _of_kartaview(found: dict[str, Any]) -> dict[str, Any]:
    heading = found.get("heading")
    taken = found.get("shotDate", found.get("shot_date"))
    return {
        "lat": float(found["lat"]),
        "lon": float(found["lng"]),
        "heading_deg": None if heading in (None, "") else float(heading),
        "date": None if not taken else datetime.date.fromisoformat(str(taken)[:10]),
        "panorama": str(found.get("projection", "")).upper() in ("SPHERE", "SPHERICAL", "EQUIRECTANGULAR"),
    }


def _day(seconds: float) -> datetime.date:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).date()


def _read(root: Path, of: Callable[[dict[str, Any]], dict[str, Any]]) -> Manifest:
    about: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name in find_images(root, _JSON):
        for found in _objects(root / name, name, problems):
            for key in ("id", "name"):
                if isinstance(found.get(key), (str, int)):
                    about.setdefault(os.path.splitext(os.path.basename(str(found[key])))[0], found)
    if problems:
        raise ManifestError(problems)
    places: list[dict[str, Any]] = []
    photos: list[dict[str, Any]] = []
    nameless: list[str] = []
    broken: list[str] = []
    for image in find_images(root):
        said = about.get(os.path.splitext(os.path.basename(image))[0])
        if said is None:
            nameless.append(image)
            continue
        try:
            row = of(said)
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            broken.append(image)
            continue
        heading = row["heading_deg"]
        heading = heading % 360.0 if heading is not None and math.isfinite(heading) else None
        sequence = next((str(said[key]) for key in _KEPT if said.get(key) is not None), None)
        common = {"id": image, "lat": row["lat"], "lon": row["lon"], "sequence": sequence}
        if row["panorama"]:
            column0 = None if heading is None else (heading - 180.0) % 360.0
            places.append({**common, "street": image, "street_date": row["date"], "street_column0_deg": column0})
        else:
            photos.append({**common, "image": image, "heading_deg": heading, "date": row["date"]})
    for names, why in ((nameless, "no metadata"), (broken, "metadata without a position that can be read")):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            warnings.warn(f"{len(names)} images have {why} and are left out: {shown}", stacklevel=3)
    if not places and not photos:
        raise ManifestError([Problem(str(root), None, None, "expected images, and JSON with id and position of each")])
    return Manifest.from_rows(root, places, photos)


def _objects(path: Path, name: str, problems: list[Problem]) -> Iterator[dict[str, Any]]:
    """Every object that may be about an image, in any of the forms the interfaces give."""
    if path.stat().st_size > _MAX_METADATA_BYTES:
        problems.append(Problem(name, None, None, f"is larger than {_MAX_METADATA_BYTES} bytes"))
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()] if name.lower().endswith(".jsonl") else [text]
        waiting = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        problems.append(Problem(name, None, None, f"is no JSON that can be read: {error}"))
        return
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if part.get("type") == "Feature" and isinstance(part.get("properties"), dict):
                yield {"geometry": part.get("geometry"), "id": part.get("id"), **part["properties"]}
            inner = [part[key] for key in ("data", "features", "result", "currentPageItems", "photos") if key in part]
            waiting += [value for value in inner if isinstance(value, (list, dict))]
            if not inner:
                yield part
