"""Preparation: right geometry, nothing dropped in silence, the same bytes however it is run."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from geoloc_fast.city import CityViews, make_city
from geoloc_fast.data.datasets import PhotoDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import PrepareError
from geoloc_fast.geo.mercator import web_mercator_metres_per_pixel
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.images.calibration import calibrate
from geoloc_fast.images.decode import decode_image
from geoloc_fast.images.satellite import crop_satellite
from geoloc_fast.region import prepare as module
from geoloc_fast.region.prepare import Settings, prepare

SIZE = (64, 256)
SMALL = Settings(size=SIZE, satellite_px=128, image_format="png")


@pytest.fixture(scope="module")
def views() -> CityViews:
    return make_city(31, places=6, panorama_size=(128, 512), photo_size=(48, 64))


def encode(image: np.ndarray, kind: str = "png") -> bytes:
    return cv2.imencode(f".{kind}", image[:, :, ::-1])[1].tobytes()


def perspective(panorama: np.ndarray, heading_deg: float, side: int = 160) -> np.ndarray:
    """A view of 90 degrees out of a panorama whose column 0 looks south."""
    rows, columns = panorama.shape[:2]
    x = (np.arange(side) - (side - 1) / 2) / (side / 2)
    azimuth = np.degrees(np.arctan(x))
    elevation = np.degrees(np.arctan(-x[:, None] * np.cos(np.radians(azimuth))))
    column = np.broadcast_to((heading_deg + azimuth - 180) % 360 * columns / 360, (side, side)).astype(np.float32)
    row = (rows / 2 - 0.5 - elevation * columns / 360).astype(np.float32)
    wrapped = np.concatenate([panorama, panorama[:, :1]], axis=1)
    return cv2.remap(wrapped, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def place(n: int, views: CityViews, **other: Any) -> dict[str, Any]:
    return {"id": f"p{n}", "lat": float(views.lat[n]), "lon": float(views.lon[n]), "city": "made", **other}


@pytest.fixture
def troubled(tmp_path: Path, views: CityViews) -> Manifest:
    """Six places: all kinds of street views, and all kinds of trouble."""
    root = tmp_path / "in"
    root.mkdir()
    for n in range(6):
        (root / f"{n}.sat.png").write_bytes(encode(views.satellite[n]))
        (root / f"{n}.pan.jpg").write_bytes(encode(views.panorama[n], "jpg"))
        (root / f"{n}.photo.jpg").write_bytes(encode(views.photo[n], "jpg"))
    (root / "turned.png").write_bytes(encode(np.roll(views.panorama[1], -100, axis=1)))
    for k in range(4):
        (root / f"view{k}.png").write_bytes(encode(perspective(views.panorama[2], 90.0 * k)))
    (root / "cut.png").write_bytes(encode(views.satellite[3])[:2000])
    (root / "square.png").write_bytes(encode(views.satellite[4]))
    scale = {"metres_per_pixel": views.metres_per_pixel}
    places = [
        place(0, views, satellite="0.sat.png", street="0.pan.jpg", street_column0_deg=180.0, mood="calm", **scale),
        place(1, views, satellite="1.sat.png", street="turned.png", **scale),
        place(2, views, satellite="2.sat.png", street_views=[f"view{k}.png" for k in range(4)], **scale),
        place(3, views, satellite="cut.png", street="3.pan.jpg", **scale),
        place(4, views, satellite="4.sat.png", street="square.png"),
        place(5, views, satellite="cut.png", street="absent.png", **scale),
    ]
    photos = [
        {"id": "a", "image": "0.photo.jpg", "place": "p0", "fov_deg": 90.0, "heading_deg": 12.0},
        {"id": "b", "image": "1.photo.jpg", "place": "p5"},
        {"id": "c", "image": "cut.png"},
        {"id": "d", "image": "square.png", "fov_deg": 200.0},
    ]
    Manifest.from_rows(root, places, photos).save()
    return Manifest.load(root)


def decoded(manifest: Manifest, path: str) -> np.ndarray:
    return decode_image(manifest.open_image(path), path)


def test_nothing_is_dropped_in_silence(troubled: Manifest, tmp_path: Path, views: CityViews) -> None:
    out = tmp_path / "out"
    done = prepare(troubled, out, settings=SMALL, workers=1)
    assert (done.places, done.unusable_places, done.photos, done.unusable_photos) == (5, 1, 2, 2)
    assert done.calibration == {"known": 2, "measured": 1, "none": 1}
    problems = [str(problem) for problem in done.problems]
    for file, row, column, text in (
        ("places.parquet", 4, "satellite", "cut.png: cannot be decoded"),
        ("places.parquet", 5, "street", "square.png: 256 x 256 pixels are no panorama"),
        ("places.parquet", 6, "satellite", "cut.png: cannot be decoded"),
        ("places.parquet", 6, "street", "absent.png: there is no such file"),
        ("photos.parquet", 3, "image", "cut.png: cannot be decoded"),
        ("photos.parquet", 4, "image", "square.png: 256 x 256 pixels are no panorama of 200 degrees"),
    ):
        assert any(p.startswith(f"{file}, row {row}, column {column}: {text}") for p in problems), (row, problems)
    assert len(problems) == 6
    assert len((out / "problems.csv").read_text().splitlines()) == 7
    assert "1 places and 2 photos have no image that can be used" in done.summary()
    assert "1 satellite images of unknown ground resolution" in done.summary()

    ready = Manifest.load(out)
    assert not ready.validate(images=True)
    rows = {row["id"]: row for row in ready.places.to_pylist()}
    assert list(rows) == ["p0", "p1", "p2", "p3", "p4"]
    assert rows["p0"]["mood"] == "calm"
    assert [row["calibration_status"] for row in rows.values()] == ["known", "measured", "known", "none", "none"]
    assert rows["p2"]["street_column0_deg"] == 315.0 and rows["p2"]["street_views"] is None
    assert abs((rows["p1"]["calibration_column0_deg"] - (180 + 360 * 100 / 512) + 180) % 360 - 180) < 3
    assert rows["p1"]["street_column0_deg"] is None, "measured is never passed off as known"
    assert rows["p3"]["satellite"] is None and rows["p3"]["problem"].startswith("satellite: cut.png")
    assert rows["p4"]["street"] is None and rows["p4"]["metres_per_pixel"] is None
    assert rows["p0"]["metres_per_pixel"] == 50 / 128
    for name, shape in (("satellite", (128, 128, 3)), ("street", (64, 256, 3))):
        assert decoded(ready, rows["p0"][name]).shape == shape
    photos = {row["id"]: row for row in ready.photos.to_pylist()}
    assert list(photos) == ["a", "b"]
    assert decoded(ready, photos["a"]["image"]).shape == (64, 64, 3)
    assert photos["a"]["projection"] == "cylindrical" and photos["a"]["strip_fov_deg"] == 90.0
    assert photos["b"]["fov_deg"] is None and photos["b"]["strip_fov_deg"] == pytest.approx(90, abs=0.8)
    assert photos["b"]["place"] is None and "'p5'" in photos["b"]["problem"], "still there, for the denominator"


def test_the_stitched_frame_is_the_right_one(views: CityViews) -> None:
    """Four views made of a panorama, stitched, looked at from above: column 0 is at 315 degrees."""
    from geoloc_fast.images.decode import stitch_views

    stitched = [stitch_views([perspective(p, 90.0 * k, 256) for k in range(4)]) for p in views.panorama]
    street = torch.from_numpy(np.stack(stitched)).permute(0, 3, 1, 2)
    original = torch.from_numpy(views.panorama).permute(0, 3, 1, 2)
    # Against the panorama itself: rolled by 135 degrees, the two agree to a fraction of a column.
    measured = calibrate(street, original, polar_column0_deg=180.0)
    error = (measured.column0_deg - 315 + 180) % 360 - 180
    assert np.abs(error).max() < 1.0
    assert abs(error.mean()) < 0.3


def test_a_street_view_beside_its_place_is_calibrated_where_it_stands(tmp_path: Path, views: CityViews) -> None:
    """The satellite image of the place is cut some metres off the panorama, and the manifest says so."""
    root = tmp_path / "in"
    root.mkdir()
    rows: list[dict[str, Any]] = []
    for n, (east_m, north_m) in enumerate([(8, 0), (-6, 7), (0, -9), (5, 5), (-9, 2), (40, 0)]):
        shift = np.array([[1, 0, east_m * 256 / 50], [0, 1, -north_m * 256 / 50]])
        moved = cv2.warpAffine(views.satellite[n], shift, (256, 256))  # the panorama's point is now that far out
        (root / f"{n}.sat.png").write_bytes(encode(moved))
        (root / f"{n}.pan.png").write_bytes(encode(np.roll(views.panorama[n], -50 * n, axis=1)))
        row = place(n, views, satellite=f"{n}.sat.png", street=f"{n}.pan.png", metres_per_pixel=50 / 256)
        row["street_lat"], row["street_lon"] = move_m(row["lat"], row["lon"], east_m, north_m)
        rows.append(row)

    def errors(rows: list[dict[str, Any]], out: Path) -> np.ndarray:
        prepare(Manifest.from_rows(root, rows, []), out, workers=1)
        found = Manifest.load(out).places["calibration_column0_deg"].to_pylist()[:5]
        return np.abs((np.array(found) - 180 - 360 * 50 * np.arange(5) / 512 + 180) % 360 - 180)

    told = errors(rows, tmp_path / "told")
    assert (told < 4).sum() >= 4, told
    assert Manifest.load(tmp_path / "told").place(5)["calibration_status"] == "none"
    untold = errors([{**row, "street_lat": None, "street_lon": None} for row in rows], tmp_path / "untold")
    assert (untold < 4).sum() < (told < 4).sum(), untold


def test_known_heading_of_a_large_panorama_is_that_of_its_ready_columns(tmp_path: Path, views: CityViews) -> None:
    """Shrinking eight columns into one moves the middle of column 0 by three and a half of them."""
    wide = np.zeros((512, 2048, 3), np.uint8)
    middle_deg = 90.0  # of a bright bar, drawn symmetrically about that heading
    column = (np.arange(2048) * 360 / 2048 + 180) % 360
    wide[:] = (255 * np.exp(-0.5 * ((column - middle_deg) / 4) ** 2)).astype(np.uint8)[None, :, None]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wide.png").write_bytes(encode(wide))
    row = place(0, views, street="wide.png", street_column0_deg=180.0)
    prepare(Manifest.from_rows(tmp_path / "in", [row], []), tmp_path / "out", settings=SMALL)
    ready = Manifest.load(tmp_path / "out")
    bar = decoded(ready, ready.place(0)["street"])[32, :, 0].astype(float)
    centroid = (bar * np.arange(256)).sum() / bar.sum()
    found_deg = (ready.place(0)["calibration_column0_deg"] + 360 * centroid / 256) % 360
    assert found_deg == pytest.approx(middle_deg, abs=0.05)


def test_photos_that_are_panoramas_stay_as_they_are(tmp_path: Path, views: CityViews) -> None:
    """CVUSA's are cut to a band, CVACT's and VIGOR's are full spheres: azimuth is linear in their columns already."""
    root = tmp_path / "in"
    root.mkdir()
    street = views.panorama[0]
    sphere = np.pad(street, ((64, 64), (0, 0), (0, 0)))  # 256 x 512: pole to pole
    large = cv2.resize(sphere, (2048, 1024), interpolation=cv2.INTER_CUBIC)
    images = {"band": street, "sphere": sphere, "large": large, "part": street[:, :300], "odd": street[:, :200]}
    for name, image in images.items():
        (root / f"{name}.png").write_bytes(encode(image))
    (root / "large.jpg").write_bytes(encode(large, "jpg"))
    photos = [
        {
            "id": name,
            "image": f"{name}.png",
            "heading_deg": 0.0,
            "fov_deg": 300 * 360 / 512 if name == "part" else 360.0,
        }
        for name in images
    ]
    photos.append({"id": "jpeg", "image": "large.jpg", "heading_deg": 0.0, "fov_deg": 360.0})
    settings = Settings(image_format="png")
    done = prepare(Manifest.from_rows(root, [], photos), tmp_path / "out", settings=settings, workers=1)
    assert [str(problem) for problem in done.problems] == [
        "photos.parquet, row 5, column image: odd.png: 200 x 128 pixels are no panorama of the whole circle"
    ]
    ready = Manifest.load(tmp_path / "out")
    rows = {row["id"]: row for row in ready.photos.to_pylist()}
    assert {name: row["strip_fov_deg"] for name, row in rows.items()} == {
        "band": 360.0, "sphere": 360.0, "large": 360.0, "part": 300 * 360 / 512, "jpeg": 360.0
    }  # fmt: skip
    assert all(row["heading_deg"] == 0 and row["fov_deg"] == row["strip_fov_deg"] for row in rows.values())
    for name in ("band", "sphere"):
        assert (decoded(ready, rows[name]["image"]) == street).all(), name
    assert (decoded(ready, rows["part"]["image"]) == street[:, :300]).all()
    for name in ("large", "jpeg"):  # as far as enlarging and shrinking keep it
        assert np.abs(decoded(ready, rows[name]["image"]).astype(int) - street).mean() < 6, name

    # Training takes what is ready as it is, perspective photos too.
    samples = PhotoDataset(ready, use_fov=False)
    assert [samples[n]["photo_width"] for n in range(5)] == [512, 512, 512, 300, 512]
    assert (samples[0]["photo"].permute(1, 2, 0).numpy() == street).all() and samples[0]["fov_known"]
    with pytest.raises(PrepareError, match="is already prepared"):
        prepare(ready, tmp_path / "again")


