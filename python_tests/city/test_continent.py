"""The synthetic continent: cells, photos, and what is held out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from geoloc_fast.city.continent import BLOCK_LEVEL, CELL_LEVEL, PROTOTYPE_LEVEL, _plan, _Region, write_continent
from geoloc_fast.city.scene import City
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.geo import s2
from geoloc_fast.geo.sphere import great_circle_m

SMALL = {"cities": 2, "places": 40, "photos_per_cell": 2.0, "photo_size": (24, 32), "tile_px": 24}


@pytest.fixture(scope="module")
def continent(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_continent(tmp_path_factory.mktemp("continent") / "small", **SMALL)  # type: ignore[arg-type]


def column(manifest: Manifest, name: str) -> np.ndarray:
    return np.array(manifest.photos[name].to_pylist())


def test_places_are_cells_and_every_image_is_there(continent: Manifest) -> None:
    ids = np.array([s2.from_token(token) for token in continent.places["id"].to_pylist()], np.uint64)
    np.testing.assert_array_equal(s2.level(ids), CELL_LEVEL)
    lat, lon = (continent.places[name].to_numpy() for name in ("lat", "lon"))
    assert great_circle_m(lat, lon, *s2.center(ids)).max() < 1e-3
    pixels = continent.places["metres_per_pixel"].to_numpy() * 24
    assert (pixels > s2.edge_m(ids).max(axis=-1)).all()
    for file in continent.places["satellite"].to_pylist() + continent.photos["image"].to_pylist():
        assert (continent.root / file).is_file()
    assert continent.places["satellite_date"].to_numpy().max() < continent.photos["date"].to_numpy().min()


def test_what_is_held_out_is_nowhere_else(continent: Manifest) -> None:
    split, holdout, city, date = (column(continent, name) for name in ("split", "holdout", "city", "date"))
    assert set(split) == {"train", "val", "test"}
    assert (split[holdout != ""] == "test").all()
    assert set(city[holdout == "city"]) == {"terraces"}
    assert (holdout[city == "terraces"] == "city").all()
    assert not set(date[holdout == "day"]) & set(date[holdout != "day"])
    lat, lon = (continent.photos[name].to_numpy() for name in ("lat", "lon"))
    train = split == "train"
    for row in np.flatnonzero(split != "train"):
        assert great_circle_m(lat[row], lon[row], lat[train], lon[train]).min() > 11  # places 20 m apart, 4 m off each


def region(**changes: object) -> _Region:
    known = {"name": "x", "style": "grid", "lat": 50.0, "lon": 8.0, "seed": 3, "places": 1000, "photos_per_cell": 5.0}
    return _Region(**{**known, "unseen": False, "photo_size": (24, 32), "tile_px": 24, **changes})  # type: ignore


class Streets:
    """A city's places on a grid of streets, without a scene."""

    def __init__(self) -> None:
        at = np.arange(-1000, 1001, 30.0)
        self.places = np.stack(np.meshgrid(at, at[::2]), axis=-1).reshape(-1, 2)

    to_lat_lon = City.to_lat_lon
    origin_lat, origin_lon = 50.0, 8.0


def test_blocks_are_left_out_whole_and_density_goes_from_nothing_to_heavy() -> None:
    streets = Streets()
    shots = _plan(streets, region())  # type: ignore[arg-type]
    lat, lon = streets.to_lat_lon(*streets.places.T)  # type: ignore[misc]
    cell = s2.from_lat_lon(lat, lon, PROTOTYPE_LEVEL)
    block = s2.parent(cell, BLOCK_LEVEL)
    held = {int(block[shot.place]) for shot in shots if shot.holdout == "block"}
    seen = {int(block[shot.place]) for shot in shots if shot.holdout != "block"}
    assert held
    assert not held & seen
    assert 0.04 < len(held) / len(held | seen) < 0.12
    by_split = [{shot.place for shot in shots if shot.split == split} for split in ("train", "val", "test")]
    assert not (by_split[0] & by_split[1] or by_split[0] & by_split[2] or by_split[1] & by_split[2])
    trained = [int(cell[shot.place]) for shot in shots if shot.split == "train"]
    counts = [trained.count(int(one)) for one in np.unique(cell)]
    assert min(counts) == 0
    assert max(counts) >= 20
    assert 2 < np.median([count for count in counts if count]) < 8
    assert not [shot for shot in _plan(streets, region(unseen=True)) if shot.split != "test"]  # type: ignore[arg-type]


def test_a_continent_begun_goes_on_and_is_the_same(continent: Manifest, tmp_path: Path) -> None:
    copy = tmp_path / "begun"
    shutil.copytree(continent.root, copy)
    shutil.rmtree(copy / "road-0")
    (copy / ".road-0.partial" / "photo").mkdir(parents=True)
    again = write_continent(copy, **SMALL)  # type: ignore[arg-type]
    assert again.photos.equals(continent.photos)
    for file in continent.photos["image"].to_pylist() + continent.places["satellite"].to_pylist():
        assert (copy / file).read_bytes() == (continent.root / file).read_bytes()
    assert not list(copy.glob(".*.partial"))


def test_other_arguments_and_other_folders_are_refused(continent: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="the same arguments"):
        write_continent(continent.root, **{**SMALL, "seed": 1})  # type: ignore[arg-type]
    (tmp_path / "mediterranean").mkdir()
    with pytest.raises(FileExistsError, match="something else"):
        write_continent(tmp_path, **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cities: expected 2 to 8, got 1"):
        write_continent(tmp_path, cities=1)
    with pytest.raises(ValueError, match="an even tile"):
        write_continent(tmp_path, tile_px=25)
