"""The images of a report, read from the files of a manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from geoloc_fast.data.datasets import PlaceDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.images.decode import decode_image, read_header

__all__ = ["ManifestPictures", "PhotoPictures", "Pictures", "Tile"]

COLUMN0_DEG = 180.0  # of panoramas, here: north is in the middle
_TILE_PX = 256
_PHOTO_PX = 640
_PANORAMA = (256, 1024)


class Tile(NamedTuple):
    """A satellite image, north up, the place in its middle."""

    image: np.ndarray  # uint8 [S, S, 3]
    side_m: float | None  # None: nobody knows


class Pictures(Protocol):
    """Images are uint8 RGB; None where there is none that can be read."""

    def photo(self, n: int) -> np.ndarray | None:
        """The n-th photo."""

    def tile(self, place: int) -> Tile | None:
        """Of a place, by its id in the index."""

    def street(self, place: int) -> np.ndarray | None:
        """Panorama [H, W, 3] of a place, whose left edge looks at `COLUMN0_DEG`; None too if nobody knows its frame."""

    def synthetic(self, place: int) -> bool:
        """Whether that panorama was generated from a satellite image."""


class ManifestPictures:
    """Of files.

    Args:
        photos: their paths in the manifest, in the order of the answers.
        keys: name of each place of the index in the manifest, by its id.
    """

    def __init__(self, manifest: Manifest, photos: list[str], keys: dict[int, str]) -> None:
        self._manifest = manifest
        self._photos = photos
        self._places = PlaceDataset(manifest, satellite_size=_TILE_PX, panorama_size=_PANORAMA, column0_deg=COLUMN0_DEG)
        row_of = {name: row for row, name in enumerate(manifest.places["id"].to_pylist())}
        self._rows = {place: row_of[key] for place, key in keys.items() if key in row_of}

    def photo(self, n: int) -> np.ndarray | None:
        path = self._photos[n]
        try:
            return decode_image(self._manifest.open_image(path), path, at_least=(1, _PHOTO_PX))
        except ImageError:
            return None

    def tile(self, place: int) -> Tile | None:
        row = self._row(place)
        if row is None or row["satellite"] is None:
            return None
        path = str(row["satellite"])
        try:
            content = self._manifest.open_image(path)
            header = read_header(content, path)
            image = decode_image(content, path, at_least=(_TILE_PX, _TILE_PX))
        except ImageError:
            return None
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = cv2.resize(
            image[top : top + side, left : left + side], (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA
        )
        resolution = row["metres_per_pixel"]
        return Tile(image, None if resolution is None else resolution * min(header.height, header.width))

    def street(self, place: int) -> np.ndarray | None:
        if place not in self._rows:
            return None
        try:
            sample = self._places[self._rows[place]]
        except ImageError:
            return None
        if not sample["has_panorama"] or not sample["heading_known"]:
            return None
        return np.ascontiguousarray(np.moveaxis(np.asarray(sample["panorama"]), 0, 2))

    def synthetic(self, place: int) -> bool:
        row = self._row(place)  # of the manifest, as the panorama: the index may be older
        return row is not None and row["street_synthetic"] is not None

    def _row(self, place: int) -> dict[str, Any] | None:
        return self._manifest.place(self._rows[place]) if place in self._rows else None


class PhotoPictures:
    """Of photos that are files of their own, beside the places of a manifest where there is one.

    Args:
        photos: paths, in the order of the answers, or what the files hold.
        places: whose images the places have; without it they have none.
    """

    def __init__(self, photos: Sequence[str | os.PathLike[str] | bytes], places: Pictures | None = None) -> None:
        self._photos = photos
        self._places = places

    def photo(self, n: int) -> np.ndarray | None:
        source = self._photos[n]
        try:
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            return decode_image(content, f"photo {n}", at_least=(1, _PHOTO_PX))
        except (ImageError, OSError):
            return None

    def tile(self, place: int) -> Tile | None:
        return None if self._places is None else self._places.tile(place)

    def street(self, place: int) -> np.ndarray | None:
        return None if self._places is None else self._places.street(place)

    def synthetic(self, place: int) -> bool:
        return self._places is not None and self._places.synthetic(place)
