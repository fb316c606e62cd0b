"""Places and their images: positions and dates of the cameras, and the faults of photos.

`make_city` is the whole of it in memory; `take` makes one place at a time, the same one whatever was
made before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from geoloc_fast.city.render import (
    PERSON,
    ROAD,
    SATELLITE_SIDE_M,
    VEHICLE,
    Day,
    class_at,
    panorama_rays,
    photo_rays,
    satellite,
    satellite_kinds,
)
from geoloc_fast.city.scene import GRAIN_SIZE, PHOTO_OFFSET_M, City, generator
from geoloc_fast.city.styles import STYLES, style_number, style_of
from geoloc_fast.progress import Progress

_STREAMS = {"satellite": 2, "panorama": 3, "photo": 4, "coverage": 5}  # of random numbers, beside the scene's
FIRST_PHOTO = np.datetime64("2024-07-01")  # photos are taken in the year from here on
FIELD_OF_VIEW = (50.0, 130.0)  # of crowd photos
COLUMN0_DEG = 180.0  # north is in the middle of a panorama


@dataclass(frozen=True)
class Capture:
    """The circumstances in which images are taken. The defaults are tidy: every place has a recent street view of known
    heading, and photos are level. `CROWD` has the faults of photos by many people and of street view cars."""

    missing: float = 0.0  # share of places without a street view; neighbours tend to lack it together
    stale: float = 0.0  # share of street views more than a year older than the photo, up to eight
    standing_off: float = 0.0  # share of street views taken 2 to 12 m from their place
    turned: float = 0.0  # share of street views whose north is not known, and is anywhere
    tilt_deg: float = 0.0  # deviation of the photos' pitch; their roll deviates by half of it
    in_the_way: float = 0.0  # vehicles close before the camera of a photo, on average
    people: float = 1.2  # in a photo, on average

    def check(self) -> None:
        """ValueError for a value out of range, naming the argument."""
        for name in ("missing", "stale", "standing_off", "turned"):
            _require(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1", getattr(self, name))
        _require(0 <= self.tilt_deg <= 5, "tilt_deg", "0 to 5 degrees", self.tilt_deg)
        for name in ("in_the_way", "people"):
            _require(0 <= getattr(self, name) <= 20, name, "0 to 20", getattr(self, name))


TIDY = Capture()
CROWD = Capture(missing=0.38, stale=0.25, standing_off=0.3, turned=0.5, tilt_deg=3.0, in_the_way=0.35, people=2.0)


@dataclass(frozen=True)
class Sizes:
    """Of the images, in pixels."""

    satellite_px: int = 256
    panorama: tuple[int, int] = (64, 256)  # rows, columns
    photo: tuple[int, int] = (96, 128)
    satellite_m: float = SATELLITE_SIDE_M
    """Side of the satellite image on the ground."""

    @classmethod
    def around(cls, panorama: tuple[int, int]) -> Sizes:
        """Photos and satellite images about as fine as panoramas of so many rows and columns."""
        rows = panorama[0]
        return cls(min(4 * rows, 400), panorama, (3 * rows // 2, 2 * rows))

    def check(self) -> None:
        """ValueError for a size that cannot be rendered, naming the argument."""
        side = self.satellite_px
        _require(_whole(side) and side >= 16 and side % 2 == 0, "satellite_px", "an even size >= 16", side)
        _require(25 <= self.satellite_m <= 150, "satellite_m", "25 to 150 metres", self.satellite_m)
        for name, size in (("panorama_size", self.panorama), ("photo_size", self.photo)):
            _require(len(size) == 2 and min(size) >= 8, name, "(rows, columns), each >= 8", size)
        rows, columns = self.panorama
        _require(
            rows % 2 == 0 and columns % 2 == 0 and 2 * rows <= columns,
            "panorama_size",
            "even rows and columns with rows <= columns / 2",
            self.panorama,
        )


@dataclass(frozen=True, eq=False)
class PlaceViews:
    """One place: its images and the truth about them. Points are metres in the city's frame."""

    satellite: np.ndarray
    panorama: np.ndarray | None  # None: there is no street view
    classes: np.ndarray | None  # uint8 [H, W], numbers in `render.CLASSES`
    photo_jpeg: bytes
    photo: np.ndarray  # the same, decoded
    street_at: np.ndarray
    street_column0_deg: float
    street_heading_known: bool
    photo_at: np.ndarray
    heading_deg: float
    fov_deg: float
    pitch_deg: float
    roll_deg: float
    occlusion: float  # share of the photo that vehicles and people cover
    satellite_date: np.datetime64
    street_date: np.datetime64
    photo_date: np.datetime64
    photo_kinds: np.ndarray  # uint8 [h, w], numbers in `render.KINDS`
    satellite_kinds: np.ndarray | None  # uint8 [n, n], of cells of `scene.CELL_M`; None: not asked for


