"""A model from the files of a region: columns that look the same way are paired, and only such."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from geoloc_fast import azimuth_match, shift_to_heading
from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.data.datasets import PairDataset, PhotoDataset, PlaceDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import TrainingStopped
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.index import PlaceIndex
from geoloc_fast.models import load_model
from geoloc_fast.models.contract import AzimuthColumns, PlaceBatch
from geoloc_fast.models.layered import Layered, LayeredConfig
from geoloc_fast.region.encode import build_index
from geoloc_fast.training.feature_cache import FeatureCache, content_key
from geoloc_fast.training.fit import FitReport, fit_region

Fitted = tuple[Layered, FitReport, Path]

CONFIG = LayeredConfig(
    strides=(4, 8),
    level_size=(64, 256),
    polar_size=(64, 256),
    channels=12,
    columns=32,
    satellite_px=128,
    range_m=(50.0, 50.0),
    trained_on="a test",
)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    sizes = Sizes(128, (64, 256), (96, 128))
    return write_city(tmp_path_factory.mktemp("city"), seed=3, cities=1, places=24, sizes=sizes, capture=TIDY)


@pytest.fixture(scope="module")
def fitted(region: Manifest, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    cache = tmp_path_factory.mktemp("cache")
    return *fit_region(region, weights, CONFIG, cache=cache), cache


def test_photos_find_the_places_they_were_fitted_on(region: Manifest, fitted: Fitted) -> None:
    model, report, _ = fitted
    assert report.pairs == {"street": 24, "satellite": 24}
    assert not report.left_out
    photos = PhotoDataset(region, panorama_size=CONFIG.level_size)
    places = PlaceDataset(region, satellite_size=128, panorama_size=CONFIG.level_size, extent_m=50.0)
    samples = [PairDataset(photos, places)[n] for n in range(24)]
    queries = model.encode_queries([AzimuthColumns(s["photo"].permute(1, 2, 0).contiguous().numpy()) for s in samples])
    batch = PlaceBatch(
        torch.stack([s["satellite"] for s in samples]),
        torch.ones(24, dtype=torch.bool),
        torch.tensor([s["metres_per_pixel"] for s in samples], dtype=torch.float64),
        torch.stack([s["panorama"] for s in samples]),
        torch.ones(24, dtype=torch.bool),
        torch.tensor([s["place_lat"] for s in samples], dtype=torch.float64),
        torch.tensor([s["place_lon"] for s in samples], dtype=torch.float64),
    )
    truth = torch.tensor([s["heading_deg"] for s in samples], dtype=torch.float64)
    for layer, rows in model.encode_places(batch).items():
        found = queries[layer]
        assert found.width is not None
        match = azimuth_match(found.strips, rows.strips, query_width=found.width, select="cosine")
        best = match.score.argmax(1)
        place = torch.from_numpy(rows.place)[best] if rows.place is not None else best
        right = place == torch.arange(24)
        shift = match.shift.gather(1, best[:, None])[:, 0]
        away = (shift_to_heading(shift, found.width, 32, column0_deg=180.0) - truth + 180) % 360 - 180
        # By chance one in 24 is right; a wrong sign of a heading or an offset leaves it at that.
        assert right.float().mean() > (0.8 if layer == "street" else 0.4), layer
        assert away[right].abs().median() < 12, layer
        assert away[right].mean().abs() < 6, layer


def test_files_to_index_to_answer(region: Manifest, fitted: Fitted, tmp_path: Path) -> None:
    """Both layers and their standpoints through an index: one heading, one place."""
    fitted[0].save(tmp_path / "m.safetensors", dtype=torch.float32)
    model = load_model(tmp_path / "m.safetensors")
    added = build_index(tmp_path / "index", model, region)
    assert (added.added, added.problems) == (24, [])
    photos = PhotoDataset(region, panorama_size=CONFIG.level_size)
    samples = [photos[n] for n in range(24)]
    query = model.encode_queries([AzimuthColumns(s["photo"].permute(1, 2, 0).contiguous().numpy()) for s in samples])
    with PlaceIndex.open(tmp_path / "index", model=model.fingerprint) as index:
        assert {name: part["rows"] for name, part in index.info()["layers"].items()} == {"street": 24, "satellite": 456}
        found = index.search(query, 1, layers=model.layers)
        above = index.search({"satellite": query["satellite"]}, 1, layers=model.layers)
    lat, lon = (region.places[name].to_numpy() for name in ("lat", "lon"))
    right = great_circle_m(found.lat[:, 0], found.lon[:, 0], lat, lon) < 1
    assert right.mean() > 0.8
    truth = np.array([sample["heading_deg"] for sample in samples])
    away = (found.heading_deg[:, 0] - truth + 180) % 360 - 180
    assert np.median(np.abs(away[right])) < 12
    # Both together stand where the satellite image says: a street view has one row.
    of_both = great_circle_m(found.standpoint_lat[:, 0], found.standpoint_lon[:, 0], found.lat[:, 0], found.lon[:, 0])
    assert of_both.max() > 1
    right = great_circle_m(above.lat[:, 0], above.lon[:, 0], lat, lon) < 1
    taken = [np.array([sample[name] for sample in samples])[right] for name in ("photo_lat", "photo_lon")]
    off = great_circle_m(above.standpoint_lat[right, 0], above.standpoint_lon[right, 0], *taken)
    centre = great_circle_m(lat[right], lon[right], *taken)
    assert np.median(off) < np.median(centre)  # an answer stands where the photographer stood, not in the middle


def test_the_cache_gives_the_same_model_and_computes_nothing_twice(
    region: Manifest, weights: Path, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, cache = fitted
    monkeypatch.setattr("geoloc_fast.models.backbones.Backbone.forward", lambda *_, **__: pytest.fail("computed"))
    again, _ = fit_region(region, weights, CONFIG, cache=cache)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_provenance_is_in_the_bundle(fitted: Fitted, tmp_path: Path) -> None:
    model, report, _ = fitted
    model.save(tmp_path / "m.safetensors")
    config = Layered.load(tmp_path / "m.safetensors").config
    assert "random.safetensors, sha256" in config.provenance["backbone"]
    assert "24 photos" in config.provenance["maps"]
    assert "random.safetensors" in report.summary()
    assert "street: 24 photos, correlations" in report.summary()


def test_a_region_with_one_source_only(region: Manifest, weights: Path) -> None:
    places = region.places.set_column(
        region.places.schema.get_field_index("street"), "street", pa.nulls(24, pa.string())
    )
    one = region.replace(places=places)
    with pytest.raises(TrainingStopped, match=r"layer street: .*got 0"):
        fit_region(one, weights, CONFIG)
    alone = dataclasses.replace(CONFIG, layers=("satellite",), weights={"satellite": 1.0}, absent={"satellite": 0.0})
    model, report = fit_region(one, weights, alone)
    assert report.pairs == {"satellite": 24}
    assert [layer.name for layer in model.layers] == ["satellite"]


def test_images_that_are_all_alike(region: Manifest, weights: Path, tmp_path: Path) -> None:
    shutil.copytree(region.root, tmp_path / "grey")
    for path in (tmp_path / "grey").rglob("*.jpg"):
        with Image.open(path) as image:
            size = image.size
        Image.new("RGB", size, (90, 90, 90)).save(path)
    with pytest.raises(TrainingStopped, match=r"layer (street|satellite): .*images all alike"):
        fit_region(Manifest.load(tmp_path / "grey"), weights, CONFIG)


def test_photos_without_heading_are_counted(region: Manifest, weights: Path) -> None:
    photos = region.photos.set_column(
        region.photos.schema.get_field_index("heading_deg"), "heading_deg", pa.nulls(24, pa.float64())
    )
    with pytest.raises(TrainingStopped, match="give headings"):
        fit_region(region.replace(photos=photos), weights, CONFIG)


def test_cache_survives_an_end_in_the_middle(tmp_path: Path) -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    cache = FeatureCache(tmp_path, "w")
    values = {name: torch.rand(3, 5) for name in "abc"}
    for name, value in values.items():
        torch.testing.assert_close(cache.get(name, lambda value=value: value), value, rtol=1e-3, atol=1e-3)
    names = next(tmp_path.glob("*.names"))
    names.write_bytes(names.read_bytes()[:-4])  # the last line is not whole
    numbers = next(tmp_path.glob("*.f16"))
    numbers.write_bytes(numbers.read_bytes() + b"\1")  # half a number
    again = FeatureCache(tmp_path, "w")
    assert len(again) == 2
    again.get("c", lambda: values["b"])
    torch.testing.assert_close(again.get("c", lambda: torch.zeros(1)), values["b"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.get("a", lambda: torch.zeros(1)), values["a"], rtol=1e-3, atol=1e-3)
    assert len(FeatureCache(tmp_path, "other weights")) == 0
    assert content_key(image, 1) != content_key(image, 2)
    assert content_key(image, 1) != content_key(image + 1, 1)
