"""Descriptions of all places of synthetic cities on disk."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geoloc_fast.city.descriptions import Description, Fact, describe, look
from geoloc_fast.city.scene import City, generator
from geoloc_fast.errors import ManifestError
from geoloc_fast.files import write_atomically

__all__ = ["Scene", "describe_cities", "scenes_of"]

STREAM = 7  # of random numbers, beside those of scene, views and splits
LENGTHS = ("long", "short")


class Scene(NamedTuple):
    """A place, and what is told of it."""

    place: str
    city: City
    x_m: float
    y_m: float
    date: np.datetime64
    """Of its photo: facts and descriptions are of that day."""
    facts: list[Fact]
    descriptions: list[Description]
    """A long and a short one a draw, in this order."""


def scenes_of(
    folder: str | os.PathLike[str], *, draws: int = 1, directions: bool = True, places: Container[str] | None = None
) -> Iterator[Scene]:
    """The places of the cities that `write_city` made in a folder, city after city; `places`: only those.

    A place has `draws` pairs of a long and a short description, as it was on the day of its photo: of even places as
    seen from above first, of odd ones by somebody there, then in turn. Without `directions` the same ones do not say
    where things are.
    """
    if type(draws) is not int or not 1 <= draws <= 100:
        raise ValueError(f"draws: expected a whole number from 1 to 100, got {draws!r}")
    found = sorted(Path(folder).glob("*/city.json"))
    if not found:
        raise FileNotFoundError(f"folder: expected synthetic cities, got none in {os.fspath(folder)!r}")
    for path in found:
        try:
            told = json.loads(path.read_text())
            recipe, rows = told["recipe"], told["rows"]
            if places is not None and not any(row["place"]["id"] in places for row in rows):
                continue
            city = _city(recipe["seed"], recipe["places"], recipe["style"])
            dates = [(row["place"]["id"], np.datetime64(row["photo"]["date"])) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError([f"{path}: expected a synthetic city, got {error!r}"]) from error
        for n, (place, date) in enumerate(dates):
            if places is not None and place not in places:
                continue
            x_m, y_m = city.places[n]
            facts = look(city, x_m, y_m, date)
            told_of = []
            for draw in range(draws):
                rng = generator(city.seed, STREAM, n, draw)
                heading_deg = None if (n + draw) % 2 == 0 else float(rng.uniform(0, 360))
                told_of += [
                    describe(facts, rng, length=length, heading_deg=heading_deg, directions=directions)
                    for length in LENGTHS
                ]
            yield Scene(place, city, x_m, y_m, date, facts, told_of)


@lru_cache(maxsize=1)
def _city(seed: int, places: int, style: int | None) -> City:
    return City.build(seed, places=places, style=style)


def describe_cities(folder: str | os.PathLike[str], out: str | os.PathLike[str], *, draws: int = 1) -> int:
    """Writes a CSV of `place` and `text` with the descriptions of `scenes_of`; how many lines."""
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("place", "text"))
    count = 0
    for scene in scenes_of(folder, draws=draws):
        for description in scene.descriptions:
            table.writerow((scene.place, description.text))
            count += 1
    write_atomically(out, lines.getvalue())
    return count
