"""The reference database: places and their strips on disk, searchable while it grows."""

from geoloc_fast.index.place_index import Neighbours, Place, PlaceIndex

__all__ = [
    "Neighbours",
    "Place",
    "PlaceIndex",
]
