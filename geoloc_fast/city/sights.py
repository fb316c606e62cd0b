"""The facts of a scene as numbers: things by direction, and shares of ground, for a model that learns to see
and read them (`geoloc_fast.models.text.sights`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from geoloc_fast.city import scene
from geoloc_fast.city.descriptions import COLOURS, TRAITS, Description, Fact, colour_name
from geoloc_fast.city.render import SATELLITE_SIDE_M
from geoloc_fast.city.scene import CELL_M, City
from geoloc_fast.models.text.sights import SECTORS, SIDES, WHERE

__all__ = ["MATERIALS", "THINGS", "shares", "shown", "told"]

_TRAITS_OF = {
    "street": ("width", "surface", "lines", "cycleways"),
    "junction": ("arms",),
    "crossing": (),
    "cars": (),
    "house": ("storeys", "roof", "form", "walls", "shops", "size"),
    "trees": ("count", "tree"),
    "grass": ("share",),
    "water": ("share",),
    "square": (),
    "car park": (),
    "hedge": (),
    "fence": (),
}
THINGS: tuple[str, ...] = tuple(
    name
    for kind, traits in _TRAITS_OF.items()
    for name in (kind, *(f"{kind}, {trait}: {value}" for trait in traits for value in TRAITS[trait]))
)
"""Each kind of fact, and each with a trait."""
_NUMBER = {name: number for number, name in enumerate(THINGS)}
_NOWHERE = WHERE - 1

_ON_LOTS: tuple[tuple[int, ...], ...] = (
    (scene.GRASS,),
    (scene.WATER,),
    (scene.PAVING,),
    (scene.ASPHALT, scene.PATCH, scene.MARKING),
    (scene.HEDGE,),
    (scene.FENCE,),
)
_ON_STREETS = ((scene.ASPHALT, scene.PATCH), (scene.COBBLE,), (scene.MARKING,), (scene.CYCLEWAY,), (scene.SIDEWALK,))
_STOREYS = ((1, 1), (2, 2), (3, 4), (5, 99))
_TREES = 3
MATERIALS = len(COLOURS) + 2 + len(_STOREYS) + len(_ON_LOTS) + len(_ON_STREETS) + _TREES + 2
"""Maps of `shares`: roofs by colour, form and storeys, ground of lots and of streets, trees by kind, crossings and
junctions."""


def _things(fact: Fact) -> Iterator[int]:
    yield _NUMBER[fact.kind]
    for trait, value in fact.traits:
        yield _NUMBER[f"{fact.kind}, {trait}: {value}"]


def _winds(fact: Fact) -> tuple[int, ...]:
    if fact.bearing_deg is None:
        return ()
    wind = round(fact.bearing_deg / (360 / SECTORS)) % SECTORS
    return (wind % 4, wind % 4 + 4) if fact.kind == "street" else (wind,)  # of a street, both ends of its axis


def shown(facts: Iterable[Fact]) -> np.ndarray:
    """Which things there are in each sector, float32 [A, 8] of 0 and 1; what is all round is in each."""
    seen = np.zeros((len(THINGS), SECTORS), np.float32)
    for fact in facts:
        for thing in _things(fact):
            seen[thing, [*(_winds(fact) or range(SECTORS))]] = 1
    return seen


def told(description: Description, *, directions: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """What each sentence tells of, float32 [sentences, A] of 0 and 1, and where that is, [sentences, 13] with sum 1.
    `directions` as `describe` was given it."""
    what = np.zeros((len(description.facts), len(THINGS)), np.float32)
    where = np.zeros((len(description.facts), WHERE), np.float32)
    heading_deg = description.heading_deg
    for row, fact in enumerate(description.facts):
        what[row, [*_things(fact)]] = 1
        at: tuple[int, ...] = (_NOWHERE,)
        if directions and fact.bearing_deg is not None:
            at = _winds(fact)
            if heading_deg is not None and fact.kind == "street":
                across = int((fact.bearing_deg - heading_deg + 45) % 180 >= 90)
                at = (SECTORS + across, SECTORS + 2 + across)
            elif heading_deg is not None:
                at = (SECTORS + round((fact.bearing_deg - heading_deg) / (360 / SIDES)) % SIDES,)
        where[row, list(at)] = 1 / len(at)
    return what, where


def shares(city: City, x_m: float, y_m: float, date: np.datetime64, *, side: int) -> np.ndarray:
    """Shares of what covers each field of the satellite image of a point: float32 [MATERIALS, side, side], north up."""
    reach = int(SATELLITE_SIDE_M / 2 / CELL_M)
    row, col = (round(value) for value in city.to_cells(x_m, y_m))
    window = np.s_[row - reach : row + reach, col - reach : col + reach]
    height_cm, material, owner = (raster[window].copy() for raster in (city.height_cm, city.material, city.owner))
    for stencil in city.changes:
        if stencil.stands(date):
            stencil.press(height_cm, material, owner, (row - reach, col - reach))
    parcels = city.parcels
    numbers, which = np.unique(owner, return_inverse=True)
    which = which.reshape(owner.shape)
    names = [colour_name(parcels.tint[number]) for number in numbers]
    street = np.isin(numbers, city.roads.owner)[which]
    roof = material == scene.ROOF
    storeys = np.maximum(1, ((parcels.eaves_m[numbers] - 0.3) / parcels.floor_m[numbers]).astype(int))[which]
    pitched = (parcels.pitch[numbers] > 0)[which]
    masks = [roof & np.array([name == colour for name in names])[which] for colour in COLOURS]
    masks += [roof & pitched, roof & ~pitched]
    masks += [roof & (storeys >= low) & (storeys <= high) for low, high in _STOREYS]
    masks += [np.isin(material, kinds) & ~street for kinds in _ON_LOTS]
    masks += [np.isin(material, kinds) & street for kinds in _ON_STREETS]
    maps = [cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) for mask in masks]

    at = ((np.arange(side) + 0.5) / side - 0.5) * SATELLITE_SIDE_M
    east, north = at[None, :], -at[:, None]
    for kind in range(_TREES):
        crowns = np.zeros((side, side), np.float32)
        for x, y, radius in _near(city.trees[city.trees[:, 4] == kind, :3], x_m, y_m):
            away = np.hypot(east - x, north - y) / max(radius, 1.0)
            crowns = np.maximum(crowns, np.clip(1.3 - away, 0, 1))
        maps.append(crowns)
    ends = np.unique(np.round(np.concatenate([city.roads.start, city.roads.end]), 2), axis=0)
    for points in (city.roads.crossings, ends):
        spots = np.zeros((side, side), np.float32)
        for x, y in _near(points, x_m, y_m):
            spots = np.maximum(spots, np.exp(-((east - x) ** 2 + (north - y) ** 2) / (2 * 3.0**2)))
        maps.append(spots)
    return np.stack(maps).astype(np.float32)


def _near(points: np.ndarray, x_m: float, y_m: float) -> np.ndarray:
    """Those that may reach into the image, with x and y from its middle."""
    points = points.copy()
    points[:, :2] -= x_m, y_m
    return points[np.abs(points[:, :2]).max(axis=1, initial=0) < SATELLITE_SIDE_M / 2 + 3]
