"""Write answers as table, JSON, JSON Lines, CSV, GeoJSON or KML, and a batch as a Parquet file that can be continued.

An answer that is too uncertain shows its candidates in every format, marked as candidates."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from geoloc_fast.data.readers.photo_folder import OTHER_SUFFIXES, SUFFIXES, find_images
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.locate.candidates import Candidate
from geoloc_fast.locate.locator import Answer, Locator, Provenance
from geoloc_fast.progress import Progress

__all__ = [
    "FORMATS",
    "SUFFIX_OF",
    "TABLE_HEAD",
    "as_dict",
    "as_features",
    "as_lines",
    "as_text",
    "fan",
    "find_photos",
    "inert",
    "locate_folder",
    "of_dict",
    "passed_over",
    "printable",
    "writable",
]

FORMATS = ("table", "json", "jsonl", "csv", "geojson", "kml")
# What a file of this name holds; nothing else is written into it.
SUFFIX_OF = {".json": "json", ".jsonl": "jsonl", ".csv": "csv", ".geojson": "geojson", ".kml": "kml"}
FAN_M = 40.0  # reach of a drawn view
TABLE_HEAD = f"{'photo':32} {'answer':10} {'lat':>11} {'lon':>12} {'heading':>8} {'sure':>6} {'within':>8}"
_MOVING = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".insv")
_CSV_HEAD = (
    "image", "status", "rank", "lat", "lon", "heading_deg", "probability", "radius_m", "score", "place", "key",
    "fov_deg", "fov_from", "exif_agrees", "problem", *Provenance._fields,
)  # fmt: skip
_VERSION = 1


def as_dict(answer: Answer) -> dict[str, Any]:
    """Plain values, printable as JSON. Positions only where the photo is located; candidates always."""
    best = answer.best
    return {
        "image": writable(answer.image),
        "status": answer.status,
        "lat": None if best is None else _degrees(best.lat),
        "lon": None if best is None else _degrees(best.lon),
        "heading_deg": None if best is None else _heading(best),
        "probability": answer.candidates[0].probability if answer.candidates else None,
        "radius_m": None if answer.radius_m is None else round(answer.radius_m, 1),
        "fov_deg": answer.fov_deg,
        "fov_from": answer.fov_from,
        "exif_agrees": answer.exif_agrees,
        "problem": None if answer.problem is None else writable(answer.problem),
        "candidates": [
            {**asdict(c), "lat": _degrees(c.lat), "lon": _degrees(c.lon), "heading_deg": _heading(c)}
            for c in answer.candidates
        ],
        "exact": answer.exact,
        "coverage": None
        if answer.coverage is None
        else {**answer.coverage._asdict(), "missing": [one._asdict() for one in answer.coverage.missing]},
        **(dict.fromkeys(Provenance._fields) if answer.provenance is None else answer.provenance._asdict()),
    }


def _degrees(value: float | None) -> float | None:
    return None if value is None else round(value, 7)


def of_dict(values: Mapping[str, Any]) -> Answer:
    """The answer that `as_dict` made these values of, as far as they say."""
    names = {field.name for field in fields(Candidate)}
    found = tuple(
        Candidate(**{name: value for name, value in candidate.items() if name in names})
        for candidate in values["candidates"]
    )
    same = ("image", "status", "radius_m", "problem", "fov_deg", "fov_from", "exif_agrees")
    return Answer(candidates=found, **{name: values[name] for name in same})


def _heading(candidate: Candidate) -> float | None:
    return None if candidate.heading_deg is None else round(candidate.heading_deg, 2) % 360  # 359.996 is north


def _shown(answer: Answer) -> tuple[Candidate, ...]:
    """What a map shows of it: the answer, or, where there is none, all candidates."""
    return answer.candidates[:1] if answer.status == "located" else answer.candidates


def as_features(answer: Answer) -> list[dict[str, Any]]:
    """GeoJSON features; longitude stands first there. Of kind "answer": one, without geometry unless it is located.
    Of kind "candidate": each spot of an answer that is not sure enough, with its rank."""
    properties = as_dict(answer)
    lat, lon = properties.pop("lat"), properties.pop("lon")
    geometry = None if lat is None else {"type": "Point", "coordinates": [lon, lat]}
    features = [{"type": "Feature", "geometry": geometry, "properties": {"kind": "answer", **properties}}]
    if answer.status in ("unknown", "unverified"):
        for rank, candidate in enumerate(properties["candidates"], start=1):
            about = {name: value for name, value in candidate.items() if name not in ("lat", "lon")}
            at = candidate["lon"], candidate["lat"]
            features.append(
                {
                    "type": "Feature",
                    "geometry": None if at[1] is None else {"type": "Point", "coordinates": list(at)},
                    "properties": {
                        "kind": "candidate", "image": properties["image"], "status": answer.status, "rank": rank,
                        **about,
                    },
                }
            )  # fmt: skip
    return features


def as_lines(answer: Answer) -> list[str]:
    """Rows below TABLE_HEAD: one, and of an answer that is not sure enough one for each candidate."""
    name = printable(answer.image)
    name = name if len(name) <= 32 else f"…{name[-31:]}"
    if answer.problem is not None:
        return [f"{name:32} {answer.status:10} {printable(answer.problem)}"]
    if answer.status == "located":
        within = "" if answer.radius_m is None else f"{answer.radius_m:6.0f} m"
        return [f"{name:32} {answer.status:10} {_spot(answer.candidates[0])} {within:>8}".rstrip()]
    rows = [f"{name:32} {answer.status}", *_gaps(answer)]
    return rows + [
        f"{'':32} {f'  maybe {rank}':10} {_spot(candidate)}".rstrip()
        for rank, candidate in enumerate(answer.candidates, start=1)
    ]


def _gaps(answer: Answer) -> list[str]:
    """What was not searched."""
    if answer.coverage is None or answer.coverage.complete:
        return []
    searched, there, missing = answer.coverage
    return [f"{'':32} of {searched} of {there} places; without {', '.join(one.name for one in missing)}"]


def _spot(candidate: Candidate) -> str:
    heading = "" if candidate.heading_deg is None else f"{candidate.heading_deg:.0f}°"
    sure = "" if candidate.probability is None else f"{percent(candidate.probability)}%"
    if candidate.lat is None or candidate.lon is None:
        where = printable(candidate.key) if candidate.key else f"place {candidate.place}"
        return f"{where:24.24} {heading:>8} {sure:>6}"
    return f"{candidate.lat:11.6f} {candidate.lon:12.6f} {heading:>8} {sure:>6}"


def as_text(answers: Sequence[Answer], form: str) -> str:
    """The whole of what one of `FORMATS` shows of these answers."""
    if form not in FORMATS:
        raise ValueError(f"form: expected one of {', '.join(FORMATS)}, got {form!r}")
    if form == "table":
        return "".join(f"{line}\n" for line in [TABLE_HEAD, *(line for a in answers for line in as_lines(a))])
    if form == "json":
        return f"{json.dumps([as_dict(answer) for answer in answers], indent=1)}\n"
    if form == "jsonl":
        return "".join(f"{json.dumps(as_dict(answer))}\n" for answer in answers)
    if form == "geojson":
        features = [feature for answer in answers for feature in as_features(answer)]
        return f"{json.dumps({'type': 'FeatureCollection', 'features': features}, indent=1)}\n"
    return _csv(answers) if form == "csv" else _kml(answers)


def _csv(answers: Iterable[Answer]) -> str:
    """One row a candidate, the answer with rank 1; a photo without any has one row too."""
    sink = io.StringIO()
    table = csv.DictWriter(sink, _CSV_HEAD, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for answer in answers:
        whole = as_dict(answer)
        common = {name: whole[name] for name in ("status", "fov_deg", "fov_from", "exif_agrees", *Provenance._fields)}
        common |= {name: inert(whole[name]) for name in ("image", "problem")}
        for rank, candidate in enumerate(whole["candidates"], start=1):
            radius = whole["radius_m"] if rank == 1 else None
            table.writerow({**common, "rank": rank, "radius_m": radius, **candidate})
        if not whole["candidates"]:
            table.writerow(common)
    return sink.getvalue()


def inert(text: str | None) -> str | None:
    """No formula to a spreadsheet, whatever a file is called."""
    text = None if text is None else printable(text)
    return f"'{text}" if text and text[0] in "=+-@" else text


def _kml(answers: Iterable[Answer]) -> str:
    """A folder for each photo: the answer, or the candidates of one that is not sure enough, each with its view."""
    folders = []
    for answer in answers:
        marks = []
        for rank, candidate in enumerate(_shown(answer), start=1):
            if candidate.lat is None or candidate.lon is None:
                continue
            sure = "" if candidate.probability is None else _xml(f", {percent(candidate.probability)}%")  # <1
            title = f"{_xml(os.path.basename(answer.image))}: {'' if answer.best else f'maybe {rank}, '}{answer.status}"
            shapes = f"<Point><coordinates>{candidate.lon:.7f},{candidate.lat:.7f}</coordinates></Point>"
            if candidate.heading_deg is not None:
                corners = fan(candidate.lat, candidate.lon, candidate.heading_deg, answer.fov_deg or 90.0)
                ring = " ".join(f"{lon:.7f},{lat:.7f}" for lat, lon in corners)
                shapes += (
                    "<Polygon><outerBoundaryIs><LinearRing><coordinates>"
                    f"{ring}</coordinates></LinearRing></outerBoundaryIs></Polygon>"
                )
            heading = "unknown" if candidate.heading_deg is None else f"{candidate.heading_deg:.0f} degrees"
            style = "answer" if answer.best else "candidate"
            marks.append(
                f"<Placemark><name>{title}{sure}</name><description>heading {heading}</description>"
                f"<styleUrl>#{style}</styleUrl><MultiGeometry>{shapes}</MultiGeometry></Placemark>"
            )
        about = f"<description>{_xml(answer.problem)}</description>" if answer.problem else ""
        folders.append(f"<Folder><name>{_xml(answer.image)}</name>{about}{''.join(marks)}</Folder>")
    styles = "".join(
        f'<Style id="{name}"><LineStyle><color>{colour}</color></LineStyle><PolyStyle><color>{fill}</color></PolyStyle>'
        "</Style>"
        for name, colour, fill in (("answer", "ff739e00", "66739e00"), ("candidate", "ff00a5ff", "4400a5ff"))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<kml xmlns="http://www.opengis.net/kml/2.2"><Document>'
        f"<name>Where photos may have been taken</name>{styles}{chr(10).join(folders)}</Document></kml>\n"
    )


def _xml(text: str) -> str:
    return escape(printable(text))


def fan(
    lat: float, lon: float, heading_deg: float, fov_deg: float, reach_m: float = FAN_M
) -> list[tuple[float, float]]:
    """(lat, lon) corners of a view from a spot, closed, counter-clockwise as GeoJSON and KML want it."""
    steps = max(2, math.ceil(fov_deg / 10))
    turns = [math.radians(heading_deg + fov_deg * (0.5 - n / steps)) for n in range(steps + 1)]
    rim = [move_m(lat, lon, reach_m * math.sin(turn), reach_m * math.cos(turn)) for turn in turns]
    return [(lat, lon), *((float(to_lat), float(to_lon)) for to_lat, to_lon in rim), (lat, lon)]


def percent(probability: float) -> str:
    """Whole percent, but never 0 or 100: nothing is certain."""
    rounded = round(100 * probability)
    return "<1" if rounded < 1 else ">99" if rounded > 99 else str(rounded)


def printable(text: str) -> str:
    """Without what changes how the rest is shown: a file name can hold escape sequences of terminals, line ends, marks
    that turn the direction of writing."""
    return "".join(c if c.isprintable() else "?" for c in text)


def writable(text: str) -> str:
    """As UTF-8 can hold it: of a file name that is not UTF-8 the odd bytes become `\\udc..`, and nothing is lost."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def find_photos(folder: Path) -> list[str]:
    """Names of all photos below a folder, relative to it, in order. Links are not followed."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder of photos")
    return find_images(folder, SUFFIXES)


def passed_over(folder: Path) -> list[str]:
    """Names of photos and films in a folder that cannot be read, so that they are reported."""
    return find_images(folder, OTHER_SUFFIXES + _MOVING)


def locate_folder(
    locator: Locator,
    folder: Path,
    out: Path,
    *,
    fov_deg: float | None = None,
    candidates: int = 5,
    batch: int = 16,
    progress: Progress | None = None,
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
    rows = {
        name: row for name in names if (row := done.get(writable(name))) is not None and row["stamp"] == stamp[name]
    }
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
                rows[name] = {**as_dict(answer), "image": writable(name), "stamp": stamp[name]}
                log.write(f"{json.dumps(rows[name])}\n")
                log.flush()
                if progress is not None:
                    progress(len(rows), len(names))
        write_atomically(out, _parquet([rows[name] for name in names], settings))
        partial.unlink()
    elif not out.exists():
        write_atomically(out, _parquet([rows[name] for name in names], settings))
        partial.unlink(missing_ok=True)
    counts = {"located": 0, "unknown": 0, "unverified": 0, "unreadable": 0}
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
            ("key", text),
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
            ("exact", pa.bool_()),
            *((name, pa.int64() if name == "index_commit" else text) for name in Provenance._fields),
            ("candidates", pa.list_(candidate)),
            ("stamp", text),
        ]
    )
    return geoparquet_bytes(pa.Table.from_pylist(rows, schema), {"geoloc_fast": json.dumps(settings)})
