"""Twelve styles of city, and a mixed one.

A style says how streets are laid, what stands in the blocks, what it is made of, what grows there and
under which sun. Its number decides the cross-area protocol: cities of an even style are trained on,
cities of an odd one tested on, six of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Range = tuple[float, float]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Lots:
    """What one kind of block is cut into."""

    share: float  # of the blocks
    lot_m2: Range
    setback_m: Range  # from the border of the lot
    storeys: tuple[int, int]
    pitched: float  # share of roofs that are not flat
    ground: str = "grass"
    fenced: float = 0.0  # share of lots with a hedge or a fence round them


_BRICK: tuple[Colour, ...] = ((0.55, 0.3, 0.24), (0.48, 0.27, 0.22), (0.62, 0.42, 0.32), (0.42, 0.28, 0.24))
_TILES: tuple[Colour, ...] = ((0.55, 0.28, 0.2), (0.46, 0.26, 0.2), (0.62, 0.36, 0.24), (0.5, 0.33, 0.26))
_SLATE: tuple[Colour, ...] = ((0.32, 0.32, 0.34), (0.27, 0.28, 0.31), (0.4, 0.41, 0.43), (0.36, 0.33, 0.32))
_GRAVEL: tuple[Colour, ...] = ((0.62, 0.6, 0.58), (0.78, 0.77, 0.75), (0.5, 0.5, 0.5), (0.36, 0.36, 0.37))
_PASTEL: tuple[Colour, ...] = ((0.8, 0.76, 0.66), (0.82, 0.81, 0.8), (0.76, 0.68, 0.6), (0.66, 0.7, 0.66))


@dataclass(frozen=True)
class Style:
    """A kind of city. The defaults are the mixed city."""

    name: str = "mixed"
    lat: Range = (40, 58)
    lon: Range = (-4, 25)
    spacing_m: tuple[Range, Range] = ((48, 105), (48, 105))  # between streets, each way
    jitter_m: float = 8.0  # of the crossings
    bend_m: float = 0.0  # how far streets swing from a straight line
    missing: float = 0.13  # share of streets that were never built
    staggered: bool = False  # cross streets end at every second street
    diagonal: float = 0.1  # share of blocks with a street across
    road_m: tuple[float, ...] = (6.5, 8.0, 9.5, 13.0)
    road_share: tuple[float, ...] = (0.3, 0.3, 0.25, 0.15)
    walk_m: Range = (2.4, 4.5)
    cobbled: float = 0.22  # share of narrow streets
    marked: float = 0.8  # share of asphalt streets with lines
    crossings: float = 0.6
    parking: float = 0.75  # share of streets wide enough for it
    lots: tuple[tuple[str, Lots], ...] = (
        ("centre", Lots(0.36, (240, 600), (0.0, 0.5), (2, 7), 0.35, "paved")),
        ("houses", Lots(0.35, (280, 480), (1.6, 3.2), (1, 3), 0.9, fenced=0.4)),
        ("slabs", Lots(0.14, (600, 1300), (4.0, 7.5), (3, 9), 0.1)),
        ("park", Lots(0.07, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
        ("plaza", Lots(0.05, (900, 2500), (0.0, 0.0), (0, 0), 0.0, "paving")),
        ("parking", Lots(0.03, (700, 1500), (0.0, 0.0), (0, 0), 0.0, "asphalt")),
    )
    centred: bool = True  # high in the middle, houses outside
    roofs: tuple[Colour, ...] = (*_TILES[:2], _SLATE[0], *_GRAVEL[:2], (0.42, 0.36, 0.31), (0.3, 0.36, 0.34))
    facades: tuple[Colour, ...] = (
        *_PASTEL,
        *((0.72, 0.62, 0.48), (0.6, 0.38, 0.3), (0.55, 0.56, 0.58), (0.5, 0.42, 0.36)),
    )
    pitch: Range = (0.45, 0.9)
    mansard: bool = False  # roofs that are steep first and flat then
    storey_m: Range = (2.8, 3.6)
    bay_m: Range = (1.9, 3.8)  # between windows
    bands: float = 0.15  # share of facades with windows in bands
    shops: float = 0.45
    shutters: float = 0.2
    planted: float = 0.45  # share of streets with trees
    wooded: float = 1.0  # multiplies the trees of gardens and parks
    conifers: float = 0.2
    palms: float = 0.0
    evergreen: bool = False
    colours: tuple[tuple[str, Colour], ...] = ()  # of materials, in place of the usual ones
    overcast: float = 0.35  # share of days
    snow: float = 0.25  # share of winter days
    traffic: float = 1.0


_PARK = Lots(0.07, (900, 2500), (0.0, 0.0), (0, 0), 0.0)
_PLAZA = Lots(0.05, (900, 2500), (0.0, 0.0), (0, 0), 0.0, "paving")
_PARKING = Lots(0.04, (700, 1500), (0.0, 0.0), (0, 0), 0.0, "asphalt")
_WATER = Lots(0.07, (1e9, 1e9), (0.0, 0.0), (0, 0), 0.0, "water")

MIXED = Style()

STYLES: tuple[Style, ...] = (
    Style(  # brick warehouses and merchants' houses by the water
        name="harbour",
        lat=(51, 56),
        lon=(3, 13),
        spacing_m=((45, 80), (60, 110)),
        missing=0.1,
        road_share=(0.4, 0.35, 0.2, 0.05),
        cobbled=0.55,
        lots=(
            ("centre", Lots(0.6, (160, 380), (0.0, 0.2), (3, 6), 0.75, "paved")),
            ("sheds", Lots(0.12, (700, 1600), (0.5, 2.0), (2, 4), 0.4, "paving")),
            ("water", _WATER),
            ("park", _PARK),
            ("plaza", _PLAZA),
        ),
        centred=False,
        roofs=(*_TILES[:2], *_SLATE[:2]),
        facades=(*_BRICK, (0.8, 0.78, 0.74)),
        pitch=(0.8, 1.3),
        bay_m=(1.7, 2.6),
        overcast=0.5,
        planted=0.35,
    ),
    Style(  # towers of glass and concrete on a strict grid
        name="grid",
        lat=(34, 42),
        lon=(-118, -74),
        spacing_m=((60, 78), (115, 165)),
        jitter_m=1.0,
        missing=0.02,
        diagonal=0.03,
        road_m=(9.5, 13.0, 17.0),
        road_share=(0.3, 0.45, 0.25),
        walk_m=(3.0, 5.5),
        cobbled=0.0,
        crossings=0.95,
        lots=(
            ("towers", Lots(0.45, (500, 1400), (0.0, 2.0), (7, 18), 0.0, "paved")),
            ("centre", Lots(0.3, (300, 700), (0.0, 0.4), (2, 8), 0.05, "paved")),
            ("parking", Lots(0.12, (1200, 2500), (0.0, 0.0), (0, 0), 0.0, "asphalt")),
            ("plaza", _PLAZA),
            ("park", Lots(0.05, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
        ),
        centred=False,
        roofs=_GRAVEL,
        facades=((0.5, 0.55, 0.6), (0.62, 0.6, 0.56), (0.34, 0.37, 0.41), (0.7, 0.66, 0.58), (0.52, 0.4, 0.34)),
        storey_m=(3.2, 4.0),
        bands=0.5,
        shops=0.7,
        shutters=0.0,
        planted=0.3,
        wooded=0.6,
        overcast=0.25,
        traffic=1.4,
    ),
    Style(  # crooked cobbled lanes between old houses
        name="medieval",
        lat=(43, 50),
        lon=(2, 16),
        spacing_m=((34, 62), (34, 62)),
        jitter_m=13.0,
        bend_m=10.0,
        missing=0.2,
        road_m=(4.5, 6.0, 7.5),
        road_share=(0.5, 0.35, 0.15),
        walk_m=(1.2, 2.4),
        cobbled=0.9,
        marked=0.15,
        lots=(
            ("centre", Lots(0.8, (90, 230), (0.0, 0.15), (2, 4), 0.97, "paved")),
            ("plaza", Lots(0.12, (500, 1500), (0.0, 0.0), (0, 0), 0.0, "paving")),
            ("houses", Lots(0.08, (160, 300), (0.8, 2.0), (1, 3), 1.0, fenced=0.8)),
        ),
        centred=False,
        roofs=(*_TILES, (0.4, 0.3, 0.25)),
        facades=(*_PASTEL, (0.84, 0.72, 0.5), (0.78, 0.58, 0.44), (0.62, 0.56, 0.46), (0.7, 0.72, 0.6)),
        pitch=(0.8, 1.4),
        storey_m=(2.5, 3.1),
        bay_m=(1.6, 2.6),
        bands=0.0,
        shutters=0.7,
        planted=0.12,
        wooded=0.7,
        traffic=0.5,
    ),
    Style(  # houses in gardens along winding streets
        name="suburb",
        lat=(40, 47),
        lon=(-95, -72),
        spacing_m=((60, 95), (85, 150)),
        bend_m=22.0,
        missing=0.22,
        diagonal=0.0,
        road_m=(6.5, 8.0, 9.5),
        road_share=(0.4, 0.45, 0.15),
        walk_m=(1.6, 3.4),
        cobbled=0.0,
        marked=0.45,
        crossings=0.3,
        lots=(
            ("houses", Lots(0.86, (420, 820), (3.2, 6.5), (1, 2), 0.97, fenced=0.55)),
            ("park", Lots(0.09, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
            ("parking", Lots(0.05, (700, 1500), (0.0, 0.0), (0, 0), 0.0, "asphalt")),
        ),
        centred=False,
        roofs=(*_SLATE, (0.42, 0.36, 0.31), (0.48, 0.38, 0.33)),
        facades=((0.84, 0.83, 0.8), (0.62, 0.66, 0.68), (0.78, 0.74, 0.62), (0.55, 0.36, 0.3), (0.56, 0.62, 0.56)),
        pitch=(0.5, 0.95),
        bands=0.0,
        shops=0.0,
        planted=0.6,
        wooded=1.6,
        conifers=0.25,
        traffic=0.7,
    ),
    Style(  # prefabricated blocks of flats in wide lawns
        name="slabs",
        lat=(48, 56),
        lon=(14, 38),
        spacing_m=((85, 140), (95, 160)),
        jitter_m=4.0,
        missing=0.15,
        diagonal=0.03,
        road_m=(6.5, 9.5, 13.0),
        road_share=(0.35, 0.4, 0.25),
        cobbled=0.05,
        lots=(
            ("slabs", Lots(0.78, (1300, 2800), (5.0, 10.0), (4, 11), 0.0)),
            ("parking", Lots(0.09, (900, 1700), (0.0, 0.0), (0, 0), 0.0, "asphalt")),
            ("park", Lots(0.08, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
            ("sheds", Lots(0.05, (700, 1500), (3.0, 6.0), (1, 2), 0.0, "paving")),
        ),
        centred=False,
        roofs=_GRAVEL,
        facades=((0.74, 0.73, 0.7), (0.66, 0.64, 0.6), (0.76, 0.7, 0.58), (0.6, 0.66, 0.68), (0.74, 0.6, 0.52)),
        storey_m=(2.7, 2.9),
        bay_m=(2.6, 3.6),
        bands=0.35,
        shops=0.1,
        shutters=0.0,
        planted=0.5,
        wooded=1.1,
        snow=0.45,
        overcast=0.45,
    ),
    Style(  # white and ochre under a high sun
        name="mediterranean",
        lat=(36, 41.5),
        lon=(-5, 24),
        spacing_m=((42, 72), (48, 90)),
        jitter_m=7.0,
        missing=0.12,
        road_m=(5.5, 6.5, 8.0, 11.0),
        road_share=(0.3, 0.35, 0.25, 0.1),
        walk_m=(1.4, 3.2),
        cobbled=0.3,
        marked=0.6,
        lots=(
            ("centre", Lots(0.68, (150, 380), (0.0, 0.3), (3, 6), 0.35, "paved")),
            ("houses", Lots(0.18, (240, 420), (1.5, 3.0), (1, 3), 0.7, "paved", fenced=0.7)),
            ("plaza", Lots(0.08, (700, 1800), (0.0, 0.0), (0, 0), 0.0, "paving")),
            ("park", Lots(0.06, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
        ),
        roofs=(*_TILES, (0.8, 0.77, 0.7), (0.72, 0.66, 0.58)),
        facades=((0.9, 0.88, 0.84), (0.86, 0.76, 0.56), (0.84, 0.66, 0.5), (0.9, 0.84, 0.72), (0.78, 0.56, 0.44)),
        pitch=(0.25, 0.45),
        bands=0.05,
        shops=0.55,
        shutters=0.75,
        planted=0.35,
        wooded=0.8,
        conifers=0.35,
        palms=0.15,
        evergreen=True,
        colours=(("grass", (0.52, 0.48, 0.28)), ("asphalt", (0.43, 0.42, 0.41)), ("paving", (0.7, 0.63, 0.53))),
        overcast=0.15,
        snow=0.0,
    ),
    Style(  # one height, one stone, lines of trees
        name="boulevards",
        lat=(44, 50),
        lon=(-1, 17),
        spacing_m=((70, 115), (70, 115)),
        jitter_m=9.0,
        missing=0.08,
        diagonal=0.3,
        road_m=(8.0, 11.0, 16.0),
        road_share=(0.35, 0.35, 0.3),
        walk_m=(3.4, 6.5),
        cobbled=0.3,
        crossings=0.8,
        lots=(
            ("centre", Lots(0.84, (260, 520), (0.0, 0.1), (5, 7), 1.0, "paved")),
            ("plaza", _PLAZA),
            ("park", Lots(0.1, (1500, 4000), (0.0, 0.0), (0, 0), 0.0)),
        ),
        centred=False,
        roofs=((0.42, 0.45, 0.49), (0.36, 0.39, 0.43), (0.48, 0.5, 0.52)),
        facades=((0.84, 0.79, 0.68), (0.8, 0.76, 0.68), (0.86, 0.82, 0.74), (0.76, 0.7, 0.6)),
        mansard=True,
        pitch=(1.6, 2.2),
        storey_m=(3.1, 3.5),
        bay_m=(1.8, 2.5),
        bands=0.0,
        shops=0.8,
        shutters=0.4,
        planted=0.75,
        conifers=0.05,
        traffic=1.2,
    ),
    Style(  # rows of narrow brick houses
        name="terraces",
        lat=(50.5, 54.5),
        lon=(-4, 0.5),
        spacing_m=((44, 60), (90, 170)),
        jitter_m=5.0,
        bend_m=6.0,
        missing=0.08,
        staggered=True,
        diagonal=0.0,
        road_m=(7.0, 9.0, 10.0),
        road_share=(0.35, 0.45, 0.2),
        walk_m=(1.6, 2.8),
        cobbled=0.04,
        crossings=0.35,
        parking=0.95,
        lots=(
            ("houses", Lots(0.82, (110, 210), (0.05, 2.2), (2, 3), 1.0, fenced=0.5)),
            ("park", Lots(0.07, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
            ("centre", Lots(0.11, (200, 420), (0.0, 0.2), (2, 4), 0.6, "paved")),
        ),
        centred=False,
        roofs=(*_SLATE, (0.45, 0.33, 0.28)),
        facades=(*_BRICK, (0.64, 0.5, 0.4), (0.82, 0.8, 0.76)),
        pitch=(0.7, 1.0),
        bay_m=(1.9, 2.8),
        bands=0.0,
        shops=0.25,
        shutters=0.0,
        planted=0.3,
        wooded=0.8,
        overcast=0.55,
        snow=0.1,
    ),
    Style(  # low, flat and pale, with wide roads
        name="desert",
        lat=(24, 33),
        lon=(35, 58),
        spacing_m=((65, 120), (65, 120)),
        jitter_m=4.0,
        missing=0.1,
        road_m=(8.0, 11.0, 15.0),
        road_share=(0.4, 0.35, 0.25),
        walk_m=(1.8, 4.0),
        cobbled=0.0,
        marked=0.7,
        lots=(
            ("houses", Lots(0.66, (350, 700), (0.8, 3.2), (1, 3), 0.05, fenced=0.85)),
            ("centre", Lots(0.2, (300, 700), (0.0, 0.6), (2, 6), 0.0, "paving")),
            ("plaza", Lots(0.05, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
            ("parking", Lots(0.09, (700, 1800), (0.0, 0.0), (0, 0), 0.0, "asphalt")),
        ),
        roofs=((0.78, 0.73, 0.64), (0.86, 0.83, 0.77), (0.68, 0.62, 0.53), (0.74, 0.7, 0.64)),
        facades=((0.82, 0.73, 0.58), (0.88, 0.83, 0.74), (0.74, 0.62, 0.48), (0.9, 0.88, 0.84), (0.68, 0.56, 0.44)),
        storey_m=(3.0, 3.8),
        bay_m=(2.6, 4.6),
        bands=0.05,
        shops=0.3,
        shutters=0.1,
        planted=0.3,
        wooded=0.16,
        conifers=0.05,
        palms=0.75,
        evergreen=True,
        colours=(
            ("grass", (0.7, 0.6, 0.44)),
            ("asphalt", (0.45, 0.43, 0.41)),
            ("sidewalk", (0.7, 0.64, 0.55)),
            ("paving", (0.74, 0.66, 0.54)),
        ),
        overcast=0.08,
        snow=0.0,
    ),
    Style(  # bright walls, tin roofs, and green everywhere
        name="tropics",
        lat=(-12, 12),
        lon=(96, 124),
        spacing_m=((40, 85), (55, 120)),
        jitter_m=11.0,
        bend_m=12.0,
        missing=0.2,
        road_m=(5.5, 7.0, 9.0, 12.0),
        road_share=(0.35, 0.35, 0.2, 0.1),
        walk_m=(1.0, 2.6),
        cobbled=0.05,
        marked=0.5,
        crossings=0.35,
        lots=(
            ("houses", Lots(0.6, (160, 420), (0.8, 2.6), (1, 2), 0.85, fenced=0.6)),
            ("centre", Lots(0.27, (150, 420), (0.0, 0.4), (2, 5), 0.3, "paved")),
            ("park", Lots(0.08, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
            ("parking", Lots(0.05, (500, 1200), (0.0, 0.0), (0, 0), 0.0, "asphalt")),
        ),
        roofs=((0.5, 0.26, 0.2), (0.6, 0.61, 0.62), (0.3, 0.42, 0.5), (0.36, 0.46, 0.34), (0.52, 0.4, 0.32)),
        facades=((0.5, 0.74, 0.72), (0.86, 0.76, 0.42), (0.84, 0.58, 0.52), (0.86, 0.85, 0.8), (0.6, 0.72, 0.5)),
        pitch=(0.3, 0.6),
        storey_m=(2.7, 3.3),
        bands=0.1,
        shops=0.6,
        shutters=0.35,
        planted=0.45,
        wooded=1.9,
        conifers=0.0,
        palms=0.3,
        evergreen=True,
        colours=(("grass", (0.34, 0.5, 0.2)), ("sidewalk", (0.56, 0.52, 0.47))),
        overcast=0.4,
        snow=0.0,
        traffic=1.1,
    ),
    Style(  # sheds, yards and lorries
        name="industrial",
        lat=(44, 53),
        lon=(4, 22),
        spacing_m=((80, 140), (90, 170)),
        jitter_m=5.0,
        missing=0.16,
        road_m=(8.0, 9.5, 13.0),
        road_share=(0.35, 0.4, 0.25),
        walk_m=(1.4, 3.0),
        cobbled=0.1,
        lots=(
            ("sheds", Lots(0.6, (1400, 4500), (3.0, 9.0), (1, 4), 0.25, "asphalt", fenced=0.5)),
            ("centre", Lots(0.16, (300, 700), (0.5, 2.5), (2, 4), 0.2, "paved")),
            ("parking", Lots(0.12, (1200, 3000), (0.0, 0.0), (0, 0), 0.0, "asphalt")),
            ("park", Lots(0.12, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
        ),
        centred=False,
        roofs=(*_GRAVEL, (0.44, 0.5, 0.56), (0.5, 0.36, 0.3)),
        facades=((0.62, 0.65, 0.68), (0.42, 0.5, 0.58), (0.74, 0.72, 0.68), (0.52, 0.32, 0.27), (0.4, 0.46, 0.4)),
        pitch=(0.12, 0.25),
        storey_m=(3.4, 4.6),
        bay_m=(3.2, 6.0),
        bands=0.45,
        shops=0.05,
        shutters=0.0,
        planted=0.2,
        wooded=0.7,
        overcast=0.45,
        traffic=1.3,
    ),
    Style(  # painted timber among conifers
        name="nordic",
        lat=(58.5, 63.5),
        lon=(5, 25),
        spacing_m=((55, 95), (60, 120)),
        jitter_m=9.0,
        bend_m=14.0,
        missing=0.16,
        road_m=(6.0, 7.5, 9.5),
        road_share=(0.4, 0.4, 0.2),
        walk_m=(1.6, 3.4),
        cobbled=0.12,
        marked=0.6,
        lots=(
            ("houses", Lots(0.6, (300, 620), (2.0, 4.5), (1, 3), 1.0, fenced=0.35)),
            ("slabs", Lots(0.16, (700, 1400), (4.0, 7.0), (3, 5), 0.5)),
            ("park", Lots(0.12, (900, 2500), (0.0, 0.0), (0, 0), 0.0)),
            ("water", _WATER),
            ("parking", _PARKING),
        ),
        centred=False,
        roofs=(*_SLATE, *_TILES[:2], (0.3, 0.36, 0.34)),
        facades=((0.56, 0.24, 0.2), (0.84, 0.72, 0.42), (0.86, 0.85, 0.82), (0.44, 0.54, 0.62), (0.52, 0.58, 0.48)),
        pitch=(0.7, 1.1),
        bands=0.05,
        shops=0.1,
        shutters=0.0,
        planted=0.3,
        wooded=1.4,
        conifers=0.65,
        overcast=0.45,
        snow=0.7,
        traffic=0.7,
    ),
)


def style_number(style: Any) -> int | None:
    """The number of a style given by number or name; None stays None, the mixed city."""
    if style is None or style == MIXED.name:
        return None
    names = [known.name for known in STYLES]
    if isinstance(style, str) and style in names:
        return names.index(style)
    if hasattr(style, "__index__") and not isinstance(style, bool) and 0 <= int(style) < len(STYLES):
        return int(style)
    raise ValueError(
        f"style: expected None, a number from 0 to {len(STYLES) - 1} or one of {', '.join(names)}, got {style!r}"
    )


def style_of(style: Any) -> Style:
    """The style that a city is asked for, by name, number, or None for the mixed one."""
    number = style_number(style)
    return MIXED if number is None else STYLES[number]
