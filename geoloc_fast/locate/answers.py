"""Answers on paper: table, JSON, JSON Lines, GeoJSON, and the Parquet file of a batch that can be gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from geoloc_fast.files import write_atomically
from geoloc_fast.locate.locator import Answer, Candidate, Locator

__all__ = [
    "FORMATS",
    "TABLE_HEAD",
    "as_dict",
    "as_feature",
    "as_line",
    "find_photos",
    "geojson",
    "locate_folder",
    "printable",
]

FORMATS = ("table", "json", "jsonl", "geojson")
TABLE_HEAD = f"{'photo':32} {'answer':10} {'lat':>11} {'lon':>12} {'heading':>8} {'sure':>6} {'within':>8}"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
_VERSION = 1


def as_dict(answer: Answer) -> dict[str, Any]:
    """Plain values, printable as JSON. Positions only where the photo is located; candidates always."""
    best = answer.best
    return {
        "image": answer.image,
        "status": answer.status,
        "lat": None if best is None else round(best.lat, 7),
        "lon": None if best is None else round(best.lon, 7),
        "heading_deg": None if best is None else _heading(best),
        "probability": answer.candidates[0].probability if answer.candidates else None,
        "radius_m": None if answer.radius_m is None else round(answer.radius_m, 1),
        "fov_deg": answer.fov_deg,
        "fov_from": answer.fov_from,
        "exif_agrees": answer.exif_agrees,
        "problem": answer.problem,
        "candidates": [
            {**asdict(c), "lat": round(c.lat, 7), "lon": round(c.lon, 7), "heading_deg": _heading(c)}
            for c in answer.candidates
        ],
    }


def _heading(candidate: Candidate) -> float:
    return round(candidate.heading_deg, 2) % 360  # 359.996 is north


def as_feature(answer: Answer) -> dict[str, Any]:
    """A GeoJSON feature; longitude stands first there. Without an answer it has no geometry."""
    properties = as_dict(answer)
    lat, lon = properties.pop("lat"), properties.pop("lon")
    geometry = None if lat is None else {"type": "Point", "coordinates": [lon, lat]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def geojson(answers: Iterable[Answer]) -> str:
    return json.dumps({"type": "FeatureCollection", "features": [as_feature(answer) for answer in answers]}, indent=1)


def as_line(answer: Answer) -> str:
    """One row below TABLE_HEAD."""
    name = printable(answer.image)
    name = name if len(name) <= 32 else f"…{name[-31:]}"
    if answer.problem is not None:
        return f"{name:32} {answer.status:10} {printable(answer.problem)}"
    first = answer.candidates[0]
    sure = "" if first.probability is None else f"{100 * first.probability:5.0f}%"
    if answer.best is None:
        return f"{name:32} {answer.status:10} {'':11} {'':12} {'':8} {sure:>6}"
    within = "" if answer.radius_m is None else f"{answer.radius_m:6.0f} m"
    where = f"{first.lat:11.6f} {first.lon:12.6f} {first.heading_deg:7.0f}°"
    return f"{name:32} {answer.status:10} {where} {sure:>6} {within:>8}"


def printable(text: str) -> str:
    """Without what changes how the rest is shown: a file name can hold escape sequences of terminals, line ends, marks
    that turn the direction of writing."""
    return "".join(c if c.isprintable() else "?" for c in text)


def find_photos(folder: Path) -> list[str]:
    """Names of all image files below a folder, relative to it, in order. Links are not followed."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder of photos")
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        found += [
            os.path.relpath(os.path.join(parent, name), folder) for name in files if name.lower().endswith(_SUFFIXES)
        ]
    return sorted(found)


