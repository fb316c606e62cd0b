"""Build an index with many workers: each encodes units of places with its own model and writes them as segments.

    unit       2,048 rows of the manifest, in its order; its name is a digest of what it is made of
    worker     encodes a unit, writes its segment whole into `incoming/`, and says only that it did
    committer  adopts finished units in the order of the manifest, so that ids are those of an undisturbed run

A unit whose worker is lost is given out again. An interrupted run is gone on with by running it again: what a commit
has is done, what waits under the name of a unit is adopted, the rest is encoded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import NamedTuple

from geoloc_fast.cluster.executor import Executor, Worker, connect
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ClusterError, WorkerLostError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.models.contract import SHIPPED, Model, load_model
from geoloc_fast.ops import checks
from geoloc_fast.progress import Progress
from geoloc_fast.region.cells import build_cell_index, cell_arguments
from geoloc_fast.region.encode import COMMIT_PLACES, Added, Clock, EncodedPlaces, arguments, encode_places, joined

__all__ = ["Encoder", "Left", "Unit", "build"]

log = logging.getLogger("geoloc_fast.cluster")

_TRIES = 12  # of one unit: what kills that many workers kills them all
_REST_S = 1.0
_WORTH_SAYING = 0.2  # share of the workers' time


class Unit(NamedTuple):
    """Places that are encoded together."""

    name: str
    """32 hexadecimal digits, of what it is made of: model and rows of the manifest."""
    rows: list[int]
    """Of the manifest, those that no commit has."""


class Left(NamedTuple):
    """What a worker says of a unit that it left in `incoming/`."""

    unit: str
    path: str | None
    """Of its table of places; None if none of its places has anything to go by."""
    places: int
    synthetic: int
    sha256: str
    """Of its files' checksums."""
    problems: list[str]
    notes: list[str]
    clock: Clock


class Encoder:
    """What runs in a worker.

    Args:
        model, manifest, index: paths, the same on every machine.
        threads: that decode images.
    """

    def __init__(self, model: str | None, device: str, manifest: str, index: str, threads: int) -> None:
        self._model = load_model(model, device)
        self._manifest = Manifest.load(manifest)
        self._index = PlaceIndex.open(index, model=self._model.fingerprint)
        self._threads = threads

    def pid(self) -> int:
        """For tests, which end it."""
        return os.getpid()

    def encode(self, unit: Unit) -> Left:
        """Leaves a unit in `incoming/`."""
        clock = Clock()
        parts = list(encode_places(self._model, self._manifest, unit.rows, threads=self._threads, clock=clock))
        problems = [problem for part in parts for problem in part.problems]
        notes = [note for part in parts for note in part.notes]
        parts = [part for part in parts if part.rows]
        if not parts:
            return Left(unit.name, None, 0, 0, "", problems, notes, clock)
        rows = [row for part in parts for row in part.rows]
        if self._model.kind == "cells":
            whole = EncodedPlaces(rows, joined(parts), [], [])
            given = cell_arguments(self._model, self._manifest, whole)  # type: ignore[arg-type]
        else:
            given = arguments(self._manifest, parts)
        name = self._index.leave(**given, model=self._model.fingerprint, name=unit.name)
        synthetic = sum(self._manifest.place(row)["street_synthetic"] is not None for row in rows)
        path = str(self._index.path / "incoming" / f"{name}.places")
        return Left(name, path, len(rows), synthetic, self._index.left(name), problems, notes, clock)


