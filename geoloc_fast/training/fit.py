"""A layered model for a region from its own files: frozen features, moments, closed form. Nothing is trained by steps.

Every photo of known place and heading gives pairs of columns that look the same way: its own and the street view's,
its own and those of the satellite image seen from where it was taken. Panoramas may be pairs with the satellite image
too: they see all round.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from geoloc_fast.data.datasets import PairDataset, PhotoDataset, PlaceDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError, TrainingStopped
from geoloc_fast.geo.sphere import EARTH_RADIUS_M
from geoloc_fast.models.contract import AzimuthColumns
from geoloc_fast.models.layered import Layered, LayeredConfig
from geoloc_fast.progress import Progress
from geoloc_fast.training.closed_form import Maps, Moments, canonical_maps
from geoloc_fast.training.feature_cache import FeatureCache, content_key
from geoloc_fast.training.kinds import load_kinds

__all__ = ["FitReport", "fit_region"]

COHORT = 64
"""Places, at most, that the model keeps to tell what a wrong place scores."""

TRIED_FOV_DEG = (60.0, 75.0, 105.0, 120.0)
"""What a fitted model reads photos of unknown field of view with, beside the assumed one."""

FARTHEST_M = 12.0
"""Photos farther from their place are left out of the pairs with satellite images."""


@dataclasses.dataclass
class FitReport:
    """What went into a fit."""

    photos: int = 0
    pairs: dict[str, int] = dataclasses.field(default_factory=dict)
    """Photos in the pairs of each layer."""
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """Photos that gave nothing, by reason."""
    correlation: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """Of each layer's directions, descending."""
    weights: str = ""
    """Which weights the backbone has."""

    def summary(self) -> str:
        lines = [self.weights, f"{self.photos} photos"]
        for layer, count in self.pairs.items():
            rho = self.correlation[layer]
            lines.append(f"{layer}: {count} photos, correlations {rho[0]:.2f} to {rho[-1]:.2f} of {len(rho)} channels")
        lines += [f"left out: {count} photos, {reason}" for reason, count in self.left_out.items()]
        return "\n".join(lines)


def fit_region(
    regions: Manifest | Sequence[Manifest],
    pretrained: str | os.PathLike[str],
    config: LayeredConfig | None = None,
    *,
    split: str | None = None,
    ridge: float = 0.1,
    panorama_weight: float = 0.0,
    kinds: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Layered, FitReport]:
    """Fits the maps of a layered model.

    Args:
        regions: places with images, photos with `place` and `heading_deg`; of several all pairs count alike.
        pretrained: weights of the backbone (`read_weights`): a package or a file.
        config: sizes, layers and names; its `provenance` is filled in.
        split: only photos of this split.
        ridge: see `canonical_maps`.
        panorama_weight: what a column of a panorama counts beside one of a photo, in the pairs with satellite images:
            it finds panoramas from above, and costs photos.
        kinds: trained kind heads (`training.kinds`); default none.
        cache: a folder for features, which another fit on the same images then finds.

    Raises:
        TrainingStopped: a layer has too few photos to be fitted.
    """
    model = Layered(config) if kinds is None else load_kinds(kinds, config or LayeredConfig())
    weights = model.backbone.load_pretrained(pretrained)
    report = FitReport(weights=model.backbone.loaded)
    features = _Features(model, cache)
    regions = [regions] if isinstance(regions, Manifest) else regions
    pairs = [pair for region in regions for pair in _pairs(region, model.config, split)]
    moments = {layer: Moments() for layer in model.config.layers}
    seen: dict[str, list[Tensor]] = {layer: [] for layer in model.config.layers}
    spacing = max(1, len(pairs) // COHORT)
    report.pairs = dict.fromkeys(model.config.layers, 0)
    for number in range(len(pairs)):
        try:
            dataset, row = pairs[number]
            sample = dataset[row]
        except ImageError:
            _count(report, "an image cannot be read")
        else:
            report.photos += 1
            with torch.inference_mode():
                keep = seen if number % spacing == 0 else {}
                _add(sample, features, moments, report, panorama_weight, keep)
        if progress is not None:
            progress(number + 1, len(pairs))
    for layer, sums in moments.items():
        channels = model.config.channels
        if report.pairs[layer] < 2:
            what = {"street": "a street view of known heading", "satellite": "a satellite image of known resolution"}
            raise TrainingStopped(
                f"layer {layer}: expected photos of known heading beside {what[layer]}, got {report.pairs[layer]} "
                f"({', '.join(f'{n} left out: {why}' for why, n in report.left_out.items()) or 'none left out'}): "
                "give headings, or fit the other layer alone"
            )
        maps = canonical_maps(sums, channels, ridge=ridge)
        if not maps.correlation[0] > 1e-3:
            raise TrainingStopped(
                f"layer {layer}: expected photos that have something in common with their places, got correlations of "
                f"at most {maps.correlation[0]:.2g}: are the images all alike, or headings wrong?"
            )
        _set_maps(model, layer, maps)
        report.correlation[layer] = maps.correlation.tolist()
    model = _with_cohort(model, seen)
    model.config = dataclasses.replace(
        model.config,
        provenance={
            **model.config.provenance,
            "backbone": f"{weights.source}, sha256 {weights.sha256}, licence {weights.licence}",
            "maps": f"closed form, ridge {ridge:g}, {report.photos} photos, panoramas at {panorama_weight:g}",
        },
    )
    return model, report


def _pairs(region: Manifest, config: LayeredConfig, split: str | None) -> Iterator[tuple[PairDataset, int]]:
    """Every pair of a region: where it is to be had, and its number there."""
    photos = PhotoDataset(region, panorama_size=config.level_size, assumed_fov_deg=config.assumed_fov_deg)
    places = PlaceDataset(
        region,
        satellite_size=config.satellite_px,
        panorama_size=config.level_size,
        extent_m=config.range_m[1],
        column0_deg=config.column0_deg,
    )
    dataset = PairDataset(photos, places, split=split)
    return ((dataset, row) for row in range(len(dataset)))


def _with_cohort(model: Layered, seen: dict[str, list[Tensor]]) -> Layered:
    """The model, with strips of some places, by layer, as what a wrong place looks like."""
    cohort = min(map(len, seen.values()))
    twin = Layered(dataclasses.replace(model.config, cohort=cohort, tried_fov_deg=TRIED_FOV_DEG))
    strips = {f"cohort_{layer}": model.place_strips(layer, torch.stack(of_it)) for layer, of_it in seen.items()}
    twin.load_state_dict(
        {**model.state_dict(), **{name: found[: twin.config.cohort, :, None] for name, found in strips.items()}}
    )
    return twin


class _Features:
    """Column features of a model, from the cache where they are."""

    def __init__(self, model: Layered, cache: str | os.PathLike[str] | None) -> None:
        self.model = model
        digest = hashlib.sha256()
        parts = [model.backbone, *([model.kind_heads] if model.config.kinds else [])]
        for part in parts:
            for name, value in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.contiguous().numpy().data)
        config = model.config
        settings = (config.strides, config.level_size, config.polar_size, config.columns, config.radius_m)
        self._cache = None if cache is None else FeatureCache(cache, f"{digest.hexdigest()} {settings}")

    def photo(self, columns: Tensor) -> Tensor:
        """[w, D] of uint8 azimuth columns [3, H, w]."""
        query = AzimuthColumns(columns.permute(1, 2, 0).contiguous().numpy())
        return self._get(columns, lambda: self.model.query_features(query), "photo")

    def panorama(self, image: Tensor) -> Tensor:
        """[W, D] of a panorama, uint8 [3, H, W]."""
        return self._get(image, lambda: self.model.level_features(image, circular=True), "panorama")

    def polar(self, image: Tensor, metres: float, at: tuple[float, float], heading_deg: float) -> Tensor:
        """[W, D] of a satellite image, from a standpoint, column 0 at `column0_deg` + heading."""
        settings = ("polar", self.model.config.column0_deg, metres, at, heading_deg)
        return self._get(
            image, lambda: self.model.polar_features(image, metres, [at], heading_deg=[heading_deg])[0], *settings
        )

    def _get(self, image: Tensor, make: Callable[[], Tensor], *settings: object) -> Tensor:
        return make() if self._cache is None else self._cache.get(content_key(image, *settings), make)


