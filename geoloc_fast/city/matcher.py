"""Match the facts of a description with the scenes of all places, without words and without images.

What a reader of descriptions could reach who understood every word and saw every scene: the upper mark beside which
learned models are read. It knows nothing that the description does not tell, and errs where that errs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geoloc_fast.city.descriptions import TRAITS, Description, Fact

__all__ = ["SceneMatcher"]

_TURNS = 16  # headings that are tried for a speaker who does not know north
_ABSENT, _OTHER = -1.0, -0.5  # points for a thing that is nowhere, for a trait that is another


class SceneMatcher:
    """Scores of all places for a description.

    Each told fact is given to the fact of the same kind that suits it best: one point for being there, one for each
    trait that agrees (-0.5 for one that does not), and the cosine between where it was said to be and where it is.
    Somebody who stands there does not know north: the best of 16 headings counts.

    Args:
        scenes: the facts of every place, as `look` gives them.
    """

    def __init__(self, scenes: Sequence[Sequence[Fact]]) -> None:
        self.places = len(scenes)
        self._kinds: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        rows: dict[str, list[tuple[int, float, list[int]]]] = {}
        for place, facts in enumerate(scenes):
            for fact in facts:
                bearing = np.nan if fact.bearing_deg is None else fact.bearing_deg
                rows.setdefault(fact.kind, []).append((place, bearing, _numbers(fact)))
        for kind, found in rows.items():
            columns = (np.array(column) for column in zip(*found, strict=True))
            self._kinds[kind] = next(columns), next(columns), next(columns)

    def scores(self, description: Description) -> np.ndarray:
        """float64 [places]."""
        above = description.heading_deg is None
        # A speaker's sides are told from an unknown north: the truth is not looked at, only turned about.
        turns = np.zeros(1) if above else np.arange(_TURNS) * (360 / _TURNS)
        total = np.zeros((len(turns), self.places))
        for fact in description.facts:
            if fact.kind not in self._kinds:
                total += _ABSENT
                continue
            place, bearing, traits = self._kinds[fact.kind]
            told = np.array(_numbers(fact))
            points = 1.0 + np.where(told < 0, 0.0, np.where(traits == told, 1.0, _OTHER)).sum(axis=1)
            where = np.zeros((len(turns), len(place)))
            if fact.bearing_deg is not None:
                said = fact.bearing_deg - (0.0 if above else float(description.heading_deg or 0.0))
                step = 45 if above else 90
                said = round(said / step) * step  # no finer than it was told
                off = np.radians(said + turns[:, None] - bearing)
                where = np.nan_to_num(np.cos(off * (2 if fact.kind == "street" else 1)))
            best = np.full((len(turns), self.places), _ABSENT)
            for turn in range(len(turns)):
                np.maximum.at(best[turn], place, points + where[turn])
            total += best
        return total.max(axis=0)


def _numbers(fact: Fact) -> list[int]:
    """The value of every trait there is, -1 where the fact has none."""
    traits = dict(fact.traits)
    return [values.index(traits[name]) if name in traits else -1 for name, values in TRAITS.items()]
