"""The index: places and their strips on disk, which can be searched while places are added.

This room may use layers and the operators, but no model and no images. Begin with `place_index`."""

from geoloc_fast.index.merge import Coverage, Missing, Neighbours, merge
from geoloc_fast.index.place_index import Place, PlaceIndex
from geoloc_fast.index.searchable import Searchable
from geoloc_fast.index.several import Several

__all__ = ["Coverage", "Missing", "Neighbours", "Place", "PlaceIndex", "Searchable", "Several", "merge"]
