"""The layered model: strips that turn with the world, standpoints, layers, and files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geoloc_fast import azimuth_match, polar_resample, shift_to_heading
from geoloc_fast.errors import BundleError
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.models import load_model
from geoloc_fast.models.contract import AzimuthColumns, Model, Photo, PlaceBatch, Text
from geoloc_fast.models.layered import Layered, LayeredConfig, column_features
from geoloc_fast.models.layered.colours import COLOUR_CHANNELS, colour_cells
from geoloc_fast.models.layered.columns import LEVEL, POLAR, feature_count

SMALL = LayeredConfig(
    level_size=(64, 256),
    polar_size=(64, 256),
    channels=8,
    columns=32,
    satellite_px=80,
    standpoints_m=((0.0, 0.0), (3.0, 0.0), (0.0, -4.0)),
    scanned_standpoints=1,
)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features in float32 wherever this runs: equal to the rounding of bfloat16 says little."""
    monkeypatch.setattr("geoloc_fast.models.backbones.backbone._BF16", False)


@pytest.fixture(scope="module")
def model() -> Layered:
    torch.manual_seed(0)
    made = Layered(SMALL)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def many_eyes() -> Layered:
    torch.manual_seed(1)
    config = dataclasses.replace(
        SMALL, layers=("satellite",), eyes={"frozen": 1.5, "mapped": 1.0, "colour": 0.25}, own_mean=0.5
    )
    return Layered(config)


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 [..., 3]: something that features hold on to."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-shape[0] // 4), -(-shape[1] // 4), 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]])


def batch(count: int = 2, **change: Tensor) -> PlaceBatch:
    satellite = torch.stack([torch.from_numpy(picture(80, 80, seed=n)).permute(2, 0, 1) for n in range(count)])
    panorama = torch.stack([torch.from_numpy(picture(64, 256, seed=9 + n)).permute(2, 0, 1) for n in range(count)])
    values = {
        "satellite": satellite,
        "has_satellite": torch.ones(count, dtype=torch.bool),
        "metres_per_pixel": torch.full((count,), 0.75, dtype=torch.float64),
        "panorama": panorama,
        "has_panorama": torch.ones(count, dtype=torch.bool),
        "lat": torch.full((count,), 60.0, dtype=torch.float64),
        "lon": torch.full((count,), 20.0, dtype=torch.float64),
    }
    return PlaceBatch(**(values | change))


def test_column_features_are_means_and_maxima_of_bands() -> None:
    maps = [torch.randn(2, 3, 16, 64), torch.randn(2, 5, 8, 32)]
    features = column_features(maps, 32, LEVEL)
    assert features.shape == (2, 32, feature_count((3, 5), (16, 8), LEVEL))
    first = maps[0].reshape(2, 3, 16, 32, 2)
    torch.testing.assert_close(features[:, 7, :3], first[:, :, :2, 7].mean((2, 3)))  # the sky: an eighth of the rows
    torch.testing.assert_close(features[:, 7, 3:6], first[:, :, :2, 7].amax(2).mean(2))
    torch.testing.assert_close(features[1, 7, -5:], maps[1][1, :, 7, 7])  # four near bands fall on two rows
    assert feature_count((1,), (16,), POLAR) == 32
    with pytest.raises(ValueError, match="columns: expected a divisor"):
        column_features([torch.zeros(1, 1, 4, 48)], 32, POLAR)


def test_it_keeps_the_contract(model: Layered) -> None:
    assert isinstance(model, Model)
    street, satellite = model.layers
    assert (street.name, satellite.name) == ("street", "satellite")
    assert street.strip == satellite.strip == (8, 1, 32)
    assert street.column0_deg == satellite.column0_deg == 180.0
    assert satellite.scanned_rows == 1
    assert model.place_input.standpoints_m == SMALL.standpoints_m
    assert model.query_input.size == (64, 256)