def build(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | None,
    manifest: str | os.PathLike[str],
    cluster: str | Executor,
    *,
    dtype: str = "bf16",
    device: str = "cpu",
    workers: int | None = None,
    threads: int = 1,
    unit_places: int = COMMIT_PLACES,
    progress: Progress | None = None,
) -> Added:
    """Makes an index of the places of a manifest with the workers of a cluster, or goes on with one that was begun.

    Args:
        path: of the index. Where several machines build it, it lies on the disk of the one that calls this, and the
            others see that folder under the same path.
        model: the path of its bundle, the same on every machine, or the name of one that ships; default the first.
        cluster: "local:8", "ray://HOST:PORT", or an executor, which stays open.
        workers: default what the cluster says: N of "local:N"; of Ray one a GPU, or one a CPU where there is no GPU.
        threads: of each worker, that decode images and, on a CPU, encode them.
        unit_places: places that the loss of a worker can cost.
    """
    checks.whole("unit_places", unit_places, 1)
    checks.whole("threads", threads, 1)
    if workers is not None:
        checks.whole("workers", workers, 1)
    network, places = load_model(model), Manifest.load(manifest)
    own = isinstance(cluster, str)
    executor = connect(cluster) if isinstance(cluster, str) else cluster
    try:
        if not PlaceIndex.exists(path):
            made = PlaceIndex.create(path, model=str(network.fingerprint), layers=network.layers, dtype=dtype)
            made.close()
        with PlaceIndex.open(path, "write", model=network.fingerprint) as index:
            known, names = index.keys(), places.places["id"].to_pylist()
            units = list(_units(network, places, names, known, index.dtype, unit_places))
            result = Added(there_already=len(names) - sum(len(unit.rows) for unit in units))
            count = min(workers or executor.workers, max(1, len(units)))
            given = None if model is None else str(model) if str(model) in SHIPPED else str(Path(model).resolve())
            at = (given, device, str(Path(manifest).resolve()), str(Path(path).resolve()), threads)
            todo = [unit for unit in units if unit.name not in index.waiting()]
            started = [
                executor.start(
                    f"geoloc_fast encoder {index.index_id[:8]} {os.getpid()} {n}", "geoloc_fast.cluster.encode:Encoder",
                    *at, threads=threads, cpus=threads, gpus=0 if device == "cpu" else 1,
                )
                for n in range(count if todo else 0)
            ]  # fmt: skip
            try:
                _run(index, units, todo, started, result, len(names), progress)
            finally:
                for worker in started:
                    worker.stop()
        if network.kind == "cells":
            if result.problems:
                raise ValueError(result.problems[0])
            build_cell_index(path, network, places, dtype=dtype)  # type: ignore[arg-type]  # cells without a tile
        return result
    finally:
        if own:
            executor.close()


def _units(
    model: Model, manifest: Manifest, names: list[str], known: dict[str, int], dtype: str, size: int
) -> Iterator[Unit]:
    for begin in range(0, len(names), size):
        rows = [row for row in range(begin, min(begin + size, len(names))) if names[row] not in known]
        if rows:
            content = json.dumps([model.fingerprint, dtype, [manifest.place(row) for row in rows]], default=str)
            yield Unit(hashlib.sha256(content.encode()).hexdigest()[:32], rows)


def _run(
    index: PlaceIndex, units: list[Unit], todo: list[Unit], workers: list[Worker], result: Added, total: int,
    progress: Progress | None,
) -> None:  # fmt: skip
    queue, tries = deque(todo), dict.fromkeys((unit.name for unit in units), 0)
    finished = {unit.name for unit in units} - {unit.name for unit in todo}
    empty: set[str] = set()
    order = deque(unit.name for unit in units)
    done, clock = result.there_already, Clock()
    running: dict[Future[Left], tuple[Unit, Worker]] = {}

    def send(worker: Worker) -> None:
        if queue:
            unit = queue.popleft()
            tries[unit.name] += 1
            running[worker.call("encode", unit)] = unit, worker

    def commit() -> None:
        """All that is finished up to the first unit that is not."""
        nonlocal done
        ready = []
        while order and order[0] in finished:
            name = order.popleft()
            if name not in empty:
                ready.append(name)
        if ready:
            given = index.adopt(ready, merge_small=False)
            count = sum(map(len, given.values()))
            result.added += count
            done += count
            if progress is not None:
                progress(done, total)

    commit()
    for worker in workers:
        send(worker)
    resting: deque[tuple[float, Worker]] = deque()  # until they have been started again
    while running or resting:
        if running:
            ended, _ = wait(running, _REST_S if resting else None, FIRST_COMPLETED)
        else:
            time.sleep(_REST_S)
            ended = set()
        while resting and resting[0][0] <= time.monotonic():
            send(resting.popleft()[1])
        for future in ended:
            unit, worker = running.pop(future)
            try:
                left = future.result()
            except WorkerLostError as error:
                if tries[unit.name] >= _TRIES:
                    raise ClusterError(
                        f"the worker of unit {unit.name} was lost {_TRIES} times, the last time so: {error}; is there "
                        "memory enough for a model and its images in every worker?"
                    ) from error
                log.warning("unit %s is given out again: %s", unit.name, error)
                queue.appendleft(unit)
                resting.append((time.monotonic() + _REST_S, worker))
            else:
                finished.add(left.unit)
                if left.path is None:
                    empty.add(left.unit)
                log.info("unit %s: %d places, %s", left.unit, left.places, left.sha256)
                result.problems += left.problems
                result.notes.update(left.notes)
                result.synthetic += left.synthetic
                clock.images_s += left.clock.images_s
                clock.model_s += left.clock.model_s
                send(worker)
        commit()
    if workers:
        _say(clock)


def _say(clock: Clock) -> None:
    """Which side waits."""
    spent = clock.images_s + clock.model_s
    share = clock.images_s / spent if spent else 0.0
    hint = "more threads or CPUs decode faster" if share > _WORTH_SAYING else "the model is what takes the time"
    log.warning("workers waited for images %.0f %% of their time: %s", 100 * share, hint)