def locate_folder(
    locator: Locator,
    folder: Path,
    out: Path,
    *,
    fov_deg: float | None = None,
    candidates: int = 5,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Locates all photos below a folder and writes GeoParquet; returns how many there are of each status.

    What is done is kept in OUT.partial until the file is complete, so that an interrupted run goes on, and a photo that
    is in OUT already is not done again unless it has changed.

    Args:
        progress: called as progress(done, all).
    """
    names = find_photos(folder)
    partial = out.with_name(f"{out.name}.partial")
    settings = _settings(locator, fov_deg, candidates)
    done = _read_rows(out, settings) | _read_partial(partial, settings)
    stamp = {name: _stamp(folder / name) for name in names}
    rows = {name: done[name] for name in names if name in done and done[name]["stamp"] == stamp[name]}
    todo = [name for name in names if name not in rows]
    if progress is not None:
        progress(len(rows), len(names))
    if todo or len(done) != len(rows):
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"settings": settings})] + [json.dumps(row) for row in rows.values()]
        write_atomically(partial, "".join(f"{line}\n" for line in lines))
        with open(partial, "a", encoding="utf-8") as log:
            answers = locator.locate(
                (folder / name for name in todo), fov_deg=fov_deg, candidates=candidates, batch=batch
            )
            for name, answer in zip(todo, answers, strict=True):
                rows[name] = {**as_dict(answer), "image": name, "stamp": stamp[name]}
                log.write(f"{json.dumps(rows[name])}\n")
                log.flush()
                if progress is not None:
                    progress(len(rows), len(names))
        write_atomically(out, _parquet([rows[name] for name in names], settings))
        partial.unlink()
    elif not out.exists():
        write_atomically(out, _parquet([rows[name] for name in names], settings))
        partial.unlink(missing_ok=True)
    counts = {"located": 0, "unknown": 0, "unreadable": 0}
    for row in rows.values():
        counts[row["status"]] += 1
    return counts


def _settings(locator: Locator, fov_deg: float | None, candidates: int) -> dict[str, Any]:
    """All that an answer depends on, beside the photo."""
    confidence = locator.confidence
    values = {
        "version": _VERSION,
        "model": locator.model.fingerprint,
        "index": str(locator.index.path.resolve()),
        "commit": locator.index.commit,
        "within": repr(locator.within),
        "fov_deg": fov_deg,
        "candidates": candidates,
        "least_probability": locator.least_probability,
        "threshold": None if confidence is None else confidence.threshold,
    }
    return dict(json.loads(json.dumps(values)))


def _stamp(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _check(path: Path, settings: Any, ours: dict[str, Any]) -> None:
    if settings != ours:
        theirs = settings if isinstance(settings, dict) else {}
        changed = ", ".join(name for name in ours if theirs.get(name) != ours[name])
        raise ValueError(f"{path}: holds answers of another {changed}; remove it or choose another file")


def _read_partial(path: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    values = list(_parsed(lines))
    if not values or "settings" not in values[0]:
        raise ValueError(f"{path}: is not the beginning of a batch; remove it or choose another file")
    _check(path, values[0]["settings"], settings)
    return {row["image"]: row for row in values[1:]}


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    """What can be read: the last line of a run that was killed may be cut short."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return


def _read_rows(path: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return {}
    try:
        table = pq.read_table(path)
        theirs = json.loads((table.schema.metadata or {}).get(b"geoloc_fast", b"null"))
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: is no file of answers; remove it or choose another file") from error
    _check(path, theirs, settings)
    return {row["image"]: row for row in table.drop_columns(["geometry"]).to_pylist()}


def _parquet(rows: list[dict[str, Any]], settings: dict[str, Any]) -> bytes:
    import pyarrow as pa

    from geoloc_fast.geo.geoparquet import geoparquet_bytes

    number, text = pa.float64(), pa.string()
    candidate = pa.struct(
        [
            *((name, number) for name in ("lat", "lon", "heading_deg", "probability", "score")),
            *((name, pa.int64()) for name in ("place", "places")),
            ("weight", number),
        ]
    )
    schema = pa.schema(
        [
            ("image", text),
            ("status", text),
            *((name, number) for name in ("lat", "lon", "heading_deg", "probability", "radius_m", "fov_deg")),
            ("fov_from", text),
            ("exif_agrees", pa.bool_()),
            ("problem", text),
            ("candidates", pa.list_(candidate)),
            ("stamp", text),
        ]
    )
    return geoparquet_bytes(pa.Table.from_pylist(rows, schema), {"geoloc_fast": json.dumps(settings)})
