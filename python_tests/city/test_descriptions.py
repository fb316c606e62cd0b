"""Descriptions of the synthetic city: they tell what is there, in order, and only that."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from geoloc_fast.city.descriptions import SIDES, TRAITS, WINDS, Description, Fact, describe, look
from geoloc_fast.city.matcher import SceneMatcher
from geoloc_fast.city.scene import City

DATE = np.datetime64("2024-09-01")
KINDS = {"road": {"street", "crossing", "junction", "cars"}, "building": {"house"}}
HOUSE = Fact("building", "house", (("storeys", "three-storey"), ("roof", "red"), ("form", "pitched")), 90.0, 6.0, 1.0)
STREET = Fact("road", "street", (("width", "narrow"), ("surface", "cobbled")), 0.0, 0.0, 3.0)


@pytest.fixture(scope="module")
def city() -> City:
    return City.build(11, places=60, style=0)


@pytest.fixture(scope="module")
def scenes(city: City) -> list[list[Fact]]:
    return [look(city, x, y, DATE) for x, y in city.places]


def test_every_place_has_a_street_and_traits_of_the_vocabulary(scenes: list[list[Fact]]) -> None:
    kinds: Counter[str] = Counter()
    for facts in scenes:
        assert sum(fact.kind == "street" for fact in facts) == 1
        for fact in facts:
            kinds[fact.kind] += 1
            assert fact.kind in KINDS.get(fact.topic, {fact.kind})
            assert fact.weight > 0 and 0 <= fact.distance_m < 36
            for name, value in fact.traits:
                assert value in TRAITS[name]
    assert {"house", "trees", "junction", "crossing", "square", "grass"} <= set(kinds)


def test_what_is_told_is_where_it_stands(city: City) -> None:
    """A house's bearing and distance lead to its own cells of the raster; a street runs where its axis says."""
    x, y = city.places[3]
    here = city.owner[tuple(round(value) for value in city.to_cells(x, y))]
    for fact in look(city, x, y, DATE):
        angle = np.radians(fact.bearing_deg or 0.0)
        if fact.kind == "house":
            found = False
            for away in np.arange(fact.distance_m, 36, 0.5):
                row, col = (round(v) for v in city.to_cells(x + away * np.sin(angle), y + away * np.cos(angle)))
                found |= city.parcels.eaves_m[city.owner[row, col]] > 0
            assert found
        elif fact.kind == "street":
            road = np.flatnonzero(city.roads.owner == here)[0]
            along = city.roads.end[road] - city.roads.start[road]
            assert abs(np.sin(np.arctan2(*along) - angle)) < 1e-6


def test_a_building_that_is_gone_is_not_told_of(city: City) -> None:
    middle = len(city.material) / 2
    stencil = min(city.changes, key=lambda change: abs(change.row - middle) + abs(change.col - middle))
    rows, cols = np.nonzero(stencil.height_cm)
    x = city.west_m + 0.2 * (stencil.col + cols.mean())
    y = city.north_m - 0.2 * (stencil.row + rows.mean())

    def houses(date: str) -> list[float]:
        return [fact.distance_m for fact in look(city, x, y, np.datetime64(date)) if fact.kind == "house"]

    standing, other = ("2013-01-01", "2024-01-01") if stencil.gone is not None else ("2024-01-01", "2013-01-01")
    assert min(houses(standing)) < 0.3 and min(houses(other), default=99.0) > 0.3


def test_the_grammar(scenes: list[list[Fact]]) -> None:
    words: dict[str, list[int]] = {"short": [], "long": []}
    for place, facts in enumerate(scenes):
        for length, counts in words.items():
            for heading in (None, 120.0):
                rng = np.random.default_rng([place, 1])
                told = describe(facts, rng, length=length, heading_deg=heading, wrong=0)
                again = describe(facts, np.random.default_rng([place, 1]), length=length, heading_deg=heading, wrong=0)
                assert told == again and not told.wrong
                counts.append(len(told.text.split()))
                assert re.fullmatch(r"([A-Z][^.]*\. ?)+", told.text) and not re.search(r"\d|  ", told.text)
                topics = [["road", "building", "around"].index(fact.topic) for fact in told.facts]
                assert topics == sorted(topics)
                says_winds = any(re.search(rf"\b{wind}\b", told.text) for wind in WINDS)
                says_sides = any(re.search(rf"\b({side}|my back|front of me)\b", told.text) for side in SIDES)
                assert not (says_winds if heading is not None else says_sides)
                for fact in told.facts:  # nothing is told that is not so
                    like = [
                        other for other in facts if other.kind == fact.kind and other.bearing_deg == fact.bearing_deg
                    ]
                    assert any(set(fact.traits) <= set(other.traits) for other in like)
    assert 15 < np.mean(words["short"]) < 26 and max(words["short"]) < 40
    assert 90 < np.mean(words["long"]) < 130 and max(words["long"]) < 150


