"""Measure how well a model finds the photos of a manifest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from geoloc_fast import StripBank
from geoloc_fast.data.datasets import PairDataset, PhotoDataset, finish, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.protocol import PhotoBatch, measure
from geoloc_fast.layers import QueryStrips, Rows
from geoloc_fast.models import Geolocalizer, PhotoStrips
from geoloc_fast.models.contract import Model, PlaceBatch, Query
from geoloc_fast.polar import polar_resample
from geoloc_fast.region.encode import encode_places
from geoloc_fast.training.recipes.geolocalizer.memory import PairsInMemory
from geoloc_fast.training.recipes.geolocalizer.settings import DataSettings, Settings
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_street
from geoloc_fast.training.recipes.geolocalizer.terms import fixed_window, strip_widths
from geoloc_fast.training.region import own_places, prepared
from geoloc_fast.training.sampling import most_similar

__all__ = ["evaluate", "photo_batches", "place_bank", "similar_places"]

ENCODE_BATCH = 64


def place_bank(model: Geolocalizer, manifest: Manifest, *, street: str = "known", window: str = "best") -> StripBank:
    """A strip for each place of the manifest, in its order; zeros where the model sees nothing of a place."""
    (layer,) = model.layers
    strips = torch.zeros(len(manifest.places), *layer.strip)
    shown: Model = model if street == "known" else OtherStreetViews(model, street)
    problems = 0
    for part in encode_places(shown, manifest):
        found = part.layers.get(layer.name)
        if found is not None and found.place is not None:
            strips[np.array(part.rows)[found.place]] = found.strips
        problems += len(part.problems)
    if problems:
        print(f"train: {problems} of {len(strips)} places show nothing that the model looks at", file=sys.stderr)
    if window == "fixed":
        config = model.config
        columns = config.assumed_fov_deg / 360 * config.image_size[1]
        strips = fixed_window(strips, int(strip_widths(model, torch.tensor([round(columns)]))))
    return StripBank.pack(strips, column0_deg=model.config.column0_deg, device=model.log_scale.device)


class OtherStreetViews:
    """A model that is shown street views as `data.street` says, instead of those whose heading is known."""

    def __init__(self, model: Geolocalizer, street: str) -> None:
        self._model, self._street = model, street
        self.kind, self.name, self.fingerprint, self.trained_on = "", model.config.name, None, model.config.trained_on
        self.layers, self.place_input, self.query_input = model.layers, model.place_input, model.query_input

    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        config = self._model.config
        panorama, _, known = chosen_street(
            self._street,
            batch.panorama,
            polar_resample(batch.satellite, config.image_size, column0_deg=config.column0_deg, border=config.border),
            has_panorama=batch.panorama.amax((1, 2, 3)) > 0,  # of unknown heading too; where there is none it is black
            has_satellite=batch.has_satellite,
            heading_known=batch.has_panorama,
            column0_deg=config.column0_deg,
        )
        return self._model.encode_places(batch._replace(panorama=panorama, has_panorama=known))

    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        return self._model.encode_queries(queries)


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
        bank = place_bank(model, manifest, street=data.street, window=window)
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
        places = [
            model.encode_place(
                batch["polar"],
                batch["panorama"],
                has_satellite=batch["has_satellite"],
                has_panorama=batch["has_panorama"] & batch["heading_known"],
            )
            for batch in pairs.all_places(ENCODE_BATCH, device)
        ]
        bank = StripBank.pack(torch.cat(places), column0_deg=model.config.column0_deg)
        photos = (model.encode_photo(b["photo"], b["photo_width"]) for b in pairs.all_photos(ENCODE_BATCH, device))
    else:
        bank = place_bank(model, manifest)
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
