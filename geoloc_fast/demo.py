"""The demonstration: photos of an unseen synthetic city, located end to end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import CityRecipe, write_recipes
from geoloc_fast.evaluation.evaluate import RECALL_K, Truth, evaluate_views, neighbours_for, views_of
from geoloc_fast.evaluation.report import ManifestPictures
from geoloc_fast.evaluation.report.page import write_report
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.candidates import Candidate
from geoloc_fast.locate.confidence import RIGHT_M, Confidence
from geoloc_fast.locate.locator import Answer, Locator
from geoloc_fast.models.contract import load_model
from geoloc_fast.progress import Progress
from geoloc_fast.region.encode import build_index

FIELD_OF_VIEW = (70.0, 110.0)
_CORES = len(os.sched_getaffinity(0))


def run_demo(
    out: Path,
    *,
    model_path: Path,
    places: int,
    photos: int,
    seed: int,
    device: str = "cpu",
    bar: Callable[[str], AbstractContextManager[Progress | None]] = lambda title: nullcontext(None),
) -> dict[str, Any]:
    """Makes the city of `seed`, indexes it, locates its photos, writes `out`; returns the metrics.

    `bar(title)` is a context that yields what shows progress, or None.
    """
    model = load_model(model_path, device)
    recipe = CityRecipe("city", seed, None, places, Sizes.around(model.place_input.panorama_size), FIELD_OF_VIEW, TIDY)
    made = out / "region" / recipe.name
    if (made / "city.json").exists() and not _same(made, recipe):  # of an earlier demonstration
        shutil.rmtree(made)
    with bar("making the city") as shown:
        manifest = write_recipes(out / "region", [recipe], jobs=_CORES, progress=shown)
    if PlaceIndex.exists(out / "index"):
        shutil.rmtree(out / "index")
    with bar("encoding places") as shown:
        build_index(out / "index", model, manifest, progress=shown)
    index = PlaceIndex.open(out / "index", device=device)
    rows = manifest.photos.to_pylist()[:photos]
    path = Confidence.path_for(model_path)
    confidence = Confidence.load(path, model=model.fingerprint) if path.exists() else None
    locator = Locator(index, model, confidence=confidence, neighbours=neighbours_for(places))
    views = views_of(manifest, rows, index.keys(), model.query_input)
    answers: list[Answer] = []
    with bar("locating photos") as shown:
        found = evaluate_views(locator, views, keep=answers, progress=shown)
    truth = next(iter(views.values())).truth
    metrics = {
        "city": {"seed": seed, "places": places, "photos": len(rows), "synthetic": True},
        "model": {"file": model_path.name, "name": model.name, "fingerprint": model.fingerprint},
        "chance_recall_at_1": chance(truth, *index.positions()),
        **{views[title].key: evaluation.metrics() for title, evaluation in found.items()},
        "photo_to_try": rows[surest(answers)]["image"],
    }
    write_atomically(out / "predictions.geojson", json.dumps(as_geojson(answers, truth), indent=1))
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1))
    write_report(
        out / "report.html",
        title="Where were these photos taken, and which way were they looking?",
        about=f"{len(rows)} photos of unknown heading and field of view, located among {places} places of synthetic "
        f"city {seed}, which the model never saw in training. The city is made up: the figures show that the system "
        "works and say nothing about real places.",
        index=index,
        names=[f"photo {n}" for n in range(len(rows))],
        lat=truth.lat,
        lon=truth.lon,
        heading_deg=truth.heading_deg,
        answers=answers,
        evaluations=found,
        pictures=ManifestPictures(
            manifest, [row["image"] for row in rows], {number: key for key, number in index.keys().items()}
        ),
    )
    return metrics


def chance(truth: Truth, lat: np.ndarray, lon: np.ndarray) -> float:
    """Recall@1 of a random place: the mean share of places within the threshold of a photo."""
    away_m = great_circle_m(truth.lat[:, None], truth.lon[:, None], lat[None], lon[None])
    return float((away_m <= RIGHT_M).mean())


def surest(answers: list[Answer]) -> int:
    """The answer with the highest probability; without probabilities, the one with the highest score."""
    first = [answer.candidates[0] for answer in answers]
    return max(range(len(first)), key=lambda n: (first[n].probability or 0.0, first[n].score))


def as_geojson(answers: list[Answer], truth: Truth) -> dict[str, Any]:
    """One point a photo, at its first candidate, however sure; longitude stands first, as GeoJSON wants it."""
    features = []
    for n, answer in enumerate(answers):
        first: Candidate = answer.candidates[0]
        properties = {
            "photo": n,
            "status": answer.status,
            "place": first.place,
            "score": round(first.score, 5),
            "probability": None if first.probability is None else round(first.probability, 4),
            "radius_m": None if answer.radius_m is None else round(answer.radius_m, 1),
            "heading_deg": None if first.heading_deg is None else round(first.heading_deg, 2) % 360,
            "true_lat": round(float(truth.lat[n]), 7),
            "true_lon": round(float(truth.lon[n]), 7),
            "true_heading_deg": round(float(truth.heading_deg[n]), 2),
        }
        at = None if first.lat is None or first.lon is None else [round(first.lon, 7), round(first.lat, 7)]
        geometry = None if at is None else {"type": "Point", "coordinates": at}
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
        ("field_of_view_unknown", "field of view unknown"),
        ("field_of_view_known", "field of view known"),
    ):
        part = metrics[key]
        recall = "".join(f"{100 * part[f'recall_at_{k}']:7.1f}%" for k in RECALL_K)
        error = part["answers"]["heading_error_deg_when_right"]
        spread = "none right" if error["mean"] is None else f"{error['mean']:+5.1f} ± {error['std']:.1f} deg"
        lines.append(f"  {title:24}{recall}   {spread:20}{part['latency_ms']['median']:8.1f} ms")
    lines.append(f"  {'chance':24}{100 * metrics['chance_recall_at_1']:7.1f}%")
    sure = metrics["field_of_view_unknown"].get("confidence")
    if sure is not None:
        right = "" if sure["precision"] is None else f" ({100 * sure['precision']:.0f}% correctly)"
        lines.append(f'Answered {100 * sure["coverage"]:.1f}% of the photos{right}; the rest are "unknown".')
    return "\n".join(lines)


def _same(made: Path, recipe: CityRecipe) -> bool:
    """Whether this is the same city, which need not be made again."""
    try:
        return bool(json.loads((made / "city.json").read_text())["recipe"] == json.loads(recipe.as_json()))
    except (OSError, ValueError, KeyError, TypeError):
        return False
