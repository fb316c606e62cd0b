"""The figures of a model's card: synthetic cities it never saw. Real pairs are the gate's (`make gate`).

    python bench/model_card.py --model geoloc_fast/assets/city.safetensors --manifest benchmark/

For any kind of model. Each layer by itself, and all together, with the heading of the photo unknown, from an index as a
user would have it; the median error is of the right answers. Beside every figure stands what one gets without learning
anything (`geoloc_fast.evaluation.floor`).

    city        one tidy city of 800 places, photos of 50 to 130 degrees
    benchmark   photos of the area test of a manifest against all its places; with synthetic street views in it, also
                what they and other stand-ins are worth
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geoloc_fast.city import TIDY
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import CityRecipe, write_recipes
from geoloc_fast.data.datasets import PhotoDataset, PlaceDataset, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.evaluate import contents, truth_of
from geoloc_fast.evaluation.floor import ground_strip
from geoloc_fast.evaluation.metrics import heading_error_deg, one_percent
from geoloc_fast.evaluation.protocol import Measured, Near, PhotoBatch, measure
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.decode import decode_image
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import QueryStrips
from geoloc_fast.locate.confidence import RIGHT_M
from geoloc_fast.models.contract import Model, Photo, load_model, shipped_model
from geoloc_fast.polar import polar_resample
from geoloc_fast.region.encode import build_index
from geoloc_fast.retrieval import StripBank
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_views
from geoloc_fast.training.region import chosen, load_region

CITY, PLACES, FOV_DEG = 10_000, 800, (50.0, 130.0)
FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_1_percent", "heading_within_22_5_deg")
BATCH = 32


def short(found: Measured) -> dict[str, Any]:
    """Percent, with the interval of R@1; metres."""
    metrics, right = found.metrics(), found.rank == 0
    figures = {name: round(100 * metrics[name], 1) for name in FIGURES if metrics[name] is not None}
    figures["interval"] = [round(100 * end, 1) for end in metrics["interval"]["recall_at_1"]]
    figures["median_error_m"] = round(float(np.median(found.away_m[right])), 2) if right.any() else None
    return figures


def evaluated(model: Model, manifest: Manifest) -> dict[str, Any]:
    """Every way to show the photos, every layer and all together, by "layers, field of view"."""
    with tempfile.TemporaryDirectory() as folder:
        build_index(Path(folder) / "index", model, manifest)
        with PlaceIndex.open(Path(folder) / "index") as index:
            return measured(model, manifest, index)


def measured(model: Model, manifest: Manifest, index: PlaceIndex) -> dict[str, Any]:
    rows = manifest.photos.to_pylist()
    truth, (lat, lon) = truth_of(rows, index.keys()), index.positions()
    near, percent = Near(lat, lon, RIGHT_M), one_percent(len(index))
    reachable = np.array([near.any(*at) for at in zip(truth.lat, truth.lon, strict=True)], bool)
    names = [layer.name for layer in model.layers]
    takes = {"both": names, **{name: [name] for name in names}} if len(names) > 1 else {names[0]: names}
    found: dict[str, Any] = {}
    for way in ("assumed", "known"):
        parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in takes}
        for begin in range(0, len(rows), BATCH):
            some = slice(begin, begin + BATCH)
            fov_deg = [None if way == "assumed" else row["fov_deg"] for row in rows[some]]
            images = [decode_image(content, "photo") for content in contents(manifest, rows[some])]
            strips = model.encode_queries([Photo(image, fov) for image, fov in zip(images, fov_deg, strict=True)])
            for name, layers in takes.items():
                query: dict[str, QueryStrips] = {layer: strips[layer] for layer in layers}
                best = index.search(query, max(10, percent), layers=model.layers)
                here = truth.take(np.arange(begin, min(begin + BATCH, len(rows))))
                away = _away_m(here.lat, here.lon, best.lat, best.lon)
                right = away <= RIGHT_M
                rank = np.where(right.any(axis=1), right.argmax(axis=1), np.inf)
                stood = _away_m(here.lat, here.lon, best.standpoint_lat[:, :1], best.standpoint_lon[:, :1])[:, 0]
                # A standpoint says where; whether the answer is right is the place's matter.
                at = np.where(rank == 0, np.minimum(stood, RIGHT_M), away[:, 0])
                parts[name].append((rank, at, heading_error_deg(best.heading_deg[:, 0], here.heading_deg)))
        for name, every in parts.items():
            rank, at, error = (np.concatenate(part) for part in zip(*every, strict=True))
            of_all = Measured((1, 5, 10), percent, RIGHT_M, len(index), rank, at, error, reachable, {}, percent)
            found[f"{name}, {way}"] = short(of_all)
    return found


def _away_m(lat: np.ndarray, lon: np.ndarray, to_lat: np.ndarray, to_lon: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        away = great_circle_m(lat[:, None], lon[:, None], to_lat, to_lon)
    return np.where(np.isfinite(away), away, np.inf)


def floor(manifest: Manifest) -> dict[str, float]:
    """R@1 in percent of the hand-made strips of `geoloc_fast.evaluation.floor`."""
    strips: dict[str, list[np.ndarray]] = {"satellite": [], "street": []}
    for batch in loader(PlaceDataset(manifest), 64):
        polar = polar_resample(batch["satellite"], (128, 512), column0_deg=180.0)
        for name, images in (("satellite", polar), ("street", batch["panorama"])):
            strips[name] += [ground_strip(image) for image in images.permute(0, 2, 3, 1).numpy()]
    banks = {name: StripBank.pack(torch.from_numpy(np.stack(of)), dtype="fp32") for name, of in strips.items()}
    lat, lon = (manifest.places[name].to_numpy() for name in ("lat", "lon"))
    found = {}
    for way, known in (("assumed", False), ("known", True)):
        photos: list[PhotoBatch] = []
        for batch in loader(PhotoDataset(manifest, use_fov=known), 64):
            images = batch["photo"].permute(0, 2, 3, 1).numpy()
            cut = [image[:, :width] for image, width in zip(images, batch["photo_width"].tolist(), strict=True)]
            queries = [torch.from_numpy(ground_strip(image)) for image in cut]
            width = torch.tensor([query.shape[2] for query in queries])
            widest = int(width.max())
            query = torch.stack([torch.nn.functional.pad(q, (0, widest - q.shape[2])) for q in queries])
            about = (batch[name].numpy() for name in ("photo_lat", "photo_lon", "heading_deg"))
            photos.append(PhotoBatch([(query, width)], *about))
        for name, bank in banks.items():
            metrics = measure(photos, bank, lat, lon, select="cosine").metrics()
            found[f"{name}, {way}"] = round(100 * metrics["recall_at_1"], 1)
    return found


def benchmark(model: Model, folder: Path) -> dict[str, Any]:
    manifest = chosen(chosen_views(load_region(folder), "real"), {"area": "test"})
    found: dict[str, Any] = {"photos": manifest.photos.num_rows, "places": manifest.places.num_rows}
    return found | {"floor": floor(manifest)} | evaluated(model, manifest)


def street_views(model: Model, folder: Path) -> dict[str, Any]:
    """Of a manifest that `geoloc-fast synthesize` has completed: how well photos are found where places without a real
    and available street view have a stand-in."""
    return {
        views: evaluated(model, chosen(chosen_views(load_region(folder), views), {"area": "test"}))
        for views in ("hybrid", "synthetic", "nearest", "strict")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--manifest", type=Path, help="the benchmark: city make --places 400 --cities 12 --seed 2025")
    parser.add_argument("--city", type=Path, help="a folder in which the tidy city is made, or is already")
    parser.add_argument("--places", type=int, default=PLACES, help="of the tidy city")
    options = parser.parse_args()
    model = load_model(options.model)
    sizes = Sizes.around(model.place_input.panorama_size)
    with tempfile.TemporaryDirectory() as folder:
        recipe = CityRecipe("city", CITY, None, options.places, sizes, FOV_DEG, TIDY)
        manifest = write_recipes(options.city or folder, [recipe], jobs=2)
        tidy = {"floor": floor(manifest)} | evaluated(model, manifest)
    print(json.dumps({"model": model.fingerprint, "city": tidy}, indent=1), flush=True)
    if options.manifest:
        print(json.dumps({"benchmark": benchmark(model, options.manifest)}, indent=1), flush=True)
        if Manifest.load(options.manifest).places["street_synthetic"].is_valid().to_numpy().any():
            print(json.dumps({"street views": street_views(model, options.manifest)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
