"""Distances and small moves on the sphere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geoloc_fast.geo.sphere import EARTH_RADIUS_M, great_circle_m, move_m, offset_m


def test_known_distances() -> None:
    quarter = math.pi / 2 * EARTH_RADIUS_M
    assert great_circle_m(0.0, 0.0, 90.0, 17.0) == pytest.approx(quarter)
    assert great_circle_m(0.0, -45.0, 0.0, 45.0) == pytest.approx(quarter)
    assert great_circle_m(0.0, 0.0, 0.0, 180.0) == pytest.approx(2 * quarter)
    assert great_circle_m(10.0, 179.9, 10.0, -179.9) == pytest.approx(great_circle_m(10.0, 0.1, 10.0, -0.1))
    # Paris to London, 343.6 km by haversine
    assert great_circle_m(48.8566, 2.3522, 51.5074, -0.1278) == pytest.approx(343_556, rel=1e-4)
    assert great_circle_m(51.0, 3.0, 51.0, 3.0) == 0.0


def test_near_points_keep_their_digits() -> None:
    # a millimetre north
    step = math.degrees(1e-3 / EARTH_RADIUS_M)
    assert great_circle_m(48.0, 2.0, 48.0 + step, 2.0) == pytest.approx(1e-3, rel=1e-4)


def test_numpy_and_torch_agree_and_broadcast() -> None:
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-90, 90, 7), rng.uniform(-180, 180, 7)
    numpy = great_circle_m(lat[:, None], lon[:, None], lat, lon)
    tensor_lat, tensor_lon = torch.from_numpy(lat), torch.from_numpy(lon)
    tensor = great_circle_m(tensor_lat[:, None], tensor_lon[:, None], tensor_lat, tensor_lon)
    assert tensor.shape == (7, 7)
    np.testing.assert_allclose(tensor.numpy(), numpy, rtol=1e-12, atol=1e-6)
    np.testing.assert_allclose(numpy, numpy.T)
    one = great_circle_m(tensor_lat, tensor_lon, 48.0, 2.0)
    np.testing.assert_allclose(one.numpy(), great_circle_m(lat, lon, 48.0, 2.0))


@pytest.mark.parametrize("lat", [-70.0, 0.0, 22.3, 51.9])
@pytest.mark.parametrize("lon", [-180.0, 4.48, 179.9999])
def test_offsets_move_and_measure(lat: float, lon: float) -> None:
    east, north = np.array([0.0, 300.0, -40.0, 0.0]), np.array([0.0, 0.0, 25.0, -800.0])
    to_lat, to_lon = move_m(lat, lon, east, north)
    assert ((to_lon >= -180) & (to_lon < 180)).all()
    back_east, back_north = offset_m(lat, lon, to_lat, to_lon)
    np.testing.assert_allclose(back_east, east, atol=1e-6)
    np.testing.assert_allclose(back_north, north, atol=1e-6)
    np.testing.assert_allclose(great_circle_m(lat, lon, to_lat, to_lon), np.hypot(east, north), rtol=2e-4, atol=1e-6)
    tensor = move_m(torch.tensor(lat).double(), torch.tensor(lon).double(), 300.0, 0.0)
    assert float(tensor[1]) == pytest.approx(float(to_lon[1]))
