"""Descriptions of all places of synthetic cities on disk."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np

from geoloc_fast.city.descriptions import describe, look
from geoloc_fast.city.scene import City, generator
from geoloc_fast.errors import ManifestError
from geoloc_fast.files import write_atomically

__all__ = ["STREAM", "describe_cities"]

STREAM = 7  # of random numbers, beside those of scene, views and splits


def describe_cities(folder: str | os.PathLike[str], out: str | os.PathLike[str], *, draws: int = 1) -> int:
    """Writes a CSV of `place` and `text` for the cities that `write_city` made in a folder; how many lines.

    A place has `draws` pairs of a long and a short description, as it was on the day of its photo: of even places as
    seen from above first, of odd ones by somebody there, then in turn.
    """
    if type(draws) is not int or not 1 <= draws <= 100:
        raise ValueError(f"draws: expected a whole number from 1 to 100, got {draws!r}")
    found = sorted(Path(folder).glob("*/city.json"))
    if not found:
        raise FileNotFoundError(f"folder: expected synthetic cities, got none in {os.fspath(folder)!r}")
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("place", "text"))
    count = 0
    for path in found:
        try:
            told = json.loads(path.read_text())
            recipe, rows = told["recipe"], told["rows"]
            city = City.build(recipe["seed"], places=recipe["places"], style=recipe["style"])
            dates = [(row["place"]["id"], np.datetime64(row["photo"]["date"])) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError([f"{path}: expected a synthetic city, got {error!r}"]) from error
        for n, (place, date) in enumerate(dates):
            x_m, y_m = city.places[n]
            facts = look(city, x_m, y_m, date)
            for draw in range(draws):
                rng = generator(city.seed, STREAM, n, draw)
                heading_deg = None if (n + draw) % 2 == 0 else float(rng.uniform(0, 360))
                for length in ("long", "short"):
                    table.writerow((place, describe(facts, rng, length=length, heading_deg=heading_deg).text))
                    count += 1
    write_atomically(out, lines.getvalue())
    return count