def test_a_turned_world_has_turned_strips(model: Layered) -> None:
    columns = 5
    turned = batch()
    rolled = turned._replace(panorama=turned.panorama.roll(-8 * columns, -1))
    one, two = (model.encode_places(places)["street"].strips for places in (turned, rolled))
    torch.testing.assert_close(two, one.roll(-columns, -1), rtol=1e-3, atol=1e-4)
    above = turned.satellite[0]
    heading = 360 / 32 * columns
    straight = model.polar_features(above, 0.75)
    aside = model.polar_features(above, 0.75, heading_deg=[heading])
    torch.testing.assert_close(aside, straight.roll(-columns, 1), rtol=1e-2, atol=2e-3)


def test_kinds_of_ground_turn_with_the_world_and_are_seen_from_standpoints() -> None:
    torch.manual_seed(2)
    with_kinds = Layered(dataclasses.replace(SMALL, kinds=5))
    assert with_kinds.feature_counts("street")[0] == feature_count((24, 40), (16, 8), LEVEL)
    assert with_kinds.feature_counts("satellite") == (
        feature_count((24, 40), (16, 8), LEVEL) + feature_count((5,), (16,), LEVEL),
        feature_count((24, 40), (16, 8), POLAR) + feature_count((5,), (32,), POLAR),
    )
    places = batch(1)
    image, columns = places.panorama[0], 5
    straight = with_kinds.level_features(image, circular=True)
    turned = with_kinds.level_features(image.roll(-8 * columns, -1), circular=True)
    torch.testing.assert_close(turned, straight.roll(-columns, 0), rtol=1e-3, atol=1e-4)
    shares = straight[:, feature_count((24, 40), (16, 8), LEVEL) :]
    torch.testing.assert_close(shares[:, :5].sum(1), torch.ones(32))  # of a band, all kinds together
    # Once looked at, seen from anywhere: the shares do not depend on the other standpoints.
    points = [(0.0, 0.0), (3.0, 0.0)]
    both = with_kinds.polar_features(places.satellite[0], 0.75, points)
    for n, point in enumerate(points):
        torch.testing.assert_close(both[n], with_kinds.polar_features(places.satellite[0], 0.75, [point])[0])
    with pytest.raises(ValueError, match="kinds: expected two strides"):
        dataclasses.replace(SMALL, strides=(8,), kinds=5)


def test_a_query_knows_what_a_wrong_place_scores(model: Layered) -> None:
    """Mean and deviations over the strips of a cohort stand in where a place has nothing."""
    knows = Layered(dataclasses.replace(SMALL, cohort=6, deviations={"street": 1.5, "satellite": 0.0}))
    torch.manual_seed(3)
    strips = {f"cohort_{name}": torch.randn(6, 8, 1, 32) for name in ("street", "satellite")}
    knows.load_state_dict({**model.state_dict(), **strips})
    queries = [AzimuthColumns(picture(64, 256, seed=n)[:, : 64 + 64 * n]) for n in range(2)]
    found = knows.encode_queries(queries)
    for name, deviations in (("street", 1.5), ("satellite", 0.0)):
        query, absent = found[name], found[name].absent
        against = azimuth_match(query.strips, strips[f"cohort_{name}"], query_width=query.width, select="cosine").score
        assert absent is not None
        torch.testing.assert_close(absent, against.mean(1) + deviations * against.std(1))
        assert model.encode_queries(queries)[name].absent is None


