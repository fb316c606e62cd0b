"""The demonstration: photos of an unseen synthetic city, located end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from geoloc_fast import polar_resample
from geoloc_fast.city import CityViews, make_city
from geoloc_fast.city.views import encode_jpeg
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.evaluate import RECALL_K, evaluate, neighbours_for
from geoloc_fast.evaluation.report import CityPictures, write_report
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Rows
from geoloc_fast.locate.confidence import RIGHT_M, Confidence
from geoloc_fast.locate.locator import Answer, Locator
from geoloc_fast.models import IMAGE_MEAN, IMAGE_STD, Geolocalizer

PHOTO_FILES = 20
_QUALITY = 85  # of the region's images


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
    if any(folder.glob("*.commit")):  # of an earlier demonstration
        shutil.rmtree(folder)
    with _progress(places, "encoding places") as bar:
        index = make_index(folder, model, city, bar)
    photos = min(photos, places)
    lat, lon, heading = (values[:photos] for values in (city.photo_lat, city.photo_lon, city.heading_deg))
    path = Confidence.path_for(model_path)
    confidence = Confidence.load(path, model=model.fingerprint) if path.exists() else None
    locator = Locator(index, model, confidence=confidence, neighbours=neighbours_for(places))
    answers: list[Answer] = []
    with _progress(photos, "locating photos") as bar:
        assumed = evaluate(
            locator, _counted(city.photo[:photos], bar), lat=lat, lon=lon, heading_deg=heading, keep=answers
        )
    with _progress(photos, "again, field of view known") as bar:
        images, fov_deg = _counted(city.photo[:photos], bar), city.fov_deg[:photos].tolist()
        known = evaluate(locator, images, lat=lat, lon=lon, heading_deg=heading, fov_deg=fov_deg)

    metrics = {
        "city": {"seed": seed, "places": places, "photos": photos, "synthetic": True},
        "model": {"file": model_path.name, "fingerprint": model.fingerprint},
        "chance_recall_at_1": chance(city, photos),
        "field_of_view_assumed": assumed.metrics(),
        "field_of_view_known": known.metrics(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "predictions.geojson", json.dumps(as_geojson(answers, city), indent=1))
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1))
    write_photos(out / "photos", city, photos)
    write_region(out / "region", city)
    write_report(
        out / "report.html",
        title="Where were these photos taken, and which way were they looking?",
        about=f"{photos} photos of unknown heading and field of view, located among {places} places of synthetic city "
        f"{seed}, which the model never saw in training. The city is made up: the figures show that the system works "
        "and say nothing about real places.",
        index=index,
        names=[f"photo {n}" for n in range(photos)],
        lat=lat,
        lon=lon,
        heading_deg=heading,
        answers=answers,
        evaluations={"field of view assumed": assumed, "field of view known": known},
        pictures=CityPictures(city),
    )
    return metrics


def write_photos(folder: Path, city: CityViews, photos: int) -> None:
    """Some photos as files, for a person to try `locate` on, and where they were taken, to check what it says."""
    folder.mkdir(exist_ok=True)
    rows = ["photo,lat,lon,heading_deg,fov_deg"]
    for n in range(min(PHOTO_FILES, photos)):
        Image.fromarray(city.photo[n]).save(folder / f"{n:02}.jpg", quality=92)
        truth = (city.photo_lat[n], city.photo_lon[n], city.heading_deg[n], city.fov_deg[n])
        rows.append(f"{n:02}.jpg,{truth[0]:.7f},{truth[1]:.7f},{truth[2]:.1f},{truth[3]:.1f}")
    write_atomically(folder / "truth.csv", "".join(f"{row}\n" for row in rows))


def write_region(folder: Path, city: CityViews) -> None:
    """The places as a manifest with their images, as `locate --report --region` and `serve --region` show them."""
    rows = []
    for kind in ("satellite", "street"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for n, key in enumerate(keys_of(city)):
        row: dict[str, Any] = {"id": key, "lat": float(city.lat[n]), "lon": float(city.lon[n])}
        row |= {"satellite": f"satellite/{key}.jpg", "metres_per_pixel": city.metres_per_pixel}
        (folder / row["satellite"]).write_bytes(encode_jpeg(city.satellite[n], _QUALITY))
        if not city.street_missing[n]:
            row |= {"street": f"street/{key}.jpg", "street_column0_deg": float(city.street_column0_deg[n])}
            (folder / row["street"]).write_bytes(encode_jpeg(city.panorama[n], _QUALITY))
        rows.append(row)
    Manifest.from_rows(folder, rows, []).save()


def keys_of(city: CityViews) -> list[str]:
    """Names of its places, in the index and in the region."""
    return [f"place-{n:05d}" for n in range(len(city.lat))]


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
    with PlaceIndex.create(folder, model=str(model.fingerprint), layers=model.layers) as index:
        rows = {model.layers[0].name: Rows(torch.cat(strips))}
        index.add(rows, model=model.fingerprint, lat=city.lat, lon=city.lon, key=keys_of(city))
    return index


def chance(city: CityViews, photos: int) -> float:
    """Recall@1 of a random place: the mean share of places within the threshold of a photo."""
    away_m = great_circle_m(
        city.photo_lat[:photos, None], city.photo_lon[:photos, None], city.lat[None], city.lon[None]
    )
    return float((away_m <= RIGHT_M).mean())


def as_geojson(answers: list[Answer], city: CityViews) -> dict[str, Any]:
    """One point a photo, at its first candidate, however sure; longitude stands first, as GeoJSON wants it."""
    features = []
    for n, answer in enumerate(answers):
        first = answer.candidates[0]
        properties = {
            "photo": n,
            "status": answer.status,
            "place": first.place,
            "score": round(first.score, 5),
            "probability": None if first.probability is None else round(first.probability, 4),
            "radius_m": None if answer.radius_m is None else round(answer.radius_m, 1),
            "heading_deg": round(first.heading_deg, 2) % 360,
            "true_lat": round(float(city.photo_lat[n]), 7),
            "true_lon": round(float(city.photo_lon[n]), 7),
            "true_heading_deg": round(float(city.heading_deg[n]), 2),
        }
        geometry = {"type": "Point", "coordinates": [round(first.lon, 7), round(first.lat, 7)]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
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
        recall = "".join(f"{100 * part[f'recall_at_{k}']:7.1f}%" for k in RECALL_K)
        error = part["answers"]["heading_error_deg_when_right"]
        spread = "none right" if error["mean"] is None else f"{error['mean']:+5.1f} ± {error['std']:.1f} deg"
        lines.append(f"  {title:24}{recall}   {spread:20}{part['latency_ms']['median']:8.1f} ms")
    lines.append(f"  {'chance':24}{100 * metrics['chance_recall_at_1']:7.1f}%")
    sure = metrics["field_of_view_assumed"].get("confidence")
    if sure is not None:
        right = "" if sure["precision"] is None else f", {100 * sure['precision']:.0f}% of those answers right"
        lines.append(
            f'Sure enough of {100 * sure["coverage"]:.1f}% of the photos to answer{right}; the others are "unknown".'
        )
    return "\n".join(lines)


def _channels_first(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] as [N, 3, H, W] in channels_last memory, without a copy."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _counted(images: np.ndarray, bar: Any) -> Iterator[np.ndarray]:
    for image in images:
        yield image
        bar.update(1)


def _progress(total: int, title: str) -> Any:
    return tqdm(total=total, desc=title, unit="", leave=False, disable=None)
