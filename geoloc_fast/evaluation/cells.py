"""Recall of codes of cells: whether the centre of one of the first cells is near the photo, beside what chance and an
oracle would do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.geo import s2
from geoloc_fast.geo.sphere import great_circle_m, latitude_band_deg
from geoloc_fast.models.cells import Calibration, CellGeolocalizer, fit_kappa

__all__ = [
    "CellDatabase",
    "CellRecall",
    "fitted",
    "hit_ranks",
    "nearby_cells",
    "oracle_recall",
    "random_recall",
    "recall_of",
    "unit",
]

METRES = (50.0, 100.0, 200.0)
FIRST = (1, 5, 10, 100)
_AT_ONCE = 256  # photos


@dataclass(frozen=True)
class CellDatabase:
    """All cells of which a model knows something, and both of their codes."""

    ids: np.ndarray  # uint64 [C], ascending
    lat: np.ndarray  # float64 [C], of the centres
    lon: np.ndarray
    aerial: Tensor  # [C, D]
    prototype: Tensor  # [C, D]
    stand_in: Tensor  # [2, D], what both are where they are missing

    @classmethod
    def of(cls, model: CellGeolocalizer, tiles: np.ndarray, codes: Tensor, *, zeros: bool = False) -> CellDatabase:
        """Cells with a tile (ids and their z_A) and those below a prototype. Means stand in for what is missing, or
        zeros."""
        below = model.prototypes.ids
        for _ in range(model.config.prototype_level, model.config.cell_level):
            below = s2.children(below).reshape(-1)
        ids = np.union1d(tiles, below)
        found, every = codes.detach().float().cpu(), model.prototypes.of(model.prototypes.ids).detach().cpu()
        stand_in = torch.stack([found.mean(0), every.mean(0)]) * (0.0 if zeros else 1.0)
        aerial = stand_in[0].repeat(len(ids), 1)
        aerial[torch.from_numpy(np.searchsorted(ids, tiles))] = found
        known = torch.from_numpy(np.isin(ids, below))
        prototype = torch.where(known[:, None], model.prototypes.of(ids).detach().cpu(), stand_in[1])
        return cls(ids, *s2.center(ids), aerial, prototype, stand_in)

    def __len__(self) -> int:
        return len(self.ids)

    def codes(self, kappa: float) -> Tensor:
        return self.aerial + kappa * self.prototype

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row of each cell, -1 where it is not here."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.where(self.ids[at] == ids, at, -1)


def fitted(database: CellDatabase, query: Tensor, lat: np.ndarray, lon: np.ndarray) -> Calibration:
    """Kappa and temperature by photos that trained nothing."""
    own = database.rows(s2.from_lat_lon(lat, lon, int(s2.level(database.ids[0]))))
    return fit_kappa(query @ database.aerial.T, query @ database.prototype.T, torch.from_numpy(own))


class CellRecall(NamedTuple):
    """How often a photo's own spot is near one of its first cells."""

    at: dict[tuple[int, float], float]
    """(k, metres) to the share of photos with one of their first k cells so near, by its centre."""
    photos: int

    def percent(self, first: int, metres: float) -> float:
        """The share in percent, for the first so many cells and so many metres."""
        return 100 * self.at[first, metres]


def hit_ranks(
    query: Tensor,
    codes: Tensor,
    cells: tuple[np.ndarray, np.ndarray],
    photos: tuple[np.ndarray, np.ndarray],
    *,
    metres: Sequence[float] = METRES,
    most: int = max(FIRST),
) -> np.ndarray:
    """Rank (from 0) of the first cell within each distance, `most` if none: int64 [n, distances].

    Cells are ordered by dot, ties by the lower row. `cells` and `photos` are (lat, lon).
    """
    ranks = np.full((len(query), len(metres)), most, np.int64)
    first = min(most, len(codes))
    for start in range(0, len(query), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        order = torch.argsort(-(query[part] @ codes.T), dim=1, stable=True)[:, :first].numpy()
        away = great_circle_m(photos[0][part, None], photos[1][part, None], cells[0][order], cells[1][order])
        for n, reach in enumerate(metres):
            near = away <= reach
            ranks[part, n] = np.where(near.any(1), near.argmax(1), most)
    return ranks


def recall_of(ranks: np.ndarray, metres: Sequence[float] = METRES, first: Sequence[int] = FIRST) -> CellRecall:
    """The mean over photos; 0 of none."""
    share = {
        (k, reach): float((ranks[:, n] < k).mean()) if len(ranks) else 0.0
        for n, reach in enumerate(metres)
        for k in first
    }
    return CellRecall(share, len(ranks))


def nearby_cells(
    cells: tuple[np.ndarray, np.ndarray], photos: tuple[np.ndarray, np.ndarray], metres: Sequence[float] = METRES
) -> np.ndarray:
    """How many cells have their centre within each distance of each photo: int64 [n, distances]."""
    found = np.zeros((len(photos[0]), len(metres)), np.int64)
    order = np.argsort(cells[0], kind="stable")
    lat, lon = cells[0][order], cells[1][order]
    band = latitude_band_deg(max(metres))
    low, high = np.searchsorted(lat, photos[0] - band), np.searchsorted(lat, photos[0] + band, side="right")
    for n, (a, b) in enumerate(zip(low, high, strict=True)):
        away = great_circle_m(photos[0][n], photos[1][n], lat[a:b], lon[a:b])
        found[n] = [(away <= reach).sum() for reach in metres]
    return found


def oracle_recall(near: np.ndarray, metres: Sequence[float] = METRES) -> CellRecall:
    """Of who knows everything: some cell must be near enough for there to be a right answer."""
    return recall_of(np.where(near > 0, 0, max(FIRST)), metres)


def random_recall(near: np.ndarray, cells: int, metres: Sequence[float] = METRES) -> CellRecall:
    """Of who draws cells at random, in expectation."""
    share = {}
    for n, reach in enumerate(metres):
        for k in FIRST:
            none = [math.comb(cells - int(m), k) / math.comb(cells, k) if cells >= k else 0.0 for m in near[:, n]]
            share[k, reach] = float(1 - np.mean(none)) if len(none) else 0.0
    return CellRecall(share, len(near))


def unit(codes: Tensor) -> Tensor:
    """The codes as a cosine would compare them."""
    return F.normalize(codes, dim=1)