def _add(
    sample: dict[str, object],
    features: _Features,
    moments: dict[str, Moments],
    report: FitReport,
    panorama_weight: float,
    keep: dict[str, list[Tensor]],
) -> None:
    """The pairs of one photo and its place, whose columns `keep` takes by layer."""
    config = features.model.config
    heading = float(sample["heading_deg"])  # type: ignore[arg-type]
    if not math.isfinite(heading):
        _count(report, "heading unknown")
        return
    photo = features.photo(sample["photo"])  # type: ignore[arg-type]
    width = len(photo)
    left_deg = heading - 180.0 * width / config.columns  # where the photo's first column begins
    turn_deg = left_deg - config.column0_deg
    around: Tensor | None = None  # the panorama's columns, the first of them the photo's first
    if sample["has_panorama"] and sample["heading_known"]:
        panorama: Tensor = sample["panorama"]  # type: ignore[assignment]
        around = features.panorama(panorama.roll(-round(turn_deg * config.level_size[1] / 360.0), dims=2))
    used = False
    if "street" in moments and around is not None:
        known = features.model.feature_counts("street")[0]
        moments["street"].add(photo[:, :known], around[:width, :known])
        keep.get("street", []).append(around[:, :known])
        report.pairs["street"] += 1
        used = True
    metres, at = float(sample["metres_per_pixel"]), _offset(sample)  # type: ignore[arg-type]
    if "satellite" in moments and sample["has_satellite"] and math.isfinite(metres):
        satellite: Tensor = sample["satellite"]  # type: ignore[assignment]
        if at is not None and math.hypot(*at) <= FARTHEST_M:
            above = features.polar(satellite, metres, at, turn_deg)
            moments["satellite"].add(photo, above[:width])
            keep.get("satellite", []).append(above)
            report.pairs["satellite"] += 1
            used = True
        if around is not None and panorama_weight > 0:
            moments["satellite"].add(around, features.polar(satellite, metres, (0.0, 0.0), turn_deg), panorama_weight)
    if not used:
        _count(report, "no image of its place to compare with")


def _offset(sample: dict[str, object]) -> tuple[float, float] | None:
    """Where the photo was taken, metres east and north of its place; None where a position is not known."""
    lat, lon, place_lat, place_lon = (
        float(sample[name])  # type: ignore[arg-type]
        for name in ("photo_lat", "photo_lon", "place_lat", "place_lon")
    )
    if not all(map(math.isfinite, (lat, lon, place_lat, place_lon))):
        return None
    metres = math.radians(1.0) * EARTH_RADIUS_M
    return (lon - place_lon) * metres * math.cos(math.radians(place_lat)), (lat - place_lat) * metres


def _set_maps(model: Layered, layer: str, maps: Maps) -> None:
    for side, fitted in ((model.query_maps, maps.query), (model.place_maps, maps.place)):
        linear = side.get_submodule(layer)
        assert isinstance(linear, torch.nn.Linear)
        linear.weight.data.copy_(fitted.weight.T)
        linear.bias.data.copy_(fitted.bias)


def _count(report: FitReport, reason: str) -> None:
    report.left_out[reason] = report.left_out.get(reason, 0) + 1
