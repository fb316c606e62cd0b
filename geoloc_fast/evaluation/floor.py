"""Recall of simple methods that learn nothing, which a model has to beat.

    python -m geoloc_fast.evaluation.floor --places 150 --seed 11 --style harbour

Two floors beside chance. Colour histograms know no geometry: where they do well, colour gives the
places away. Hand-made features on azimuth strips (brightness, chroma and green excess of the lower half
in 8 x 64 cells, every row standardised) know where things are round the camera, and are searched over
all headings with the operators of this package.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from geoloc_fast.city.views import CROWD, FIELD_OF_VIEW, CityViews, make_city
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.models.layered.colours import colour_cells
from geoloc_fast.polar import polar_resample
from geoloc_fast.retrieval import StripBank, strip_topk

THRESHOLD_M = 25.0
ASSUMED_FOV_DEG = 90.0
_COLUMNS = 64  # all the way round
_IMAGE = (128, 512)


def floors(views: CityViews) -> dict[str, Any]:
    """Recall@1 at 25 m, of places with the image in question, for photos of unknown heading.

    Returns:
        `chance`; `histogram_satellite`, `histogram_street`; `strips_satellite_known`,
        `strips_satellite_assumed` and the same of `street` (field of view known, or taken as 90 degrees).
    """
    away_m = great_circle_m(views.photo_lat[:, None], views.photo_lon[:, None], views.lat, views.lon)
    right = away_m <= THRESHOLD_M
    satellite = polar_resample(_channels_first(views.satellite), _IMAGE, column0_deg=180.0)
    strips = {"satellite": np.stack([ground_strip(image) for image in satellite.permute(0, 2, 3, 1).numpy()])}
    there = ~views.street_missing
    strips["street"] = np.stack([ground_strip(image) for image in views.panorama[there]])
    images = {"satellite": views.satellite, "street": views.panorama[there]}
    answers = {"satellite": right, "street": right[:, there]}
    photos = np.stack([_histogram(image) for image in views.photo])

    result: dict[str, Any] = {"photos": len(views), "places": len(views), "chance": float(right.mean())}
    for source, found in answers.items():
        places = np.stack([_histogram(image) for image in images[source]])
        shared = np.stack([np.minimum(photo, places).sum(axis=1) for photo in photos])
        result[f"histogram_{source}"] = _recall(found, shared.argmax(axis=1))
        bank = StripBank.pack(torch.from_numpy(strips[source]), dtype="fp32")
        for name, fov in (("known", views.fov_deg), ("assumed", np.full(len(views), ASSUMED_FOV_DEG))):
            query, width = _queries(views.photo, fov)
            top = strip_topk(query, bank, 1, query_width=width, select="cosine")
            result[f"strips_{source}_{name}"] = _recall(found, top.index[:, 0].numpy())
    return result


def _recall(right: np.ndarray, answer: np.ndarray) -> float:
    return float(right[np.arange(len(answer)), answer].mean())


def _histogram(image: np.ndarray) -> np.ndarray:
    levels = (image // 32).reshape(-1, 3).astype(int) @ (64, 8, 1)
    return (np.bincount(levels, minlength=512) / len(levels)).astype(np.float32)


def ground_strip(image: np.ndarray) -> np.ndarray:
    """Float32 [3, 8, columns] of azimuth columns: `colour_cells`, 64 for a whole turn of 512."""
    return colour_cells(image, max(1, round(image.shape[1] * _COLUMNS / _IMAGE[1])))


def _queries(photos: np.ndarray, fov_deg: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    strips = [ground_strip(to_cylindrical(photo, fov, size=_IMAGE)) for photo, fov in zip(photos, fov_deg, strict=True)]
    width = torch.tensor([strip.shape[2] for strip in strips])
    query = torch.zeros(len(strips), *strips[0].shape[:2], int(width.max()))
    for row, strip in zip(query, strips, strict=True):
        row[..., : strip.shape[2]] = torch.from_numpy(strip)
    return query, width


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def main() -> None:
    """Prints how far hand-made features get on a synthetic city."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--places", type=int, default=300)
    parser.add_argument("--style", help="name or number; the mixed city without it")
    arguments = parser.parse_args()
    style = int(arguments.style) if (arguments.style or "").isdigit() else arguments.style
    views = make_city(
        arguments.seed,
        places=arguments.places,
        style=style,
        panorama_size=_IMAGE,
        fov_range=FIELD_OF_VIEW,
        capture=CROWD,
    )
    print(f"{views.style}, seed {arguments.seed}: {len(views)} photos, as many places, R@1 at {THRESHOLD_M:.0f} m")
    for name, value in floors(views).items():
        if isinstance(value, float):
            print(f"  {name:28}{100 * value:6.1f} %")


if __name__ == "__main__":
    main()
