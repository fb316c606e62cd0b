"""Several indexes of one model, searched as if they were one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from geoloc_fast.geo.regions import Region
from geoloc_fast.index.merge import Neighbours, merge
from geoloc_fast.index.place_index import Place, PlaceIndex
from geoloc_fast.index.search import COMMON, best_readings
from geoloc_fast.layers import Layer, QueryStrips

__all__ = ["Several"]


class Several:
    """Several indexes, used for reading like one `PlaceIndex`. A search gives the k best of all their places. A
    place that is in two of them occurs twice.

    The id of a place is `n * id + which`, where it is the place `id` of `indexes[which]` of n; its key names both.

    Args:
        indexes: of the same model and layers.
    """

    def __init__(self, indexes: Sequence[PlaceIndex]) -> None:
        if not indexes:
            raise ValueError("indexes: expected at least one, got none")
        for other in indexes[1:]:
            other.check_model(indexes[0].model)
        self.indexes = tuple(indexes)

    def __len__(self) -> int:
        return sum(len(index) for index in self.indexes)

    def __repr__(self) -> str:
        return f"Several({[str(index.path) for index in self.indexes]}, {len(self)} places)"

    @property
    def path(self) -> Path:
        """All of them, for messages."""
        return Path("+".join(str(index.path) for index in self.indexes))

    @property
    def model(self) -> str:
        """Fingerprint of the model whose strips these are."""
        return self.indexes[0].model

    @property
    def index_id(self) -> str:
        """The id and, since each has its own, the commit of every one: "id:commit+id:commit"."""
        return "+".join(f"{index.index_id}:{index.commit}" for index in self.indexes)

    @property
    def commit(self) -> int:
        """0: `index_id` has theirs."""
        return 0

    @property
    def filled(self) -> frozenset[str]:
        """Names of the layers in which some place has a row."""
        return frozenset(name for index in self.indexes for name in index.filled)

    def check_model(self, model: str | None) -> None:
        """OtherModelError unless it is the model of these indexes."""
        self.indexes[0].check_model(model)

    def ids(self, within: Region | None = None) -> np.ndarray:
        """Ids of all places, or those in a region."""
        return np.concatenate([self._here(index.ids(within), n) for n, index in enumerate(self.indexes)])

    def positions(self, within: Region | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(lat, lon) of all places, or those in a region, in the order of `ids`; NaN where there is none."""
        lat, lon = zip(*(index.positions(within) for index in self.indexes), strict=True)
        return np.concatenate(lat), np.concatenate(lon)

    def keys(self) -> dict[str, int]:
        """key -> id of all places that have a key."""
        return {
            _key(index, key): int(self._here(np.array(number), n))
            for n, index in enumerate(self.indexes)
            for key, number in index.keys().items()
        }

    def places(self, ids: Iterable[int] | np.ndarray) -> list[Place]:
        """The places of these ids, in this order. KeyError if one is not there."""
        found = []
        for number in ids:
            index = self.indexes[int(number) % len(self.indexes)]
            (place,) = index.places([int(number) // len(self.indexes)])
            found.append(replace(place, id=int(number), key=_key(index, place.key)))
        return found

    def search(
        self,
        query: Mapping[str, QueryStrips],
        k: int = 10,
        *,
        layers: Sequence[Layer] | None = None,
        within: Region | None = None,
    ) -> Neighbours:
        """The k best places of all, as `PlaceIndex.search` finds them."""
        of = next(iter(query.values())).query if query else None
        many, apart = k, query
        if of is not None:  # readings are measured from a place of all indexes, so they are put together at the end
            many, apart = max(k, COMMON), {name: strips._replace(query=None) for name, strips in query.items()}
        parts = [index.search(apart, many, layers=layers, within=within) for index in self.indexes]
        here = merge([part._replace(id=self._here(part.id, n)) for n, part in enumerate(parts)], many)
        return here if of is None else best_readings(here, of.cpu().numpy(), k)

    def _here(self, ids: np.ndarray, which: int) -> np.ndarray:
        return np.where(ids < 0, ids, ids * len(self.indexes) + which)


def _key(index: PlaceIndex, key: str) -> str:
    return f"{index.path.name}: {key}" if key else ""
