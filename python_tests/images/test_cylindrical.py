"""Perspective photos in azimuth columns: every azimuth and elevation comes out where the convention says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geoloc_fast.images.cylindrical import to_cylindrical

SIZE = (64, 256)
DEGREES = 360 / SIZE[1]


def paint(pattern: Callable[[Any, Any], Any], fov_deg: float, height: int, width: int) -> np.ndarray:
    """The photo of a world whose brightness, 0 to 1, is pattern(azimuth_deg, elevation_deg)."""
    focal = width / 2 / np.tan(np.radians(fov_deg / 2))
    x = (np.arange(width) - (width - 1) / 2) / focal
    y = ((height - 1) / 2 - np.arange(height)[:, None]) / focal
    azimuth = np.arctan(x)
    bright = pattern(np.degrees(azimuth), np.degrees(np.arctan(y * np.cos(azimuth))))
    grey = np.rint(255 * np.broadcast_to(bright, (height, width))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def bar(position_deg: float) -> Callable[[Any], Any]:
    return lambda angle_deg: np.exp(-0.5 * ((angle_deg - position_deg) / 2.0) ** 2)


def centroid(weights: np.ndarray) -> float:
    return float((weights * np.arange(len(weights))).sum() / weights.sum())


@pytest.mark.parametrize("shape", [(96, 128), (600, 450), (901, 1201)])
@pytest.mark.parametrize("fov_deg", [40.0, 69.3, 90.0, 110.0, 135.0])
def test_azimuths_come_out_on_their_columns(fov_deg: float, shape: tuple[int, int]) -> None:
    errors = []
    for azimuth_deg in np.linspace(-fov_deg / 2 + 9, fov_deg / 2 - 9, 7):
        show = bar(azimuth_deg)
        out = to_cylindrical(paint(lambda azimuth, _, show=show: show(azimuth), fov_deg, *shape), fov_deg)
        columns = round(fov_deg / DEGREES)
        assert out.shape == (SIZE[0], columns, 3)
        found = centroid(out[SIZE[0] // 2 - 4 : SIZE[0] // 2 + 4, :, 0].astype(float).sum(0))
        errors.append(found - (azimuth_deg / DEGREES + columns / 2))
    assert np.abs(errors).max() < 0.1, errors
    assert abs(np.mean(errors)) < 0.02, errors


@pytest.mark.parametrize("fov_deg", [69.3, 90.0, 110.0])
def test_elevations_come_out_on_their_rows_in_every_column(fov_deg: float) -> None:
    for elevation_deg in (-12.0, 0.0, 7.5):
        show = bar(elevation_deg)
        photo = paint(lambda azimuth, elevation, show=show: show(elevation) + 0 * azimuth, fov_deg, 300, 400)
        out = to_cylindrical(photo, fov_deg)[..., 0].astype(float)
        expected = SIZE[0] / 2 - 0.5 - elevation_deg / DEGREES
        rows = [centroid(column) for column in out.T]
        assert np.abs(np.array(rows) - expected).max() < 0.12


@pytest.mark.parametrize("size", [(32, 128), (128, 512), (50, 300)])
def test_other_panorama_sizes(size: tuple[int, int]) -> None:
    degrees = 360 / size[1]
    show = bar(20.0)
    out = to_cylindrical(paint(lambda azimuth, _: show(azimuth), 90, 240, 320), 90, size=size)
    assert out.shape == (size[0], round(90 / degrees), 3)
    found = centroid(out[size[0] // 2, :, 0].astype(float))
    assert found == pytest.approx(20 / degrees + out.shape[1] / 2, abs=0.15)


def test_outside_is_black_and_columns_are_filled_to_the_edges() -> None:
    for fov_deg in (70.0, 71.1, 90.0, 109.9):
        out = to_cylindrical(np.full((60, 128, 3), 200, np.uint8), fov_deg)
        assert set(np.unique(out)) == {0, 200}
        assert (out[30:34] == 200).all(), "every column sees the photo at the horizon"
        assert (out[[0, -1]] == 0).all(), "nothing above and below"
        assert (out == out[::-1]).all()
        assert (out == out[:, ::-1]).mean() > 0.98  # left edges of bins: symmetric but for that half bin


def test_large_photos_do_not_alias() -> None:
    rows, columns = np.indices((1600, 2400))
    checks = np.where((rows + columns) % 2, 255, 0).astype(np.uint8)
    out = to_cylindrical(np.repeat(checks[..., None], 3, axis=2), 100.0)
    inside = out[SIZE[0] // 2 - 12 : SIZE[0] // 2 + 12].astype(float)
    assert np.abs(inside - 127.5).max() < 4


def test_bad_inputs_are_named() -> None:
    photo = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(TypeError, match="photo: expected a uint8 array, got float64"):
        to_cylindrical(photo.astype(float), 90)
    with pytest.raises(TypeError, match="photo: expected a uint8 array, got list"):
        to_cylindrical([[0]], 90)  # type: ignore[arg-type]
    for wrong in (photo[..., 0], photo[..., :2], photo[:0]):
        with pytest.raises(ValueError, match=r"photo: expected shape \[h, w, 3\]"):
            to_cylindrical(wrong, 90)
    for fov_deg in (0.0, -90.0, 0.5, 171.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fov_deg: expected"):
            to_cylindrical(photo, fov_deg)
    with pytest.raises(TypeError, match=r"fov_deg: expected degrees, got None; .* takes `assumed_fov_deg`"):
        to_cylindrical(photo, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size: expected"):
        to_cylindrical(photo, 90, size=(0, 256))
