"""Queries that were not taken in the region: a confidence must learn to reject them, and is tested on them.

Queries that show nothing (`blanks`), photos of other regions, and photos of this one searched in parts of it where they
were not taken. Regions are of every size, from one place up: with one place in it, any photo has a nearest place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from geoloc_fast.evaluation.evaluate import Truth
from geoloc_fast.evaluation.protocol import Near
from geoloc_fast.geo.regions import Circle
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.index import Searchable
from geoloc_fast.layers import QueryStrips
from geoloc_fast.locate.candidates import NEIGHBOURS, candidates_of, features_of
from geoloc_fast.locate.confidence import RIGHT_M, Confidence
from geoloc_fast.locate.locator import content_of, share_of_turn
from geoloc_fast.models.contract import Model, Photo
from geoloc_fast.progress import Progress

__all__ = ["BLANKS", "SIZES", "Trials", "blanks", "fit", "located", "trials"]

SIZES = (1, 2, 3, 5, 8, 13, 20, 35, 60, 100, 200, 400, 1000, 3000, 10_000, 30_000, 100_000)
BLANKS = ("blank", "noise", "gradient", "screenshot")
HOME = "home"
MOST_ELSEWHERE = 0.04  # of queries that were not taken here, the share that may be located, of every kind and size
LEAST_PHOTOS = 20
_SHAPE = (96, 128)
_REGIONS = 8  # of a size


def blanks(count: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """`count` images of each kind of `BLANKS`, uint8 [h, w, 3]: pictures that no place looks like."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in BLANKS}
    for _ in range(count):
        colours = rng.integers(0, 256, (2, 3))
        found["blank"].append(np.broadcast_to(colours[0], (*_SHAPE, 3)).astype(np.uint8))
        found["noise"].append(rng.integers(0, 256, (*_SHAPE, 3), dtype=np.uint8))
        ramp = np.linspace(0, 1, _SHAPE[int(rng.integers(2))])
        ramp = ramp[:, None, None] if len(ramp) == _SHAPE[0] else ramp[None, :, None]
        gradient = colours[0] * (1 - ramp) + colours[1] * ramp
        found["gradient"].append(np.broadcast_to(gradient, (*_SHAPE, 3)).astype(np.uint8))
        page = np.full((*_SHAPE, 3), rng.integers(200, 256), np.uint8)
        for row in range(int(rng.integers(4, 10)), _SHAPE[0] - 6, int(rng.integers(5, 9))):
            cv2.rectangle(page, (6, row), (int(rng.integers(30, 122)), row + 2), (40, 40, 40), -1)
        corner = rng.integers(0, 60, 2)
        box = (int(corner[0]) + 40, int(corner[1]) + 24)
        cv2.rectangle(page, (int(corner[0]), int(corner[1])), box, colours[1].tolist(), -1)
        found["screenshot"].append(page)
    return found