def test_prepared_photos_are_not_reprojected_again(tmp_path: Path, views: CityViews) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.png").write_bytes(encode(views.photo[0]))
    photos = [{"id": "known", "image": "a.png", "fov_deg": 90.0}, {"id": "unknown", "image": "a.png"}]
    original = Manifest.from_rows(root, [], photos)
    settings = Settings(image_format="png", assumed_fov_deg=70.0)
    prepare(original, tmp_path / "out", settings=settings, workers=1)
    ready = Manifest.load(tmp_path / "out")
    raw, again = PhotoDataset(original, assumed_fov_deg=70.0), PhotoDataset(ready)
    for n, fov_deg in enumerate((90.0, 100 * 360 / 512)):  # 70 degrees are 99.6 columns
        assert torch.equal(raw[n]["photo"], again[n]["photo"])
        assert (again[n]["fov_deg"], again[n]["fov_known"]) == (fov_deg, n == 0)
    with pytest.raises(ValueError, match="use_fov: expected True, since photos of this manifest were prepared"):
        PhotoDataset(ready, use_fov=False)


def test_places_without_positions(tmp_path: Path, views: CityViews) -> None:
    """Some benchmarks have none; the ground resolution of a zoom is then not known either."""
    root = tmp_path / "in"
    root.mkdir()
    (root / "s.png").write_bytes(encode(views.satellite[0]))
    row = {"id": "a", "lat": None, "lon": None, "satellite": "s.png"}
    done = prepare(Manifest.from_rows(root, [row], []), tmp_path / "out", settings=Settings(zoom=20), workers=1)
    assert done.places == 1 and done.notes == {"satellite images of unknown ground resolution, taken to show 50 m": 1}


