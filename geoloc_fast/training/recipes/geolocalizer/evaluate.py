"""How well a model finds the photos of a manifest, and what it takes them for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from geoloc_fast import StripBank
from geoloc_fast.data.datasets import PairDataset, PhotoDataset, PlaceDataset, finish, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.protocol import PhotoBatch, measure
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig, PhotoStrips
from geoloc_fast.polar import polar_resample
from geoloc_fast.training.recipes.geolocalizer.memory import PairsInMemory
from geoloc_fast.training.recipes.geolocalizer.settings import DataSettings, Settings
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_street
from geoloc_fast.training.recipes.geolocalizer.terms import fixed_window, strip_widths
from geoloc_fast.training.region import own_places, prepared
from geoloc_fast.training.sampling import most_similar

__all__ = ["encode_places", "evaluate", "photo_batches", "place_batches", "similar_places"]

ENCODE_BATCH = 64


def place_batches(
    manifest: Manifest, config: GeolocalizerConfig, data: DataSettings, device: torch.device
) -> Iterator[dict[str, Any]]:
    places = PlaceDataset(
        manifest,
        satellite_size=config.satellite_px,
        panorama_size=config.image_size,
        extent_m=None if config.range_m is None else config.range_m[1],
        column0_deg=config.column0_deg,
    )
    for batch in loader(places, ENCODE_BATCH, workers=data.workers):
        if data.street != "known":
            batch["panorama"], batch["has_panorama"], batch["heading_known"] = chosen_street(
                data.street,
                batch["panorama"],
                polar_resample(
                    batch["satellite"], config.image_size, column0_deg=config.column0_deg, border=config.border
                ),
                has_panorama=batch["has_panorama"],
                has_satellite=batch["has_satellite"],
                heading_known=batch["heading_known"],
                column0_deg=config.column0_deg,
            )
        yield finish(batch, device, border=config.border)


@torch.inference_mode()
def encode_places(model: Geolocalizer, batches: Iterable[dict[str, Any]], *, window: str = "best") -> StripBank:
    strips = []
    for batch in batches:
        known = batch["has_panorama"] & batch["heading_known"]
        strips.append(
            model.encode_place(
                batch["polar"], batch["panorama"], has_satellite=batch["has_satellite"], has_panorama=known
            )
        )
    whole = torch.cat(strips)
    if window == "fixed":
        config = model.config
        columns = config.assumed_fov_deg / 360 * config.image_size[1]
        width = strip_widths(model, torch.tensor([round(columns)]))
        whole = fixed_window(whole, int(width))
    return StripBank.pack(whole, column0_deg=model.config.column0_deg)


@torch.inference_mode()
def photo_batches(
    model: Geolocalizer,
    manifest: Manifest,
    data: DataSettings,
    device: torch.device,
    *,
    known: bool = False,
    tried_deg: Sequence[float] = (),
    window: str = "best",
) -> Iterator[PhotoBatch]:
    """The field of view `known`, or tried at several angles, or the one the model assumes."""
    config = model.config
    readings = [
        loader(
            PhotoDataset(
                manifest,
                panorama_size=config.image_size,
                assumed_fov_deg=fov_deg,
                use_fov=known,
                crop_fov_deg=data.crop_fov_deg,
            ),
            ENCODE_BATCH,
            workers=data.workers,
        )
        for fov_deg in tried_deg or (config.assumed_fov_deg,)
    ]
    groups = [name for name in ("city", "street_view") if name in manifest.photos.column_names]
    labels = {name: manifest.photos[name].to_pylist() for name in groups}
    place = own_places(manifest)
    for batches in zip(*readings, strict=True):
        finished = [finish(batch, device) for batch in batches]
        first = finished[0]
        strips = [model.encode_photo(batch["photo"], batch["photo_width"]) for batch in finished]
        if window == "fixed":
            strips = [PhotoStrips(fixed_window(one, one.shape[3]), torch.ones_like(width)) for one, width in strips]
        yield PhotoBatch(
            strips,
            first["photo_lat"].cpu().numpy(),
            first["photo_lon"].cpu().numpy(),
            first["heading_deg"].cpu().numpy(),
            {name: [str(label[int(row)]) for row in first["photo_row"]] for name, label in labels.items()},
            place[first["photo_row"].cpu().numpy()],
        )


def evaluate(
    model: Geolocalizer, manifest: Manifest, data: DataSettings, device: torch.device, *, window: str = "best"
) -> dict[str, Any]:
    """All chosen photos against all places of their cities, the field of view assumed, known, and searched for; of
    prepared photos the one they were prepared with.
    `window`: of each place the best one, or "fixed", the middle of every strip."""
    training = model.training
    model.eval()
    try:
        bank = encode_places(model, place_batches(manifest, model.config, data, device), window=window)
        lat, lon = (manifest.places[name].to_numpy() for name in ("lat", "lon"))
        ways: dict[str, dict[str, Any]] = {"assumed": {}, "known": {"known": True}}
        if prepared(manifest):
            ways = {"as prepared": {"known": True}}
        elif data.search_fov_deg:
            ways["search"] = {"tried_deg": data.search_fov_deg}
        if window == "fixed":
            ways.pop("known", None)  # no one window fits photos of many widths
        return {
            name: measure(photo_batches(model, manifest, data, device, window=window, **how), bank, lat, lon).metrics()
            for name, how in ways.items()
        }
    finally:
        model.train(training)


@torch.inference_mode()
def similar_places(
    model: Geolocalizer,
    manifest: Manifest,
    pairs: PairDataset | PairsInMemory,
    settings: Settings,
    device: torch.device,
    count: int,
) -> np.ndarray:
    """Which places the photos of each place are taken for by the model as it is now."""
    model.eval()
    lat, lon = (manifest.places[name].to_numpy() for name in ("lat", "lon"))
    if isinstance(pairs, PairsInMemory):
        bank = encode_places(model, pairs.all_places(ENCODE_BATCH, device))
        photos = (model.encode_photo(b["photo"], b["photo_width"]) for b in pairs.all_photos(ENCODE_BATCH, device))
    else:
        bank = encode_places(model, place_batches(manifest, model.config, settings.data, device))
        known = settings.data.field_of_view == "known" or prepared(manifest)
        batches = photo_batches(model, manifest, settings.data, device, known=known)
        photos = (PhotoStrips(*batch.readings[0]) for batch in batches)
    own = own_places(manifest)
    found = np.full((len(bank), count), -1, np.int64)
    begin = 0
    for strips, width in photos:
        place = own[begin : begin + len(strips)]
        begin += len(strips)
        keep = torch.from_numpy(place >= 0)
        part = most_similar(
            strips[keep.to(strips.device)],
            bank,
            place[place >= 0],
            lat,
            lon,
            count,
            query_width=width[keep.to(width.device)],
            beyond_m=settings.step.loss.threshold_m,
        )
        found = np.where((part >= 0).any(axis=1, keepdims=True), part, found)
    return found
