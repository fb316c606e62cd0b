"""A confidence says no to what was not taken here, in regions of every size, and is refused when it was altered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoloc_fast.errors import ConfidenceError
from geoloc_fast.evaluation.elsewhere import BLANKS, Trials, blanks, fit, located, trials
from geoloc_fast.evaluation.evaluate import Truth
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.locator import Locator, content_of
from geoloc_fast.models.contract import Photo, PlaceBatch, PlaceInput, Query, QueryInput, Text

PLACES = 60


class Pixels:
    """The picture itself, 16 x 16 grey values, is its code."""

    kind, name, trained_on, fingerprint = "pixels", "pixels", "nothing", "f"
    layers = (Layer("street", (256, 1, 1)),)
    place_input, query_input = PlaceInput(), QueryInput(("photo",), (16, 64))

    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        raise AssertionError("not asked here")

    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        grey = np.stack([np.asarray(query.image, float)[::3, ::4, 0].reshape(-1) for query in queries])  # type: ignore[union-attr]
        grey = grey - grey.mean(1, keepdims=True)
        return {"street": QueryStrips(torch.from_numpy(grey).float()[:, :, None, None])}


def picture(rng: np.random.Generator) -> np.ndarray:
    smooth = rng.normal(size=(6, 8))
    return np.kron(127 + 50 * smooth.clip(-2, 2), np.ones((8, 8)))[..., None].repeat(3, 2).astype(np.uint8)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlaceIndex, list[Photo], Truth, dict[str, list[Photo]]]:
    rng, model = np.random.default_rng(0), Pixels()
    shown = [picture(rng) for _ in range(PLACES)]
    lat, lon = 48 + 0.001 * np.arange(PLACES), np.full(PLACES, 11.0)
    path = tmp_path_factory.mktemp("region") / "index"
    with PlaceIndex.create(path, model="f", layers=model.layers) as index:
        strips = model.encode_queries([Photo(image) for image in shown])["street"].strips
        index.add({"street": Rows(strips)}, model="f", lat=lat, lon=lon)
    # Every third photo is of something else, though it was taken here.
    home = [Photo(picture(rng) if n % 3 == 0 else (image // 2 + picture(rng) // 4)) for n, image in enumerate(shown)]
    strangers = {"foreign": [Photo(picture(rng)) for _ in range(40)]}
    strangers |= {kind: [Photo(image[:48, :64]) for image in images] for kind, images in blanks(10).items()}
    return PlaceIndex.open(path), home, Truth(lat, lon, np.full(PLACES, np.nan), np.arange(PLACES)), strangers


@pytest.fixture(scope="module")
def tried(region: Any) -> Trials:
    index, home, truth, strangers = region
    return trials(index, Pixels(), home, truth, strangers)


def test_what_was_not_taken_here_is_seldom_located(region: Any, tried: Trials) -> None:
    index, home, _, _ = region
    confidence = fit(Pixels(), tried, layers=["street"])
    assert confidence.layers == ("street",)
    for size, rates in located(confidence, tried).items():
        assert all(rate <= 0.05 for rate in rates.values()), (size, rates)
    probability = confidence.probability(tried.features)
    whole = (tried.size == PLACES) & tried.here
    assert ((probability >= confidence.threshold) & whole).sum() > 0.3 * whole.sum()
    answers = list(Locator(index, Pixels(), confidence=confidence).locate(home))
    right = [a.candidates[0].place == n for n, a in enumerate(answers) if a.status == "located"]
    assert len(right) > 10 and np.mean(right) > 0.85


def test_of_layers_it_was_not_fitted_with_a_confidence_says_nothing(region: Any, tried: Trials) -> None:
    from dataclasses import replace

    index, home, _, _ = region
    confidence = replace(fit(Pixels(), tried, layers=["street"]), layers=("satellite", "street"))
    (answer,) = Locator(index, Pixels(), confidence=confidence).locate(home[1:2])
    assert answer.candidates[0].probability is None and answer.radius_m is None


def test_a_region_too_small_to_tell_has_no_probability(region: Any, tried: Trials) -> None:
    from dataclasses import replace

    from geoloc_fast.geo.regions import Circle

    index, home, _, _ = region
    confidence = replace(fit(Pixels(), tried, layers=["street"]), least_places=5)
    (answer,) = Locator(index, Pixels(), confidence=confidence, within=Circle(48.001, 11.0, 150.0)).locate(home[1:2])
    assert answer.status == "unknown" and answer.candidates[0].probability is None and answer.radius_m is None


def test_blanks_show_little_and_photos_more() -> None:
    made = blanks(5)
    assert set(made) == set(BLANKS)
    content = {kind: max(content_of(Photo(image)) for image in images) for kind, images in made.items()}
    assert content["blank"] < 1e-6 and content["noise"] < 0.06
    assert content_of(Photo(picture(np.random.default_rng(1)))) > 0.08
    assert content_of(Text("a church")) == 0.25


@pytest.mark.parametrize(
    "harm",
    [
        {"threshold": -5.0}, {"further_down": 50.0}, {"scale": [0.0] * 9}, {"mean": [float("nan")] * 9},
        {"error_m": [5.0, -1.0]}, {"least_places": "many"}, {"weight": [1.0]}, {},
    ],
)  # fmt: skip
def test_an_altered_confidence_is_refused(tried: Trials, tmp_path: Path, harm: dict[str, Any]) -> None:
    from geoloc_fast.locate.confidence import _digest

    path = tmp_path / "a.confidence.json"
    fit(Pixels(), tried, layers=["street"]).save(path)
    assert Confidence.load(path, model="f").layers == ("street",)
    content = json.loads(path.read_text())
    if harm:  # as somebody would who knows the checksum
        content |= harm
        content.pop("sha256")
        content["sha256"] = _digest(content)
    else:
        content["bias"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(ConfidenceError, match="fit it again"):
        Confidence.load(path, model="f")
