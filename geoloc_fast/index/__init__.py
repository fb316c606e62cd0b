"""The reference database: places and their strips on disk, searchable while it grows."""

from geoloc_fast.index.errors import (
    DamagedIndexError,
    IndexBusyError,
    IndexVersionError,
    OtherModelError,
    PlaceIndexError,
    UnsureCommitError,
)
from geoloc_fast.index.place_index import Neighbours, Place, PlaceIndex

__all__ = [
    "DamagedIndexError",
    "IndexBusyError",
    "IndexVersionError",
    "Neighbours",
    "OtherModelError",
    "Place",
    "PlaceIndex",
    "PlaceIndexError",
    "UnsureCommitError",
]
