"""The demonstration: photos of an unseen synthetic city, located end to end."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from geoloc_fast import polar_resample
from geoloc_fast.data.city import CityViews, make_city
from geoloc_fast.data.cylindrical import to_cylindrical
from geoloc_fast.files import write_atomically
from geoloc_fast.geo import great_circle_m
from geoloc_fast.index import Neighbours, PlaceIndex
from geoloc_fast.metrics import heading_error_deg, recall_at_k
from geoloc_fast.models import IMAGE_MEAN, IMAGE_STD, Geolocalizer
from geoloc_fast.report import write_report

RECALL_K = (1, 5, 10)
THRESHOLD_M = 25.0


@dataclass(frozen=True)
class Located:
    """What the demonstration found, and how long it took."""

    answers: Neighbours
    metrics: dict[str, Any]


def default_model() -> Path:
    """The small model that ships with the package."""
    return Path(str(resources.files("geoloc_fast") / "assets" / "small.safetensors"))


def run_demo(out: Path, *, model_path: Path, places: int, photos: int, seed: int) -> dict[str, Any]:
    """Makes the city of `seed`, indexes it, locates its photos, writes `out`; returns the metrics."""
    model = Geolocalizer.load(model_path)
    size = model.config.image_size
    with _progress(places, "making the city") as bar:
        city = make_city(seed, places=places, panorama_size=size, progress=lambda done, _: bar.update(done - bar.n))
    folder = out / "index"
    if folder.exists():
        shutil.rmtree(folder)
    with _progress(places, "encoding places") as bar:
        index = make_index(folder, model, city, bar)
    photos = min(photos, places)
    truth = {"lat": city.photo_lat[:photos], "lon": city.photo_lon[:photos], "heading_deg": city.heading_deg[:photos]}
    with _progress(photos, "locating photos") as bar:
        assumed = locate_photos(model, index, city.photo[:photos], [model.config.assumed_fov_deg] * photos, truth, bar)
    with _progress(photos, "again, field of view known") as bar:
        known = locate_photos(model, index, city.photo[:photos], city.fov_deg[:photos].tolist(), truth, bar)

    metrics = {
        "city": {"seed": seed, "places": places, "photos": photos, "synthetic": True},
        "model": {"file": model_path.name, "fingerprint": model.fingerprint},
        "chance_recall_at_1": chance(city, photos),
        "field_of_view_assumed": assumed.metrics,
        "field_of_view_known": known.metrics,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "predictions.geojson", json.dumps(as_geojson(assumed.answers, truth), indent=1))
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1))
    write_report(out / "report.html", city, assumed.answers, metrics, threshold_m=THRESHOLD_M)
    return metrics


def make_index(folder: Path, model: Geolocalizer, city: CityViews, bar: Any, batch: int = 32) -> PlaceIndex:
    strips = []
    for begin in range(0, len(city.lat), batch):
        part = slice(begin, begin + batch)
        polar = polar_resample(
            _channels_first(city.satellite[part]),
            model.config.image_size,
            column0_deg=model.config.column0_deg,
            mean=IMAGE_MEAN,
            std=IMAGE_STD,
        )
        with torch.inference_mode():
            strips.append(model.encode_place(polar, _channels_first(city.panorama[part])))
        bar.update(len(polar))
    config = model.config
    with PlaceIndex.create(
        folder, model=str(model.fingerprint), shape=config.strip, column0_deg=config.column0_deg
    ) as index:
        index.add(torch.cat(strips), model=model.fingerprint, lat=city.lat, lon=city.lon)
    return index


def locate_photos(
    model: Geolocalizer,
    index: PlaceIndex,
    photos: np.ndarray,
    fov_deg: list[float],
    truth: dict[str, np.ndarray],
    bar: Any,
) -> Located:
    """One photo at a time, as a user would, so that the latency is that of one photo."""
    found: list[Neighbours] = []
    seconds = []
    for photo, fov in zip(photos, fov_deg, strict=True):
        start = time.perf_counter()
        columns = _channels_first(to_cylindrical(photo, fov, size=model.config.image_size)[None])
        with torch.inference_mode():
            query = model.encode_photo(columns)
        found.append(index.search(query.strips, max(RECALL_K), query_width=query.width))
        seconds.append(time.perf_counter() - start)
        bar.update(1)
    answers = Neighbours(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    places = index.places(index.ids())
    place_lat, place_lon = (np.array([getattr(place, name) for place in places]) for name in ("lat", "lon"))
    recall = recall_at_k(
        torch.from_numpy(answers.id),
        query_lat=torch.from_numpy(truth["lat"]),
        query_lon=torch.from_numpy(truth["lon"]),
        lat=torch.from_numpy(place_lat),
        lon=torch.from_numpy(place_lon),
        k=RECALL_K,
        threshold_m=THRESHOLD_M,
    )
    away_m = great_circle_m(truth["lat"], truth["lon"], answers.lat[:, 0], answers.lon[:, 0])
    error = heading_error_deg(answers.heading_deg[:, 0], truth["heading_deg"])[away_m <= THRESHOLD_M]
    return Located(
        answers,
        {
            "recall": {f"recall_at_{k}": recall.at[k] for k in RECALL_K},
            "photos_with_no_place_in_range": recall.out_of_range,
            "median_error_m": float(np.median(away_m)),
            "heading_error_deg_when_right": {
                "mean": float(error.mean()) if error.size else None,
                "std": float(error.std()) if error.size else None,
                "median_absolute": float(np.median(np.abs(error))) if error.size else None,
            },
            "latency_ms": {
                "median": 1000 * float(np.median(seconds)),
                "p95": 1000 * float(np.quantile(seconds, 0.95)),
            },
        },
    )


def chance(city: CityViews, photos: int) -> float:
    """Recall@1 of a random place: the mean share of places within the threshold of a photo."""
    away_m = great_circle_m(
        city.photo_lat[:photos, None], city.photo_lon[:photos, None], city.lat[None], city.lon[None]
    )
    return float((away_m <= THRESHOLD_M).mean())


def as_geojson(answers: Neighbours, truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """One point a photo, at its first answer; longitude stands first, as GeoJSON wants it."""
    features = []
    for i in range(len(answers.id)):
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": _rounded(answers.lon[i, 0], answers.lat[i, 0])},
                "properties": {
                    "photo": i,
                    "place": int(answers.id[i, 0]),
                    "score": round(float(answers.score[i, 0]), 5),
                    "heading_deg": round(float(answers.heading_deg[i, 0]), 2),
                    "true_lat": round(float(truth["lat"][i]), 7),
                    "true_lon": round(float(truth["lon"][i]), 7),
                    "true_heading_deg": round(float(truth["heading_deg"][i]), 2),
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def summary(metrics: dict[str, Any]) -> str:
    """The metrics as the few lines a person reads."""
    city = metrics["city"]
    lines = [
        f"Synthetic city {city['seed']}, never seen in training: {city['photos']} photos of unknown heading "
        f"against {city['places']} places.",
        f"{'':26}{'R@1':>8}{'R@5':>8}{'R@10':>8}   heading when right      one photo",
    ]
    for key, title in (
        ("field_of_view_assumed", "field of view assumed"),
        ("field_of_view_known", "field of view known"),
    ):
        part = metrics[key]
        recall = "".join(f"{100 * part['recall'][f'recall_at_{k}']:7.1f}%" for k in RECALL_K)
        error = part["heading_error_deg_when_right"]
        spread = "none right" if error["mean"] is None else f"{error['mean']:+5.1f} ± {error['std']:.1f} deg"
        lines.append(f"  {title:24}{recall}   {spread:20}{part['latency_ms']['median']:8.1f} ms")
    lines.append(f"  {'chance':24}{100 * metrics['chance_recall_at_1']:7.1f}%")
    return "\n".join(lines)


def _channels_first(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] as [N, 3, H, W] in channels_last memory, without a copy."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _rounded(lon: float, lat: float) -> list[float]:
    return [round(float(lon), 7), round(float(lat), 7)]


def _progress(total: int, title: str) -> Any:
    return tqdm(total=total, desc=title, unit="", leave=False, disable=None)
