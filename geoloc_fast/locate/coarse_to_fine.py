"""From a continent to a spot: the best cells first, then the places within them.

    P(place) = P(spot) * the share of the spot that is indexed * P(place given the spot)

A spot is a cell that scores best within `spacing_m`, with all cells round it; its probability is what the softmax of
the cell model, with its fitted temperature, gives to all of them. P(place given the spot) is a candidate's share of the
spot's weight to a power, the sharpness, which `fit` learns from photos of known position; an answer says whether it
was. What a spot has beyond what fine indexes cover is "not covered", and what lies in no spot is "elsewhere": an answer
says how much it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from geoloc_fast.errors import PlaceIndexError
from geoloc_fast.geo import s2
from geoloc_fast.geo.regions import Circle
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.index import Neighbours, Searchable
from geoloc_fast.locate.answers import printable
from geoloc_fast.locate.candidates import Candidate
from geoloc_fast.locate.locator import Answer, Given, Locator

__all__ = ["CoarseAnswer", "CoarseToFine", "Spot", "SpotCandidate", "covered_share", "fit_sharpness", "spots_of"]

SPACING_M = 300.0
RIGHT_M = 25.0  # a candidate so near to where a photo was taken is the right one
REACH_M = 50.0  # a point is covered when a place is so near
_CELLS = 1024  # that are looked up; the rest are given at most the last one's score
_GRID_LEVEL = 18  # of the cells whose centres coverage is counted on: 30 m


class Spot(NamedTuple):
    """A cell and what lies round it."""

    place: int
    """Id of its best cell in the cell index."""
    key: str
    lat: float
    lon: float
    probability: float
    """That the photo was taken here."""
    cells: int
    """How many of the best cells it is made of."""
    covered: float
    """Share of its area that fine indexes cover."""


class SpotCandidate(NamedTuple):
    """A candidate of a fine index within a spot."""

    probability: float
    """Of spot, coverage and candidate together."""
    spot: int
    """Its number among the spots."""
    found_in: str
    """Name of the fine index."""
    candidate: Candidate


@dataclass(frozen=True)
class CoarseAnswer:
    """Where a photo may have been taken on a continent, and the places in the spots that fine indexes cover."""

    image: str
    spots: tuple[Spot, ...]
    candidates: tuple[SpotCandidate, ...]
    """Most probable first."""
    not_covered: float
    """That it was taken in one of the spots, where no fine index has places."""
    elsewhere: float
    """That it was taken in none of the spots."""
    sharpness: float | None = None
    """Power of the candidates' shares of a spot; None: it was not fitted, and their probabilities are a guess."""
    problem: str | None = None
    """Why it is unreadable."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, printable as JSON."""
        return {
            "image": self.image,
            "problem": self.problem,
            "sharpness": self.sharpness,
            "not_covered": round(self.not_covered, 4),
            "elsewhere": round(self.elsewhere, 4),
            "spots": [{**spot._asdict(), "probability": round(spot.probability, 4)} for spot in self.spots],
            "candidates": [
                {
                    "probability": round(found.probability, 4),
                    "spot": found.spot,
                    "index": found.found_in,
                    "lat": found.candidate.lat,
                    "lon": found.candidate.lon,
                    "heading_deg": found.candidate.heading_deg,
                    "key": found.candidate.key,
                }
                for found in self.candidates
            ],
        }

    def answer(self, least_probability: float = 0.5, fov_deg: float | None = None) -> Answer:
        """What may be said of places alone: located if the first is as probable as that, of all the Earth."""
        found = tuple(replace(one.candidate, probability=one.probability) for one in self.candidates)
        sure = bool(found) and self.candidates[0].probability >= least_probability
        status = "unreadable" if self.problem is not None else "located" if sure else "unknown"
        return Answer(self.image, status, found, problem=self.problem, fov_deg=fov_deg)

    def as_lines(self) -> list[str]:
        """For a terminal: spots, then places within them, then what is left."""
        if self.problem is not None:
            return [f"{printable(self.image)}: {printable(self.problem)}"]
        lines = [printable(self.image)]
        for number, spot in enumerate(self.spots):
            lines.append(
                f"  spot {number}  {spot.lat:.5f} {spot.lon:.5f}  {100 * spot.probability:5.1f} %  cell {spot.key}, "
                f"{100 * spot.covered:.0f} % of it indexed"
            )
        for found in self.candidates:
            one = found.candidate
            where = "no position" if one.lat is None or one.lon is None else f"{one.lat:.5f} {one.lon:.5f}"
            turn = "" if one.heading_deg is None else f"  heading {one.heading_deg:.0f}"
            lines.append(
                f"  place   {where}  {100 * found.probability:5.1f} %  {found.found_in}, spot {found.spot}{turn}"
            )
        left = f"  not covered {100 * self.not_covered:.1f} %, elsewhere {100 * self.elsewhere:.1f} %"
        if self.candidates and self.sharpness is None:
            left += "; how places share a spot was not fitted"
        return [*lines, left]


