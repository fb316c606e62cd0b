"""`index.sqlite`: which segments make up the index, what was removed from them, and every commit so far.

One SQLite transaction is one commit. Connections are short: a reader takes the whole state in one transaction and
holds no lock afterwards, so it never stands in a writer's way. The state carries a digest of itself, which is checked
whenever it is read: SQLite notices a page that makes no sense, not a number that has changed.

Order of a commit, each step durable before the next begins:

    1. the new segment's files are written under names nobody knows yet, and each is synced
    2. the folder is synced
    3. the transaction: SQLite syncs its journal, the folder, the database, removes the journal, syncs the folder
       (synchronous=EXTRA). Here the commit takes place
    4. checksum file, and removal of files that no state refers to any more: what is lost here is made up for by
       the next writer
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geoloc_fast.errors import DamagedIndexError, IndexVersionError, PlaceIndexError

__all__ = [
    "LOG_NAME",
    "IndexState",
    "SegmentEntry",
    "commit",
    "create",
    "integrity_problems",
    "read",
    "read_commits",
    "unfinished",
]

LOG_NAME = "index.sqlite"
FORMAT_VERSION = 1
_APPLICATION_ID = 0x47454F46  # "GEOF"
_BUSY_SECONDS = 30.0  # a commit holds the lock for milliseconds; a disk can stall
_NOT_THE_CONTENT = ("disk is full", "disk I/O error", "locked", "readonly", "unable to open")
_SCHEMA = (
    "CREATE TABLE about (model TEXT NOT NULL, channels INTEGER NOT NULL, height INTEGER NOT NULL, "
    "columns INTEGER NOT NULL, dtype TEXT NOT NULL, column0_deg REAL NOT NULL)",
    "CREATE TABLE segment (number INTEGER PRIMARY KEY, strips INTEGER NOT NULL, first_id INTEGER NOT NULL, "
    "last_id INTEGER NOT NULL, strips_bytes INTEGER NOT NULL, places_bytes INTEGER NOT NULL, "
    "strips_sha256 TEXT NOT NULL, places_sha256 TEXT NOT NULL, removed BLOB)",
    "CREATE TABLE commits (number INTEGER PRIMARY KEY, at TEXT NOT NULL, verb TEXT NOT NULL, "
    "changed INTEGER NOT NULL, next_id INTEGER NOT NULL, next_segment INTEGER NOT NULL, digest TEXT NOT NULL)",
)


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as the log has it. `removed` is a bitmap of rows (NumPy's packbits), None while there are none."""

    number: int
    strips: int
    first_id: int
    last_id: int
    strips_bytes: int
    places_bytes: int
    strips_sha256: str
    places_sha256: str
    removed: bytes | None = None


@dataclass(frozen=True)
class IndexState:
    """All that a snapshot is. Segments are in the order of their ids, which do not interleave."""

    model: str
    channels: int
    height: int
    columns: int
    dtype: str
    column0_deg: float
    commit: int = 0
    next_id: int = 0
    next_segment: int = 1
    segments: tuple[SegmentEntry, ...] = ()

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(_plain(self), sort_keys=True).encode()).hexdigest()


def _plain(state: IndexState) -> dict[str, Any]:
    segments = [{**vars(entry), "removed": (entry.removed or b"").hex()} for entry in state.segments]
    return {**vars(state), "segments": segments}


def create(folder: Path, state: IndexState) -> None:
    """Makes the log of a new index in a folder that has none."""
    with _connected(folder, "rwc") as connection:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        about = (state.model, state.channels, state.height, state.columns, state.dtype, state.column0_deg)
        connection.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?, ?)", about)
        _insert_commit(connection, state, "create", 0)
        connection.execute("COMMIT")


