"""Choose the photos and places of a manifest for a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geoloc_fast.data.datasets import assign_places
from geoloc_fast.data.manifest import Manifest

__all__ = ["chosen", "load_region", "own_places", "places_where", "prepared"]


def load_region(folder: str | Path, threshold_m: float = 25.0) -> Manifest:
    """The manifest, every photo of known position with its place."""
    manifest = Manifest.load(folder)
    return assign_places(manifest, threshold_m) if manifest.has_positions else manifest


def chosen(manifest: Manifest, where: dict[str, str]) -> Manifest:
    """Photos whose columns have these values, their places and those of their cities."""
    photos, places = manifest.photos, manifest.places
    for name, value in where.items():
        if name not in photos.column_names:
            raise ValueError(f"data: expected a column of the photos, got {name!r}; there are {photos.column_names}")
        photos = photos.filter(pc.equal(pc.cast(photos[name], "string"), value))
    if not len(photos):
        raise ValueError(f"data: expected photos with {where}, got none of {len(manifest.photos)}")
    cities = set(photos["city"].to_pylist())
    if "" not in cities:  # a photo of an unknown city may be anywhere, and so may a place
        in_city = pc.is_in(places["city"], value_set=pa.array([*cities, ""], "string"))
        places = places.filter(pc.or_(in_city, pc.is_in(places["id"], value_set=pc.unique(photos["place"]))))
    return manifest.replace(places=places, photos=photos)


def places_where(manifest: Manifest, places: pa.Table, where: dict[str, str]) -> pa.Table:
    """Those of `places` whose columns have these values ("a|b": one of them); `split` is that of a place's photos."""
    for name, value in where.items():
        values = pa.array(str(value).split("|"), "string")
        if name == "split":
            photos = manifest.photos.filter(pc.is_in(manifest.photos["split"], value_set=values))
            places = places.filter(pc.is_in(places["id"], value_set=photos["place"].combine_chunks().unique()))
        elif name in places.column_names:
            places = places.filter(pc.is_in(pc.cast(places[name], "string"), value_set=values))
        else:
            raise ValueError(f"data: expected split or a column of the places, got {name!r}")
    return places


def own_places(manifest: Manifest) -> np.ndarray:
    """Of every photo the row of its place, -1 where it has none."""
    rows = pc.index_in(manifest.photos["place"], value_set=manifest.places["id"].combine_chunks())
    return np.asarray(pc.if_else(manifest.photos["place"].is_valid(), pc.fill_null(rows, -1), -1), np.int64)


def prepared(manifest: Manifest) -> bool:
    """Whether photos were reprojected by `prepare`: with which field of view was decided there."""
    photos = manifest.photos
    return "projection" in photos.column_names and photos["projection"].null_count < len(photos)
