"""The training pairs of a run: which photos, with which places, and how they are read."""

from __future__ import annotations

import sys
from typing import Any

import pyarrow.compute as pc

from geoloc_fast.data.datasets import PairDataset, PhotoDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.images.augment import Augmentation
from geoloc_fast.models import GeolocalizerConfig
from geoloc_fast.region.encode import place_dataset
from geoloc_fast.training.recipes.geolocalizer.memory import PairsInMemory
from geoloc_fast.training.recipes.geolocalizer.settings import Settings
from geoloc_fast.training.region import prepared

__all__ = ["pairs_of", "say_what_is_special"]


def pairs_of(manifest: Manifest, settings: Settings, config: GeolocalizerConfig) -> PairDataset | PairsInMemory:
    """The training pairs of a manifest: read as they are needed, or held in memory."""
    data = settings.data
    try:
        augment = Augmentation(**data.augment)
    except TypeError as error:
        raise ValueError(f"data.augment: expected settings of Augmentation, got {error}") from error
    shared: dict[str, Any] = {"augment": None if data.in_memory else augment, "seed": settings.step.seed}
    places = place_dataset(manifest, config.place_input, **shared)
    how = {"assumed": [False], "known": [True], "mixed": [False, True]}[data.field_of_view]
    if prepared(manifest):  # their field of view was decided then
        how = [True]
    readings = [
        PhotoDataset(
            manifest,
            panorama_size=config.image_size,
            assumed_fov_deg=config.assumed_fov_deg,
            use_fov=known,
            crop_fov_deg=data.crop_fov_deg,
            **shared,
        )
        for known in how
    ]
    pairs = PairDataset(readings[0], places)
    if not len(pairs):
        raise ValueError("data: expected photos with a place, got none")
    if data.in_memory:
        return PairsInMemory(
            pairs,
            readings,
            augment,
            street=data.street,
            border=config.border,
            cut=data.cut,
            seed=settings.step.seed,
            workers=data.workers,
        )
    return pairs


def say_what_is_special(manifest: Manifest) -> None:
    """On stderr: synthetic street views, photos whose field of view is decided."""
    places = manifest.places
    none = pc.and_(places["street"].is_null(), places["street_views"].is_null()).to_pylist().count(True)
    if made := len(places) - places["street_synthetic"].null_count:
        print(f"train: {made} of {len(places) - none} street views are synthetic", file=sys.stderr)
    if prepared(manifest):
        print("train: photos have the field of view that they were prepared with", file=sys.stderr)
