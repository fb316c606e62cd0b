"""S2 cells against the S2 library itself, and what the stencil promises."""

from __future__ import annotations

import numpy as np
import pytest
import s2geometry as oracle

from geoloc_fast.geo import s2
from geoloc_fast.geo.regions import Box, Circle
from geoloc_fast.geo.sphere import EARTH_RADIUS_M, great_circle_m, move_m

CUBE_CORNER = float(np.degrees(np.arctan(np.sqrt(0.5))))


def points(count: int) -> tuple[np.ndarray, np.ndarray]:
    """All over the sphere, a third of them in Europe; poles, the antimeridian, edges of faces, corners of the cube."""
    rng = np.random.default_rng(20)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    lon = rng.uniform(-180, 180, count)
    lat[::3], lon[::3] = rng.uniform(36, 61, len(lat[::3])), rng.uniform(-10, 30, len(lon[::3]))
    meridians = np.array([-180.0, -135, -90, -45, 0, 45, 90, 135, 180])
    along = rng.uniform(-90, 90, len(lat) // 100)
    special = [(90.0, 0.0), (-90.0, 0.0), (90.0, 123.0), (-90.0, -77.0)]
    special += [(sign * CUBE_CORNER, lon) for sign in (-1, 1) for lon in (-135.0, -45.0, 45.0, 135.0)]
    special += [(lat, lon) for lat in (0.0, 45.0, -45.0) for lon in meridians]
    extra_lat, extra_lon = np.array(special).T
    edge_lon = rng.uniform(-45, 45, len(along))  # on the edges round the upper and the lower face
    edge_lat = np.degrees(np.arctan(np.cos(np.radians(edge_lon)))) * rng.choice([-1, 1], len(along))
    lat = np.concatenate([lat, extra_lat, along, edge_lat])
    lon = np.concatenate([lon, extra_lon, rng.choice(meridians, len(along)), edge_lon])
    return lat, lon


def oracle_cell(lat: float, lon: float) -> oracle.S2CellId:
    return oracle.S2CellId(oracle.S2LatLng.FromDegrees(lat, lon))


def degrees(found: list[oracle.S2LatLng]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([at.lat().degrees() for at in found]), np.array([at.lng().degrees() for at in found])


def equal_everywhere(count: int) -> None:
    lat, lon = points(count)
    leaves = np.array([oracle_cell(*at).id() for at in zip(lat, lon, strict=True)], np.uint64)
    np.testing.assert_array_equal(s2.from_lat_lon(lat, lon, 30), leaves)
    for level in (0, 1, 2, 13, 16):
        mine = s2.from_lat_lon(lat, lon, level)
        np.testing.assert_array_equal(s2.parent(leaves, level), mine)
        some = mine[:: max(1, len(mine) // 3000)]
        cells = [oracle.S2CellId(int(cell)) for cell in some]
        assert all(cell.is_valid() and cell.level() == level for cell in cells)
        np.testing.assert_array_equal(s2.level(mine), level)
        np.testing.assert_array_equal(s2.children(some), [[cell.child(k).id() for k in range(4)] for cell in cells])
        centre = [cell.ToLatLng() for cell in cells]
        apart_m = great_circle_m(*s2.center(some), *degrees(centre))  # a pole has any longitude
        assert apart_m.max() < 1e-6


def test_ids_levels_children_and_centres_are_those_of_the_library() -> None:
    equal_everywhere(10_000)


@pytest.mark.slow
def test_a_million_ids_are_those_of_the_library() -> None:
    equal_everywhere(1_000_000)


def test_parents_are_those_of_the_library() -> None:
    lat, lon = points(300)
    for at in zip(lat, lon, strict=True):
        cell = oracle_cell(*at)
        np.testing.assert_array_equal(
            [s2.parent(cell.id(), level) for level in range(31)], [cell.parent(level).id() for level in range(31)]
        )


def test_corners_edges_and_areas_are_those_of_the_library() -> None:
    lat, lon = points(300)
    for level in (0, 3, 15, 20):
        ids = s2.from_lat_lon(lat, lon, level)
        cells = [oracle.S2Cell(oracle.S2CellId(int(cell))) for cell in ids]
        got_lat, got_lon = s2.corners(ids)
        for k in range(4):
            at = [oracle.S2LatLng(cell.GetVertex(k)) for cell in cells]
            assert great_circle_m(got_lat[:, k], got_lon[:, k], *degrees(at)).max() < 1e-6
        area = np.array([cell.ExactArea() for cell in cells]) * EARTH_RADIUS_M**2
        np.testing.assert_allclose(s2.area_m2(ids), area, rtol=1e-9 if level < 16 else 1e-4)
        length = great_circle_m(got_lat, got_lon, np.roll(got_lat, -1, axis=-1), np.roll(got_lon, -1, axis=-1))
        np.testing.assert_allclose(s2.edge_m(ids), length, rtol=1e-6)
    assert s2.area_m2(s2.children(s2.from_lat_lon(0, 0, 0))).sum() == pytest.approx(
        4 * np.pi * EARTH_RADIUS_M**2 / 6, rel=1e-12
    )


def test_the_stencil_is_the_librarys_vertex_neighbours() -> None:
    lat, lon = points(3_000)
    inner = np.abs(lat) < 89.999
    lat, lon = lat[inner], lon[inner]
    for level in (1, 4, 15):
        ids, weights = s2.stencil(lat, lon, level)
        np.testing.assert_array_equal(ids[:, 0], s2.from_lat_lon(lat, lon, level))
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
        assert (weights >= 0).all()
        np.testing.assert_array_equal(weights[ids == 0], 0)
        generic = (weights.min(axis=-1, where=ids > 0, initial=1) > 1e-9) & (np.abs(weights - 0.25) > 1e-9).any(axis=-1)
        for row in np.flatnonzero(generic)[::7]:
            leaf = oracle_cell(lat[row], lon[row])
            expected = {cell.id() for cell in leaf.GetVertexNeighbors(level)}
            assert {int(cell) for cell in ids[row] if cell} == expected


def test_the_stencil_weighs_a_centre_alone_and_a_border_in_halves() -> None:
    ids = s2.from_lat_lon(*points(500), 15)
    around, weights = s2.stencil(*s2.center(ids), 15)
    np.testing.assert_array_equal(around[:, 0], ids)
    np.testing.assert_allclose(weights[:, 0], 1, atol=1e-6)
    _, weights = s2.stencil(CUBE_CORNER, 45.0, 15)
    np.testing.assert_allclose(np.sort(weights), [0, 1 / 3, 1 / 3, 1 / 3], atol=1e-6)


def value_at(lat: np.ndarray, lon: np.ndarray, level: int) -> np.ndarray:
    """A field drawn at random for every cell, interpolated."""
    ids, weights = s2.stencil(lat, lon, level)
    drawn = np.sin((ids >> np.uint64(40)).astype(np.float64) * 12.9898) * (ids > 0)
    return (drawn * weights).sum(axis=-1)


@pytest.mark.parametrize(
    ("lat", "lon"),
    [(50.0, 8.0), (20.0, 45.0), (CUBE_CORNER, 45.0), (CUBE_CORNER, -45.0), (0.0, 135.0), (-45.0, 0.0), (45.0, 180.0)],
)
def test_what_is_interpolated_never_jumps(lat: float, lon: float) -> None:
    level = 9  # cells of 18 km: the walk crosses cells, faces and a corner of the cube
    step_m = 5.0
    edge_m = s2.edge_m(s2.from_lat_lon(lat, lon, level)).min()
    for bearing in np.radians([3.0, 95.0, 217.0]):
        along = np.arange(-4000, 4000) * step_m
        walk = value_at(*move_m(lat, lon, along * np.sin(bearing), along * np.cos(bearing)), level)
        assert np.abs(np.diff(walk)).max() < 8 * step_m / edge_m


def test_a_cover_of_a_circle_is_the_librarys() -> None:
    for lat, lon, metres in (
        (52.5, 13.4, 900.0),
        (CUBE_CORNER, 45.0, 700.0),
        (90.0, 0.0, 1500.0),
        (10.0, 180.0, 400.0),
    ):
        coverer = oracle.S2RegionCoverer()
        coverer.set_fixed_level(15)
        coverer.set_max_cells(100_000)
        cap = oracle.S2Cap(
            oracle.S2LatLng.FromDegrees(lat, lon).ToPoint(), oracle.S1Angle.Radians(metres / EARTH_RADIUS_M)
        )
        expected = sorted(cell.id() for cell in coverer.GetCovering(cap))
        assert s2.cover(Circle(lat, lon, metres), 15).tolist() == expected


@pytest.mark.parametrize(
    "box",
    [
        Box(52.50, 13.38, 52.52, 13.42),
        Box(-0.01, 179.99, 0.01, -179.99),
        Box(89.99, -180, 90, 180),
        Box(35.25, 44.99, 35.28, 45.01),
        Box(60, 10, 60, 10),
    ],
)
def test_a_cover_of_a_box_holds_all_of_it_and_little_else(box: Box) -> None:
    ids = s2.cover(box, 15)
    assert (np.diff(ids.astype(np.int64)) > 0).all()
    rng = np.random.default_rng(3)
    across = (box.east - box.west) % 360 or (box.east - box.west)
    lat = np.r_[rng.uniform(box.south, box.north, 4000), box.south, box.south, box.north, box.north]
    east = np.r_[rng.uniform(0, across, 4000), 0, across, 0, across]
    lon = (box.west + east + 180) % 360 - 180
    inside = s2.from_lat_lon(lat, lon, 15)
    assert np.isin(inside, ids).all()
    met = np.unique(inside)
    assert len(ids) <= len(met) + 4 + 0.2 * len(met)


def test_tokens_are_the_librarys() -> None:
    for cell in s2.from_lat_lon(*points(50), 13)[::10]:
        assert s2.token(cell) == oracle.S2CellId(int(cell)).ToToken()
        assert s2.from_token(s2.token(cell)) == cell


def test_shapes_follow_the_arguments() -> None:
    assert s2.from_lat_lon(50.0, [[1.0, 2.0]], 10).shape == (1, 2)
    assert s2.stencil([], [], 10)[1].shape == (0, 4)
    assert s2.children(np.empty((0,), np.uint64)).shape == (0, 4)
    assert s2.center(np.empty((0,), np.uint64))[0].shape == (0,)


def test_what_is_no_cell_is_refused() -> None:
    cell = s2.from_lat_lon(50.0, 8.0, 12)
    for call, words in (
        (lambda: s2.from_lat_lon(np.nan, 0.0, 3), "lat: expected degrees from -90 to 90, got"),
        (lambda: s2.from_lat_lon(0.0, 181.0, 3), "lon: expected degrees from -180 to 180"),
        (lambda: s2.stencil(0.0, 0.0, 31), "level: expected an integer from 0 to 30, got 31"),
        (lambda: s2.parent(cell, 13), "level: expected at most the cells' own, got 13"),
        (lambda: s2.children(s2.from_lat_lon(50.0, 8.0, 30)), "a leaf"),
        (lambda: s2.center([0]), "ids: expected S2 cells"),
        (lambda: s2.level([2]), "ids: expected S2 cells"),
        (lambda: s2.level([1.5]), "ids: expected uint64"),
        (lambda: s2.from_token("x1"), "token: expected"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()