def test_a_photo_of_unknown_field_of_view_is_read_with_several(model: Layered) -> None:
    tries = Layered(dataclasses.replace(SMALL, cohort=6, tried_fov_deg=(60.0, 110.0)))
    torch.manual_seed(4)
    strips = {f"cohort_{name}": torch.randn(6, 8, 1, 32) for name in ("street", "satellite")}
    tries.load_state_dict({**model.state_dict(), **strips})
    assert tries.query_input.readings_deg == (90.0, 60.0, 110.0) and model.query_input.readings_deg == (90.0,)
    photos = [picture(60, 80, seed=n) for n in range(3)]
    found = tries.encode_queries([Photo(photos[0]), Photo(photos[1], 75.0), Photo(photos[2])])
    apart = tries.encode_queries(
        [*(Photo(photos[0], fov) for fov in (90.0, 60.0, 110.0)), Photo(photos[1], 75.0),
         *(Photo(photos[2], fov) for fov in (90.0, 60.0, 110.0))]
    )  # fmt: skip
    for name, one in found.items():
        assert one.query is not None and one.query.tolist() == [0, 0, 0, 1, 2, 2, 2] and apart[name].query is None
        assert one.absent is not None and torch.equal(one.absent, apart[name].absent)
        assert torch.equal(one.strips, apart[name].strips) and torch.equal(one.width, apart[name].width)
        assert tries.encode_queries([Photo(photos[1], 75.0)])[name].query is None


def test_rows_are_standpoints_and_say_where(model: Layered) -> None:
    places = batch(3, has_satellite=torch.tensor([True, False, True]), has_panorama=torch.tensor([False, True, True]))
    rows = model.encode_places(places)
    assert rows["street"].place is not None
    assert rows["street"].place.tolist() == [1, 2]
    satellite = rows["satellite"]
    assert satellite.place is not None
    assert satellite.place.tolist() == [0, 0, 0, 2, 2, 2]
    assert satellite.strips.shape == (6, 8, 1, 32)
    torch.testing.assert_close(satellite.strips.flatten(1).norm(dim=1), torch.ones(6))
    assert satellite.lat is not None
    assert satellite.lon is not None
    away = great_circle_m(60.0, 20.0, satellite.lat[:3], satellite.lon[:3])
    np.testing.assert_allclose(away, [0.0, 3.0, 4.0], atol=0.02)
    assert satellite.lon[1] > 20.0
    assert satellite.lat[2] < 60.0
    # A standpoint is the image with its centre moved: east is right, south is down.
    moved = polar_resample(
        places.satellite[:1], (64, 256), center=(40 + 4 / 0.75, 40.0), max_radius=25 / 0.75, border="replicate",
        mean=(127.5,) * 3, std=(127.5,) * 3,
    )  # fmt: skip
    features = column_features(model.backbone(moved, circular=True), 32, POLAR)
    torch.testing.assert_close(
        features, model.polar_features(places.satellite[0], 0.75, [(0.0, -4.0)]), rtol=1e-3, atol=1e-3
    )


def test_each_eye_has_its_share_of_a_strip(many_eyes: Layered) -> None:
    rows = many_eyes.encode_places(batch(1))["satellite"]
    frozen, mapped, colour = 224, 8, COLOUR_CHANNELS
    assert many_eyes.layers[0].strip == (frozen + mapped + colour, 1, 32)
    shares = [part.square().sum() for part in rows.strips[0].split([frozen, mapped, colour])]
    np.testing.assert_allclose(shares, np.array([1.5, 1.0, 0.25]) / 2.75, rtol=1e-4)
    alone = many_eyes.seen_by({"mapped": 1.0}).encode_places(batch(1))["satellite"]
    assert alone.strips.shape[1] == mapped
    own = dataclasses.replace(many_eyes.config, eyes={"mapped": 1.0}, own_mean=0.0, layers=("satellite",))
    expected = Layered(own)
    expected.place_maps.load_state_dict(many_eyes.place_maps.state_dict())
    cut = many_eyes.backbone.cut.state_dict()
    expected.backbone.cut.load_state_dict({name: cut[name] for name in expected.backbone.cut.state_dict()})
    torch.testing.assert_close(alone.strips, expected.encode_places(batch(1))["satellite"].strips)


