"""Units that workers encode, whoever is killed meanwhile: the index of an undisturbed run, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.cli.run import app
from geoloc_fast.cluster.encode import Encoder, Unit, build
from geoloc_fast.cluster.executor import connect
from geoloc_fast.cluster.local import LocalExecutor, LocalWorker
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ClusterError, WorkerLostError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import QueryStrips
from geoloc_fast.models.contract import load_model
from geoloc_fast.region.encode import build_index
from geoloc_fast.testing import random_strips

PLACES, UNIT = 20, 3
SMALL = Sizes(160, (64, 256), (96, 128))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small city, of whose places one has no image that can be read."""
    path = tmp_path_factory.mktemp("city") / "ready"
    manifest = write_city(path, seed=3, cities=1, places=PLACES, sizes=SMALL)
    broken = manifest.place(4)
    for column in ("satellite", "street"):
        if broken[column]:
            (path / broken[column]).write_bytes(b"nothing")
    return path


@pytest.fixture(scope="module")
def undisturbed(city: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "region.index"
    done = build(path, tiny, city, "local:1", unit_places=UNIT)
    assert (done.added, len(done.problems)) == (PLACES - 1, 1)
    return path


def files_of(index: Path) -> dict[str, str]:
    """sha256 of every file of a segment."""
    found = {}
    for path in index.iterdir():
        if path.suffix in (".places", ".strips"):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def assert_same_index(found: Path, expected: Path) -> None:
    assert files_of(found) == files_of(expected)
    assert not [path for path in (found / "incoming").iterdir() if path.suffix == ".segment"]
    assert PlaceIndex.verify(found) == []
    one, two = PlaceIndex.open(found), PlaceIndex.open(expected)
    assert one.keys() == two.keys()
    query = {layer.name: QueryStrips(random_strips(3, *layer.strip[:2], 5)) for layer in one.layers}
    for ours, theirs in zip(one.search(query, 10), two.search(query, 10), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_units_are_those_of_one_process(city: Path, tiny: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Against the way without workers: the same rows, whose batches are others."""
    build_index(tmp_path / "plain", load_model(tiny), Manifest.load(city))
    one, two = PlaceIndex.open(undisturbed), PlaceIndex.open(tmp_path / "plain")
    assert list(one.keys()) == list(two.keys()) and np.array_equal(one.ids(), two.ids())
    assert one.places(one.ids()) == two.places(two.ids())


@pytest.mark.slow
def test_workers_of_a_cluster_make_the_same_bytes(
    city: Path, tiny: Path, undisturbed: Path, where: str, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    done = build(
        tmp_path / "index", tiny, city, where, workers=2, unit_places=UNIT, progress=lambda *now: told.append(now)
    )
    assert (done.added, done.there_already, len(done.problems)) == (PLACES - 1, 0, 1)
    assert told[-1] == (PLACES - 1, PLACES) and told == sorted(told)
    assert_same_index(tmp_path / "index", undisturbed)
    again = build(tmp_path / "index", tiny, city, where, workers=2, unit_places=UNIT)
    assert (again.added, again.there_already, len(again.problems)) == (0, PLACES - 1, 1)


class Killing(LocalExecutor):
    """Kills a worker that was given a unit just now: at every `each`-th that is given out, `times` times."""

    def __init__(self, workers: int, times: int, each: int) -> None:
        super().__init__(workers)
        self.times, self.each, self.given, self.killed = times, each, 0, 0
        self.rng = np.random.default_rng(0)

    def start(self, *args: Any, **options: Any) -> LocalWorker:
        worker = super().start(*args, **options)
        call = worker.call

        def called(method: str, *args: Any) -> Future[Any]:
            future = call(method, *args)
            self.given += 1
            if self.given % self.each == 0 and self.killed < self.times:
                self.killed += 1
                threading.Timer(self.rng.uniform(0, 0.03), os.kill, (worker.pid, signal.SIGKILL)).start()
            return future

        worker.call = called  # type: ignore[method-assign]
        return worker


def test_a_worker_that_is_killed_loses_its_unit_alone(
    city: Path, tiny: Path, undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = Killing(2, 2, each=3)
    done = build(tmp_path / "index", tiny, city, executor, unit_places=UNIT)
    executor.close()
    assert executor.killed == 2 and done.added == PLACES - 1
    assert "is given out again" in caplog.text and "workers waited for images" in caplog.text
    assert_same_index(tmp_path / "index", undisturbed)


CHILD = """
import sys
from geoloc_fast.cluster.encode import build
build(sys.argv[1], sys.argv[4], sys.argv[2], "local:2", unit_places=int(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_is_gone_on_with(city: Path, tiny: Path, undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "index"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(city), str(UNIT), str(tiny)])
    while child.poll() is None and not any((path / "incoming").glob("*.segment") if path.exists() else []):
        time.sleep(0.02)
    child.kill()
    child.wait()
    done = build(path, tiny, city, "local:1", unit_places=UNIT)
    assert done.added + done.there_already == PLACES - 1
    assert_same_index(path, undisturbed)


def test_what_was_left_half_way_is_in_nobodys_way(city: Path, tiny: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Remains of writers that died: files without a segment, altered or whole, and a segment that waits already."""
    path, model = tmp_path / "index", load_model(tiny)
    with PlaceIndex.create(path, model=str(model.fingerprint), layers=model.layers) as index:
        encoder = Encoder(str(tiny), "cpu", str(city), str(path), 1)
        unit = Unit("0" * 31 + "1", [0, 1, 2])
        first = encoder.encode(unit)
        (path / "incoming" / f"{unit.name}.segment").unlink()
        (path / "incoming" / f"{unit.name}.places").write_bytes(b"other")
        (path / "incoming" / f"{unit.name}.0123456789abcdef.tmp").write_bytes(b"half")
        assert encoder.encode(unit).path == first.path
        assert index.left(unit.name) == first.sha256 == encoder.encode(unit).sha256
        assert index.waiting() == [unit.name]
        with pytest.raises(ValueError, match="name: expected 32 hexadecimal digits"):
            index.leave({}, model=model.fingerprint, lat=[1.0], lon=[2.0], name="x")
        assert len(index.adopt(merge_small=False)[unit.name]) == 3
    assert PlaceIndex.verify(path) == []
    assert not any((path / "incoming").iterdir())


class Lost(LocalExecutor):
    """Workers that die of whatever they are given."""

    def start(self, *args: Any, **options: Any) -> LocalWorker:
        worker = super().start(*args, **options)
        worker.call = lambda method, *given: _lost()  # type: ignore[method-assign]
        return worker


def _lost() -> Any:
    future: Future[Any] = Future()
    future.set_exception(WorkerLostError("worker: its process ended (-9)"))
    return future


def test_a_unit_that_ends_every_worker_ends_the_run(
    city: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geoloc_fast.cluster.encode._REST_S", 0.01)
    executor = Lost(1)
    with pytest.raises(ClusterError, match="was lost 12 times"):
        build(tmp_path / "index", tiny, city, executor, unit_places=UNIT)
    executor.close()


@pytest.mark.slow
def test_the_command(city: Path, tiny: Path, undisturbed: Path, tmp_path: Path) -> None:
    args = [
        "index",
        "build",
        str(city),
        str(tmp_path / "index"),
        "--cluster",
        "local:1",
        "--unit",
        str(UNIT),
        "--json",
        "--model",
        str(tiny),
    ]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 1 and json.loads(done.stdout)["added"] == PLACES - 1  # one place is left out
    assert files_of(tmp_path / "index") == files_of(undisturbed)


@pytest.mark.slow
def test_forty_units_and_ten_kills(tiny: Path, tmp_path: Path) -> None:
    write_city(tmp_path / "city", seed=5, cities=1, places=80, sizes=SMALL)
    build(tmp_path / "expected", tiny, tmp_path / "city", "local:1", unit_places=2)
    executor = Killing(2, 10, each=4)
    done = build(tmp_path / "index", tiny, tmp_path / "city", executor, unit_places=2)
    executor.close()
    assert executor.killed == 10 and done.added == len(PlaceIndex.open(tmp_path / "expected"))
    assert sum(name.endswith(".places") for name in files_of(tmp_path / "index")) == 40
    assert_same_index(tmp_path / "index", tmp_path / "expected")


def test_no_worker_is_left(tmp_path: Path) -> None:
    executor = connect("local:1")
    worker = executor.start("test", "geoloc_fast.cluster.executor:Host", "builtins:dict", (), 1)
    pid = worker.pid  # type: ignore[attr-defined]
    executor.close()
    assert not Path(f"/proc/{pid}").exists()
