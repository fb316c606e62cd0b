"""The contact sheet: what is drawn stands where it should, and what cannot be drawn says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from geoloc_fast.city import CityViews, make_city
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.region import show as module
from geoloc_fast.region.prepare import Settings, prepare
from geoloc_fast.region.show import contact_sheet, show

WIDTH = module._PHOTO[0] + module._SATELLITE + module._STRIP[0] + 4 * module._GAP
TILE = module._TITLE + 3 * (module._STRIP[1] + module._LABEL) + 2 * module._GAP


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("in")
    views = make_city(41, places=5, panorama_size=(64, 256), photo_size=(48, 64))
    places: list[dict[str, Any]] = []
    for n in range(5):
        for name, image in (
            ("s", views.satellite[n]),
            ("p", np.roll(views.panorama[n], -40, 1)),
            ("q", views.photo[n]),
        ):
            cv2.imwrite(str(root / f"{n}.{name}.png"), image[:, :, ::-1])
        places.append(_place(n, views))
    places[0]["street_column0_deg"] = (180 + 360 * 40 / 256) % 360
    places[2]["satellite"] = None
    places[3]["street"] = "absent.png"
    photos = [
        {"id": "a", "image": "0.q.png", "place": "p0", "heading_deg": 270.0, "fov_deg": 90.0},
        {"id": "b", "image": "1.q.png", "place": "p1"},
        {"id": "c", "image": "absent.png", "place": "p4", "heading_deg": 0.0},
    ]
    return Manifest.from_rows(root, places, photos)


def _place(n: int, views: CityViews) -> dict[str, Any]:
    return {
        "id": f"p{n}",
        "lat": float(views.lat[n]),
        "lon": float(views.lon[n]),
        "satellite": f"{n}.s.png",
        "metres_per_pixel": views.metres_per_pixel,
        "street": f"{n}.p.png",
    }


def near(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image.astype(int) - colour).max(axis=2) < 12


def test_headings_are_drawn_where_they_are(manifest: Manifest) -> None:
    sheet, problems = contact_sheet(manifest, places=["p0"])
    assert problems == [] and sheet.shape == (TILE, WIDTH, 3)
    # West: the arrow on the satellite image points left.
    left, top = module._PHOTO[0] + 2 * module._GAP, module._TITLE + module._LABEL
    satellite = near(sheet[top : top + module._SATELLITE, left : left + module._SATELLITE], module._HEADING)
    rows, cols = np.nonzero(satellite)
    middle = module._SATELLITE / 2
    assert abs(np.median(rows) - middle) < 3 and cols.max() <= middle + 3 and cols.min() < 0.12 * module._SATELLITE
    # In the frame of the polar image, west is a quarter of the way along; its edges an eighth to either side.
    left += module._SATELLITE + module._GAP
    strips = [top + k * (module._STRIP[1] + module._LABEL + module._GAP // 2) + 60 for k in range(3)]
    for at in strips[1:]:
        strip = sheet[at : at + 60, left : left + 512]
        assert np.nonzero(near(strip, module._HEADING).all(0))[0].mean() == pytest.approx(128, abs=1)
        edges = np.nonzero(near(strip, module._EDGE).all(0))[0]
        assert edges.min() == pytest.approx(64, abs=2) and edges.max() == pytest.approx(192, abs=2)
    # As stored, column 0 looks elsewhere.
    strip = sheet[strips[0] : strips[0] + 60, left : left + 512]
    there = (270 - (180 + 360 * 40 / 256)) % 360 / 360 * 512
    assert np.nonzero(near(strip, module._HEADING).all(0))[0].mean() == pytest.approx(there, abs=1)


def test_the_photo_stands_where_it_was_taken(manifest: Manifest) -> None:
    """Ten metres east of its place, looking west: the arrow begins a fifth of the picture right of the middle."""
    row = manifest.place(0)
    lat, lon = move_m(row["lat"], row["lon"], 10.0, 0.0)
    photo = {**manifest.photo(0), "lat": float(lat), "lon": float(lon)}
    sheet, _ = contact_sheet(Manifest.from_rows(manifest.root, [row], [photo]))
    left, top = module._PHOTO[0] + 2 * module._GAP, module._TITLE + module._LABEL
    drawn = near(sheet[top : top + module._SATELLITE, left : left + module._SATELLITE], module._HEADING)
    assert np.nonzero(drawn)[1].max() == pytest.approx(0.7 * module._SATELLITE, abs=3)


def test_places_without_positions(manifest: Manifest) -> None:
    row = {**manifest.place(0), "lat": None, "lon": None}
    sheet, problems = contact_sheet(Manifest.from_rows(manifest.root, [row], []))
    assert problems == [] and sheet.shape == (TILE, WIDTH, 3)


def test_the_calibrated_panorama_is_in_the_frame_of_the_polar_image(manifest: Manifest) -> None:
    for name in ("p0", "p1"):  # known, and measured on the way
        sheet, _ = contact_sheet(manifest, places=[name])
        left = WIDTH - module._GAP - 512
        top = module._TITLE + module._LABEL
        step = module._STRIP[1] + module._LABEL + module._GAP // 2
        stored = sheet[top + 40 : top + 120, left : left + 512]
        turned = sheet[top + 2 * step + 40 : top + 2 * step + 120, left : left + 512]
        error = [np.abs(np.roll(stored, k, 1).astype(int) - turned).mean() for k in range(0, 512, 4)]
        assert abs(4 * int(np.argmin(error)) - 80) <= (4 if name == "p0" else 12), "stored rolled by 40 of 256 columns"


def test_trouble_is_shown_not_raised(manifest: Manifest, tmp_path: Path) -> None:
    problems = show(manifest, tmp_path / "sheet.png", places=5)
    assert sorted(text.split(": ")[0] for text in problems) == ["p3", "p4"]
    assert any("absent.png: there is no such file" in text for text in problems)
    image = cv2.imread(str(tmp_path / "sheet.png"))
    assert image.shape == (5 * TILE + 4 * 2, WIDTH, 3)
    assert not list(tmp_path.glob(".*"))


def test_a_prepared_manifest_looks_the_same(manifest: Manifest, tmp_path: Path) -> None:
    prepare(manifest, tmp_path / "out", settings=Settings(image_format="png"), workers=1)
    ready = Manifest.load(tmp_path / "out")
    raw, _ = contact_sheet(manifest, places=["p0"])
    prepared, problems = contact_sheet(ready, places=["p0"])
    assert problems == []
    right = slice(module._PHOTO[0] + 2 * module._GAP, None)
    assert np.abs(raw[60:, right].astype(int) - prepared[60:, right]).mean() < 1.5
    sheet, _ = contact_sheet(ready)
    assert sheet.shape[0] == 5 * TILE + 4 * 2


def test_which_places(manifest: Manifest) -> None:
    photos = {"p0": {}, "p1": {}, "p4": {}}
    assert [row["id"] for row in module._choose(manifest, 3, photos)] == ["p0", "p1", "p4"]
    assert [row["id"] for row in module._choose(manifest, 4, photos)] == ["p0", "p1", "p2", "p4"]
    assert [row["id"] for row in module._choose(manifest, 99, photos)] == [f"p{n}" for n in range(5)]
    assert [row["id"] for row in module._choose(manifest, ["p3", "p0"], photos)] == ["p3", "p0"]
    for wrong, message in ((0, "expected 1 to 100, got 0"), (["p9"], "got 'p9'"), ([], "got none")):
        with pytest.raises(ValueError, match=f"places: .*{message}"):
            module._choose(manifest, wrong, photos)


def test_refusals(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out: expected a .png or .jpg file, got .*sheet.gif"):
        show(manifest, tmp_path / "sheet.gif")
    with pytest.raises(ValueError, match="the manifest has no places to show"):
        show(Manifest.from_rows(tmp_path, [], []), tmp_path / "sheet.png")


def test_long_and_strange_names_fit(manifest: Manifest) -> None:
    row = {**manifest.place(0), "id": "x" * 500, "city": "Ø\n\x07" * 50}
    sheet, _ = contact_sheet(Manifest.from_rows(manifest.root, [row], []))
    assert sheet.shape == (TILE, WIDTH, 3)
    assert (sheet[: module._TITLE - 4, -module._GAP :] == module._PAPER).all()
