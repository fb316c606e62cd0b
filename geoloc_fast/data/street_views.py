"""Dataset of satellite image, real street view and class map, for training the generator of street views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from geoloc_fast.data.availability import MAX_AGE_DAYS, available
from geoloc_fast.data.datasets import _PLACE, _SATELLITE, PlaceDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.images.augment import Augmentation
from geoloc_fast.images.decode import decode_image
from geoloc_fast.images.satellite import satellite_square

__all__ = ["StreetViewDataset", "learnable"]


def learnable(manifest: Manifest, *, max_distance_m: float = 3.0, max_age_days: int = MAX_AGE_DAYS) -> pa.Table:
    """The places to learn from: a satellite image, and a real street view of known heading, or one surely measured,
    that stands within `max_distance_m` of the place and was taken within `max_age_days` of the satellite image."""
    places = manifest.places
    dates = places["satellite_date"].to_numpy().astype("datetime64[D]")
    near = available(places, dates, max_distance_m=max_distance_m, max_age_days=max_age_days)
    measured = places["calibration_column0_deg"].is_valid()  # and comes before the given one
    sure = pc.and_(measured, pc.not_equal(places["calibration_status"], "low quality"))
    heading = pc.or_(sure, pc.and_(places["street_column0_deg"].is_valid(), pc.invert(measured)))
    heading = pc.or_(heading, places["street_views"].is_valid())
    usable = pc.and_(heading, places["satellite"].is_valid()).to_numpy(zero_copy_only=False)
    return places.filter(pa.array(usable & near))


class StreetViewDataset(PlaceDataset):
    """Samples of `PlaceDataset` of one frame and scale, and:

    - `classes`: uint8 [1, H, W], the class of every pixel of `panorama`, 255 where it is not known; not there if
      there are no classes.

    The satellite image is what `satellite_square` makes of it. Turns are quarter turns if `quarter_turns`.

    Args:
        manifest: of places as `learnable` picks them.
        classes: how many there are; maps are images of class numbers, their paths in the places' column `classes`.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        image_size: tuple[int, int],
        satellite_size: int,
        extent_m: float,
        column0_deg: float,
        classes: int = 0,
        quarter_turns: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            manifest,
            satellite_size=satellite_size,
            panorama_size=image_size,
            extent_m=extent_m,
            column0_deg=column0_deg,
            augment=augment,
            seed=seed,
        )
        self.classes = classes
        self.quarter_turns = quarter_turns
        if classes and ("classes" not in manifest.places.column_names or manifest.places["classes"].null_count):
            raise ValueError("classes: expected a class map of every place, got places without")
        if classes:
            self._table = self._table.append_column("classes", manifest.places["classes"])

    def _geometry(self, row: int, what: int = _PLACE) -> tuple[float, bool]:
        turn_deg, mirrored = super()._geometry(row, what)
        return (90.0 * math.floor(turn_deg / 90) if self.quarter_turns else turn_deg), mirrored

    def _satellite(self, place: dict[str, Any], row: int, mirrored: bool) -> tuple[np.ndarray, float]:
        path = place["satellite"]
        image = satellite_square(
            self._decode(path),
            path,
            place["metres_per_pixel"],
            extent_m=self.extent_m or 50.0,
            size=self.satellite_size,
        )
        image = self._coloured(image, row, _SATELLITE)
        return (image[:, ::-1] if mirrored else image), self.extent_m or 50.0

    def _sample(self, row: int, turn_deg: float, mirrored: bool) -> dict[str, Any]:
        sample = super()._sample(row, turn_deg, mirrored)
        if self.classes:
            place = self._table.slice(row, 1).to_pylist()[0]
            sample["classes"] = torch.from_numpy(self._classes(place, turn_deg, mirrored))[None]
        return sample

    def _classes(self, place: Mapping[str, Any], turn_deg: float, mirrored: bool) -> np.ndarray:
        path = place["classes"]
        image = decode_image(self.manifest.open_image(path), path)[..., 0]
        most = int(image[image < 255].max(initial=0))
        if most >= self.classes:
            raise ImageError(path, f"holds class {most}; there are {self.classes}, counted from 0")
        column0 = place["calibration_column0_deg"]
        column0 = place["street_column0_deg"] if column0 is None else column0
        column0 = 315.0 if column0 is None else column0
        image = self._turned(image, column0, turn_deg, mirrored)
        rows, columns = self.panorama_size
        kept = min(image.shape[0], max(1, round(image.shape[1] * rows / columns)))  # as `fit_panorama` cuts
        top = (image.shape[0] - kept) // 2
        image = cv2.resize(image[top : top + kept], (columns, rows), interpolation=cv2.INTER_NEAREST)
        return np.ascontiguousarray(image)
