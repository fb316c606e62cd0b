"""The figures of a model's card: synthetic cities it never saw. Real pairs are the gate's (`make gate`).

    python bench/model_card.py --model geoloc_fast/assets/small.safetensors --manifest benchmark/

Beside every figure stands what one gets without learning anything (`geoloc_fast.evaluation.floor`).

    benchmark   photos of the area test of a manifest against all its places; with synthetic street views in it, also
                what they and other stand-ins are worth
    city        one tidy city of 800 places, photos of 50 to 130 degrees
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from geoloc_fast.azimuth import azimuth_match, shift_to_heading
from geoloc_fast.city import CityViews, make_city
from geoloc_fast.data.datasets import PhotoDataset, PlaceDataset, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.floor import floors, ground_strip
from geoloc_fast.evaluation.metrics import heading_error_deg
from geoloc_fast.evaluation.protocol import PhotoBatch, measure
from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.models.contract import PlaceBatch
from geoloc_fast.polar import polar_resample
from geoloc_fast.retrieval import StripBank
from geoloc_fast.training.recipes.geolocalizer.evaluate import evaluate
from geoloc_fast.training.recipes.geolocalizer.settings import DataSettings
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_views
from geoloc_fast.training.region import chosen, load_region

CITY, PLACES, FOV_DEG = 10_000, 800, (50.0, 130.0)
TRIED_DEG = (60.0, 80.0, 100.0, 120.0)
BESIDE = (0.2, 0.5)
FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_1_percent", "heading_within_22_5_deg")


def short(metrics: dict[str, Any]) -> dict[str, Any]:
    """Percent, with the interval of R@1."""
    found = {name: round(100 * metrics[name], 1) for name in FIGURES if metrics[name] is not None}
    found["interval"] = [round(100 * end, 1) for end in metrics["interval"]["recall_at_1"]]
    found["median_error_m"] = metrics["median_error_m"]
    return found


def benchmark(model: Geolocalizer, folder: Path) -> dict[str, Any]:
    manifest = chosen(chosen_views(load_region(folder), "real"), {"area": "test"})
    found: dict[str, Any] = {"photos": manifest.photos.num_rows, "places": manifest.places.num_rows}
    found["floor"] = floor(manifest)
    for street in ("known", "azimuth"):
        data = DataSettings(manifest=str(folder), street=street, search_fov_deg=list(TRIED_DEG))
        every = evaluate(model, manifest, data, torch.device("cpu"))
        found[f"street {street}"] = {name: short(one) for name, one in every.items()}
    for source in ("street", "satellite"):
        every = evaluate(alone(model, source), manifest, data, torch.device("cpu"))
        found[f"street {street}, {source} only"] = {name: short(one) for name, one in every.items()}
    return found


def alone(model: Geolocalizer, source: str) -> Geolocalizer:
    """The model, looking at one source of a place."""
    found = Geolocalizer(replace(model.config, sources=source)).eval()
    found.load_state_dict({n: x for n, x in model.state_dict().items() if n in found.state_dict()})
    return found


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


def street_views(model: Geolocalizer, folder: Path) -> dict[str, Any]:
    """Of a manifest that `geoloc-fast synthesize` has completed: how well photos are found where places without a real
    and available street view have a stand-in, and those of such places by themselves."""
    data = DataSettings(manifest=str(folder), street="azimuth")
    found: dict[str, Any] = {}
    for views in ("hybrid", "synthetic", "nearest", "strict"):
        manifest = chosen(chosen_views(load_region(folder), views), {"area": "test"})
        every = evaluate(model, manifest, data, torch.device("cpu"))
        for way, one in every.items():
            parts = {f"street view {name}": short(part) for name, part in one["by"]["street_view"].items()}
            found[f"{views}, {way}"] = {"all": short(one), **parts}
    return found


@torch.inference_mode()
def city(model: Geolocalizer, views: CityViews) -> dict[str, Any]:
    config = model.config
    sources = {
        "both": encoded(model, views),
        "satellite only": encoded(alone(model, "satellite"), views),
        "street view only": encoded(alone(model, "street"), views),
    }
    photos = {
        "assumed": [photo_strips(model, views.photo, np.full(len(views), config.assumed_fov_deg))],
        "search": [photo_strips(model, views.photo, np.full(len(views), fov)) for fov in TRIED_DEG],
        "known": [photo_strips(model, views.photo, views.fov_deg)],
    }
    found: dict[str, Any] = {"floor": {n: round(100 * v, 1) for n, v in floors(views).items() if isinstance(v, float)}}
    for source, places in sources.items():
        bank = StripBank.pack(places, column0_deg=config.column0_deg)
        for way, readings in photos.items():
            batch = PhotoBatch(readings, views.photo_lat, views.photo_lon, views.heading_deg)
            found[f"{source}, {way}"] = short(measure([batch], bank, views.lat, views.lon).metrics())
        for way in ("assumed", "known"):
            ((strips, width),) = photos[way]
            found[f"{source}, {way}"]["window"] = round(100 * window_right(strips, width, places, views, config), 1)
    # What a fusion could gain: both strips side by side, the satellite image's weighing less, and the photo's twice.
    above, street = sources["satellite only"], sources["street view only"]
    for weight in BESIDE:
        bank = StripBank.pack(torch.cat((street, weight * above), dim=1), column0_deg=config.column0_deg)
        for way in ("assumed", "known"):
            ((strips, width),) = photos[way]
            batch = PhotoBatch(
                [(strips.repeat(1, 2, 1, 1), width)], views.photo_lat, views.photo_lon, views.heading_deg
            )
            metrics = measure([batch], bank, views.lat, views.lon).metrics()
            found[f"side by side, satellite at {weight}, {way}"] = short(metrics)
    return found


def encoded(model: Geolocalizer, views: CityViews) -> Tensor:
    """Strips of the places of a tidy city: all have both images, in one frame."""
    shown, parts = model.place_input, []
    px, columns = shown.satellite_px, shown.panorama_size[1]
    satellite = np.stack([cv2.resize(image, (px, px), interpolation=cv2.INTER_AREA) for image in views.satellite])
    panorama = channels_first(views.panorama).roll(-round((shown.column0_deg - views.column0_deg) * columns / 360), 3)
    for begin in range(0, len(views), 64):
        rows = slice(begin, begin + 64)
        there = torch.ones(len(views.lat[rows]), dtype=torch.bool)
        metres = torch.full((len(there),), views.metres_per_pixel * views.satellite.shape[1] / px)
        where = (torch.from_numpy(values[rows]) for values in (views.lat, views.lon))
        batch = PlaceBatch(channels_first(satellite[rows]), there, metres, panorama[rows], there, *where)
        parts.append(model.encode_places(batch)[model.layers[0].name].strips)
    return torch.cat(parts)


def window_right(strips: Tensor, width: Tensor, places: Tensor, views: CityViews, config: GeolocalizerConfig) -> float:
    """The share of photos whose best window of their own place lies within a column of where they looked."""
    shift = azimuth_match(strips, places, query_width=width, select="correlation").shift.diagonal()
    heading = shift_to_heading(shift, width, places.shape[3], column0_deg=config.column0_deg)
    off = np.abs(heading_error_deg(heading.numpy(), views.heading_deg))
    return float((off <= 360 / places.shape[3]).mean())


def photo_strips(model: Geolocalizer, photos: np.ndarray, fov_deg: np.ndarray) -> tuple[Tensor, Tensor]:
    images = [
        to_cylindrical(photo, fov, size=model.config.image_size) for photo, fov in zip(photos, fov_deg, strict=True)
    ]
    width = torch.tensor([image.shape[1] for image in images])
    padded = torch.zeros(len(images), 3, model.config.image_size[0], int(width.max()), dtype=torch.uint8)
    for row, image in zip(padded, images, strict=True):
        row[:, :, : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    strips = [model.encode_photo(padded[i : i + 64], width[i : i + 64]) for i in range(0, len(images), 64)]
    widest = max(part.strips.shape[3] for part in strips)
    whole = [torch.nn.functional.pad(part.strips, (0, widest - part.strips.shape[3])) for part in strips]
    return torch.cat(whole), torch.cat([part.width for part in strips])


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, help="the benchmark: city make --places 400 --cities 12 --seed 2025")
    parser.add_argument("--places", type=int, default=PLACES, help="of the tidy city")
    options = parser.parse_args()
    model = Geolocalizer.load(options.model)
    found: dict[str, Any] = {"model": model.fingerprint}
    views = make_city(CITY, places=options.places, panorama_size=model.config.image_size, fov_range=FOV_DEG)
    found["city"] = city(model, views)
    print(json.dumps({"city": found["city"]}, indent=1), flush=True)
    if options.manifest:
        found["benchmark"] = benchmark(model, options.manifest)
        print(json.dumps({"benchmark": found["benchmark"]}, indent=1), flush=True)
        if Manifest.load(options.manifest).places["street_synthetic"].is_valid().to_numpy().any():
            found["street views"] = street_views(model, options.manifest)
            print(json.dumps({"street views": found["street views"]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
