"""CVUSA (the subset of 44 416 aligned pairs that cross-view papers use)."""

from __future__ import annotations

import csv
import os
from pathlib import Path, PurePosixPath

from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.data.readers.lists import lines_of
from geoloc_fast.errors import ManifestError

__all__ = ["read_cvusa"]

SPLITS = {"train": "splits/train-19zl.csv", "val": "splits/val-19zl.csv"}
LOCATIONS = "split_locations/all.csv"


def read_cvusa(path: str | os.PathLike[str]) -> Manifest:
    """One place a satellite image, one photo a panorama, each photo with its place.

    The panorama is the *photo* (all the way round, north in the middle), as the benchmark has it: a place has no
    street view. Positions come from `split_locations/all.csv` (line n is image n: latitude and longitude of the
    satellite image, then of the panorama); where that file is absent, the manifest has none.
    """
    root = Path(path)
    problems: list[Problem] = []
    locations = _locations(root, problems) if (root / LOCATIONS).exists() else None
    places, photos = [], []
    for split, name in SPLITS.items():
        for row, cells in enumerate(csv.reader(lines_of(root, name)), start=1):
            if len(cells) not in (2, 3):
                reason = f"expected satellite image, panorama and annotation, got {len(cells)} cells"
                problems.append(Problem(name, row, None, reason))
                continue
            satellite, panorama = cells[0].strip(), cells[1].strip()
            image_id = PurePosixPath(satellite).stem
            place_at: tuple[float | None, float | None] = (None, None)
            photo_at: tuple[float | None, float | None] = (None, None)
            if locations is not None:
                number = int(image_id) if image_id.isascii() and image_id.isdigit() else 0
                if not 1 <= number <= len(locations):
                    problems.append(Problem(name, row, None, f"{image_id!r} is no line of {LOCATIONS}"))
                    continue
                at = locations[number - 1]
                place_at, photo_at = (at[0], at[1]), (at[2], at[3])
            places.append({"id": image_id, "lat": place_at[0], "lon": place_at[1], "satellite": satellite})
            photos.append(
                {
                    "id": image_id,
                    "image": panorama,
                    "lat": photo_at[0],
                    "lon": photo_at[1],
                    "heading_deg": 0.0,
                    "fov_deg": 360.0,
                    "place": image_id,
                    "split": split,
                }
            )
    if problems:
        raise ManifestError(problems)
    return Manifest.from_rows(root, places, photos)


def _locations(root: Path, problems: list[Problem]) -> list[tuple[float, ...]]:
    found = []
    for row, cells in enumerate(csv.reader(lines_of(root, LOCATIONS)), start=1):
        try:
            found.append(tuple(float(cell) for cell in cells[:4]))
            if len(found[-1]) != 4:
                raise ValueError
        except ValueError:
            problems.append(Problem(LOCATIONS, row, None, f"expected four numbers, got {','.join(cells)[:80]!r}"))
    return found
