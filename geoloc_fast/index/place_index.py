"""The reference database: a folder of places, their strips, and every change to them as a commit.

    index.sqlite        commit log (geoloc_fast/index/log.py, which also has the order of a commit)
    00000003.strips     immutable segments (geoloc_fast/index/segment.py)
    00000003.places
    00000012.sha256     checksums as of commit 12, for `sha256sum -c`
    lock                held by the one process that writes

Any number of processes read while one writes. A reader has a snapshot: what it maps stays as it was when it opened,
whatever is committed or deleted meanwhile, until it calls `refresh`.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.azimuth import shift_to_heading
from geoloc_fast.errors import DamagedIndexError, IndexBusyError, OtherModelError, PlaceIndexError, UnsureCommitError
from geoloc_fast.geo.regions import Region
from geoloc_fast.index import log
from geoloc_fast.index.log import IndexState
from geoloc_fast.index.segment import (
    NO_DATE,
    TEXTS,
    Columns,
    Segment,
    encode_texts,
    merge_segments,
    segment_names,
    write_segment,
)
from geoloc_fast.ops import checks
from geoloc_fast.retrieval import MAX_K, StripBank, strip_topk

__all__ = ["Neighbours", "Place", "PlaceIndex"]

DTYPES = ("bf16", "fp32")
_OURS = re.compile(r"\d{8}\.(strips|places|sha256)")
_LAST_ID = 2**63 - 1
_EPOCH = datetime.date(1970, 1, 1)

Dates = Sequence[datetime.date | None]


class Neighbours(NamedTuple):
    """The best places for each photo, best first, equal scores by id. Where there are fewer than k, id and shift
    are -1 and the rest NaN."""

    id: np.ndarray  # [B, k] int64
    score: np.ndarray  # [B, k] cosine, in [-1, 1]
    shift: np.ndarray  # [B, k] int64
    heading_deg: np.ndarray  # [B, k] of the photo's centre, if it was taken there
    lat: np.ndarray  # [B, k]
    lon: np.ndarray  # [B, k]


@dataclass(frozen=True)
class Place:
    """One row of the place table."""

    id: int
    lat: float
    lon: float
    key: str
    city: str
    satellite_date: datetime.date | None
    street_date: datetime.date | None
    street_synthetic: str
    """The fingerprint of the model that made its street view; empty if that is real, or there is none."""


@dataclass(frozen=True)
class _Snapshot:
    state: IndexState
    segments: tuple[Segment, ...]


class PlaceIndex:
    """Places and their strips on disk. `create` or `open` one; use it in a `with`, or `close` it.

    Ids are int64, count up from 0 and are never given twice. Safe to search from several threads.
    """

    def __init__(self, path: Path, lock: int | None, snapshot: _Snapshot) -> None:
        self.path = path
        self._lock = lock
        self._snapshot = snapshot

    # --- opening -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        model: str,
        shape: tuple[int, int, int],
        dtype: str = "bf16",
        column0_deg: float = 180.0,
    ) -> PlaceIndex:
        """A new, empty index, opened for writing. It appears complete under its name or not at all.

        Args:
            path: of a folder that does not exist, or is empty.
            model: fingerprint of the model whose strips it will hold.
            shape: (C, H, W) of every strip.
            dtype: of the stored values: "bf16" or "fp32".
            column0_deg: heading of the left edge of every strip.
        """
        if not isinstance(model, str) or not model:
            raise ValueError(f"model: expected the fingerprint of a model, got {model!r}")
        checks.choice("dtype", dtype, DTYPES)
        if len(shape) != 3:
            raise ValueError(f"shape: expected (C, H, W), got {shape!r}")
        for name, value in zip("CHW", shape, strict=True):
            checks.whole(f"shape ({name})", value, 1, 1 << 16)
        state = IndexState(model, *shape, dtype, checks.finite("column0_deg", column0_deg))
        _make_folder(Path(path), state, None)
        return cls.open(path, "write")

    @classmethod
    def open(cls, path: str | os.PathLike[str], mode: str = "read", *, model: str | None = None) -> PlaceIndex:
        """The index in a folder; nothing of its segments is read before a search needs it.

        Args:
            mode: "read", or "write", which one process at a time can have.
            model: fingerprint of the model it is to be used with, if that is to be checked.
        """
        checks.choice("mode", mode, ("read", "write"))
        folder = Path(path)
        lock = None
        if mode == "write":
            log.read(folder)  # says what is wrong before a lock file is made in a folder that is no index
            lock = _lock(folder)
        try:
            index = cls(folder, lock, _load(folder, {}))
            if model is not None:
                index.check_model(model)
            if mode == "write":
                _tidy(folder, index._snapshot.state)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        return index

    def close(self) -> None:
        """Lets another process write. Searching goes on working."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> PlaceIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def refresh(self) -> bool:
        """Takes the newest snapshot; whether it is another one."""
        old = self._snapshot
        if log.read(self.path).commit == old.state.commit:
            return False
        self._snapshot = _load(self.path, {segment.entry.number: segment for segment in old.segments})
        return True

    # --- what it is --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Places that are there, without those removed."""
        return sum(len(segment) - int(segment.removed.sum()) for segment in self._snapshot.segments)

    def __repr__(self) -> str:
        return f"PlaceIndex({str(self.path)!r}, {len(self)} places, commit {self.commit})"

    @property
    def model(self) -> str:
        """Fingerprint of the model whose strips these are."""
        return self._snapshot.state.model

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every strip."""
        state = self._snapshot.state
        return state.channels, state.height, state.columns

    @property
    def dtype(self) -> str:
        return self._snapshot.state.dtype

    @property
    def column0_deg(self) -> float:
        return self._snapshot.state.column0_deg

    @property
    def commit(self) -> int:
        """Number of the commit this is a snapshot of."""
        return self._snapshot.state.commit

    def check_model(self, model: str | None) -> None:
        """OtherModelError unless it is the model of this index."""
        if model != self.model:
            raise OtherModelError(
                f"{self.path}: holds strips of model {self.model[:12]}, got model {str(model)[:12]}: "
                "use the model it was built with, or build an index with this one"
            )

    def info(self) -> dict[str, Any]:
        """Plain values, printable as JSON."""
        snapshot, state = self._snapshot, self._snapshot.state
        lat, lon = self.positions()
        edges = [float(value) for value in (lat.min(), lon.min(), lat.max(), lon.max())] if len(lat) else [None] * 4
        commits = log.read_commits(self.path)
        return {
            "path": str(self.path),
            "format": log.FORMAT_VERSION,
            "model": state.model,
            "strip": dict(zip(("channels", "height", "columns"), self.shape, strict=True)),
            "dtype": state.dtype,
            "column0_deg": state.column0_deg,
            "places": len(lat),
            "removed": sum(len(segment) for segment in snapshot.segments) - len(lat),
            "next_id": state.next_id,
            "bounds": dict(zip(("south", "west", "north", "east"), edges, strict=True)),
            "segments": len(snapshot.segments),
            "bytes": sum(entry.strips_bytes + entry.places_bytes for entry in state.segments),
            "commit": state.commit,
            "changed_at": next((row["at"] for row in commits if row["commit"] == state.commit), None),
        }

    def ids(self, within: Region | None = None) -> np.ndarray:
        """Ids of all places, or those in a region, ascending."""
        parts = [segment.ids[segment.rows(within)] for segment in self._snapshot.segments]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def positions(self, within: Region | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lat, lon) of all places, or those in a region, in the order of `ids`."""
        rows = [(segment, segment.rows(within)) for segment in self._snapshot.segments]
        lat = np.concatenate([np.zeros(0), *(segment.lat[row] for segment, row in rows)])
        return lat, np.concatenate([np.zeros(0), *(segment.lon[row] for segment, row in rows)])

    def keys(self) -> dict[str, int]:
        """key -> id of all places that have a key (the first id, where a key was added twice)."""
        found: dict[str, int] = {}
        for segment in self._snapshot.segments:
            rows = segment.rows()
            for key, number in zip(segment.texts("key", rows), segment.ids[rows].tolist(), strict=True):
                if key:
                    found.setdefault(key, number)
        return found

    def places(self, ids: Iterable[int] | np.ndarray) -> list[Place]:
        """The places of these ids, in this order. KeyError if one is not there."""
        wanted = _ids(ids)
        result: list[Place | None] = [None] * len(wanted)
        for segment in self._snapshot.segments:
            row = np.searchsorted(segment.ids, wanted).clip(max=len(segment) - 1)
            here = np.flatnonzero((segment.ids[row] == wanted) & ~segment.removed[row])
            part = segment.take(row[here])
            keys, cities, made = (segment.texts(name, row[here]) for name in TEXTS)
            for i, at in enumerate(here.tolist()):
                result[at] = Place(
                    int(part["id"][i]), float(part["lat"][i]), float(part["lon"][i]), keys[i], cities[i],
                    _date(int(part["satellite_date"][i])), _date(int(part["street_date"][i])),
                    made[i],
                )  # fmt: skip
        for number, place in zip(wanted.tolist(), result, strict=True):
            if place is None:
                raise KeyError(f"ids: there is no place {number}")
        return [place for place in result if place is not None]

    # --- search ------------------------------------------------------------------------------------------

    def search(
        self,
        query: Tensor,
        k: int = 10,
        *,
        query_width: Tensor | None = None,
        select: str = "correlation",
        within: Region | None = None,
    ) -> Neighbours:
        """The k best places for photo strips [B, C, H, Wq], of which the first `query_width` [B] columns exist.

        The same answer however the places are spread over segments. `within` restricts it to a region.
        """
        checks.tensor("query", query, "[B, C, H, Wq]")
        if not bool(torch.isfinite(query).all()):
            raise ValueError("query: expected finite values, got NaN or Inf")
        checks.whole("k", k, 1, MAX_K)
        batch = query.shape[0]
        # So that there are k columns whatever is found.
        nothing = np.full((batch, k), np.nan)
        least = np.full((batch, k), -np.inf, np.float32)
        parts: list[tuple[np.ndarray, ...]] = [
            (np.full((batch, k), _LAST_ID), least, np.full((batch, k), -1), nothing, nothing)
        ]
        for segment in self._snapshot.segments:
            alive = segment.alive(within)
            if within is not None and alive is not None and not bool(alive.any()):
                continue
            found = strip_topk(query, segment.bank, k, query_width=query_width, select=select, alive=alive)
            row = found.index.numpy()
            missing = row < 0
            positions = (np.where(missing, np.nan, values[row]) for values in (segment.lat, segment.lon))
            parts.append(
                (np.where(missing, _LAST_ID, segment.ids[row]), found.score.numpy(), found.shift.numpy(), *positions)
            )
        numbers, scores, *others = (np.hstack(columns) for columns in zip(*parts, strict=True))
        order = np.lexsort((numbers, -scores), axis=1)[:, :k]
        number, score, shift, lat, lon = (np.take_along_axis(values, order, 1) for values in (numbers, scores, *others))
        missing = number == _LAST_ID
        width = torch.full((batch,), query.shape[3]) if query_width is None else query_width
        heading = shift_to_heading(
            torch.from_numpy(shift), width[:, None], self.shape[2], column0_deg=self.column0_deg
        ).numpy()
        return Neighbours(
            np.where(missing, -1, number), np.where(missing, np.nan, score), shift,
            np.where(missing, np.nan, heading), lat, lon,
        )  # fmt: skip

    # --- changes -----------------------------------------------------------------------------------------

    def add(
        self,
        strips: Tensor,
        *,
        model: str | None,
        lat: Any,
        lon: Any,
        key: Sequence[str] | None = None,
        city: Sequence[str] | None = None,
        satellite_date: Dates | None = None,
        street_date: Dates | None = None,
        street_synthetic: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Adds places in one commit; returns their ids, int64 [N]. When it returns, they survive a power failure.

        Args:
            strips: [N, C, H, W], finite.
            model: fingerprint of the model that made them; it must be that of the index.
            lat, lon: [N] degrees, WGS84.
            key: names of your own for the places.
            city, satellite_date, street_date: what is known of them.
            street_synthetic: fingerprint of the model that made the street view, empty where none did.
        """
        state = self._writable()
        self.check_model(model)
        checks.tensor("strips", strips, "[N, C, H, W]")
        if tuple(strips.shape[1:]) != self.shape:
            raise ValueError(f"strips: expected (C, H, W) = {self.shape}, got {tuple(strips.shape[1:])}")
        if not _all_finite(strips):
            raise ValueError("strips: expected finite values, got NaN or Inf")
        count = len(strips)
        if state.next_id > _LAST_ID - count - 1:
            raise PlaceIndexError(f"{self.path}: there are no ids left")
        ids = np.arange(state.next_id, state.next_id + count)
        columns: Columns = {"id": ids, "lat": _degrees("lat", lat, count, 90), "lon": _degrees("lon", lon, count, 180)}
        for name, dates in (("satellite_date", satellite_date), ("street_date", street_date)):
            columns[name] = _days(name, dates, count)
        for name, texts in zip(TEXTS, (key, city, street_synthetic), strict=True):
            columns[name], columns[f"{name}_end"] = _text(name, texts, count)
        if not count:
            return ids
        bank = StripBank.pack(strips.cpu(), dtype=self.dtype, column0_deg=self.column0_deg)

        def change() -> IndexState:
            entry = write_segment(self.path, state.next_segment, bank, columns)
            return replace(
                state, next_id=state.next_id + count, next_segment=state.next_segment + 1,
                segments=(*state.segments, entry),
            )  # fmt: skip

        self._commit(change, "add", count)
        return ids

    def remove(self, ids: Iterable[int] | np.ndarray) -> int:
        """Takes places out of every later answer, in one commit; returns how many were there. Their ids are not
        given again. `compact` frees their room."""
        state = self._writable()
        wanted = np.unique(_ids(ids))
        entries, count = [], 0
        for segment in self._snapshot.segments:
            row = np.searchsorted(segment.ids, wanted).clip(max=len(segment) - 1)
            row = row[(segment.ids[row] == wanted) & ~segment.removed[row]]
            if not len(row):
                entries.append(segment.entry)
                continue
            removed = segment.removed.copy()
            removed[row] = True
            count += len(row)
            if not removed.all():  # a segment with nothing left in it goes at once
                entries.append(replace(segment.entry, removed=np.packbits(removed).tobytes()))
        if count:
            self._commit(lambda: replace(state, segments=tuple(entries)), "remove", count)
        return count

    def compact(self, progress: Callable[[int], None] | None = None) -> bool:
        """Rewrites all segments as one, without what was removed; whether there was anything to do. Ids stay, and
        every answer stays what it was. Needs room for the new segment beside the old ones."""
        state = self._writable()
        segments = self._snapshot.segments
        if len(segments) <= 1 and all(entry.removed is None for entry in state.segments):
            return False

        def change() -> IndexState:
            entry = merge_segments(self.path, state.next_segment, [(s, s.rows()) for s in segments], progress)
            return replace(state, next_segment=state.next_segment + 1, segments=(entry,))

        self._commit(change, "compact", len(segments))
        return True

    def slice(
        self, out: str | os.PathLike[str], within: Region, progress: Callable[[int], None] | None = None
    ) -> PlaceIndex:
        """A new index of the places in a region, opened for reading. They keep their ids."""
        snapshot = self._snapshot
        state = replace(snapshot.state, commit=0, next_segment=1, segments=())
        picks = [(segment, segment.rows(within)) for segment in snapshot.segments]
        picks = [(segment, rows) for segment, rows in picks if len(rows)]

        def fill(folder: Path) -> None:
            if picks:
                entry = merge_segments(folder, 1, picks, progress)
                after = replace(state, next_segment=2, segments=(entry,))
                _seal(folder, log.commit(folder, state, after, "slice", entry.strips))

        _make_folder(Path(out), state, fill)
        return PlaceIndex.open(out)

    def _writable(self) -> IndexState:
        if self._lock is None:
            raise PlaceIndexError(f"{self.path}: opened for reading; PlaceIndex.open(path, 'write') can change it")
        return self._snapshot.state

    def _commit(self, change: Callable[[], IndexState], verb: str, count: int) -> None:
        before = self._snapshot.state
        try:
            changed = change()
        except BaseException:
            _tidy(self.path, before)
            raise
        try:
            after = log.commit(self.path, before, changed, verb, count)
        except BaseException as error:
            # Whatever the disk now says is the truth.
            number = before.commit + 1
            try:
                self._snapshot = _load(self.path, self._opened())
                stands, doubt = self.commit == before.commit, "is there now, but a power failure may undo it"
                _tidy(self.path, self._snapshot.state)
            except (OSError, PlaceIndexError):  # a disk that fails on cannot even undo what was begun
                stands, doubt = log.unfinished(self.path), "may be there or not, for the index cannot be read"
            if not isinstance(error, OSError):
                raise
            if stands:
                raise OSError(f"{error}; commit {before.commit} stands, this one does not") from error
            raise UnsureCommitError(
                f"{error}; commit {number} ({verb}) {doubt}: once the disk works, open the index and see whether "
                f"its last commit is {number} before doing it again",
                number,
            ) from error
        self._snapshot = _load(self.path, self._opened(), after)
        _tidy(self.path, after)

    def _opened(self) -> dict[int, Segment]:
        return {segment.entry.number: segment for segment in self._snapshot.segments}

    # --- the whole ---------------------------------------------------------------------------------------

    def export(self, out: str | os.PathLike[str], within: Region | None = None) -> int:
        """Writes the place table as GeoParquet; returns the number of places. Strips are not in it."""
        import pyarrow as pa

        from geoloc_fast.files import write_atomically
        from geoloc_fast.geo.geoparquet import geoparquet_bytes

        names = ("id", "lat", "lon", *TEXTS, "satellite_date", "street_date")
        parts: dict[str, list[Any]] = {name: [] for name in names}
        for segment in self._snapshot.segments:
            rows = segment.rows(within)
            for name in ("id", "lat", "lon"):
                parts[name].append(segment.column(name)[rows])
            for name in TEXTS:
                parts[name].append(pa.array(segment.texts(name, rows), pa.string()))
            for name in ("satellite_date", "street_date"):
                days = segment.column(name)[rows]
                parts[name].append(pa.array(days, pa.int32(), mask=days == NO_DATE).cast(pa.date32()))
        kinds = {"id": pa.int64(), "lat": pa.float64(), "lon": pa.float64(), **dict.fromkeys(TEXTS, pa.string())}
        table = pa.table(
            {name: pa.chunked_array(arrays, kinds.get(name, pa.date32())) for name, arrays in parts.items()}
        )
        write_atomically(out, geoparquet_bytes(table))
        return int(table.num_rows)

    @staticmethod
    def verify(path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> list[str]:
        """Reads every byte of an index and says what is wrong with it: an empty list if nothing is.

        PlaceIndexError if the folder is no index at all. A writer may go on meanwhile.

        Args:
            progress: called with the number of bytes read since the last call.
        """
        folder = Path(path)
        while True:
            try:
                state = log.read(folder)
            except DamagedIndexError as error:
                return [str(error)]
            found = _verify(folder, state, progress)
            if not found or log.read(folder).commit == state.commit:
                return found


def _verify(folder: Path, state: IndexState, progress: Callable[[int], None] | None) -> list[str]:
    found = [f"{folder / log.LOG_NAME}: {text}" for text in log.integrity_problems(folder)]
    for entry in state.segments:
        sums = entry.strips_sha256, entry.places_sha256
        before = len(found)
        for name, expected in zip(segment_names(entry.number), sums, strict=True):
            try:
                if _sha256(folder / name, progress) != expected:
                    found.append(f"{folder / name}: damaged (its checksum is not that of the log)")
            except OSError as error:
                found.append(f"{folder / name}: cannot be read: {error.strerror}")
        if len(found) == before:
            try:
                segment = Segment(folder, state, entry)
                found += [f"{folder / name}: {text}" for text in segment.problems(state.next_id)]
            except (OSError, DamagedIndexError) as error:
                found.append(str(error))
    if not found:
        # What SQLite does not use of its pages is in no digest but this.
        seal = folder / f"{state.commit:08d}.sha256"
        with suppress(FileNotFoundError):  # a writer died before it wrote one
            if seal.read_bytes() != _checksums(folder, state):
                found.append(f"{seal}: the checksums in it are not those of the files")
    return found


def _load(folder: Path, opened: dict[int, Segment], state: IndexState | None = None) -> _Snapshot:
    """Opens every segment of the last commit (or that of `state`) that is not open yet."""
    given = state
    while True:
        state = log.read(folder) if given is None else given
        try:
            segments = tuple(
                opened[entry.number].with_entry(entry) if entry.number in opened else Segment(folder, state, entry)
                for entry in state.segments
            )
            return _Snapshot(state, segments)
        except FileNotFoundError as error:
            # A writer may have compacted between the two; then there is a newer state to read.
            if given is not None or log.read(folder).commit == state.commit:
                raise DamagedIndexError(
                    f"{error.filename}: is missing; restore it from a copy, or build the index anew"
                ) from error


def _make_folder(path: Path, state: IndexState, fill: Callable[[Path], None] | None) -> None:
    """A new index under a name that is taken at the end, when it is complete."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "there is an index already; open it" if (path / log.LOG_NAME).exists() else "it exists and is not empty"
        raise PlaceIndexError(f"{path}: expected a new folder, but {kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private to this user
        log.create(temporary, state)
        _seal(temporary, state)
        if fill is not None:
            fill(temporary)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename
    finally:
        os.close(handle)


def _lock(folder: Path) -> int:
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({error.strerror}); open it for reading") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise IndexBusyError(f"{folder}: another process is writing to this index; wait until it is done") from error
    except BaseException:
        os.close(handle)
        raise
    return handle


def _tidy(folder: Path, state: IndexState) -> None:
    """Removes files that no commit refers to, and writes the checksums. Nothing depends on it: the next writer makes
    up for what is not done."""
    kept = {name for entry in state.segments for name in segment_names(entry.number)} | {f"{state.commit:08d}.sha256"}
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _OURS.fullmatch(entry.name) and entry.name not in kept:
                os.unlink(entry.path)
    _seal(folder, state)


def _seal(folder: Path, state: IndexState) -> None:
    seal = folder / f"{state.commit:08d}.sha256"
    if not seal.exists():
        with suppress(OSError):
            temporary = folder / "00000000.sha256"  # commit 0 has nothing worth keeping
            temporary.write_bytes(_checksums(folder, state))
            os.replace(temporary, seal)


def _checksums(folder: Path, state: IndexState) -> bytes:
    """As `sha256sum` writes them."""
    sums = [(_sha256(folder / log.LOG_NAME), log.LOG_NAME)]
    for entry in state.segments:
        sums += zip((entry.strips_sha256, entry.places_sha256), segment_names(entry.number), strict=True)
    return "".join(f"{digest}  {name}\n" for digest, name in sums).encode()


def _sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
            if progress is not None:
                progress(len(part))
    return digest.hexdigest()


# --- arguments -------------------------------------------------------------------------------------------


def _ids(ids: Iterable[int] | np.ndarray) -> np.ndarray:
    values = ids if isinstance(ids, np.ndarray) else np.asarray(list(ids))
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got {values.dtype}")
    return values.astype(np.int64).ravel()


def _all_finite(values: Tensor) -> bool:
    # A sum is ten times cheaper and keeps what is not finite; large values alone can make it overflow.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _degrees(name: str, values: Any, count: int, limit: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected {count} values (one a strip), got shape {array.shape}")
    bad = ~(np.abs(array) <= limit)  # NaN too
    if bad.any():
        raise ValueError(f"{name}: expected degrees from {-limit} to {limit}, got {array[bad][0]}")
    return array


def _days(name: str, dates: Dates | None, count: int) -> np.ndarray:
    if dates is None:
        return np.full(count, NO_DATE, np.int32)
    if len(dates) != count:
        raise ValueError(f"{name}: expected {count} dates (one a strip), got {len(dates)}")
    return np.array([NO_DATE if date is None else (date - _EPOCH).days for date in dates], np.int32)


def _date(days: int) -> datetime.date | None:
    if days == NO_DATE:
        return None
    try:
        return _EPOCH + datetime.timedelta(days)
    except OverflowError:
        return None


def _text(name: str, texts: Sequence[str] | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    if texts is None:
        return np.zeros(0, np.uint8), np.zeros(count, np.int64)
    if isinstance(texts, str) or len(texts) != count:
        raise ValueError(f"{name}: expected {count} texts (one a strip), got {len(texts)}")
    return encode_texts(texts)