def commit(folder: Path, before: IndexState, after: IndexState, verb: str, changed: int) -> IndexState:
    """Puts `after` in the place of `before`, all of it or nothing; returns it with its number."""
    after = replace(after, commit=before.commit + 1)
    with _connected(folder, "rw") as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            (last,) = connection.execute("SELECT max(number) FROM commits").fetchone()
            if last != before.commit:
                raise PlaceIndexError(
                    f"{folder}: expected commit {before.commit} to be the last, got {last}: "
                    "something else wrote to the index; open it anew"
                )
            old, new = ({entry.number: entry for entry in state.segments} for state in (before, after))
            gone = [(number,) for number in old if number not in new]
            connection.executemany("DELETE FROM segment WHERE number = ?", gone)
            rows = [tuple(vars(entry).values()) for entry in after.segments if old.get(entry.number) != entry]
            connection.executemany("INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            _insert_commit(connection, after, verb, changed)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return after


def read(folder: Path) -> IndexState:
    """The state of the last commit. Errors are those of geoloc_fast.errors."""
    with _connected(folder, "rw") as connection:
        connection.execute("BEGIN")
        _check_schema(folder, connection)
        about = connection.execute("SELECT * FROM about").fetchall()
        segments = connection.execute("SELECT * FROM segment ORDER BY first_id").fetchall()
        last = connection.execute(
            "SELECT number, next_id, next_segment, digest FROM commits ORDER BY number DESC LIMIT 1"
        ).fetchall()
        connection.execute("COMMIT")
    if len(about) != 1 or len(last) != 1:
        raise _damaged(folder, "its tables are incomplete")
    number, next_id, next_segment, expected = last[0]
    entries = tuple(SegmentEntry(*row) for row in segments)
    about_state = IndexState(*about[0])
    state = replace(about_state, commit=number, next_id=next_id, next_segment=next_segment, segments=entries)
    try:
        digest = state.digest()
    except (AttributeError, TypeError, ValueError):
        digest = ""
    if digest != expected:
        raise _damaged(folder, f"commit {number} has not the digest it was written with")
    return state


def unfinished(folder: Path) -> bool:
    """Whether a journal is there: the removal of it is what makes a commit, so the one it belongs to did not take
    place, and the next connection that can write undoes it."""
    return (folder / f"{LOG_NAME}-journal").exists()


def read_commits(folder: Path) -> list[dict[str, Any]]:
    """Every commit, oldest first."""
    with _connected(folder, "rw") as connection:
        _check_schema(folder, connection)
        rows = connection.execute("SELECT number, at, verb, changed FROM commits ORDER BY number").fetchall()
    return [dict(zip(("commit", "at", "verb", "changed"), row, strict=True)) for row in rows]


def integrity_problems(folder: Path) -> list[str]:
    """What SQLite itself finds wrong with the file."""
    try:
        with _connected(folder, "rw") as connection:
            return [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
    except (PlaceIndexError, OSError) as error:
        return [str(error)]


def _insert_commit(connection: sqlite3.Connection, state: IndexState, verb: str, changed: int) -> None:
    connection.execute(
        "INSERT INTO commits VALUES (?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), ?, ?, ?, ?, ?)",
        (state.commit, verb, changed, state.next_id, state.next_segment, state.digest()),
    )


def _check_schema(folder: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise _damaged(folder, "it is not the log of an index")
    if version > FORMAT_VERSION:
        raise IndexVersionError(
            f"{folder}: is an index of format {version}, this version reads up to {FORMAT_VERSION}: "
            "update geoloc_fast, or build the index anew"
        )
    # No view, trigger or table of a stranger is ever asked anything.
    found = tuple(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid"))
    if found != _SCHEMA or version < 1:
        raise _damaged(folder, "its tables are not those of an index")


@contextmanager
def _connected(folder: Path, mode: str) -> Iterator[sqlite3.Connection]:
    path = folder / LOG_NAME
    if mode != "rwc" and not path.is_file():
        what = "is not an index: it holds no index.sqlite" if folder.is_dir() else "is not a folder"
        raise PlaceIndexError(f"{folder}: {what}; make an index with `geoloc-fast index build`")
    try:
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA synchronous = EXTRA")
            yield connection
    except sqlite3.OperationalError as error:
        text = str(error)
        if not any(reason in text for reason in _NOT_THE_CONTENT):
            raise _damaged(folder, text) from error
        advice = ""
        if "readonly" in text or "unable to open" in text:
            advice = "; the folder cannot be written to"
            if unfinished(folder):
                advice += ", and a writer died in it: open the index once where it can be written"
        raise OSError(f"{path}: {text}{advice}") from error
    except sqlite3.Error as error:
        raise _damaged(folder, str(error)) from error
    except (UnicodeDecodeError, OverflowError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _damaged(folder: Path, reason: str) -> DamagedIndexError:
    return DamagedIndexError(
        f"{folder / LOG_NAME}: damaged ({reason}); restore the folder from a copy, or build the index anew"
    )
