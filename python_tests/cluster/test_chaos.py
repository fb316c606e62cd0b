"""Searches while workers and machines are killed: nothing wrong, nothing short without saying so, nothing slow."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from ray_heads import WITH_RAY, free_port

from geoloc_fast.cluster import ShardedIndex, ShardMap, cut, operate
from geoloc_fast.errors import MissingShardsError
from geoloc_fast.index import Coverage, Neighbours, PlaceIndex, merge
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.testing import random_strips

LAYER = Layer("place", (16, 4, 16), "cosine", 180.0)
PLACES, SEARCHES, EVERY_S = 1200, 300, 2.0
OF_PROCESSES = 60  # searches there: what is promised is promised of actors and machines
LABELS = ["a", "b", "c"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> PlaceIndex:
    path = tmp_path_factory.mktemp("one") / "region.index"
    rng = np.random.default_rng(1)
    with PlaceIndex.create(path, model="b" * 64, layers=(LAYER,)) as index:
        lat, lon = 48 + rng.uniform(0, 0.1, PLACES), 11 + rng.uniform(0, 0.1, PLACES)
        index.add({"place": Rows(random_strips(PLACES, *LAYER.strip))}, model="b" * 64, lat=lat, lon=lon)
    return PlaceIndex.open(path)


def query(seed: int) -> dict[str, QueryStrips]:
    return {"place": QueryStrips(random_strips(1, 16, 4, 5, seed=seed))}


def same(found: Neighbours, expected: Neighbours) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(found[:-1], expected[:-1], strict=True))


class Answers:
    """Of an index from which some shards are missing, by their names."""

    def __init__(self, one: PlaceIndex, index: ShardedIndex) -> None:
        self.one, self.index = one, index
        self.shards = {shard.name: PlaceIndex.open(index.path / shard.name) for shard in index._opened.map.shards}

    def right(self, found: Neighbours, seed: int) -> bool:
        coverage = found.coverage
        assert coverage is not None
        if coverage.complete:
            return same(found, self.one.search(query(seed), 10)) and bool(found.exact.all())
        gone = {missing.name for missing in coverage.missing}
        left = [shard.search(query(seed), 10) for name, shard in self.shards.items() if name not in gone]
        return same(found, merge(left, 10)) and not found.exact.any()


def replicas(index: ShardedIndex) -> list[tuple[int, int]]:
    return [(n, r) for n, group in index._opened.groups.items() for r in range(len(group.replicas))]


def kill_worker(index: ShardedIndex, rng: random.Random) -> str:
    shard, copy = rng.choice(replicas(index))
    with suppress(Exception):
        answer = index._opened.groups[shard].replicas[copy].worker.call("opened").result(1.0)
        os.kill(answer.pid, signal.SIGKILL)
        return "worker"
    return "worker that was lost already"


def run(index: ShardedIndex, answers: Answers, kill: Callable[[], str], searches: int) -> Counter[str]:
    """Searches at ten a second, with a kill every two seconds; what came of them."""
    found: Counter[str] = Counter()
    seconds, stop = [], threading.Event()

    def killing() -> None:
        while not stop.wait(EVERY_S):
            found[f"killed a {kill()}"] += 1

    thread = threading.Thread(target=killing)
    thread.start()
    try:
        for seed in range(searches):
            began = time.monotonic()
            found["searches"] += 1
            try:
                answer = index.search(query(seed), 10)
            except MissingShardsError:
                found["refused"] += 1
                answer = None
            seconds.append(time.monotonic() - began)
            if answer is None:
                continue
            assert isinstance(answer.coverage, Coverage)
            found["whole" if answer.coverage.complete else "partial, said"] += 1
            found["wrong"] += not answers.right(answer, seed)
            time.sleep(max(0.0, 0.1 - seconds[-1]))
    finally:
        stop.set()
        thread.join()
    found["median ms"] = round(1000 * float(np.median(seconds)))
    found["99 % ms"] = round(1000 * float(np.quantile(seconds, 0.99)))
    found["slowest ms"] = round(1000 * max(seconds))
    print(dict(found), dict(index.counts), index.latency())
    return found


def heals(index: ShardedIndex, answers: Answers) -> float:
    began = time.monotonic()
    while True:
        with suppress(MissingShardsError):
            found = index.search(query(0), 10)
            assert answers.right(found, 0)
            if found.coverage.complete:
                return time.monotonic() - began
        assert time.monotonic() - began < 120
        time.sleep(0.1)


def test_processes_that_are_killed(one: PlaceIndex, shards: Path) -> None:
    rng = random.Random(0)
    with ShardedIndex.open(shards, "local", threads=1, on_missing="partial", deadline_s=1.2) as index:
        answers = Answers(one, index)
        found = run(index, answers, lambda: kill_worker(index, rng), OF_PROCESSES)
        assert found["wrong"] == 0 and found["searches"] == OF_PROCESSES and found["killed a worker"]
        print("healed after", heals(index, answers))


class Nodes:
    """A head and three labelled nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # not where the head of other tests is noted: what is stopped is what was started here
        port = free_port()
        operate.start(port=port, cpus=0, folder=folder)
        self.address = f"{operate.LOOPBACK}:{port}"
        self.running: dict[str, int] = {}
        """The process that holds each node, by its label."""
        for label in LABELS:
            self.start(label)

    def start(self, label: str) -> None:
        self.running[label] = int(operate.start(join=self.address, label=label, cpus=1, folder=self.folder)["pid"])