class Trials(NamedTuple):
    """Queries in regions, N of them."""

    features: np.ndarray
    """[N, len(FEATURES)]"""
    away_m: np.ndarray
    """[N] from the truth to the first candidate; inf if it was not taken in the region."""
    further_down: np.ndarray
    """bool [N], whether another candidate is right."""
    here: np.ndarray
    """bool [N], whether the region holds a place within 25 m of where it was taken."""
    size: np.ndarray
    """[N], of `SIZES`."""
    kind: np.ndarray
    """[N] text: "home", or what kind of stranger."""

    def take(self, rows: np.ndarray) -> Trials:
        return Trials(*(values[rows] for values in self))

    @staticmethod
    def joined(parts: Iterable[Trials]) -> Trials:
        """Those of several indexes of one model."""
        return Trials(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def trials(
    index: Searchable,
    model: Model,
    home: Sequence[Photo],
    truth: Truth,
    strangers: Mapping[str, Sequence[Photo]],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trials:
    """Every query in regions of every size that the index has.

    Args:
        home: decoded photos of the region, taken where `truth` says.
        strangers: decoded photos that were not taken here, by kind.
    """
    if len(home) < LEAST_PHOTOS:
        raise ValueError(
            f"home: expected at least {LEAST_PHOTOS} photos of the region, got {len(home)}; use more photos"
        )
    lat, lon = index.positions()
    placed, everything = np.isfinite(lat).any(), index.ids()
    photos = [*home, *(photo for group in strangers.values() for photo in group)]
    kinds = np.array([HOME] * len(home) + [kind for kind, group in strangers.items() for _ in group])
    strips = _encoded(model, photos)
    share, content = share_of_turn(model.layers, strips, len(photos)), [content_of(photo) for photo in photos]
    rng = np.random.default_rng(seed)
    sizes = [size for size in SIZES if size < len(everything)] if placed else []  # without positions there are no parts
    regions: list[tuple[int, Circle | None]] = [(len(everything), None)]
    for size in sizes:
        for _ in range(_REGIONS):
            centre = int(rng.choice(np.flatnonzero(np.isfinite(lat))))
            away = np.nan_to_num(great_circle_m(lat[centre], lon[centre], lat, lon), nan=np.inf)
            reach_m = float(np.partition(away, size - 1)[size - 1]) + 0.01
            regions.append((size, Circle(float(lat[centre]), float(lon[centre]), reach_m)))
    parts: list[tuple[Any, ...]] = []
    for done, (size, region) in enumerate(regions):
        ids = index.ids(region)
        inside = np.isin(everything, ids)
        near = Near(lat[inside], lon[inside], RIGHT_M)
        answers = index.search(strips, NEIGHBOURS, layers=model.layers, within=region)
        for n in range(len(photos)):
            nearest = answers.photo(n)
            found = candidates_of(nearest)
            features = features_of(found, nearest, float(share[n]), content[n], len(ids))
            metres, here = np.full(len(found), np.inf), False
            if n < len(home):
                metres = np.array([float(truth.away_m(n, c.lat, c.lon, c.place)) for c in found])
                known = np.isfinite(truth.lat[n])
                here = near.any(float(truth.lat[n]), float(truth.lon[n])) if known else int(truth.place[n]) in ids
            parts.append((features, metres[0], bool((metres[1:] <= RIGHT_M).any()), here, size, kinds[n]))
        if progress is not None:
            progress(done + 1, len(regions))
    return Trials(*(np.array(column) for column in zip(*parts, strict=True)))


def fit(model: Model, tried: Trials, *, layers: Collection[str], precision: float = 0.9) -> Confidence:
    """A confidence whose answers are right this often where a query was taken in the region, and which says no to
    those that were not: to all but `MOST_ELSEWHERE` of every kind, in regions of every size.

    Args:
        layers: that hold something in the index that was searched (`PlaceIndex.filled`).
    """
    told = tried.size >= 8  # below there is nothing to learn from
    some = tried.take(np.flatnonzero(told)) if told.any() else tried
    fitted = Confidence.fit(
        str(model.fingerprint), some.features, np.where(some.here, some.away_m, np.inf), some.further_down,
        layers=sorted(layers), here=some.here, precision=precision,
    )  # fmt: skip
    probability = fitted.probability(tried.features)
    threshold = fitted.threshold
    sizes = np.unique(tried.size)
    for size in sizes[sizes >= min(20, sizes.max())]:
        for kind in np.unique(tried.kind):
            group = (tried.size == size) & (tried.kind == kind) & ~tried.here
            if group.any():
                threshold = max(threshold, float(np.quantile(probability[group], 1 - MOST_ELSEWHERE)))
    fitted = replace(fitted, threshold=min(threshold, 1.0))
    rates, least = located(fitted, tried), int(sizes[-1]) + 1
    for size in sizes[::-1]:  # down, as long as it holds
        if any(rate > MOST_ELSEWHERE + 0.01 for rate in rates[int(size)].values()):
            break
        least = int(size)
    return replace(fitted, least_places=1 if least == sizes[0] else least)


def located(confidence: Confidence, tried: Trials) -> dict[int, dict[str, float]]:
    """Of queries that were not taken in the region, the share that is located, by size of the region and kind."""
    yes = (confidence.probability(tried.features) >= confidence.threshold) & (tried.size >= confidence.least_places)
    found: dict[int, dict[str, float]] = {}
    for size in np.unique(tried.size):
        group = (tried.size == size) & ~tried.here
        found[int(size)] = {
            str(kind): float(yes[group & (tried.kind == kind)].mean()) for kind in np.unique(tried.kind[group])
        }
    return found


def _encoded(model: Model, photos: Sequence[Photo], batch: int = 32) -> dict[str, QueryStrips]:
    """Strips of many photos, as those of one batch: padded to the widest."""
    parts = [model.encode_queries(photos[first : first + batch]) for first in range(0, len(photos), batch)]
    joined: dict[str, QueryStrips] = {}
    of = None
    if any(one.query is not None for part in parts for one in part.values()):
        own = [next(iter(part.values())) for part in parts]
        of = torch.cat([
            n * batch + (torch.arange(len(one.strips)) if one.query is None else one.query) for n, one in enumerate(own)
        ])  # fmt: skip
    for name in parts[0]:
        strips, widths = [part[name].strips for part in parts], []
        for part in parts:
            width = part[name].width
            whole = torch.full((len(part[name].strips),), part[name].strips.shape[3])
            widths.append(whole if width is None else width)
        widest = max(strip.shape[3] for strip in strips)
        padded = [torch.nn.functional.pad(strip, (0, widest - strip.shape[3])) for strip in strips]
        absent = [part[name].absent for part in parts]
        known = [score for score in absent if score is not None]  # all of them or none
        joined[name] = QueryStrips(torch.cat(padded), torch.cat(widths), torch.cat(known) if known else None, of)
    return joined