@pytest.mark.parametrize("side", [335, 336, 500, 700, 1201])
@pytest.mark.parametrize("metres_per_pixel", [0.05, 0.0762, 0.1493, 0.3])
def test_crop_keeps_the_place_in_the_middle_and_the_scale(side: int, metres_per_pixel: float) -> None:
    rows, cols = np.indices((side, side))
    for east_m, north_m in ((0.0, 0.0), (5.0, 3.0), (-4.0, 6.5)):
        at = side / 2 - north_m / metres_per_pixel, side / 2 + east_m / metres_per_pixel
        width = 0.6 / metres_per_pixel
        dot = np.exp(-0.5 * ((rows - at[0]) ** 2 + (cols - at[1]) ** 2) / width**2)
        image = np.repeat((255 * dot).astype(np.uint8)[:, :, None], 3, axis=2)
        out = crop_satellite(image, metres_per_pixel, 50.0, 336)[:, :, 0].astype(float)
        assert out.shape == (336, 336)
        row, col = ((out * grid).sum() / out.sum() for grid in np.indices(out.shape))
        assert (168 - row) * 50 / 336 == pytest.approx(north_m, abs=0.03)
        assert (col - 168) * 50 / 336 == pytest.approx(east_m, abs=0.03)


def test_crop_leaves_what_fits_alone_and_blackens_what_is_beyond() -> None:
    image = np.random.default_rng(0).integers(1, 255, (336, 336, 3), dtype=np.uint8)
    assert crop_satellite(image, 50 / 336, 50.0, 336) is image
    assert crop_satellite(image, None, 50.0, 336) is image
    small = crop_satellite(image, 0.1, 50.0, 500)
    assert (small[:80] == 0).all() and (small[:, -80:] == 0).all() and (small[100:400, 100:400] > 0).any(2).all()
    assert crop_satellite(image[:3, :5], 1e-3, 50.0, 64).shape == (64, 64, 3)  # all of it within one pixel