@pytest.fixture(scope="module")
def nodes(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    try:
        yield Nodes(folder)
    finally:
        operate.stop(folder)


@pytest.fixture(scope="module")
def shards(one: PlaceIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of two replicas each, on machines by their labels; processes take any."""
    path = tmp_path_factory.mktemp("shards") / "shards"
    cut(one, path, 3, replicas=2, labels=LABELS)
    return path


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Every loss is a line of the log."""
    caplog.set_level(logging.ERROR)


def kill_raylet(pid: int) -> None:
    """Of the process that holds a node."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    raylet = next(int(child) for child in children if Path(f"/proc/{child}/comm").read_text().strip() == "raylet")
    os.kill(raylet, signal.SIGKILL)


@WITH_RAY
def test_actors_and_raylets_that_are_killed(one: PlaceIndex, shards: Path, nodes: Nodes) -> None:
    rng = random.Random(0)
    starting: list[threading.Thread] = []

    def kill() -> str:
        if any(thread.is_alive() for thread in starting) or rng.random() < 0.6:
            return kill_worker(index, rng)
        label = rng.choice(LABELS)
        kill_raylet(nodes.running[label])
        starting.append(threading.Thread(target=nodes.start, args=[label]))
        starting[-1].start()
        return "raylet"

    with ShardedIndex.open(shards, f"ray://{nodes.address}", threads=1, on_missing="partial", deadline_s=1.2) as index:
        answers = Answers(one, index)
        for seed in range(20):  # until calls are measured
            index.search(query(seed), 10)
        found = run(index, answers, kill, SEARCHES)
        for thread in starting:
            thread.join()
        assert found["wrong"] == 0 and found["searches"] == SEARCHES and found["killed a raylet"]
        print("healed after", heals(index, answers))


@WITH_RAY
def test_both_machines_of_a_shard_are_lost_and_come_back(one: PlaceIndex, shards: Path, nodes: Nodes) -> None:
    lost, seen = ShardMap.read(shards).shards[0], Counter[str]()
    with ShardedIndex.open(shards, f"ray://{nodes.address}", threads=1, on_missing="partial", deadline_s=1.2) as index:
        answers = Answers(one, index)
        for label in lost.replicas:
            kill_raylet(nodes.running[str(label)])
        marked, began = 0, time.monotonic()
        while marked < 20:  # an actor can outlive its raylet for a moment, and answers rightly as long
            assert time.monotonic() - began < 60
            try:
                answer = index.search(query(marked), 10)
            except MissingShardsError:
                seen["refused"] += 1
                continue
            assert answers.right(answer, marked)
            names = [missing.name for missing in answer.coverage.missing]
            seen[" ".join(names) or "whole"] += 1
            marked += lost.name in names
            assert lost.name in names or not marked
        for label in lost.replicas:
            nodes.start(str(label))
        print("both lost:", dict(seen), "healed after", heals(index, answers))
