"""Batches with hard negatives: places that are easily confused are in the same batch.

First by distance on the ground (`nearest_on_ground`: neighbours share streets, light and style), later by
similarity under the model that is being trained (`most_similar`). Both leave out what lies within the threshold of
a place: that would be a right answer, not a negative.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from geoloc_fast.geo.sphere import great_circle_m, latitude_band_deg
from geoloc_fast.retrieval import StripBank, strip_topk

__all__ = ["PlaceBatches", "most_similar", "nearest_on_ground"]

_ROWS_AT_ONCE = 512


def nearest_on_ground(lat: np.ndarray, lon: np.ndarray, count: int, *, beyond_m: float = 25.0) -> np.ndarray:
    """int64 [N, count]: the nearest places of each place that lie more than `beyond_m` away, nearest first; -1 pads."""
    places = len(lat)
    found = np.full((places, count), -1, np.int64)
    by_latitude = np.argsort(lat, kind="stable")  # those without a position last: they are nobody's neighbours
    by_latitude = by_latitude[: places - int(np.isnan(lat).sum())]
    sorted_lat = lat[by_latitude]
    for begin in range(0, len(by_latitude), _ROWS_AT_ONCE):
        rows = by_latitude[begin : begin + _ROWS_AT_ONCE]
        # Wider until nobody beyond can be among the nearest.
        reach_m = 2 * beyond_m + 250.0
        while len(rows):
            band = latitude_band_deg(reach_m)
            first = np.searchsorted(sorted_lat, lat[rows].min() - band)
            last = np.searchsorted(sorted_lat, lat[rows].max() + band, side="right")
            near = np.sort(by_latitude[first:last])
            away = great_circle_m(lat[rows, None], lon[rows, None], lat[None, near], lon[None, near])
            away = np.where(away > beyond_m, away, np.inf)
            order = np.argsort(away, axis=1, kind="stable")[:, :count]
            sorted_away = np.take_along_axis(away, order, 1)
            found[rows, : order.shape[1]] = np.where(np.isfinite(sorted_away), near[order], -1)
            if len(near) == len(by_latitude):
                break
            done = (order.shape[1] == count) & (sorted_away[:, -1:] < reach_m).all(axis=1)
            rows, reach_m = rows[~done], 4 * reach_m
    return found


def most_similar(
    query: Tensor,
    bank: StripBank,
    place: np.ndarray,
    lat: np.ndarray,
    lon: np.ndarray,
    count: int,
    *,
    query_width: Tensor | None = None,
    beyond_m: float = 25.0,
) -> np.ndarray:
    """int64 [N, count]: for each place the places that its photo is most easily taken for, best first; -1 pads.

    Args:
        query: [Q, C, H, Wq], photos; of several photos of a place the last one decides.
        bank: the strips of all N places.
        place: [Q], which place each photo belongs to.
        lat, lon: [N], of the places. Those within `beyond_m` of a photo's own place are passed over.
    """
    found = np.full((len(bank), count), -1, np.int64)
    # A few more than asked for, since the place itself and its surroundings are passed over.
    reach = min(len(bank), 2 * count + 8, 1024)
    for begin in range(0, len(query), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        width = None if query_width is None else query_width[part]
        index = strip_topk(query[part], bank, reach, query_width=width).index.cpu().numpy()
        own = place[part, None]
        # A place without a position is passed over only for itself.
        near = great_circle_m(lat[own], lon[own], lat[index], lon[index]) <= beyond_m
        wanted = (index >= 0) & (index != own) & ~near
        first = np.argsort(~wanted, axis=1, kind="stable")[:, :count]
        chosen = np.where(np.take_along_axis(wanted, first, 1), np.take_along_axis(index, first, 1), -1)
        found[place[part], : chosen.shape[1]] = chosen
    return found


class PlaceBatches(Sampler[list[int]]):
    """Batches of pairs, each place at most once in a batch, and each pair at most once an epoch.

    A batch is filled group by group: a pair drawn at random, then pairs of up to `hard` of its place's neighbours, half
    of them the nearest and half drawn from the others. Without neighbours batches are random. The order depends on
    seed, epoch and neighbours alone. Of several processes each is given its own part of every batch.

    Args:
        place: [pairs], the place of every pair.
        batch_size: over all processes.
        hard: how many negatives follow each pair.
    """

    def __init__(
        self,
        place: np.ndarray,
        batch_size: int,
        *,
        neighbours: np.ndarray | None = None,
        hard: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ValueError(f"batch_size: expected a multiple of the {world} processes, got {batch_size}")
        places = len(np.unique(place))
        if places < batch_size:
            raise ValueError(f"batch_size: expected at most the {places} places there are photos of, got {batch_size}")
        if places < 2:
            raise ValueError(f"place: expected at least two places to tell apart, got {places}")
        self.place = np.asarray(place)
        self.batch_size = batch_size
        self.neighbours = neighbours
        self.hard = hard
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.start = 0
        """The first batch of an iteration: where a resumed run goes on."""

    def batches(self) -> list[list[int]]:
        """All whole batches of the epoch, over all processes."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.place))
        pairs_of: dict[int, list[int]] = {}
        for pair in order[::-1]:
            pairs_of.setdefault(int(self.place[pair]), []).append(int(pair))
        used = np.zeros(len(self.place), bool)
        waiting = order.tolist()[::-1]
        made: list[list[int]] = []
        while True:
            batch: list[int] = []
            taken: set[int] = set()
            later = []

            def add(pair: int, batch: list[int] = batch, taken: set[int] = taken) -> None:
                place = int(self.place[pair])
                pairs_of[place].remove(pair)
                used[pair] = True
                taken.add(place)
                batch.append(pair)

            while waiting and len(batch) < self.batch_size:
                pair = waiting.pop()
                if used[pair]:
                    continue
                place = int(self.place[pair])
                if place in taken:
                    later.append(pair)
                    continue
                add(pair)
                for other in self._hard_places(place, rng):
                    if len(batch) == self.batch_size:
                        break
                    if other not in taken and pairs_of.get(other):
                        add(pairs_of[other][-1])
            if len(batch) < self.batch_size:
                return made
            waiting += later[::-1]
            made.append(batch)

    def _hard_places(self, place: int, rng: np.random.Generator) -> list[int]:
        if self.neighbours is None or self.hard == 0:
            return []
        known = self.neighbours[place]
        known = known[known >= 0]
        sure = (self.hard + 1) // 2
        others = rng.permutation(known[sure:])[: self.hard - sure]
        return [*known[:sure].tolist(), *others.tolist()]

    def __len__(self) -> int:
        return max(0, len(self.batches()) - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world
        part = slice(self.rank * share, (self.rank + 1) * share)
        for batch in self.batches()[self.start :]:
            yield batch[part]
