"""Frames of a film, or photos that know when they were taken, and a GPX track of the camera."""

from __future__ import annotations

import datetime
import math
import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple

from geoloc_fast.data.manifest import Manifest, ManifestError, Problem
from geoloc_fast.data.readers.photo_folder import find_images
from geoloc_fast.geo.sphere import great_circle_m, move_m, offset_m
from geoloc_fast.images.decode import ImageError, read_header
from geoloc_fast.images.exif import time_of
from geoloc_fast.images.storage import Storage

__all__ = ["Fix", "read_track", "read_video"]

MAX_GAP_S = 60.0  # between two fixes that a position is interpolated of
_MAX_BYTES = 1 << 28
_STANDING_M = 1.0  # who moves less between two fixes has no course
_UTC = datetime.timezone.utc


class Fix(NamedTuple):
    """A point of a track."""

    seconds: float  # since 1970, UTC
    lat: float
    lon: float


def read_video(
    path: str | os.PathLike[str],
    *,
    gpx: str | os.PathLike[str],
    offset: float = 0.0,
    fps: float | None = None,
    facing: float | None = None,
    panoramas: bool = False,
) -> Manifest:
    """One photo a frame, where the track was at its time. Frames before, after or in a gap of the track are left out.

    Args:
        gpx: the track.
        offset: seconds to add to the frames' times: what the camera's clock is behind the track's. A camera that
            wrote local time an hour ahead of UTC needs -3600.
        fps: frames per second. The first one is taken at the beginning of the track, plus `offset`. Without it, the
            frames are photos, and EXIF says when they were taken.
        facing: where the camera looked against the direction of travel: 0 forwards, 90 to the right. Headings come
            from the track's course then; without it they are unknown.
        panoramas: frames go all the way round, and become places; `facing` is that of their middle.
    """
    root = Path(path)
    track = read_track(gpx)
    if fps is not None and not 0.001 <= fps <= 1000:
        raise ValueError(f"fps: expected 0.001 to 1000 frames per second, got {fps}")
    names = sorted(find_images(root), key=_in_order)
    if not names:
        raise ManifestError([Problem(str(root), None, None, "there are no frames in it")])
    storage = Storage(root)
    places: list[dict[str, Any]] = []
    photos: list[dict[str, Any]] = []
    timeless, away = [], []
    for number, name in enumerate(names):
        seconds = track[0].seconds + number / fps if fps is not None else _taken(storage, name)
        if seconds is None:
            timeless.append(name)
            continue
        at = _at(track, seconds + offset)
        if at is None:
            away.append(name)
            continue
        lat, lon, course = at
        heading = None if facing is None or course is None else (course + facing) % 360.0
        date = datetime.datetime.fromtimestamp(seconds + offset, _UTC).date()
        if panoramas:
            column0 = None if heading is None else (heading - 180.0) % 360.0
            row = {"street": name, "street_date": date, "street_column0_deg": column0}
            places.append({"id": name, "lat": lat, "lon": lon, **row})
        else:
            photos.append({"id": name, "image": name, "lat": lat, "lon": lon, "heading_deg": heading, "date": date})
    for left_out, why in (
        (timeless, "do not say when they were taken (give --fps for the frames of a film)"),
        (away, f"lie outside the track, or in a gap of more than {MAX_GAP_S:g} s (is --offset right?)"),
    ):
        if left_out:
            shown = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
            warnings.warn(f"{len(left_out)} of {len(names)} frames {why} and are left out: {shown}", stacklevel=2)
    return Manifest.from_rows(root, places, photos)


def read_track(path: str | os.PathLike[str]) -> list[Fix]:
    """The timed points of a GPX file, in order of time."""
    path = Path(path)
    if path.stat().st_size > _MAX_BYTES:
        raise ManifestError([Problem(path.name, None, None, f"is larger than {_MAX_BYTES} bytes")])
    content = path.read_bytes()
    if b"<!" in content.replace(b"<!--", b"").replace(b"<![CDATA[", b""):  # entities could make it grow without end
        raise ManifestError([Problem(path.name, None, None, "declares a document type, which no GPX file needs")])
    fixes = []
    try:
        for element in ElementTree.fromstring(content).iter():
            if not element.tag.endswith("trkpt"):
                continue
            time = next((child.text for child in element if child.tag.endswith("time")), None)
            if time is None:
                continue
            when = datetime.datetime.fromisoformat(_iso(time))
            when = when if when.tzinfo is not None else when.replace(tzinfo=_UTC)
            lat, lon = float(element.attrib["lat"]), float(element.attrib["lon"])
            if not (abs(lat) <= 90 and abs(lon) <= 180):
                raise ValueError(f"{lat}, {lon} is no position")
            fixes.append(Fix(when.timestamp(), lat, lon))
    except (ElementTree.ParseError, KeyError, ValueError, OverflowError) as error:
        raise ManifestError([Problem(path.name, None, None, f"is no GPX file that can be read: {error}")]) from error
    if len(fixes) < 2:
        raise ManifestError([Problem(path.name, None, None, "has no track of at least two points with times")])
    return sorted(fixes)


def _iso(time: str) -> str:
    """As every version of Python reads it: six digits after the second, an offset in numbers."""
    whole = re.sub(r"\.(\d+)", lambda found: f".{found[1][:6]:0<6}", time.strip())
    return re.sub(r"[zZ]$", "+00:00", whole)


def _at(track: list[Fix], seconds: float) -> tuple[float, float, float | None] | None:
    """Position, and course if there is one, at a time."""
    if not math.isfinite(seconds) or not track[0].seconds <= seconds <= track[-1].seconds:
        return None
    n = min(bisect_right(track, seconds, key=lambda fix: fix.seconds), len(track) - 1)
    before, after = track[n - 1], track[n]
    gap = after.seconds - before.seconds
    if gap > MAX_GAP_S:
        return None
    share = (seconds - before.seconds) / gap if gap > 0 else 0.0
    east, north = offset_m(before.lat, before.lon, after.lat, after.lon)
    lat, lon = move_m(before.lat, before.lon, east * share, north * share)
    moved = float(great_circle_m(before.lat, before.lon, after.lat, after.lon))
    course = math.degrees(math.atan2(east, north)) % 360.0 if moved >= _STANDING_M else None
    return float(lat), float(lon), course


def _taken(storage: Storage, name: str) -> float | None:
    try:
        when = time_of(read_header(storage.read(name), name).exif)
    except ImageError:
        return None
    if when is None:
        return None
    return (when if when.tzinfo is not None else when.replace(tzinfo=_UTC)).timestamp()


def _in_order(name: str) -> list[Any]:
    """Frame 10 after frame 9, however they are written."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
