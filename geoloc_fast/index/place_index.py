"""The reference database: a folder of places, what is known of them in each layer, and every change as a commit.

    00000012.commit       the whole state as of commit 12 (geoloc_fast/index/commits.py has the order of a commit)
    00000012.sha256       checksums of all its files, for `sha256sum -c`
    NAME.places           immutable segments (geoloc_fast/index/segment.py)
    NAME.LAYER.strips
    incoming/             segments that wait for a commit to adopt them

Any number of processes read while one writes. A reader has a snapshot: what it maps stays as it was when it opened,
whatever is committed or deleted meanwhile, until it calls `refresh`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from geoloc_fast.errors import (
    DamagedIndexError,
    IndexVersionError,
    OtherModelError,
    PlaceIndexError,
    ReplacedIndexError,
    UnsureCommitError,
)
from geoloc_fast.geo.regions import Region
from geoloc_fast.index import commits, incoming
from geoloc_fast.index import search as searching
from geoloc_fast.index.arguments import checked_ids, checked_layers, checked_places
from geoloc_fast.index.attributes import Value, joined, values_of
from geoloc_fast.index.commits import LAST_ID, IndexState, Kept
from geoloc_fast.index.folder import Folder, Lock, damaged
from geoloc_fast.index.merge import Neighbours
from geoloc_fast.index.search import Segments
from geoloc_fast.index.segment import Segment, merge_segments, write_segment
from geoloc_fast.index.verify import problems, restore
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.ops import checks
from geoloc_fast.progress import Progress
from geoloc_fast.retrieval import MAX_K

__all__ = ["Place", "PlaceIndex"]


DTYPES = ("bf16", "fp32")
MOST_SEGMENTS = 32  # from here on a writer merges the small ones
_LEFT_SECONDS = 60.0  # a folder that is being made is locked all but the first moment


@dataclass(frozen=True)
class Place:
    """One row of the place table."""

    id: int
    lat: float | None
    lon: float | None
    key: str
    attributes: dict[str, Value] = field(default_factory=dict)
    """What is known of it; what is not is not there."""


@dataclass(frozen=True)
class _Snapshot:
    state: IndexState
    segments: tuple[Segment, ...]


class PlaceIndex:
    """Places and their strips, on disk. `create` or `open` one; use it in a `with` statement, or `close` it.

    Ids are int64, count up from 0 and are never reused. Several threads may search at once.
    """

    def __init__(
        self,
        path: Path,
        folder: Folder,
        snapshot: _Snapshot,
        device: torch.device,
        lock: Lock | None,
        kept: Kept | None,
    ) -> None:
        self.path = path
        self._folder = folder
        self._snapshot = snapshot
        self._device = device
        self._lock = lock
        self._kept = kept

    # --- opening -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        model: str,
        layers: Sequence[Layer],
        dtype: str = "bf16",
    ) -> PlaceIndex:
        """Creates an empty index and opens it for writing. The folder is complete or absent.

        Args:
            path: of a folder that does not exist, or is empty.
            model: fingerprint of the model whose strips it will hold.
            layers: those of the model; name, strip, score, column0_deg and scanned_rows become the index's.
            dtype: of the stored values: "bf16" or "fp32".
        """
        if not isinstance(model, str) or not model:
            raise ValueError(f"model: expected the fingerprint of a model, got {model!r}")
        checks.choice("dtype", dtype, DTYPES)
        state = IndexState(secrets.token_hex(16), model, dtype, checked_layers(layers))
        _make_folder(Path(path), state, None)
        return cls.open(path, "write")

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Whether the folder holds an index, whole or not."""
        return any(Path(path).glob("*.commit"))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: str = "read",
        *,
        model: str | None = None,
        device: str | torch.device = "cpu",
    ) -> PlaceIndex:
        """The index in a folder; nothing of its segments is read before a search needs it.

        Args:
            mode: "read", or "write", which one process at a time can have.
            model: fingerprint of the model it is to be used with, if that is to be checked.
            device: where its strips are searched; those of another device than "cpu" are copied there.
        """
        checks.choice("mode", mode, ("read", "write"))
        where, place = Path(path), torch.device(device)
        folder = _folder(where)
        commits.last(folder)  # says what is wrong before anything is locked
        lock = Lock(folder) if mode == "write" else None
        try:
            snapshot = _load(folder, place, ())
            index = cls(where, folder, snapshot, place, lock, Kept(folder, snapshot.state) if lock else None)
            if model is not None:
                index.check_model(model)
            if index._kept is not None:
                index._tidy()
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return index

    def close(self) -> None:
        """Ends writing, so that another process may write. Searching still works."""
        if self._lock is not None:
            self._lock.release()
            self._lock = self._kept = None

    def __enter__(self) -> PlaceIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def refresh(self) -> bool:
        """Takes the newest snapshot. Returns whether it differs from the previous one.

        ReplacedIndexError if the folder now holds another index, or none; the old snapshot then stays."""
        old = self._snapshot
        if not self._folder.is_at(self.path):
            raise ReplacedIndexError(
                f"{self.path}: is not the folder that was opened: it was moved, or another was put there; open it anew"
            )
        if commits.last(self._folder) == old.state.commit and self._digest() == old.state.digest:
            return False
        new = _load(self._folder, self._device, old.segments)
        if new.state.index != old.state.index or new.state.commit <= old.state.commit:
            raise ReplacedIndexError(
                f"{self.path}: holds another index now (commit {new.state.commit}, it was {old.state.commit}), or an "
                "older copy of this one; open it anew"
            )
        self._snapshot = new
        if self._kept is not None:
            self._kept = Kept(self._folder, new.state)
        return True

    def _digest(self) -> str:
        """Of the commit this is a snapshot of, as it is on disk now."""
        try:
            return commits.read(self._folder, self.commit).digest
        except FileNotFoundError:
            return ""

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
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the index. Weights, and the score of an absent layer, belong to the model."""
        return self._snapshot.state.layers

    @property
    def dtype(self) -> str:
        """How strips are stored: "bf16" or "fp32"."""
        return self._snapshot.state.dtype

    @property
    def commit(self) -> int:
        """Number of the commit that this snapshot shows."""
        return self._snapshot.state.commit

    @property
    def digest(self) -> str:
        """Digest of the commit: two indexes with the same digest are identical."""
        return self._snapshot.state.digest

    @property
    def index_id(self) -> str:
        """Drawn at random when the index was made; 32 hexadecimal digits."""
        return self._snapshot.state.index

    def most(self) -> dict[str, int]:
        """For each layer, the largest number of rows of a place."""
        banks = [segment.entry.banks for segment in self._snapshot.segments]
        return {
            layer.name: max([0, *(bank[layer.name].most for bank in banks if layer.name in bank)])
            for layer in self.layers
        }

    def check_model(self, model: str | None) -> None:
        """OtherModelError unless it is the model of this index."""
        if model != self.model:
            raise OtherModelError(
                f"{self.path}: holds strips of model {self.model[:12]}, got model {str(model)[:12]}: "
                "use the model it was built with, or build an index with this one"
            )

    def parts(self) -> Segments:
        """The parts of this snapshot that a search reads."""
        return Segments(self._segments())

    def _segments(self) -> tuple[Segment, ...]:
        """Those of the snapshot, as safe to read as a look at their files can make them."""
        segments = self._snapshot.segments
        for segment in segments:
            segment.check()
        return segments

    @property
    def filled(self) -> frozenset[str]:
        """Names of the layers in which some place has a row."""
        return frozenset(name for segment in self._segments() for name, bank in segment.banks.items() if len(bank))

    def info(self) -> dict[str, Any]:
        """Plain values, printable as JSON."""
        state, segments = self._snapshot.state, self._segments()
        lat, lon = self.positions()
        known = ~np.isnan(lat)
        lat, lon = lat[known], lon[known]
        edges = [float(value) for value in (lat.min(), lon.min(), lat.max(), lon.max())] if len(lat) else [None] * 4
        names = ("channels", "height", "columns")
        return {
            "path": str(self.path),
            "format": commits.FORMAT_VERSION,
            "index": state.index,
            "model": state.model,
            "layers": {
                layer.name: {
                    **dict(zip(names, layer.strip, strict=True)),
                    "score": layer.score,
                    "column0_deg": layer.column0_deg,
                    "rows": sum(len(segment.banks[layer.name]) for segment in segments if layer.name in segment.banks),
                }
                for layer in state.layers
            },
            "dtype": state.dtype,
            "attributes": dict(state.attributes),
            "places": len(self),
            "removed": sum(len(segment) for segment in segments) - len(self),
            "next_id": state.next_id,
            "bounds": dict(zip(("south", "west", "north", "east"), edges, strict=True)),
            "segments": len(segments),
            "bytes": sum(entry.bytes for _, entry in state.files()),
            "commit": state.commit,
            "changed_at": state.at,
        }

    def history(self) -> list[dict[str, Any]]:
        """The commits that are still kept, oldest first: number, time, and what was done to how many places."""
        found = []
        for number in commits.numbers(self._folder.names()):
            with suppress(FileNotFoundError, DamagedIndexError, IndexVersionError):
                state = commits.read(self._folder, number)
                found.append({"commit": number, "at": state.at, "verb": state.verb, "changed": state.changed})
        return found

    def ids(self, within: Region | None = None) -> np.ndarray:
        """Ids of all places, or those in a region, ascending."""
        parts = [segment.ids(segment.places(within)) for segment in self._segments()]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def positions(self, within: Region | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lat, lon) of all places, or those in a region, in the order of `ids`; NaN where there is none."""
        rows = [(segment, segment.places(within)) for segment in self._segments()]
        lat = np.concatenate([np.zeros(0), *(segment.lat[row] for segment, row in rows)])
        return lat, np.concatenate([np.zeros(0), *(segment.lon[row] for segment, row in rows)])

    def keys(self) -> dict[str, int]:
        """key -> id of all places that have a key (the first id, where a key was added twice)."""
        found: dict[str, int] = {}
        for segment in self._segments():
            rows = segment.places()
            for key, number in zip(segment.texts("key", rows), segment.ids(rows).tolist(), strict=True):
                if key:
                    found.setdefault(key, number)
        return found

    def there(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        """bool [n]: whether each id is that of a place."""
        wanted = checked_ids(ids)
        found = np.zeros(len(wanted), bool)
        for segment in self._segments():
            found[segment.find(wanted)[0]] = True
        return found

    def places(self, ids: Iterable[int] | np.ndarray) -> list[Place]:
        """The places of these ids, in this order. KeyError if one is not there."""
        wanted = checked_ids(ids)
        result: list[Place | None] = [None] * len(wanted)
        for segment in self._segments():
            here, row = segment.find(wanted)
            if not len(here):
                continue
            numbers, lat, lon = segment.ids(row).tolist(), segment.lat[row].tolist(), segment.lon[row].tolist()
            keys = segment.texts("key", row)
            known = {
                name: values_of(kind, segment.stored(name, kind, row)) for name, kind in segment.attributes.items()
            }
            for i, at in enumerate(here.tolist()):
                attributes = {name: value for name, values in known.items() if (value := values[i]) is not None}
                somewhere = lat[i] == lat[i]
                result[at] = Place(
                    numbers[i], lat[i] if somewhere else None, lon[i] if somewhere else None, keys[i], attributes
                )
        for number, place in zip(wanted.tolist(), result, strict=True):
            if place is None:
                for segment in self._snapshot.segments:
                    if not segment.ids_ascend():  # then nothing is found in it
                        raise damaged(segment.path, "its ids do not ascend")
                raise KeyError(f"ids: there is no place {number}")
        return [place for place in result if place is not None]

    def strips(self, layer: str, ids: Iterable[int] | np.ndarray) -> Rows:
        """The stored rows of places in a layer, in the order of the ids. KeyError if a place does not exist."""
        checks.choice("layer", layer, [one.name for one in self.layers])
        wanted, shape = checked_ids(ids), self._snapshot.state.layer(layer).strip
        found: list[torch.Tensor] = [torch.zeros(0, *shape)]
        places, there = [np.zeros(0, np.int64)], np.zeros(len(wanted), bool)
        for segment in self._segments():
            here, row = segment.find(wanted)
            there[here] = True
            bank = segment.banks.get(layer)
            if bank is None or not len(here):
                continue
            rows = bank.rows(row)
            taken = torch.from_numpy(rows[rows >= 0]).to(bank.strips.device)
            found.append(bank.strips.unpack(taken).cpu())
            places.append(np.repeat(here, (rows >= 0).sum(axis=1)))
        if not there.all():
            raise KeyError(f"ids: there is no place {wanted[~there][0]}")
        place = np.concatenate(places)
        order = np.argsort(place, kind="stable")
        return Rows(torch.cat(found)[torch.from_numpy(order)], place[order])

    # --- search ------------------------------------------------------------------------------------------

    def search(
        self,
        query: Mapping[str, QueryStrips],
        k: int = 10,
        *,
        layers: Sequence[Layer] | None = None,
        select: str = "correlation",
        within: Region | None = None,
        depth: int = MAX_K,
    ) -> Neighbours:
        """Finds the k best places for some queries, by the weighted sum of all layers at one heading.

        The same answer however the places are spread over segments. `exact` says for each query whether it is certain
        that no other place belongs among them.

        Args:
            query: strips by layer; a query that has nothing in a layer has width 0 there.
            layers: those of the model, for their weights, what stands in where something is absent, and how many rows
                of a place are scanned; default weight 1, and 0 for what is absent.
            select: as in `strip_topk`, while one layer takes part; with several it is "cosine".
            within: search this region only.
            depth: no layer's list of best places grows longer than this.
        """
        return searching.search(
            self.parts(), self.layers, query, k, layers=layers, select=select, within=within,
            depth=depth, device=self._device,
        )  # fmt: skip

    # --- changes -----------------------------------------------------------------------------------------

    def add(
        self,
        rows: Mapping[str, Rows],
        *,
        model: str | None,
        lat: Any,
        lon: Any,
        key: Sequence[str] | None = None,
        attributes: Mapping[str, Sequence[Value | None]] | None = None,
    ) -> np.ndarray:
        """Adds places in one commit; returns their ids, int64 [N]. When it returns, they survive a power failure.

        Args:
            rows: what the places have, by layer.
            model: fingerprint of the model that made them; it must be that of the index.
            lat, lon: [N] degrees, WGS84; None where a place has no position.
            key: names of your own for the places.
            attributes: what else is known of them, by name: texts, dates, integers or floats, None where it is not
                known. What kind a name is, the first place that has it says.
        """
        before = self._writable()
        self.check_model(model)
        columns, layers, kinds = checked_places(before, rows, lat, lon, key, attributes)
        count = len(columns["id"])
        if not count:
            return np.zeros(0, np.int64)
        if before.next_id > LAST_ID - count - 1:
            raise PlaceIndexError(f"{self.path}: there are no ids left")
        columns["id"] = columns["id"] + before.next_id

        def change() -> IndexState:
            state = replace(before, attributes=joined(before.attributes, kinds), segments=self._merged_small(before))
            entry = write_segment(self._folder, columns, layers)
            return replace(state, next_id=before.next_id + count, segments=(*state.segments, entry))

        self._commit(change, "add", count)
        ids: np.ndarray = columns["id"]
        return ids

    def leave(
        self,
        rows: Mapping[str, Rows],
        *,
        model: str | None,
        lat: Any,
        lon: Any,
        key: Sequence[str] | None = None,
        attributes: Mapping[str, Sequence[Value | None]] | None = None,
        name: str | None = None,
    ) -> str:
        """Writes places that wait in `incoming/` until a writer adopts them; returns the name of the segment.

        It needs no lock: any number of processes leave segments while one writes. Arguments as of `add`, and

        Args:
            name: of the segment, 32 hexadecimal digits, so that the same places are left once however often somebody
                tries; default drawn at random.
        """
        if name is not None and re.fullmatch(r"[0-9a-f]{32}", name) is None:
            raise ValueError(f"name: expected 32 hexadecimal digits, got {name!r}")
        self.check_model(model)
        columns, layers, kinds = checked_places(self._snapshot.state, rows, lat, lon, key, attributes)
        if not len(columns["id"]):
            raise ValueError("rows: expected at least one place to leave, got none")
        return incoming.leave(self._folder, self._snapshot.state, columns, layers, kinds, name)

    def waiting(self) -> list[str]:
        """Names of the segments in `incoming/` that can be adopted."""
        return incoming.waiting(self._folder)

    def left(self, name: str) -> str:
        """sha256 over the checksums of the files of a segment that waits: the same places, the same digest."""
        return incoming.digest(self._folder, name)

    def adopt(self, names: Iterable[str] | None = None, *, merge_small: bool = True) -> dict[str, np.ndarray]:
        """Takes segments over from `incoming/` in one commit; the ids their places got, by name.

        Args:
            names: as `leave` gave them; default all that wait, in the order of their names.
            merge_small: whether many small segments become one, as in `add`; else each stays as it was left.
        """
        before = self._writable()
        assert self._kept is not None
        waiting = set(self.waiting())
        wanted = sorted(waiting) if names is None else list(dict.fromkeys(names))
        for name in wanted:
            if name not in waiting:
                raise PlaceIndexError(f"{self.path}: no segment {name!r} waits in incoming/")
        fresh = [name for name in wanted if name not in self._kept]
        if not fresh:
            return {}
        given: dict[str, np.ndarray] = {}

        def change() -> IndexState:
            state, next_id = before, before.next_id
            if merge_small:
                state = replace(before, segments=self._merged_small(before))
            for name in fresh:
                entry, kinds = incoming.take(self._folder, state, name)
                if next_id > LAST_ID - entry.span - 1:
                    raise PlaceIndexError(f"{self.path}: there are no ids left")
                entry = replace(entry, first_id=next_id)
                given[name] = np.arange(next_id, next_id + entry.places)
                next_id += entry.span
                attributes = joined(state.attributes, kinds)
                state = replace(state, attributes=attributes, next_id=next_id, segments=(*state.segments, entry))
            return state

        self._commit(change, "adopt", len(fresh))
        incoming.forget(self._folder, fresh)
        return given

    def remove(self, ids: Iterable[int] | np.ndarray) -> int:
        """Removes places in one commit; returns how many of them existed. Their ids are not
        given again. `compact` frees their room."""
        state = self._writable()
        wanted = np.unique(checked_ids(ids))
        entries, count = [], 0
        for segment in self._segments():
            _, row = segment.find(wanted)
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

    def compact(self, progress: Progress | None = None, *, keep: int | None = None) -> bool:
        """Rewrites all segments as one, without removed places. Returns whether there was anything to do. Ids stay, and
        every answer stays what it was. Needs room for the new segment beside the old ones.

        Args:
            progress: called as progress(places written, of how many).
            keep: older commits that can be restored afterwards; 0 frees their room at once. Default the newest eight
                commits and those of the last hour.
        """
        state, segments = self._writable(), self._segments()
        told = _counted(progress, len(self))
        todo = len(segments) > 1 or any(entry.removed is not None for entry in state.segments)
        if todo:

            def change() -> IndexState:
                picks = [(segment, segment.places()) for segment in segments]
                return replace(state, segments=(merge_segments(self._folder, picks, state, told),))

            self._commit(change, "compact", len(segments))
        if keep is not None:
            checks.whole("keep", keep, 0)
            self._tidy(keep + 1)
        return todo

    def slice(
        self, out: str | os.PathLike[str], within: Region | np.ndarray, progress: Progress | None = None
    ) -> PlaceIndex:
        """Copies the places of a region, or of given ids, to a new index, opened for reading. They keep their ids."""
        before = self._snapshot.state
        state = IndexState(
            secrets.token_hex(16), before.model, before.dtype, before.layers, before.attributes, before.next_id
        )
        if isinstance(within, np.ndarray):
            wanted = np.unique(checked_ids(within))
            picks = [(segment, np.sort(segment.find(wanted)[1])) for segment in self._segments()]
        else:
            picks = [(segment, segment.places(within)) for segment in self._segments()]
        picks = [(segment, rows) for segment, rows in picks if len(rows)]
        told = _counted(progress, sum(len(rows) for _, rows in picks))

        def fill(folder: Folder) -> IndexState:
            return replace(state, segments=(merge_segments(folder, picks, state, told),))

        _make_folder(Path(out), state, fill if picks else None)
        return PlaceIndex.open(out)

    @staticmethod
    def restore(path: str | os.PathLike[str], commit: int) -> PlaceIndex:
        """Commits the state of an older commit again, after reading every byte of it. Returns the index, writable.

        It also gets an index going again whose last commit is damaged. Ids given since are not given again.
        """
        checks.whole("commit", commit, 0)
        where = Path(path)
        folder = _folder(where)
        commits.last(folder)
        lock = Lock(folder)
        try:
            restore(folder, commit)
        finally:
            lock.release()
        return PlaceIndex.open(path, "write")

    def _writable(self) -> IndexState:
        """The last commit, which is this object's, as the disk has it now."""
        if self._lock is None:
            raise PlaceIndexError(f"{self.path}: opened for reading; PlaceIndex.open(path, 'write') can change it")
        if not self._lock.held:
            raise PlaceIndexError(
                f"{self.path}: was opened for writing by the parent of this process; open it again here"
            )
        state = self._snapshot.state
        if commits.last(self._folder) != state.commit or self._digest() != state.digest:
            raise commits.written_by_another(self._folder, state.commit)
        if self._kept is None or self._kept.newest != state.commit:  # an interruption came between
            self._kept = Kept(self._folder, state)
        return state

    def _commit(self, change: Callable[[], IndexState], verb: str, count: int) -> None:
        """All that can fail comes before the commit takes place, opening the new segments included. If it is made and
        this object does not have it, `_writable` refuses to go on."""
        before = self._snapshot.state
        assert self._kept is not None
        try:
            after, content = commits.numbered(before, change(), verb, count)
            segments = _opened(self._folder, self._device, after, self._snapshot.segments)
            commits.publish(self._folder, after, content)
        except UnsureCommitError:
            raise
        except BaseException as error:
            self._kept.sweep()
            if isinstance(error, OSError):
                raise OSError(error.errno, f"{error}; commit {before.commit} stands, this one does not") from error
            raise
        self._snapshot = _Snapshot(after, segments)
        self._kept.add(after)
        self._kept.drop()

    def _tidy(self, newest: int | None = None) -> None:
        assert self._kept is not None
        self._kept.drop(newest)
        self._kept.sweep()
        incoming.forget(self._folder, [name for name in self.waiting() if name in self._kept])

    def _merged_small(self, state: IndexState) -> tuple[commits.SegmentEntry, ...]:
        """The segments, once there are many the small ones at the end as one: each is merged with those after it that
        are as many places together, so that a place is rewritten as often as their number has doublings."""
        segments = self._segments()
        sizes = [len(segment) for segment in segments]
        first = next((n for n in range(len(sizes)) if sizes[n] <= sum(sizes[n + 1 :])), len(sizes))
        if len(segments) < MOST_SEGMENTS or first == len(sizes):
            return state.segments
        picks = [(segment, segment.places()) for segment in segments[first:]]
        return (*state.segments[:first], merge_segments(self._folder, picks, state))

    # --- the whole ---------------------------------------------------------------------------------------

    def export(self, out: str | os.PathLike[str], within: Region | None = None) -> int:
        """Writes the place table as GeoParquet; returns the number of places. Strips are not in it."""
        import pyarrow as pa

        from geoloc_fast.files import write_atomically
        from geoloc_fast.geo.geoparquet import geoparquet_bytes

        kinds = self._snapshot.state.attributes
        types = {"text": pa.string(), "date": pa.date32(), "int": pa.int64(), "float": pa.float64()}
        parts: dict[str, list[Any]] = {name: [] for name in ("id", "lat", "lon", "key", *kinds)}
        for segment in self._segments():
            rows = segment.places(within)
            parts["id"].append(segment.ids(rows))
            for name, values in (("lat", segment.lat[rows]), ("lon", segment.lon[rows])):
                parts[name].append(pa.array(values, mask=np.isnan(values)))
            parts["key"].append(pa.array(segment.texts("key", rows), pa.string()))
            for name, kind in kinds.items():
                if name in segment.attributes:
                    parts[name].append(pa.array(values_of(kind, segment.stored(name, kind, rows)), types[kind]))
                else:
                    parts[name].append(pa.nulls(len(rows), types[kind]))
        columns = {"id": pa.int64(), "lat": pa.float64(), "lon": pa.float64(), "key": pa.string()}
        columns |= {name: types[kind] for name, kind in kinds.items()}
        table = pa.table({name: pa.chunked_array(parts[name], kind) for name, kind in columns.items()})
        write_atomically(out, geoparquet_bytes(table))
        return int(table.num_rows)

    @staticmethod
    def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> list[str]:
        """Reads every byte of an index and returns a list of problems, which is empty if there are none.

        PlaceIndexError if the folder is no index at all. A writer may go on meanwhile.

        Args:
            progress: called as progress(bytes read, of how many).
        """
        folder = _folder(Path(path))
        size = sum(file.stat().st_size for file in Path(path).iterdir() if file.is_file())
        return problems(folder, _counted(progress, size))


def _counted(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """Tells `progress` how far it is, by being told of each part."""
    if progress is None:
        return None
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return told


def _folder(path: Path) -> Folder:
    try:
        return Folder(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PlaceIndexError(f"{path}: is not a folder; make an index with `geoloc-fast index build`") from error
    except OSError as error:
        raise OSError(error.errno, f"{path}: cannot be opened ({error.strerror}): try again") from error


def _load(folder: Folder, device: torch.device, opened: Sequence[Segment]) -> _Snapshot:
    """Opens every segment of the last commit that is not open yet."""
    while True:
        state = commits.read_last(folder)
        try:
            return _Snapshot(state, _opened(folder, device, state, opened))
        except FileNotFoundError as error:
            # A writer may have compacted between the two; then there is a newer state to read.
            if commits.last(folder) == state.commit:
                raise DamagedIndexError(
                    f"{folder.path / str(error.filename)}: is missing; restore it from a copy, or build the index again"
                ) from error


def _opened(folder: Folder, device: torch.device, state: IndexState, opened: Sequence[Segment]) -> tuple[Segment, ...]:
    """The segments of a state; those that are open with the same content are taken over."""
    known = {tuple(segment.entry.files()): segment for segment in opened}
    found = []
    for entry in state.segments:
        same = known.get(tuple(entry.files()))
        unchanged = same is not None and (same.entry.places, same.entry.span) == (entry.places, entry.span)
        found.append(same.with_entry(entry) if same and unchanged else Segment(folder, state, entry, device))
    return tuple(found)


def _make_folder(path: Path, state: IndexState, fill: Callable[[Folder], IndexState] | None) -> None:
    """A new index under a name that is taken at the end, when it is complete."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        there = path.is_dir() and bool(commits.numbers(os.listdir(path)))
        kind = "there is an index already; open it" if there else "it exists and is not empty"
        raise PlaceIndexError(f"{path}: expected a new folder, but {kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        folder = Folder(temporary)
        lock = Lock(folder)
        try:
            after, content = commits.numbered(state, state, "create", 0)
            commits.publish(folder, after, content)
            if fill is not None:
                filled, content = commits.numbered(after, replace(fill(folder), commit=after.commit), "slice", 0)
                commits.publish(folder, filled, content)
            temporary.chmod(0o755)  # mkdtemp makes it private to this user
            os.replace(temporary, path)
        finally:
            lock.release()
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    parent = Folder(path.parent)
    parent.sync()  # the rename


def _remove_leftovers(path: Path) -> None:
    """Folders of this name that a killed process left half-made; one that is still being made is locked."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]{8}")
    for name in filter(pattern.fullmatch, os.listdir(path.parent)):
        with suppress(OSError, PlaceIndexError):
            folder = Folder(path.parent / name)
            lock = Lock(folder)
            old = time.time() - os.fstat(folder.descriptor).st_mtime > _LEFT_SECONDS
            if old and all(commits.is_ours(file) for file in folder.names()):
                shutil.rmtree(folder.path, ignore_errors=True)
            lock.release()
