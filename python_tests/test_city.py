"""The synthetic city: same seed, same city; and its three views see the same scene in the same frame."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from geoloc_fast.data.city import City, CityViews, make_city, render
from geoloc_fast.data.cylindrical import to_cylindrical
from geoloc_fast.geo import great_circle_m

PLACES = 24
SEED = 21
COLUMNS = 256


@pytest.fixture(scope="module")
def views() -> CityViews:
    return make_city(SEED, places=PLACES)


@pytest.fixture(scope="module")
def city() -> City:
    return City.build(SEED, places=PLACES)


def test_shapes_and_ranges(views: CityViews) -> None:
    assert len(views) == PLACES
    assert views.satellite.shape == (PLACES, 256, 256, 3)
    assert views.panorama.shape == (PLACES, 64, 256, 3)
    assert views.photo.shape == (PLACES, 96, 128, 3)
    for images in (views.satellite, views.panorama, views.photo):
        assert images.dtype == np.uint8
        assert images.reshape(PLACES, -1).std(axis=1).min() > 5, "an image without content"
    for name in ("lat", "lon", "photo_lat", "photo_lon", "heading_deg", "fov_deg"):
        values = getattr(views, name)
        assert values.shape == (PLACES,), name
        assert values.dtype == np.float64, name
    assert views.metres_per_pixel == 50 / 256
    assert views.column0_deg == 180.0
    assert ((views.heading_deg >= 0) & (views.heading_deg < 360)).all()
    assert ((views.fov_deg >= 70) & (views.fov_deg <= 110)).all()
    assert ((np.abs(views.lat) < 60) & (np.abs(views.lat) > 30)).all()


def test_places_keep_their_distance(views: CityViews, city: City) -> None:
    between = great_circle_m(views.lat[:, None], views.lon[:, None], views.lat, views.lon)
    assert between[~np.eye(PLACES, dtype=bool)].min() > 19.99
    to_photo = great_circle_m(views.photo_lat[:, None], views.photo_lon[:, None], views.lat, views.lon)
    own = np.diag(to_photo)
    assert own.max() < 4.01
    assert own.mean() > 1
    assert (to_photo < 25).sum(axis=1).max() <= 3
    assert max(city.height_m(x, y) for x, y in city.places) < 0.5, "a place inside a building"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_crowding_holds_in_larger_cities(seed: int) -> None:
    places = City.build(seed, places=150).places
    distance = np.hypot(*(places[:, None] - places).transpose(2, 0, 1))
    assert np.sort(distance, axis=1)[:, 1].min() >= 20
    # A photo is up to 4 m from its place, so these are all that may lie within 25 m of it.
    assert (distance < 29).sum(axis=1).max() <= 3


def test_a_seed_is_a_city(views: CityViews) -> None:
    def small(seed: int) -> CityViews:
        return make_city(seed, places=3, satellite_px=64, panorama_size=(16, 64), photo_size=(24, 32))

    def same(a: CityViews, b: CityViews) -> bool:
        return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))

    first, other, again = small(5), small(6), small(5)
    assert same(first, again)
    assert not same(first, other)
    np.random.default_rng().random(3)
    assert same(make_city(SEED, places=PLACES), views)


def test_progress_and_sizes() -> None:
    calls: list[tuple[int, int]] = []
    out = make_city(
        3,
        places=2,
        satellite_px=128,
        panorama_size=(32, 128),
        photo_size=(40, 30),
        fov_range=(60, 60),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 2), (2, 2)]
    assert out.satellite.shape == (2, 128, 128, 3)
    assert out.panorama.shape == (2, 32, 128, 3)
    assert out.photo.shape == (2, 40, 30, 3)
    assert out.metres_per_pixel == 50 / 128
    assert (out.fov_deg == 60).all()


def polar(satellite: np.ndarray, distance_m: np.ndarray) -> np.ndarray:
    """Rows of the satellite image in polar form that lie nearest to given distances; nearest pixel."""
    side, rows = len(satellite), 64
    radius = side / 2 * (rows - 1 - np.arange(rows)) / rows
    nearest = radius[np.abs(radius * 50 / side - distance_m[:, None]).argmin(axis=1)][:, None]
    theta = np.radians(180 + 360 * np.arange(COLUMNS) / COLUMNS)
    row, col = side / 2 - nearest * np.cos(theta), side / 2 + nearest * np.sin(theta)
    return satellite[np.rint(row).astype(int), np.rint(col).astype(int)]


def agreement(satellite: np.ndarray, panorama: np.ndarray) -> np.ndarray:
    """Of the ground 3 to 22 m away, for every shift of the polar satellite image; [COLUMNS]."""
    rows = np.arange(36, 62)
    distance_m = 2.2 / np.tan(np.radians(rows - 31.5) * 360 / COLUMNS)

    def features(image: np.ndarray) -> np.ndarray:
        image = image.astype(float)
        both = np.stack([image.mean(axis=-1), image @ (-1.0, 2.0, -1.0)])  # brightness, green excess
        both -= both.mean(axis=-1, keepdims=True)
        return np.fft.rfft(both / (both.std(axis=-1, keepdims=True) + 5))

    above, street = features(polar(satellite, distance_m)), features(panorama[rows])
    score = np.fft.irfft(above.conj() * street, n=COLUMNS).sum(axis=(0, 1))
    return score / (2 * len(rows) * COLUMNS)


def away(scores: np.ndarray) -> np.ndarray:
    """Distance of each row's best shift from 0."""
    best = np.atleast_2d(scores).argmax(axis=1)
    return np.minimum(best, COLUMNS - best)