def test_ground_resolution_shrinks_with_latitude() -> None:
    for lat, metres in ((0, 0.1493), (22.3, 0.1381), (-43.7, 0.1080), (52.5, 0.0908), (59.3, 0.0762)):
        assert web_mercator_metres_per_pixel(lat, 20) == pytest.approx(metres, abs=1e-4)


# --- the same bytes -----------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, views: CityViews) -> Path:
    """Seven shards."""
    root = tmp_path_factory.mktemp("many")
    for n in range(6):
        (root / f"{n}.sat.jpg").write_bytes(encode(views.satellite[n], "jpg"))
        (root / f"{n}.pan.jpg").write_bytes(encode(np.roll(views.panorama[n], 37 * n, axis=1), "jpg"))
        (root / f"{n}.photo.jpg").write_bytes(encode(views.photo[n], "jpg"))
    (root / "cut.jpg").write_bytes(encode(views.photo[0], "jpg")[:500])
    places = [
        {**place(n % 6, views, satellite=f"{n % 6}.sat.jpg", street=f"{n % 6}.pan.jpg"), "id": f"p{n}"}
        for n in range(250)
    ]
    photos = [
        {"id": f"q{n}", "image": "cut.jpg" if n == 70 else f"{n % 6}.photo.jpg", "fov_deg": 60.0 + n % 50}
        for n in range(150)
    ]
    Manifest.from_rows(root, places, photos).save()
    return root


