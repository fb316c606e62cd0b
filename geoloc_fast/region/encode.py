"""From a manifest of places to an index: decode, encode, add, a commit at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.data.datasets import PlaceDataset, collate, finish
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Rows
from geoloc_fast.models import IMAGE_MEAN, IMAGE_STD, Geolocalizer

__all__ = ["Added", "add_places", "encode_places"]

BATCH = 32
ATTRIBUTES = ("city", "satellite_date", "street_date", "street_synthetic")  # of a manifest that an index keeps
COMMIT_PLACES = 2048  # what an interruption can lose
_NOTHING_TO_GO_BY = (
    "has no satellite image, and the heading of its street view is unknown; give street_column0_deg, or run "
    "`geoloc-fast prepare`"
)


@dataclass
class Added:
    """What came of the places of a manifest: each is added, was there already, or is a problem."""

    added: int = 0
    synthetic: int = 0
    """Of those added: places whose street view is made by a generator."""
    there_already: int = 0
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        text = f"{self.added} places added"
        if self.synthetic:
            text += f" ({self.synthetic} with a synthetic street view)"
        if self.there_already:
            text += f", {self.there_already} were there already"
        if self.problems:
            text += f", {len(self.problems)} left out"
        return text


def add_places(
    index: PlaceIndex,
    model: Geolocalizer,
    manifest: Manifest,
    *,
    progress: Callable[[int], None] | None = None,
) -> Added:
    """Encodes the places of a manifest and adds those whose id is not yet a key of the index.

    A place without an image that can be used is left out and named in `problems`. An interrupted run is gone on with
    by running it again.

    Args:
        progress: called with the number of places done since the last call.
    """
    index.check_model(model.fingerprint)
    if not manifest.has_positions:
        raise ValueError(f"{manifest.root}: its places have no positions; an index needs lat and lon of each")
    result = Added()
    known = index.keys()
    names = manifest.places["id"].to_pylist()
    todo = [row for row, name in enumerate(names) if name not in known]
    result.there_already = len(names) - len(todo)
    if progress is not None:
        progress(result.there_already)
    waiting: list[tuple[list[dict[str, Any]], Tensor]] = []

    def commit() -> None:
        if waiting:
            rows = [row for part, _ in waiting for row in part]
            index.add(
                {model.layers[0].name: Rows(torch.cat([strips for _, strips in waiting]))},
                model=model.fingerprint,
                lat=[row["lat"] for row in rows],
                lon=[row["lon"] for row in rows],
                key=[row["id"] for row in rows],
                attributes={name: [row[name] for row in rows] for name in ATTRIBUTES},
            )
            result.added += len(rows)
            result.synthetic += sum(row["street_synthetic"] is not None for row in rows)
            waiting.clear()

    for rows, strips, problems in encode_places(model, manifest, todo):
        if rows:
            waiting.append((rows, strips))
        result.problems += problems
        if sum(len(part) for part, _ in waiting) >= COMMIT_PLACES:
            commit()
        if progress is not None:
            progress(len(rows) + len(problems))
    commit()
    return result


def encode_places(
    model: Geolocalizer, manifest: Manifest, rows: list[int]
) -> Iterator[tuple[list[dict[str, Any]], Tensor, list[str]]]:
    """(rows of the manifest, their strips, what is wrong with other rows) of a batch of places at a time."""
    config = model.config
    dataset = PlaceDataset(manifest, panorama_size=config.image_size, column0_deg=config.column0_deg)

    def load(row: int) -> dict[str, Any] | ImageError:
        try:
            return dataset[row]
        except ImageError as error:
            return error

    # Threads: decoding and resizing run outside the interpreter.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        remaining = iter(rows)
        ahead = [pool.submit(load, row) for row in islice(remaining, 2 * BATCH)]
        for begin in range(0, len(rows), BATCH):
            part = rows[begin : begin + BATCH]
            samples = [future.result() for future in ahead[: len(part)]]
            ahead = ahead[len(part) :] + [pool.submit(load, row) for row in islice(remaining, BATCH)]
            usable, problems = [], []
            for row, sample in zip(part, samples, strict=True):
                if isinstance(sample, ImageError):
                    problems.append(f"place {manifest.place(row)['id']}: {sample}")
                elif not sample["has_satellite"] and not (sample["has_panorama"] and sample["heading_known"]):
                    problems.append(f"place {sample['place_id']}: {_NOTHING_TO_GO_BY}")
                else:
                    usable.append(sample)
            found = [manifest.place(int(sample["place_row"])) for sample in usable]
            yield found, _encode(model, usable) if usable else torch.empty(0), problems


@torch.inference_mode()
def _encode(model: Geolocalizer, samples: list[dict[str, Any]]) -> Tensor:
    device = next(model.parameters()).device
    batch = finish(collate(samples), device, mean=IMAGE_MEAN, std=IMAGE_STD)
    from_above = batch["has_satellite"]
    from_street = batch["has_panorama"] & batch["heading_known"]
    strips = torch.empty(len(samples), *model.config.strip)
    above = from_above.nonzero().squeeze(1)
    if len(above):
        strips[above.cpu()] = model.encode_place(
            batch["polar"][above], batch["panorama"][above], has_panorama=from_street[above]
        ).cpu()
    street = (~from_above).nonzero().squeeze(1)
    if len(street):
        strips[street.cpu()] = model.encode_place(None, batch["panorama"][street]).cpu()
    return strips
