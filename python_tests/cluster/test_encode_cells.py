"""Cells past one machine: built by workers, cut into shards, and asked first on the way to a place."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from geoloc_fast.cli.run import app
from geoloc_fast.cluster import ShardedIndex, cut
from geoloc_fast.cluster.encode import build
from geoloc_fast.cluster.executor import Host
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.geo import s2
from geoloc_fast.geo.regions import Circle
from geoloc_fast.index import PlaceIndex
from geoloc_fast.index.searchable import Searchable
from geoloc_fast.layers import QueryStrips
from geoloc_fast.locate.coarse_to_fine import CoarseToFine
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.cells import CellGeolocalizer, CellsConfig
from geoloc_fast.region.cells import build_cell_index
from geoloc_fast.testing import random_strips

CONFIG = CellsConfig(
    prototype_level=16, cell_level=17, clusters=6, cluster_dim=4, global_dim=8, hidden=16, photo_size=(48, 64),
    tile_px=48, kappa=1.5, temperature=0.05,
)  # fmt: skip
LAT, LON, TILES = 48.0, 11.0, 12


@pytest.fixture(scope="module")
def area(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest of cells in a row, and a model of random weights with prototypes of some of them and of one beside."""
    root = tmp_path_factory.mktemp("area")
    rng = np.random.default_rng(0)
    ids = np.unique(s2.from_lat_lon(np.full(60, LAT), LON + 0.0005 * np.arange(60), 17))[:TILES]
    places, photos = [], []
    for n, cell in enumerate(ids):
        for kind, size in (("tile", (48, 48)), ("photo", (48, 64))):
            cv2.imwrite(str(root / f"{kind}{n}.png"), rng.integers(0, 255, (*size, 3), np.uint8))
        lat, lon = map(float, s2.center(cell))
        places.append({"id": s2.token(cell), "lat": lat, "lon": lon, "satellite": f"tile{n}.png"})
        places[-1] |= {"metres_per_pixel": 1.5, "satellite_date": f"2023-05-{n + 1:02d}"}
        photos.append({"id": f"p{n}", "image": f"photo{n}.png", "lat": lat, "lon": lon, "split": "train"})
    Manifest.from_rows(root, places, photos).save()
    beside = s2.from_lat_lon(LAT + 0.02, LON, 16)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "cells.safetensors"
    CellGeolocalizer(CONFIG, np.unique([*s2.parent(ids[::2], 16), beside])).save(path)
    return root, path


class Here:
    """An executor and its only worker, in this process: what runs is what a worker runs."""

    workers, name = 1, "here"

    def start(self, name: str, make: str, *args: Any, **options: Any) -> Here:
        started = Here()
        started.host = Host(make, args, torch.get_num_threads())
        return started

    def call(self, method: str, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(self.host.call(method, args))
        return future

    def stop(self) -> None: ...

    def close(self) -> None: ...

    host: Host


def contents(index: Searchable) -> dict[str, tuple[object, ...]]:
    """Of every cell what is known of it, by its token."""
    return {str(place.key): (place.lat, place.lon, place.attributes) for place in index.places(index.ids())}


def test_cells_are_built_by_workers_cut_and_searched(area: tuple[Path, Path], tmp_path: Path) -> None:
    root, bundle = area
    model = CellGeolocalizer.load(bundle)
    build_cell_index(tmp_path / "plain", model, Manifest.load(root))
    built, shards = tmp_path / "cells.index", tmp_path / "shards"
    assert build(built, bundle, root, Here(), unit_places=5).added == TILES
    assert build(built, bundle, root, Here(), unit_places=5).added == 0
    one, plain = PlaceIndex.open(built, model=model.fingerprint), PlaceIndex.open(tmp_path / "plain")
    assert contents(one) == contents(plain) and len(one) > TILES  # cells below a prototype have no tile
    for key, number in plain.keys().items():  # batches are others: not to the last bit
        expected, found = plain.strips("cell", [number]).strips, one.strips("cell", [one.keys()[key]]).strips
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    cut(one, shards, 3)
    query = {"cell": QueryStrips(random_strips(3, CONFIG.dim, 1, 1))}
    with ShardedIndex.open(shards, Here(), model=model.fingerprint, threads=1) as many:
        for within in (None, Circle(LAT, LON, 400.0)):
            ours, theirs = (index.search(query, 5, layers=model.layers, within=within) for index in (many, one))
            assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
            assert ours.coverage is not None and ours.coverage.complete
        assert contents(many) == contents(one)
        photo = root / "photo0.png"
        answers = [next(CoarseToFine(Locator(index, model), []).locate([photo])) for index in (many, one)]
        assert answers[0] == answers[1] and answers[0].spots


@pytest.mark.slow
def test_workers_make_the_same_cells(area: tuple[Path, Path], where: str, tmp_path: Path) -> None:
    root, bundle = area
    for name, cluster, workers in (("one", "local:1", 1), ("two", where, 2)):
        args = ["index", "build", str(root), str(tmp_path / name), "--model", str(bundle), "--cluster", cluster]
        done = CliRunner().invoke(app, [*args, "--workers", str(workers), "--unit", "5", "--json"])
        assert done.exit_code == 0 and json.loads(done.stdout)["added"] == TILES, done.output
    one, two = (PlaceIndex.open(tmp_path / name) for name in ("one", "two"))
    assert contents(one) == contents(two) and one.keys() == two.keys()
    strips = [
        sorted(path.read_bytes() for path in (tmp_path / name).glob("*.strips")) for name in ("one", "two")
    ]  # the segment of cells without a tile has a name of its own
    assert strips[0] == strips[1] and len(strips[0]) == 4
    photo = ["locate", str(root / "photo0.png"), "--cells-model", str(bundle), "--json"]
    done = CliRunner().invoke(app, ["index", "shard", str(tmp_path / "one"), str(tmp_path / "shards"), "--shards", "2"])
    assert done.exit_code == 0, done.output
    args = ["--cells", str(tmp_path / "shards"), "--cluster", where]
    ours = CliRunner().invoke(app, [*photo, *args])
    theirs = CliRunner().invoke(app, [*photo, "--cells", str(tmp_path / "one")])
    assert ours.exit_code == theirs.exit_code == 0, ours.output
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)
