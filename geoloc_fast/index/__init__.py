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
from geoloc_fast.index.regions import Box, Circle, Region, parse_box, parse_circle

__all__ = [
    "Box",
    "Circle",
    "DamagedIndexError",
    "IndexBusyError",
    "IndexVersionError",
    "Neighbours",
    "OtherModelError",
    "Place",
    "PlaceIndex",
    "PlaceIndexError",
    "Region",
    "UnsureCommitError",
    "parse_box",
    "parse_circle",
]
