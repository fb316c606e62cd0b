"""The reference database: places and what is known of them on disk, searchable while it grows."""

from geoloc_fast.index.merge import Neighbours, merge
from geoloc_fast.index.place_index import Place, PlaceIndex

__all__ = ["Neighbours", "Place", "PlaceIndex", "merge"]
