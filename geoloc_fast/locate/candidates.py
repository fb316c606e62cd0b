"""From the nearest places of an index to candidates: spots where the query may have been taken.

Neighbouring places see much the same, so the nearest places are gathered into candidates: every place pulls with a
weight that falls off with its score, and those within `SPACING_M` of a better one join it. A candidate stands at the
weighted mean of those of its places that agree about the heading. A place without a position is a candidate by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from geoloc_fast.geo.sphere import great_circle_m, move_m, offset_m
from geoloc_fast.index import Neighbours
from geoloc_fast.locate.confidence import FEATURES, Confidence

__all__ = [
    "NEIGHBOURS",
    "RADIUS_HOLDS",
    "SPACING_M",
    "Candidate",
    "candidates_of",
    "features_of",
    "radius_m",
    "with_probabilities",
]

SPACING_M = 25.0  # no two candidates are nearer to one another
NEIGHBOURS = 64
SHARPNESS = 0.03  # a place this much below the best score pulls with 1/e of its weight
AGREEING_DEG = 45.0  # between the headings of neighbours
RADIUS_HOLDS = 0.68  # as the accuracy that telephones give


@dataclass(frozen=True)
class Candidate:
    """A spot where the query may have been taken.

    Attributes:
        lat, lon: degrees, WGS84; None if its place has no position.
        heading_deg: of the photo's centre, clockwise from true north, if it was taken here; None if the model's layers
            know no heading.
        probability: that it was taken within 25 m; None if the model has no confidence fitted.
        score: of its best place: a cosine, or a weighted sum of those of several layers.
        place: id of its best place in the index.
        places: how many of the nearest places it is made of.
        weight: their share of the weight of all of them.
        key: name of its best place in the manifest it came from; empty if it has none.
    """

    lat: float | None
    lon: float | None
    heading_deg: float | None
    probability: float | None
    score: float
    place: int
    places: int
    weight: float
    key: str = ""


def candidates_of(neighbours: Neighbours) -> list[Candidate]:
    """Candidates from the nearest places of one query ([k] each), most weight first."""
    there = neighbours.id >= 0
    ids, score, heading, lat, lon = (
        values[there]
        for values in (
            neighbours.id,
            neighbours.score,
            neighbours.heading_deg,
            neighbours.standpoint_lat,
            neighbours.standpoint_lon,
        )
    )
    weight = np.exp((score.astype(np.float64) - score[0]) / SHARPNESS)
    weight /= weight.sum()
    # A place without a position is NaN away from all, itself included.
    near = (great_circle_m(lat[:, None], lon[:, None], lat, lon) <= SPACING_M) | np.eye(len(ids), dtype=bool)
    left = np.ones(len(ids), bool)
    seeds, joined = [], []
    while left.any():
        seed = int(left.argmax())
        members = left & near[seed]
        left &= ~members
        seeds.append(seed)
        joined.append(members)
    group = np.array(joined)  # [n, k]
    # A neighbour that looks another way was matched by something else. Without headings none does.
    agree = ~(np.abs((heading - heading[seeds, None] + 180) % 360 - 180) > AGREEING_DEG)
    pull = weight * (agree & group)
    pull /= pull.sum(1, keepdims=True)
    east, north = offset_m(lat[seeds, None], lon[seeds, None], lat, lon)
    east, north = ((np.where(group, metres, 0.0) * pull).sum(1) for metres in (east, north))
    to_lat, to_lon = move_m(lat[seeds], lon[seeds], east, north)
    turn = np.radians(np.where(np.isfinite(heading), heading, heading[seeds, None]))
    middle = np.degrees(np.arctan2((pull * np.sin(turn)).sum(1), (pull * np.cos(turn)).sum(1))) % 360.0
    columns = (
        to_lat, to_lon, middle, score[seeds].astype(np.float64), ids[seeds], group.sum(1), (weight * group).sum(1)
    )  # fmt: skip
    found = [
        Candidate(_known(at_lat), _known(at_lon), _known(turned), None, best, place, places, share)
        for at_lat, at_lon, turned, best, place, places, share in zip(*(c.tolist() for c in columns), strict=True)
    ]
    found.sort(key=lambda candidate: (-candidate.weight, candidate.place))
    at_lat, at_lon = _positions(found)
    close = great_circle_m(at_lat[:, None], at_lon[:, None], at_lat, at_lon) < SPACING_M
    kept: list[int] = []
    for n in range(len(found)):  # means may have moved together
        if not close[n, kept].any():
            kept.append(n)
    return [found[n] for n in kept]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def features_of(
    candidates: list[Candidate], neighbours: Neighbours, width_share: float, content: float, places: int
) -> np.ndarray:
    """What `Confidence` judges an answer by; in the order of FEATURES. Where there are no rivals they say nothing."""
    scores = neighbours.score[neighbours.id >= 0].astype(np.float64)
    first = candidates[0]
    runner_up = candidates[1] if len(candidates) > 1 else None
    rest = scores[len(scores) // 4 :]
    values = {
        "score": first.score,
        "lead": first.score - runner_up.score if runner_up else 0.0,
        "stands_out": (first.score - rest.mean()) / (rest.std() + 0.01) if len(scores) >= 8 else 0.0,
        "weight": first.weight,
        "runner_up": runner_up.weight if runner_up else 0.0,
        "width": width_share,
        "content": content,
        "log_places": math.log(places),
        "few": 1 / places,
    }
    return np.array([values[name] for name in FEATURES])


def with_probabilities(candidates: list[Candidate], first: float, further_down: float) -> list[Candidate]:
    """The first has its own; what is left goes to the others by weight, as far as they are ever right."""
    others = sum(candidate.weight for candidate in candidates[1:])
    rest = (1 - first) * further_down / others if others else 0.0
    return [
        replace(candidate, probability=min(first, candidate.weight * rest) if n else first)
        for n, candidate in enumerate(candidates)
    ]


def radius_m(candidates: list[Candidate], confidence: Confidence) -> float | None:
    """The truth lies this near to the first candidate with probability `RADIUS_HOLDS`; None if they do not reach that
    together, or if the first has no position."""
    first = candidates[0]
    probability = first.probability or 0.0
    if first.lat is None:
        return None
    if probability >= RADIUS_HOLDS:
        return confidence.within(RADIUS_HOLDS / probability)
    others = [candidate for candidate in candidates[1:] if candidate.lat is not None]
    lat, lon = _positions(others)
    away = great_circle_m(first.lat, first.lon, lat, lon).tolist()
    by_distance = sorted((metres, other.probability or 0.0) for metres, other in zip(away, others, strict=True))
    for metres, more in by_distance:
        probability += more
        if probability >= RADIUS_HOLDS:
            return float(metres)
    return None


def _positions(candidates: list[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """(lat, lon), NaN where there is none."""
    lat, lon = (np.array([getattr(candidate, name) for candidate in candidates], float) for name in ("lat", "lon"))
    return lat, lon