def test_satellite_and_panorama_line_up_column_for_column(city: City) -> None:
    day = render.Day.plain()
    scores = np.array(
        [agreement(render.satellite(city, x, y, day), render.panorama(city, x, y, day)) for x, y in city.places]
    )
    assert away(scores).max() <= 2
    mean = scores.mean(axis=0)
    assert mean.argmax() == 0
    # Neighbours on both sides alike: no half column of bias. A parabola through the peak tells.
    left, peak, right = mean[-1], mean[0], mean[1]
    assert abs(0.5 * (left - right) / (left - 2 * peak + right)) < 0.15
    assert peak > mean[COLUMNS // 2] + 0.3


def test_they_still_do_on_different_days(views: CityViews) -> None:
    scores = np.array([agreement(*pair) for pair in zip(views.satellite, views.panorama, strict=True)])
    mean = scores.mean(axis=0)
    assert away(mean)[0] <= 1
    assert np.mean(away(scores) <= 4) > 0.5
    assert mean[0] > 2 * mean[20:-20].max()
    here, turned = scores[:, 0], scores[:, COLUMNS // 2]
    assert np.mean(here > turned) > 0.9


def overlap(photo: np.ndarray, fov_deg: float, heading_deg: float, panorama: np.ndarray) -> np.ndarray:
    """Correlation of a photo with the panorama where its heading puts it, for shifts -30 to 30."""
    strip = to_cylindrical(photo, fov_deg).astype(float)
    seen = (strip.sum(axis=2) > 0)[..., None]
    start = (heading_deg - 180) * COLUMNS / 360 - strip.shape[1] / 2

    def normalised(image: np.ndarray) -> np.ndarray:
        image = (image - (image * seen).sum(axis=(0, 1)) / seen.sum()) * seen
        return image / np.linalg.norm(image)

    scores = []
    for shift in range(-30, 31):
        whole = int(np.floor(start + shift))
        part = start + shift - whole
        columns = (whole + np.arange(strip.shape[1])) % COLUMNS
        window = (1 - part) * panorama[:, columns] + part * panorama[:, (columns + 1) % COLUMNS]
        scores.append((normalised(window) * normalised(strip)).sum())
    return np.array(scores)


def test_photos_see_the_panorama_at_their_heading(city: City, views: CityViews) -> None:
    day = render.Day.plain()
    scores = []
    for n, (x, y) in enumerate(city.places[:12]):
        street = render.panorama(city, x, y, day)
        eye_m = render.PANORAMA_EYE_M - city.height_m(x, y)
        shot = render.photo(city, x, y, views.heading_deg[n], views.fov_deg[n], day, eye_m=eye_m)
        scores.append(overlap(shot, views.fov_deg[n], views.heading_deg[n], street))
    best = np.argmax(scores, axis=1) - 30
    assert (best == 0).all(), best
    left, peak, right = np.mean(scores, axis=0)[29:32]
    assert peak > 0.97
    assert abs(0.5 * (left - right) / (left - 2 * peak + right)) < 0.05


def test_crowd_photos_do_so_on_average(views: CityViews) -> None:
    scores = np.mean(
        [
            overlap(views.photo[n], views.fov_deg[n], views.heading_deg[n], views.panorama[n].astype(float))
            for n in range(PLACES)
        ],
        axis=0,
    )
    assert abs(scores.argmax() - 30) <= 4
    assert scores[30] > scores[[0, -1]].max() + 0.1


def test_colour_alone_does_not_give_the_place_away(views: CityViews) -> None:
    def histogram(image: np.ndarray) -> Any:
        levels = (image // 32).reshape(-1, 3).astype(int) @ (64, 8, 1)
        return np.bincount(levels, minlength=512) / len(levels)

    photos = np.array([histogram(image) for image in views.photo])
    for images in (views.satellite, views.panorama):
        places = np.array([histogram(image) for image in images])
        shared = np.minimum(photos[:, None], places).sum(axis=2)
        assert np.mean(shared.argmax(axis=1) == np.arange(PLACES)) < 0.3


def test_bad_inputs_are_named() -> None:
    for name, wrong in {
        "seed": {"seed": -1},
        "places": {"places": 0},
        "satellite_px": {"satellite_px": 255},
        "panorama_size": {"panorama_size": (200, 256)},
        "photo_size": {"photo_size": (0, 128)},
        "fov_range": {"fov_range": (110.0, 70.0)},
    }.items():
        arguments: dict[str, Any] = {"seed": 1, "places": 1} | wrong
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            make_city(arguments.pop("seed"), **arguments)


def test_the_package_itself_does_not_load_the_city() -> None:
    code = "import sys, geoloc_fast; assert not {'cv2', 'geoloc_fast.data'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
