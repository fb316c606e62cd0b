"""A synthetic continent on disk: cities far apart and roads between them, seen by photos and from above.

    out/places.parquet  photos.parquet
    out/harbour/aerial/51d3a4c7c.jpg  photo/harbour-00000.jpg  region.json

The manifest's places are S2 cells of `CELL_LEVEL`, one finer than the usual 16, so that a small continent has many:
their ids are S2 tokens, their `satellite` a tile 1.2 times as wide as the longest edge, taken in another year than any
photo. A few cells have none, and no row. Photos stand on the streets, more than enough of them in some cells of
`PROTOTYPE_LEVEL` and none in others, on the same few days in a whole region. What a test may ask is decided here:

    split "train", "val", "test": no place that is in one is in another; places are 20 m apart
    holdout "day": taken on a day from which there is no other photo
            "block": in a block of `BLOCK_LEVEL` without any other photo; there are tiles
            "city": in the city that has no other photos; there are tiles
            "": the rest

Each city has one of the eight European styles, and a tint of its own that drifts over its kilometres. Which cities and
roads there are, their bytes and their splits depend on `seed` alone; a region appears when it is complete, so that an
interrupted run goes on with the next.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from geoloc_fast.city.render import Day, photo_rays, satellite
from geoloc_fast.city.scene import City, generator
from geoloc_fast.city.styles import Lots, Style, style_of
from geoloc_fast.city.views import encode_jpeg, hand_held, stand_point
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.files import write_atomically
from geoloc_fast.geo import s2
from geoloc_fast.geo.sphere import offset_m
from geoloc_fast.progress import Progress

__all__ = ["BLOCK_LEVEL", "CELL_LEVEL", "HOLDOUTS", "PROTOTYPE_LEVEL", "write_continent"]

PROTOTYPE_LEVEL = 16
CELL_LEVEL = 17
BLOCK_LEVEL = 14
HOLDOUTS = ("day", "block", "city")

_FORMAT = 1  # a change of what a region looks like needs another number
# (style and name, lat, lon). The last has no photos but for tests.
_CITIES = (
    ("mediterranean", 38.4, -0.5),
    ("boulevards", 47.9, 1.9),
    ("medieval", 49.4, 11.1),
    ("industrial", 51.5, 7.0),
    ("harbour", 53.6, 9.9),
    ("nordic", 59.8, 10.7),
    ("slabs", 52.3, 21.0),
    ("terraces", 53.4, -2.9),
)
_COUNTRY = Style(
    name="country",
    spacing_m=((120, 210), (150, 260)),
    jitter_m=20.0,
    bend_m=20.0,
    missing=0.25,
    diagonal=0.05,
    road_m=(5.5, 6.5, 8.0),
    road_share=(0.4, 0.4, 0.2),
    walk_m=(0.8, 1.6),
    cobbled=0.0,
    marked=0.6,
    crossings=0.05,
    parking=0.0,
    lots=(
        ("fields", Lots(0.6, (9000, 30000), (0.0, 0.0), (0, 0), 0.0, fenced=0.3)),
        ("houses", Lots(0.25, (1200, 4000), (4.0, 9.0), (1, 2), 1.0, fenced=0.4)),
        ("woods", Lots(0.15, (4000, 9000), (0.0, 0.0), (0, 0), 0.0)),
    ),
    centred=False,
    shops=0.0,
    planted=0.15,
    wooded=0.5,
    traffic=0.3,
)
_DAYS = tuple(  # of the photos of every region; the last is the one held out
    np.datetime64(day)
    for day in (
        *("2024-03-12", "2024-05-27", "2024-08-03", "2024-10-19"),
        *("2025-01-24", "2025-04-16", "2025-06-30", "2025-09-08", "2025-11-11"),
    )
)
_AERIAL_DAYS = np.datetime64("2021-03-01"), np.datetime64("2023-10-31")
_TILE_IN_EDGES = 1.2  # width of a tile
_NO_TILE = 0.02  # share of cells
_BLOCKS = 0.08  # share of the blocks of a city that no photo of training is in
_LOOK, _PLACES, _PHOTO, _DAY, _TILE = range(20, 25)  # streams of random numbers, beside the scene's


@dataclass(frozen=True)
class _Region:
    """All that decides the bytes of one city or road."""

    name: str
    style: str
    lat: float
    lon: float
    seed: int
    places: int
    photos_per_cell: float  # of training, on average
    unseen: bool
    photo_size: tuple[int, int]
    tile_px: int

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps({"format": _FORMAT, **asdict(self)}))

    @property
    def look(self) -> Style:
        return _COUNTRY if self.style == _COUNTRY.name else style_of(self.style)


def _regions(
    seed: int, cities: int, places: int, photos_per_cell: float, photo_size: tuple[int, int], tile_px: int
) -> list[_Region]:
    chosen = [*_CITIES[: cities - 1], _CITIES[-1]]
    common = {"photo_size": photo_size, "tile_px": tile_px}
    found = [
        _Region(name, name, lat, lon, 100 * seed + k, places, photos_per_cell, k == cities - 1, **common)  # type: ignore[arg-type]
        for k, (name, lat, lon) in enumerate(chosen)
    ]
    for k in range(cities - 1):
        (_, lat, lon), (_, to_lat, to_lon) = chosen[k], chosen[k + 1]
        middle = (lat + to_lat) / 2, (lon + to_lon) / 2
        numbers = 100 * seed + 50 + k, max(places // 20, 40), photos_per_cell / 5
        found.append(_Region(f"road-{k}", _COUNTRY.name, *middle, *numbers, False, **common))  # type: ignore[arg-type]
    return found


def write_continent(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    cities: int = len(_CITIES),
    places: int = 3000,
    photos_per_cell: float = 5.0,
    photo_size: tuple[int, int] = (96, 128),
    tile_px: int = 96,
    progress: Progress | None = None,
) -> Manifest:
    """Makes the continent and writes it as a manifest folder.

    Args:
        out: a new folder, or one in which the same continent was begun.
        seed: of everything.
        cities: 2 to 8; the last is the unseen one. Roads lie between neighbours in the list.
        places: points on the streets of each city where photos may be taken; 3000 make a city of 4 km2.
        photos_per_cell: photos of training in a cell of `PROTOTYPE_LEVEL`, on average over cells that have any.
        photo_size: (rows, columns); `tile_px`: side of the aerial tiles.
        progress: called as progress(done, images of all regions so far or None).

    Returns:
        the manifest, already saved.
    """
    if not 2 <= cities <= len(_CITIES):
        raise ValueError(f"cities: expected 2 to {len(_CITIES)}, got {cities!r}")
    if places < 12 or photos_per_cell <= 0 or min(photo_size) < 8 or tile_px < 8 or tile_px % 2:
        raise ValueError(
            "places, photos_per_cell, photo_size, tile_px: expected at least 12 places, more than 0 photos, sizes from "
            f"8 and an even tile, got {(places, photos_per_cell, photo_size, tile_px)!r}"
        )
    root = Path(out)
    regions = _regions(seed, cities, places, photos_per_cell, photo_size, tile_px)
    for region in regions:  # before anything is made
        _refuse_other(root / region.name, region)
    root.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"places": [], "photos": []}
    for region in regions:
        if not (root / region.name).exists():
            done = sum(len(part) for part in rows.values())
            _write_region(root, region, lambda more, done=done: progress and progress(done + more, None))  # type: ignore[misc]
        content = json.loads((root / region.name / "region.json").read_text())
        for table, part in rows.items():
            part += content[table]
    manifest = Manifest.from_rows(root, rows["places"], rows["photos"])
    manifest.save()
    return manifest


def _refuse_other(folder: Path, region: _Region) -> None:
    if not folder.exists():
        return
    try:
        found = json.loads((folder / "region.json").read_text())["region"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"out: expected a part of a continent in {folder}, got something else ({error})"
        ) from None
    if found != region.as_json():
        raise FileExistsError(f"out: expected {folder} to be made from the same arguments, got {found}")


def _write_region(root: Path, region: _Region, progress: Callable[[int], Any]) -> None:
    """Complete or not at all."""
    partial = root / f".{region.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was interrupted
    try:
        for kind in ("aerial", "photo"):
            (partial / kind).mkdir(parents=True)
        city = _drift(replace(_build(region), origin_lat=region.lat, origin_lon=region.lon), region.seed)
        tiles = _write_tiles(partial, city, region, progress)
        photos = _write_photos(partial, city, region, lambda more: progress(len(tiles) + more))
        content = {"region": region.as_json(), "places": tiles, "photos": photos}
        write_atomically(partial / "region.json", json.dumps(content))
        os.sync()
        os.rename(partial, root / region.name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _build(region: _Region) -> City:
    look: str | Style = region.look if region.style == _COUNTRY.name else region.style
    return City.build(region.seed, places=region.places, style=look)


def _drift(city: City, seed: int) -> City:
    """A tint that changes by about a fifth over a kilometre or two, of grounds, roofs and facades."""
    parcels, step = city.parcels, 8
    owner = city.owner[::step, ::step]
    rows, cols = np.indices(owner.shape)
    count = len(parcels.tint)
    cells = np.maximum(np.bincount(owner.ravel(), minlength=count), 1)
    at = [np.bincount(owner.ravel(), weights=v.ravel(), minlength=count) / cells for v in (cols, rows)]
    x_m, y_m = city.west_m + at[0] * step * 0.2, city.north_m - at[1] * step * 0.2
    rng = generator(seed, _LOOK)

    def field() -> np.ndarray:
        values = np.zeros((count, 3))
        for channel in range(3):
            for _ in range(4):
                bearing, metres, phase = rng.uniform(0, 2 * np.pi), rng.uniform(700, 2200), rng.uniform(0, 2 * np.pi)
                along = x_m * np.sin(bearing) + y_m * np.cos(bearing)
                values[:, channel] += 0.06 * np.cos(2 * np.pi * along / metres + phase)
        return np.exp(values).astype(np.float32)

    ground, wall = field(), field()
    changed = replace(
        parcels,
        tint=parcels.tint * ground,
        facade=parcels.facade * wall,
        facade_before=parcels.facade_before * wall,
    )
    return replace(city, parcels=changed)


def _core(city: City) -> tuple[np.ndarray, float]:
    """Cells of the database, those with their centre between the places; and half the side of that square."""
    half_m = float(np.abs(city.places).max())
    steps = np.linspace(-half_m, half_m, 4 + int(half_m / 8))
    lat, lon = np.meshgrid(*city.to_lat_lon(steps, steps))
    ids = np.unique(s2.from_lat_lon(lat, lon, CELL_LEVEL))
    x_m, y_m = offset_m(city.origin_lat, city.origin_lon, *s2.center(ids))
    return ids[(np.abs(x_m) <= half_m) & (np.abs(y_m) <= half_m)], half_m


def _write_tiles(folder: Path, city: City, region: _Region, progress: Callable[[int], Any]) -> list[dict[str, Any]]:
    ids, _ = _core(city)
    side_m = _TILE_IN_EDGES * float(s2.edge_m(ids).max())
    x_m, y_m = offset_m(city.origin_lat, city.origin_lon, *s2.center(ids))
    flights: dict[int, Day] = {}
    rows = []
    for n, (cell, lat, lon) in enumerate(zip(ids, *s2.center(ids), strict=True)):
        flight = int(s2.parent(cell, PROTOTYPE_LEVEL - 1))  # neighbours are of one flight
        if flight not in flights:
            rng = generator(region.seed, _DAY, flight & 0xFFFFFFFF, flight >> 32)
            days = int((_AERIAL_DAYS[1] - _AERIAL_DAYS[0]).astype(int))
            date = np.datetime64(_AERIAL_DAYS[0] + int(rng.integers(days)))
            flights[flight] = Day.draw(rng, style=region.look, lat=region.lat, date=date, above=True)
        day = flights[flight]
        if generator(region.seed, _TILE, n).random() < _NO_TILE:
            continue
        name = s2.token(cell)
        tile = satellite(city, float(x_m[n]), float(y_m[n]), day, size_px=region.tile_px, side_m=side_m)
        (folder / "aerial" / f"{name}.jpg").write_bytes(encode_jpeg(tile, 90))
        rows.append(
            {
                "id": name,
                "lat": float(lat),
                "lon": float(lon),
                "city": region.name,
                "satellite": f"{region.name}/aerial/{name}.jpg",
                "metres_per_pixel": side_m / region.tile_px,
                "satellite_date": str(day.date),
            }
        )
        progress(n + 1)
    return rows


@dataclass(frozen=True)
class _Shot:
    place: int
    day: int
    split: str
    holdout: str


def _plan(city: City, region: _Region) -> list[_Shot]:
    """Which photos are taken: by cell of `PROTOTYPE_LEVEL`, at which of its places, on which days."""
    rng = generator(region.seed, _PLACES)
    lat, lon = city.to_lat_lon(*city.places.T)
    cell_of = s2.from_lat_lon(lat, lon, PROTOTYPE_LEVEL)
    cells = np.unique(cell_of)
    block_of = s2.parent(cells, BLOCK_LEVEL)
    blocks = np.unique(block_of)
    x_m, y_m = offset_m(city.origin_lat, city.origin_lon, *s2.center(blocks))
    half_m = float(np.abs(city.places).max())
    inner = blocks[(np.abs(x_m) < half_m - 150) & (np.abs(y_m) < half_m - 150)]
    held = rng.permutation(inner)[: round(_BLOCKS * len(blocks))] if region.style != _COUNTRY.name else inner[:0]
    last = len(_DAYS) - 1
    shots: list[_Shot] = []
    for cell, block in zip(cells, block_of, strict=True):
        places = rng.permutation(np.flatnonzero(cell_of == cell))
        days = rng.permutation(last)[: rng.integers(1, 7)]  # of this cell's photos of training
        spread = min(float(np.exp(rng.normal(-0.66, 1.15))) * region.photos_per_cell, 12 * region.photos_per_cell)
        count = 0 if rng.random() < 0.12 else int(spread + rng.random())
        apart = "city" if region.unseen else "block" if block in held else ""
        asked = places[: 2 if len(places) >= 6 else 1]
        shots += [_Shot(int(place), int(rng.integers(last)), "test", apart) for place in asked]
        if apart:
            continue
        free = places[len(asked) :]
        for split, holdout, share in (("val", "", 0.6), ("test", "day", 0.7)):
            if len(free) > 2 and rng.random() < share:
                day = last if holdout else int(rng.integers(last))
                shots.append(_Shot(int(free[0]), day, split, holdout))
                free = free[1:]
        for k in range(count if len(free) else 0):
            shots.append(_Shot(int(free[k % len(free)]), int(rng.choice(days)), "train", ""))
    return shots


def _write_photos(folder: Path, city: City, region: _Region, progress: Callable[[int], Any]) -> list[dict[str, Any]]:
    drives = [
        Day.draw(generator(region.seed, _DAY, k), style=region.look, lat=region.lat, date=date)
        for k, date in enumerate(_DAYS)
    ]
    rows = []
    for n, shot in enumerate(_plan(city, region)):
        name, rng = f"{region.name}-{n:05d}", generator(region.seed, _PHOTO, n)
        at = stand_point(city, city.places[shot.place], rng)
        heading_deg, fov_deg = float(rng.uniform(0, 360)), float(rng.uniform(60, 100))
        day = _exposed(drives[shot.day], rng)
        pitch_deg, roll_deg, eye_m = float(rng.normal(0, 1.5)), float(rng.normal(0, 0.7)), float(rng.uniform(1.45, 1.8))
        rays = photo_rays(
            city,
            at[0],
            at[1],
            heading_deg,
            fov_deg,
            day,
            size=region.photo_size,
            eye_m=eye_m,
            pitch_deg=pitch_deg,
            roll_deg=roll_deg,
        )
        (folder / "photo" / f"{name}.jpg").write_bytes(hand_held(rays.image(day), rng))
        lat, lon = (float(v) for v in city.to_lat_lon(*at))
        rows.append(
            {
                "id": name,
                "image": f"{region.name}/photo/{name}.jpg",
                "lat": lat,
                "lon": lon,
                "heading_deg": heading_deg,
                "fov_deg": fov_deg,
                "date": str(day.date),
                "city": region.name,
                "split": shot.split,
                "holdout": shot.holdout,
            }
        )
        progress(n + 1)
    return rows


def _exposed(day: Day, rng: Generator) -> Day:
    """The same day before another camera."""
    gain = (rng.uniform(0.72, 1.3) * rng.uniform(0.91, 1.09, size=3)).astype(np.float32)
    return replace(day, gain=gain, gamma=float(rng.uniform(0.8, 1.25)))
