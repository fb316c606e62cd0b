"""Layers of evidence: the strips that a model makes of places and queries, and that an index holds.

A place has any number of rows in a layer, or none. A query has at most one strip per layer, or several readings: the
strips of a photo seen with other fields of view, of which for each place the best counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

__all__ = ["Layer", "QueryStrips", "Rows"]


class Layer(NamedTuple):
    """One kind of evidence. Layers with a heading share W and `column0_deg`, since a photo has one heading."""

    name: str
    """ "street", "satellite", "cell", "text", or a model's own: a small letter, then small letters, digits and _."""
    strip: tuple[int, int, int]
    """C, H, W; with W = 1 it is a code."""
    score: str = "cosine"
    """Of the renormalised window, or "dot", the raw correlation."""
    column0_deg: float | None = None
    """Heading of the strip's left edge; None: this layer knows no heading."""
    weight: float = 1.0
    """Of its score in the sum."""
    absent: float = 0.0
    """The score that stands in where place or query has nothing in this layer; `QueryStrips` may know better."""
    scanned_rows: int = 1 << 30
    """How many rows of a place are scanned; the others only rescore the best places."""


class Rows(NamedTuple):
    """The n rows of some places in one layer."""

    strips: Tensor
    """[n, C, H, W]"""
    place: np.ndarray | None = None
    """[n] which of the places each row belongs to, ascending; default one row for each, in their order."""
    lat: np.ndarray | None = None
    """[n] of the standpoint or view, WGS84; default that of the place. NaN where the place has none."""
    lon: np.ndarray | None = None


class QueryStrips(NamedTuple):
    """The n strips of some queries in one layer."""

    strips: Tensor
    """[n, C, H, Wq]"""
    width: Tensor | None = None
    """[n] columns that exist, default all; 0 where a query has nothing in this layer."""
    absent: Tensor | None = None
    """[n] the score that stands in where a place has nothing in this layer; default that of the layer."""
    query: Tensor | None = None
    """int64 [n] which of the queries each strip is a reading of, from 0 on, ascending, the same in all layers; default
    one reading of each, in their order."""