class CoarseToFine:
    """Cells first, then places within the best of them.

    Args:
        cells: a locator of a cell index; its model has a fitted `temperature`.
        fine: locators of fine indexes, of any models.
        spots: how many are looked into.
        spacing_m: no two spots are nearer.
        sharpness: power of the candidates' shares of a spot, as `fit` gives it; None: 1, and answers say so.
    """

    def __init__(
        self,
        cells: Locator,
        fine: Sequence[Locator],
        *,
        spots: int = 5,
        spacing_m: float = SPACING_M,
        sharpness: float | None = None,
    ) -> None:
        if [layer.name for layer in cells.model.layers] != ["cell"]:
            raise PlaceIndexError(f"{cells.index.path}: expected an index of cells, got one of {cells.model.kind}")
        if spots < 1 or not spacing_m > 0 or not (sharpness is None or sharpness > 0):
            raise ValueError(f"spots, spacing_m, sharpness: expected above 0, got {(spots, spacing_m, sharpness)}")
        self.cells, self.fine = cells, list(fine)
        self.spots, self.spacing_m, self.sharpness = spots, spacing_m, sharpness
        self.temperature = float(cells.model.config.temperature)  # type: ignore[attr-defined]
        self._wide = Locator(cells.index, cells.model, neighbours=min(_CELLS, max(len(cells.index), 1)))

    def locate(self, images: Iterable[Given], *, candidates: int = 5) -> Iterator[CoarseAnswer]:
        """An answer for each photo, in order."""
        for image in images:
            coarse = next(self._wide.locate([image], candidates=1))
            if coarse.neighbours is None:
                yield CoarseAnswer(coarse.image, (), (), 0.0, 1.0, self.sharpness, coarse.problem)
                continue
            yield self._answer(image, coarse.image, coarse.neighbours, candidates)

    def _answer(self, image: Given, name: str, nearest: Neighbours, limit: int) -> CoarseAnswer:
        found = spots_of(nearest, len(self.cells.index), self.temperature, self.spots, self.spacing_m)
        keys = {place.id: place.key for place in self.cells.index.places([spot.place for spot in found])}
        spots: list[Spot] = []
        inside: list[SpotCandidate] = []
        for number, spot in enumerate(found):
            region = Circle(spot.lat, spot.lon, self.spacing_m)
            there = [locator for locator in self.fine if len(locator.index.ids(region))]
            covered = covered_share(region, [locator.index for locator in there])
            spots.append(spot._replace(key=keys[spot.place], covered=covered))
            within = self._within(image, region, there)
            shares = _sharpened(np.array([share for _, _, share in within]), self.sharpness or 1.0)
            for (locator, candidate, _), share in zip(within, shares.tolist(), strict=True):
                probability = spot.probability * covered * share
                inside.append(SpotCandidate(probability, number, locator.index.path.name, candidate))
        inside.sort(key=lambda one: -one.probability)
        total = sum(spot.probability for spot in spots)
        empty = sum(spot.probability * (1 - spot.covered) for spot in spots)
        return CoarseAnswer(name, tuple(spots), tuple(inside[:limit]), empty, max(0.0, 1 - total), self.sharpness)

    def fit(self, images: Sequence[Given], lat: Sequence[float], lon: Sequence[float]) -> float:
        """The sharpness that makes the places where these photos were taken most likely, each among the candidates of
        its own spot; from then on it counts. ValueError if none of them was taken at an indexed place."""
        level = self.cells.model.config.cell_level  # type: ignore[attr-defined]
        middle_lat, middle_lon = s2.center(s2.from_lat_lon(lat, lon, level))
        shares, right = [], []
        for n, image in enumerate(images):
            region = Circle(float(middle_lat[n]), float(middle_lon[n]), self.spacing_m)
            within = self._within(image, region, [one for one in self.fine if len(one.index.ids(region))])
            at = [(found.lat, found.lon) for _, found, _ in within]
            away = [np.inf if a is None or b is None else float(great_circle_m(lat[n], lon[n], a, b)) for a, b in at]
            shares.append(np.array([share for _, _, share in within]))
            right.append(int(np.argmin(away)) if away and min(away) <= RIGHT_M else -1)
        self.sharpness = fit_sharpness(shares, right)
        return self.sharpness

    def _within(self, image: Given, region: Circle, there: Sequence[Locator]) -> list[tuple[Locator, Candidate, float]]:
        """Candidates of the fine indexes in a region, and the share of each in the weight of all."""
        found = []
        for locator in there:
            inside = Locator(locator.index, locator.model, confidence=locator.confidence, within=region)
            answer = next(inside.locate([image], candidates=64))  # of a photo that cannot be read there are none
            places = len(locator.index.ids(region))
            found += [(locator, one, places * one.weight) for one in answer.candidates]
        total = sum(share for _, _, share in found)
        return [(locator, one, share / total) for locator, one, share in found] if total else []


