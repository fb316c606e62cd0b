"""Recall of descriptions: over the whole gallery, and among the nearest places, as other papers measure it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.geo.sphere import great_circle_m

__all__ = ["FIRST", "METRES", "PRIOR", "Found", "found", "found_by_score", "paired_interval", "recall"]

FIRST = (1, 5, 10)
METRES = (50, 100, 150)
PRIOR = 100
"""Places nearest to the truth, among which published results are measured: a prior that no query has."""
_ROWS_AT_ONCE = 256


class Found(NamedTuple):
    """Of every query."""

    rank: np.ndarray
    """int64 [Q], from 0: how many places score better than the true one, or as well and come before it."""
    rank_with_prior: np.ndarray
    """The same among the `PRIOR` places nearest to the truth; -1 everywhere where places have no positions."""
    away_m: np.ndarray
    """float64 [Q], of the best place from the truth; NaN without positions."""


def found(
    query: Tensor,
    gallery: Tensor,
    truth: Sequence[int] | np.ndarray,
    lat: Sequence[float] | np.ndarray | None,
    lon: Sequence[float] | np.ndarray | None,
) -> Found:
    """Ranks of the true places `truth [Q]` of `query [Q, C]` among `gallery [R, C]`, codes of unit norm."""
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query, gallery: expected [Q, C], [R, C], got {list(query.shape)}, {list(gallery.shape)}")
    return found_by_score(query.cpu().float() @ gallery.cpu().float().T, truth, lat, lon)


def found_by_score(
    scores: Tensor,
    truth: Sequence[int] | np.ndarray,
    lat: Sequence[float] | np.ndarray | None,
    lon: Sequence[float] | np.ndarray | None,
) -> Found:
    """The same of scores [Q, R], by any rule."""
    at = torch.as_tensor(np.asarray(truth, np.int64))
    if scores.ndim != 2 or len(at) != len(scores):
        raise ValueError(f"scores, truth: expected [Q, R], [Q], got {list(scores.shape)}, {list(at.shape)}")
    places = scores.shape[1]
    if len(at) and not 0 <= int(at.min()) <= int(at.max()) < places:
        raise ValueError(f"truth: expected rows of the gallery, 0 to {places - 1}, got {at.tolist()[:5]}...")
    rank = np.zeros(len(at), np.int64)
    prior = np.full(len(at), -1, np.int64)
    away = np.full(len(at), np.nan)
    place = torch.arange(places)
    for begin in range(0, len(at), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        own, score = at[part, None], scores[part]
        true = score.gather(1, own)
        better = (score > true) | ((score == true) & (place < own))
        rank[part] = better.sum(1).numpy()
        if lat is None or lon is None:
            continue
        where, which = np.asarray(lat), np.asarray(lon)
        metres = great_circle_m(where[own.numpy()], which[own.numpy()], where[None], which[None])
        near = np.argsort(metres, axis=1, kind="stable")[:, :PRIOR]
        prior[part] = np.take_along_axis(better.numpy(), near, axis=1).sum(axis=1)
        best = score.argmax(1, keepdim=True).numpy()
        away[part] = np.take_along_axis(metres, best, axis=1)[:, 0]
    return Found(rank, prior, away)


def recall(of: Found) -> dict[str, Any]:
    """Shares over all queries: R@1/5/10, L@50/100/150 m, the mean reciprocal rank; and, easier, with the prior."""
    told: dict[str, Any] = {f"recall_at_{k}": float(np.mean(of.rank < k)) for k in FIRST}
    told["mean_reciprocal_rank"] = float(np.mean(1 / (of.rank + 1)))
    told["median_rank"] = float(np.median(of.rank) + 1)
    told["queries"] = len(of.rank)
    if (of.rank_with_prior >= 0).all():
        told |= {f"within_{metres}_m": float(np.mean(of.away_m <= metres)) for metres in METRES}
        told |= {f"recall_at_{k}_among_the_nearest_{PRIOR}": float(np.mean(of.rank_with_prior < k)) for k in FIRST}
    return told


def paired_interval(
    one: np.ndarray, other: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of `one - other`, values of the same queries: 95 % by drawing queries anew."""
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"one, other: expected the same queries, got {list(one.shape)} and {list(other.shape)}")
    difference = np.asarray(one, float) - np.asarray(other, float)
    rng = np.random.default_rng(seed)
    means = np.array([difference[rng.integers(len(difference), size=len(difference))].mean() for _ in range(draws)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)
