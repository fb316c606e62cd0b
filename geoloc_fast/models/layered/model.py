"""Two layers of evidence from one frozen network: what is seen from the street, and what is seen from above.

    photo, panorama: azimuth columns    -> backbone -> column features -> linear map of each layer -> strip
    satellite image: polar, standpoints -> backbone -> column features -> linear map               -> strips

A strip is what one or several eyes see, side by side, each at a length of its own: "mapped", features of fine strides
through maps that were fitted for each layer; "frozen", features of stride 16 near the horizon, just standardised;
"colour", hand-made.

A photo makes a strip for each layer. A place has a row in "street" for its panorama, and in "satellite" one for every
standpoint from which its image is seen: a photographer stands metres beside the centre, and near things then lie
elsewhere. The maps are fitted in closed form by `geoloc_fast.training.fit`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.azimuth import azimuth_match
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.models.backbones import Backbone
from geoloc_fast.models.bundle import BundleConfig, BundledModel
from geoloc_fast.models.contract import AzimuthColumns, Photo, PlaceBatch, PlaceInput, Query, QueryInput
from geoloc_fast.models.layered.colours import COLOUR_CHANNELS, colour_cells
from geoloc_fast.models.layered.columns import LEVEL, POLAR, column_features, feature_count
from geoloc_fast.models.layered.kinds import KindHead
from geoloc_fast.models.threads import threads_for
from geoloc_fast.polar import polar_resample

__all__ = ["EYES", "LAYERS", "Layered", "LayeredConfig", "ring"]

LAYERS = ("street", "satellite")
EYES = ("mapped", "frozen", "colour")
_FROZEN_STRIDE = 16
_PER_PIXEL = 3400  # multiply-adds of the backbone to stride 8
_POLAR_BATCH = 8  # polar images at once: their features stay near the cache


def ring(count: int, radius_m: float, first_deg: float = 0.0) -> tuple[tuple[float, float], ...]:
    """`count` points (east, north) on a circle, the first of them at an azimuth."""
    angles = [math.radians(first_deg) + 2 * math.pi * i / count for i in range(count)]
    return tuple((radius_m * math.sin(a), radius_m * math.cos(a)) for a in angles)


@dataclasses.dataclass(frozen=True)
class LayeredConfig(BundleConfig):
    """Everything that is needed to rebuild the model around its weights."""

    layers: tuple[str, ...] = LAYERS
    """Some of `LAYERS`."""
    backbone: str = "tf_efficientnet_lite0"
    """A timm EfficientNet."""
    strides: tuple[int, ...] = (4, 8)
    """Of the backbone's maps that are looked at."""
    level_size: tuple[int, int] = (256, 1024)
    """Rows and columns of a whole turn of photos and panoramas."""
    polar_size: tuple[int, int] = (128, 512)
    """Rows and columns of polar images."""
    radius_m: float = 25.0
    """How far a polar image sees, where the resolution of its satellite image is known; else to the nearest edge."""
    satellite_px: int = 512
    """Side of the satellite square that a place is shown as."""
    range_m: tuple[float, float] = (50.0, 64.0)
    """Sides of that square on the ground, in metres."""
    eyes: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"mapped": 1.0})
    """Some of `EYES`, and what each counts in a strip."""
    own_mean: float = 0.0
    """The share of its own mean over azimuth that is taken out of what the mapped and the frozen eye see: what all of
    an image has in common says more of its light and camera than of its place."""
    channels: int = 64
    """Of the mapped eye."""
    kinds: int = 0
    """How many kinds of ground and of what stands on it the mapped eye tells apart between photos and satellite images
    (`KindHead`); 0: none. Beside a street view they cost more than they tell."""
    columns: int = 32
    """Of a strip."""
    column0_deg: float = 180.0
    """Heading of column 0 of every strip."""
    standpoints_m: tuple[tuple[float, float], ...] = (
        *ring(3, 1.75, 30.0), (0.0, 0.0), *ring(3, 1.75, 90.0), *ring(6, 3.0), *ring(6, 3.5, 30.0),
    )  # fmt: skip
    """East and north of the place: where its satellite image is seen from, a row each, those to be scanned first. By
    default a hexagonal grid of 1.75 m, within 4 m."""
    scanned_standpoints: int = 3
    """So many of them are searched; the others only rescore the best places."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"street": 0.8, "satellite": 0.2})
    """Of the layers' scores in the sum."""
    absent: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"street": 0.5, "satellite": 0.35})
    """The scores that stand in where a place has nothing in a layer, of a model without a cohort."""
    cohort: int = 0
    """Places of elsewhere whose strips the model keeps. A query scores against them as against wrong places, and photos
    differ much in that: what stands in where a place has nothing is their mean and some deviations more."""
    deviations: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"street": 2.0, "satellite": 1.0})
    """How many, by layer."""
    assumed_fov_deg: float = 90.0
    """Horizontal field of view of photos that do not say theirs."""
    tried_fov_deg: tuple[float, ...] = ()
    """Others that they may have been taken with."""
    name: str = "layered"
    """What a person calls the model."""
    trained_on: str = "nothing"
    """A word or two that answers repeat."""
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the backbone's weights: source, sha256, licence; of the maps: what they were fitted on."""

    def __post_init__(self) -> None:
        for name in ("layers", "strides", "level_size", "polar_size", "range_m", "tried_fov_deg"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "standpoints_m", tuple((float(e), float(n)) for e, n in self.standpoints_m))
        if not self.layers or len(set(self.layers)) < len(self.layers) or not set(self.layers) <= set(LAYERS):
            raise ValueError(f"layers: expected some of {LAYERS}, got {self.layers}")
        if not self.eyes or not set(self.eyes) <= set(EYES) or not all(weight > 0 for weight in self.eyes.values()):
            raise ValueError(f"eyes: expected some of {EYES}, each with a number above 0, got {self.eyes!r}")
        if not 0 <= self.own_mean <= 1:
            raise ValueError(f"own_mean: expected 0 to 1, got {self.own_mean!r}")
        for name in ("channels", "columns", "satellite_px", "scanned_standpoints"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
        step = self.strides[-1] if self.strides else 0
        for name in ("level_size", "polar_size"):
            size = getattr(self, name)
            if len(size) != 2 or step < 1 or size[0] % step or size[1] % (step * self.columns):
                raise ValueError(
                    f"{name}: expected rows in multiples of {step} and columns of {step * self.columns}, got {size}"
                )
        if not 0 < self.assumed_fov_deg <= 360 or not math.isfinite(self.column0_deg) or not self.radius_m > 0:
            raise ValueError("assumed_fov_deg, column0_deg, radius_m: expected angles and metres")
        if len(self.range_m) != 2 or not 0 < self.range_m[0] <= self.range_m[1]:
            raise ValueError(f"range_m: expected (least, most) metres, got {self.range_m!r}")
        if not self.standpoints_m or not all(math.hypot(*at) < self.radius_m for at in self.standpoints_m):
            raise ValueError(f"standpoints_m: expected points within {self.radius_m} m, got {self.standpoints_m!r}")
        for name in ("cohort", "kinds"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name}: expected a whole number >= 0, got {value!r}")
        if not all(0 < fov <= 360 for fov in self.tried_fov_deg):
            raise ValueError(f"tried_fov_deg: expected angles, got {self.tried_fov_deg!r}")
        if self.kinds and (len(self.strides) != 2 or self.strides[1] != 2 * self.strides[0]):
            raise ValueError(f"kinds: expected two strides, one twice the other, got {self.strides}")
        for name in ("weights", "absent", "deviations"):
            if not set(self.layers) <= set(getattr(self, name)):
                raise ValueError(f"{name}: expected a number for {', '.join(self.layers)}, got {getattr(self, name)!r}")


class Layered(BundledModel):
    """A frozen backbone, and for each layer two linear maps: one for queries and one for places."""

    kind = "layered"
    config: LayeredConfig
    config_class = LayeredConfig
    stored_dtype = torch.float16
    stored_in_8_bits = ("query_maps", "place_maps", "cohort")

    def __init__(self, config: LayeredConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LayeredConfig()
        frozen = "frozen" in config.eyes
        self.backbone = Backbone(config.backbone, (*config.strides, _FROZEN_STRIDE) if frozen else config.strides)
        queries, places = {}, {}
        for name in config.layers:
            level, polar = self.feature_counts(name)
            queries[name] = nn.Linear(level, config.channels)
            places[name] = nn.Linear(level if name == "street" else polar, config.channels)
        self.query_maps, self.place_maps = nn.ModuleDict(queries), nn.ModuleDict(places)
        if frozen:  # of photos and panoramas, and of polar images
            count = 2 * self.backbone.channels[-1]
            self.frozen_maps = nn.ModuleDict({side: nn.Linear(count, count) for side in ("level", "polar")})
        if config.kinds:
            channels = self.backbone.channels[:2]
            self.kind_heads = nn.ModuleDict({
                side: KindHead(channels, config.kinds, horizon=side == "level") for side in ("level", "above")
            })  # fmt: skip
        if config.cohort:
            for name in config.layers:
                strips = torch.zeros(config.cohort, self.strip_channels, 1, config.columns)
                self.register_buffer(f"cohort_{name}", strips)
        self.requires_grad_(False).eval()

    def feature_counts(self, layer: str) -> tuple[int, int]:
        """Features of a column that a layer looks at: of a photo or panorama, and of a polar image. Those that tell
        kinds apart come last."""
        config = self.config
        kinds = config.kinds if layer == "satellite" else 0
        counts = []
        for (rows, _), bands in ((config.level_size, LEVEL), (config.polar_size, POLAR)):
            heights = [rows // stride for stride in config.strides]
            count = feature_count(self.backbone.channels[: len(config.strides)], heights, bands)
            fine = rows // config.strides[0] if bands is LEVEL else rows // 2
            counts.append(count + (feature_count([kinds], [fine], bands) if kinds else 0))
        return counts[0], counts[1]

    @property
    def strip_channels(self) -> int:
        """Of all eyes together."""
        counts = {"mapped": self.config.channels, "colour": COLOUR_CHANNELS}
        if "frozen" in self.config.eyes:
            counts["frozen"] = 2 * self.backbone.channels[-1]
        return sum(counts[eye] for eye in self.config.eyes)

    def seen_by(self, eyes: Mapping[str, float]) -> Layered:
        """The same weights with fewer eyes, and nothing of its own mean taken out of what they see. Not to be saved."""
        twin = copy.copy(self)
        twin.config = dataclasses.replace(self.config, eyes=dict(eyes), own_mean=0.0)
        return twin

    # --- the contract of models/contract.py ---

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of an index of this model."""
        config = self.config
        scanned = {"street": 1 << 30, "satellite": config.scanned_standpoints}
        return tuple(
            Layer(
                name,
                (self.strip_channels, 1, config.columns),
                "cosine",
                config.column0_deg,
                config.weights[name],
                config.absent[name],
                scanned[name],
            )
            for name in config.layers
        )

    @property
    def place_input(self) -> PlaceInput:
        """The images of places that the model expects."""
        config = self.config
        return PlaceInput(
            takes=tuple(name for name in ("satellite", "street") if name in config.layers),
            satellite_px=config.satellite_px,
            range_m=config.range_m,
            border="replicate",
            panorama_size=config.level_size,
            column0_deg=config.column0_deg,
            standpoints_m=config.standpoints_m,
        )

    @property
    def query_input(self) -> QueryInput:
        """The queries that the model expects."""
        config = self.config
        return QueryInput(("photo", "columns"), config.level_size, config.assumed_fov_deg, config.tried_fov_deg)

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        """ "street": a row for each panorama. "satellite": a row for each standpoint, or one where the resolution of
        the image is not known."""
        found = {}
        if "street" in self.config.layers:
            place = batch.has_panorama.nonzero().squeeze(1).cpu()
            strips = [
                self._level_strip("street", self.place_maps, self._seen(batch.panorama[n], True, kinds=False))[None]
                for n in place.tolist()
            ]
            found["street"] = Rows(self._rows(strips), place.numpy())
        if "satellite" in self.config.layers:
            places, lats, lons, strips = [], [], [], []
            for n in batch.has_satellite.nonzero().squeeze(1).tolist():
                metres = float(batch.metres_per_pixel[n])
                points = self.config.standpoints_m if math.isfinite(metres) else ((0.0, 0.0),)
                strips.append(self._polar_strips(batch.satellite[n], metres, points))
                east, north = np.array(points).T
                lat, lon = move_m(float(batch.lat[n]), float(batch.lon[n]), east, north)
                places += [n] * len(points)
                lats += lat.tolist()
                lons += lon.tolist()
            found["satellite"] = Rows(self._rows(strips), np.array(places, np.int64), np.array(lats), np.array(lons))
        return found

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """A strip per layer for each reading of each query, which is encoded by itself, so it does not depend on the
        others."""
        found = {}
        readings = [(n, one) for n, query in enumerate(queries) for one in self._readings(query)]
        of = torch.tensor([n for n, _ in readings]) if len(readings) > len(queries) else None
        images = [self.query_image(one) for _, one in readings]
        with threads_for(_PER_PIXEL * sum(image[0].numel() for image, _ in images)):
            seen = [self._seen(*image) for image in images]
        for name in self.config.layers:
            parts = [self._level_strip(name, self.query_maps, of_one) for of_one in seen]
            width = torch.tensor([part.shape[1] for part in parts], dtype=torch.int64)
            strips = torch.zeros(len(readings), self.strip_channels, 1, max((p.shape[1] for p in parts), default=1))
            for strip, part in zip(strips, parts, strict=True):
                strip[:, 0, : part.shape[1]] = part
            found[name] = QueryStrips(strips, width, self._absent(name, strips, width), of)
        return found

    def _readings(self, query: Query) -> list[Query]:
        """The query as it may have been taken: a photo that does not say its field of view with each that is tried."""
        if not isinstance(query, Photo) or query.fov_deg is not None:
            return [query]
        return [dataclasses.replace(query, fov_deg=fov_deg) for fov_deg in self.query_input.readings_deg]

    def _absent(self, layer: str, strips: Tensor, width: Tensor) -> Tensor | None:
        """[B] what stands in for a score of these queries: mean and deviations of those against the cohort."""
        if not self.config.cohort or not len(strips):
            return None
        against = self.get_buffer(f"cohort_{layer}").cpu()
        deviation, mean = torch.std_mean(
            azimuth_match(strips, against, query_width=width, select="cosine").score, dim=1
        )
        return mean + self.config.deviations[layer] * deviation

    def place_strips(self, layer: str, features: Tensor) -> Tensor:
        """[n, C, W] of column features [n, W, D] of places, of a model whose only eye is "mapped"."""
        return self._strip({"mapped": self.place_maps[layer](features)})

    def _rows(self, strips: list[Tensor]) -> Tensor:
        """[n, C, 1, W] on the CPU of strips [k, C, W]."""
        if not strips:
            return torch.empty(0, self.strip_channels, 1, self.config.columns)
        return torch.cat(strips)[:, :, None].cpu()

    # --- eyes ---

    def _seen(self, image: Tensor, circular: bool, *, kinds: bool = True) -> dict[str, Tensor]:
        """What each eye sees of azimuth columns, uint8 [3, H, w]; of the mapped eye the features, for any layer."""
        eyes = {}
        for eye in self.config.eyes:
            if eye == "mapped":
                eyes[eye] = self.level_features(image, circular=circular, kinds=kinds)
            elif eye == "frozen":
                eyes[eye] = self.frozen_maps["level"](
                    self.frozen_features(image[None], self._columns(image), circular=circular)[0]
                )
            else:
                eyes[eye] = self._colours(image, self._columns(image))
        return eyes

    def _level_strip(self, layer: str, maps: nn.ModuleDict, seen: dict[str, Tensor]) -> Tensor:
        """[C, w] of what was seen, by the maps of queries or of places."""
        eyes = dict(seen)
        if "mapped" in eyes:
            eyes["mapped"] = maps[layer](eyes["mapped"][..., : self.feature_counts(layer)[0]])
        return self._strip(eyes)

    def _polar_strips(self, satellite: Tensor, metres: float, points: Sequence[tuple[float, float]]) -> Tensor:
        """[K, C, W] of a satellite image, uint8 [3, S, S], seen from K standpoints."""
        parts: dict[str, list[Tensor]] = {eye: [] for eye in self.config.eyes}
        for images in self.polar_images(satellite, metres, points):
            for eye, seen in parts.items():
                if eye == "mapped":
                    seen.append(self._polar_features(images))
                elif eye == "frozen":
                    seen.append(
                        self.frozen_maps["polar"](self.frozen_features(images, self.config.columns, circular=True))
                    )
                else:
                    grey = images * Backbone.std[0] + Backbone.mean[0]
                    seen.append(torch.stack([self._colours(image, self.config.columns) for image in grey]))
        eyes = {eye: torch.cat(seen) for eye, seen in parts.items()}
        if "mapped" in eyes:
            features = self._with_kinds(eyes["mapped"], satellite, metres, points)
            eyes["mapped"] = self.place_maps["satellite"](features)
        return self._strip(eyes)

    def _strip(self, eyes: Mapping[str, Tensor]) -> Tensor:
        """[..., C, w] of unit norm, of what each eye sees, [..., w, C]."""
        parts = []
        for eye, seen in eyes.items():
            if eye != "colour":  # whose rows are standardised as it is
                seen = seen - self.config.own_mean * seen.mean(-2, keepdim=True)
            parts.append(math.sqrt(self.config.eyes[eye]) * _unit(seen))
        return _unit(torch.cat(parts, -1).transpose(-1, -2))

    def _colours(self, image: Tensor, columns: int) -> Tensor:
        """[columns, C] of an image [3, H, w] in grey levels."""
        cells = colour_cells(image.permute(1, 2, 0).cpu().numpy(), columns)
        return torch.from_numpy(cells).flatten(0, 1).T.to(self._device)

    # --- features, which a fit needs too ---

    def query_features(self, query: Query) -> Tensor:
        """Column features [width, D] of a photo or of azimuth columns."""
        image, circular = self.query_image(query)
        return self.level_features(image, circular=circular)

    def query_image(self, query: Query) -> tuple[Tensor, bool]:
        """Uint8 [3, H, w] of whole strip columns, about its field of view, its centre in their middle: a remainder is
        cut, or continued in black, evenly. And whether it is a whole turn."""
        config = self.config
        if isinstance(query, AzimuthColumns):
            image = query.columns
        elif isinstance(query, Photo) and isinstance(query.image, np.ndarray):
            fov_deg = config.assumed_fov_deg if query.fov_deg is None else query.fov_deg
            image = to_cylindrical(query.image, fov_deg, size=config.level_size)
        else:
            raise TypeError(f"queries: expected decoded photos or azimuth columns, got {type(query).__name__}")
        rows, turn = config.level_size
        if image.ndim != 3 or image.shape[0] != rows or image.shape[2] != 3 or not 1 <= image.shape[1] <= turn:
            raise ValueError(f"queries: expected azimuth columns [{rows}, 1..{turn}, 3], got {list(image.shape)}")
        cell = turn // config.columns
        have = image.shape[1]
        want = cell * min(max((have + cell // 2) // cell, 1), config.columns)
        if want < have:
            image = image[:, (have - want) // 2 : (have - want) // 2 + want]
        elif want > have:
            left = (want - have) // 2
            image = np.pad(image, ((0, 0), (left, want - have - left), (0, 0)))
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), have == turn

    def level_features(self, image: Tensor, *, circular: bool, kinds: bool = True) -> Tensor:
        """Column features [w, D] of uint8 [3, H, w] azimuth columns, a whole turn if `circular`; without those of
        kinds, where they are not asked for."""
        maps = self.backbone(image[None].to(self._device), circular=circular, strides=self.config.strides)
        features = column_features(maps, self._columns(image), LEVEL)[0]
        if not (self.config.kinds and kinds):
            return features
        shares = self.kind_heads["level"](maps, circular=circular)
        return torch.cat((features, column_features([shares], self._columns(image), LEVEL)[0]), -1)

    def _columns(self, image: Tensor) -> int:
        """Strip columns of azimuth columns [3, H, w]."""
        return image.shape[2] * self.config.columns // self.config.level_size[1]

    def frozen_features(self, images: Tensor, columns: int, *, circular: bool) -> Tensor:
        """Column features [B, columns, D] of images [B, 3, H, w], uint8 or normalised: stride 16, the lower half in two
        rows, at the size that has a feature for each strip column."""
        if not images.is_floating_point():
            images = (images.to(self._device) - Backbone.mean[0]) / Backbone.std[0]
        size = (_FROZEN_STRIDE * self.config.columns // 4, _FROZEN_STRIDE * columns)
        small = images if images.shape[2:] == size else F.interpolate(images, size, mode="area")
        lower = self.backbone(small, circular=circular, strides=(_FROZEN_STRIDE,))[0]
        lower = lower[:, :, lower.shape[2] // 2 :]
        return torch.cat([rows.mean(2) for rows in lower.chunk(2, dim=2)], 1).transpose(1, 2)

    def polar_features(
        self,
        satellite: Tensor,
        metres_per_pixel: float,
        standpoints_m: Sequence[tuple[float, float]] = ((0.0, 0.0),),
        heading_deg: Sequence[float] | None = None,
    ) -> Tensor:
        """Column features [K, W, D] of a satellite image, uint8 [3, S, S], seen from K standpoints.

        `heading_deg` turns each polar image: its column 0 then looks at `column0_deg` + heading. Without a known
        resolution (NaN) the standpoints must be the centre.
        """
        images = self.polar_images(satellite, metres_per_pixel, standpoints_m, heading_deg)
        features = torch.cat([self._polar_features(part) for part in images])
        return self._with_kinds(features, satellite, metres_per_pixel, standpoints_m, heading_deg)

    def _polar_features(self, images: Tensor) -> Tensor:
        maps = self.backbone(images, circular=True, strides=self.config.strides)
        return column_features(maps, self.config.columns, POLAR)

    def _with_kinds(
        self,
        features: Tensor,
        satellite: Tensor,
        metres_per_pixel: float,
        standpoints_m: Sequence[tuple[float, float]],
        heading_deg: Sequence[float] | None = None,
    ) -> Tensor:
        """The column features [K, W, D], and what they are of. The image is looked at once, north up, and the shares
        are seen from each standpoint: what the ground is does not depend on where one stands."""
        config = self.config
        if not config.kinds:
            return features
        center, radius = self._seen_from(satellite.shape[-1], metres_per_pixel, standpoints_m)
        maps = self.backbone(satellite[None].to(self._device), circular=False, strides=config.strides)
        shares = self.kind_heads["above"](maps)
        cell = config.strides[0]
        polar = polar_resample(
            shares.expand(len(center), -1, -1, -1).contiguous(),
            (config.polar_size[0] // 2, config.polar_size[1] // cell),
            column0_deg=config.column0_deg,
            center=(center.to(self._device) - (cell - 1) / 2) / cell,
            max_radius=radius / cell,
            heading_deg=None if heading_deg is None else torch.tensor(heading_deg, dtype=torch.float32),
            border="replicate",
        )
        return torch.cat((features, column_features([polar], config.columns, POLAR)), -1)

    def _seen_from(
        self, side: int, metres_per_pixel: float, standpoints_m: Sequence[tuple[float, float]]
    ) -> tuple[Tensor, float]:
        """Standpoints as pixels (row, column), [K, 2], and how many pixels a polar image sees."""
        known = math.isfinite(metres_per_pixel) and metres_per_pixel > 0
        if not known and any(at != (0.0, 0.0) for at in standpoints_m):
            raise ValueError("standpoints_m: expected the centre alone for an image of unknown resolution")
        metres = metres_per_pixel if known else 1.0
        center = [(side / 2 - north / metres, side / 2 + east / metres) for east, north in standpoints_m]
        radius = min(self.config.radius_m / metres, side / 2) if known else side / 2
        return torch.tensor(center, dtype=torch.float32), radius

    def polar_images(
        self,
        satellite: Tensor,
        metres_per_pixel: float,
        standpoints_m: Sequence[tuple[float, float]] = ((0.0, 0.0),),
        heading_deg: Sequence[float] | None = None,
    ) -> Iterator[Tensor]:
        """Normalised polar images [k, 3, H, W], a few at a time."""
        config = self.config
        center, radius = self._seen_from(satellite.shape[-1], metres_per_pixel, standpoints_m)
        images = satellite[None].to(self._device)
        for start in range(0, len(center), _POLAR_BATCH):
            part = slice(start, start + _POLAR_BATCH)
            yield polar_resample(
                images.expand(len(center[part]), -1, -1, -1),
                config.polar_size,
                column0_deg=config.column0_deg,
                center=center[part].to(self._device),
                max_radius=radius,
                heading_deg=None if heading_deg is None else torch.tensor(heading_deg[part], dtype=torch.float32),
                border="replicate",
                mean=Backbone.mean,
                std=Backbone.std,
            )

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    # --- files ---


def _unit(strip: Tensor) -> Tensor:
    """At unit norm over its last two axes; zero stays zero."""
    return nn.functional.normalize(strip.float().flatten(-2), dim=-1).view_as(strip)