def _sharpened(shares: np.ndarray, power: float) -> np.ndarray:
    """Shares to a power; together 1."""
    found = shares**power
    return found / found.sum() if len(found) else found


def spots_of(nearest: Neighbours, cells: int, temperature: float, count: int, spacing_m: float) -> list[Spot]:
    """The best cells no two of which are nearer than `spacing_m`, each with the probability of all that it is best of.

    Args:
        nearest: of one photo, best first.
        cells: in the index; those that are not among the nearest are given the last one's score, so that what is said
            of the spots is never too much.
    """
    there = nearest.id >= 0
    score, lat, lon = (values[there].astype(np.float64) for values in (nearest.score, nearest.lat, nearest.lon))
    share = np.exp((score - score[0]) / temperature)
    share /= share.sum() + (cells - len(score)) * share[-1]
    best: list[int] = []
    mine = np.full(len(score), -1)
    for n in range(len(score)):
        away = great_circle_m(lat[n], lon[n], lat[best], lon[best])
        if len(away) and away.min() < spacing_m:
            mine[n] = int(away.argmin())
        elif len(best) < count:
            mine[n] = len(best)
            best.append(n)
    ids = nearest.id[there]
    return [
        Spot(int(ids[n]), "", float(lat[n]), float(lon[n]), float(share[mine == k].sum()), int((mine == k).sum()), 0.0)
        for k, n in enumerate(best)
    ]


def covered_share(region: Circle, indexes: Sequence[Searchable], reach_m: float = REACH_M) -> float:
    """Share of a circle that lies within `reach_m` of a place of one of the indexes."""
    lat, lon = s2.center(s2.cover(region, _GRID_LEVEL))
    inside = great_circle_m(region.lat, region.lon, lat, lon) <= region.metres
    lat, lon = lat[inside], lon[inside]
    near = np.zeros(len(lat), bool)
    wider = Circle(region.lat, region.lon, region.metres + reach_m)
    for index in indexes:
        at_lat, at_lon = index.positions(wider)
        for start in range(0, len(at_lat), 1024):
            part = slice(start, start + 1024)
            away = great_circle_m(lat[:, None], lon[:, None], at_lat[part], at_lon[part])
            near |= (away <= reach_m).any(1)
    return float(near.mean()) if len(near) else 0.0


def fit_sharpness(shares: Sequence[np.ndarray], right: Sequence[int]) -> float:
    """The power of candidates' weights that makes the right ones most likely, over photos of known position.

    Args:
        shares: of each photo, the weights of its candidates.
        right: number of the right candidate of each, -1 where none is: such photos say nothing of it.
    """
    powers = np.geomspace(0.05, 5.0, 60)
    known = [(np.log(np.maximum(share, 1e-12)), n) for share, n in zip(shares, right, strict=True) if n >= 0]
    if not known:
        raise ValueError("right: expected photos with a right candidate, got none")
    likelihood = [sum(p * logs[n] - np.logaddexp.reduce(p * logs) for logs, n in known) for p in powers]
    return float(powers[int(np.argmax(likelihood))])
