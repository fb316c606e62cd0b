"""From the images of places to rows of an index: the one way from image to strip.

Index, demonstration, evaluation, training's evaluation and cards all encode places here, as the model's `place_input`
says: nobody else decides how many pixels or metres of a satellite image a model is shown.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from geoloc_fast.data.datasets import PlaceDataset, collate
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Rows
from geoloc_fast.models.contract import Model, PlaceBatch, PlaceInput
from geoloc_fast.progress import Progress

__all__ = [
    "Added",
    "Clock",
    "EncodedPlaces",
    "add_places",
    "arguments",
    "build_index",
    "encode_places",
    "joined",
    "place_dataset",
]

BATCH = 32
ATTRIBUTES = ("city", "satellite_date", "street_date", "street_synthetic")  # of a manifest that an index keeps
COMMIT_PLACES = 2048  # what an interruption can lose
_NOTHING_TO_GO_BY = (
    "has no satellite image, and the heading of its street view is unknown; give street_column0_deg, or run "
    "`geoloc-fast prepare`, which measures it where there is a satellite image"
)


class EncodedPlaces(NamedTuple):
    """Some places of a manifest, encoded."""

    rows: list[int]
    """Of the manifest: those that have something in some layer."""
    layers: dict[str, Rows]
    """Rows by layer; `Rows.place` counts into `rows`."""
    problems: list[str]
    """What is wrong with the others, or with an image."""
    notes: list[str]
    """What a person should know of, the same text for each place it concerns."""


@dataclass
class Clock:
    """Where the time of encoding goes."""

    images_s: float = 0.0
    """The model waited for images that were being decoded."""
    model_s: float = 0.0
    """Decoded images waited for the model."""


@dataclass
class Added:
    """What came of adding places to an index."""

    added: int = 0
    synthetic: int = 0  # of these, with a street view that a generator made
    there_already: int = 0
    problems: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        text = f"{self.added} places added"
        if self.synthetic:
            text += f" ({self.synthetic} with a synthetic street view)"
        if self.there_already:
            text += f", {self.there_already} were there already"
        if self.problems:
            text += f", {len(self.problems)} left out"
        return text


def place_dataset(manifest: Manifest, place_input: PlaceInput, **options: Any) -> PlaceDataset:
    """The places of a manifest as a model must be shown them, to encode or to train."""
    return PlaceDataset(
        manifest,
        satellite_size=place_input.satellite_px,
        panorama_size=place_input.panorama_size,
        extent_m=None if place_input.range_m is None else place_input.range_m[1],
        column0_deg=place_input.column0_deg,
        **options,
    )


def build_index(
    path: str | os.PathLike[str],
    model: Model,
    manifest: Manifest,
    *,
    dtype: str = "bf16",
    progress: Progress | None = None,
) -> Added:
    """Builds an index of the places of a manifest, or continues an interrupted build.

    The model must be one that was loaded from its bundle: the index names it by its fingerprint.
    """
    if model.fingerprint is None:
        raise ValueError(
            f"model: expected one that was loaded from a file, got a new {model.kind!r} model without a fingerprint; "
            "save it, and load it with load_model"
        )
    if not PlaceIndex.exists(path):
        PlaceIndex.create(path, model=model.fingerprint, layers=model.layers, dtype=dtype).close()
    with PlaceIndex.open(path, "write", model=model.fingerprint) as index:
        return add_places(index, model, manifest, progress=progress)


def add_places(index: PlaceIndex, model: Model, manifest: Manifest, *, progress: Progress | None = None) -> Added:
    """Encodes the places of a manifest and adds those whose id is not yet a key of the index.

    A place without an image that can be used is left out and named in `problems`. An interrupted run is gone on with
    by running it again.
    """
    index.check_model(model.fingerprint)
    result = Added()
    known = index.keys()
    names = manifest.places["id"].to_pylist()
    todo = [row for row, name in enumerate(names) if name not in known]
    result.there_already = len(names) - len(todo)
    done = result.there_already
    if progress is not None:
        progress(done, len(names))
    waiting: list[EncodedPlaces] = []

    def commit() -> None:
        if waiting:
            index.add(**arguments(manifest, waiting), model=model.fingerprint)
            rows = [row for part in waiting for row in part.rows]
            result.added += len(rows)
            result.synthetic += sum(manifest.place(row)["street_synthetic"] is not None for row in rows)
            waiting.clear()

    for part in encode_places(model, manifest, todo):
        if part.rows:
            waiting.append(part)
        result.problems += part.problems
        result.notes.update(part.notes)
        if sum(len(each.rows) for each in waiting) >= COMMIT_PLACES:
            commit()
        done = min(done + BATCH, len(names))
        if progress is not None:
            progress(done, len(names))
    commit()
    return result


def arguments(manifest: Manifest, parts: Sequence[EncodedPlaces]) -> dict[str, Any]:
    """What `PlaceIndex.add` is given of some encoded places, beside the model."""
    places = [manifest.place(row) for part in parts for row in part.rows]
    return {
        "rows": joined(parts),
        "lat": [place["lat"] for place in places],
        "lon": [place["lon"] for place in places],
        "key": [place["id"] for place in places],
        "attributes": {name: [place[name] for place in places] for name in ATTRIBUTES},
    }


def encode_places(
    model: Model,
    manifest: Manifest,
    rows: Sequence[int] | None = None,
    *,
    threads: int | None = None,
    clock: Clock | None = None,
) -> Iterator[EncodedPlaces]:
    """Encodes places of a manifest, all or the given rows, batch by batch.

    Args:
        threads: that decode; default the cores of this process.
        clock: is told where the time goes.
    """
    wanted = range(len(manifest.places)) if rows is None else rows
    dataset = place_dataset(manifest, model.place_input)

    def load(row: int) -> dict[str, Any] | ImageError:
        try:
            return dataset[row]
        except ImageError as error:
            return error

    # Threads: decoding and resizing run outside the interpreter.
    clock = clock or Clock()
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        remaining = iter(wanted)
        ahead = [pool.submit(load, row) for row in islice(remaining, 2 * BATCH)]
        for begin in range(0, len(wanted), BATCH):
            part = wanted[begin : begin + BATCH]
            began = time.perf_counter()
            samples = [future.result() for future in ahead[: len(part)]]
            ahead = ahead[len(part) :] + [pool.submit(load, row) for row in islice(remaining, BATCH)]
            ready = time.perf_counter()
            encoded = _encoded(model, manifest, part, samples)
            clock.images_s += ready - began
            clock.model_s += time.perf_counter() - ready
            yield encoded


def _encoded(
    model: Model, manifest: Manifest, rows: Sequence[int], samples: list[dict[str, Any] | ImageError]
) -> EncodedPlaces:
    problems, notes, usable, read = [], [], [], []
    for row, sample in zip(rows, samples, strict=True):
        if isinstance(sample, ImageError):
            problems.append(f"place {manifest.place(row)['id']}: {sample}")
            continue
        usable.append(sample)
        read.append(row)
        if note := _note_of_range(model.place_input, sample["shown_m"]):
            notes.append(note)
    if not usable:
        return EncodedPlaces([], {}, problems, notes)
    batch = collate(usable)
    found = model.encode_places(
        PlaceBatch(
            batch["satellite"],
            batch["has_satellite"],
            batch["metres_per_pixel"],
            batch["panorama"],
            batch["has_panorama"] & batch["heading_known"],
            batch["place_lat"],
            batch["place_lon"],
        )
    )
    places = {name: np.arange(len(read)) if part.place is None else part.place for name, part in found.items()}
    seen = np.zeros(len(read), bool)
    for name, place in places.items():
        if len(place) and not (min(place) >= 0 and max(place) < len(read)):
            raise ValueError(
                f"rows[{name!r}].place of model {model.name}: expected positions in a batch of {len(read)} places, "
                f"got {min(place)} to {max(place)}"
            )
        seen[place] = True
    problems += [
        f"place {manifest.place(row)['id']}: {_NOTHING_TO_GO_BY}"
        for row, there in zip(read, seen, strict=True)
        if not there
    ]
    number = np.cumsum(seen) - 1
    layers = {name: part._replace(place=number[places[name]]) for name, part in found.items()}
    return EncodedPlaces([row for row, there in zip(read, seen, strict=True) if there], layers, problems, notes)


def _note_of_range(place_input: PlaceInput, shown_m: float) -> str | None:
    if place_input.range_m is None or np.isnan(shown_m):
        return None
    low, high = place_input.range_m
    if low <= round(shown_m, 1) <= high:
        return None
    cut = f", cut to {high:g} m" if shown_m > high else ""
    return f"satellite images show {shown_m:.0f} m{cut}; the model was trained on " + (
        f"{low:g} m" if low == high else f"{low:g} to {high:g} m"
    )


def joined(parts: Sequence[EncodedPlaces]) -> dict[str, Rows]:
    """Rows of several batches as those of one; `place` counts on."""
    before = np.cumsum([0, *(len(part.rows) for part in parts)])
    layers = {}
    for name in parts[0].layers:
        rows = [part.layers[name] for part in parts]
        place = np.concatenate([np.asarray(row.place) + first for row, first in zip(rows, before, strict=False)])
        stood = [row.lat is not None and row.lon is not None for row in rows]
        lat = np.concatenate([np.asarray(row.lat) for row in rows]) if all(stood) else None
        lon = np.concatenate([np.asarray(row.lon) for row in rows]) if all(stood) else None
        layers[name] = Rows(torch.cat([row.strips for row in rows]), place, lat, lon)
    return layers
