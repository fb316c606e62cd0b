"""Polygons as regions: holes, borders, the antimeridian, and GeoJSON of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoloc_fast.geo.regions import Polygon, load_polygon, polygon_of

SQUARE = ((48.0, 11.0), (48.0, 12.0), (49.0, 12.0), (49.0, 11.0))
HOLE = ((48.4, 11.4), (48.4, 11.6), (48.6, 11.6), (48.6, 11.4))


def inside(region: Polygon, *points: tuple[float, float]) -> list[bool]:
    lat, lon = (np.array(values, float) for values in zip(*points, strict=True))
    return region.contains(lat, lon).tolist()  # type: ignore[no-any-return]


def test_a_ring_within_a_ring_is_a_hole_and_borders_belong() -> None:
    region = Polygon((SQUARE, HOLE))
    assert inside(region, (48.1, 11.1), (48.5, 11.5), (47.9, 11.5), (48.5, 12.1)) == [True, False, False, False]
    assert inside(region, (48.0, 11.0), (48.5, 11.0), (49.0, 11.3), (48.5, 12.0), (48.4, 11.5)) == [True] * 5
    closed = Polygon(((*SQUARE, SQUARE[0]),))
    assert inside(closed, (48.5, 11.5), (47.0, 11.5)) == [True, False]


def test_it_agrees_with_a_winding_number_on_random_stars() -> None:
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-2, 2, (2, 2000))
    for corners in (3, 7, 40):
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = rng.uniform(0.3, 2, corners)
        ring = np.stack([reach * np.sin(angle), reach * np.cos(angle)], 1)
        found = Polygon((tuple(map(tuple, ring.tolist())),)).contains(lat, lon)
        to = np.arctan2(ring[:, 0] - lat[:, None], ring[:, 1] - lon[:, None])
        turns = ((np.roll(to, -1, 1) - to + np.pi) % (2 * np.pi) - np.pi).sum(1)
        assert np.array_equal(found, np.abs(turns) > np.pi)


def test_it_crosses_the_antimeridian_the_short_way() -> None:
    region = Polygon((((-1, 179), (-1, -179), (1, -179), (1, 179)),))
    assert inside(region, (0, 179.5), (0, -179.5), (0, 180), (0, -180), (0, 178), (0, 0)) == [True] * 4 + [False] * 2


def test_geojson_gives_longitude_first(tmp_path: Path) -> None:
    ring = [[lon, lat] for lat, lon in (*SQUARE, SQUARE[0])]
    far = [[lon + 5, lat, 7.0] for lon, lat in ring]
    collection = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}},
            {"type": "Feature", "properties": {}, "geometry": {"type": "MultiPolygon", "coordinates": [[far]]}},
        ],
    }
    path = tmp_path / "region.geojson"
    path.write_text(json.dumps(collection))
    assert inside(load_polygon(path), (48.5, 11.5), (48.5, 16.5), (48.5, 14.0)) == [True, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a GeoJSON object"),
        ({"type": "Point", "coordinates": [1, 2]}, "expected polygons, got a 'Point'"),
        ({"type": "Feature", "geometry": None}, "expected a GeoJSON object"),
        ({"type": "FeatureCollection", "features": 3}, "expected a list"),
        ({"type": "Polygon", "coordinates": "x"}, "expected rings"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, None]]]}, "expected rings"),
        ({"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}, "at least three corners"),
        ({"type": "Polygon", "coordinates": []}, "at least one ring"),
        ({"type": "Polygon", "coordinates": [[[11, 98], [12, 98], [12, 99]]]}, "lat: expected degrees"),
        ({"type": "Polygon", "coordinates": [[[float("nan"), 8], [12, 8], [12, 9]]]}, "lon: expected degrees"),
        ({"type": "Polygon", "coordinates": [[[n / 1e6, 1 + n % 2] for n in range(100_001)]]}, "at most 100000"),
    ],
)
def test_what_is_no_region_is_told(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polygon_of(content)


def test_a_file_that_is_no_geojson_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.geojson"
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x.geojson: expected GeoJSON"):
            load_polygon(path)
