"""The synthetic city: same seed, same city; and its three views see the same scene in the same frame."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import city_benchmark as benchmark
import city_sheet as sheet
import cv2
import numpy as np
import pytest

from geoloc_fast.city import (
    CLASSES,
    CROWD,
    STYLES,
    Capture,
    City,
    CityViews,
    make_city,
    render,
    scene,
)
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import recipes, write_city
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation import floor
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.cylindrical import to_cylindrical

PLACES = 24
SEED = 21
COLUMNS = 256


@pytest.fixture(scope="module")
def views() -> CityViews:
    return make_city(SEED, places=PLACES)


@pytest.fixture(scope="module")
def city() -> City:
    return City.build(SEED, places=PLACES)


@pytest.fixture(scope="module")
def crowd() -> CityViews:
    return make_city(
        SEED,
        places=50,
        style="grid",
        satellite_px=64,
        panorama_size=(32, 128),
        photo_size=(48, 64),
        fov_range=(50, 130),
        capture=CROWD,
    )


@pytest.fixture(scope="module")
def styles() -> list[City]:
    return [City.build(SEED, places=5, style=style) for style in range(len(STYLES))]


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
    assert views.style == "mixed"
    # Tidy unless asked otherwise: a fresh, aligned street view at every place, photos held level.
    assert not views.street_missing.any()
    assert views.street_heading_known.all() and (views.street_column0_deg == views.column0_deg).all()
    assert np.array_equal(views.street_lat, views.lat) and np.array_equal(views.street_lon, views.lon)
    assert (views.pitch_deg == 0).all() and (views.roll_deg == 0).all()
    for date in (views.satellite_date, views.street_date):
        age = (views.photo_date - date).astype(int)
        assert (age >= 0).all() and (age <= 365).all()


def test_views_survive_an_archive_without_pickle(views: CityViews) -> None:
    file = io.BytesIO()
    np.savez(file, **vars(views))
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        again = CityViews(**{name: stored[name][()] for name in stored.files})
    assert all(np.array_equal(getattr(again, f.name), getattr(views, f.name)) for f in fields(views))


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
        both = np.stack([image.mean(axis=-1), 3 * image[..., 1] - image.sum(axis=-1)])  # brightness, green excess
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


def overlap(photo: np.ndarray, fov_deg: float, heading_deg: float, panorama: np.ndarray, reach: int) -> np.ndarray:
    """Correlation of a photo with the panorama where its heading puts it, for shifts -reach to reach."""
    strip = to_cylindrical(photo, fov_deg).astype(np.float32)
    panorama = panorama.astype(np.float32)
    seen = (strip.sum(axis=2) > 0)[..., None]
    start = (heading_deg - 180) * COLUMNS / 360 - strip.shape[1] / 2

    def normalised(image: np.ndarray) -> np.ndarray:
        image = (image - (image * seen).sum(axis=(0, 1)) / seen.sum()) * seen
        return image / np.sqrt((image * image).sum())

    strip = normalised(strip)
    scores = []
    for shift in range(-reach, reach + 1):
        whole = int(np.floor(start + shift))
        part = start + shift - whole
        columns = (whole + np.arange(strip.shape[1])) % COLUMNS
        window = (1 - part) * panorama[:, columns] + part * panorama[:, (columns + 1) % COLUMNS]
        scores.append((normalised(window) * strip).sum())
    return np.array(scores)


def test_photos_see_the_panorama_at_their_heading(city: City, views: CityViews) -> None:
    day = render.Day.plain()
    scores = []
    for n, (x, y) in enumerate(city.places[:12]):
        street = render.panorama(city, x, y, day)
        eye_m = render.PANORAMA_EYE_M - city.height_m(x, y)
        shot = render.photo(city, x, y, views.heading_deg[n], views.fov_deg[n], day, eye_m=eye_m)
        scores.append(overlap(shot, views.fov_deg[n], views.heading_deg[n], street, 12))
    best = np.argmax(scores, axis=1) - 12
    assert (best == 0).all(), best
    left, peak, right = np.mean(scores, axis=0)[11:14]
    assert peak > 0.97
    assert abs(0.5 * (left - right) / (left - 2 * peak + right)) < 0.05


def test_crowd_photos_do_so_on_average(views: CityViews) -> None:
    scores = np.mean(
        [overlap(views.photo[n], views.fov_deg[n], views.heading_deg[n], views.panorama[n], 30) for n in range(PLACES)],
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


def test_styles_go_by_number_and_by_name() -> None:
    assert len({style.name for style in STYLES}) == len(STYLES) == 12
    prints = {City.build(4, places=2, style=style).fingerprint for style in (None, 2, "medieval", 7)}
    assert len(prints) == 3
    for wrong in (12, -1, "atlantis", 1.5, True):
        with pytest.raises(
            ValueError, match=r"^style: expected None, a number from 0 to 11 or one of harbour, .*, got"
        ):
            City.build(1, places=1, style=wrong)  # type: ignore[arg-type]


def test_every_style_lines_up_with_itself(styles: list[City]) -> None:
    day = render.Day.plain()
    for style, city in zip(STYLES, styles, strict=True):
        low, high = style.lat
        assert low <= city.origin_lat <= high
        pairs = [(render.satellite(city, x, y, day), render.panorama(city, x, y, day)) for x, y in city.places[:5]]
        scores = np.array([agreement(*pair) for pair in pairs])
        mean = scores.mean(axis=0)
        assert away(mean)[0] == 0, style.name
        assert np.median(away(scores)) <= 1, style.name
        # Turned by a right angle the two no longer agree, unless the panorama is turned as much.
        turned = np.mean([agreement(np.rot90(above), street) for above, street in pairs], axis=0)
        assert turned[0] < 0.6 * mean[0], style.name
        assert away(np.roll(turned, COLUMNS // 4))[0] <= 1 or away(np.roll(turned, -COLUMNS // 4))[0] <= 1


@pytest.mark.parametrize("style", [2, 3, 10])
def test_crowding_holds_in_every_street_pattern(style: int) -> None:
    places = City.build(0, places=40, style=style).places
    distance = np.hypot(*(places[:, None] - places).transpose(2, 0, 1))
    assert np.sort(distance, axis=1)[:, 1].min() >= 20
    assert (distance < 29).sum(axis=1).max() <= 3


def test_places_are_free_to_stand_on(styles: list[City]) -> None:
    for city in styles:
        assert all(city.is_free(x, y) for x, y in city.places)


def test_classes_say_what_is_seen(views: CityViews) -> None:
    share = {name: np.mean(views.classes == i) for i, name in enumerate(CLASSES)}
    assert views.classes.max() < len(CLASSES)
    assert share["sky"] > 0.15 and share["building"] > 0.05 and share["road"] > 0.15
    assert all(share[name] > 0 for name in CLASSES if name != "water")
    assert (views.classes[:, -1] == CLASSES.index("sky")).sum() == 0, "sky under the feet"
    # Overhead is sky far more often than not, and the sky is brighter than the rest.
    assert np.mean(views.classes[:, 0] == CLASSES.index("sky")) > 0.5
    sky = views.classes == CLASSES.index("sky")
    assert views.panorama[sky].mean() > views.panorama[~sky].mean() + 20


def test_a_tilted_photo_is_the_level_one_turned(city: City) -> None:
    day, (x, y), size, fov_deg = render.Day.plain(), city.places[3], (96, 128), 70.0
    level = render.photo(city, x, y, 120, fov_deg, day, size=size).astype(np.float32)
    focal = 64 / np.tan(np.radians(fov_deg) / 2)
    camera = np.array([[focal, 0, 63.5], [0, focal, 47.5], [0, 0, 1]])
    for pitch_deg, roll_deg in ((7.0, 0.0), (-4.0, 0.0), (0.0, 5.0), (5.0, -3.0)):
        tilted = render.photo(city, x, y, 120, fov_deg, day, size=size, pitch_deg=pitch_deg, roll_deg=roll_deg)
        pitch, roll = np.radians((pitch_deg, roll_deg))
        # Image axes: right, down, ahead. Looking up, a level ray moves down in the image.
        lift = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        tip = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        to_level = camera @ lift @ tip @ np.linalg.inv(camera)
        expected = cv2.warpPerspective(level, to_level, (128, 96), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        seen = cv2.warpPerspective(np.ones((96, 128)), to_level, (128, 96), flags=cv2.WARP_INVERSE_MAP) > 0.99
        assert seen.mean() > 0.7
        gain = expected[seen].mean() / tilted[seen].mean()  # the two meter their own light
        assert np.abs(expected[seen] - gain * tilted[seen]).mean() < 7, (pitch_deg, roll_deg)
        assert np.abs(level[seen] - gain * tilted[seen]).mean() > 12, "the tilt does nothing"


def test_a_turned_panorama_is_the_same_one_rolled(city: City) -> None:
    day, (x, y) = render.Day.plain(), city.places[0]
    street = render.panorama(city, x, y, day).astype(float)
    turned = render.panorama(city, x, y, day, column0_deg=270.0).astype(float)
    assert np.abs(np.roll(street, -64, axis=1) - turned).mean() < 0.5


def test_what_goes_wrong_is_said(crowd: CityViews) -> None:
    count = len(crowd)
    assert crowd.street_missing.sum() == round(0.38 * count)
    for images in (crowd.panorama, crowd.classes):
        assert (images.reshape(count, -1).max(axis=1) == 0).tolist() == crowd.street_missing.tolist()
    age = (crowd.photo_date - crowd.street_date).astype(int)
    assert 0.1 < np.mean(age > 366) < 0.4 and age.max() < 8 * 366
    off_m = great_circle_m(crowd.street_lat, crowd.street_lon, crowd.lat, crowd.lon)
    assert 0.1 < np.mean(off_m > 1) < 0.5 and off_m.max() < 12.01
    known = crowd.street_heading_known
    assert 0.3 < known.mean() < 0.7
    assert (crowd.street_column0_deg[known] == 180).all() and np.ptp(crowd.street_column0_deg[~known]) > 180
    assert 1 < crowd.pitch_deg.std() < 5 and 0.5 < crowd.roll_deg.std() < 3
    assert crowd.fov_deg.min() < 65 and crowd.fov_deg.max() > 115
    assert crowd.occlusion.max() > 0.2 and np.median(crowd.occlusion) < 0.15


def test_missing_street_views_lie_together() -> None:
    from geoloc_fast.city.views import missing_street_views

    city = City.build(1, places=150)
    missing = missing_street_views(city, 0.38)
    distance = np.hypot(*(city.places[:, None] - city.places).transpose(2, 0, 1))
    neighbour = np.argsort(distance, axis=1)[:, 1:4]
    assert missing.sum() == 57
    assert (missing[neighbour] == missing[:, None]).mean() > 0.38**2 + 0.62**2 + 0.05
    assert missing_street_views(city, 0.0).sum() == 0 and missing_street_views(city, 1.0).all()


def test_buildings_come_and_go_before_the_photos(city: City) -> None:
    assert 0.05 < len(city.changes) / (city.parcels.eaves_m > 0).sum() < 0.25
    first, last = scene.CHANGES
    today = replace(render.Day.plain(), date=last)
    later = replace(today, date=last + np.timedelta64(500, "D"))
    before = replace(today, date=first)
    came = next(c for c in city.changes if c.built is not None)
    went = next(c for c in city.changes if c.gone is not None)
    for stencil in (came, went):
        rows, cols = np.nonzero(stencil.height_cm)
        x = city.west_m + (stencil.col + cols.mean()) * scene.CELL_M
        y = city.north_m - (stencil.row + rows.mean()) * scene.CELL_M
        if np.abs((x, y)).max() > -city.west_m - 70:
            continue
        now, then = (render.satellite(city, x, y, day, size_px=64).astype(int) for day in (today, before))
        assert np.abs(now - then)[24:40, 24:40].mean() > 3
        assert np.array_equal(now, render.satellite(city, x, y, later, size_px=64))
    assert came.stands(last) and not came.stands(first)
    assert went.stands(first) and not went.stands(last)
    parcels = city.parcels
    repainted = np.abs(parcels.facade - parcels.facade_before).max(axis=1) > 0
    assert 0.1 < repainted[parcels.eaves_m > 0].mean() < 0.4
    assert (parcels.painted <= last).all()


def test_the_sun_stands_where_it_does() -> None:
    noon_deg, high_deg = render._sun(50.0, 171, 0.0, 0.0, 0.0)  # midsummer, 63.4 degrees high in the south
    assert noon_deg == pytest.approx(180) and high_deg == pytest.approx(63.4, abs=0.2)
    assert render._sun(50.0, 171, -5.0, -5.0, 0.0)[0] == pytest.approx(88, abs=4)  # in the east at seven
    assert render._sun(-20.0, 171, 0.0, 0.0, 0.0)[0] == pytest.approx(0, abs=0.01)  # in the north, down there
    for lat in (-12, 24, 45, 63.5):
        for day in range(0, 365, 20):
            assert 4.9 < render._sun(lat, day, -5.0, 5.0, 0.05)[1] < 77


def test_the_floor_finds_what_is_there(views: CityViews) -> None:
    result = floor.floors(views)
    assert result["chance"] < 0.1
    assert result["histogram_satellite"] < 0.3 and result["histogram_street"] < 0.3
    # With panoramas as photos the same features cannot miss, whichever way the photo looks.
    bank = floor.StripBank.pack(
        floor.torch.from_numpy(np.stack([floor.ground_strip(p) for p in views.panorama])), dtype="fp32"
    )
    parts = np.stack([floor.ground_strip(np.roll(p, 40 - 96, axis=1)[:, :160]) for p in views.panorama])
    top = floor.strip_topk(floor.torch.from_numpy(parts), bank, 1, select="cosine")
    assert (top.index[:, 0].numpy() == np.arange(PLACES)).mean() > 0.8


def test_the_floor_is_printed_beside_chance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["floor", "--places", "8", "--seed", "3", "--style", "harbour"])
    floor.main()
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "harbour, seed 3: 8 photos, as many places, R@1 at 25 m"
    names = [row.split()[0] for row in rows]
    assert names[:3] == ["chance", "histogram_satellite", "strips_satellite_known"] and len(names) == 7


SMALL = Sizes(satellite_px=64, panorama=(16, 64), photo=(24, 32))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_of_cities(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = write_city(
        tmp_path / "a", seed=3, cities=2, places=10, sizes=SMALL, progress=lambda *done: calls.append(done)
    )
    assert calls[-1] == (20, 20) and calls == sorted(calls)
    assert Manifest.load(tmp_path / "a") == manifest
    assert manifest.validate(images=True) == []
    places, photos = manifest.places.to_pylist(), manifest.photos.to_pylist()
    assert len(places) == len(photos) == 20
    assert sorted({p["city"] for p in places}) == ["00-harbour", "01-grid"]
    assert {(p["city"], p["area"]) for p in photos} == {("00-harbour", "train"), ("01-grid", "test")}
    for name in ("00-harbour", "01-grid"):
        splits = [p["split"] for p in photos if p["city"] == name]
        assert sorted(splits) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2
    assert sum(p["street"] is None for p in places) == 8  # 38 %
    recipe = recipes(seed=3, cities=2, places=10, sizes=SMALL)[1]
    made = make_city(
        recipe.seed,
        places=10,
        style=recipe.style,
        satellite_px=64,
        panorama_size=(16, 64),
        photo_size=(24, 32),
        fov_range=recipe.fov_range,
        capture=recipe.capture,
    )
    for n in range(10):
        place, photo = places[10 + n], photos[10 + n]
        assert photo["place"] == place["id"]
        assert (photo["lat"], photo["heading_deg"], photo["fov_deg"]) == (
            made.photo_lat[n],
            made.heading_deg[n],
            made.fov_deg[n],
        )
        stored = cv2.imdecode(np.frombuffer(manifest.open_image(photo["image"]), np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(stored[..., ::-1], made.photo[n])
        assert (place["street"] is None) == made.street_missing[n]
        if place["street"] is not None:
            assert place["true_column0_deg"] == made.street_column0_deg[n]
            assert (place["street_column0_deg"] is None) == (not made.street_heading_known[n])
            classes = np.frombuffer(manifest.open_image(place["classes"]), np.uint8)
            assert np.array_equal(cv2.imdecode(classes, cv2.IMREAD_UNCHANGED), made.classes[n])


def test_an_interrupted_folder_goes_on(tmp_path: Path) -> None:
    def make(name: str, **options: Any) -> None:
        arguments: dict[str, Any] = {"seed": 3, "cities": 2, "places": 9, "sizes": SMALL} | options
        write_city(tmp_path / name, **arguments)

    def interrupt(done: int, total: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    make("whole")
    make("area", area="test")
    assert sorted(path.name for path in (tmp_path / "area").iterdir() if path.is_dir()) == ["01-grid"]
    rows = [json.loads((tmp_path / name / "01-grid/city.json").read_text()) for name in ("whole", "area")]
    assert rows[0] == rows[1]
    with pytest.raises(ValueError, match="area: expected one that is among the 2 cities"):
        make("none", area="north")
    with pytest.raises(KeyboardInterrupt):
        make("cut", progress=interrupt)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["00-harbour"]
    (tmp_path / "cut/.01-grid.partial/photo").mkdir(parents=True)  # of a run that was killed
    (tmp_path / "cut/.01-grid.partial/photo/old.jpg").write_bytes(b"half")
    kept = (tmp_path / "cut/00-harbour/city.json").stat().st_mtime_ns
    make("cut")
    assert (tmp_path / "cut/00-harbour/city.json").stat().st_mtime_ns == kept
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")
    with pytest.raises(FileExistsError, match=r"^out: expected the same recipe as that of .*, got another places$"):
        make("cut", places=8)
    (tmp_path / "cut/00-harbour/city.json").unlink()
    with pytest.raises(FileExistsError, match=r"^out: expected a synthetic city in .*, got something else"):
        make("cut")


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_jobs(tmp_path: Path) -> None:
    for jobs in (1, 3):
        write_city(tmp_path / str(jobs), seed=5, cities=2, places=20, sizes=SMALL, jobs=jobs)
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "3")


@pytest.mark.slow
@pytest.mark.parametrize("style", range(len(STYLES)))
def test_colour_gives_no_place_away_in_any_style(style: int) -> None:
    result = floor.floors(make_city(11, places=150, style=style, fov_range=(50, 130), capture=CROWD))
    assert result["histogram_satellite"] < 0.15
    assert result["histogram_street"] < 0.15


def test_bad_arguments_of_a_folder(tmp_path: Path) -> None:
    for name, wrong in {
        "cities": {"cities": 0},
        "places": {"places": 0},
        "seed": {"seed": -3},
        "jobs": {"jobs": 0},
        "satellite_px": {"sizes": Sizes(satellite_px=15)},
    }.items():
        arguments: dict[str, Any] = {"seed": 1, "cities": 1, "places": 1} | wrong
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            write_city(tmp_path / "out", **arguments)
        assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"^out: expected a folder, got the file"):
        write_city(tmp_path / "file", seed=1, cities=1, places=1)


@pytest.mark.checkout
def test_the_benchmark_is_frozen() -> None:
    todo = benchmark.benchmark_recipes()
    assert [recipe.name for recipe in todo] == list(benchmark.SCENES)
    assert [recipe.area for recipe in todo] == ["train", "test"] * 6
    page = (Path(__file__).parents[2] / "docs/guide/synthetic_city.md").read_text()
    for recipe in todo:
        assert f"| {recipe.name} | {recipe.area} | {benchmark.SCENES[recipe.name]} |" in page
    assert benchmark.VIEWS in page and benchmark.VIEWS_MADE_WITH in page
    cheap = todo[1]
    assert benchmark.build(cheap).fingerprint == benchmark.SCENES[cheap.name]


@pytest.mark.slow
def test_all_of_the_benchmark_is_frozen() -> None:
    for recipe in benchmark.benchmark_recipes():
        assert benchmark.build(recipe).fingerprint == benchmark.SCENES[recipe.name], recipe.name


def test_the_contact_sheet_shows_every_style() -> None:
    image = sheet.contact_sheet(numbers=(1,), row_px=32)
    assert image.shape == (12 * 32, 32 + 128 + 42, 3)


def test_bad_inputs_are_named() -> None:
    for name, wrong in {
        "seed": {"seed": -1},
        "places": {"places": 0},
        "satellite_px": {"satellite_px": 255},
        "panorama_size": {"panorama_size": (200, 256)},
        "photo_size": {"photo_size": (0, 128)},
        "fov_range": {"fov_range": (110.0, 70.0)},
        "style": {"style": "atlantis"},
        "missing": {"capture": Capture(missing=1.5)},
        "tilt_deg": {"capture": Capture(tilt_deg=-1)},
        "in_the_way": {"capture": Capture(in_the_way=99)},
    }.items():
        arguments: dict[str, Any] = {"seed": 1, "places": 1} | wrong
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            make_city(arguments.pop("seed"), **arguments)


def test_the_package_itself_does_not_load_the_city() -> None:
    code = "import sys, geoloc_fast; assert not {'cv2', 'geoloc_fast.data'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