CACHED = Settings(size=SIZE, satellite_px=128)


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert prepare(many, out, settings=CACHED, workers=1).places == 250
    return out


def test_two_workers_give_the_same_bytes(many: Path, whole: Path, tmp_path: Path) -> None:
    prepare(many, tmp_path / "out", settings=CACHED, workers=2)
    assert tree(tmp_path / "out") == tree(whole)
    assert not list(whole.glob(".*")) and not list(whole.glob("*.partial"))


@pytest.mark.parametrize("after", [1, 4])
def test_killed_and_resumed_gives_the_same_bytes(many: Path, whole: Path, tmp_path: Path, after: int) -> None:
    out = tmp_path / "out"
    code = (
        "from geoloc_fast.region import prepare as p\n"
        "import sys, time\n"
        "run = p._run\n"
        "p._run = lambda shard: (time.sleep(0.15), run(shard))[1]\n"
        f"p.prepare(sys.argv[1], sys.argv[2], settings=p.Settings(**{{**p.asdict(p.Settings()), 'size': {SIZE}, "
        "'satellite_px': 128}), workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(many), str(out)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 180
    while len(list(out.glob("places-*.json")) if out.exists() else []) < after and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None, process.stderr and process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "places.parquet").exists()
    (out / ".places-00003.tar.abcd").write_bytes(b"what a killed writer leaves")
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    prepare(many, out, settings=CACHED, workers=1)
    assert tree(out) == tree(whole)
    kept = [name for name, when in made.items() if (out / name).stat().st_mtime_ns == when]
    assert len(kept) >= after, "what was finished is not done again"


