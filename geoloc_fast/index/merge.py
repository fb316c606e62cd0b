"""The answer of a search, and the exact merge of answers from several banks, indexes or machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Coverage", "Missing", "Neighbours", "merge"]


class Missing(NamedTuple):
    """A part of an index that was not searched."""

    name: str
    places: int
    box: tuple[float, float, float, float] | None
    """South, west, north, east of its places, degrees; None if none of them has a position."""
    reason: str


class Coverage(NamedTuple):
    """How much of an index a search saw: of the parts that can hold an answer, where it was kept to a region."""

    searched: int
    """Places."""
    there: int
    missing: tuple[Missing, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing was missing."""
        return not self.missing


class Neighbours(NamedTuple):
    """The best places for each query, best first, equal scores by id. Where there are fewer than k, id and shift are -1
    and the rest NaN. `photo` gives those of one query, without B."""

    id: np.ndarray  # [B, k] int64
    score: np.ndarray  # [B, k] float32, the weighted sum over layers
    shift: np.ndarray  # [B, k] int64, -1 where the heading is unknown
    heading_deg: np.ndarray  # [B, k] of the photo's centre, if it was taken there; NaN where no layer knows it
    lat: np.ndarray  # [B, k] NaN where the place has no position
    lon: np.ndarray  # [B, k]
    standpoint_lat: np.ndarray  # [B, k] of the row that says most for the place: of layers in which it has several
    standpoint_lon: np.ndarray  # [B, k]
    parts: np.ndarray  # [B, k, layers] float32, what each layer adds to the score of this reading
    reading: np.ndarray  # [B, k] int64, which of the query's readings says most for the place
    exact: np.ndarray  # [B] bool: no place that was not looked at can belong here

    @property
    def coverage(self) -> Coverage | None:
        """None: of an index that is searched whole or not at all. That of shards says how much was searched."""
        return None

    def photo(self, n: int) -> Neighbours:
        """The answer for the n-th query: [k] each."""
        return Neighbours._make(values[n] for values in self)

    def first(self, k: int) -> Neighbours:
        """The first k of each query."""
        cut = slice(k) if self.id.ndim == 1 else (slice(None), slice(k))
        return Neighbours._make([*(values[cut] for values in self[:-1]), self.exact])


def merge(answers: Sequence[Neighbours], k: int) -> Neighbours:
    """Merges several answers to the same queries: the k best by (score, id).

    Exact: what comes of parts of a set of places is what comes of the whole, as long as each part gave k. Ids are taken
    as they are; parts that share places give them twice.
    """
    if not answers:
        raise ValueError("answers: expected at least one, got none")
    shapes = [(len(answer.id), answer.parts.shape[2]) for answer in answers]
    if len(set(shapes)) > 1:
        raise ValueError(f"answers: expected the same queries and layers in each, got {shapes} (queries, layers)")
    columns = [np.concatenate(values, axis=1) for values in zip(*(answer[:-1] for answer in answers), strict=True)]
    found = Neighbours._make([*columns, np.all([answer.exact for answer in answers], axis=0)])
    missing = found.id < 0
    order = np.lexsort((found.id, np.where(missing, np.inf, -found.score)), axis=1)[:, :k]
    if found.id.shape[1] < k:
        raise ValueError(f"k: expected at most {found.id.shape[1]}, what the answers hold together, got {k}")
    best = [np.take_along_axis(v, order if v.ndim == 2 else order[..., None], 1) for v in found[:-1]]
    return Neighbours._make([*best, found.exact])
