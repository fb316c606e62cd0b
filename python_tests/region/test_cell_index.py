"""Indexes of cells, and from a continent to a spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from geoloc_fast.city.continent import write_continent
from geoloc_fast.cli.run import app
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import OtherModelError
from geoloc_fast.geo import s2
from geoloc_fast.geo.regions import Circle
from geoloc_fast.geo.sphere import great_circle_m, move_m
from geoloc_fast.index import Neighbours, PlaceIndex
from geoloc_fast.layers import Rows
from geoloc_fast.locate.coarse_to_fine import CoarseToFine, covered_share, fit_sharpness, spots_of
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.cells import CellGeolocalizer, CellsConfig
from geoloc_fast.models.contract import Photo
from geoloc_fast.region import cells as cells_module
from geoloc_fast.region.cells import build_cell_index, refold_cells, refresh_cells

CONFIG = CellsConfig(
    prototype_level=16, cell_level=17, clusters=6, cluster_dim=4, global_dim=8, hidden=16, photo_size=(48, 64),
    tile_px=48, kappa=1.5, temperature=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def continent(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("continent") / "small"
    return write_continent(folder, cities=2, places=40, photos_per_cell=3.0, photo_size=(48, 64), tile_px=48)


@pytest.fixture(scope="module")
def model(continent: Manifest, tmp_path_factory: pytest.TempPathFactory) -> CellGeolocalizer:
    photos = continent.photos
    cells = s2.from_lat_lon(photos["lat"].to_numpy(), photos["lon"].to_numpy(), 16)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "cells.safetensors"
    CellGeolocalizer(CONFIG, cells[np.array(photos["split"].to_pylist()) == "train"]).save(path)
    return CellGeolocalizer.load(path)


@pytest.fixture(scope="module")
def index(continent: Manifest, model: CellGeolocalizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "cells.index"
    build_cell_index(path, model, continent, dtype="fp32")
    return path


def rgb(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image[..., ::-1].copy()


def test_an_index_has_every_cell_of_which_something_is_known(
    continent: Manifest, model: CellGeolocalizer, index: Path
) -> None:
    tiles = set(continent.places["id"].to_pylist())
    below = {s2.token(cell) for cell in s2.children(model.prototypes.ids).reshape(-1)}
    with PlaceIndex.open(index, model=model.fingerprint) as opened:
        assert set(opened.keys()) == tiles | below
        places = opened.places(opened.ids())
    only = [place for place in places if place.key not in tiles]
    assert only
    assert all("tile_date" not in place.attributes and place.attributes["prototype"] for place in only)
    split = np.array(continent.photos["split"].to_pylist())
    at = s2.from_lat_lon(continent.photos["lat"].to_numpy(), continent.photos["lon"].to_numpy(), 16)
    for place in places[::7]:
        cell = s2.from_token(place.key)
        assert great_circle_m(place.lat, place.lon, *s2.center(cell)) < 1e-3
        assert place.attributes["level"] == 17
        assert place.attributes["area_m2"] == pytest.approx(float(s2.area_m2(cell)))
        assert place.attributes["photos"] == int(((at == s2.parent(cell, 16)) & (split == "train")).sum())
        known = place.attributes["photos"] > 0  # type: ignore[operator]
        assert ("prototype" in place.attributes) == known


@torch.no_grad()  # the code of a photo is made without gradients
def test_a_search_is_the_dot_product_with_all_codes(continent: Manifest, model: CellGeolocalizer, index: Path) -> None:
    image = rgb(continent.root / continent.photos["image"][0].as_py())
    query = model.encode_queries([Photo(image)])
    with PlaceIndex.open(index) as opened:
        found = opened.search(query, len(opened), layers=model.layers).photo(0)
        keys = {number: key for key, number in opened.keys().items()}
    ids = np.array([s2.from_token(keys[number]) for number in found.id.tolist()], np.uint64)
    files = dict(zip(continent.places["id"].to_pylist(), continent.places["satellite"].to_pylist(), strict=True))
    for cell, score in list(zip(ids, found.score.tolist(), strict=True))[::9]:
        expected = CONFIG.kappa * model.prototypes.of([cell])[0]
        if s2.token(cell) in files:
            tile = rgb(continent.root / files[s2.token(cell)])
            expected = (
                expected + model.aerial(model.tokens(torch.from_numpy(tile).permute(2, 0, 1)[None], aerial=True))[0]
            )
        assert score == pytest.approx(float(expected @ query["cell"].strips.flatten()), abs=2e-3)


def test_a_build_that_was_begun_goes_on(continent: Manifest, model: CellGeolocalizer, tmp_path: Path) -> None:
    half = continent.replace(places=continent.places.slice(0, 40), photos=continent.photos)
    path = tmp_path / "cells.index"
    first = build_cell_index(path, model, half)
    with PlaceIndex.open(path) as opened:
        before = opened.keys()
    assert first == len(before)
    assert build_cell_index(path, model, half) == first
    with PlaceIndex.open(path) as opened:
        assert opened.keys() == before


def test_a_changed_tile_changes_its_cell_alone(
    continent: Manifest, model: CellGeolocalizer, index: Path, tmp_path: Path
) -> None:
    root = tmp_path / "continent"
    shutil.copytree(continent.root, root)
    copy = Manifest.load(root)
    shutil.copytree(index, tmp_path / "index")
    token = copy.places["id"][3].as_py()
    cv2.imwrite(str(root / copy.places["satellite"][3].as_py()), np.full((48, 48, 3), 200, np.uint8))
    with PlaceIndex.open(tmp_path / "index", "write") as opened:
        before = opened.keys()
        assert refresh_cells(opened, model, copy, [token]) == 1
        after = opened.keys()
        assert after.keys() == before.keys()
        assert {key for key in after if after[key] != before[key]} == {token}
        with pytest.raises(KeyError, match="has no cell"):
            refresh_cells(opened, model, copy, ["4b"])


def test_another_kappa_makes_the_index_that_a_build_would_without_an_image(
    continent: Manifest, model: CellGeolocalizer, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = CellGeolocalizer(model.config, model.prototypes.ids)
    after.load_state_dict(model.state_dict())
    after.calibrated(0.3, 0.2)
    after.save(tmp_path / "after.safetensors")
    after = CellGeolocalizer.load(tmp_path / "after.safetensors")
    build_cell_index(tmp_path / "anew", after, continent, dtype="fp32")
    monkeypatch.setattr(cells_module, "_AT_ONCE", 50)
    monkeypatch.setattr(cells_module, "encode_places", None)  # whatever would look at an image
    with PlaceIndex.open(index) as old:
        count = refold_cells(old, tmp_path / "refolded", model, after)
        assert count == refold_cells(old, tmp_path / "refolded", model, after) == len(old)
        old_keys = old.keys()
        other = CellGeolocalizer(model.config, model.prototypes.ids)
        with pytest.raises(ValueError, match="after: expected the model of this index with another kappa"):
            refold_cells(old, tmp_path / "none", model, other)
        with pytest.raises(OtherModelError):
            refold_cells(old, tmp_path / "none", after, model)
        assert not (tmp_path / "none").exists()
        assert old.keys() == old_keys
    with PlaceIndex.open(tmp_path / "anew") as anew, PlaceIndex.open(tmp_path / "refolded") as new:
        assert new.model == anew.model == after.fingerprint != model.fingerprint
        one, two = anew.keys(), new.keys()
        assert one.keys() == two.keys()
        order = list(one)
        expected = anew.strips("cell", [one[key] for key in order])
        got = new.strips("cell", [two[key] for key in order])
        torch.testing.assert_close(got.strips, expected.strips, rtol=1e-4, atol=1e-5)
        with PlaceIndex.open(index) as old:
            was = old.strips("cell", [old_keys[key] for key in order])
        assert float((was.strips - got.strips).abs().max()) > 0.05
        places = [opened.places([keys[key] for key in order]) for opened, keys in ((anew, one), (new, two))]
        assert [place.attributes for place in places[0]] == [place.attributes for place in places[1]]
        assert [(place.lat, place.lon) for place in places[0]] == [(place.lat, place.lon) for place in places[1]]


def test_places_that_are_no_cells_make_no_index(continent: Manifest, model: CellGeolocalizer, tmp_path: Path) -> None:
    named = continent.places.set_column(0, "id", [[f"place {n}" for n in range(len(continent.places))]])
    coarse = continent.places.set_column(
        0, "id", [[s2.token(s2.parent(s2.from_token(one), 12)) + "" for one in continent.places["id"].to_pylist()]]
    )
    for places, words in (
        (named.slice(0, 1), "places that are S2 cells"),
        (coarse.slice(0, 1), "cells of level 17, got levels \\[12\\]"),
        (pa.concat_tables([continent.places.slice(0, 3), coarse.slice(0, 1)]), "got levels \\[12, 17\\]"),
    ):
        with pytest.raises(ValueError, match=words):
            build_cell_index(
                tmp_path / "x", model, continent.replace(places=places, photos=continent.photos.slice(0, 0))
            )
        assert not (tmp_path / "x").exists()


def test_a_bundle_of_another_model_is_refused_and_changes_nothing(
    continent: Manifest, model: CellGeolocalizer, index: Path, tmp_path: Path
) -> None:
    other = CellGeolocalizer(CONFIG, model.prototypes.ids[:3])
    other.save(tmp_path / "other.safetensors")
    other = CellGeolocalizer.load(tmp_path / "other.safetensors")
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    with pytest.raises(OtherModelError):
        build_cell_index(copy, other, continent)
    with PlaceIndex.open(copy, "write") as opened, pytest.raises(OtherModelError):
        refresh_cells(opened, other, continent, [continent.places["id"][0].as_py()])
    photo = str(continent.root / continent.photos["image"][0].as_py())
    asked = ["locate", photo, "--cells", str(copy), "--cells-model", str(tmp_path / "other.safetensors")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == OtherModelError.exit_code
    assert "holds strips of model" in str(done.exception or done.output)
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_an_area_without_tiles_has_the_cells_below_prototypes(
    continent: Manifest, model: CellGeolocalizer, tmp_path: Path
) -> None:
    bare = continent.replace(places=continent.places.slice(0, 0), photos=continent.photos)
    count = build_cell_index(tmp_path / "bare", model, bare)
    assert count == 4 * len(model.prototypes)


# --- from a continent to a spot ---


def neighbours(lat: list[float], lon: list[float], score: list[float]) -> Neighbours:
    count = len(score)
    at, nowhere = (np.array(lat), np.array(lon)), np.full(count, np.nan)
    parts = np.zeros((count, 1), np.float32)
    shift = np.full(count, -1)
    return Neighbours(
        np.arange(count), np.array(score, np.float32), shift, nowhere, *at, *at, parts, shift + 1, np.array(True)
    )


def test_spots_are_apart_and_share_one_probability() -> None:
    lat, lon = (list(map(float, part)) for part in move_m(50.0, 8.0, np.array([0, 100, 1000, 5000.0]), np.zeros(4)))
    found = spots_of(neighbours(lat, lon, [0.9, 0.8, 0.7, 0.1]), 4, 0.1, 2, 300.0)
    assert [(spot.place, spot.cells) for spot in found] == [(0, 2), (2, 1)]
    share = np.exp(np.array([0, -1, -2, -8.0]))
    assert found[0].probability == pytest.approx((share[0] + share[1]) / share.sum())
    assert found[1].probability == pytest.approx(share[2] / share.sum())
    more = spots_of(neighbours(lat, lon, [0.9, 0.8, 0.7, 0.1]), 1004, 0.1, 2, 300.0)
    assert more[0].probability < found[0].probability  # a thousand cells that were not looked at may be as good


def fine_index(
    path: Path, model: CellGeolocalizer, lat: np.ndarray, lon: np.ndarray, codes: torch.Tensor
) -> PlaceIndex:
    PlaceIndex.create(path, model=str(model.fingerprint), layers=model.layers, dtype="fp32").close()
    with PlaceIndex.open(path, "write") as opened:
        opened.add({"cell": Rows(codes[:, :, None, None])}, model=model.fingerprint, lat=lat, lon=lon)
    return PlaceIndex.open(path)


def test_the_share_that_is_covered(model: CellGeolocalizer, tmp_path: Path) -> None:
    at = np.arange(-500, 501, 40.0)
    east, north = (one.ravel() for one in np.meshgrid(at, at))
    region = Circle(50.0, 8.0, 300.0)
    for name, kept, expected in (("all", east > -1e9, 1.0), ("half", east <= -50, 0.5), ("none", east > 480, 0.0)):
        lat, lon = move_m(50.0, 8.0, east[kept], north[kept])
        with fine_index(tmp_path / name, model, lat, lon, torch.ones(int(kept.sum()), 32)) as opened:
            assert covered_share(region, [opened]) == pytest.approx(expected, abs=0.04)
    assert covered_share(region, []) == 0.0


def test_from_a_photo_to_a_place_and_what_is_left(
    continent: Manifest, model: CellGeolocalizer, index: Path, tmp_path: Path
) -> None:
    photo = continent.root / continent.photos["image"][0].as_py()
    code = model.encode_queries([Photo(rgb(photo))])["cell"].strips.flatten()
    with PlaceIndex.open(index) as cells:
        best = next(Locator(cells, model).locate([photo], candidates=1)).neighbours
        assert best is not None
        middle = float(best.lat[0]), float(best.lon[0])
        lat, lon = move_m(*middle, np.array([0.0, 150.0, 4000.0]), np.array([0.0, 150.0, 0.0]))
        codes = torch.stack([code, -code, code])
        with fine_index(tmp_path / "city-a.index", model, lat, lon, codes) as fine:
            finder = CoarseToFine(Locator(cells, model), [Locator(fine, model)], spots=3)
            (answer, bad) = list(finder.locate([photo, b"no photo"]))
        first = answer.candidates[0]
        assert (first.spot, first.found_in, first.candidate.place) == (0, "city-a.index", 0)
        assert 0 < answer.spots[0].covered < 0.5
        assert answer.spots[0].key in set(cells.keys())
        together = sum(one.probability for one in answer.candidates) + answer.not_covered + answer.elsewhere
        assert together == pytest.approx(1, abs=1e-6)
        apart = great_circle_m(*[answer.spots[0][2:4][n] for n in (0, 1)], *[answer.spots[1][2:4][n] for n in (0, 1)])
        assert apart >= 300
        assert bad.problem
        assert (bad.candidates, bad.elsewhere) == ((), 1.0)
        assert answer.as_dict()["candidates"][0]["index"] == "city-a.index"
        assert answer.sharpness is None
        assert answer.as_lines()[-1].endswith("how places share a spot was not fitted")
        for wrong in ({"spots": 0}, {"sharpness": 0.0}):
            with pytest.raises(ValueError, match="spots, spacing_m, sharpness: expected above 0"):
                CoarseToFine(Locator(cells, model), [], **wrong)


def test_how_places_share_a_spot_is_fitted_and_said(
    continent: Manifest, model: CellGeolocalizer, index: Path, tmp_path: Path
) -> None:
    rows = continent.photos.to_pylist()[:12]
    photos = [continent.root / row["image"] for row in rows]
    at = np.array([(row["lat"], row["lon"]) for row in rows])
    code = torch.stack([model.encode_queries([Photo(rgb(photo))])["cell"].strips.flatten() for photo in photos])
    lat, lon = move_m(at[:, 0], at[:, 1], np.full(12, 120.0), np.zeros(12))  # of each a rival in the same spot
    places = np.concatenate([at[:, 0], lat]), np.concatenate([at[:, 1], lon])
    with PlaceIndex.open(index) as cells:
        fitted = []
        for name, codes in (("right", torch.cat([code, -code])), ("wrong", torch.cat([0.99 * code, code]))):
            with fine_index(tmp_path / name, model, *places, codes) as fine:
                finder = CoarseToFine(Locator(cells, model), [Locator(fine, model)])
                before = next(finder.locate(photos[:1]))
                fitted.append(finder.fit(photos, at[:, 0].tolist(), at[:, 1].tolist()))
                answer = next(finder.locate(photos[:1]))
                assert (before.sharpness, answer.sharpness) == (None, fitted[-1])
                assert answer.as_dict()["sharpness"] == fitted[-1]
                assert "not fitted" not in answer.as_lines()[-1]
                together = sum(one.probability for one in next(finder.locate(photos[:1], candidates=64)).candidates)
                assert together + answer.not_covered + answer.elsewhere == pytest.approx(1, abs=1e-6)
                with pytest.raises(ValueError, match="got none"):
                    finder.fit(photos[:1], [10.0], [10.0])
        assert fitted[0] > 2 * fitted[1]  # where the best is right it is trusted


def test_one_command_goes_from_cells_to_places(continent: Manifest, model: CellGeolocalizer, tmp_path: Path) -> None:
    run, bundle, built = CliRunner(), tmp_path / "cells.safetensors", tmp_path / "europe.index"
    model.save(bundle)
    done = run.invoke(app, ["index", "build", str(continent.root), str(built), "--model", str(bundle), "--json"])
    assert done.exit_code == 0, done.output
    photo = str(continent.root / continent.photos["image"][0].as_py())
    lat, lon = (continent.places[name].to_numpy() for name in ("lat", "lon"))
    for name, half in (("city-a.index", slice(0, 60)), ("city-b.index", slice(60, None))):
        codes = torch.randn(len(lat[half]), 32, generator=torch.Generator().manual_seed(1))
        fine_index(tmp_path / name, model, lat[half], lon[half], codes).close()
    asked = ["locate", photo, "--cells", str(built), "--cells-model", str(bundle), "--model", str(bundle)]
    asked += ["--index", str(tmp_path / "city-a.index"), "--index", str(tmp_path / "city-b.index")]
    done = run.invoke(app, [*asked, "--json", "--candidates", "64", "--sharpness", "0.7"])
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout)
    assert answer["sharpness"] == 0.7
    assert {one["index"] for one in answer["candidates"]} <= {"city-a.index", "city-b.index"}
    assert max(spot["covered"] for spot in answer["spots"]) > 0.5
    together = sum(one["probability"] for one in answer["candidates"]) + answer["not_covered"] + answer["elsewhere"]
    assert together == pytest.approx(1, abs=0.02)
    done = run.invoke(app, asked)
    assert "not covered" in done.stdout
    for wrong, words in (
        (asked[:4], "--cells and --cells-model"),
        (["locate", photo, "--sharpness", "1"], "--sharpness: expected with --cells"),
        ([*asked, "--format", "kml"], "--cells: expected photos"),
        ([*asked, "--partial"], "no --partial"),
    ):
        done = run.invoke(app, wrong)
        assert done.exit_code == 2
        assert words in done.output.replace("\n", " ")


def test_the_sharpness_that_made_the_truth_is_found() -> None:
    rng = np.random.default_rng(4)
    shares = [np.exp(rng.normal(0, 1.5, 8)) for _ in range(1500)]
    shares = [share / share.sum() for share in shares]
    right = [int(rng.choice(8, p=share**0.5 / (share**0.5).sum())) for share in shares]
    assert fit_sharpness(shares, right) == pytest.approx(0.5, rel=0.12)
    with pytest.raises(ValueError, match="got none"):
        fit_sharpness(shares[:2], [-1, -1])
