"""The interface of an index for reading: one folder, several folders, or shards that workers hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from geoloc_fast.geo.regions import Region
from geoloc_fast.index.merge import Neighbours
from geoloc_fast.index.place_index import Place
from geoloc_fast.layers import Layer, QueryStrips

__all__ = ["Searchable"]


class Searchable(Protocol):
    """The part of `PlaceIndex` that locating and evaluating need."""

    @property
    def path(self) -> Path:
        """The folder of the index."""

    def __len__(self) -> int: ...

    @property
    def model(self) -> str:
        """Fingerprint of the model that the index was built with."""

    @property
    def index_id(self) -> str:
        """A random id that the index keeps for its life."""

    @property
    def commit(self) -> int:
        """Number of the commit that is searched."""

    @property
    def filled(self) -> frozenset[str]:
        """Names of the layers in which some place has a row."""

    def check_model(self, model: str | None) -> None:
        """OtherModelError unless it is the model of this index."""

    def ids(self, within: Region | None = None) -> np.ndarray:
        """Ids of all places, or those in a region."""

    def positions(self, within: Region | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lat, lon) of all places, or those in a region, in the order of `ids`; NaN where there is none."""

    def keys(self) -> dict[str, int]:
        """key -> id of all places that have a key."""

    def places(self, ids: Iterable[int] | np.ndarray) -> list[Place]:
        """The places of these ids, in this order. KeyError if one is not there."""

    def search(
        self, query: Mapping[str, QueryStrips], k: int = 10, *, layers: Sequence[Layer] | None = None,
        within: Region | None = None,
    ) -> Neighbours:  # fmt: skip
        """The k best places of each query."""
