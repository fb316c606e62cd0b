"""Synthetic cities on disk: a manifest folder like that of any other region.

    out/places.parquet  photos.parquet
    out/00-harbour/satellite/00-harbour-00000.jpg  street/  classes/  photo/  city.json

A city appears under its name when it is complete, so an interrupted run goes on with the next one and
ends with the same bytes as an uninterrupted one, for any number of jobs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from geoloc_fast.city.render import CLASSES, KINDS
from geoloc_fast.city.scene import City, generator
from geoloc_fast.city.styles import STYLES
from geoloc_fast.city.views import (
    CROWD,
    FIELD_OF_VIEW,
    Capture,
    PlaceViews,
    Sizes,
    check_arguments,
    encode_jpeg,
    missing_street_views,
    take,
)
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.files import write_atomically
from geoloc_fast.progress import Progress

__all__ = ["REALISTIC", "CityRecipe", "recipes", "write_city", "write_recipes"]

REALISTIC = Sizes(satellite_px=336, panorama=(128, 512), photo=(240, 320))
MAX_CITIES = 1000
_FORMAT = 1  # of the folder; a change of what a recipe makes needs another number
_QUALITY = 90
_CHUNK = 8  # places a task
_SPLIT_STREAM = 6


@dataclass(frozen=True)
class CityRecipe:
    """All that decides the bytes of one city."""

    name: str
    seed: int
    style: int | None  # number of the style, None for a bit of everything
    places: int
    sizes: Sizes
    fov_range: tuple[float, float]
    capture: Capture
    kinds: bool = False
    """Also write what photos and satellite images show, number by number in `KINDS`."""

    @property
    def area(self) -> str:
        """Its part in the cross-area protocol."""
        return "train" if self.style is not None and self.style % 2 == 0 else "test"

    @property
    def style_name(self) -> str:
        return "mixed" if self.style is None else STYLES[self.style].name

    def as_json(self) -> str:
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)


def recipes(
    *,
    seed: int,
    cities: int,
    places: int,
    sizes: Sizes = REALISTIC,
    fov_range: tuple[float, float] = FIELD_OF_VIEW,
    capture: Capture = CROWD,
    kinds: bool = False,
) -> list[CityRecipe]:
    """City k has style k modulo twelve and the seed 1000 seed + k."""
    check_arguments(seed, places, sizes, fov_range, capture)
    if isinstance(cities, bool) or not isinstance(cities, int) or not 1 <= cities <= MAX_CITIES:
        raise ValueError(f"cities: expected an integer from 1 to {MAX_CITIES}, got {cities!r}")
    return [
        CityRecipe(
            name=f"{k:02d}-{STYLES[k % len(STYLES)].name}",
            seed=MAX_CITIES * seed + k,
            style=k % len(STYLES),
            places=places,
            sizes=sizes,
            fov_range=fov_range,
            capture=capture,
            kinds=kinds,
        )
        for k in range(cities)
    ]


def write_city(
    out: str | os.PathLike[str],
    *,
    seed: int,
    cities: int = 12,
    places: int = 100,
    area: str | None = None,
    sizes: Sizes = REALISTIC,
    fov_range: tuple[float, float] = FIELD_OF_VIEW,
    capture: Capture = CROWD,
    kinds: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Makes cities of all styles in turn and writes them as a manifest folder.

    Photos are split 3:1:1 into train, val and test within each city (`split`, for the same-area
    protocol); `area` says whether a city is one to train on or to test on (cross-area: even and odd
    styles). Places and photos carry the truth that calibration and evaluation need in columns of their
    own: `true_column0_deg`, `classes`, `style`; `pitch_deg`, `roll_deg`, `occlusion`.

    Args:
        out: a new folder, or one in which the same cities were begun: cities already there are kept.
        seed, cities, places: how many places in each of how many cities.
        area: "train" or "test": only the cities of this part of the cross-area protocol, under the names and with the
            bytes they have among all of them.
        sizes, fov_range, capture: see `views`; the defaults are realistic sizes and a careless crowd.
        kinds: also write what photos and satellite images show (`render.KINDS`), in columns `photo_kinds` and
            `satellite_kinds`, for models that learn it.
        jobs: processes that render. The bytes do not depend on it.
        progress: called as progress(done, places of all cities).

    Returns:
        the manifest, already saved.
    """
    todo = recipes(
        seed=seed, cities=cities, places=places, sizes=sizes, fov_range=fov_range, capture=capture, kinds=kinds
    )
    if area is not None:
        todo = [recipe for recipe in todo if recipe.area == area]
        if not todo:
            raise ValueError(f"area: expected one that is among the {cities} cities (train, test), got {area!r}")
    return write_recipes(out, todo, jobs=jobs, progress=progress)


