"""One immutable part of an index: a bank of strips and, row by row, the places they belong to.

    00000003.strips   a `StripBank` as it lies in memory: searched through a map, never read as a whole
    00000003.places   safetensors: id, lat, lon, satellite_date, street_date; texts key, city, street_synthetic

The bank keeps its own file format rather than a tensor inside safetensors because search needs it on a 64-byte
boundary, which that container does not promise, and because a bank knows its shape, its frame and its length.
Ids ascend with the rows, so that the lowest row of a tie is the lowest id. A text column is the bytes of all its
rows one after the other, and where each ends. Dates are days since 1970-01-01, `NO_DATE` where there is none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from geoloc_fast.errors import DamagedIndexError
from geoloc_fast.geo.regions import Region
from geoloc_fast.index.log import IndexState, SegmentEntry
from geoloc_fast.retrieval import StripBank

__all__ = ["NO_DATE", "TEXTS", "Columns", "Segment", "encode_texts", "merge_segments", "segment_names", "write_segment"]

NO_DATE = -(2**31)
_METADATA = {"format": "geoloc_fast.places", "version": "1"}
_NUMBERS = {
    "id": ("I64", np.int64),
    "lat": ("F64", np.float64),
    "lon": ("F64", np.float64),
    "satellite_date": ("I32", np.int32),
    "street_date": ("I32", np.int32),
}
TEXTS = ("key", "city", "street_synthetic")
_ROWS_AT_ONCE = 1 << 14  # of a merge: a few tens of megabytes

Columns = dict[str, np.ndarray]  # those of _NUMBERS, and NAME (bytes) with NAME_end for each of TEXTS


def segment_names(number: int) -> tuple[str, str]:
    return f"{number:08d}.strips", f"{number:08d}.places"


def encode_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, where each text ends)"""
    encoded = [text.encode() for text in texts]
    end = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8).copy(), end