def missing_street_views(city: City, share: float) -> np.ndarray:
    """Which places have no street view: bool [N], the share of them to the nearest place."""
    rng = generator(city.seed, _STREAMS["coverage"])
    cells = np.rint(city.places / 3.0).astype(int) & (GRAIN_SIZE - 1)
    covered = city.clouds[cells[:, 1], cells[:, 0]] + 0.5 * rng.standard_normal(len(cells))
    missing = np.zeros(len(cells), bool)
    missing[np.argsort(covered, kind="stable")[: round(share * len(cells))]] = True
    return missing


def take(
    city: City,
    n: int,
    *,
    sizes: Sizes = Sizes(),
    fov_range: tuple[float, float] = (70.0, 110.0),
    capture: Capture = TIDY,
    missing: bool = False,
    kinds: bool = False,
) -> PlaceViews:
    """All images of place `n`; with `kinds`, also what the satellite image shows."""
    style, lat = style_of(city.style), city.origin_lat
    place = city.places[n]

    rng = generator(city.seed, _STREAMS["photo"], n)
    photo_date = np.datetime64(FIRST_PHOTO + int(rng.integers(365)))
    photo_at = stand_point(city, place, rng)
    heading_deg, fov_deg = rng.uniform(0, 360), rng.uniform(*fov_range)
    tilt = capture.tilt_deg * np.clip(rng.standard_normal(2), -3, 3) * (1.0, 0.5)
    crowd = rng.poisson(capture.people)
    bearing = np.radians(heading_deg + rng.uniform(-0.5, 0.5, size=crowd) * fov_deg)
    away_m = rng.uniform(2.5, 12, size=(crowd, 1))
    spots = photo_at + away_m * np.stack([np.sin(bearing), np.cos(bearing)], axis=1)
    people = _dressed(spots, rng)
    vehicles = _in_the_way(city, photo_at, heading_deg, fov_deg, rng.poisson(capture.in_the_way), rng)
    day = Day.draw(rng, style=style, lat=lat, date=photo_date)
    rays = photo_rays(
        city,
        photo_at[0],
        photo_at[1],
        heading_deg,
        fov_deg,
        day,
        size=sizes.photo,
        eye_m=rng.uniform(1.45, 1.8),
        pitch_deg=tilt[0],
        roll_deg=tilt[1],
        people=people,
        vehicles=vehicles,
    )
    photo_jpeg = hand_held(rays.image(day), rng)
    seen = rays.kinds()

    rng = generator(city.seed, _STREAMS["satellite"], n)
    satellite_date = np.datetime64(photo_date - int(rng.integers(365)))
    day = Day.draw(rng, style=style, lat=lat, date=satellite_date, above=True)
    above = satellite(city, place[0], place[1], day, size_px=sizes.satellite_px, side_m=sizes.satellite_m)
    ground = satellite_kinds(city, place[0], place[1], day, side_m=sizes.satellite_m) if kinds else None

    rng = generator(city.seed, _STREAMS["panorama"], n)
    stale, off, turned = rng.random(3) < (capture.stale, capture.standing_off, capture.turned)
    age = rng.integers(367, 8 * 365) if stale else rng.integers(365)
    street_date = np.datetime64(photo_date - int(age))
    street_at = _road_near(city, place, rng) if off else place
    column0_deg = float(rng.uniform(0, 360)) if turned else COLUMN0_DEG
    day = Day.draw(rng, style=style, lat=lat, date=street_date)
    walkers = street_at + rng.uniform(-11, 11, size=(rng.poisson(1.5 * capture.people), 2))
    free = [bool(city.is_free(x, y)) and np.hypot(x - street_at[0], y - street_at[1]) > 3 for x, y in walkers]
    street = None
    if not missing:
        street = panorama_rays(
            city,
            street_at[0],
            street_at[1],
            day,
            size=sizes.panorama,
            column0_deg=column0_deg,
            people=_dressed(walkers[np.array(free, bool)], rng),
        )
    return PlaceViews(
        satellite=above,
        panorama=None if street is None else street.image(day),
        classes=None if street is None else street.classes(),
        photo_jpeg=photo_jpeg,
        photo=_decode(photo_jpeg),
        street_at=street_at,
        street_column0_deg=column0_deg,
        street_heading_known=not turned,
        photo_at=photo_at,
        heading_deg=float(heading_deg),
        fov_deg=float(fov_deg),
        pitch_deg=float(tilt[0]),
        roll_deg=float(tilt[1]),
        occlusion=float(np.isin(rays.classes(), (VEHICLE, PERSON)).mean()),
        satellite_date=satellite_date,
        street_date=street_date,
        photo_date=photo_date,
        photo_kinds=seen,
        satellite_kinds=ground,
    )


