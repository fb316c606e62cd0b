"""Cases: what a person keeps of photos, answers and decisions, so that another can follow and check it.

    CASES/3f1c09ab77de/
      case.sqlite             names, settings, answers, decisions, log
      photos/<sha256>.jpg     the photos, as they came
      export/                 written when it is sealed: answers.geojson, .kml, .csv, report.html
      SHA256SUMS              the seal: `sha256sum -c SHA256SUMS` checks every file

A sealed case cannot be changed. Folders come from strangers too: names of files are never taken from the database, and
what it holds is data.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from geoloc_fast.errors import CaseError, NoSuchCaseError
from geoloc_fast.evaluation.report import PhotoPictures, Pictures, write_located
from geoloc_fast.files import write_atomically
from geoloc_fast.images.decode import read_header
from geoloc_fast.locate.answers import as_features, as_text, fan, inert, of_dict
from geoloc_fast.locate.locator import Answer

__all__ = ["Case", "Cases"]

VERDICTS = ("accept", "reject")
EXPORTS = ("geojson", "kml", "csv", "html")
_ID = re.compile(r"[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif"}
_VERSION = 1
_SECONDS = 5.0  # of work on the database
_SCHEMA = """
CREATE TABLE about (name TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE photo (sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, suffix TEXT NOT NULL, added TEXT NOT NULL);
CREATE TABLE answer (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, at TEXT NOT NULL, source TEXT NOT NULL,
  settings TEXT NOT NULL, answer TEXT NOT NULL);
CREATE TABLE decision (sha256 TEXT NOT NULL, rank INTEGER NOT NULL, verdict TEXT, note TEXT NOT NULL, at TEXT NOT NULL,
  PRIMARY KEY (sha256, rank));
CREATE TABLE log (id INTEGER PRIMARY KEY, at TEXT NOT NULL, what TEXT NOT NULL);
"""
NOTE_LETTERS = 10_000
_ALTERED: dict[str, Any] = {
    "status": "unreadable", "problem": "is none that a service wrote; the case was altered", "candidates": [],
    **dict.fromkeys(("radius_m", "fov_deg", "fov_from", "exif_agrees")),
}  # fmt: skip


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


class Cases:
    """All cases below a folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def list(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.folder.iterdir()):
            if _ID.fullmatch(path.name) and (path / "case.sqlite").is_file():
                try:
                    found.append(self.open(path.name).summary())
                except CaseError as error:
                    found.append({"id": path.name, "problem": str(error)})
        return found

    def create(self, name: str) -> Case:
        if not 1 <= len(name) <= 200:
            raise CaseError("name: expected 1 to 200 characters")
        case_id = uuid.uuid4().hex[:12]
        temporary = self.folder / f".{case_id}"
        (temporary / "photos").mkdir(parents=True)
        base = sqlite3.connect(temporary / "case.sqlite")
        try:
            base.executescript(_SCHEMA)
            base.execute(f"PRAGMA user_version = {_VERSION}")
            base.executemany("INSERT INTO about VALUES (?, ?)", [("name", name), ("created", _now())])
            base.execute("INSERT INTO log (at, what) VALUES (?, ?)", (_now(), json.dumps({"did": "create"})))
            base.commit()
        finally:
            base.close()
        os.rename(temporary, self.folder / case_id)
        return self.open(case_id)

    def open(self, case_id: str) -> Case:
        path = self.folder / case_id
        if not _ID.fullmatch(case_id) or path.is_symlink() or not (path / "case.sqlite").is_file():
            raise NoSuchCaseError(f"there is no case {case_id[:12]!r}")
        return Case(path)

    def delete(self, case_id: str) -> None:
        """For good, sealed or not."""
        shutil.rmtree(self.open(case_id).path)


class Case:
    """One case. Safe to use from several threads: SQLite orders what they write."""

    _writing = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._base() as base:
            (version,) = base.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            raise CaseError(f"{path.name}: expected a case of version {_VERSION}, got {version}")

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def sealed(self) -> bool:
        return (self.path / "SHA256SUMS").exists()

    @contextmanager
    def _base(self) -> Iterator[sqlite3.Connection]:
        try:
            base = sqlite3.connect(f"{(self.path / 'case.sqlite').resolve().as_uri()}?mode=rw", uri=True, timeout=10)
        except sqlite3.Error as error:
            raise CaseError(f"{self.path.name}: cannot be opened ({error})") from error
        try:
            base.execute("PRAGMA trusted_schema = OFF")
            base.execute("PRAGMA synchronous = FULL")
            # A table of a stranger's may be a view of endless rows.
            until = time.monotonic() + _SECONDS
            base.set_progress_handler(lambda: time.monotonic() > until, 10_000)
            with base:
                yield base
        except (sqlite3.Error, OverflowError) as error:
            raise CaseError(f"{self.path.name}: its database cannot be used ({error})") from error
        finally:
            base.close()

    @contextmanager
    def _change(self, **what: Any) -> Iterator[sqlite3.Connection]:
        if self.sealed:
            raise CaseError("the case is sealed; nothing in it can be changed")
        with self._writing, self._base() as base:
            yield base
            base.execute("INSERT INTO log (at, what) VALUES (?, ?)", (_now(), json.dumps(what)))

    # --- what it holds -----------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        with self._base() as base:
            about = dict(base.execute("SELECT name, value FROM about LIMIT 9").fetchall())
            (photos,) = base.execute("SELECT count(*) FROM photo").fetchone()
            (decided,) = base.execute("SELECT count(*) FROM decision WHERE verdict = 'accept'").fetchone()
        named = {name: str(about.get(name, "")) for name in ("name", "created")}
        return {"id": self.id, **named, "photos": photos, "accepted": decided, "sealed": self.sealed}

    def content(self) -> dict[str, Any]:
        """Everything, as the page shows it; the same until somebody changes the case."""
        photos: dict[str, dict[str, Any]] = {}
        with self._base() as base:
            for sha256, name, added in base.execute("SELECT sha256, name, added FROM photo ORDER BY added, sha256"):
                photos[str(sha256)] = {
                    "sha256": str(sha256), "name": str(name), "added": str(added), "answer": None, "decisions": [],
                }  # fmt: skip
            for sha256, at, source, settings, answer in base.execute(
                "SELECT sha256, at, source, settings, answer FROM answer ORDER BY id"
            ):
                if sha256 in photos:  # the last one counts; all of them stay in the database
                    photos[sha256] |= {
                        "located": str(at), "source": _object(source), "settings": _object(settings),
                        "answer": _object(answer) if _is_answer(_object(answer)) else dict(_ALTERED),
                    }  # fmt: skip
            for sha256, rank, verdict, note, at in base.execute("SELECT * FROM decision ORDER BY sha256, rank"):
                if sha256 in photos:
                    row = {"rank": rank, "verdict": verdict, "note": str(note), "at": str(at)}
                    photos[sha256]["decisions"].append(row)
            log = [
                {"at": str(at), **_object(what)} for at, what in base.execute("SELECT at, what FROM log ORDER BY id")
            ]
        return {**self.summary(), "photos": list(photos.values()), "log": log}

    def photo(self, sha256: str) -> bytes:
        """The file, after checking that it is the one that was brought."""
        if not _SHA256.fullmatch(sha256):
            raise NoSuchCaseError("there is no such photo in the case")
        for suffix in _SUFFIX.values():
            path = self.path / "photos" / f"{sha256}.{suffix}"
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() != sha256:
                    raise CaseError(f"photo {sha256[:12]}: is not the file that was brought; the case was altered")
                return content
        raise NoSuchCaseError("there is no such photo in the case")

    # --- changes -----------------------------------------------------------------------------------------

    def add_photo(self, name: str, content: bytes) -> str:
        """Keeps a photo; returns its sha256. The same photo twice is kept once."""
        suffix = _SUFFIX[read_header(content, "photo").format]
        sha256 = hashlib.sha256(content).hexdigest()
        if self.sealed:
            raise CaseError("the case is sealed; nothing in it can be changed")
        (self.path / "photos").mkdir(exist_ok=True)
        write_atomically(self.path / "photos" / f"{sha256}.{suffix}", content)
        with self._change(did="add photo", sha256=sha256) as base:
            row = (sha256, os.path.basename(name)[:200], suffix, _now())
            base.execute("INSERT OR IGNORE INTO photo VALUES (?, ?, ?, ?)", row)
        return sha256

    def add_answer(
        self, sha256: str, answer: Mapping[str, Any], *, source: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        """What a search said: `as_dict` of the answer, which index and model, and what was asked."""
        with self._change(did="locate", sha256=sha256, **source) as base:
            row = (sha256, _now(), json.dumps(source), json.dumps(settings), json.dumps(answer))
            base.execute("INSERT INTO answer (sha256, at, source, settings, answer) VALUES (?, ?, ?, ?, ?)", row)
            base.execute("DELETE FROM decision WHERE sha256 = ? AND rank > 0", (sha256,))  # of other candidates

    def decide(self, sha256: str, rank: int, verdict: str | None, note: str) -> None:
        """On a candidate by its rank, from 1; rank 0 is the photo as a whole, for notes."""
        if verdict is not None and verdict not in VERDICTS:
            raise ValueError(f"verdict: expected accept, reject or null, got {verdict!r}")
        if not 0 <= rank <= 64 or len(note) > NOTE_LETTERS:
            raise ValueError(f"rank, note: expected 0 to 64, and at most {NOTE_LETTERS} characters")
        with self._change(did="decide", sha256=sha256, rank=rank, verdict=verdict) as base:
            if base.execute("SELECT 1 FROM photo WHERE sha256 = ?", (sha256,)).fetchone() is None:
                raise NoSuchCaseError("there is no such photo in the case")
            base.execute(
                "INSERT OR REPLACE INTO decision VALUES (?, ?, ?, ?, ?)", (sha256, rank, verdict, note, _now())
            )

    # --- export ------------------------------------------------------------------------------------------

    def export(self, form: str, pictures: Pictures | None = None) -> bytes:
        """The case as one file: GeoJSON with views as polygons, KML, CSV, or the page of answers."""
        if form not in EXPORTS:
            raise ValueError(f"format: expected one of {', '.join(EXPORTS)}, got {form!r}")
        content = self.content()
        photos = [photo for photo in content["photos"] if photo["answer"]]
        for photo in photos:
            if photo["answer"] == _ALTERED:
                raise CaseError(f"{self.id}: the answer to photo {photo['sha256'][:12]} {_ALTERED['problem']}")
        answers = [of_dict({**photo["answer"], "image": photo["name"]}) for photo in photos]
        if form == "geojson":
            features = []
            for photo, answer in zip(photos, answers, strict=True):
                verdicts = {row["rank"]: row for row in photo["decisions"]}
                for feature in as_features(answer):
                    rank = feature["properties"].get("rank", 1)
                    decided = verdicts.get(rank, {})
                    feature["properties"] |= {
                        "sha256": photo["sha256"], "verdict": decided.get("verdict"), "note": decided.get("note", ""),
                        **{f"searched_{name}": value for name, value in photo["source"].items()},
                    }  # fmt: skip
                    features.append(feature)
                for rank, candidate in enumerate(answer.candidates, start=1):
                    if candidate.heading_deg is None or candidate.lat is None or candidate.lon is None:
                        continue
                    corners = fan(candidate.lat, candidate.lon, candidate.heading_deg, answer.fov_deg or 90.0)
                    ring = [[round(lon, 7), round(lat, 7)] for lat, lon in corners]
                    about = {"kind": "view", "image": photo["name"], "rank": rank}
                    shape = {"type": "Polygon", "coordinates": [ring]}
                    features.append({"type": "Feature", "geometry": shape, "properties": about})
            return json.dumps({"type": "FeatureCollection", "features": features}, indent=1).encode()
        if form == "kml":  # a folder a photo: what a person decided describes it
            said = [replace(answer, problem=_said(p) or None) for p, answer in zip(photos, answers, strict=True)]
            return as_text(said, form).encode("utf-8", "replace")
        if form == "csv":
            return _table(photos, answers).encode("utf-8", "replace")
        about = {"case": content["name"], "begun": content["created"]}
        for photo in photos:
            about |= {name: str(value) for name, value in photo["source"].items()}
        notes = [_said(photo) for photo in photos]
        images = PhotoPictures([self.photo(photo["sha256"]) for photo in photos], pictures)
        target = self.path / f".report-{uuid.uuid4().hex}.html"
        try:
            write_located(target, answers, title=content["name"], about=about, pictures=images, notes=notes)
            return target.read_bytes()
        finally:
            target.unlink(missing_ok=True)

    def seal(self, pictures: Pictures | None = None) -> str:
        """Writes the exports and the checksums of every file; returns the sha256 of those. Nothing changes after."""
        with self._change(did="seal"):
            pass
        folder = self.path / "export"
        folder.mkdir(exist_ok=True)
        for form in EXPORTS:
            name = "report.html" if form == "html" else f"answers.{form}"
            write_atomically(folder / name, self.export(form, pictures))
        sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._digests().items()))
        write_atomically(self.path / "SHA256SUMS", sums)
        return hashlib.sha256(sums.encode()).hexdigest()

    def problems(self) -> list[str]:
        """What of a sealed case is not as it was sealed."""
        try:
            lines = (self.path / "SHA256SUMS").read_text().splitlines()
        except FileNotFoundError:
            raise CaseError("the case is not sealed") from None
        sealed = {line[66:]: line[:64] for line in lines}
        there = self._digests()
        found = [f"{name}: is missing" for name in sealed.keys() - there.keys()]
        found += [f"{name}: was added" for name in there.keys() - sealed.keys()]
        found += [f"{name}: was altered" for name in sealed.keys() & there.keys() if sealed[name] != there[name]]
        return sorted(found)

    def _digests(self) -> dict[str, str]:
        found = {}
        for folder, names, files in os.walk(self.path):
            names.sort()
            for file in files:
                path = Path(folder) / file
                name = path.relative_to(self.path).as_posix()
                if name != "SHA256SUMS" and not name.startswith(("case.sqlite-", ".")) and not path.is_symlink():
                    with path.open("rb") as opened:
                        found[name] = _sha256(opened)
        return found


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def _object(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_answer(found: Mapping[str, Any]) -> bool:
    """Whether it is as `as_dict` writes answers. What is not comes from elsewhere, and would be markup to one reader
    and no number to another."""

    def numbers(values: Any, names: Sequence[str], *, known: bool = False) -> bool:
        given = [values.get(name) for name in names] if isinstance(values, dict) else [values]
        kinds = (int, float) if known else (int, float, type(None))
        return isinstance(values, dict) and all(
            type(value) in kinds and (value is None or abs(value) < 1e12) for value in given
        )

    def texts(values: Mapping[str, Any], names: Sequence[str]) -> bool:
        return all(isinstance(values.get(name), (str, type(None))) for name in names)

    candidates, spots = found.get("candidates"), found.get("spots", [])
    return (
        found.get("status") in ("located", "unknown", "unreadable")
        and numbers(found, ("lat", "lon", "heading_deg", "probability", "radius_m", "fov_deg"))
        and numbers(found, ("not_covered", "elsewhere"), known=bool(spots))
        and texts(found, ("problem", "fov_from"))
        and {"radius_m", "problem", "fov_deg", "fov_from", "exif_agrees"} <= found.keys()
        and (found["exif_agrees"] is None or isinstance(found["exif_agrees"], bool))
        and isinstance(candidates, list)
        and isinstance(spots, list)
        and all(
            numbers(one, ("lat", "lon", "heading_deg", "probability"))
            and numbers(one, ("score", "weight"), known=True)
            and abs(one["lat"] or 0) <= 90
            and abs(one["lon"] or 0) <= 180
            and type(one.get("place")) is type(one.get("places")) is int
            and texts(one, ("key", "index"))
            for one in candidates
        )
        and all(numbers(one, ("lat", "lon", "probability", "covered"), known=True) for one in spots)
    )


def _table(photos: list[dict[str, Any]], answers: list[Answer]) -> str:
    """The rows of `as_text`, and beside each what a person decided of that candidate."""
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    for photo, answer in zip(photos, answers, strict=True):
        verdicts = {row["rank"]: row for row in photo["decisions"]}
        head, *rows = csv.reader(io.StringIO(as_text([answer], "csv")))
        if not sink.tell():
            table.writerow([*head, "sha256", "verdict", "note"])
        for row in rows:
            decided = verdicts.get(int(row[head.index("rank")] or 0), {})
            table.writerow([*row, photo["sha256"], decided.get("verdict"), inert(decided.get("note"))])
    return sink.getvalue()


def _said(photo: dict[str, Any]) -> str:
    """What a person decided, in words."""
    words = {"accept": "accepted", "reject": "rejected", None: "note"}
    lines = []
    for row in photo["decisions"]:
        what = words.get(row["verdict"], "note")
        whom = f"candidate {row['rank']} {what}" if row["rank"] else "note"
        lines.append(f"{whom}: {row['note']}" if row["note"] else whom)
    return "\n".join(lines)
