"""An index whose places lie in shards that workers hold: what `Locator` and evaluation use of a `PlaceIndex`.

The answer is that of one index to the last bit, and says how much of the index it saw. Where shards are missing it is
an error, or with `on_missing="partial"` the answer of what is left, which says so.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from geoloc_fast.cluster.asking import Group, ask
from geoloc_fast.cluster.executor import Executor, Worker, connect
from geoloc_fast.cluster.shards import ShardMap
from geoloc_fast.errors import ClusterError, MissingShardsError, OtherModelError, PlaceIndexError, ReplacedIndexError
from geoloc_fast.geo.regions import Region
from geoloc_fast.index import Coverage, Missing, Neighbours, Place
from geoloc_fast.index import search as searching
from geoloc_fast.index.search import Call, Lists
from geoloc_fast.layers import Layer, QueryStrips
from geoloc_fast.ops import checks
from geoloc_fast.retrieval import MAX_K

__all__ = ["ShardedIndex", "ShardedNeighbours"]

log = logging.getLogger("geoloc_fast.cluster")

_ON_MISSING = ("error", "partial")
_OPEN_S = 120.0
_REGIONS = 64
_OLD_S = 30.0  # searches of an older commit are given this long to end


class ShardedNeighbours(Neighbours):
    """Neighbours, and how much of the index they were sought in."""

    _coverage: Coverage

    @property
    def coverage(self) -> Coverage:
        return self._coverage

    @classmethod
    def of(cls, found: Neighbours, coverage: Coverage) -> ShardedNeighbours:
        made = cls._make(found)
        made._coverage = coverage
        return made

    def photo(self, n: int) -> ShardedNeighbours:
        return ShardedNeighbours.of(super().photo(n), self.coverage)

    def first(self, k: int) -> ShardedNeighbours:
        return ShardedNeighbours.of(super().first(k), self.coverage)


@dataclass
class _Opened:
    """The shards of one map, and the workers that hold them."""

    map: ShardMap
    layers: tuple[Layer, ...]
    groups: dict[int, Group]
    workers: list[Worker]
    users: int = 0
    idle: threading.Condition = field(default_factory=threading.Condition)

    regions: dict[Region | None, list[int]] = field(default_factory=dict)
    """The shards that can hold places of the last regions that were asked for."""

    def touching(self, region: Region | None) -> list[int]:
        found = self.regions.get(region)
        if found is None:
            if len(self.regions) >= _REGIONS:
                self.regions.clear()
            found = self.regions[region] = self.map.touching(region)
        return found

    def stop(self) -> None:
        """Once nobody uses it any more."""
        with self.idle:
            self.idle.wait_for(lambda: not self.users, _OLD_S)
        for worker in self.workers:
            worker.stop()


class _LostNow(Exception):
    """Shards were lost on the way."""


class _Search:
    """The shards of one search as the parts that `index/search.py` asks."""

    def __init__(self, opened: _Opened, numbers: Sequence[int], limit: Any) -> None:
        self.opened, self.numbers, self.limit = opened, list(numbers), limit
        self.lost: dict[int, str] = {}

    def _ask(self, method: str, size: int, args: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        groups = {number: self.opened.groups[number] for number in self.numbers}
        answers, lost = ask(groups, method, args, self.limit(), size)
        if lost:
            self.lost |= lost
            self.numbers = [number for number in self.numbers if number not in lost]
            raise _LostNow
        return [answers[number] for number in self.numbers]

    def _everyone(self, method: str, call: Call, count: int) -> list[Any]:
        return self._ask(method, len(call.query.centre), dict.fromkeys(self.numbers, (call, count)))

    def whole(self, call: Call) -> bool:
        return all(self.opened.map.most[layer.name] <= layer.scanned_rows for layer in call.taking)

    def nearest(self, call: Call, k: int) -> list[Neighbours]:
        return self._everyone("nearest", call, k)

    def lists(self, call: Call, length: int) -> list[Lists]:
        return self._everyone("lists", call, length)

    def scored(self, call: Call, places: Sequence[np.ndarray]) -> list[Neighbours]:
        args = {number: (call, own) for number, own in zip(self.numbers, places, strict=True)}
        return self._ask("scored", len(call.query.centre), args)


class ShardedIndex:
    """Shards as one index. `open` one; use it in a `with`, or `close` it. Safe to search from several threads.

    `counts` has searches, answers of a part ("partial"), those refused, and hedges, failures and losses of all shards;
    `latency()` the time of calls. "geoloc_fast.cluster" logs losses, recoveries and answers of a part, and, of level
    INFO, every hedge and, at the end, counts and times.
    """

    def __init__(
        self,
        path: Path,
        executor: Executor,
        *,
        own: bool,
        device: str,
        on_missing: str,
        deadline_s: float,
        threads: int,
    ) -> None:
        self.path = path
        self.on_missing, self.deadline_s = on_missing, deadline_s
        self._executor, self._own, self._device, self._threads = executor, own, device, threads
        self._counts: Counter[str] = Counter()  # and those of shards that were replaced
        self._name = secrets.token_hex(3)  # several programs may search the same shards
        self._refreshing, self._switching = threading.Lock(), threading.Lock()
        self._opened = self._open(ShardMap.read(path))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        cluster: str | Executor = "local",
        *,
        model: str | None = None,
        device: str = "cpu",
        on_missing: str = "error",
        deadline_s: float = 10.0,
        threads: int = 0,
    ) -> ShardedIndex:
        """The shards of a folder, each opened by workers of its own, which are there when this returns.

        Args:
            path: of the folder that `cut` made; the same on every machine.
            cluster: "local", "ray://HOST:PORT", or an executor, which stays open.
            model: fingerprint of the model it is to be used with, if that is to be checked.
            device: where each shard is searched.
            on_missing: "error", or "partial": the answer of the shards that are there, without the others.
            deadline_s: a search that cannot be answered ends after this long.
            threads: of each worker; default the cores of this machine shared among the shards.
        """
        checks.choice("on_missing", on_missing, _ON_MISSING)
        if not checks.finite("deadline_s", deadline_s) > 0:
            raise ValueError(f"deadline_s: expected above 0, got {deadline_s}")
        ShardMap.read(path)  # says what is wrong before anything is started
        own = isinstance(cluster, str)
        executor = connect(cluster) if isinstance(cluster, str) else cluster
        try:
            index = cls(
                Path(path), executor, own=own, device=device, on_missing=on_missing, deadline_s=deadline_s,
                threads=threads,
            )  # fmt: skip
        except BaseException:
            if own:
                executor.close()
            raise
        try:
            if model is not None:
                index.check_model(model)
        except BaseException:
            index.close()
            raise
        return index

    def close(self) -> None:
        """Ends the workers."""
        log.info("%s: closed after %s, seconds of a call to a shard: %s", self.path, dict(self.counts), self.latency())
        self._opened.stop()
        if self._own:
            self._executor.close()

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, found: ShardMap) -> _Opened:
        threads = self._threads or max(1, len(os.sched_getaffinity(0)) // len(found.shards))
        workers: list[Worker] = []
        groups: dict[int, Group] = {}
        try:
            for number, entry in enumerate(found.shards):
                own = []
                for copy, label in enumerate(entry.replicas):
                    name = f"geoloc_fast {found.index[:8]} {found.commit} {number}.{copy} {self._name}"
                    args = (str(self.path.resolve()), entry, found.model, self._device)
                    own.append(
                        self._executor.start(
                            name, "geoloc_fast.cluster.replica:Replica", *args, threads=threads, label=label,
                            gpus=0 if self._device == "cpu" else 1,
                        )
                    )  # fmt: skip
                workers += own
                groups[number] = Group.of(entry.name, own)
            layers = self._greeted(found, groups)
        except BaseException:
            for worker in workers:
                worker.stop()
            raise
        return _Opened(found, layers, groups, workers)

    def _greeted(self, found: ShardMap, groups: Mapping[int, Group]) -> tuple[Layer, ...]:
        """The layers of all shards, once a replica of each serves."""
        until = time.monotonic() + _OPEN_S
        calls = [
            (number, replica.worker.call("opened")) for number, group in groups.items() for replica in group.replicas
        ]
        layers: tuple[Layer, ...] | None = None
        serving: set[int] = set()
        problems: dict[int, BaseException] = {}
        for number, call in calls:
            if number in serving:
                continue
            try:
                answer = call.result(max(0.0, until - time.monotonic()))
            except Exception as error:
                problems[number] = error
                continue
            serving.add(number)
            layers = layers or answer.layers
            if answer.layers != layers:
                raise PlaceIndexError(
                    f"{self.path / found.shards[number].name}: has other layers than the other shards"
                )
        for number, problem in problems.items():
            if number in serving:
                log.warning("a replica of shard %s does not serve: %s", found.shards[number].name, problem)
            elif isinstance(problem, (PlaceIndexError, ClusterError)):
                raise problem
            else:
                text = str(problem) or type(problem).__name__
                name = found.shards[number].name
                raise ClusterError(f"{self.path / name}: no replica serves it ({text})") from problem
        assert layers is not None
        return layers

    def refresh(self) -> bool:
        """Takes the newest map; whether it is another one. Its shards are opened beside the old ones, which answer
        until the new ones can; no search fails for it."""
        with self._refreshing:
            found = ShardMap.read(self.path)
            before = self._opened
            if found.commit == before.map.commit and found == before.map:
                return False
            if found.index != before.map.index or found.commit <= before.map.commit:
                raise ReplacedIndexError(
                    f"{self.path}: holds shards of another index now, or older ones of this; open it anew"
                )
            after = self._open(found)
            with self._switching:
                self._opened = after
            log.warning("%s: commit %d is searched now, after %d", self.path, found.commit, before.map.commit)
            before.stop()
            for group in before.groups.values():
                self._counts.update(group.counts)
            return True

    @contextmanager
    def _used(self) -> Iterator[_Opened]:
        """The shards of now, which stay open as long."""
        with self._switching:
            opened = self._opened
            with opened.idle:
                opened.users += 1
        try:
            yield opened
        finally:
            with opened.idle:
                opened.users -= 1
                opened.idle.notify_all()

    # --- what it is --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Places of all shards, whether or not they answer."""
        return self._opened.map.places

    def __repr__(self) -> str:
        return f"ShardedIndex({str(self.path)!r}, {len(self)} places in {len(self._opened.groups)} shards)"

    @property
    def model(self) -> str:
        """Fingerprint of the model whose strips these are."""
        return self._opened.map.model

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What it holds of a place."""
        return self._opened.layers

    @property
    def dtype(self) -> str:
        """How strips are stored."""
        return self._opened.map.dtype

    @property
    def commit(self) -> int:
        """Of the index that was cut."""
        return self._opened.map.index_commit

    @property
    def index_id(self) -> str:
        """Of the index that was cut."""
        return self._opened.map.index

    @property
    def filled(self) -> frozenset[str]:
        """Names of the layers in which some place has a row."""
        return frozenset(name for name, most in self._opened.map.most.items() if most)

    @property
    def counts(self) -> Counter[str]:
        """What happened since it was opened."""
        found = Counter(self._counts)
        for group in self._opened.groups.values():
            found.update(group.counts)
        return found

    def latency(self) -> dict[str, float]:
        """Seconds of the last calls of shards: "median", "p95", "calls"."""
        took = [seconds for group in self._opened.groups.values() for each in group.took.values() for seconds in each]
        if not took:
            return {"calls": 0}
        return {"calls": len(took), "median": float(np.median(took)), "p95": float(np.quantile(took, 0.95))}

    def check_model(self, model: str | None) -> None:
        """OtherModelError unless it is the model of this index."""
        if model != self.model:
            raise OtherModelError(
                f"{self.path}: holds strips of model {self.model[:12]}, got model {str(model)[:12]}: "
                "use the model it was built with, or build an index with this one"
            )

    def info(self) -> dict[str, Any]:
        """Plain values, printable as JSON."""
        found = self._opened.map
        return {
            "path": str(self.path),
            "index": found.index,
            "commit": found.index_commit,
            "model": found.model,
            "dtype": found.dtype,
            "places": found.places,
            "bytes": sum(shard.bytes for shard in found.shards),
            "shards": {
                shard.name: {"places": shard.places, "box": shard.box, "replicas": list(shard.replicas)}
                for shard in found.shards
            },
            "counts": dict(self.counts),
            "latency": self.latency(),
        }

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
    ) -> ShardedNeighbours:
        """As `PlaceIndex.search`, with `coverage`. MissingShardsError if shards did not answer and no answer without
        them was asked for, or none could be given."""
        until = time.monotonic() + self.deadline_s

        def limit() -> float:
            """A part leaves time to go on without what it lacks."""
            now = time.monotonic()
            return until if self.on_missing == "error" else now + max(0.0, until - now) / 2

        with self._used() as opened:
            numbers = opened.touching(within)
            asked = _Search(opened, numbers, limit)
            self._counts["searches"] += 1
            while True:
                try:
                    found = searching.search(
                        asked, opened.layers, query, k, layers=layers, select=select, within=within, depth=depth,
                        device=torch.device("cpu"),
                    )  # fmt: skip
                except _LostNow:
                    if self.on_missing == "partial" and asked.numbers and time.monotonic() < until:
                        continue
                    raise self._refused(opened, numbers, asked.lost) from None
                break
        coverage = _coverage(opened.map, numbers, asked.lost)
        if coverage.complete:
            return ShardedNeighbours.of(found, coverage)
        if np.any(found.id[:, :1] < 0):
            raise self._refused(opened, numbers, asked.lost)
        self._counts["partial"] += 1
        log.warning("%d of %d places were searched; missing: %s", *coverage[:2], _names(coverage))
        return ShardedNeighbours.of(found._replace(exact=np.zeros_like(found.exact)), coverage)

    def _refused(self, opened: _Opened, numbers: Sequence[int], lost: Mapping[int, str]) -> MissingShardsError:
        self._counts["refused"] += 1
        coverage = _coverage(opened.map, numbers, lost)
        return MissingShardsError(
            f"{self.path}: {len(lost)} of {len(numbers)} shards did not answer ({_names(coverage)}); "
            f"{coverage.searched} of {coverage.there} places could be searched: try again, or open it with "
            'on_missing="partial"',
            coverage,
        )

    # --- what else is asked of an index ------------------------------------------------------------------

    def _of_all(self, method: str, within: Region | None, *args: Any) -> list[Any]:
        """What every shard that can know says; MissingShardsError if one does not: a list has no coverage."""
        with self._used() as opened:
            numbers = opened.touching(within)
            groups = {number: opened.groups[number] for number in numbers}
            answers, lost = ask(groups, method, dict.fromkeys(numbers, args), time.monotonic() + self.deadline_s)
            if lost:
                raise self._refused(opened, numbers, lost)
            return [answers[number] for number in numbers]

    def _placed(self, within: Region | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(id, lat, lon), ids ascending."""
        ids = np.concatenate([np.zeros(0, np.int64), *self._of_all("ids", within, within)])
        places = self._of_all("positions", within, within)
        order = np.argsort(ids)
        lat, lon = (np.concatenate([np.zeros(0), *(each[n] for each in places)]) for n in (0, 1))
        return ids[order], lat[order], lon[order]

    def ids(self, within: Region | None = None) -> np.ndarray:
        """Ids of all places, or those in a region, ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.int64), *self._of_all("ids", within, within)]))

    def positions(self, within: Region | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lat, lon) of all places, or those in a region, in the order of `ids`; NaN where there is none."""
        return self._placed(within)[1:]

    def keys(self) -> dict[str, int]:
        """key -> id of all places that have a key (the first id, where a key was added twice)."""
        found: dict[str, int] = {}
        for key, number in sorted((item for keys in self._of_all("keys", None) for item in keys.items()), key=_by_id):
            found.setdefault(key, number)
        return found

    def places(self, ids: Iterable[int] | np.ndarray) -> list[Place]:
        """The places of these ids, in this order. KeyError if one is not there, or its shard does not answer and
        `on_missing` is "partial"."""
        wanted = [int(number) for number in ids]
        with self._used() as opened:
            args = dict.fromkeys(opened.groups, (np.array(wanted, np.int64),))
            answers, lost = ask(opened.groups, "places", args, time.monotonic() + self.deadline_s)
        if lost and self.on_missing == "error":
            raise self._refused(opened, list(opened.groups), lost)
        found = {place.id: place for places in answers.values() for place in places}
        for number in wanted:
            if number not in found:
                raise KeyError(f"ids: there is no place {number}" + (" in the shards that answer" if lost else ""))
        return [found[number] for number in wanted]


def _by_id(item: tuple[str, int]) -> int:
    return item[1]


def _coverage(found: ShardMap, numbers: Sequence[int], lost: Mapping[int, str]) -> Coverage:
    there = sum(found.shards[number].places for number in numbers)
    missing = tuple(
        Missing(found.shards[number].name, found.shards[number].places, found.shards[number].box, reason)
        for number, reason in sorted(lost.items())
    )
    return Coverage(there - sum(one.places for one in missing), there, missing)


def _names(coverage: Coverage) -> str:
    return ", ".join(one.name for one in coverage.missing)
