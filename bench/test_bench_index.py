"""The index: opening, searching, adding, committing, and one photo from file to answer.

    pytest bench/test_bench_index.py --benchmark-enable --benchmark-json=index.json

- open: an index of a million strips (bf16, 4x16x16, random values), pages in the cache, in a process that has done its
  imports. Resident memory of a search above that of the imports goes into `extra_info`, without the pages of the map.
- search: the index against bare `strip_topk` on the same mapped bank; one group.
- add: strips a second of one `add` of 50 000, encoding not counted; commit: the smallest `add` there is.
- locate: the default model, one JPEG photo, indexes of 10 000 and 100 000 places with all their rows (a street view,
  19 standpoints, of which three are searched), its field of view known or not; the share of each stage goes into
  `extra_info`.
- evaluate: 800 photos against 100 000 strips, all that `protocol.measure` does with them, against bare `strip_topk`.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from geoloc_fast import StripBank, strip_topk
from geoloc_fast.evaluation.metrics import one_percent
from geoloc_fast.evaluation.protocol import PhotoBatch, measure
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.contract import Model, load_model, shipped_model
from geoloc_fast.testing import random_strips

SHAPE = (16, 4, 16)
LAYERS = (Layer("place", SHAPE, "cosine", 180.0),)
MILLION = int(os.environ.get("GEOLOC_FAST_BENCH_STRIPS", 1_000_000))


def fill(path: Path, count: int, model: str) -> None:
    with PlaceIndex.create(path, model=model, layers=LAYERS) as index:
        for begin in range(0, count, 100_000):
            part = random_strips(min(100_000, count - begin), *SHAPE, seed=begin)
            index.add({"place": Rows(part)}, model=model, **positions(len(part), begin))
        index.compact()


def positions(count: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "lat": rng.uniform(48, 49, count),
        "lon": rng.uniform(11, 12, count),
        "key": [f"{seed + n:08d}" for n in range(count)],
    }


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("million") / "index"
    fill(path, MILLION, "m")
    yield path
    for file in path.iterdir():  # two gigabytes that pytest would keep
        file.unlink()


_OPEN = """
import sys, time, torch
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import QueryStrips
from geoloc_fast.testing import random_strips
def resident():  # kB: what is in memory, and what of it belongs to files
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(fields[name].split()[0]) for name in ("VmRSS", "RssFile")]
query = {"place": QueryStrips(random_strips(1, 16, 4, 5))}
before = resident()
started = time.perf_counter()
index = PlaceIndex.open(sys.argv[1])
opened = time.perf_counter() - started
index.search(query, 10)
searched = time.perf_counter() - started - opened
after = resident()
print(opened, searched, (after[0] - after[1] - before[0] + before[1]) / 1024)
"""


@pytest.mark.benchmark(group="index: open")
def test_open(benchmark: Any, million: Path) -> None:
    rows = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", _OPEN, str(million)], capture_output=True, text=True, check=True)
        rows.append([float(value) for value in done.stdout.split()])
    benchmark.extra_info["fresh process: seconds to open"] = statistics.median(row[0] for row in rows)
    benchmark.extra_info["fresh process: seconds of first search"] = statistics.median(row[1] for row in rows)
    benchmark.extra_info["MB beside the map"] = max(row[2] for row in rows)
    said = ", ".join(f"{name} {value:.3g}" for name, value in benchmark.extra_info.items())
    benchmark.extra_info["note"] = said
    benchmark(PlaceIndex.open, million)


@pytest.mark.benchmark(group="index: search one photo")
@pytest.mark.parametrize("who", ["bare", "index"])
def test_search(benchmark: Any, million: Path, who: str) -> None:
    index = PlaceIndex.open(million)
    bank = index._snapshot.segments[0].banks["place"].strips
    query = random_strips(1, 16, 4, 5, seed=1)
    asked = {"place": QueryStrips(query)}
    assert index.search(asked, 10).id.tolist() == strip_topk(query, bank, 10).index.tolist()
    run = (lambda: strip_topk(query, bank, 10)) if who == "bare" else (lambda: index.search(asked, 10))
    benchmark.pedantic(run, rounds=15, warmup_rounds=2)


@pytest.mark.benchmark(group="index: add")
@pytest.mark.parametrize("count", [1, 50_000])
def test_add(benchmark: Any, tmp_path: Path, count: int) -> None:
    strips, where = random_strips(count, *SHAPE), positions(count, 0)
    with PlaceIndex.create(tmp_path / "index", model="m", layers=LAYERS) as index:
        benchmark.pedantic(
            lambda: index.add({"place": Rows(strips)}, model="m", **where),
            rounds=5 if count > 1 else 20,
            warmup_rounds=1,
        )
    benchmark.extra_info["note"] = f"{count / benchmark.stats.stats.median:,.0f} strips/s"


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process that wants a core to itself."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def fill_layers(path: Path, count: int, model: Model) -> None:
    """Places with a row for a street view, and one for every standpoint of a satellite image."""
    part = 10_000
    with PlaceIndex.create(path, model=str(model.fingerprint), layers=model.layers) as index:
        for begin in range(0, count, part):
            rows = {}
            for n, layer in enumerate(model.layers):
                each = 1 if layer.name == "street" else len(model.place_input.standpoints_m)
                strips = random_strips(part * each, *layer.strip, seed=begin + n)
                rows[layer.name] = Rows(strips, np.repeat(np.arange(part), each))
            index.add(rows, model=model.fingerprint, **positions(part, begin))


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[PlaceIndex]:
    """An index of the default model; 8 GB of disk for 100,000 places."""
    folder = tmp_path_factory.mktemp("layered")
    fill_layers(folder / "index", request.param, load_model())
    yield PlaceIndex.open(folder / "index")
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("layered", "fov_deg", "beside"),
    [(10_000, 90.0, nullcontext), (100_000, 90.0, nullcontext), (100_000, None, nullcontext),
     (100_000, 90.0, busy_neighbour)],
    indirect=["layered"],
)  # fmt: skip
def test_locate(benchmark: Any, layered: PlaceIndex, fov_deg: float | None, beside: Callable[[], Any]) -> None:
    model = load_model()
    confidence = Confidence.load(Confidence.path_for(shipped_model()), model=model.fingerprint)
    locator = Locator(layered, model, confidence=confidence)
    rng = np.random.default_rng(0)
    sink = io.BytesIO()
    noise = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1280, 960), Image.Resampling.BICUBIC).save(sink, "jpeg", quality=90)
    stages: dict[str, list[float]] = {}

    def run() -> None:
        (answer,) = locator.locate([sink.getvalue()], fov_deg=fov_deg)
        assert answer.candidates
        for stage, seconds in answer.seconds.items():
            stages.setdefault(stage, []).append(seconds)

    benchmark.group = f"one photo end to end, {model.name} model, {len(layered):,} places"
    said = ", beside a busy process" if beside is busy_neighbour else ""
    said = said if fov_deg else ", field of view not known"
    benchmark.extra_info["entry"] = f"geoloc_fast, from JPEG to answer{said}"
    with beside():
        benchmark.pedantic(run, rounds=30, warmup_rounds=3)
    benchmark.extra_info["note"] = "; ".join(
        f"{stage} {1000 * statistics.median(values):.1f} ms" for stage, values in stages.items()
    )


@pytest.mark.parametrize("who", ["bare strip_topk", "geoloc_fast, protocol.measure"])
def test_evaluate(benchmark: Any, who: str) -> None:
    places, batches = 100_000, 800 // 64 + 1
    bank, where = StripBank.pack(random_strips(places, *SHAPE), dtype="bf16"), positions(places, 0)
    lat, lon = np.asarray(where["lat"]), np.asarray(where["lon"])
    width, rows = torch.full((64,), 5), np.arange(64)
    photos = [
        PhotoBatch([(random_strips(64, *SHAPE[:2], 5, seed=n), width)], lat[rows], lon[rows], np.zeros(64))
        for n in range(batches)
    ]
    photos[-1] = PhotoBatch(
        [(part[:32], width[:32]) for part, _ in photos[-1].readings], lat[:32], lon[:32], np.zeros(32)
    )

    def bare() -> None:
        for batch in photos:
            strip_topk(batch.readings[0][0], bank, one_percent(places), query_width=batch.readings[0][1])

    def measured() -> None:
        assert len(measure(photos, bank, lat, lon).rank) == 800

    benchmark.group = "evaluate: 800 photos, Wq=5, against 100,000 strips, R@1%"
    benchmark.extra_info["entry"] = who
    benchmark.pedantic(bare if who.startswith("bare") else measured, rounds=5, warmup_rounds=1)
