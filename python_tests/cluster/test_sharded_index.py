"""Shards that workers hold, as one index: the same bits, and every gap said."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from geoloc_fast.cli.run import app
from geoloc_fast.cluster import ShardedIndex, ShardMap, connect, cut
from geoloc_fast.cluster.replica import Replica
from geoloc_fast.cluster.shards import _publish, ids_digest
from geoloc_fast.errors import (
    ClusterError,
    DamagedIndexError,
    IndexVersionError,
    MissingShardsError,
    OtherModelError,
    PlaceIndexError,
    ReplacedIndexError,
)
from geoloc_fast.evaluation.evaluate import Truth, evaluate
from geoloc_fast.geo.regions import Box, Circle, Polygon, Region
from geoloc_fast.index import Neighbours, PlaceIndex
from geoloc_fast.index.folder import Folder
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.locate.answers import as_dict, as_lines
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.contract import load_model, shipped_model
from geoloc_fast.testing import random_strips

MODEL = "b" * 64
LAYERS = (
    Layer("street", (3, 2, 8), "cosine", 90.0, weight=1.0, absent=0.1, scanned_rows=2),
    Layer("satellite", (2, 1, 8), "cosine", 90.0, weight=0.6, absent=0.3, scanned_rows=1),
    Layer("text", (5, 1, 1), "cosine", None, weight=0.8, absent=0.2),
    Layer("cell", (4, 1, 1), "dot", None, weight=0.5, absent=-0.4),
)
PLACES = 150
REGIONS = [
    None, Box(48.02, 11.02, 48.05, 11.08), Circle(48.05, 11.05, 900.0),
    Polygon((((48.0, 11.0), (48.1, 11.0), (48.0, 11.1)),)), Circle(-10.0, 100.0, 50.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> PlaceIndex:
    """An index in two segments. Places have 0 to 3 rows in a layer, some no position, some are removed."""
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("one") / "region.index"
    with PlaceIndex.create(path, model=MODEL, layers=LAYERS) as index:
        for part in range(2):
            count = PLACES // 2
            lat, lon = rng.uniform(48, 48.1, (2, count))
            rows = {}
            for n, layer in enumerate(LAYERS):
                place = np.repeat(np.arange(count), rng.integers(0, 4, count))
                rows[layer.name] = Rows(random_strips(len(place), *layer.strip, seed=10 * part + n), place)
            places = [None if n % 25 == 7 else value for n, value in enumerate(lat)]
            beside = [None if n % 25 == 7 else value - 37 for n, value in enumerate(lon)]
            keys = [f"place-{part}-{n}" for n in range(count)]
            names = [["north", "south", None][n % 3] for n in range(count)]
            index.add(rows, model=MODEL, lat=places, lon=beside, key=keys, attributes={"city": names})
        index.remove([3, 77])
    return PlaceIndex.open(path)


def asked(names: tuple[str, ...], count: int = 4, seed: int = 1) -> dict[str, QueryStrips]:
    wide = torch.tensor([5, 3, 8, 0])[torch.arange(count) % 4]
    found = {}
    for layer in LAYERS:
        if layer.name in names:
            columns = min(8, layer.strip[2])
            width = wide.clamp(max=columns) if layer.name == names[0] and len(names) > 1 else wide.clamp(1, columns)
            found[layer.name] = QueryStrips(random_strips(count, *layer.strip[:2], columns, seed=seed), width)
    return found


def assert_same(found: Neighbours, expected: Neighbours) -> None:
    for name, ours, theirs in zip(Neighbours._fields, found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), name


def pids(index: ShardedIndex, shard: int) -> list[int]:
    replicas = index._opened.groups[shard].replicas
    return [replica.worker.call("opened").result(60).pid for replica in replicas]


def kill(index: ShardedIndex, shard: int, sig: int = signal.SIGKILL) -> None:
    for pid in pids(index, shard):
        os.kill(pid, sig)


def until(right: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not right():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def shards(one: PlaceIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "shards"
    cut(one, path, 2, replicas=2)
    return path


@pytest.fixture(scope="module")
def sharded(where: str, shards: Path) -> Iterator[ShardedIndex]:
    with ShardedIndex.open(shards, where, model=MODEL, on_missing="partial", deadline_s=30, threads=1) as index:
        yield index


# --- above it ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlaceIndex, Path]:
    """An index of the model that ships, and its shards."""
    folder, model, rng = tmp_path_factory.mktemp("town"), load_model(), np.random.default_rng(2)
    with PlaceIndex.create(folder / "index", model=str(model.fingerprint), layers=model.layers) as index:
        lat, lon = 48 + rng.uniform(0, 0.02, 80), 11 + rng.uniform(0, 0.02, 80)
        rows = {layer.name: Rows(random_strips(80, *layer.strip, seed=n)) for n, layer in enumerate(model.layers)}
        index.add(rows, model=model.fingerprint, lat=lat, lon=lon, key=[f"place-{n}" for n in range(80)])
    one = PlaceIndex.open(folder / "index")
    cut(one, folder / "shards", 2)
    return one, folder / "shards"


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8).repeat(20, 0).repeat(20, 1)


def test_locating_and_evaluating_are_unchanged(town: tuple[PlaceIndex, Path]) -> None:
    one, shards = town
    model, photos = load_model(), [photo(n) for n in range(3)]
    confidence = Confidence.load(Confidence.path_for(shipped_model()), model=model.fingerprint)
    truth = Truth(np.full(3, 48.01), np.full(3, 11.01), np.full(3, np.nan), np.full(3, -1))
    with ShardedIndex.open(shards, "local", on_missing="partial") as index:
        for within in (None, Circle(48.01, 11.01, 900.0)):
            found, expected = (Locator(each, model, confidence=confidence, within=within) for each in (index, one))
            for ours, theirs in zip(found.locate(photos), expected.locate(photos), strict=True):
                assert ours.coverage is not None and ours.coverage.complete and theirs.coverage is None
                assert {**as_dict(ours), "coverage": None} == as_dict(theirs)
                assert as_lines(ours) == as_lines(theirs)
            ours, theirs = (evaluate(locator, photos, truth) for locator in (found, expected))
            assert (ours.rank, ours.away_m, ours.probability) == (theirs.rank, theirs.away_m, theirs.probability)
        (pid,) = pids(index, 0)
        os.kill(pid, signal.SIGSTOP)
        index.deadline_s = 1.0
        (answer,) = Locator(index, model, confidence=confidence).locate(photos[:1])
        os.kill(pid, signal.SIGCONT)
    assert (answer.status, answer.radius_m, answer.exact) == ("unverified", None, False)
    assert all(candidate.probability is None for candidate in answer.candidates)
    said = as_dict(answer)["coverage"]
    assert (said["searched"], said["there"], said["missing"][0]["name"]) == (40, 80, "00000001-0000")
    json.dumps(said)
    assert any("of 40 of 80 places; without 00000001-0000" in line for line in as_lines(answer))


def test_the_commands_search_shards(town: tuple[PlaceIndex, Path], tmp_path: Path) -> None:
    one, shards = town
    cv2.imwrite(str(tmp_path / "photo.png"), photo(1))
    args = ["locate", str(tmp_path / "photo.png"), "--json"]
    ours, theirs = (CliRunner().invoke(app, [*args, "--index", str(path)]).stdout for path in (shards, one.path))
    assert {**json.loads(ours)[0], "coverage": None} == json.loads(theirs)[0]
    wrong = CliRunner().invoke(app, [*args, "--index", str(one.path), "--cluster", "local:2"])
    assert wrong.exit_code == 2 and "expected shards" in wrong.output


# --- the map, and what is wrong with it --------------------------------------------------------------------------


def test_shards_lie_one_after_the_other_on_the_curve(one: PlaceIndex, tmp_path: Path) -> None:
    found = cut(one, tmp_path / "out", 7, replicas=2, labels=["a", "b", "c"])
    assert ShardMap.read(tmp_path / "out") == found
    assert max(shard.places for shard in found.shards) - min(shard.places for shard in found.shards) <= 1
    ends = [(shard.first, shard.last) for shard in found.shards if shard.box]
    assert all(last <= first for (_, last), (first, _) in pairwise(ends))
    assert all(len(set(shard.replicas)) == 2 for shard in found.shards)
    ids = [PlaceIndex.open(tmp_path / "out" / shard.name).ids() for shard in found.shards]
    assert sorted(np.concatenate(ids).tolist()) == one.ids().tolist()
    assert sum(map(ids_digest, ids)) % 2**64 == found.ids == ids_digest(one.ids())
    for region in REGIONS[1:]:
        touched = {n for n, own in enumerate(ids) if np.isin(own, one.ids(region)).any()}
        assert touched <= set(found.touching(region))
    assert len(found.touching(Circle(48.05, 11.05, 100.0))) < 7


def test_cutting_anew_keeps_the_shards_before_and_takes_older_ones_away(one: PlaceIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "00000001-0000").mkdir(parents=True)  # an interrupted cut left it
    (out / "00000001-0000" / "half").write_text("")
    for number in (1, 2, 3):
        assert cut(one, out, 2).commit == number
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"0000000{n}{suffix}" for n in (2, 3) for suffix in ("-0000", "-0001", ".shards")),
    ]


def test_shards_that_are_not_those_of_the_map(one: PlaceIndex, shards: Path, tmp_path: Path) -> None:
    found = ShardMap.read(shards)
    first = found.shards[0]
    with pytest.raises(OtherModelError, match="holds strips of model bbbb"):
        Replica(str(shards), first, "c" * 64, "cpu")
    shutil.copytree(shards, tmp_path / "copy")
    with PlaceIndex.open(tmp_path / "copy" / first.name, "write") as changed:
        changed.remove(changed.ids()[:1])
    with pytest.raises(PlaceIndexError, match="is another commit"):
        Replica(str(tmp_path / "copy"), first, MODEL, "cpu")
    with pytest.raises(DamagedIndexError, match="its ids are not those"):
        Replica(str(shards), first.__class__(**{**vars(first), "ids": 5}), MODEL, "cpu")
    with pytest.raises(PlaceIndexError, match="another commit"), ShardedIndex.open(tmp_path / "copy", "local"):
        pass
    with pytest.raises(PlaceIndexError, match="holds shards of another index"):
        cut(PlaceIndex.open(shards / first.name), shards, 1)
    assert ShardMap.read(shards) == found


def changed(found: ShardMap, **values: Any) -> ShardMap:
    return ShardMap(**{**vars(found), "commit": found.commit + 1, **values})


def test_a_map_that_is_not_whole_or_does_not_cover_the_ids(shards: Path, tmp_path: Path) -> None:
    found = ShardMap.read(shards)
    for n, (values, message) in enumerate([
        ({"shards": found.shards[:1]}, "do not cover the ids"),
        ({"shards": (found.shards[0], found.shards[0])}, "do not cover the ids"),
        ({"ids": 7}, "do not cover the ids"),
        ({"places": -1}, "its values are not those of a map"),
        ({"shards": ()}, "its values are not those of a map"),
        ({"shards": (found.shards[0].__class__(**{**vars(found.shards[0]), "name": "../x"}),)}, "damaged"),
        ({"shards": (found.shards[0].__class__(**{**vars(found.shards[0]), "box": (1.0, 2.0)}),)}, "damaged"),
    ]):  # fmt: skip
        folder = tmp_path / str(n)
        folder.mkdir()
        _publish(Folder(folder), changed(found, **values))
        with pytest.raises(DamagedIndexError, match=message):
            ShardMap.read(folder)
        with pytest.raises(DamagedIndexError, match=message):
            ShardedIndex.open(folder, "local")
    path = shards / "00000001.shards"
    content = path.read_bytes()
    for flipped in (0, len(content) // 2, len(content) - 2):
        (tmp_path / "00000001.shards").write_bytes(
            content[:flipped] + bytes([content[flipped] ^ 1]) + content[flipped + 1 :]
        )
        with pytest.raises(DamagedIndexError):
            ShardMap.read(tmp_path)
    with pytest.raises(PlaceIndexError, match="holds no shards"):
        ShardMap.read(tmp_path / "0" / "nothing")
    newer = content[:-72].replace(b"shards 1\n", b"shards 2\n", 1)
    (tmp_path / "00000001.shards").write_bytes(newer + f"sha256 {hashlib.sha256(newer).hexdigest()}\n".encode())
    with pytest.raises(IndexVersionError):
        ShardMap.read(tmp_path)


@pytest.mark.slow
def test_older_shards_or_those_of_another_index_are_no_newer_commit(shards: Path, tmp_path: Path) -> None:
    found = ShardMap.read(shards)
    shutil.copytree(shards, tmp_path / "copy")
    with ShardedIndex.open(tmp_path / "copy", "local", threads=1) as index:
        _publish(Folder(tmp_path / "copy"), changed(found, index="0" * 32))
        with pytest.raises(ReplacedIndexError, match="shards of another index"):
            index.refresh()
        assert index.search(asked(("street",)), 1, layers=LAYERS).coverage.complete


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 0}, "shards: expected"),
        ({"shards": 999}, "shards: expected at most 148"),
        ({"shards": 2, "replicas": 2, "labels": ["a"]}, "labels: expected at least 2"),
        ({"shards": 2, "labels": ["a b"]}, "label: expected letters"),
    ],
)
def test_wrong_arguments_of_a_cut(one: PlaceIndex, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(one, tmp_path / "out", **options)


def test_a_cluster_that_is_none() -> None:
    for wrong in ("", "local:0", "ray://host", "ray://host:99999", "http://host:1", "dask"):
        with pytest.raises(ValueError, match="cluster: expected local, local:N or ray://HOST:PORT"):
            connect(wrong)


def test_the_command(one: PlaceIndex, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["index", "shard", str(one.path), str(tmp_path / "out"), "--shards", "3", "--json"])
    assert json.loads(done.stdout) == {"places": len(one), "shards": 3, "replicas": 1, "commit": 1}
    assert len(ShardMap.read(tmp_path / "out").shards) == 3


# --- on both executors; at the end, since the workers of `sharded` live until then ---------------------------------


@pytest.mark.parametrize("names", [("street",), ("text",), ("street", "satellite"), ("satellite", "text", "cell")])
def test_it_answers_as_one_index_does_to_the_last_bit(
    one: PlaceIndex, sharded: ShardedIndex, names: tuple[str, ...]
) -> None:
    one = whole_segment(one)
    for within in REGIONS:
        for k, depth in ((1, 1024), (10, 12), (60, 1024)):
            options: dict[str, Any] = {"layers": LAYERS, "within": within, "depth": max(k, depth)}
            found = sharded.search(asked(names), k, **options)
            assert_same(found, one.search(asked(names), k, **options))
            assert found.coverage.complete and found.photo(0).first(1).coverage == found.coverage
    assert found.coverage == (0, 0, ())  # nothing lies in the last region


_SEGMENT: dict[Path, PlaceIndex] = {}


def whole_segment(index: PlaceIndex) -> PlaceIndex:
    """The index as one segment: whether rows are left out is then the same question for all of it."""
    if index.path not in _SEGMENT:
        copy = index.path.with_name("compacted.index")
        shutil.copytree(index.path, copy)
        with PlaceIndex.open(copy, "write") as opened:
            opened.compact()
        _SEGMENT[index.path] = PlaceIndex.open(copy)
    return _SEGMENT[index.path]


def test_what_else_is_asked_of_an_index(one: PlaceIndex, sharded: ShardedIndex) -> None:
    assert (len(sharded), sharded.index_id, sharded.commit) == (len(one), one.index_id, one.commit)
    assert (sharded.model, sharded.layers, sharded.dtype) == (one.model, one.layers, one.dtype)
    assert sharded.filled == one.filled
    for within in REGIONS:
        assert np.array_equal(sharded.ids(within), one.ids(within))
        for ours, theirs in zip(sharded.positions(within), one.positions(within), strict=True):
            assert np.array_equal(ours, theirs, equal_nan=True)
    assert list(sharded.keys().items()) == list(one.keys().items())
    assert sharded.places([140, 2]) == one.places([140, 2])
    with pytest.raises(KeyError, match="there is no place 77"):
        sharded.places([2, 77])
    with pytest.raises(OtherModelError):
        sharded.check_model("c" * 64)
    with pytest.raises(ValueError, match="query: expected strips by layer"):
        sharded.search({}, 1)
    json.dumps(sharded.info())


def test_a_replica_that_hangs_is_not_waited_for(
    one: PlaceIndex, sharded: ShardedIndex, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geoloc_fast.cluster")
    query, (hung, _) = asked(("street",)), pids(sharded, 1)
    before = sharded.counts["hedges"]
    os.kill(hung, signal.SIGSTOP)
    try:
        for _ in range(4):
            found = sharded.search(query, 5, layers=LAYERS)
            assert_same(found, whole_segment(one).search(query, 5, layers=LAYERS))
            assert found.coverage.complete
    finally:
        os.kill(hung, signal.SIGCONT)
    assert sharded.counts["hedges"] > before
    assert "another replica is asked too" in caplog.text
    assert sharded.latency()["calls"] > 0


def test_a_shard_that_does_not_answer_is_said(
    one: PlaceIndex, sharded: ShardedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, lost = asked(("street", "satellite")), region_of(sharded, 1)
    (other,) = [shard for n, shard in enumerate(sharded._opened.map.shards) if n != 1]
    rest = PlaceIndex.open(sharded.path / other.name)
    own = pids(sharded, 1)
    for pid in own:
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(sharded, "deadline_s", 1.0)
    try:
        found = sharded.search(query, 5, layers=LAYERS)
        with pytest.raises(MissingShardsError, match="1 of 1 shards did not answer") as raised:
            sharded.search(query, 5, layers=LAYERS, within=lost)
        with pytest.raises(MissingShardsError):
            sharded.ids()
        monkeypatch.setattr(sharded, "on_missing", "error")
        with pytest.raises(MissingShardsError, match="1 of 2 shards did not answer"):
            sharded.search(query, 5, layers=LAYERS)
    finally:
        for pid in own:
            os.kill(pid, signal.SIGCONT)
    (missing,) = found.coverage.missing
    assert missing.name == sharded._opened.map.shards[1].name and missing.box is not None
    assert missing.reason == "did not answer in time"
    assert found.coverage.searched == len(rest) and found.coverage.there == len(one)
    assert not found.exact.any()
    assert_same(found, rest.search(query, 5, layers=LAYERS)._replace(exact=found.exact))
    assert raised.value.coverage.searched == 0
    assert sharded.counts["partial"] >= 1 and sharded.counts["refused"] >= 3


def test_a_shard_that_is_lost_comes_back_by_itself(one: PlaceIndex, sharded: ShardedIndex) -> None:
    query, expected = asked(("street", "satellite")), whole_segment(one)
    before = pids(sharded, 1)
    kill(sharded, 1)

    def whole() -> bool:
        found = sharded.search(query, 5, layers=LAYERS)
        if found.coverage.complete:
            assert_same(found, expected.search(query, 5, layers=LAYERS))
        return found.coverage.complete

    until(whole)
    until(lambda: not any(replica.suspect for replica in sharded._opened.groups[1].ordered()))
    assert not set(before) & set(pids(sharded, 1))


def region_of(index: ShardedIndex, shard: int) -> Region:
    """A spot where that shard alone has places."""
    lat, lon = PlaceIndex.open(index.path / index._opened.map.shards[shard].name).positions()
    for at in np.flatnonzero(~np.isnan(lat)):
        region = Circle(float(lat[at]), float(lon[at]), 1.0)
        if index._opened.map.touching(region) == [shard]:
            return region
    raise AssertionError


def test_a_new_commit_is_opened_beside_the_old_one(where: str, one: PlaceIndex, tmp_path: Path) -> None:
    folder, source, query = tmp_path / "shards", tmp_path / "source.index", asked(("street",))
    shutil.copytree(whole_segment(one).path, source)
    cut(PlaceIndex.open(source), folder, 1)
    with ShardedIndex.open(folder, where, threads=1) as index:
        assert not index.refresh()
        with PlaceIndex.open(source, "write") as changed:
            before = changed.search(query, 5, layers=LAYERS)
            changed.remove(before.id[:, 0])
            changed.compact()
            after = changed.search(query, 5, layers=LAYERS)
        cut(PlaceIndex.open(source), folder, 1)
        seen, stop = [], threading.Event()

        def searching() -> None:
            while not stop.is_set():
                seen.append(index.search(query, 5, layers=LAYERS))

        thread = threading.Thread(target=searching)
        thread.start()
        assert index.refresh()
        new = len(seen)
        until(lambda: len(seen) > new + 2)
        stop.set()
        thread.join()
        assert index.commit == changed.commit
    assert [found.id.tolist() for found in (seen[0], seen[-1])] == [before.id.tolist(), after.id.tolist()]
    for found in seen:
        assert_same(found, before if found.id.tolist() == before.id.tolist() else after)


@pytest.mark.slow
def test_an_object_that_cannot_be_made_says_why_at_every_call(where: str, shards: Path) -> None:
    executor = connect(where)
    entry = ShardMap.read(shards).shards[0]
    worker = executor.start("test", "geoloc_fast.cluster.replica:Replica", str(shards), entry, "c" * 64, "cpu")
    for _ in range(2):
        with pytest.raises(OtherModelError, match="holds strips of model bbbb"):
            worker.call("opened").result(60)
    worker.stop()
    with pytest.raises(ClusterError):
        executor.start("test", "geoloc_fast.nothing:Nothing").call("opened").result(60)
    if where.startswith("local"):
        executor.close()
