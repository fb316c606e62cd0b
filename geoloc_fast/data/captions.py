"""Descriptions of a manifest's places, from a reader of a data set, from people, or from another program.

They are a column of the places, `captions`, a list of texts each. A CSV with the columns `place` and `text`
brings them to any region: one line a description, any number for a place.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.errors import ManifestError

__all__ = ["COLUMN", "Caption", "add_captions", "captions_of", "read_captions"]

COLUMN = "captions"
LONGEST_CELL = 100_000  # characters; a description that is too long for an encoder is said by the encoder
_NEEDED = ("place", "text")


class Caption(NamedTuple):
    """A description and what it describes."""

    place: int
    """Row of the place in the manifest."""
    text: str


def captions_of(manifest: Manifest) -> list[Caption]:
    """All descriptions of a manifest, in the order of its places; none if it has no such column."""
    if COLUMN not in manifest.places.column_names:
        return []
    found, problems = [], []
    for row, cell in enumerate(manifest.places.column(COLUMN).to_pylist()):
        try:
            texts = json.loads(cell) if isinstance(cell, str) else cell or []  # a CSV holds the list as JSON
        except json.JSONDecodeError:
            texts = None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            problems.append(Problem("places", row + 1, COLUMN, f"expected a list of texts, got {cell!r:.80}"))
            continue
        found += [Caption(row, text) for text in texts]
    if problems:
        raise ManifestError(problems)
    return found


def read_captions(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(place's id, text) of every line of a CSV with the columns `place` and `text`; ManifestError if it is none."""
    name, problems, found = Path(path).name, [], []
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            columns = lines.fieldnames or []
            missing = [column for column in _NEEDED if column not in columns]
            if missing:
                raise ManifestError(
                    [Problem(name, None, missing[0], f"expected the columns place and text, got {', '.join(columns)}")]
                )
            for row, line in enumerate(lines, start=1):
                place, text = (line[column] or "" for column in _NEEDED)
                if not place.strip():
                    problems.append(Problem(name, row, "place", "expected the id of a place, got nothing"))
                elif not text.strip():
                    problems.append(Problem(name, row, "text", "expected a description, got nothing"))
                else:
                    found.append((place.strip(), text))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ManifestError([Problem(name, None, None, f"expected a CSV in UTF-8, got {error}")]) from error
    finally:
        csv.field_size_limit(before)
    if problems:
        raise ManifestError(problems)
    return found


def add_captions(manifest: Manifest, path: str | os.PathLike[str]) -> Manifest:
    """The manifest with the descriptions of a CSV beside those its places have already. ManifestError if a line names a
    place that is not in it."""
    rows = {place: row for row, place in enumerate(manifest.places.column("id").to_pylist())}
    texts: list[list[str]] = [[] for _ in rows]
    for caption in captions_of(manifest):
        texts[caption.place].append(caption.text)
    problems = []
    for number, (place, text) in enumerate(read_captions(path), start=1):
        if place in rows:
            texts[rows[place]].append(text)
        else:
            problems.append(
                Problem(Path(path).name, number, "place", f"there is no place {place!r:.80} in the manifest")
            )
    if problems:
        raise ManifestError(problems)
    column = pa.array([found or None for found in texts], pa.list_(pa.string()))
    places = manifest.places
    if COLUMN in places.column_names:
        places = places.drop_columns([COLUMN])
    return manifest.replace(places=places.append_column(COLUMN, column))
