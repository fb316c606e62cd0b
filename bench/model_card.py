"""The figures of a model's card: synthetic cities it never saw, and real pairs where they are at hand.

    python bench/model_card.py --model geoloc_fast/assets/small.safetensors --manifest benchmark/ --pairs real_pairs/

Beside every figure stands what one gets without learning anything (`geoloc_fast.evaluation.floor`).

    benchmark   photos of the area test of a manifest against all its places; with synthetic street views in it, also
                what they and other stand-ins are worth
    city        one tidy city of 800 places, photos of 50 to 130 degrees
    pairs       NAME.aerial.* and NAME.ground.*, north in the middle of the panorama: cuts of the panorama at random
                headings, against the satellite images alone
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
from geoloc_fast.images.decode import decode_image
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.polar import polar_resample
from geoloc_fast.retrieval import StripBank
from geoloc_fast.training.recipes.geolocalizer.evaluate import evaluate
from geoloc_fast.training.recipes.geolocalizer.settings import DataSettings
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_views
from geoloc_fast.training.region import chosen, load_region

CITY, PLACES, FOV_DEG = 10_000, 800, (50.0, 130.0)
TRIED_DEG = (60.0, 80.0, 100.0, 120.0)
BESIDE = (0.2, 0.5)
TURNS = 20
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
        alone = Geolocalizer(replace(model.config, sources=source))
        alone.load_state_dict({n: x for n, x in model.state_dict().items() if n in alone.state_dict()})
        every = evaluate(alone, manifest, data, torch.device("cpu"))
        found[f"street {street}, {source} only"] = {name: short(one) for name, one in every.items()}
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
    polar = polar_resample(channels_first(views.satellite), config.image_size, column0_deg=config.column0_deg)
    panorama = channels_first(views.panorama)  # tidy: all there, all in one frame
    panorama = panorama.roll(-round((config.column0_deg - views.column0_deg) * config.image_size[1] / 360), 3)
    sources: dict[str, dict[str, Tensor]] = {
        "both": {"polar_satellite": polar, "panorama": panorama},
        "satellite only": {"polar_satellite": polar},
        "street view only": {"panorama": panorama},
    }
    photos = {
        "assumed": [photo_strips(model, views.photo, np.full(len(views), config.assumed_fov_deg))],
        "search": [photo_strips(model, views.photo, np.full(len(views), fov)) for fov in TRIED_DEG],
        "known": [photo_strips(model, views.photo, views.fov_deg)],
    }
    found: dict[str, Any] = {"floor": {n: round(100 * v, 1) for n, v in floors(views).items() if isinstance(v, float)}}
    for source, images in sources.items():
        parts = [model.encode_place(**{n: x[i : i + 64] for n, x in images.items()}) for i in range(0, len(views), 64)]
        places = torch.cat(parts)
        bank = StripBank.pack(places, column0_deg=config.column0_deg)
        for way, readings in photos.items():
            batch = PhotoBatch(readings, views.photo_lat, views.photo_lon, views.heading_deg)
            found[f"{source}, {way}"] = short(measure([batch], bank, views.lat, views.lon).metrics())
        for way in ("assumed", "known"):
            ((strips, width),) = photos[way]
            found[f"{source}, {way}"]["window"] = round(100 * window_right(strips, width, places, views, config), 1)
    # What a fusion could gain: both strips side by side, the satellite image's weighing less, and the photo's twice.
    encoded = [model.encode_sources(polar[i : i + 64], panorama[i : i + 64]) for i in range(0, len(views), 64)]
    above, street = (torch.cat([part for part in parts if part is not None]) for parts in zip(*encoded, strict=True))
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


def read_rgb(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes(), path.name)


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


@torch.inference_mode()
def pairs(model: Geolocalizer, folder: Path) -> dict[str, Any]:
    """Of cuts of a panorama: share whose own satellite image comes first, and whose heading in it is within 22.5."""
    aerial, ground = [], []
    for path in sorted(folder.glob("*.aerial.*")):
        name = path.name.split(".")[0]
        panorama = read_rgb(next(folder.glob(f"{name}.ground.*")))
        ground.append(panorama[64:192] if name.startswith("cvact") else panorama)
        image = read_rgb(path)
        aerial.append(
            polar_resample(channels_first(image[None]), (128, 512), column0_deg=180.0)[0].permute(1, 2, 0).numpy()
        )
    height, columns = model.config.image_size
    small = [
        np.stack([cv2.resize(x, (columns, height), interpolation=cv2.INTER_AREA) for x in of])
        for of in (aerial, ground)
    ]
    whole = np.stack([cv2.resize(x, (512, 128), interpolation=cv2.INTER_AREA) for x in ground])
    floor = torch.from_numpy(np.stack([ground_strip(x) for x in aerial]))
    places = model.encode_place(polar_satellite=channels_first(small[0]))
    rng = np.random.default_rng(0)
    count = len(aerial)
    found: dict[str, Any] = {"pairs": count, "chance": round(100 / count, 1)}
    for fov in (360, 180, 120, 90):
        score: dict[str, list[tuple[bool, bool]]] = {"model": [], "floor": []}
        for _ in range(TURNS):
            turn = rng.integers(64, size=count)  # columns of 64, the floor's
            cuts = {"model": (small[1], places), "floor": (whole, floor)}
            for name, (images, bank) in cuts.items():
                wide = images.shape[2]
                cut = np.stack(
                    [np.roll(x, -n * wide // 64, 1)[:, : wide * fov // 360] for x, n in zip(images, turn, strict=True)]
                )
                if name == "model":
                    query = model.encode_photo(channels_first(cut)).strips
                else:
                    query = torch.from_numpy(np.stack([ground_strip(x) for x in cut]))
                match = azimuth_match(query, bank, select="correlation" if name == "model" else "cosine")
                own = match.shift.diagonal().double() * 360 / bank.shape[3] - torch.from_numpy(turn) * 360 / 64
                near = ((own + 180) % 360 - 180).abs() <= 22.5
                first = match.score.argmax(1) == torch.arange(count)
                score[name] += list(zip(first.tolist(), near.tolist(), strict=True))
        found[f"{fov} degrees"] = {
            name: {
                "rank_1": round(100 * np.mean([a for a, _ in one]), 1),
                "heading": round(100 * np.mean([b for _, b in one]), 1),
            }
            for name, one in score.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, help="the benchmark: city make --places 400 --cities 12 --seed 2025")
    parser.add_argument("--pairs", type=Path, help="folder of real pairs")
    parser.add_argument("--places", type=int, default=PLACES, help="of the tidy city")
    options = parser.parse_args()
    model = Geolocalizer.load(options.model)
    found: dict[str, Any] = {"model": model.fingerprint}
    if options.pairs:
        found["pairs"] = pairs(model, options.pairs)
        print(json.dumps({"pairs": found["pairs"]}, indent=1), flush=True)
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
