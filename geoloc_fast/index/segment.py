"""One immutable part of an index: a table of places and, for each layer, a bank of strips.

    NAME.places         safetensors: the table of places, and for each layer a table of rows
    NAME.LAYER.strips   a `StripBank` as it lies in memory: searched through a map, never read as a whole

NAME is drawn at random. The table of places:

    id                  int64, ascending, counted from the first id that the commit gives the segment
    lat, lon            float64, NaN where a place has no position
    key, key_end        a text: the bytes of all, one after the other, and where each ends
    attribute.NAME      int32 (dates: days since 1970-01-01), int64, float64, or the bytes of texts with
    attribute.NAME.end  where each ends; what is not known is the lowest number, NaN, or an empty text

The table of rows of a layer, in the order of its bank. First those that are searched, the first `scanned_rows` of each
place, then the others, so that a search reads no more than it needs. In both, rows of one place lie together, places
ascending:

    layer.NAME.place     int64, the place's row in the table of places
    layer.NAME.lat, lon  float64, of the standpoint or view

The bank keeps its own file format rather than a tensor inside safetensors because search needs it on a 64-byte
boundary, which that container does not promise, and because a bank knows its shape, its frame and its length.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from geoloc_fast.geo.regions import Region
from geoloc_fast.index.attributes import KINDS, column_names, unknown
from geoloc_fast.index.commits import BankEntry, FileEntry, IndexState, SegmentEntry
from geoloc_fast.index.folder import Folder, MappedFile, damaged
from geoloc_fast.retrieval import StripBank

__all__ = ["Bank", "Columns", "LayerRows", "Segment", "merge_segments", "search_order", "write_segment"]

_INT64, _FLOAT64 = KINDS["int"], KINDS["float"]
_STORED = {"I64": KINDS["int"], "F64": KINDS["float"], "I32": KINDS["date"], "U8": KINDS["text"]}
_METADATA = {"format": "geoloc_fast.places", "version": "1"}
_MOST_HEADER = 1 << 20
_BYTES_AT_ONCE = 1 << 26  # of a merge

Columns = dict[str, np.ndarray]


class _Table:
    """The columns of a `.places` file, as maps of it; do not write to them."""

    def __init__(self, file: MappedFile, size: int) -> None:
        self.file = file
        try:
            self._columns = _columns_of(file, size)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise damaged(file.path, f"{type(error).__name__}: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def check(self, expected: Mapping[str, tuple[np.dtype, int | None]]) -> None:
        """Whether these are its columns, kinds and lengths (None: any)."""
        if set(self._columns) != set(expected):
            raise damaged(self.file.path, "its columns are not those of the index")
        for name, (kind, length) in expected.items():
            column = self._columns[name]
            if column.dtype != kind or length not in (None, len(column)):
                reason = f"{name}: expected {kind} [{length}], got {column.dtype} [{len(column)}]"
                raise damaged(self.file.path, reason)


def _columns_of(file: MappedFile, size: int) -> Columns:
    if size < 8:
        raise ValueError("it has no header")
    length = int(file.array(np.dtype("<u8"), 0, 1)[0])
    if length > min(size - 8, _MOST_HEADER):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.array(np.dtype("u1"), 8, length).tobytes())
    if header.pop("__metadata__") != _METADATA:
        raise ValueError("these are not the columns of places")
    columns, spans = {}, []
    for name, tensor in header.items():
        kind, (count,), (begin, end) = _STORED[tensor["dtype"]], tensor["shape"], tensor["data_offsets"]
        if not all(type(value) is int for value in (count, begin, end)) or end - begin != count * kind.itemsize:
            raise ValueError(f"{name} does not fit its place")
        spans.append((begin, end))
        columns[name] = (kind, begin, count)
    at = 0
    for begin, end in sorted(spans):  # no overlap and no hole
        if begin != at:
            raise ValueError("its columns do not lie one after the other")
        at = end
    if 8 + length + at != size:
        raise ValueError("it does not end with its columns")
    return {name: file.array(kind, 8 + length + begin, count) for name, (kind, begin, count) in columns.items()}


class Bank:
    """The strips of one layer in a segment, and its table of rows."""

    def __init__(self, strips: StripBank, file: MappedFile, entry: BankEntry, places: int, table: _Table, name: str):
        self.strips, self.file, self.entry = strips, file, entry
        self.place, self.lat, self.lon = (table[f"layer.{name}.{column}"] for column in ("place", "lat", "lon"))
        self.every = entry.most == 1 and entry.rows == places
        """Each place has one row, so that the n-th row is that of the n-th place."""
        self._group: Tensor | None = None
        self._alive: tuple[object, Tensor] | None = None

    def __len__(self) -> int:
        return self.entry.rows

    @property
    def whole(self) -> bool:
        """Whether a search goes through every row."""
        return self.entry.searched == self.entry.rows

    @property
    def group(self) -> Tensor | None:
        """int64 [searched], the place of each row, on the bank's device; None while no place has two."""
        if self.entry.most == 1:
            return None
        if self._group is None:
            self._group = torch.from_numpy(self.place[: self.entry.searched].copy()).to(self.strips.device)
        return self._group

    def places(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.every else self.place[rows]

    def rows(self, places: np.ndarray) -> np.ndarray:
        """The rows of some places [...], -1 for none: [..., n], as they were given, -1 where a place has no more."""
        if self.every:
            return places[..., None]
        searched = self.entry.searched
        first, end = _span(self.place[:searched], places)
        number = np.arange(max(1, int((end - first).max(initial=0))))
        found = _padded(first, end, number)
        if self.whole:
            return found
        others, last = _span(self.place[searched:], places)
        number = np.arange(int((last - others).max(initial=0)))
        return np.concatenate([found, _padded(others + searched, last + searched, number)], axis=-1)

    def alive(self, places: np.ndarray | None, key: object) -> Tensor | None:
        """bool [searched] on the bank's device: the rows of places that are alive (bool [places]); None if all are.
        What was asked for last is kept under `key`."""
        if places is None:
            return None
        kept = self._alive
        if kept is None or kept[0] != key:
            rows = places if self.every else places[self.place[: self.entry.searched]]
            kept = self._alive = key, torch.from_numpy(rows).to(self.strips.device)
        return kept[1]


def _span(place: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.searchsorted(place, places), np.searchsorted(place, places, "right")


def _padded(first: np.ndarray, end: np.ndarray, number: np.ndarray) -> np.ndarray:
    rows = first[..., None] + number
    return np.where(rows < end[..., None], rows, -1)


class Segment:
    """An opened segment. Its files may be unlinked while it is used, but not changed."""

    def __init__(self, folder: Folder, state: IndexState, entry: SegmentEntry, device: torch.device) -> None:
        """Maps its files. FileNotFoundError if one is gone, DamagedIndexError if it is not what the commit says."""
        self.entry = entry
        table = f"{entry.name}.places"
        self._table = _Table(MappedFile(folder, table, entry.table.bytes), entry.table.bytes)
        self._table.check(_expected_columns(state.attributes, entry, self._table))
        self.attributes = {name: kind for name, kind in state.attributes.items() if f"attribute.{name}" in self._table}
        self._scanned = {layer.name: layer.scanned_rows for layer in state.layers}
        self.banks: dict[str, Bank] = {}
        for name, bank in entry.banks.items():
            file = MappedFile(folder, f"{entry.name}.{name}.strips", bank.bytes)
            try:
                strips = StripBank(torch.frombuffer(file.memory, dtype=torch.uint8))
            except ValueError as error:
                raise damaged(file.path, str(error)) from error
            layer = state.layer(name)
            expected = bank.rows, layer.strip, state.dtype, layer.column0_deg or 0.0
            if (len(strips), strips.shape, strips.dtype, strips.column0_deg) != expected:
                raise damaged(file.path, f"expected {bank.rows} strips of {layer.strip}, {state.dtype}, got {strips}")
            if device.type != "cpu":
                strips = StripBank(strips.buffer.to(device))
            self.banks[name] = Bank(strips, file, bank, entry.places, self._table, name)
        self._inside: tuple[Region, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.entry.places

    def with_entry(self, entry: SegmentEntry) -> Segment:
        """The same files with other places removed."""
        if entry == self.entry:
            return self
        other = Segment.__new__(Segment)
        other.entry, other._table, other.attributes, other._inside = entry, self._table, self.attributes, None
        other._scanned = self._scanned
        other.banks = {
            name: Bank(bank.strips, bank.file, bank.entry, entry.places, self._table, name)
            for name, bank in self.banks.items()
        }
        return other

    def check(self) -> None:
        """DamagedIndexError if a file was cut since it was opened. To be called before its memory is read."""
        self._table.file.check()
        for bank in self.banks.values():
            bank.file.check()

    def column(self, name: str) -> np.ndarray:
        return self._table[name]

    @property
    def lat(self) -> np.ndarray:
        return self._table["lat"]

    @property
    def lon(self) -> np.ndarray:
        return self._table["lon"]

    def ids(self, places: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Ids of some places, by their rows in the table."""
        return np.add(self._table["id"][places], self.entry.first_id)

    def ids_ascend(self) -> bool:
        ids = self._table["id"]
        return bool(np.all(np.diff(ids) > 0) and ids[0] >= 0 and ids[-1] < self.entry.span)

    @property
    def path(self) -> Path:
        """Of its table."""
        return self._table.file.path

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of these ids are here and not removed, their rows in the table)"""
        wanted = ids - self.entry.first_id
        row = np.searchsorted(self._table["id"], wanted).clip(max=len(self) - 1)
        here = np.flatnonzero((self._table["id"][row] == wanted) & ~self.removed[row])
        return here, row[here]

    @cached_property
    def removed(self) -> np.ndarray:
        """bool [places]"""
        if self.entry.removed is None:
            return np.zeros(len(self), bool)
        return np.unpackbits(np.frombuffer(self.entry.removed, np.uint8), count=len(self)).astype(bool)

    @cached_property
    def _there(self) -> np.ndarray:
        return ~self.removed

    def alive(self, within: Region | None) -> np.ndarray | None:
        """Which places a search may find, bool [places]; None if all. The last region's answer is kept."""
        if within is None:
            return None if self.entry.removed is None else self._there
        inside = self._inside
        if inside is None or inside[0] != within:
            inside = self._inside = within, within.contains(self.lat, self.lon) & self._there
        return inside[1]

    def places(self, within: Region | None = None) -> np.ndarray:
        """Rows of the table that are there, ascending."""
        alive = self.alive(within)
        return np.arange(len(self)) if alive is None else np.flatnonzero(alive)

    def texts(self, name: str, places: np.ndarray) -> list[str]:
        """The key or an attribute that is a text."""
        content, end = (self._table[column] for column in column_names("text", name))
        begin, end = _spans(end, len(content), places)
        spans = zip(begin.tolist(), end.tolist(), strict=True)
        return [bytes(content[a:b]).decode("utf-8", "replace") for a, b in spans]

    def stored(self, name: str, kind: str, places: np.ndarray) -> np.ndarray | list[str]:
        """An attribute of some places, as `values_of` reads it."""
        return self.texts(name, places) if kind == "text" else self._table[f"attribute.{name}"][places]

    def take(self, places: np.ndarray, attributes: Mapping[str, str]) -> Columns:
        """The table of some places, ids as they are in the index, with these attributes, known or not."""
        found = {"id": self.ids(places), "lat": self.lat[places], "lon": self.lon[places]}
        for name, kind in (("key", "text"), *attributes.items()):
            names = column_names(kind, name)
            if name != "key" and name not in self.attributes:
                found |= dict(zip(names, unknown(kind, len(places)), strict=True))
            elif kind == "text":
                content = self._table[names[0]]
                begin, end = _spans(self._table[names[1]], len(content), places)
                length = np.maximum(end - begin, 0)
                ends = np.cumsum(length)
                total = int(ends[-1]) if len(ends) else 0
                source = np.arange(total) + np.repeat(begin - (ends - length), length)
                found[names[0]], found[names[1]] = content[source], ends
            else:
                found[names[0]] = self._table[names[0]][places]
        return found

    def problems(self) -> list[str]:
        """What is wrong with the values, files whose checksums are right included."""
        found = []
        if not self.ids_ascend():
            found.append("ids are not ascending, or beyond those of the segment")
        nowhere = np.isnan(self.lat)
        on_earth = (np.abs(self.lat) <= 90) & (np.abs(self.lon) <= 180)
        if not np.all(on_earth | nowhere & np.isnan(self.lon)):
            found.append("positions are not on the Earth")
        for name, kind in (("key", "text"), *self.attributes.items()):
            if kind == "text":
                content, end = (self._table[column] for column in column_names(kind, name))
                if not (end[0] >= 0 and np.all(np.diff(end) >= 0) and end[-1] == len(content)):
                    found.append(f"the texts of {name} overlap or are cut")
        for name, bank in self.banks.items():
            if not self._in_order(bank, self._scanned[name]):
                found.append(f"the rows of {name} do not belong to places as they should")
        return found

    def _in_order(self, bank: Bank, scanned: int) -> bool:
        """Whether the first rows of every place are searched, and the others follow, places ascending in both."""
        if not np.all((bank.place >= 0) & (bank.place < len(self))):
            return False
        parts = bank.place[: bank.entry.searched], bank.place[bank.entry.searched :]
        searched, others = (np.bincount(part, minlength=len(self)) for part in parts)
        return (
            all(bool(np.all(np.diff(part) >= 0)) for part in parts)
            and int((searched + others).max()) == bank.entry.most
            and bool(np.all(np.where(others > 0, searched == scanned, searched <= scanned)))
        )


def _expected_columns(
    attributes: Mapping[str, str], entry: SegmentEntry, table: _Table
) -> dict[str, tuple[np.dtype, int | None]]:
    count = entry.places
    expected: dict[str, tuple[np.dtype, int | None]] = {
        "id": (_INT64, count), "lat": (_FLOAT64, count), "lon": (_FLOAT64, count),
    }  # fmt: skip
    for name, kind in (("key", "text"), *attributes.items()):
        names = column_names(kind, name)
        if names[0] in table:  # an attribute that is younger than the segment is not
            expected[names[0]] = (KINDS[kind], None if kind == "text" else count)
            expected |= {end: (_INT64, count) for end in names[1:]}
    for name, bank in entry.banks.items():
        for column, stored in (("place", _INT64), ("lat", _FLOAT64), ("lon", _FLOAT64)):
            expected[f"layer.{name}.{column}"] = (stored, bank.rows)
    return expected


def _spans(end: np.ndarray, size: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the texts of some places begin and end; within the column, also in a damaged file."""
    return np.where(places > 0, end[places - 1], 0).clip(0, size), end[places].clip(0, size)


# --- writing -----------------------------------------------------------------------------------------------------


class LayerRows:
    """What is written of one layer: a table of rows, and the bank in parts."""

    def __init__(
        self, place: np.ndarray, lat: np.ndarray, lon: np.ndarray, parts: Iterable[memoryview | bytes], places: int,
        searched: int,
    ) -> None:  # fmt: skip
        self.table = {"place": place, "lat": lat, "lon": lon}
        self.parts, self.searched = parts, searched
        self.most = int(np.bincount(place, minlength=places).max()) if len(place) else 0


def search_order(place: np.ndarray, scanned: int) -> tuple[np.ndarray, int]:
    """(order in which rows of ascending places lie in a bank, how many of them are searched)"""
    first = np.flatnonzero(np.diff(place, prepend=-1))
    number = np.arange(len(place)) - np.repeat(first, np.diff(first, append=len(place)))
    searched = number < scanned
    return np.argsort(~searched, kind="stable"), int(searched.sum())


def write_segment(
    folder: Folder, columns: Columns, layers: Mapping[str, LayerRows], name: str | None = None
) -> SegmentEntry:
    """Writes and syncs the files of a segment, their names not yet. Its first id is that of its first place."""
    name = name or secrets.token_hex(16)
    banks = {}
    for layer, rows in layers.items():
        if rows.most:
            size, sha256 = folder.write(f"{name}.{layer}.strips", rows.parts)
            banks[layer] = BankEntry(size, sha256, len(rows.table["place"]), rows.searched, rows.most)
    first = int(columns["id"][0])
    whole = {**columns, "id": columns["id"] - first}
    for layer in banks:
        whole |= {f"layer.{layer}.{column}": values for column, values in layers[layer].table.items()}
    arrays = {column: np.ascontiguousarray(values) for column, values in whole.items()}
    table = FileEntry(*folder.write(f"{name}.places", _saved(arrays)))
    span = int(columns["id"][-1]) - first + 1
    return SegmentEntry(name, first, span, len(columns["id"]), table, banks)


def _saved(columns: Columns) -> list[bytes]:
    """A safetensors file of columns, always the same bytes of the same columns: the library's header has no order."""
    content = safetensors.numpy.save(columns, _METADATA)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return [len(header).to_bytes(8, "little"), header, content[end:]]


def merge_segments(
    folder: Folder,
    picks: Sequence[tuple[Segment, np.ndarray]],
    state: IndexState,
    progress: Callable[[int], None] | None = None,
) -> SegmentEntry:
    """A new segment of some places of others, values as they are stored. Memory does not grow with the strips.

    Args:
        picks: segments in the order of their ids, with ascending rows of their tables.
        progress: called with the number of places written since the last call.
    """
    present = {name for segment, _ in picks for name in segment.attributes}
    attributes = {name: kind for name, kind in state.attributes.items() if name in present}
    taken = [segment.take(places, attributes) for segment, places in picks]
    columns = {name: np.concatenate([part[name] for part in taken]) for name in taken[0]}
    for name, kind in (("key", "text"), *attributes.items()):
        if kind == "text":
            content, end = column_names(kind, name)
            before = np.cumsum([0] + [len(part[content]) for part in taken[:-1]])
            columns[end] = np.concatenate([part[end] + offset for part, offset in zip(taken, before, strict=True)])
    count = len(columns["id"])
    told = _Told(progress, count, sum(len(bank) for segment, _ in picks for bank in segment.banks.values()))
    layers = {}
    for layer in state.layers:
        halves: tuple[list[_Moved], list[_Moved]] = [], []  # what is searched, and the others
        begin = 0
        for segment, places in picks:
            bank = segment.banks.get(layer.name)
            if bank is not None:
                number = np.full(len(segment), -1)
                number[places] = np.arange(begin, begin + len(places))
                place = number[bank.place]
                rows = np.flatnonzero(place >= 0)
                split = int(np.searchsorted(rows, bank.entry.searched))
                for half, part in zip(halves, (rows[:split], rows[split:]), strict=True):
                    if len(part):
                        half.append(_Moved(bank, part, place[part]))
            begin += len(places)
        found = halves[0] + halves[1]
        if found:
            place, lat, lon = (
                np.concatenate(parts)
                for parts in zip(*((part.place, part.bank.lat[part.rows], part.bank.lon[part.rows]) for part in found),
                                 strict=True)
            )  # fmt: skip
            searched = sum(len(part.rows) for part in halves[0])
            moved = _merged(found, len(place), told.rows)
            layers[layer.name] = LayerRows(place, lat, lon, moved, count, searched)
    entry = write_segment(folder, columns, layers)
    told.whole()
    return entry


class _Moved(NamedTuple):
    """Rows of a bank that go into a new one, and the new numbers of their places."""

    bank: Bank
    rows: np.ndarray
    place: np.ndarray


class _Told:
    """Turns rows written into places done."""

    def __init__(self, progress: Callable[[int], None] | None, places: int, rows: int) -> None:
        self._progress, self._places, self._all = progress, places, max(rows, 1)
        self._rows = self._told = 0

    def rows(self, count: int) -> None:
        self._rows += count
        self._tell(min(self._places, self._places * self._rows // self._all))

    def whole(self) -> None:
        self._tell(self._places)

    def _tell(self, places: int) -> None:
        if self._progress is not None and places > self._told:
            self._progress(places - self._told)
        self._told = places


def _merged(picks: Sequence[_Moved], count: int, written: Callable[[int], None]) -> Iterable[memoryview | bytes]:
    layout = picks[0].bank.strips.layout
    yield replace(layout, count=count).header()
    at_once = 16 * max(1, _BYTES_AT_ONCE // layout.block_bytes)  # whole blocks
    begins = np.cumsum([0] + [len(rows) for _, rows, _ in picks])
    for first in range(0, count, at_once):
        last = min(first + at_once, count)
        parts = [
            (bank.strips, torch.from_numpy(rows[max(first - begin, 0) : last - begin]).to(bank.strips.device))
            for (bank, rows, _), begin in zip(picks, begins[:-1].tolist(), strict=True)
            if begin < last and begin + len(rows) > first
        ]
        yield StripBank.join(parts).blocks.cpu().numpy().data
        written(last - first)