def test_a_damaged_shard_is_done_again(many: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(many, out, settings=CACHED, workers=1)
    with open(out / "places-00001.tar", "r+b") as file:
        file.seek(5000)
        file.write(b"?")
    (out / "photos-00002.json").write_text('{"rows": ')
    prepare(many, out, settings=CACHED, workers=1)
    assert tree(out) == tree(whole)


# --- refusals ----------------------------------------------------------------------------------------------


def test_refusals(many: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="holds the preparation of satellite_px 128, now 64"):
        prepare(many, whole, settings=Settings(size=SIZE, satellite_px=64))
    fewer = Manifest.load(many)
    with pytest.raises(PrepareError, match="holds the preparation of another manifest"):
        prepare(fewer.replace(places=fewer.places.slice(0, 10)), whole, settings=CACHED)
    with pytest.raises(PrepareError, match="is the folder of the manifest itself"):
        prepare(many, many)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(PrepareError, match="is not empty"):
        prepare(many, tmp_path / "full")
    with pytest.raises(PrepareError, match="no places and no photos"):
        prepare(Manifest.from_rows(tmp_path, [], []), tmp_path / "out")
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        prepare(many, tmp_path / "out", workers=0)
    with module._locked(whole), pytest.raises(PrepareError, match="another process is preparing into this folder"):
        prepare(many, whole, settings=CACHED)
    assert Manifest.load(whole).places.num_rows == 250


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", (128, 510)),
        ("size", (8, 512)),
        ("side_m", 0.0),
        ("side_m", float("nan")),
        ("satellite_px", 2),
        ("method", "superpoint"),
        ("assumed_fov_deg", 180.0),
        ("assumed_fov_deg", 0.1),
        ("zoom", float("nan")),
        ("image_format", "gif"),
    ],
)
def test_settings_are_checked(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        Settings(**{field: value})


def test_a_fault_in_a_worker_names_the_row(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(row: dict[str, Any], *_: Any) -> None:
        if row["id"] == "p130":
            raise ZeroDivisionError("ours")
        return load(row, *_)

    load = module.load_place
    monkeypatch.setattr(module, "load_place", broken)
    with pytest.raises(PrepareError, match=r"places.parquet, row 131 \('p130'\): ZeroDivisionError: ours"):
        prepare(many, tmp_path / "out", settings=SMALL, workers=1)
    monkeypatch.undo()
    assert prepare(many, tmp_path / "out", settings=SMALL, workers=1).places == 250


class Deadly:
    """Ends whichever process unpacks it, as a lack of memory would."""

    file, first, rows, name = "places.parquet", 64, (), "places-00001"

    def __reduce__(self) -> Any:
        return os._exit, (9,)


def test_a_killed_worker_is_said_to_be_one() -> None:
    with pytest.raises(PrepareError, match=r"a worker was killed.*while places.parquet was prepared, near row 65; run"):
        list(module._run_all([Deadly(), Deadly()], 2))  # type: ignore[list-item]


def test_many_broken_files(tmp_path: Path, views: CityViews) -> None:
    """Cut anywhere, or with bytes changed: marked or decoded, never an exception."""
    root = tmp_path / "in"
    root.mkdir()
    rng = np.random.default_rng(5)
    places = []
    for n in range(60):
        content = bytearray(encode(views.panorama[n % 6], ("jpg", "png", "webp")[n % 3]))
        if n % 2:
            content = content[: int(rng.integers(0, len(content)))]
        else:
            for _ in range(20):
                content[rng.integers(0, len(content))] = rng.integers(0, 256)
        (root / f"{n}.img").write_bytes(content)
        places.append({**place(n % 6, views, street=f"{n}.img"), "id": f"p{n}"})
    done = prepare(Manifest.from_rows(root, places, []), tmp_path / "out", settings=SMALL, workers=1)
    assert done.places + done.unusable_places == 60
    assert len(done.problems) == done.unusable_places >= 20
