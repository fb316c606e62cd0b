"""Descriptions of places, as a witness or a caption would give them, from a grammar over the scene.

`look` lists what stands and lies round a point on a date: facts, each with what it is, its traits, where it is and how
much of the ground it takes. `describe` tells of some of them in words, in the order road, buildings, surroundings:
seen from above, with the winds of the compass, or by somebody who stands there and knows ahead, right, behind and
left, but not north. People forget and err: traits are dropped, and in some descriptions one is wrong.

Words alone can give a place away that images could not (a name, a house number): there are none, and numbers are
rounded until each is shared by many places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from geoloc_fast.city.render import SATELLITE_SIDE_M
from geoloc_fast.city.scene import (
    ASPHALT,
    CELL_M,
    FENCE,
    GRASS,
    HEDGE,
    MARKING,
    PATCH,
    PAVING,
    ROOF,
    WATER,
    City,
)

__all__ = ["COLOURS", "TRAITS", "WINDS", "Description", "Fact", "colour_name", "describe", "look"]

WINDS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
SIDES = ("ahead", "right", "behind", "left")
LENGTHS = {"short": 20, "long": 120}  # words
DROPPED = 0.3  # share of traits that a witness leaves out
WRONG = 0.1  # share of descriptions in which one trait is wrong

_REACH_M = SATELLITE_SIDE_M / 2
COLOURS = {
    "white": (0.86, 0.84, 0.80),
    "light grey": (0.64, 0.62, 0.60),
    "grey": (0.47, 0.48, 0.48),
    "dark grey": (0.31, 0.31, 0.33),
    "red": (0.55, 0.28, 0.21),
    "brown": (0.44, 0.34, 0.28),
    "sandy": (0.76, 0.68, 0.55),
    "yellow": (0.85, 0.74, 0.46),
    "orange": (0.84, 0.60, 0.46),
    "pale blue": (0.66, 0.72, 0.76),
    "blue": (0.40, 0.48, 0.56),
    "green": (0.38, 0.47, 0.37),
    "turquoise": (0.50, 0.74, 0.72),
}
_STOREYS = ("single-storey", "two-storey", "three-storey", "four-storey", "five-storey", "six-storey", "tall")
TRAITS: dict[str, tuple[str, ...]] = {
    "width": ("narrow", "two-lane", "wide", "very wide"),
    "surface": ("asphalt", "cobbled"),
    "lines": ("a broken white line along the middle", "no line along the middle"),
    "cycleways": ("red cycle lanes on both sides",),
    "arms": ("bend", "junction of three streets", "crossroads"),
    "storeys": _STOREYS,
    "roof": tuple(COLOURS),
    "form": ("flat", "pitched"),
    "walls": tuple(COLOURS),
    "shops": ("shops on the ground floor",),
    "size": ("small", "long", "large"),
    "count": ("a single", "a few", "many"),
    "tree": ("broad-leaved", "coniferous", "palm"),
    "share": ("a strip of", "a patch of", "a wide stretch of"),
}


@dataclass(frozen=True)
class Fact:
    """One thing that can be seen."""

    topic: str
    """"road", "building" or "around"."""
    kind: str
    """"street", "crossing", "junction", "cars", "house", "trees", "grass", "water", "square", "car park", "hedge",
    "fence"."""
    traits: tuple[tuple[str, str], ...]
    """Name and value; the values are in `TRAITS`."""
    bearing_deg: float | None
    """Where it is from the place, clockwise from north; of a street, its axis, in [0, 180). None: all round."""
    distance_m: float
    """To the nearest part of it."""
    weight: float
    """How likely it is to be spoken of."""


@dataclass(frozen=True)
class Description:
    """What was said of a place, and what was meant by it."""

    text: str
    facts: tuple[Fact, ...]
    """Those the text tells, with the traits it tells; a wrong one is here as it was said."""
    heading_deg: float | None
    """Which way the speaker looked; None: seen from above."""
    wrong: bool


def look(city: City, x_m: float, y_m: float, date: np.datetime64) -> list[Fact]:
    """What lies within the satellite image of a point on a date, nearest things of a kind first."""
    reach = int(_REACH_M / CELL_M)
    row, col = (round(value) for value in city.to_cells(x_m, y_m))
    if min(row, col) < reach or row + reach >= city.material.shape[0] or col + reach >= city.material.shape[1]:
        raise ValueError(f"x_m, y_m: expected a point at least {_REACH_M:g} m within the map, got {x_m:g}, {y_m:g}")
    window = np.s_[row - reach : row + reach + 1, col - reach : col + reach + 1]
    height_cm, material, owner = (raster[window].copy() for raster in (city.height_cm, city.material, city.owner))
    for stencil in city.changes:
        if stencil.stands(date):
            stencil.press(height_cm, material, owner, (row - reach, col - reach))
    south, east = np.mgrid[-reach : reach + 1, -reach : reach + 1] * CELL_M
    away_m = np.hypot(south, east)
    facts = _roads(city, np.array([x_m, y_m]), int(owner[reach, reach]))
    facts += _buildings(city, material, owner, east, -south, away_m, date)
    facts += _ground(city, material, owner, east, -south, away_m)
    return facts + _trees(city, x_m, y_m)


def _bearing_deg(east: float, north: float) -> float:
    return float(np.degrees(np.arctan2(east, north)) % 360)


def _roads(city: City, here: np.ndarray, owner: int) -> list[Fact]:
    roads = city.roads
    facts = []
    along = roads.end - roads.start
    length = np.hypot(*along.T)
    along = along / length[:, None]
    at = np.clip(((here - roads.start) * along).sum(1), 0, length)
    gap_m = np.hypot(*(roads.start + at[:, None] * along - here).T) - roads.width_m / 2
    own = np.flatnonzero(roads.owner == owner)
    k = int(own[0]) if len(own) else int(np.argmin(gap_m))
    axis_deg = _bearing_deg(*along[k]) % 180
    width = np.digitize(roads.width_m[k], (7.0, 9.0, 12.0))
    traits = [("width", TRAITS["width"][width]), ("surface", "cobbled" if roads.cobbled[k] else "asphalt")]
    if not roads.cobbled[k]:
        traits.append(("lines", TRAITS["lines"][0 if roads.lined[k] else 1]))
    if roads.cycleways[k]:
        traits.append(("cycleways", TRAITS["cycleways"][0]))
    facts.append(Fact("road", "street", tuple(traits), axis_deg, 0.0, 3.0))

    ends = np.concatenate([roads.start, roads.end])
    near = ends[np.hypot(*(ends - here).T) < _REACH_M]
    for node in np.unique(np.round(near, 2), axis=0):
        arms = int((np.hypot(*(ends - node).T) < 1).sum())
        east, north = node - here
        if arms >= 2:
            traits = [("arms", TRAITS["arms"][min(arms, 4) - 2])]
            away = float(np.hypot(east, north))
            facts.append(Fact("road", "junction", tuple(traits), _bearing_deg(east, north), away, 1.5))
    for east, north in roads.crossings - here:
        away = float(np.hypot(east, north))
        if max(abs(east), abs(north)) < _REACH_M:
            facts.append(Fact("road", "crossing", (), _bearing_deg(east, north), away, 1.5))
    slots = city.slots[np.abs(city.slots[:, :2] - here).max(axis=1) < 0.7 * _REACH_M]
    if (slots[:, 3] > 0.55).sum() >= 4:
        facts.append(Fact("road", "cars", (), None, 0.0, 0.7))
    return facts


def colour_name(colour: np.ndarray) -> str:
    """The name of `COLOURS` that is nearest."""
    names = list(COLOURS)
    return names[int(np.argmin([np.abs(colour - np.array(COLOURS[name])).sum() for name in names]))]


def _buildings(
    city: City,
    material: np.ndarray,
    owner: np.ndarray,
    east: np.ndarray,
    north: np.ndarray,
    away_m: np.ndarray,
    date: np.datetime64,
) -> list[Fact]:
    parcels, facts = city.parcels, []
    standing = material == ROOF
    numbers, which = np.unique(owner[standing], return_inverse=True)
    area = np.bincount(which) * CELL_M**2
    east_m = np.bincount(which, east[standing]) / np.bincount(which)
    north_m = np.bincount(which, north[standing]) / np.bincount(which)
    nearest = np.full(len(numbers), np.inf)
    np.minimum.at(nearest, which, away_m[standing])
    for at, number in enumerate(numbers):
        if area[at] < 15:  # a corner of it at the border
            continue
        storeys = int((parcels.eaves_m[number] - 0.3) / parcels.floor_m[number])
        before = date < parcels.painted[number]
        walls = parcels.facade_before[number] if before else parcels.facade[number]
        traits = [
            ("storeys", _STOREYS[min(max(storeys, 1), 7) - 1]),
            ("roof", colour_name(parcels.tint[number])),
            ("form", "pitched" if parcels.pitch[number] > 0 else "flat"),
            ("walls", colour_name(walls)),
        ]
        if parcels.shop[number]:
            traits.append(("shops", TRAITS["shops"][0]))
        if area[at] > 500:
            traits.append(("size", "large"))
        elif area[at] < 80 and nearest[at] + 12 < _REACH_M:
            traits.append(("size", "small"))
        weight = float(np.sqrt(area[at]) / (8 + nearest[at]))
        bearing = _bearing_deg(east_m[at], north_m[at])
        facts.append(Fact("building", "house", tuple(traits), bearing, float(nearest[at]), weight))
    return facts


_GROUND = {
    "grass": (GRASS,),
    "water": (WATER,),
    "square": (PAVING,),
    "car park": (ASPHALT, PATCH, MARKING),
    "hedge": (HEDGE,),
    "fence": (FENCE,),
}
_LEAST_M2 = {"grass": 30, "water": 15, "square": 40, "car park": 80, "hedge": 4, "fence": 2.5}


def _ground(
    city: City, material: np.ndarray, owner: np.ndarray, east: np.ndarray, north: np.ndarray, away_m: np.ndarray
) -> list[Fact]:
    street = np.zeros(len(city.parcels.tint), bool)
    street[city.roads.owner] = True
    on_lot = ~street[owner]
    quarter = np.round(np.degrees(np.arctan2(east, north)) / 90).astype(int) % 4
    facts = []
    for kind, materials in _GROUND.items():
        is_kind = np.isin(material, materials) & on_lot
        for side in range(4):
            there = is_kind & (quarter == side)
            area = there.sum() * CELL_M**2
            if area < _LEAST_M2[kind]:
                continue
            bearing = _bearing_deg(east[there].mean(), north[there].mean())
            share = TRAITS["share"][int(np.digitize(area, (70, 220)))]
            traits = (("share", share),) if kind in ("grass", "water") else ()
            weight = {"water": 3.0, "hedge": 0.5, "fence": 0.4}.get(kind, 0.08 * float(np.sqrt(area)))
            facts.append(Fact("around", kind, traits, bearing, float(away_m[there].min()), weight))
    return facts


def _trees(city: City, x_m: float, y_m: float) -> list[Fact]:
    offset = city.trees[:, :2] - (x_m, y_m)
    near = np.abs(offset).max(axis=1) < _REACH_M
    east, north = offset[near].T
    kind = city.trees[near, 4].astype(int)
    quarter = np.round(np.degrees(np.arctan2(east, north)) / 90).astype(int) % 4
    facts = []
    for side in range(4):
        here = quarter == side
        if not here.any():
            continue
        count = TRAITS["count"][int(np.digitize(here.sum(), (2, 6)))]
        tree = TRAITS["tree"][int(np.argmax(np.bincount(kind[here], minlength=3)))]
        bearing = _bearing_deg(east[here].mean(), north[here].mean())
        away = float(np.hypot(east[here], north[here]).min())
        traits = (("count", count), ("tree", tree))
        facts.append(Fact("around", "trees", traits, bearing, away, 0.4 + 0.15 * float(np.sqrt(here.sum()))))
    return facts


def describe(
    facts: Sequence[Fact],
    rng: Generator,
    *,
    length: str = "long",
    heading_deg: float | None = None,
    dropped: float = DROPPED,
    wrong: float = WRONG,
    directions: bool = True,
) -> Description:
    """Words for a place.

    Args:
        facts: of `look`.
        rng: decides what is told, and how.
        length: "short" (about 20 words) or "long" (about 120).
        heading_deg: which way the speaker looks; None: as seen from above.
        dropped: share of traits that are left out.
        wrong: share of descriptions in which one trait is another than the true one.
        directions: False leaves out where things are: the same description without its direction words.
    """
    if length not in LENGTHS:
        raise ValueError(f"length: expected {' or '.join(LENGTHS)}, got {length!r}")
    if not facts:
        raise ValueError("facts: expected at least one, got none: there is nothing to tell")
    for name, share in (("dropped", dropped), ("wrong", wrong)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: expected a share from 0 to 1, got {share}")
    order = np.argsort([-np.log(rng.random()) / fact.weight for fact in facts])  # weighted, without repetition
    phrasing = int(rng.integers(3))
    errs = bool(rng.random() < wrong)
    told: list[Fact] = []
    words = 0
    for number in order:
        fact = facts[number]
        kept = tuple(trait for trait in fact.traits if rng.random() >= dropped)
        if not kept and fact.traits and fact.kind == "house":  # "a building" says nothing
            continue
        fact = replace(fact, traits=kept)
        count = len(_sentence(fact, phrasing, heading_deg, directions, rng).split())
        if told and words + count > LENGTHS[length] + 3:
            continue
        told.append(fact)
        words += count
        if words >= LENGTHS[length] - 3:
            break
    if not told:
        told = [facts[int(order[0])]]
    if errs:
        told, errs = _mistaken(told, rng)
    topics = ("road", "building", "around")
    told.sort(key=lambda fact: topics.index(fact.topic))
    sentences = [_sentence(fact, phrasing, heading_deg, directions, rng) for fact in told]
    return Description(" ".join(sentences), tuple(told), heading_deg, errs)


def _mistaken(told: list[Fact], rng: Generator) -> tuple[list[Fact], bool]:
    """One trait of one fact becomes another."""
    choices = [
        (at, nth) for at, fact in enumerate(told) for nth, (name, _) in enumerate(fact.traits) if len(TRAITS[name]) > 1
    ]
    if not choices:
        return told, False
    at, nth = choices[int(rng.integers(len(choices)))]
    traits = list(told[at].traits)
    name, true = traits[nth]
    others = [value for value in TRAITS[name] if value != true]
    traits[nth] = (name, others[int(rng.integers(len(others)))])
    told = list(told)
    told[at] = replace(told[at], traits=tuple(traits))
    return told, True


_SIDE_WORDS = {
    "ahead": ("ahead", "in front of me", "straight ahead"),
    "right": ("on the right", "to my right", "on the right-hand side"),
    "behind": ("behind me", "at my back", "behind"),
    "left": ("on the left", "to my left", "on the left-hand side"),
}
_OPENINGS = {  # of a sentence, by phrasing: as a note, as a report, as a witness
    "above": ("", "There is ", "One sees "),
    "there": ("", "There is ", "I can see "),
}


def _where(fact: Fact, heading_deg: float | None, directions: bool, rng: Generator) -> str:
    if not directions or fact.bearing_deg is None:
        return ""
    if fact.kind == "street":
        return _axis(fact.bearing_deg, heading_deg)
    if heading_deg is None:
        wind = WINDS[round(fact.bearing_deg / 45) % 8]
        words = (f"in the {wind}", f"to the {wind}", f"on the {wind}ern side")[int(rng.integers(3))]
    else:
        side = SIDES[round((fact.bearing_deg - heading_deg) / 90) % 4]
        words = _SIDE_WORDS[side][int(rng.integers(3))]
    if fact.kind in ("junction", "crossing", "water") and rng.random() < 0.6:
        steps = max(5, int(5 * round(fact.distance_m / 5)))
        words = f"about {_NUMBERS[min(steps, 25)]} metres away {words}"
    return words


_ONE = ("a ", "an ", "grass", "lawn", "water", "open water")
_NUMBERS = {5: "five", 10: "ten", 15: "fifteen", 20: "twenty", 25: "twenty-five"}


def _axis(axis_deg: float, heading_deg: float | None) -> str:
    if heading_deg is None:
        names = ("north to south", "north-east to south-west", "east to west", "south-east to north-west")
        return f"running from {names[round(axis_deg / 45) % 4]}"
    turned = (axis_deg - heading_deg + 45) % 180
    return "running straight ahead" if turned < 90 else "crossing from left to right"


def _sentence(fact: Fact, phrasing: int, heading_deg: float | None, directions: bool, rng: Generator) -> str:
    thing, where = _thing(fact, rng), _where(fact, heading_deg, directions, rng)
    opening = _OPENINGS["above" if heading_deg is None else "there"][phrasing]
    if opening == "There is " and (thing.startswith("a few ") or not thing.startswith(_ONE)):
        opening = "There are "
    if phrasing == 2 and where and fact.kind != "street":
        line = f"{where}, {thing}" if rng.random() < 0.5 else f"{opening}{thing} {where}"
    else:
        line = f"{opening}{thing} {where}".rstrip()
    return f"{line[0].upper()}{line[1:]}."


def _thing(fact: Fact, rng: Generator) -> str:
    """What the fact is, with its article: "a three-storey house with a red pitched roof"."""
    traits = dict(fact.traits)

    def pick(*words: str) -> str:
        return words[int(rng.integers(len(words)))]

    if fact.kind == "street":
        looks = [traits[name] for name in ("width", "surface") if name in traits]
        thing = " ".join([*looks, pick("street", "road")])
        extras = [traits[name] for name in ("lines", "cycleways") if name in traits]
        return _article(thing) + (f" with {' and '.join(extras)}" if extras else "")
    if fact.kind == "house":
        storeys, size = traits.get("storeys", ""), traits.get("size", "")
        noun = "building" if storeys in _STOREYS[3:] or size == "large" else pick("house", "building")
        thing = " ".join(word for word in (size, storeys, noun) if word)
        roof = " ".join(traits[name] for name in ("form", "roof") if name in traits)
        if "form" in traits and "roof" in traits and rng.random() < 0.5:
            roof = f"{traits['roof']} {traits['form']}"
        extras = [f"{_article(roof)} roof"] if roof else []
        extras += [f"{traits['walls']} {pick('walls', 'façade')}"] if "walls" in traits else []
        extras += [traits["shops"]] if "shops" in traits else []
        joined = ", ".join(extras[:-1]) + (" and " if len(extras) > 1 else "") + (extras[-1] if extras else "")
        return _article(thing) + (f" with {joined}" if joined else "")
    if fact.kind == "trees":
        count, tree = traits.get("count", ""), traits.get("tree", "")
        kind = {"broad-leaved": "broad-leaved tree", "coniferous": "conifer", "palm": "palm tree", "": "tree"}[tree]
        if count == "a single":
            return f"{count} {kind}"
        return f"{count} {kind}s".strip()
    if fact.kind == "junction":
        return _article(traits.get("arms", pick("junction", "corner")))
    if fact.kind == "crossing":
        return pick("a zebra crossing", "a marked crossing")
    if fact.kind == "cars":
        return pick("cars parked along the kerb", "rows of parked cars")
    if fact.kind in ("grass", "water"):
        names = {"grass": ("grass", "lawn"), "water": ("water", "open water")}[fact.kind]
        return f"{traits.get('share', '')} {pick(*names)}".strip()
    return {"square": pick("a paved area", "a paved yard"), "car park": "a car park"}.get(
        fact.kind, _article(fact.kind)
    )


def _article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeio' else 'a'} {thing}"
