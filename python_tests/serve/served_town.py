"""A small town to serve: the model that ships, places with random strips, photos and images of plain shapes."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from geoloc_fast.evaluation.report.pictures import Tile
from geoloc_fast.geo import s2
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Rows
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.together import Beside
from geoloc_fast.models.cells import CellGeolocalizer, CellsConfig
from geoloc_fast.models.contract import load_model, shipped_model
from geoloc_fast.models.text.model import TextGeolocalizer
from geoloc_fast.serve.app import Service, create_app
from geoloc_fast.serve.engine import Served
from geoloc_fast.testing import random_strips
from geoloc_fast.testing.text_encoder import write_text_encoder

LAT, LON = 48.0, 11.0


def make_served(path: Path, places: int) -> Served:
    """Places 40 m apart on a square."""
    model = load_model(shipped_model())
    side = int(np.ceil(np.sqrt(places)))
    number = np.arange(places)
    lat, lon = move_m(np.full(places, LAT), np.full(places, LON), number % side * 40.0, number // side * 40.0)
    torch.manual_seed(0)
    with PlaceIndex.create(path, model=str(model.fingerprint), layers=model.layers) as index:
        rows = {layer.name: Rows(random_strips(places, *layer.strip)) for layer in model.layers}
        index.add(rows, model=model.fingerprint, lat=lat, lon=lon, key=[f"place-{n}" for n in range(places)])
    return opened(path)


def opened(path: Path) -> Served:
    model = load_model(shipped_model())
    confidence = Confidence.load(Confidence.path_for(shipped_model()), model=model.fingerprint)
    return Served(PlaceIndex.open(path), model, confidence)


def with_words(served: Served, folder: Path, ratio: float = 1.0) -> Served:
    """The same, and its places described: a text model of random weights, and random strips."""
    encoder = write_text_encoder(folder / "encoder", ["a", "bridge", "church", "river"])
    model = TextGeolocalizer.begin(encoder, None, things=("bridge", "river"), heads=2)
    model.eval().save(folder / "text.safetensors")
    words = load_model(folder / "text.safetensors")
    index = strips_at_places(folder / "words.index", words, served.index)
    return replace(served, beside=Beside(index, words, served.index, ratio=ratio))


def make_cells(folder: Path, served: Served) -> Served:
    """A cell a place of it, with random strips, of a cell model of random weights."""
    config = CellsConfig(
        prototype_level=16, cell_level=17, clusters=6, cluster_dim=4, global_dim=8, hidden=16, photo_size=(48, 64),
        tile_px=48, kappa=1.5, temperature=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    CellGeolocalizer(config, np.unique(s2.from_lat_lon(*served.index.positions(), 16))).save(
        folder / "cells.safetensors"
    )
    model = load_model(folder / "cells.safetensors")
    return Served(strips_at_places(folder / "continent.index", model, served.index), model, cells=True)


def strips_at_places(path: Path, model: Any, places: PlaceIndex) -> PlaceIndex:
    lat, lon = places.positions()
    rows = {layer.name: Rows(random_strips(len(lat), *layer.strip)) for layer in model.layers}
    with PlaceIndex.create(path, model=str(model.fingerprint), layers=model.layers) as index:
        index.add(rows, model=model.fingerprint, lat=lat, lon=lon, key=[f"place-{n}" for n in range(len(lat))])
    return PlaceIndex.open(path)


@lru_cache(maxsize=64)
def photo_bytes(seed: int) -> bytes:
    """A JPEG of a street with houses, different for each seed."""
    rng = np.random.default_rng(seed)
    image = np.zeros((240, 320, 3), np.uint8)
    image[:120] = (150 + seed % 50, 180, 220)
    image[120:] = (90, 90, 95)
    for _ in range(8):
        left, top, wide = rng.integers(0, 280), rng.integers(30, 110), rng.integers(15, 60)
        image[top:150, left : left + wide] = rng.integers(40, 220, 3)
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "jpeg", quality=90)
    return sink.getvalue()


class FakePictures:
    """Places 0 to 59 have a tile and a street view, of a colour of their own."""

    def photo(self, n: int) -> np.ndarray | None:
        return None

    def tile(self, place: int) -> Tile | None:
        if place >= 60:
            return None
        return Tile(np.full((64, 64, 3), (40 + 3 * place, 120, 60), np.uint8), 50.0)

    def street(self, place: int) -> np.ndarray | None:
        if place >= 60:
            return None
        image = np.full((64, 256, 3), (60, 40 + 3 * place, 160), np.uint8)
        image[:, 120:136] = 250  # north
        return image

    def synthetic(self, place: int) -> bool:
        return place % 2 == 1


class Running:
    """The service on a socket of its own."""

    def __init__(self, service: Service) -> None:
        import uvicorn

        from geoloc_fast.serve.connection import Connection

        at: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "log_level": "error", "access_log": False}
        self.server = uvicorn.Server(uvicorn.Config(create_app(service), http=Connection, **at))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
