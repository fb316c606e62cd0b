"""The model of the main paper: places and photos to strips that azimuth matching compares.

    place:  polar satellite image, panorama -> encoder (circular) -> fusion -> strip [C, H, W]
    photo:  cylindrical columns             -> encoder              -> strip [C, H, Wq]

Everything is in one frame: column 0 of polar image, panorama and strip looks at `column0_deg`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.models.bundle import BundleConfig, BundledModel
from geoloc_fast.models.contract import AzimuthColumns, Photo, PlaceBatch, PlaceInput, Query, QueryInput
from geoloc_fast.models.geolocalizer.encoder import IMAGE_MEAN, IMAGE_STD, Encoder, normalise_image
from geoloc_fast.models.geolocalizer.fusion import FUSIONS
from geoloc_fast.models.threads import threads_for
from geoloc_fast.polar import polar_resample

__all__ = ["Geolocalizer", "GeolocalizerConfig", "PhotoStrips"]

SHARING = ("all", "references", "none")
SOURCES = ("both", "satellite", "street")
BORDERS = ("replicate", "zeros")
# Settings of timm that fetch or unpickle files: a config, which may come with a stranger's bundle, must not.
_FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class PhotoStrips(NamedTuple):
    """Strips of photos of different fields of view, in one batch."""

    strips: Tensor
    """`[B, C, H, Wq]` at unit norm over each photo's own columns, zero beyond them."""
    width: Tensor
    """Own columns of each photo, int64 `[B]` on the strips' device: the `query_width` of
    `azimuth_match` and the `width` of `shift_to_heading`."""