def test_traits_are_dropped_and_one_is_wrong(scenes: list[list[Fact]]) -> None:
    rng = np.random.default_rng(0)
    facts = [replace(HOUSE, bearing_deg=float(angle)) for angle in range(0, 360, 45)]
    kept = [len(fact.traits) for _ in range(100) for fact in describe(facts, rng, wrong=0).facts]
    # Of three traits a third is dropped each; a house of which nothing is left is not told of.
    assert abs(np.mean(kept) / 3 - 0.7 / (1 - 0.3**3)) < 0.04
    assert all(len(fact.traits) == 3 for fact in describe(facts, rng, dropped=0, wrong=0).facts)
    wrong = [describe(scenes[n % len(scenes)], rng).wrong for n in range(600)]
    assert abs(np.mean(wrong) - 0.1) < 0.04
    told = describe(facts, rng, dropped=0, wrong=1)
    assert told.wrong and sum(fact.traits != HOUSE.traits for fact in told.facts) == 1


def test_directions_can_be_left_out(scenes: list[list[Fact]]) -> None:
    for heading in (None, 30.0):
        for facts in scenes[:20]:
            text = describe(facts, np.random.default_rng(1), heading_deg=heading, directions=False).text
            spoken = set(re.findall(r"[a-z-]+", text.lower()))
            assert not spoken & {
                *WINDS,
                "left",
                "right",
                "ahead",
                "behind",
                "front",
                "metres",
                "running",
                "crossing",
            } - {"crossing"}


def test_sides_turn_with_the_speaker() -> None:
    said = []
    for heading in (0.0, 90.0, 180.0, 270.0):
        text = describe([HOUSE], np.random.default_rng(5), heading_deg=heading, dropped=0, wrong=0).text
        said.append(next(side for side in ("right", "ahead", "left", "my back|behind") if re.search(side, text)))
    assert said == ["right", "ahead", "left", "my back|behind"]
    street = [describe([STREET], np.random.default_rng(5), heading_deg=h, dropped=0, wrong=0).text for h in (0.0, 90.0)]
    assert "straight ahead" in street[0] and "from left to right" in street[1]
    assert "east" in describe([HOUSE], np.random.default_rng(5), dropped=0, wrong=0).text


def test_no_word_belongs_to_one_place_alone(scenes: list[list[Fact]]) -> None:
    places: dict[str, set[int]] = {}
    for place, facts in enumerate(scenes):
        for draw in range(6):
            text = describe(facts, np.random.default_rng([place, draw])).text
            for word in re.findall(r"[a-zç-]+", text.lower()):
                places.setdefault(word, set()).add(place)
    rare = {word for word, found in places.items() if len(found) == 1}
    values = " ".join(value for choices in TRAITS.values() for value in choices)
    assert rare <= set(re.findall(r"[a-zç-]+", values))  # a rare colour may be one place's, a name cannot


def test_the_matcher_finds_places(scenes: list[list[Fact]]) -> None:
    matcher = SceneMatcher(scenes)
    right = {None: 0, 200.0: 0}
    for place, facts in enumerate(scenes):
        for heading in right:
            told = describe(facts, np.random.default_rng(place), heading_deg=heading)
            scores = matcher.scores(told)
            assert scores.shape == (len(scenes),) and np.isfinite(scores).all()
            right[heading] += int(scores.argmax() == place)
    assert right[None] > 0.8 * len(scenes) and right[200.0] > 0.6 * len(scenes)
    # The speaker's heading is not looked at: the same words from a scene that is turned score the same.
    told = describe(scenes[0], np.random.default_rng(0), heading_deg=10.0)
    turned = tuple(
        replace(fact, bearing_deg=None if fact.bearing_deg is None else fact.bearing_deg + 90) for fact in told.facts
    )
    other = Description(told.text, turned, 100.0, told.wrong)
    np.testing.assert_allclose(matcher.scores(told), matcher.scores(other))


def test_bad_arguments(city: City, scenes: list[list[Fact]]) -> None:
    rng = np.random.default_rng(0)
    for arguments, message in (
        ({"length": "epic"}, "length: expected short or long, got 'epic'"),
        ({"dropped": 1.5}, "dropped: expected a share"),
        ({"wrong": -1.0}, "wrong: expected a share"),
    ):
        with pytest.raises(ValueError, match=message):
            describe(scenes[0], rng, **arguments)
    with pytest.raises(ValueError, match="nothing to tell"):
        describe([], rng)
    with pytest.raises(ValueError, match="within the map"):
        look(city, city.west_m + 20, 0, DATE)
