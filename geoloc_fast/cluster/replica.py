"""A shard as a worker serves it: local files by memory map, and the answers of one part to the steps of a search."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from geoloc_fast.cluster.shards import ShardEntry, ids_digest
from geoloc_fast.errors import DamagedIndexError, PlaceIndexError
from geoloc_fast.geo.regions import Region
from geoloc_fast.index import Neighbours, Place, PlaceIndex
from geoloc_fast.index.search import Call, Lists
from geoloc_fast.layers import Layer

__all__ = ["Opened", "Replica"]


class Opened(NamedTuple):
    """What a replica says of itself before it serves."""

    layers: tuple[Layer, ...]
    pid: int


class Replica:
    """Opens the shard that a map names, after looking whether it is that one; else it serves nothing.

    Args:
        folder: of the map, on the machine where this runs.
        model: fingerprint that the map names.
    """

    def __init__(self, folder: str, entry: ShardEntry, model: str, device: str) -> None:
        path = f"{folder}/{entry.name}"
        self._index = PlaceIndex.open(path, model=model, device=device)
        self._device = device
        if self._index.digest != entry.digest:
            raise PlaceIndexError(
                f"{path}: is another commit ({self._index.digest[:12]}) than the shard map names "
                f"({entry.digest[:12]}); copy the shards again, map and folders together"
            )
        if (len(self._index), ids_digest(self._index.ids())) != (entry.places, entry.ids):
            raise DamagedIndexError(f"{path}: its ids are not those that the shard map names; cut the index again")

    def opened(self) -> Opened:
        return Opened(self._index.layers, os.getpid())

    # The steps of a search (`index/search.py`): one part of many.

    def nearest(self, call: Call, k: int) -> Neighbours:
        return self._index.parts().nearest(self._here(call), k)[0]

    def lists(self, call: Call, length: int) -> Lists:
        return self._index.parts().lists(self._here(call), length)[0]

    def scored(self, call: Call, places: np.ndarray) -> Neighbours:
        return self._index.parts().scored(self._here(call), [places])[0]

    def _here(self, call: Call) -> Call:
        return call if self._device == "cpu" else call._replace(query=call.query.to(torch.device(self._device)))

    # What else is asked of an index.

    def ids(self, within: Region | None) -> np.ndarray:
        return self._index.ids(within)

    def positions(self, within: Region | None) -> tuple[np.ndarray, np.ndarray]:
        return self._index.positions(within)

    def keys(self) -> dict[str, int]:
        return self._index.keys()

    def places(self, ids: Iterable[int] | np.ndarray) -> list[Place]:
        """Those that are here."""
        wanted = np.asarray(ids, np.int64)
        return self._index.places(wanted[self._index.there(wanted)])
