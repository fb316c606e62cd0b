"""The reference database: places, their strips, and the answer to "where is this?"."""

from geoloc_fast.index.places import Answers, PlaceIndex

__all__ = ["Answers", "PlaceIndex"]