def stand_point(city: City, place: np.ndarray, rng: Generator) -> np.ndarray:
    """Where the photographer stands: anywhere near the place that is street or sidewalk."""
    for _ in range(32):
        radius_m, angle = PHOTO_OFFSET_M * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        point = place + radius_m * np.array([np.sin(angle), np.cos(angle)])
        if city.is_free(*point):
            return point
    return place


def _road_near(city: City, place: np.ndarray, rng: Generator) -> np.ndarray:
    """Where a street view car passed that did not pass through the place itself."""
    for _ in range(32):
        radius_m, angle = rng.uniform(2, 12), rng.uniform(0, 2 * np.pi)
        point = place + radius_m * np.array([np.sin(angle), np.cos(angle)])
        if class_at(city, *point) == ROAD and city.is_free(*point):
            return point
    return place


def _in_the_way(
    city: City, camera: np.ndarray, heading_deg: float, fov_deg: float, count: int, rng: Generator
) -> np.ndarray | None:
    """Vehicles that pass or stop before the camera, where there is road: x, y, heading, model."""
    rows = []
    for _ in range(count):
        bearing = np.radians(heading_deg + rng.uniform(-0.4, 0.4) * fov_deg)
        x_m, y_m = camera + rng.uniform(4.2, 9.0) * np.array([np.sin(bearing), np.cos(bearing)])
        model = rng.choice(3, p=(0.55, 0.2, 0.25))
        if class_at(city, x_m, y_m) != ROAD or not city.is_free(x_m, y_m) or len(city.slots) == 0:
            continue
        lane = city.slots[np.argmin(np.hypot(*(city.slots[:, :2] - (x_m, y_m)).T))]
        rows.append((x_m, y_m, lane[2], model))
    return np.array(rows) if rows else None


def _dressed(spots: np.ndarray, rng: Generator) -> np.ndarray:
    count = len(spots)
    return np.column_stack([spots, rng.uniform(1.5, 1.9, count), rng.random((count, 3)) * 0.8])