def test_light_that_all_of_an_image_shares_counts_less(many_eyes: Layered) -> None:
    """Half of the own mean is taken out: what is left of it is a quarter of its power."""
    whole = many_eyes.seen_by({"frozen": 1.0})
    query = [AzimuthColumns(picture(64, 256, seed=4))]
    before = whole.encode_queries(query)["satellite"].strips[0, :, 0]
    half = whole.seen_by({"frozen": 1.0})
    half.config = dataclasses.replace(half.config, own_mean=0.5)
    after = half.encode_queries(query)["satellite"].strips[0, :, 0]
    scale = (before - before.mean(1, keepdim=True)).norm() / (after - after.mean(1, keepdim=True)).norm()
    torch.testing.assert_close(after.mean(1) * scale, before.mean(1) / 2, rtol=1e-3, atol=1e-6)


def test_with_all_eyes_a_turned_world_has_turned_strips_and_answers_stand_alone(many_eyes: Layered) -> None:
    panorama = picture(64, 256, seed=9)
    queries: list[AzimuthColumns | Photo] = [
        AzimuthColumns(panorama),
        AzimuthColumns(np.roll(panorama, -8, 1)),
        Photo(picture(60, 80), 60.0),
    ]
    found = many_eyes.encode_queries(queries)["satellite"]
    assert found.width is not None
    assert found.width.tolist() == [32, 32, 5]
    torch.testing.assert_close(found.strips[1], found.strips[0].roll(-1, -1), rtol=1e-3, atol=1e-4)
    for n, query in enumerate(queries):
        alone = many_eyes.encode_queries([query])["satellite"].strips[0]
        assert torch.equal(found.strips[n, :, :, : int(found.width[n])], alone)
    one, two = (many_eyes.encode_places(batch(count))["satellite"].strips for count in (2, 1))
    assert torch.equal(one[:3], two)
    flat = batch(1, satellite=torch.full((1, 3, 80, 80), 90, dtype=torch.uint8))
    assert many_eyes.encode_places(flat)["satellite"].strips.isfinite().all()


def test_colours_do_not_know_how_bright_it_was() -> None:
    image = picture(64, 256, seed=2).astype(np.float32)
    dim = np.rint(image / 2).astype(np.uint8)
    cells, dimmed = colour_cells(image.astype(np.uint8), 32), colour_cells(dim, 32)
    assert cells.shape == (3, 8, 32)
    assert np.corrcoef(cells.ravel(), dimmed.ravel())[0, 1] > 0.99
    assert not colour_cells(np.zeros((64, 256, 3), np.uint8), 32).any()


def test_an_image_of_unknown_resolution_is_seen_from_its_centre(model: Layered) -> None:
    places = batch(1, metres_per_pixel=torch.tensor([torch.nan], dtype=torch.float64))
    rows = model.encode_places(places)["satellite"]
    assert rows.strips.shape[0] == 1
    assert rows.strips.isfinite().all()
    with pytest.raises(ValueError, match="standpoints_m"):
        model.polar_features(places.satellite[0], float("nan"), [(1.0, 0.0)])


def test_an_answer_does_not_depend_on_what_is_beside_it(model: Layered) -> None:
    queries: list[AzimuthColumns | Photo] = [
        Photo(picture(60, 80, seed=3), 60.0),
        AzimuthColumns(picture(64, 256, seed=4)),
        Photo(picture(60, 80, seed=5)),
        AzimuthColumns(picture(64, 3, seed=6)),
    ]
    together = model.encode_queries(queries)
    for layer, found in together.items():
        assert found.width is not None
        assert found.width.tolist() == [5, 32, 8, 1]
        for n, query in enumerate(queries):
            alone = model.encode_queries([query])[layer].strips[0]
            width = int(found.width[n])
            assert torch.equal(found.strips[n, :, :, :width], alone)
            assert not found.strips[n, :, :, width:].any()
    one, two = model.encode_places(batch(2)), model.encode_places(batch(1))
    for layer in one:
        assert torch.equal(one[layer].strips[: len(two[layer].strips)], two[layer].strips)


