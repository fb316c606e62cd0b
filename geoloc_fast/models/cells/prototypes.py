"""Prototypes: a learned vector for every cell that photos of training were taken in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.geo import s2

__all__ = ["Prototypes"]


class Prototypes(nn.Module):
    """Rows by cell id, of one level.

    Between the centres of cells a prototype is interpolated, over the four that surround the point: those without a row
    drop out, the others share their weight, and the sum has unit length again.
    """

    cells: Tensor
    """int64 [P]: the ids' bits, ascending as uint64."""

    def __init__(self, ids: np.ndarray | int, dim: int, level: int) -> None:
        """`ids`: uint64 [P], or how many there are, to be loaded."""
        super().__init__()
        self.level = level
        if isinstance(ids, int):
            ids = np.zeros(ids, np.uint64)
        else:
            ids = np.unique(np.asarray(ids, np.uint64))
            levels = np.unique(s2.level(ids))
            if len(ids) and levels.tolist() != [level]:
                raise ValueError(f"ids: expected cells of level {level}, got levels {', '.join(map(str, levels))}")
        self.register_buffer("cells", torch.from_numpy(ids.view(np.int64)))
        self.weight = nn.Parameter(F.normalize(torch.randn(len(ids), dim), dim=1))
        self.sparse = False
        """Whether the gradient of `interpolated` holds the touched rows alone."""

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def ids(self) -> np.ndarray:
        """uint64 [P], ascending."""
        return self.cells.cpu().numpy().view(np.uint64)

    def rows(self, ids: Any) -> np.ndarray:
        """Row of each cell, -1 where it has none: int64 [...]."""
        ids, known = np.asarray(ids, np.uint64), self.ids
        at = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
        found = known[at] == ids if len(known) else np.zeros(ids.shape, bool)
        return np.where(found, at, -1)

    def stencil(self, lat: np.ndarray, lon: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows and weights of the cells round each point: int64 [n, 4] with -1 where there is none, float32 [n, 4]
        that sum to 1, or to 0 where none of the four is there."""
        ids, weights = s2.stencil(lat, lon, self.level)
        rows = self.rows(ids)
        weights = np.where(rows >= 0, weights, 0)
        total = weights.sum(-1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 1e-9)
        return torch.from_numpy(rows), torch.from_numpy(weights.astype(np.float32))

    def interpolated(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Unit vectors [n, D] of a stencil, zero where it is empty. The gradient reaches all of its rows."""
        return F.normalize(self.mixed(rows, weights), dim=-1)

    def mixed(self, rows: Tensor, weights: Tensor) -> Tensor:
        """[n, D]: what `interpolated` makes unit vectors of, the weighted sum of a stencil's rows, -1 for none."""
        near = F.normalize(F.embedding(rows.clamp(min=0), self.weight, sparse=self.sparse).float(), dim=-1)
        return (near * torch.where(rows >= 0, weights, 0)[..., None]).sum(-2)

    def of(self, ids: Any) -> Tensor:
        """Unit vectors [n, D] of cells of this or a finer level by the one they lie in, zero where there is none."""
        ids = np.asarray(ids, np.uint64)
        rows = torch.from_numpy(self.rows(s2.parent(ids, self.level))).to(self.weight.device)
        return F.normalize(self.weight[rows.clamp(min=0)].float(), dim=-1) * (rows >= 0)[:, None]


def checked_levels(prototype_level: int, cell_level: int) -> None:
    """ValueError unless a cell lies in one prototype's cell."""
    levels: Sequence[int] = (prototype_level, cell_level)
    if any(isinstance(x, bool) or not isinstance(x, int) or not 0 <= x <= s2.MAX_LEVEL for x in levels):
        raise ValueError(f"prototype_level, cell_level: expected levels from 0 to {s2.MAX_LEVEL}, got {levels}")
    if prototype_level > cell_level:
        raise ValueError(f"cell_level: expected at least prototype_level ({prototype_level}), got {cell_level}")
