"""An index cut into shards by place, and the map that says which shards are one index.

    00000003.shards       the map as of its third commit: text, with a digest, never changed; the highest is the state
    00000003-0000/        a shard: an index of its own (docs/design/index_on_disk.md), whose places keep their ids
    00000003-0001/

Places are in the order of S2's curve, so that a region touches few shards. A map names the commit of each shard by its
digest, and what all ids together are, so that shards which are not those of the map are found out when they are opened.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geoloc_fast.cluster.executor import checked_label
from geoloc_fast.errors import DamagedIndexError, IndexVersionError, PlaceIndexError
from geoloc_fast.geo import s2
from geoloc_fast.geo.regions import Box, Circle, Region
from geoloc_fast.index import PlaceIndex
from geoloc_fast.index.folder import Folder, Lock, damaged
from geoloc_fast.ops import checks
from geoloc_fast.progress import Progress

__all__ = ["ShardEntry", "ShardMap", "cut", "ids_digest"]

_VERSION = 1
_MAP = re.compile(r"(\d{8})\.shards")
_SHARD = re.compile(r"(\d{8})-\d{4}")
_HEAD = re.compile(rb"geoloc_fast shards (\d{1,9})\n")
_HEX = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_MOST_BYTES = 1 << 26
_MOST_SHARDS = 10_000
_KEPT = 2  # maps, with their shards: readers of the one before go on while they switch
_COVER_CELLS = 64


@dataclass(frozen=True)
class ShardEntry:
    """A shard as a map has it."""

    name: str
    """Of its folder, beside the map."""
    digest: str
    """Of its commit."""
    places: int
    ids: int
    """`ids_digest` of its places."""
    first: int
    """S2 leaf cells between which its places lie; both 0 if none has a position."""
    last: int
    box: tuple[float, float, float, float] | None
    bytes: int
    replicas: tuple[str | None, ...]
    """For each copy that answers, the label of the machines it may run on."""


@dataclass(frozen=True)
class ShardMap:
    """Which shards are one index."""

    index: str
    """Id of the index that was cut, and its commit: answers name these."""
    index_commit: int
    index_digest: str
    model: str
    dtype: str
    places: int
    ids: int
    most: dict[str, int]
    """For each layer, the rows of the place that has most."""
    shards: tuple[ShardEntry, ...]
    commit: int
    at: str

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Whether there are shards in the folder."""
        return any(Path(path).glob("*.shards"))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ShardMap:
        """The newest map of a folder. PlaceIndexError if there is none, DamagedIndexError if it is not whole."""
        try:
            folder = Folder(Path(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _none(path) from error
        found = _numbers(folder)
        if not found:
            raise _none(path)
        return _read(folder, found[-1])

    def touching(self, region: Region | None) -> list[int]:
        """Numbers of the shards that can hold places of a region."""
        if not isinstance(region, (Box, Circle)):  # of a polygon the shards themselves find out
            return list(range(len(self.shards)))
        level, cells = 0, s2.cover(region, 0)
        while 0 < len(cells) < _COVER_CELLS and level < s2.MAX_LEVEL:
            level += 1
            cells = s2.cover(region, level)
        reach = np.uint64(1 << (2 * (s2.MAX_LEVEL - level)))  # all below a cell lie so near to its id

        def touches(shard: ShardEntry) -> bool:
            return bool(np.any((cells - reach <= np.uint64(shard.last)) & (cells + reach >= np.uint64(shard.first))))

        return [n for n, shard in enumerate(self.shards) if shard.box is not None and touches(shard)]


def _none(path: str | os.PathLike[str]) -> PlaceIndexError:
    return PlaceIndexError(f"{path}: holds no shards; make them with `geoloc-fast index shard INDEX {path}`")


def _numbers(folder: Folder) -> list[int]:
    return sorted(int(match[1]) for match in map(_MAP.fullmatch, folder.names()) if match)


def ids_digest(ids: np.ndarray) -> int:
    """What some ids are together, whatever their order: of parts it adds up, modulo 2^64."""
    x = ids.astype(np.uint64)
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int((x ^ (x >> np.uint64(31))).sum(dtype=np.uint64))


# --- cutting -----------------------------------------------------------------------------------------------------


def cut(
    index: PlaceIndex,
    out: str | os.PathLike[str],
    shards: int,
    *,
    replicas: int = 1,
    labels: Sequence[str] = (),
    progress: Progress | None = None,
) -> ShardMap:
    """Cuts an index into shards of about as many places each, and makes them the state of the folder in one commit.

    Done again after the index changed, it makes new shards beside the old ones, which stay until the next time.

    Args:
        out: a folder, new or with earlier shards of the same index.
        shards: how many; no more than there are places.
        replicas: how many copies of each shard answer.
        labels: of machines, one replica of a shard for each, in turn; at least as many as replicas. Default: any.
    """
    checks.whole("shards", shards, 1, _MOST_SHARDS)
    checks.whole("replicas", replicas, 1, 100)
    if labels and len(set(labels)) < replicas:
        raise ValueError(f"labels: expected at least {replicas} different ones, one per replica, got {list(labels)}")
    for label in labels:
        checked_label(label)
    if shards > len(index):
        raise ValueError(f"shards: expected at most {len(index)}, the places of {index.path}, got {shards}")
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    folder = Folder(path)
    lock = Lock(folder)
    try:
        number = 1 + _tidied(folder, index)
        ids, (lat, lon) = index.ids(), index.positions()
        somewhere = ~np.isnan(lat)
        leaf = np.full(len(ids), np.iinfo(np.uint64).max, np.uint64)
        leaf[somewhere] = s2.from_lat_lon(lat[somewhere], lon[somewhere], s2.MAX_LEVEL)
        order = np.lexsort((ids, leaf))
        entries, most = [], dict.fromkeys((layer.name for layer in index.layers), 0)
        for n, rows in enumerate(np.array_split(order, shards)):
            name = f"{number:08d}-{n:04d}"
            shard = index.slice(path / name, ids[rows])
            for layer, rows_of_most in shard.most().items():
                most[layer] = max(most[layer], rows_of_most)
            known = rows[somewhere[rows]]
            box = None if not len(known) else (
                float(lat[known].min()), float(lon[known].min()), float(lat[known].max()), float(lon[known].max())
            )  # fmt: skip
            ends = (0, 0) if not len(known) else (int(leaf[known].min()), int(leaf[known].max()))
            where = tuple(labels[(n + r) % len(labels)] if labels else None for r in range(replicas))
            entries.append(
                ShardEntry(
                    name, shard.digest, len(rows), ids_digest(ids[rows]), *ends, box, int(shard.info()["bytes"]), where
                )
            )
            if progress is not None:
                progress(n + 1, shards)
        at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        found = ShardMap(
            index.index_id, index.commit, index.digest, index.model, index.dtype, len(ids), ids_digest(ids), most,
            tuple(entries), number, at,
        )  # fmt: skip
        _publish(folder, found)
    finally:
        lock.release()
    return found


def _tidied(folder: Folder, index: PlaceIndex) -> int:
    """The number of the last map, 0 if there is none; what an interrupted cut left is gone, and old maps but one."""
    found = _numbers(folder)
    others = [name for name in folder.names() if not (_MAP.fullmatch(name) or _SHARD.fullmatch(name))]
    if others and not found:
        raise PlaceIndexError(f"{folder.path}: expected a new folder, or one of shards, but it holds {others[0]!r}")
    if found:
        before = _read(folder, found[-1])
        if before.index != index.index_id:
            raise PlaceIndexError(
                f"{folder.path}: holds shards of another index than {index.path}; choose another folder"
            )
    kept = found[-(_KEPT - 1) :]
    for name in folder.names():
        if (match := _SHARD.fullmatch(name)) and int(match[1]) not in kept:
            shutil.rmtree(folder / name, ignore_errors=True)
    for number in found[: -(_KEPT - 1)]:
        folder.unlink(f"{number:08d}.shards")
    return found[-1] if found else 0


def _publish(folder: Folder, found: ShardMap) -> None:
    body = f"geoloc_fast shards {_VERSION}\n{json.dumps(asdict(found), sort_keys=True, allow_nan=False)}\n".encode()
    content = body + f"sha256 {hashlib.sha256(body).hexdigest()}\n".encode()
    temporary = f"{found.commit:08d}.{secrets.token_hex(16)}.tmp"
    folder.write(temporary, [content])
    try:
        folder.sync()
        folder.link(temporary, f"{found.commit:08d}.shards")
        folder.sync()
    finally:
        with suppress(OSError):
            folder.unlink(temporary)


# --- reading -----------------------------------------------------------------------------------------------------


def _read(folder: Folder, number: int) -> ShardMap:
    name = f"{number:08d}.shards"
    content = folder.read(name, _MOST_BYTES)
    head, body = _HEAD.match(content), content[:-72]
    if head is None or content[-72:] != f"sha256 {hashlib.sha256(body).hexdigest()}\n".encode():
        raise damaged(folder / name, "it has not the digest it was written with")
    if int(head[1]) != _VERSION:
        raise IndexVersionError(f"{folder / name}: is of format {int(head[1])}, this version reads {_VERSION}")
    try:
        found = _map(json.loads(body[head.end() :]))
        if found.commit != number:
            raise ValueError(f"it is commit {found.commit}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(folder / name, f"{type(error).__name__}: {error}") from error
    _check_covers(folder / name, found)
    return found


def _map(document: Any) -> ShardMap:
    shards = tuple(_entry(values) for values in document.pop("shards"))
    found = ShardMap(shards=shards, **document)
    texts = (found.index, found.index_digest, found.model, found.dtype, found.at)
    numbers = (found.index_commit, found.places, found.ids, found.commit, *found.most.values())
    if not (all(isinstance(text, str) for text in texts) and all(_whole(value) for value in numbers) and shards):
        raise ValueError("its values are not those of a map")
    return found


def _entry(values: Any) -> ShardEntry:
    box, replicas = values.pop("box"), values.pop("replicas")
    if box is not None:
        south, west, north, east = box
        Box(south, west, north, east)  # checks what they are
    entry = ShardEntry(box=None if box is None else tuple(box), replicas=tuple(replicas), **values)
    numbers = (entry.places, entry.ids, entry.first, entry.last, entry.bytes)
    if not (all(_whole(value) for value in numbers) and entry.places and entry.replicas):
        raise ValueError(f"shard {entry.name!r:.40}")
    if _SHARD.fullmatch(entry.name) is None or _HEX.fullmatch(entry.digest) is None:
        raise ValueError(f"shard {entry.name!r:.40}")
    for label in entry.replicas:
        if label is not None:
            checked_label(label)
    return entry


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _check_covers(path: Path, found: ShardMap) -> None:
    places, ids = sum(shard.places for shard in found.shards), sum(shard.ids for shard in found.shards) % (1 << 64)
    if (places, ids) != (found.places, found.ids):
        raise DamagedIndexError(
            f"{path}: its shards hold {places} places and do not cover the ids of the {found.places} of the index; cut "
            "the index again with `geoloc-fast index shard`"
        )