def write_recipes(
    out: str | os.PathLike[str],
    todo: Sequence[CityRecipe],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Makes the cities of these recipes, as `write_city` does its own."""
    for recipe in todo:
        check_arguments(recipe.seed, recipe.places, recipe.sizes, recipe.fov_range, recipe.capture)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs: expected an integer >= 1, got {jobs!r}")
    root = Path(out)
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"out: expected a folder, got the file {root}")
    for recipe in todo:  # before anything is made
        _refuse_other(root / recipe.name, recipe)
    root.mkdir(parents=True, exist_ok=True)
    done, total = 0, sum(recipe.places for recipe in todo)
    pool = None
    if jobs > 1:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
    rows: list[dict[str, dict[str, Any]]] = []
    try:
        for recipe in todo:
            folder = root / recipe.name
            if not folder.exists():
                for finished in _make(root, recipe, pool):
                    if progress is not None:
                        progress(done + finished, total)
            done += recipe.places
            if progress is not None:
                progress(done, total)
            rows += json.loads((folder / "city.json").read_text())["rows"]
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
    manifest = Manifest.from_rows(root, [row["place"] for row in rows], [row["photo"] for row in rows])
    manifest.save()
    return manifest


def _refuse_other(folder: Path, recipe: CityRecipe) -> None:
    if not folder.exists():
        return
    try:
        found = json.loads((folder / "city.json").read_text())["recipe"]
        # Of a folder made before these were.
        found = {"kinds": False, **found, "sizes": {"satellite_m": Sizes.satellite_m, **found["sizes"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"out: expected a synthetic city in {folder}, got something else ({error})") from None
    expected = json.loads(recipe.as_json())
    if found != expected:
        changed = ", ".join(sorted(key for key in expected if found.get(key) != expected[key]))
        raise FileExistsError(f"out: expected the same recipe as that of {folder}, got another {changed}")


def _make(root: Path, recipe: CityRecipe, pool: ProcessPoolExecutor | None) -> Iterator[int]:
    """Writes one city, complete or not at all; yields how many places are done."""
    partial = root / f".{recipe.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was interrupted
    try:
        for kind in ("satellite", "street", "classes", "photo", *(["kinds"] if recipe.kinds else [])):
            (partial / kind).mkdir(parents=True)
        chunks = [range(n, min(n + _CHUNK, recipe.places)) for n in range(0, recipe.places, _CHUNK)]
        made: list[list[dict[str, Any]]] = [[] for _ in chunks]
        if pool is None:
            for i, chunk in enumerate(chunks):
                made[i] = _write_places(partial, recipe, chunk)
                yield chunk.stop
        else:
            tasks: dict[Future, int] = {
                pool.submit(_write_places, partial, recipe, chunk): i for i, chunk in enumerate(chunks)
            }
            finished = 0
            for task in as_completed(tasks):
                made[tasks[task]] = task.result()
                finished += len(chunks[tasks[task]])
                yield finished
        rows = [row for chunk_rows in made for row in chunk_rows]
        content = {"recipe": json.loads(recipe.as_json()), "classes": CLASSES, "kinds": KINDS, "rows": rows}
        write_atomically(partial / "city.json", json.dumps(content, indent=1))
        os.sync()  # the images, before the name that says they are complete
        os.rename(partial, root / recipe.name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@lru_cache(maxsize=1)
def _city(seed: int, places: int, style: int | None) -> City:
    return City.build(seed, places=places, style=style)


@lru_cache(maxsize=1)
def _splits(seed: int, places: int) -> list[str]:
    """3:1:1, as exactly as it goes."""
    fifth = round(places / 5)
    order = generator(seed, _SPLIT_STREAM).permutation(places)
    splits = np.full(places, "train", "<U5")
    splits[order[:fifth]] = "val"
    splits[order[fifth : 2 * fifth]] = "test"
    return splits.tolist()


def _write_places(folder: Path, recipe: CityRecipe, numbers: range) -> list[dict[str, Any]]:
    city = _city(recipe.seed, recipe.places, recipe.style)
    missing = missing_street_views(city, recipe.capture.missing)
    splits = _splits(recipe.seed, recipe.places)
    rows = []
    for n in numbers:
        view = take(
            city, n, sizes=recipe.sizes, fov_range=recipe.fov_range, capture=recipe.capture, missing=bool(missing[n]),
            kinds=recipe.kinds,
        )  # fmt: skip
        rows.append(_write_place(folder, recipe, city, n, view, splits[n]))
    return rows


def _write_place(
    folder: Path, recipe: CityRecipe, city: City, n: int, view: PlaceViews, split: str
) -> dict[str, dict[str, Any]]:
    name = f"{recipe.name}-{n:05d}"
    (folder / "satellite" / f"{name}.jpg").write_bytes(encode_jpeg(view.satellite, _QUALITY))
    (folder / "photo" / f"{name}.jpg").write_bytes(view.photo_jpeg)
    lat, lon = city.to_lat_lon(*city.places[n])
    photo_lat, photo_lon = city.to_lat_lon(*view.photo_at)
    place: dict[str, Any] = {
        "id": name,
        "lat": float(lat),
        "lon": float(lon),
        "city": recipe.name,
        "satellite": f"{recipe.name}/satellite/{name}.jpg",
        "metres_per_pixel": recipe.sizes.satellite_m / recipe.sizes.satellite_px,
        "satellite_date": str(view.satellite_date),
        "style": recipe.style_name,
        "area": recipe.area,
        **dict.fromkeys(("street", "street_lat", "street_lon", "street_date", "street_column0_deg")),
        "true_column0_deg": None,
        "classes": None,
    }
    if view.panorama is not None and view.classes is not None:
        (folder / "street" / f"{name}.jpg").write_bytes(encode_jpeg(view.panorama, _QUALITY))
        (folder / "classes" / f"{name}.png").write_bytes(cv2.imencode(".png", view.classes)[1].tobytes())
        street_lat, street_lon = city.to_lat_lon(*view.street_at)
        place |= {
            "street": f"{recipe.name}/street/{name}.jpg",
            "street_lat": float(street_lat),
            "street_lon": float(street_lon),
            "street_date": str(view.street_date),
            "street_column0_deg": view.street_column0_deg if view.street_heading_known else None,
            "true_column0_deg": view.street_column0_deg,
            "classes": f"{recipe.name}/classes/{name}.png",
        }
    photo = {
        "id": f"{name}-photo",
        "image": f"{recipe.name}/photo/{name}.jpg",
        "lat": float(photo_lat),
        "lon": float(photo_lon),
        "heading_deg": view.heading_deg,
        "fov_deg": view.fov_deg,
        "date": str(view.photo_date),
        "city": recipe.name,
        "place": name,
        "split": split,
        "area": recipe.area,
        "pitch_deg": view.pitch_deg,
        "roll_deg": view.roll_deg,
        "occlusion": view.occlusion,
    }
    if view.satellite_kinds is not None:
        for row, part, image in ((place, "satellite", view.satellite_kinds), (photo, "photo", view.photo_kinds)):
            path = f"kinds/{name}-{part}.png"
            (folder / path).write_bytes(cv2.imencode(".png", image)[1].tobytes())
            row[f"{part}_kinds"] = f"{recipe.name}/{path}"
    return {"place": place, "photo": photo}
