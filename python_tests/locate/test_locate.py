"""From photos to answers: candidates, confidence, bad input, and the commands a person types."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import CityRecipe, write_city, write_recipes
from geoloc_fast.cli import main
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ConfidenceError, OtherModelError, PlaceIndexError
from geoloc_fast.evaluation.evaluate import evaluate, fov_label, summary, truth_of
from geoloc_fast.geo.regions import Box, Circle
from geoloc_fast.geo.sphere import great_circle_m, move_m
from geoloc_fast.images.decode import decode_image
from geoloc_fast.index import Neighbours, PlaceIndex, Several
from geoloc_fast.layers import QueryStrips
from geoloc_fast.locate.answers import as_dict, as_features, as_lines, locate_folder, percent
from geoloc_fast.locate.candidates import SPACING_M, candidates_of
from geoloc_fast.locate.confidence import FEATURES, Confidence, calibration_error, ranking_quality
from geoloc_fast.locate.locator import Answer, Locator
from geoloc_fast.models.contract import Model, load_model, shipped_model
from geoloc_fast.region.encode import add_places, build_index
from geoloc_fast.testing import random_strips

PLACES = 24


def neighbours(rows: list[tuple[float, float, float, float]]) -> Neighbours:
    """From (east_m, north_m, score, heading), best first; padded with what a search pads with."""
    east, north, score, heading = (np.array(column) for column in zip(*rows, strict=True))
    lat, lon = move_m(np.full(len(rows), 48.0), np.full(len(rows), 11.0), east, north)
    pad = np.full(2, np.nan)
    return Neighbours(
        np.append(np.arange(len(rows)), [-1, -1]), np.append(score, pad), np.append(np.zeros(len(rows), int), [-1, -1]),
        np.append(heading, pad), *[np.append(lat, pad), np.append(lon, pad)] * 2, np.append(score, pad)[:, None],
        np.zeros(len(rows) + 2, int), np.True_,
    )  # fmt: skip


# --- candidates ----------------------------------------------------------------------------------------------


def test_neighbouring_places_make_one_candidate_between_them() -> None:
    first, second = candidates_of(
        neighbours([(0, 0, 0.8, 350), (500, 0, 0.79, 90), (0, 20, 0.8, 20), (0, -10, 0.5, 180)])
    )
    away = great_circle_m(48.0, 11.0, first.lat, first.lon)
    assert (first.place, first.places, second.place, second.places) == (0, 3, 1, 1)
    assert away == pytest.approx(10, abs=0.1)  # the third counts next to nothing
    assert first.heading_deg == pytest.approx(5, abs=0.2)  # the mean goes through north
    assert first.weight > second.weight
    assert first.weight + second.weight == pytest.approx(1)


def test_a_neighbour_that_looks_another_way_moves_nothing() -> None:
    (found,) = candidates_of(neighbours([(0, 0, 0.8, 10), (0, 20, 0.8, 200), (0, 20, 0.8, 350)]))
    assert found.places == 3
    assert found.heading_deg % 360 == pytest.approx(0, abs=0.01) or found.heading_deg == pytest.approx(360, abs=0.01)
    assert great_circle_m(48.0, 11.0, found.lat, found.lon) == pytest.approx(10, abs=0.1)


def test_two_good_neighbours_outweigh_one_slightly_better_loner() -> None:
    found = candidates_of(neighbours([(500, 0, 0.81, 0), (0, 0, 0.8, 0), (10, 0, 0.8, 0)]))
    assert [candidate.place for candidate in found] == [1, 0]


def test_no_two_candidates_lie_within_25_metres() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        spots = rng.uniform(-60, 60, (40, 2))
        scores = np.sort(rng.uniform(0.5, 0.9, 40))[::-1]
        rows = [(float(e), float(n), float(s), 0.0) for (e, n), s in zip(spots, scores, strict=True)]
        found = candidates_of(neighbours(rows))
        lat, lon = (np.array([getattr(candidate, name) for candidate in found]) for name in ("lat", "lon"))
        away = great_circle_m(lat[:, None], lon[:, None], lat, lon) + 1e6 * np.eye(len(found))
        assert len(found) > 3 and away.min() >= SPACING_M


def test_candidates_across_the_antimeridian_belong_together() -> None:
    found = candidates_of(
        Neighbours(
            np.array([1, 2]), np.array([0.8, 0.8]), np.zeros(2, int), np.zeros(2),
            *[np.zeros(2), np.array([179.99995, -179.99995])] * 2, np.full((2, 1), 0.8),
            np.zeros(2, int), np.True_,
        )
    )  # fmt: skip
    assert len(found) == 1
    assert abs(abs(found[0].lon) - 180) < 1e-6


# --- confidence ----------------------------------------------------------------------------------------------


def trials(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features that decide, by a logistic law, how often an answer is right."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, len(FEATURES))) * np.arange(1, len(FEATURES) + 1) + 3
    right = rng.random(count) < 1 / (1 + np.exp(-(features[:, 0] - 3) * 1.5 - (features[:, 1] - 3)))
    return features, np.where(right, rng.uniform(0, 10, count), 500.0)


def fitted(seed: int = 0) -> Confidence:
    features, away = trials(4000, seed)
    return Confidence.fit("m", features, away, np.arange(4000) % 2 == 0, layers=("place",))


def test_the_probability_means_what_it_says() -> None:
    confidence = fitted()
    features, away = trials(20_000, 1)
    probability, right = confidence.probability(features), away <= 25
    assert calibration_error(probability, right) < 0.02
    assert 0.8 < ranking_quality(probability, right) < 1
    given = probability >= confidence.threshold
    assert 0.1 < given.mean() < 0.9
    assert right[given].mean() >= 0.89
    assert confidence.within(0.5) == pytest.approx(5, abs=0.5)
    assert confidence.further_down == pytest.approx(0.5, abs=0.05)


def test_figures_of_merit_are_those_of_the_definition() -> None:
    probability, right = np.array([0.9, 0.8, 0.8, 0.2]), np.array([True, False, True, False])
    assert ranking_quality(probability, right) == (1 + 0.5 + 1 + 1) / 4
    assert calibration_error(probability, right) == pytest.approx((0.1 + abs(1 - 1.6) + 0.2) / 4)
    assert np.isnan(ranking_quality(probability[:1], right[:1]))


def test_confidence_is_kept_with_its_model(tmp_path: Path) -> None:
    confidence = fitted()
    path = Confidence.path_for(tmp_path / "a.safetensors")
    confidence.save(path)
    assert path.name == "a.confidence.json"
    assert Confidence.load(path, model="m") == confidence
    with pytest.raises(ConfidenceError, match="was fitted for model m, this is n"):
        Confidence.load(path, model="n")
    text = path.read_text()
    for broken in (
        "",
        "[]",
        "{}",
        text[:-40],
        text.replace('"weight": [', '"weight": [NaN, '),
        text.replace("1,", '"x",', 1),
    ):
        path.write_text(broken)
        with pytest.raises(ConfidenceError, match="fit it again"):
            Confidence.load(path, model="m")


def test_too_few_answers_to_learn_from_are_refused() -> None:
    features, away = trials(30, 0)
    with pytest.raises(ValueError, match="at least 10 right and 10 wrong"):
        Confidence.fit("m", features, np.zeros_like(away), away > 0)


def test_the_confidence_that_ships_belongs_to_the_model_that_ships() -> None:
    model = load_model()
    Confidence.load(Confidence.path_for(shipped_model()), model=model.fingerprint)


@pytest.mark.slow
def test_the_confidence_that_ships_holds_in_cities_it_was_not_fitted_on(model: Model, tmp_path: Path) -> None:
    ours, other = (tidy_city(tmp_path / str(seed), seed, 200) for seed in (41_000, 41_001))
    build_index(tmp_path / "index", model, ours)
    confidence = Confidence.load(Confidence.path_for(shipped_model()), model=model.fingerprint)
    locator = Locator(PlaceIndex.open(tmp_path / "index"), model, confidence=confidence)
    truth = truth_of(ours.photos.to_pylist(), locator.index.keys())
    sure = evaluate(locator, photo_paths(ours), truth).metrics()["confidence"]
    # Of 200 photos: the figures themselves, of thousands, are in docs/guide/train.md.
    assert sure["calibration_error"] < 0.1
    assert sure["auroc"] > 0.65
    # Few of 200 are answered: not so many of those are wrong as nine right in ten would give once in a hundred times.
    given = round(sure["coverage"] * len(ours.photos))
    right = round((sure["precision"] or 0) * given)
    assert sum(math.comb(given, n) * 0.9**n * 0.1 ** (given - n) for n in range(right + 1)) > 0.01
    abroad = [answer.status for answer in locator.locate(photo_paths(other))]
    assert abroad.count("unknown") >= 0.8 * len(abroad)


# --- a city ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    sizes = Sizes(satellite_px=256, panorama=(64, 256), photo=(96, 128))
    return write_city(tmp_path_factory.mktemp("city"), seed=77, cities=1, places=PLACES, sizes=sizes)


@pytest.fixture(scope="module")
def index(city: Manifest, model: Model, tmp_path_factory: pytest.TempPathFactory) -> PlaceIndex:
    path = tmp_path_factory.mktemp("built") / "index"
    with PlaceIndex.create(path, model=str(model.fingerprint), layers=model.layers) as made:
        done = add_places(made, model, city)
        assert done.added == PLACES - len(done.problems)
        assert all("heading of its street view is unknown" in problem for problem in done.problems)
        again = add_places(made, model, city)
        assert (again.added, again.there_already) == (0, len(made))
    return PlaceIndex.open(path)


@pytest.fixture
def locator(index: PlaceIndex, model: Model) -> Locator:
    confidence = Confidence.load(Confidence.path_for(shipped_model()), model=model.fingerprint)
    return Locator(index, model, confidence=confidence)


def tidy_city(folder: Path, seed: int, places: int) -> Manifest:
    sizes = Sizes(satellite_px=256, panorama=(64, 256), photo=(96, 128))
    return write_recipes(folder, [CityRecipe("city", seed, None, places, sizes, (70.0, 110.0), TIDY)])


def photo_paths(city: Manifest) -> list[Path]:
    return [city.root / path for path in city.photos["image"].to_pylist()]


def one(locator: Locator, image: Any, **options: Any) -> Answer:
    (answer,) = locator.locate([image], **options)
    return answer


def test_photos_of_the_city_are_located_far_above_chance(city: Manifest, locator: Locator) -> None:
    answers: list[Answer] = []
    photos = city.photos
    result = evaluate(
        locator, photo_paths(city), truth_of(photos.to_pylist(), locator.index.keys()),
        fov_deg=photos["fov_deg"].to_pylist(), keep=answers,
        groups={"field of view": [fov_label(fov) for fov in photos["fov_deg"].to_pylist()]},
    )  # fmt: skip
    metrics = result.metrics()
    assert metrics["recall_at_5"] > 0.4
    low, high = metrics["interval"]["recall_at_1"]
    assert low <= metrics["recall_at_1"] <= high
    assert [answer.image for answer in answers] == [str(path) for path in photo_paths(city)]
    for answer in answers:
        assert answer.fov_from == "given"
        assert 0 < answer.candidates[0].probability < 1  # type: ignore[operator]
        assert sum(candidate.probability or 0 for candidate in answer.candidates) <= 1 + 1e-9
        assert set(answer.seconds) == {"decode", "encode", "search", "answer"}
    assert "R@1" in summary(metrics) and "decode" in summary(metrics) and "first place within 10 m" in summary(metrics)
    parts = metrics["by"]["field of view"]
    assert sum(part["photos"] for part in parts.values()) == len(photos)
    right = sum(part["photos"] * part["recall_at_1"] for part in parts.values())
    assert right == pytest.approx(len(photos) * metrics["recall_at_1"])
    json.dumps(metrics)


def test_photos_are_grouped_by_their_field_of_view() -> None:
    assert [fov_label(fov) for fov in (None, 70, 70.5, 120, 180, 360)] == [
        "unknown", "up to 70°", "up to 90°", "up to 120°", "up to 180°", "wider",
    ]  # fmt: skip


def test_batches_give_the_answers_that_photos_get_alone(city: Manifest, locator: Locator) -> None:
    images = [*photo_paths(city)[:5], b"nonsense", *photo_paths(city)[5:8]]
    alone, together = list(locator.locate(images)), list(locator.locate(images, batch=4))
    assert [answer.status for answer in alone] == [answer.status for answer in together]
    for a, b in zip(alone, together, strict=True):
        assert [c.place for c in a.candidates] == [c.place for c in b.candidates]
        assert [c.lat for c in a.candidates] == pytest.approx([c.lat for c in b.candidates], abs=1e-6)


def test_photos_stream(city: Manifest, locator: Locator) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield photo_paths(city)[0]

    answers = locator.locate(endless())
    assert next(answers) == next(answers)
    assert len(taken) == 2


def test_a_region_restricts_the_answer(index: PlaceIndex, city: Manifest, model: Model) -> None:
    place = index.places([3])[0]
    locator = Locator(index, model, within=Circle(place.lat, place.lon, 60))
    answer = one(locator, photo_paths(city)[0])
    for candidate in answer.candidates:
        assert great_circle_m(place.lat, place.lon, candidate.lat, candidate.lon) <= 60
    assert answer.status == "unverified" and answer.candidates[0].probability is None  # nobody judges it
    assert answer.best is None and as_dict(answer)["lat"] is None
    with pytest.raises(PlaceIndexError, match="no places within"):
        Locator(index, model, within=Circle(0, 0, 10))


def test_several_indexes_are_searched_as_one(
    run: Any, index: PlaceIndex, city: Manifest, model: Model, tmp_path: Path
) -> None:
    """Two halves of an index say what the whole says; only names and ids differ."""
    middle = float(np.median(index.positions()[1]))
    halves = []
    for name, (west, east) in {"west": (-180, middle), "east": (math.nextafter(middle, 180), 180)}.items():
        index.slice(tmp_path / name, Box(-90, west, 90, east))
        halves.append(PlaceIndex.open(tmp_path / name))
    both = Several(halves)
    assert len(both) == len(index) == len(set(both.ids().tolist())) and min(map(len, halves)) > 2
    path = photo_paths(city)[0]
    whole, parts = one(Locator(index, model), path), one(Locator(both, model), path)
    assert [c.lat for c in parts.candidates] == [c.lat for c in whole.candidates]
    assert [c.key.split(": ", 1)[1] for c in parts.candidates] == [c.key for c in whole.candidates]
    for candidate in parts.candidates:
        name, key = candidate.key.split(": ", 1)
        own = PlaceIndex.open(tmp_path / name).keys()
        assert key in own and both.keys()[candidate.key] == candidate.place
    assert parts.provenance is not None and parts.provenance.index_id == both.index_id
    assert all(index.index_id in both.index_id for index in halves)
    place = index.places([3])[0]
    near = Circle(place.lat, place.lon, 60)  # of one of them maybe nothing
    here, there = one(Locator(index, model, within=near), path), one(Locator(both, model, within=near), path)
    assert [c.lat for c in here.candidates] == [c.lat for c in there.candidates]
    given = ("--index", tmp_path / "west", "--index", tmp_path / "east", "--json")
    code, out, _ = run("locate", path, *given)
    assert code == 0 and json.loads(out)[0]["candidates"][0]["key"] == parts.candidates[0].key
    code, _, err = run("locate", path, *given, "--region", city.root, "--report", tmp_path / "page.html")
    assert code == 2 and "expected one --index" in err
    with pytest.raises(PlaceIndexError, match="no places within"):
        Locator(both, model, within=Circle(0, 0, 10))


def test_not_sure_enough_is_unknown(city: Manifest, locator: Locator) -> None:
    path = photo_paths(city)[0]
    locator.least_probability = 1.0
    answer = one(locator, path)
    assert (answer.status, answer.best) == ("unknown", None)
    assert answer.candidates and as_dict(answer)["lat"] is None and as_features(answer)[0]["geometry"] is None
    locator.least_probability = 0.0
    answer = one(locator, path)
    (feature,) = as_features(answer)
    assert feature["geometry"]["coordinates"] == [
        round(answer.candidates[0].lon, 7),
        round(answer.candidates[0].lat, 7),
    ]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def test_what_a_file_says_of_itself_is_neither_believed_nor_repeated(city: Manifest, locator: Locator) -> None:
    path = photo_paths(city)[0]
    photo = Image.open(path)
    answer = one(locator, path.read_bytes())
    here = answer.candidates[0]
    for lat, lon, agrees in ((12.3456, 65.4321, False), (here.lat, here.lon, True)):
        exif = Image.Exif()
        exif.get_ifd(0x8825).update({1: "N", 2: dms(lat), 3: "E", 4: dms(lon)})
        exif[0x010F] = "camera of a certain person"
        claimed = one(locator, encoded(photo, "png", exif=exif))
        assert claimed.exif_agrees is agrees
        if not agrees:
            text = json.dumps(as_dict(claimed))
            assert "certain" not in text and "12.3" not in text and "65.4" not in text
        assert [c.place for c in claimed.candidates] == [
            c.place for c in one(locator, encoded(photo, "png")).candidates
        ]
    assert answer.exif_agrees is None


def dms(degrees: float) -> tuple[float, float, float]:
    minutes = degrees % 1 * 60
    return float(int(degrees)), float(int(minutes)), minutes % 1 * 60


def picture(size: tuple[int, int] = (128, 96)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def bomb() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"I am no image", "is not a JPEG, PNG, WebP or TIFF image"),
    "nothing": (lambda: b"", "is empty"),
    "bomb": (bomb, "pixels that are decoded"),
    "pixel": (lambda: encoded(picture((1, 1)), "png"), "1 x 1 pixels; at least 32 each way are needed"),
    "panorama": (lambda: encoded(picture((512, 128)), "png"), "512 x 128 pixels look like a panorama; crop a view"),
    "cut": (lambda: encoded(picture(), "jpeg")[:900], "cannot be decoded"),
    "float": (lambda: encoded(Image.new("F", (64, 64)), "tiff"), "which are no picture"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_photo_is_told_and_the_others_go_on(
    name: str, city: Manifest, locator: Locator, tmp_path: Path
) -> None:
    make, message = UNREADABLE[name]
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(make())
    bad, good = locator.locate([path, photo_paths(city)[0]], batch=2)
    assert bad.status == "unreadable" and message in str(bad.problem), bad.problem
    assert good.candidates
    assert name in as_lines(bad)[0] and as_features(bad)[0]["geometry"] is None


def test_files_that_cannot_be_opened_are_told(locator: Locator, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("none", "No such file"), ("pipe", "is not a plain file"), ("", "is not a plain file")):
        assert message in str(one(locator, tmp_path / name).problem)


@pytest.mark.parametrize("kind", ["CMYK", "16 bit", "alpha", "animated", "grey", "palette"])
def test_unusual_images_are_photos_too(kind: str, locator: Locator) -> None:
    rgb = picture()
    content = {
        "CMYK": lambda: encoded(rgb.convert("CMYK"), "jpeg"),
        "16 bit": lambda: encoded(Image.fromarray(np.arange(96 * 128, dtype=np.uint16).reshape(96, 128)), "png"),
        "alpha": lambda: encoded(rgb.convert("RGBA"), "png"),
        "animated": lambda: encoded(rgb, "webp", save_all=True, append_images=[rgb.rotate(90)]),
        "grey": lambda: encoded(rgb.convert("L"), "jpeg"),
        "palette": lambda: encoded(rgb.convert("P"), "png"),
    }[kind]()
    assert decode_image(content, kind).shape == (96, 128, 3)
    assert one(locator, content).candidates


def test_wrong_arguments_are_told(locator: Locator) -> None:
    for options, message in (
        ({"fov_deg": 5}, "fov_deg: expected 10 to 150 degrees"), ({"candidates": 0}, "expected at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            one(locator, b"", **options)
    with pytest.raises(TypeError, match="uint8"):
        one(locator, np.zeros((50, 50)))


def test_another_model_and_an_empty_index_are_refused(index: PlaceIndex, model: Model, tmp_path: Path) -> None:
    stranger = load_model()
    stranger.fingerprint = "f" * 64
    with pytest.raises(OtherModelError, match="use the model it was built with"):
        Locator(index, stranger)
    empty = PlaceIndex.create(tmp_path / "empty", model=str(model.fingerprint), layers=model.layers)
    with pytest.raises(PlaceIndexError, match="has no places; add some"):
        Locator(empty, model)


def test_an_interrupted_build_is_gone_on_with(
    city: Manifest, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny)
    build_index(tmp_path / "whole", model, city)
    whole = PlaceIndex.open(tmp_path / "whole")
    monkeypatch.setattr("geoloc_fast.region.encode.BATCH", 5)
    monkeypatch.setattr("geoloc_fast.region.encode.COMMIT_PLACES", 5)
    calls = []

    def progress(done: int, total: int | None) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with PlaceIndex.create(tmp_path / "index", model=str(model.fingerprint), layers=model.layers) as made:
        with pytest.raises(KeyboardInterrupt):
            add_places(made, model, city, progress=progress)
        before = len(made)
        assert 0 < before < len(whole)
        assert PlaceIndex.verify(made.path) == []
        assert add_places(made, model, city).there_already == before
        query = {layer.name: QueryStrips(random_strips(1, *layer.strip)) for layer in model.layers}
        ours, theirs = made.search(query, 50), whole.search(query, 50)
        assert np.array_equal(ours.id, theirs.id)
        assert np.allclose(ours.score, theirs.score, atol=1e-2, equal_nan=True)


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoloc-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return call


def test_the_life_of_an_index_on_the_command_line(run: Any, city: Manifest, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "region.index"
    code, out, err = run("index", "build", city.root, path, "--model", tiny, "--json")
    said = json.loads(out)
    assert code == (1 if said["left_out"] else 0) and said["added"] + len(said["left_out"]) == PLACES
    assert len(err.strip().splitlines()) == len(said["left_out"])
    code, out, _ = run("index", "add", city.root, path, "--model", tiny)
    assert "0 places added" in out
    code, out, _ = run("index", "info", path, "--json")
    bounds = json.loads(out)["bounds"]
    box = f"south={bounds['south']},west={bounds['west']},north={bounds['north']},east={bounds['east']}"
    code, out, _ = run("index", "slice", path, tmp_path / "part", "--box", box, "--json")
    assert (code, json.loads(out)["places"]) == (0, said["added"])
    key = city.places["id"][0].as_py()
    code, out, _ = run("index", "remove", path, "--key", key, "--id", 1, "--json")
    assert (code, json.loads(out)["removed"]) == (0, 2)
    assert run("index", "remove", path, "--key", key)[0] == 1  # it is not there any more
    assert run("index", "compact", path, "--keep", 0)[0] == 0
    code, out, _ = run("index", "export", path, tmp_path / "places.parquet", "--json")
    assert pq.read_table(tmp_path / "places.parquet").num_rows == json.loads(out)["places"] == said["added"] - 2
    assert run("index", "verify", path)[:2] == (0, f"{path}: every byte is as it was written\n")
    strips = next(path.glob("*.strips"))
    content = bytearray(strips.read_bytes())
    content[-1] ^= 1
    strips.write_bytes(content)
    code, out, _ = run("index", "verify", path, "--json")
    assert code == 3 and strips.name in json.loads(out)["problems"][0]
    strips.unlink()
    code, _, err = run("index", "info", path)
    assert code == 3 and "is missing; restore it" in err and len(err.splitlines()) == 1


def test_locate_prints_what_it_was_asked_for(run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path) -> None:
    photos = photo_paths(city)[:2]
    hostile = tmp_path / "<script>\x1b[31m\n.jpg"
    hostile.write_bytes(b"no")
    code, out, _ = run("locate", *photos, "--index", index.path, "--least-probability", 0)
    assert code == 0 and len(out.splitlines()) == 3 and "located" in out.splitlines()[1]
    code, out, _ = run("locate", *photos, hostile, "--index", index.path, "--least-probability", 0)
    assert code == 1 and len(out.splitlines()) == 4 and "\x1b" not in out
    code, out, _ = run("locate", *photos, hostile, "--index", index.path, "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in (*photos, hostile)]
    assert rows[2]["status"] == "unreadable" and rows[0]["candidates"][0]["probability"] > 0
    code, out, _ = run("locate", *photos, "--index", index.path, "--json")
    assert json.loads(out) == rows[:2]
    given = ("--index", index.path, "--least-probability", 1, "--candidates", 3)
    code, out, _ = run("locate", *photos, hostile, *given, "--format", "geojson")
    kinds = [feature["properties"]["kind"] for feature in json.loads(out)["features"]]
    assert kinds == (["answer", *["candidate"] * 3] * 2) + ["answer"]
    code, out, _ = run("locate", *photos, hostile, *given)
    assert out.count("unknown") == 2 and out.count("maybe 1") == out.count("maybe 3") == 2
    for name in ("a.csv", "a.kml", "a.geojson", "a.json", "a.jsonl"):
        code, out, err = run("locate", *photos, *given, "--out", tmp_path / name)
        assert (code, out) == (0, "") and f"Written to {tmp_path / name}" in err
        shown = run("locate", *photos, *given, "--format", name[2:])[1]
        assert (tmp_path / name).read_text() == shown


def test_a_folder_is_all_photos_below_it_and_says_what_it_passes_over(
    run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path
) -> None:
    folder = tmp_path / "phone"
    (folder / "june").mkdir(parents=True)
    for n, name in enumerate(("a.jpg", "june/b.JPG")):
        shutil.copy(photo_paths(city)[n], folder / name)
    given = ("--index", index.path)
    code, out, err = run("locate", folder, *given, "--format", "jsonl")
    assert code == 0 and "trained on ImageNet features, synthetic cities only" in err and len(err.splitlines()) == 1
    assert [json.loads(line)["image"] for line in out.splitlines()] == [
        str(folder / "a.jpg"),
        str(folder / "june/b.JPG"),
    ]
    (folder / "june" / "IMG_1.HEIC").write_bytes(b"....ftypheic")
    (folder / "film.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("no photo, and nobody takes it for one")
    for more in (("--format", "jsonl"), ("--out", tmp_path / "answers.parquet")):
        code, _, err = run("locate", folder, *given, *more)
        assert code == 1
        assert "2 files are passed over" in err and "IMG_1.HEIC" in err and "film.mp4" in err and "notes" not in err
    assert pq.read_table(tmp_path / "answers.parquet")["image"].to_pylist() == ["a.jpg", "june/b.JPG"]
    code, _, err = run("locate", tmp_path / "phone" / "none", *given)
    assert code == 1
    (tmp_path / "empty").mkdir()
    code, _, err = run("locate", tmp_path / "empty", *given)
    assert code == 1 and "there are no photos in it" in err


def test_the_page_of_answers_shows_photos_candidates_and_their_places(
    run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path
) -> None:
    hostile = tmp_path / "<script>alert(1).jpg"
    hostile.write_bytes(b"no")
    page = tmp_path / "answers.html"
    given = ("--index", index.path, "--least-probability", 1, "--report", page, "--region", city.root)
    code, _, err = run("locate", *photo_paths(city)[:8], hostile, *given)
    text = page.read_text()
    assert code == 1 and f"Written to {page}" in err
    assert text.count('alt="the photo"') == 8 and text.count("plan of 5 candidates") >= 8
    assert 'alt="satellite image of candidate 1"' in text and "street view of candidate" in text
    assert "8 unknown, 1 unreadable" in text and "is not a JPEG" in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert text.count('class="spot"') == text.count('<polygon class="fan"') == 40


def test_the_polygon_of_a_file_restricts_the_answer(
    run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path
) -> None:
    place = index.places([3])[0]
    ring = [
        [place.lon + east * 8e-4, place.lat + north * 5e-4]
        for east, north in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))
    ]
    path = tmp_path / "region.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    code, out, _ = run("locate", photo_paths(city)[0], "--index", index.path, "--within", path, "--json")
    found = json.loads(out)[0]["candidates"]
    assert code == 0 and found
    for candidate in found:
        assert abs(candidate["lat"] - place.lat) <= 5e-4 and abs(candidate["lon"] - place.lon) <= 8e-4
    path.write_text("{}")
    code, _, err = run("locate", photo_paths(city)[0], "--index", index.path, "--within", path)
    assert code == 2 and "--within" in err and "expected polygons" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "xml", "a.jpg"], 2, "--format: expected one of table"),
        ([], 2, "give photos"),
        (["a.jpg", "--out", "b.xyz"], 2, "expected a name that ends in .json"),
        (["a.jpg", "--out", "b.csv", "--format", "kml"], 2, "is a file of csv, --format says kml"),
        (["a.jpg", "--out", "b.parquet"], 2, "expected one folder of photos"),
        (["a.jpg", "--report", "b.pdf"], 2, "--report: expected a name that ends in .html"),
        (["a.jpg", "--region", "b"], 2, "give that too"),
        (["a.jpg", "--within", "none.geojson"], 1, "No such file"),
        (["a.jpg", "--box", "1,2,3,4"], 2, "--box: expected south=NUMBER"),
        (["a.jpg", "--near", "lat=1,lon=2,metres=3", "--box", "x"], 2, "give one of them"),
        (["a.jpg", "--near", "lat=91,lon=2,metres=3"], 2, "--near: lat: expected degrees"),
        (["a.jpg", "--fov-deg", "900"], 1, "fov_deg: expected 10 to 150"),
        (["a.jpg", "--index", "nowhere"], 1, "nowhere: is not a folder; make an index"),
    ],
)
def test_wrong_arguments_of_locate_are_one_line(
    run: Any, index: PlaceIndex, arguments: list[str], code: int, message: str
) -> None:
    given = arguments if "--index" in arguments else [*arguments, "--index", str(index.path)]
    done, _, err = run("locate", *given)
    assert done == code and len([line for line in err.splitlines() if "trained on" not in line]) == 1
    assert message in err


def test_a_batch_goes_on_where_it_was_interrupted(city: Manifest, locator: Locator, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "answers.parquet"
    folder.mkdir()
    for path in photo_paths(city)[:10]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    whole = tmp_path / "whole.parquet"
    counts = locate_folder(locator, folder, whole, batch=3)
    assert counts["unreadable"] == 1 and sum(counts.values()) == 11

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        locate_folder(locator, folder, out, batch=3, progress=stop)
    partial = out.with_name("answers.parquet.partial")
    assert not out.exists() and len(partial.read_text().splitlines()) == 7
    partial.write_text(partial.read_text()[:-30])  # killed while it wrote a line
    located = []
    locate_folder(locator, folder, out, batch=3, progress=lambda done, total: located.append(done))
    assert located[0] == 5 and located[-1] == 11
    assert not partial.exists()
    exact = ["image", "status", "problem", "fov_deg", "fov_from", "stamp"]
    resumed, expected = pq.read_table(out), pq.read_table(whole)
    assert resumed.select(exact).equals(expected.select(exact))
    for ours, theirs in zip(resumed["candidates"].to_pylist(), expected["candidates"].to_pylist(), strict=True):
        # Sums of a network run in another order in another batch.
        assert [c["place"] for c in ours] == [c["place"] for c in theirs]
        assert [c["lat"] for c in ours] == pytest.approx([c["lat"] for c in theirs], abs=1e-6)

    # Done already; then one more and one that has changed.
    located.clear()
    locate_folder(locator, folder, out, progress=lambda done, total: located.append(done))
    assert located == [11]
    (folder / "another.jpg").write_bytes(photo_paths(city)[11].read_bytes())
    (folder / "broken.jpg").write_bytes(photo_paths(city)[12].read_bytes())
    located.clear()
    assert locate_folder(locator, folder, out, progress=lambda done, total: located.append(done))["unreadable"] == 0
    assert located[0] == 10 and located[-1] == 12
    assert pq.read_table(out).num_rows == 12

    other = replace(locator.confidence, threshold=0.1)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"holds answers of another threshold"):
        locate_folder(Locator(locator.index, locator.model, confidence=other), folder, out)
    (tmp_path / "other.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no file of answers"):
        locate_folder(locator, folder, tmp_path / "other.parquet")


def test_a_file_name_that_is_not_utf8_loses_no_batch(
    run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "answers.parquet"
    folder.mkdir()
    odd = (b"\xff\xfe good.jpg", b"broken \xc3.jpg")
    shutil.copy(photo_paths(city)[0], folder / "a.jpg")
    try:
        shutil.copy(photo_paths(city)[1], os.path.join(os.fsencode(folder), odd[0]))
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    Path(os.fsdecode(os.path.join(os.fsencode(folder), odd[1]))).write_bytes(b"no image")

    code, _, _ = run("locate", folder, "--index", index.path, "--out", out)
    assert code == 1  # for the one that is broken
    rows = {row["image"]: row for row in pq.read_table(out).to_pylist()}
    assert set(rows) == {"a.jpg", r"\udcff\udcfe good.jpg", r"broken \udcc3.jpg"}
    assert [len(rows[name]["candidates"]) > 0 for name in sorted(rows)] == [True, True, False]
    assert rows[r"broken \udcc3.jpg"]["status"] == "unreadable"
    before = out.read_bytes()
    run("locate", folder, "--index", index.path, "--out", out)  # finds each again by the name it was given
    assert out.read_bytes() == before and not out.with_name("answers.parquet.partial").exists()
    for ending in ("jsonl", "json", "csv", "geojson", "kml"):
        run("locate", folder, "--index", index.path, "--out", tmp_path / f"answers.{ending}")
        assert "good.jpg" in (tmp_path / f"answers.{ending}").read_text(encoding="utf-8")
    run("locate", folder, "--index", index.path, "--report", tmp_path / "answers.html")
    assert "good.jpg" in (tmp_path / "answers.html").read_text(encoding="utf-8")


def test_evaluate_on_the_command_line(run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path) -> None:
    code, out, _ = run("evaluate", city.root, "--index", index.path, "--json")
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["field_of_view_unknown", "field_of_view_known"]
    assert found["field_of_view_unknown"]["confidence"] != found["field_of_view_known"]["confidence"]
    metrics = found["field_of_view_known"]
    assert metrics["photos"] == PLACES
    assert metrics["places"] == len(index)
    assert metrics["recall_at_1"] <= metrics["recall_at_1_percent"] + 1e-9 <= metrics["recall_at_5"] + 1e-9
    assert 0 <= metrics["confidence"]["calibration_error"] <= 1
    assert metrics["recall_at_5"] > 0.4
    page = tmp_path / "report.html"
    code, out, _ = run("evaluate", city.root, "--index", index.path, "--split", "val", "--report", page)
    assert code == 0 and "R@10" in out and f"Written to {page}" in out
    text = page.read_text()
    count = city.photos["split"].to_pylist().count("val")
    assert text.count('<article class="card"') == count and f"All {count} photos" in text
    # Pictures come from the manifest: a place has no street view to show if it lacks one or nobody knows its frame.
    assert text.count('<img alt="matched place"') == text.count('<img alt="photo"') == count
    assert text.count('<img alt="street view"') + text.count("no street view") == count
    code, _, err = run("evaluate", city.root, "--index", index.path, "--split", "nothing")
    assert code == 1 and "no photo has a known position" in err


def test_panoramas_are_located_as_they_are_and_in_cuts(
    run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path
) -> None:
    places = [row for row in city.places.to_pylist() if row["street_column0_deg"] is not None][:12]
    photos = [
        {
            "id": row["id"],
            "image": row["street"],
            "lat": row["lat"],
            "lon": row["lon"],
            "fov_deg": 360.0,
            "heading_deg": (row["street_column0_deg"] + 180.0) % 360.0,
        }
        for row in places
    ]
    broken = {**photos[0], "id": "broken", "image": "not-there.jpg"}
    own = tmp_path / "panoramas"
    for folder in ("places", "images", "satellite", "street"):  # the images stay where they are
        if (city.root / folder).is_dir():
            shutil.copytree(city.root / folder, own / folder)
    for row in photos:
        (own / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(city.root / row["image"], own / row["image"])
    Manifest.from_rows(own, [], [*photos, broken]).save()
    code, out, _ = run("evaluate", own, "--index", index.path, "--json")
    (whole,) = json.loads(out).items()
    assert code == 0 and whole[0] == "panoramas_as_they_are"
    assert whole[1]["unreadable"] == 1 and whole[1]["recall_at_1"] > 0.8
    code, out, _ = run("evaluate", own, "--index", index.path, "--json", "--crop-fov", 180, "--crop-fov", 90)
    cut = json.loads(out)
    assert list(cut) == ["fov_180", "fov_180_taken_for_90", "fov_90"]
    assert all(one_cut["unreadable"] == 1 and one_cut["photos"] == len(photos) + 1 for one_cut in cut.values())
    stretched = cut.pop("fov_180_taken_for_90")
    assert stretched["recall_at_1"] <= cut["fov_180"]["recall_at_1"] and stretched != cut["fov_180"]
    for one_cut in cut.values():
        # A wrong heading of a cut would be right once in eight times.
        assert one_cut["recall_at_1"] > 0.5 and one_cut["heading_within_22_5_deg"] > 0.8
    code, out, _ = run("evaluate", own, "--index", index.path, "--crop-fov", 90, "--report", tmp_path / "page.html")
    assert code == 0 and "panoramas cropped to 90 degrees" in (tmp_path / "page.html").read_text()
    code, _, err = run("evaluate", city.root, "--index", index.path, "--crop-fov", 90)
    assert code == 1 and "expected photos that go all the way round" in err


def test_the_confidence_of_a_model_of_ones_own(run: Any, city: Manifest, index: PlaceIndex, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(shipped_model().read_bytes())
    photo = photo_paths(city)[0]
    _, out, err = run("locate", photo, "--index", index.path, "--model", own, "--json")
    assert "have no probability" in err and json.loads(out)[0]["probability"] is None
    given = ("--index", index.path, "--model", own)
    code, out, _ = run("fit-confidence", city.root, *given, "--json")
    said = json.loads(out)
    assert code == 0 and said["path"] == str(tmp_path / "own.confidence.json") and said["photos"] == PLACES
    assert 0 < said["threshold"] <= 1
    _, out, err = run("locate", photo, "--index", index.path, "--model", own, "--json")
    assert "no probability" not in err and 0 < json.loads(out)[0]["probability"] < 1
    code, out, _ = run("evaluate", city.root, *given, "--json")
    # On the very photos it was fitted on, with halves and quarters as well, it cannot be far off.
    assert json.loads(out)["field_of_view_unknown"]["confidence"]["calibration_error"] < 0.3
    code, _, err = run("fit-confidence", city.root, *given, "--split", "val")
    assert code == 1 and "use more photos" in err


@pytest.mark.parametrize(
    ("harm", "code", "message"),
    [
        ("another model", 1, "use the model it was built with, or build an index with this one"),
        ("newer format", 1, "update geoloc_fast, or build the index anew"),
        ("missing segment", 3, "is missing; restore it from a copy, or build the index again"),
        ("empty", 1, "has no places; add some with `geoloc-fast index add`"),
        ("no index", 1, "make an index with `geoloc-fast index build`"),
        ("box elsewhere", 1, "has no places within"),
    ],
)
def test_an_index_that_cannot_be_used_is_one_line_that_says_what_to_do(
    run: Any, city: Manifest, index: PlaceIndex, model: Model, tmp_path: Path, harm: str, code: int, message: str
) -> None:
    path, options = tmp_path / "index", []
    if harm in ("another model", "empty"):
        fingerprint = "f" * 64 if harm == "another model" else str(model.fingerprint)
        PlaceIndex.create(path, model=fingerprint, layers=model.layers).close()
    elif harm != "no index":
        shutil.copytree(index.path, path)
    if harm == "newer format":
        last = max(path.glob("*.commit"))
        body = b"geoloc_fast index 99\n" + last.read_bytes()[:-72].split(b"\n", 1)[1]
        last.write_bytes(body + b"sha256 " + hashlib.sha256(body).hexdigest().encode() + b"\n")
    elif harm == "missing segment":
        next(path.glob("*.strips")).unlink()
    elif harm == "box elsewhere":  # across the antimeridian
        options = ["--box", "south=-20,west=179,north=-10,east=-179"]
    done, out, err = run("locate", photo_paths(city)[0], "--index", path, *options, "--json")
    assert (done, out, len(err.splitlines())) == (code, "", 1)
    assert message in err


def test_no_probability_is_shown_as_certain() -> None:
    assert [percent(p) for p in (0.0, 0.004, 0.006, 0.5, 0.994, 0.996, 1.0)] == [
        "<1", "<1", "1", "50", "99", ">99", ">99"
    ]  # fmt: skip