@dataclasses.dataclass(frozen=True)
class GeolocalizerConfig(BundleConfig):
    """Everything that is needed to rebuild the network around its weights."""

    backbone: str = "convnext_base"
    """A timm model name."""
    backbone_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Passed to `timm.create_model`; JSON values only."""
    backbone_stride: int = 16
    """Which of the backbone's feature maps feeds the strip head."""
    image_size: tuple[int, int] = (128, 512)
    """Height and width of panoramas and polar images; a photo has this height."""
    strip: tuple[int, int, int] = (16, 4, 16)
    """Channels, height and columns of a strip."""
    sharing: str = "all"
    """"all": one encoder for photo, panorama and polar satellite image; "references": one for photos, one for
    the two images of a place; "none": three."""
    fusion: str = "iaff"
    """How the strips of a place's two images become one: a name of `geoloc_fast.models.geolocalizer.fusion`."""
    sources: str = "both"
    """What a place is encoded from: "both", "satellite" or "street"."""
    column0_deg: float = 180.0
    """Heading of column 0 of everything this model sees and gives."""
    assumed_fov_deg: float = 90.0
    """Horizontal field of view to reproject a photo with when its own is not known."""
    satellite_px: int = 336
    """Side of the satellite square that a place is shown as."""
    range_m: tuple[float, float] | None = None
    """Sides of that square on the ground, in metres, that it was trained on; None: any."""
    border: str = "replicate"
    """Beyond the satellite square: "replicate" or "zeros"."""
    name: str = "geolocalizer"
    """What a person calls the model."""
    trained_on: str = "nothing"
    """A word or two that answers repeat."""
    initial_scale: float = 1 / 0.07
    """Start of the learned logit scale of the shift selection in training."""
    initial_temperature: float = 0.07
    """Start of the learned temperature of the loss."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "strip", tuple(self.strip))
        object.__setattr__(self, "backbone_kwargs", dict(self.backbone_kwargs))
        if len(self.image_size) != 2 or not _positive_integers(self.image_size):
            raise ValueError(f"image_size: expected (height, width), got {self.image_size}")
        if len(self.strip) != 3 or not _positive_integers(self.strip):
            raise ValueError(f"strip: expected (channels, height, columns), got {self.strip}")
        object.__setattr__(self, "range_m", None if self.range_m is None else tuple(self.range_m))
        choices = (("sharing", SHARING), ("fusion", tuple(FUSIONS)), ("sources", SOURCES), ("border", BORDERS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        if ":" in self.backbone:
            raise ValueError(f"backbone: expected the plain name of a timm model, got {self.backbone!r}")
        if fetching := sorted(set(_FETCHING) & set(self.backbone_kwargs)):
            raise ValueError(
                f"backbone_kwargs: expected settings of the architecture, got {fetching[0]!r}; "
                "pretrained weights are an argument of Geolocalizer"
            )
        if not isinstance(self.column0_deg, int | float) or not math.isfinite(self.column0_deg):
            raise ValueError(f"column0_deg: expected an angle, got {self.column0_deg!r}")
        if not _positive_integers((self.satellite_px,)):
            raise ValueError(f"satellite_px: expected pixels, got {self.satellite_px!r}")
        if self.range_m is not None and not (len(self.range_m) == 2 and 0 < self.range_m[0] <= self.range_m[1]):
            raise ValueError(f"range_m: expected (least, most) metres, got {self.range_m!r}")
        if not 0 < self.assumed_fov_deg <= 360:
            raise ValueError(f"assumed_fov_deg: expected in (0, 360], got {self.assumed_fov_deg}")
        for name in ("initial_scale", "initial_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)}")

    @property
    def place_input(self) -> PlaceInput:
        """The images of places that the model expects, in training and afterwards."""
        takes = {"both": ("satellite", "street"), "satellite": ("satellite",), "street": ("street",)}[self.sources]
        return PlaceInput(
            takes=takes,
            satellite_px=self.satellite_px,
            range_m=self.range_m,
            border=self.border,
            panorama_size=self.image_size,
            column0_deg=self.column0_deg,
        )


def _positive_integers(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and value > 0 for value in values)


class Geolocalizer(BundledModel):
    """Encodes places and photos to strips. The azimuth operators match and search them, and give headings.

    Images are uint8, or floating point normalised with `IMAGE_MEAN` and `IMAGE_STD` (see
    `geoloc_fast.models.geolocalizer.encoder`). What a photo does not see is black.
    """

    def __init__(
        self, config: GeolocalizerConfig | None = None, *, pretrained: str | os.PathLike[str] | bool = False
    ) -> None:
        """Fresh weights; of the encoders those of the safetensors file `pretrained` (each its own, see
        `Encoder.load_pretrained`), or, if it is True, of the backbones those that timm downloads."""
        super().__init__()
        self.config = config = config or GeolocalizerConfig()

        def encoder(part: str) -> Encoder:
            made = Encoder(
                config.backbone,
                image_size=config.image_size,
                strip=config.strip,
                backbone_stride=config.backbone_stride,
                backbone_kwargs=config.backbone_kwargs,
                pretrained=pretrained is True,
            )
            if not isinstance(pretrained, bool):
                made.load_pretrained(pretrained, part)
            return made

        self.encoder = encoder("encoder")  # of photos, and with sharing "all" of everything
        if config.sharing == "references":
            self.reference_encoder = encoder("reference_encoder")
        elif config.sharing == "none":
            if config.sources != "street":
                self.satellite_encoder = encoder("satellite_encoder")
            if config.sources != "satellite":
                self.street_encoder = encoder("street_encoder")
        if config.sources == "both":
            self.fusion: nn.Module = FUSIONS[config.fusion](config.strip[0])
        # As logarithms: a step then changes them by a ratio and they cannot leave (0, inf).
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.initial_scale)))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.initial_temperature)))

    # --- the contract of models/contract.py ---

    kind = "geolocalizer"
    config: GeolocalizerConfig
    config_class = GeolocalizerConfig

    @property
    def layers(self) -> tuple[Layer, ...]:
        """One layer: the sources of a place are fused into one strip."""
        name = {"both": "place", "satellite": "satellite", "street": "street"}[self.config.sources]
        return (Layer(name, self.config.strip, "cosine", self.config.column0_deg),)

    @property
    def place_input(self) -> PlaceInput:
        """The images of places that the model expects."""
        return self.config.place_input

    @property
    def query_input(self) -> QueryInput:
        """The queries that the model expects."""
        return QueryInput(("photo", "columns"), self.config.image_size, self.config.assumed_fov_deg)

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        """One row for each place that has a source of this model."""
        device, config = self.log_scale.device, self.config
        polar = polar_resample(
            batch.satellite.to(device),
            config.image_size,
            column0_deg=config.column0_deg,
            border=config.border,
            mean=IMAGE_MEAN,
            std=IMAGE_STD,
        )
        has_satellite, has_panorama = batch.has_satellite.to(device), batch.has_panorama.to(device)
        if config.sources != "both":
            seen = has_satellite if config.sources == "satellite" else has_panorama
        else:
            seen = has_satellite | has_panorama
        strips = self.encode_place(
            polar, batch.panorama.to(device), has_satellite=has_satellite, has_panorama=has_panorama
        )
        place = seen.nonzero().squeeze(1)
        return {self.layers[0].name: Rows(strips[place].cpu(), place.cpu().numpy())}

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """Strips [B, C, H, Wq] of photos or azimuth columns, in the model's one layer."""
        device, rows = self.log_scale.device, self.config.image_size[0]
        shown = [self._columns(query) for query in queries]
        widths = torch.tensor([image.shape[1] for image in shown], dtype=torch.int64)
        batch = np.zeros((len(shown), rows, max((image.shape[1] for image in shown), default=1), 3), np.uint8)
        for row, image in zip(batch, shown, strict=True):
            row[:, : image.shape[1]] = image
        # About: every weight at every position of the features.
        positions = batch.size // 3 // self.config.backbone_stride**2
        with threads_for(positions * self._weight_count):
            found = self.encode_photo(torch.from_numpy(batch).permute(0, 3, 1, 2).to(device), widths)
        return {self.layers[0].name: QueryStrips(found.strips.cpu(), found.width.cpu())}

    @cached_property
    def _weight_count(self) -> int:  # counting them takes a tenth of the time of a photo
        return sum(weights.numel() for weights in self.parameters())

    def _columns(self, query: Query) -> np.ndarray:
        """uint8 [H, w, 3] in azimuth columns."""
        if isinstance(query, AzimuthColumns):
            return query.columns
        if not isinstance(query, Photo) or not isinstance(query.image, np.ndarray):
            raise TypeError(f"queries: expected decoded photos or azimuth columns, got {type(query).__name__}")
        fov_deg = self.config.assumed_fov_deg if query.fov_deg is None else query.fov_deg
        return to_cylindrical(query.image, fov_deg, size=self.config.image_size)

    @property
    def scale(self) -> Tensor:
        """Logit scale of the shift selection, for `azimuth_match(select="gumbel", scale=...)`."""
        return self.log_scale.exp().clamp(max=100.0)

    @property
    def temperature(self) -> Tensor:
        """Temperature of the loss, never below 0.01."""
        return self.log_temperature.exp().clamp(min=0.01)

    def encode_place(
        self,
        polar_satellite: Tensor | None = None,
        panorama: Tensor | None = None,
        *,
        has_satellite: Tensor | None = None,
        has_panorama: Tensor | None = None,
    ) -> Tensor:
        """Strips `[N, C, H, W]` of places, from `[N, 3, *image_size]` images in the same frame.

        Either source may be None, and `has_satellite`, `has_panorama` (bool `[N]`) mark the places of
        a batch for which it is to be looked at. A missing source is replaced by the other one's strip,
        and the two are fused as ever. A place with no source that this model looks at has a strip of
        zeros: it scores 0 for every photo.
        """
        return self.fuse(
            *self.encode_sources(polar_satellite, panorama), has_satellite=has_satellite, has_panorama=has_panorama
        )

    def encode_sources(
        self, polar_satellite: Tensor | None, panorama: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Strips of the satellite images and of the panoramas, before fusion; None for what is not given or not a
        source of this model."""
        sources = self.config.sources
        above = polar_satellite if sources != "street" else None
        street = panorama if sources != "satellite" else None
        if above is None and street is None:
            wanted = {"both": "it or panorama", "satellite": "it", "street": "panorama"}[sources]
            raise ValueError(f"polar_satellite: expected {wanted} given for sources={sources!r}, got neither")
        if above is not None and street is not None:
            if above.shape != street.shape:
                raise ValueError(
                    f"panorama: expected the shape of polar_satellite {list(above.shape)}, got {list(street.shape)}"
                )
            if self._encoder_of("satellite") is self._encoder_of("street"):
                both = torch.cat((normalise_image(above), normalise_image(street)))
                above, street = self._encoder_of("street")(both, circular=True).chunk(2)
                return above, street
        return (
            None if above is None else self._encoder_of("satellite")(above, circular=True),
            None if street is None else self._encoder_of("street")(street, circular=True),
        )

    def _encoder_of(self, source: str) -> Encoder:
        name = {"all": "encoder", "references": "reference_encoder", "none": f"{source}_encoder"}[self.config.sharing]
        encoder: Encoder = getattr(self, name)
        return encoder

    def fuse(
        self,
        above: Tensor | None,
        street: Tensor | None,
        *,
        has_satellite: Tensor | None = None,
        has_panorama: Tensor | None = None,
    ) -> Tensor:
        """Strips of places from the strips of their sources (`encode_sources`); the rest as in `encode_place`."""
        given = above if street is None else street
        if given is None:
            raise ValueError("above: expected it or street given, got neither")
        there = []
        for name, has, strip in (("has_satellite", has_satellite, above), ("has_panorama", has_panorama, street)):
            if has is None:
                has = torch.full((len(given),), strip is not None, device=given.device)
            elif has.dtype != torch.bool or has.shape != (len(given),):
                raise ValueError(f"{name}: expected bool [{len(given)}], got {has.dtype} {list(has.shape)}")
            elif strip is None:
                has = torch.zeros_like(has)
            there.append(has[:, None, None, None])
        if self.config.sources == "both":
            # NaN in an image that is not to be looked at must not come through: where, not a product.
            first = given if above is None else torch.where(there[0], above, given)
            second = given if street is None or above is None else torch.where(there[1], street, above)
            given = self.fusion(first, second)
        return torch.where(there[0] | there[1], given, 0)

    def encode_photo(self, photo: Tensor, width: Tensor | None = None) -> PhotoStrips:
        """Strips of photos `[B, 3, H, w]` whose columns are azimuth at the panorama's scale.

        `width [B]` is how many of the image columns belong to each photo, counted from the left;
        default all of them. What lies right of a photo's width is never read. A width becomes
        round(width * W / image width) strip columns (halves up), at least 1 and at most W; when
        that is not exact the photo is cut, or continued in black, evenly on both sides, so its
        centre stays the centre of its strip.

        Photos of one strip width are encoded together, at that width. So a photo's strip does not
        depend on what it is batched with, and padding costs nothing. The loop reads `width` on the
        host: keep it on the CPU to spare a synchronisation.
        """
        channels, height, columns = self.config.strip
        cell = self.encoder.columns_per_strip_column
        batch = len(photo)
        if width is None:
            width = torch.full((batch,), photo.shape[-1])
        elif width.shape != (batch,) or width.is_floating_point():
            raise ValueError(f"width: expected integers [{batch}], got {width.dtype} {list(width.shape)}")
        own = width.tolist()
        if batch and not 1 <= min(own) <= max(own) <= photo.shape[-1]:
            raise ValueError(
                f"width: expected from 1 to the {photo.shape[-1]} columns of photo, got {min(own)} to {max(own)}"
            )
        strip_width = [min(max((w + cell // 2) // cell, 1), columns) for w in own]
        photo = normalise_image(photo)
        if batch == 0:
            return PhotoStrips(photo.new_zeros(0, channels, height, 1), width.to(photo.device))
        parts, order = [], []
        for n in sorted(set(strip_width)):
            rows = [i for i in range(batch) if strip_width[i] == n]
            canvas = _centred(photo[rows], [own[i] for i in rows], n * cell)
            part = self.encoder(canvas, circular=False)
            parts.append(F.pad(part, (0, max(strip_width) - n)))
            order += rows
        inverse = torch.tensor(order, device=photo.device).argsort()
        return PhotoStrips(torch.cat(parts)[inverse], torch.tensor(strip_width, device=photo.device))


def _centred(photo: Tensor, width: list[int], target: int) -> Tensor:
    """The first `width[b]` columns of each photo, cut or continued in black to `target` columns,
    evenly on both sides."""
    own = torch.tensor(width, device=photo.device)[:, None]
    # Towards zero: the half column that an odd difference leaves then lies to the left as often as
    # to the right, and headings have no bias.
    start = torch.div(own - target, 2, rounding_mode="trunc")
    column = start + torch.arange(target, device=photo.device)
    inside = (column >= 0) & (column < own)
    column = column.clamp(0, photo.shape[-1] - 1)
    taken = photo.gather(3, column[:, None, None, :].expand(-1, *photo.shape[1:3], -1))
    black = torch.tensor([-m / s for m, s in zip(IMAGE_MEAN, IMAGE_STD, strict=True)])
    return torch.where(inside[:, None, None, :], taken, black.to(photo).view(1, 3, 1, 1))
