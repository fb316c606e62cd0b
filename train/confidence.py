"""Fits how sure a model's answers are, on synthetic cities that it never saw, and says how well that holds on others.

    python train/confidence.py --model geoloc_fast/assets/small.safetensors

Writes the confidence beside the model. Half of the cities are for fitting, the other half for the figures that are
printed: calibration error, ranking of right above wrong, precision and coverage of the answers that are given, and how
many photos of another city are answered "unknown". Numbers on synthetic cities say nothing about real ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from geoloc_fast.city import CityViews, make_city
from geoloc_fast.demo import default_model, make_index
from geoloc_fast.geo.regions import Box, Region
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import QueryStrips
from geoloc_fast.locate.confidence import RIGHT_M, Confidence, calibration_error, ranking_quality
from geoloc_fast.locate.locator import NEIGHBOURS, RADIUS_HOLDS, Locator, candidates_of, features_of
from geoloc_fast.models import Geolocalizer

FIRST_SEED = 30_000  # training cities begin at 1, those of evaluation at 10 000, the demonstration is 20 000


@dataclass
class Trials:
    """Answers about photos of known position."""

    features: np.ndarray
    away_m: np.ndarray
    further_down: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.away_m <= RIGHT_M


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--out", type=Path, help="default: beside the model")
    parser.add_argument("--cities", type=int, default=8)
    parser.add_argument("--places", type=int, default=400, help="in each city")
    parser.add_argument("--precision", type=float, default=0.9, help="of the answers that are given")
    parser.add_argument("--jobs", type=int, default=2, help="processes that make cities")
    return parser.parse_args()


def make(task: tuple[int, int, tuple[int, int]]) -> CityViews:
    seed, places, size = task
    return make_city(seed, places=places, panorama_size=size)


def regions(city: CityViews) -> list[Region | None]:
    """The whole city, its halves and its quarters: the confidence has to hold for searches of any size."""
    lat, lon = (np.quantile(values, (0, 0.5, 1)).tolist() for values in (city.lat, city.lon))
    halves = [Box(lat[i], lon[0], lat[i + 1], lon[2]) for i in range(2)]
    return [None, *halves, *(Box(lat[i], lon[j], lat[i + 1], lon[j + 1]) for i in range(2) for j in range(2))]


def queries(model: Geolocalizer, locator: Locator, city: CityViews) -> list[tuple[Any, Any]]:
    """Strips of all photos, with the field of view assumed and known."""
    found = []
    for fov in (np.full(len(city.fov_deg), model.config.assumed_fov_deg), city.fov_deg):
        columns = [
            to_cylindrical(photo, float(deg), size=model.config.image_size)
            for photo, deg in zip(city.photo, fov, strict=True)
        ]
        parts = [locator.encode(columns[begin : begin + 64]) for begin in range(0, len(columns), 64)]
        found += [(s, w) for strips, width in parts for s, w in zip(strips, width, strict=True)]
    return found


def trials(index: PlaceIndex, model: Geolocalizer, within: Region | None, asked: list[Any], city: CityViews) -> Trials:
    lat, lon = np.tile(city.photo_lat, 2), np.tile(city.photo_lon, 2)
    keep = np.arange(len(asked)) if within is None else np.flatnonzero(within.contains(lat, lon))
    places = len(index.ids(within))
    features, away, further = [], [], []
    for n in keep.tolist():
        strip, width = asked[n]
        query = {model.layers[0].name: QueryStrips(strip[None, :, :, : int(width)], width[None])}
        neighbours = index.search(query, NEIGHBOURS, layers=model.layers, within=within).photo(0)
        candidates = candidates_of(neighbours)
        distance = [float(great_circle_m(lat[n], lon[n], c.lat, c.lon)) for c in candidates]
        features.append(features_of(candidates, neighbours, int(width) / model.config.strip[2], places))
        away.append(distance[0])
        further.append(min(distance[1:], default=np.inf) <= RIGHT_M)
    return Trials(np.array(features), np.array(away), np.array(further))


def joined(parts: list[Trials]) -> Trials:
    return Trials(*(np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])))


def report(confidence: Confidence, held_out: Trials, elsewhere: Trials) -> dict[str, float]:
    probability = confidence.probability(held_out.features)
    given = probability >= confidence.threshold
    abroad = confidence.probability(elsewhere.features)
    sure = probability >= RADIUS_HOLDS
    radius = np.array([confidence.within(RADIUS_HOLDS / p) for p in probability[sure]])
    return {
        "photos": len(probability),
        "right": float(held_out.right.mean()),
        "calibration_error": calibration_error(probability, held_out.right),
        "auroc": ranking_quality(probability, held_out.right),
        "threshold": confidence.threshold,
        "coverage": float(given.mean()),
        "precision": float(held_out.right[given].mean()) if given.any() else float("nan"),
        "other_city_unknown": float((abroad < confidence.threshold).mean()),
        "radius_holds": float((held_out.away_m[sure] <= radius).mean()) if sure.any() else float("nan"),
    }


def main() -> None:
    options = arguments()
    model = Geolocalizer.load(options.model)
    tasks = [(FIRST_SEED + n, options.places, model.config.image_size) for n in range(options.cities)]
    with ProcessPoolExecutor(options.jobs) as pool:
        cities = list(tqdm(pool.map(make, tasks), total=len(tasks), desc="cities"))
    own: list[Trials] = []
    whole: list[Trials] = []
    abroad: list[Trials] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        previous: list[Any] = []
        for n, city in enumerate(tqdm(cities, desc="trials")):
            index = make_index(Path(folder) / str(n), model, city, tqdm(disable=True))
            asked = queries(model, Locator(index, model), city)
            parts = [trials(index, model, region, asked, city) for region in regions(city)]
            own.append(joined(parts))
            whole.append(parts[0])
            if previous:
                abroad.append(trials(index, model, None, previous, city))
            previous = asked
    half = len(cities) // 2
    learned = joined(own[:half])
    confidence = Confidence.fit(
        str(model.fingerprint),
        learned.features,
        learned.away_m,
        learned.further_down,
        precision=options.precision,
    )
    out = options.out or Confidence.path_for(options.model)
    confidence.save(out)
    elsewhere = joined(abroad[half:])
    print(json.dumps({"all sizes": report(confidence, joined(own[half:]), elsewhere)}, indent=1))
    print(json.dumps({"whole cities": report(confidence, joined(whole[half:]), elsewhere)}, indent=1))
    print(f"Written to {out}")


if __name__ == "__main__":
    main()