def hand_held(image: np.ndarray, rng: Generator) -> bytes:
    """What a phone does to a photo: shake, blur, dark corners, noise, compression. A JPEG file."""
    if rng.random() < 0.12:  # the hand moved
        length = int(rng.integers(3, max(4, image.shape[1] // 28) + 1)) | 1
        smear = np.zeros((length, length), np.float32)
        slant = rng.uniform(-0.5, 0.5) * length
        middle = length // 2
        cv2.line(smear, (0, round(middle - slant)), (length - 1, round(middle + slant)), 1.0)
        image = cv2.filter2D(image, -1, smear / smear.sum())
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    corner = rng.uniform(0, 0.35) if rng.random() < 0.4 else 0.0
    down, across = (np.linspace(-1, 1, size, dtype=np.float32) for size in image.shape[:2])
    dark = 1 - np.float32(corner / 2) * (down[:, None] ** 2 + across**2)
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 7))
    noisy = np.clip(np.rint(image * dark[..., None] + noise), 0, 255).astype(np.uint8)
    return encode_jpeg(noisy, int(rng.integers(45, 93)))


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """An RGB image as the bytes of a JPEG."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


@dataclass(frozen=True, eq=False)
class CityViews:
    """N places of a synthetic city, each seen from above, from the street and by one photo.

    Positions are WGS84 degrees, headings degrees clockwise from true north, images RGB uint8.
    """

    seed: int
    style: str  # name of one of `styles.STYLES`, or "mixed"
    lat: np.ndarray  # float64 [N], the places
    lon: np.ndarray
    satellite: np.ndarray  # [N, S, S, 3], north up; pixel index (S/2, S/2) is the place
    metres_per_pixel: float
    panorama: np.ndarray  # [N, H, W, 3], column j samples azimuth column0_deg + 360 j / W;
    # rows have the columns' degrees per pixel, the horizon lies between rows H/2-1 and H/2
    classes: np.ndarray  # [N, H, W], what each pixel of the panorama shows: number in `render.CLASSES`
    photo: np.ndarray  # [N, h, w, 3], perspective, within 4 m of the place; level but for its tilt
    photo_lat: np.ndarray  # float64 [N]
    photo_lon: np.ndarray
    heading_deg: np.ndarray  # float64 [N] in [0, 360), of the photo's centre
    fov_deg: np.ndarray  # float64 [N], horizontal
    pitch_deg: np.ndarray  # float64 [N], positive looks up
    roll_deg: np.ndarray  # float64 [N], positive turns the camera clockwise
    occlusion: np.ndarray  # float64 [N], share of the photo that vehicles and people cover
    street_missing: np.ndarray  # bool [N]: there is no panorama, its pixels are 0
    street_lat: np.ndarray  # float64 [N], where the panorama was taken
    street_lon: np.ndarray
    street_column0_deg: np.ndarray  # float64 [N], the truth for each panorama
    street_heading_known: np.ndarray  # bool [N]: whether a user would know that truth
    satellite_date: np.ndarray  # datetime64[D] [N]
    street_date: np.ndarray
    photo_date: np.ndarray
    column0_deg: float = COLUMN0_DEG  # of every panorama that is not turned

    def __len__(self) -> int:
        return len(self.lat)


def make_city(
    seed: int,
    *,
    places: int,
    style: int | str | None = None,
    satellite_px: int = 256,
    panorama_size: tuple[int, int] = (64, 256),
    photo_size: tuple[int, int] = (96, 128),
    fov_range: tuple[float, float] = (70.0, 110.0),
    capture: Capture = TIDY,
    progress: Progress | None = None,
) -> CityViews:
    """Makes a city and renders every view of its places.

    Args:
        seed: a city is a function of its seed, style and number of places, whatever is drawn before.
        places: how many, at least 20 m apart, at most three of them within 25 m of any photo.
        style: name or number of one of the twelve styles; None is a bit of everything.
        satellite_px: side of the satellite images, which always show 50 m x 50 m; even.
        panorama_size: (rows, columns) of the panoramas, both even.
        photo_size: (rows, columns) of the photos.
        fov_range: least and greatest horizontal field of view of the photos, in degrees.
        capture: what goes wrong; nothing much by default, `CROWD` is how it is.
        progress: called as progress(done, places) after every place.
    """
    sizes = Sizes(satellite_px, panorama_size, photo_size)
    check_arguments(seed, places, sizes, fov_range, capture)
    number = style_number(style)
    city = City.build(seed, places=places, style=number)
    missing = missing_street_views(city, capture.missing)
    satellites = np.empty((places, satellite_px, satellite_px, 3), np.uint8)
    panoramas = np.zeros((places, *panorama_size, 3), np.uint8)
    classes = np.zeros((places, *panorama_size), np.uint8)
    photos = np.empty((places, *photo_size, 3), np.uint8)
    truth = []
    for n in range(places):
        view = take(city, n, sizes=sizes, fov_range=fov_range, capture=capture, missing=bool(missing[n]))
        satellites[n], photos[n] = view.satellite, view.photo
        if view.panorama is not None and view.classes is not None:
            panoramas[n], classes[n] = view.panorama, view.classes
        truth.append({k: v for k, v in vars(view).items() if np.size(v) <= 2 and not isinstance(v, bytes | None)})
        if progress is not None:
            progress(n + 1, places)

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in truth])

    lat, lon = city.to_lat_lon(*city.places.T)
    photo_lat, photo_lon = city.to_lat_lon(*column("photo_at").T)
    street_lat, street_lon = city.to_lat_lon(*column("street_at").T)
    return CityViews(
        seed=seed,
        style="mixed" if number is None else STYLES[number].name,
        lat=lat,
        lon=lon,
        satellite=satellites,
        metres_per_pixel=sizes.satellite_m / satellite_px,
        panorama=panoramas,
        classes=classes,
        photo=photos,
        photo_lat=photo_lat,
        photo_lon=photo_lon,
        street_missing=missing,
        street_lat=street_lat,
        street_lon=street_lon,
        street_column0_deg=column("street_column0_deg"),
        street_heading_known=column("street_heading_known"),
        heading_deg=column("heading_deg"),
        fov_deg=column("fov_deg"),
        pitch_deg=column("pitch_deg"),
        roll_deg=column("roll_deg"),
        occlusion=column("occlusion"),
        satellite_date=column("satellite_date"),
        street_date=column("street_date"),
        photo_date=column("photo_date"),
    )


def check_arguments(seed: Any, places: Any, sizes: Sizes, fov_range: tuple[float, float], capture: Capture) -> None:
    """ValueError for what a city cannot be made of, naming the argument."""
    _require(_whole(seed) and seed >= 0, "seed", "an integer >= 0", seed)
    _require(_whole(places) and places > 0, "places", "an integer > 0", places)
    sizes.check()
    low, high = fov_range
    _require(10 <= low <= high <= 150, "fov_range", "10 <= low <= high <= 150 degrees", fov_range)
    capture.check()


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _require(ok: Any, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
