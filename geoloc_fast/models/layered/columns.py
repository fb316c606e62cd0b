"""Feature maps to one vector for each strip column.

What a photo shows far away fills few rows near the horizon, and little of it is in the sky: rows are pooled in bands
that are fine where much is seen. A polar image has its distances in even rows, and bands alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LEVEL", "POLAR", "column_features", "feature_count"]

LEVEL = (*(i / 8 for i in range(4)), *(0.5 + i / 32 for i in range(8)), *(0.75 + i / 16 for i in range(4)), 1.0)
"""Edges of the bands of photos and panoramas, from the top down; the horizon is at 0.5."""
POLAR = tuple(i / 16 for i in range(17))
"""Edges of the bands of polar images, from the far end to the centre."""


def column_features(maps: Sequence[Tensor], columns: int, bands: Sequence[float]) -> Tensor:
    """Feature maps [B, C, H, W] of one image at several strides to [B, columns, D].

    The features of a column are, map by map and band by band, the means of all channels and their maxima over the
    band: the mean of the maxima of both halves of a column, where a map is so fine. W of every map must be a multiple
    of `columns`; bands finer than a map's rows fall together.
    """
    parts = []
    for features in maps:
        batch, channels, height, width = features.shape
        if width % columns:
            raise ValueError(f"columns: expected a divisor of the map's {width} columns, got {columns}")
        halves = 1 if width // columns % 2 else 2
        cells = features.float().reshape(batch, channels, height, columns, halves, width // columns // halves)
        mean, most = cells.mean((-2, -1)), cells.amax(-1)
        for top, bottom in _rows(height, bands):
            parts += [mean[:, :, top:bottom].mean(2), most[:, :, top:bottom].amax(2).mean(-1)]
    return torch.cat(parts, 1).transpose(1, 2)


def feature_count(channels: Sequence[int], heights: Sequence[int], bands: Sequence[float]) -> int:
    """D of maps with these channels and heights."""
    return sum(2 * c * len(_rows(h, bands)) for c, h in zip(channels, heights, strict=True))


def _rows(height: int, bands: Sequence[float]) -> list[tuple[int, int]]:
    edges = [round(edge * height) for edge in bands]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]