class Segment:
    """An opened segment. Its files may be unlinked while it is used, but not changed."""

    def __init__(self, folder: Path, state: IndexState, entry: SegmentEntry) -> None:
        """Maps both files. FileNotFoundError if one is gone, DamagedIndexError if it is not what the log says."""
        self.entry = entry
        strips, places = (folder / name for name in segment_names(entry.number))
        sizes = entry.strips_bytes, entry.places_bytes
        for path, expected in zip((strips, places), sizes, strict=True):
            size = os.stat(path).st_size
            if size != expected:
                raise _damaged(path, f"expected {expected} bytes, got {size}")
        try:
            self.bank = StripBank.open(strips)
        except ValueError as error:
            raise _damaged(strips, str(error)) from error
        bank, shape = self.bank, (state.channels, state.height, state.columns)
        if (len(bank), bank.shape, bank.dtype, bank.column0_deg) != (
            entry.strips, shape, state.dtype, state.column0_deg,
        ):  # fmt: skip
            raise _damaged(strips, f"expected {entry.strips} strips of {shape}, {state.dtype}, got {bank}")
        try:
            self._handle = safetensors.safe_open(places, "pt")
            self._check_columns()
        except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
            os.stat(places)  # FileNotFoundError if a writer has just removed it
            raise _damaged(places, str(error)) from error
        self._inside: tuple[Region, Tensor] | None = None

    def _check_columns(self) -> None:
        kinds = {name: kind for name, (kind, _) in _NUMBERS.items()}
        kinds |= {f"{name}_end": "I64" for name in TEXTS} | {name: "U8" for name in TEXTS}
        if self._handle.metadata() != _METADATA or set(self._handle.keys()) != set(kinds):
            raise ValueError("these are not the columns of places")
        for name, kind in kinds.items():
            column = self._handle.get_slice(name)
            shape = list(column.get_shape())
            if column.get_dtype() != kind or len(shape) != 1 or (name not in TEXTS and shape != [self.entry.strips]):
                raise ValueError(f"{name}: expected {kind} [{self.entry.strips}], got {column.get_dtype()} {shape}")

    def __len__(self) -> int:
        return self.entry.strips

    def with_entry(self, entry: SegmentEntry) -> Segment:
        """The same files with other rows removed."""
        if entry == self.entry:
            return self
        other = Segment.__new__(Segment)
        other.entry, other.bank, other._handle, other._inside = entry, self.bank, self._handle, None
        return other

    def column(self, name: str) -> np.ndarray:
        """A column as a map of the file; do not write to it."""
        values: np.ndarray = self._handle.get_tensor(name).numpy()
        return values

    @cached_property
    def ids(self) -> np.ndarray:
        return self.column("id")

    @cached_property
    def lat(self) -> np.ndarray:
        return self.column("lat")

    @cached_property
    def lon(self) -> np.ndarray:
        return self.column("lon")

    @cached_property
    def removed(self) -> np.ndarray:
        """bool [rows]"""
        if self.entry.removed is None:
            return np.zeros(len(self), bool)
        return np.unpackbits(np.frombuffer(self.entry.removed, np.uint8), count=len(self)).astype(bool)

    @cached_property
    def _not_removed(self) -> Tensor:
        return torch.from_numpy(~self.removed)

    def alive(self, within: Region | None) -> Tensor | None:
        """Which rows a search may find, bool [rows]; None if all. The last region's answer is kept."""
        if within is None:
            return None if self.entry.removed is None else self._not_removed
        inside = self._inside
        if inside is None or inside[0] != within:
            rows = within.contains(self.lat, self.lon) & ~self.removed
            inside = self._inside = within, torch.from_numpy(rows)
        return inside[1]

    def rows(self, within: Region | None = None) -> np.ndarray:
        """Rows that are there, ascending."""
        alive = self.alive(within)
        return np.arange(len(self)) if alive is None else np.flatnonzero(alive.numpy())

    def texts(self, name: str, rows: np.ndarray) -> list[str]:
        start, end = self._spans(name, rows)
        content, spans = self.column(name), zip(start.tolist(), end.tolist(), strict=True)
        return [bytes(content[a:b]).decode("utf-8", "replace") for a, b in spans]

    def take(self, rows: np.ndarray) -> Columns:
        """All columns of some rows."""
        found = {name: self.column(name)[rows] for name in _NUMBERS}
        for name in TEXTS:
            start, end = self._spans(name, rows)
            length = np.maximum(end - start, 0)
            ends = np.cumsum(length)
            total = int(ends[-1]) if len(ends) else 0
            source = np.arange(total) + np.repeat(start - (ends - length), length)
            found[name], found[f"{name}_end"] = self.column(name)[source], ends
        return found

    def _spans(self, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the texts of some rows begin and end; within the column, also in a damaged file."""
        end, size = self.column(f"{name}_end"), len(self.column(name))
        return np.where(rows > 0, end[rows - 1], 0).clip(0, size), end[rows].clip(0, size)

    def problems(self, next_id: int) -> list[str]:
        """What is wrong with the columns' values, files whose checksums are right included."""
        found = []
        ids, lat, lon = self.ids, self.lat, self.lon
        if len(ids) and not (
            np.all(np.diff(ids) > 0)
            and (ids[0], ids[-1]) == (self.entry.first_id, self.entry.last_id)
            and 0 <= ids[0] <= ids[-1] < next_id
        ):
            found.append("ids are not ascending, or not those the log says")
        if not (np.all(np.abs(lat) <= 90) and np.all(np.abs(lon) <= 180)):
            found.append("positions are not on the Earth")
        for name in TEXTS:
            end = self.column(f"{name}_end")
            if len(end) and not (end[0] >= 0 and np.all(np.diff(end) >= 0) and end[-1] == len(self.column(name))):
                found.append(f"the texts of {name} overlap or are cut")
        return found


# --- writing ---------------------------------------------------------------------------------------------


def write_segment(folder: Path, number: int, bank: StripBank, columns: Mapping[str, np.ndarray]) -> SegmentEntry:
    return _write(folder, number, [bank.buffer.numpy().data], columns)


def merge_segments(
    folder: Path,
    number: int,
    picks: Sequence[tuple[Segment, np.ndarray]],
    progress: Callable[[int], None] | None = None,
) -> SegmentEntry:
    """A new segment of some rows of others, values as they are stored. Memory does not grow with the strips.

    Args:
        picks: segments in the order of their ids, with ascending rows.
        progress: called with the number of strips written since the last call.
    """
    taken = [segment.take(rows) for segment, rows in picks]
    columns = {name: np.concatenate([part[name] for part in taken]) for name in taken[0]}
    for name in TEXTS:
        before = np.cumsum([0] + [len(part[name]) for part in taken[:-1]])
        ends = [part[f"{name}_end"] + offset for part, offset in zip(taken, before, strict=True)]
        columns[f"{name}_end"] = np.concatenate(ends)
    return _write(folder, number, _merged(picks, len(columns["id"]), progress), columns)


def _merged(
    picks: Sequence[tuple[Segment, np.ndarray]], count: int, progress: Callable[[int], None] | None
) -> Iterable[memoryview | bytes]:
    yield replace(picks[0][0].bank.layout, count=count).header()
    begins = np.cumsum([0] + [len(rows) for _, rows in picks])
    for first in range(0, count, _ROWS_AT_ONCE):  # a multiple of the strips in a block
        last = min(first + _ROWS_AT_ONCE, count)
        parts = [
            (segment.bank, torch.from_numpy(rows[max(first - begin, 0) : last - begin]))
            for (segment, rows), begin in zip(picks, begins[:-1].tolist(), strict=True)
            if begin < last and begin + len(rows) > first
        ]
        yield StripBank.join(parts).blocks.numpy().data
        if progress is not None:
            progress(last - first)


def _write(
    folder: Path, number: int, strips: Iterable[memoryview | bytes], columns: Mapping[str, np.ndarray]
) -> SegmentEntry:
    strips_name, places_name = segment_names(number)
    strips_bytes, strips_sha256 = _write_file(folder / strips_name, strips)
    arrays = {name: np.ascontiguousarray(values) for name, values in columns.items()}
    places = safetensors.numpy.save(arrays, _METADATA)
    places_bytes, places_sha256 = _write_file(folder / places_name, [places])
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the names
    finally:
        os.close(handle)
    ids = columns["id"]
    return SegmentEntry(
        number, len(ids), int(ids[0]), int(ids[-1]), strips_bytes, places_bytes, strips_sha256, places_sha256
    )


def _write_file(path: Path, parts: Iterable[memoryview | bytes]) -> tuple[int, str]:
    """Writes and syncs a file; (bytes, sha256). What a failed writer left under its name is no part of any state."""
    digest, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            digest.update(view)
            size += len(view)
            while view:
                view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return size, digest.hexdigest()


def _damaged(path: Path, reason: str) -> DamagedIndexError:
    return DamagedIndexError(f"{path}: damaged ({reason}); restore it from a copy, or build the index anew")