def test_a_cut_of_a_panorama_finds_its_heading(model: Layered) -> None:
    with torch.no_grad():  # one map for both sides: a cut is then like the panorama it comes from
        model.place_maps["street"].load_state_dict(model.query_maps["street"].state_dict())
    panorama = picture(64, 256, seed=9)
    query = model.encode_queries([AzimuthColumns(panorama[:, 80:144])])["street"]
    rows = model.encode_places(batch(2))["street"]
    match = azimuth_match(query.strips, rows.strips, query_width=query.width, select="cosine")
    assert match.score[0].argmax() == 0
    heading = shift_to_heading(match.shift[0, 0], 8, 32, column0_deg=180.0)
    assert abs(float(heading) - (180 + 360 * 112 / 256)) % 360 < 1e-6


def test_flat_images_and_strange_queries(model: Layered) -> None:
    flat = batch(1, satellite=torch.zeros(1, 3, 80, 80, dtype=torch.uint8))
    for rows in model.encode_places(flat).values():
        assert rows.strips.isfinite().all()
    empty = model.encode_places(batch(1, has_satellite=torch.tensor([False]), has_panorama=torch.tensor([False])))
    assert all(len(rows.strips) == 0 for rows in empty.values())
    assert all(len(found.strips) == 0 for found in model.encode_queries([]).values())
    with pytest.raises(TypeError, match="queries: expected decoded photos"):
        model.encode_queries([Text("a square")])
    with pytest.raises(ValueError, match="queries: expected azimuth columns"):
        model.encode_queries([AzimuthColumns(picture(32, 64))])


def test_a_bundle_gives_the_same_model(model: Layered, tmp_path: Path) -> None:
    fingerprint = model.save(tmp_path / "m.safetensors", dtype=torch.float32)
    loaded = load_model(tmp_path / "m.safetensors")
    assert isinstance(loaded, Layered)
    assert (loaded.fingerprint, loaded.config) == (fingerprint, model.config)
    query = [Photo(picture(60, 80), 70.0)]
    assert torch.equal(loaded.encode_queries(query)["street"].strips, model.encode_queries(query)["street"].strips)
    content = bytearray((tmp_path / "m.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(BundleError):
        load_model(tmp_path / "bad.safetensors")


def test_maps_in_8_bits_lose_half_a_step_at_most(model: Layered, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    model.save(tmp_path / "large.safetensors", dtype=torch.float16)
    small, large = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("m", "large"))
    loaded = Layered.load(tmp_path / "m.safetensors")
    maps = {name: value for name, value in model.state_dict().items() if "_maps." in name and value.ndim == 2}
    assert large - small > 0.4 * sum(value.numel() for value in maps.values())  # 8 channels share a step of four bytes
    for name, value in loaded.state_dict().items():
        given = model.state_dict()[name]
        step = given.abs().amax(0) / 127 if name in maps else 2e-3 * given.abs().clamp(min=1e-4)
        assert ((value - given).abs() <= 0.501 * step).all(), name
    again = loaded.save(tmp_path / "again.safetensors")
    assert again == loaded.fingerprint, "what is in 8 bits is kept as it is"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ("street", "smell")}, "layers: expected some of"),
        ({"level_size": (64, 200)}, "level_size: expected rows"),
        ({"channels": 0}, "channels: expected a whole number"),
        ({"eyes": {"third": 1.0}}, "eyes: expected some of"),
        ({"eyes": {"mapped": 0.0}}, "eyes: expected some of"),
        ({"own_mean": 1.5}, "own_mean: expected 0 to 1"),
        ({"range_m": (60, 50)}, "range_m"),
        ({"standpoints_m": ((30.0, 0.0),)}, "standpoints_m"),
        ({"weights": {"street": 1.0}}, "weights: expected a number for"),
        ({"tried_fov_deg": (0.0,)}, "tried_fov_deg: expected angles"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayeredConfig(**change)  # type: ignore[arg-type]
