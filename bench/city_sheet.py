"""A contact sheet of the twelve styles, to look at.

    python bench/city_sheet.py docs/pictures/city_styles.jpg

Each place is its satellite image, its street panorama and a crowd photo. Yellow marks what the photo
sees: a wedge from above, a bar over the panorama.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from geoloc_fast.city.scene import City
from geoloc_fast.city.styles import STYLES
from geoloc_fast.city.views import CROWD, FIELD_OF_VIEW, PlaceViews, Sizes, encode_jpeg, take
from geoloc_fast.files import write_atomically

_SEED = 5
_ROW_PX = 160
_YELLOW = (255, 220, 0)


def contact_sheet(*, seed: int = _SEED, numbers: tuple[int, ...] = (1, 4), row_px: int = _ROW_PX) -> np.ndarray:
    """One row per style, one column per place number; uint8 RGB."""
    sizes = Sizes(satellite_px=2 * row_px, panorama=(row_px, 4 * row_px), photo=(row_px, row_px * 4 // 3))
    capture = replace(CROWD, missing=0.0)
    rows = []
    for style, look in enumerate(STYLES):
        city = City.build(seed + style, places=max(numbers) + 3, style=style)
        views = [take(city, n, sizes=sizes, fov_range=FIELD_OF_VIEW, capture=capture) for n in numbers]
        row = np.hstack([_place(city, n, view, row_px) for n, view in zip(numbers, views, strict=True)])
        where = (6, row_px - 8)
        for colour, weight in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(row, f"{style} {look.name}", where, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, weight, cv2.LINE_AA)
        rows.append(row)
    return np.vstack(rows)


def _place(city: City, n: int, view: PlaceViews, row_px: int) -> np.ndarray:
    above = cv2.resize(view.satellite, (row_px, row_px), interpolation=cv2.INTER_AREA)
    east, north = (view.photo_at - city.places[n]) * row_px / 50.0
    camera = np.array([row_px / 2 + east, row_px / 2 - north])
    for side in (-0.5, 0.5):
        angle = np.radians(view.heading_deg + side * view.fov_deg)
        end = camera + 0.35 * row_px * np.array([np.sin(angle), -np.cos(angle)])
        cv2.line(above, camera.astype(int).tolist(), end.astype(int).tolist(), _YELLOW, 1, cv2.LINE_AA)
    assert view.panorama is not None
    street = np.ascontiguousarray(view.panorama)
    columns = street.shape[1]
    left = (view.heading_deg - view.fov_deg / 2 - view.street_column0_deg) / 360 * columns
    seen = np.arange(int(left), int(left + view.fov_deg / 360 * columns)) % columns
    street[:3, seen] = _YELLOW
    return np.hstack([above, street, view.photo])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=_SEED)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, encode_jpeg(contact_sheet(seed=arguments.seed), 82))


if __name__ == "__main__":
    main()
