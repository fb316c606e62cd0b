"""How good are the answers: recall at N within a distance, and heading errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geoloc_fast.geo import great_circle_m

__all__ = ["Recall", "heading_error_deg", "one_percent", "recall_at_k"]


class Recall(NamedTuple):
    """Recall over all queries, those that had nothing to find included."""

    at: dict[int, float]
    """k to the share of queries with one of their top k within the threshold."""
    queries: int
    out_of_range: int
    """Queries with no reference within the threshold: they count as wrong."""


def one_percent(references: int) -> int:
    """The k of R@1%: floor(R / 100) + 1."""
    return references // 100 + 1


def recall_at_k(
    index: Tensor,
    *,
    query_lat: Tensor,
    query_lon: Tensor,
    lat: Tensor,
    lon: Tensor,
    k: Sequence[int] = (1, 5, 10),
    threshold_m: float = 25.0,
) -> Recall:
    """Recall@k of ranked answers `index [Q, K]`, best first, into references at `lat, lon [R]`.

    A query is right at k if any of its first k answers lies within `threshold_m` of it. -1 in
    `index` is no answer. R@1% is `k=one_percent(R)`, which `index` must be wide enough for, unless
    it already holds all R references.
    """
    if index.ndim != 2 or index.is_floating_point():
        raise ValueError(f"index: expected integers [Q, K], got {index.dtype} {list(index.shape)}")
    queries, answers = index.shape
    for name, value, size in (
        ("query_lat", query_lat, queries),
        ("query_lon", query_lon, queries),
        ("lon", lon, len(lat)),
    ):
        if value.shape != (size,):
            raise ValueError(f"{name}: expected [{size}], got {list(value.shape)}")
    if not k or min(k) < 1 or answers < min(max(k), len(lat)):
        raise ValueError(f"k: expected values from 1 to the {answers} answers given, got {list(k)}")
    if queries and answers and int(index.max()) >= len(lat):
        raise ValueError(f"index: expected below {len(lat)} references, got {int(index.max())}")

    query_lat, query_lon, lat, lon = (v.double() for v in (query_lat, query_lon, lat, lon))
    if len(lat):
        distance = great_circle_m(
            query_lat[:, None], query_lon[:, None], lat[index.clamp(min=0)], lon[index.clamp(min=0)]
        )
        right = (distance <= threshold_m) & (index >= 0)
    else:
        right = torch.zeros_like(index, dtype=torch.bool)
    at = {n: float(right[:, :n].any(dim=1).double().mean()) if queries else 0.0 for n in k}

    reachable = 0
    for part in torch.arange(queries).split(256):  # never queries x references at once
        near = great_circle_m(query_lat[part, None], query_lon[part, None], lat, lon)
        reachable += int((near <= threshold_m).any(dim=1).sum())
    return Recall(at, queries, queries - reachable)


def heading_error_deg(heading_deg: Any, true_deg: Any) -> Any:
    """Signed error of a heading, wrapped to [-180, 180): positive is too far clockwise."""
    return (heading_deg - true_deg + 180.0) % 360.0 - 180.0
