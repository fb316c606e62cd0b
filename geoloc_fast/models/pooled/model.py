"""A network with global pooling as a model: one code per image, no heading, one layer of strips of one column.

    photo                                    -> network -> pooling -> projection -> code
    satellite image, or views of a panorama  -> network -> pooling -> projection -> codes

Weights are those of published models, by path (`load_checkpoint`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.models.bundle import BundleConfig, BundledModel
from geoloc_fast.models.contract import AzimuthColumns, Photo, PlaceBatch, PlaceInput, Query, QueryInput

__all__ = ["Pooled", "PooledConfig"]

_SOURCES = ("street", "satellite")


@dataclasses.dataclass(frozen=True)
class PooledConfig(BundleConfig):
    """Everything that is needed to rebuild the model around its weights."""

    network: str = "resnet50"
    """A timm model."""
    gem: bool = False
    """Generalised-mean pooling of normalised features, as the street-level models have it; else the network's own."""
    dimensions: int = 0
    """Of a projection behind the pooling; 0: there is none."""
    image_size: tuple[int, int] = (480, 640)
    """Rows and columns that every image is scaled to."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    source: str = "street"
    """Which images of a place it looks at: "street" or "satellite"."""
    views: int = 8
    """Of a panorama, one row each, evenly round."""
    view_deg: float = 90.0
    """Width of a view, and what photos that do not say theirs are taken for."""
    panorama_size: tuple[int, int] = (512, 2048)
    satellite_px: int = 384
    name: str = "pooled"
    """What a person calls the model."""
    trained_on: str = "what its weights were trained on"
    """A word or two that answers repeat."""
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the weights: source, sha256, licence."""

    def __post_init__(self) -> None:
        for name, count in (("image_size", 2), ("panorama_size", 2), ("mean", 3), ("std", 3)):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != count or not all(number > 0 for number in value):
                raise ValueError(f"{name}: expected {count} numbers above 0, got {value!r}")
        if self.source not in _SOURCES:
            raise ValueError(f"source: expected one of {_SOURCES}, got {self.source!r}")
        if self.views < 1 or self.satellite_px < 1 or self.dimensions < 0 or not 0 < self.view_deg <= 360:
            raise ValueError(
                "views, satellite_px, dimensions, view_deg: expected numbers of images, pixels and degrees"
            )
        if ":" in self.network:
            raise ValueError(f"network: expected the plain name of a timm model, got {self.network!r}")


class Pooled(BundledModel):
    """A network, its pooling and a projection."""

    kind = "pooled"
    config: PooledConfig
    config_class = PooledConfig
    stored_dtype = torch.float16

    def __init__(self, config: PooledConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PooledConfig()
        kept: dict[str, Any] = {"global_pool": ""} if config.gem else {}
        network: Any = timm.create_model(config.network, pretrained=False, num_classes=0, **kept)
        features = int(network.num_features)
        self.network = network
        if config.gem:
            self.power = nn.Parameter(torch.full((1,), 3.0))
        self.projection = nn.Linear(features, config.dimensions) if config.dimensions else nn.Identity()
        self.channels = config.dimensions or features
        self.requires_grad_(False).eval()

    # --- the contract of models/contract.py ---

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of an index of this model."""
        return (Layer(self.config.source, (self.channels, 1, 1)),)

    @property
    def place_input(self) -> PlaceInput:
        """The images of places that the model expects."""
        config = self.config
        return PlaceInput(takes=(config.source,), satellite_px=config.satellite_px, panorama_size=config.panorama_size)

    @property
    def query_input(self) -> QueryInput:
        """The queries that the model expects."""
        return QueryInput(("photo", "columns"), self.config.panorama_size, self.config.view_deg)

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        """A row for each satellite image, or for each view of a panorama."""
        config = self.config
        has = batch.has_satellite if config.source == "satellite" else batch.has_panorama
        places = has.nonzero().squeeze(1).cpu()
        codes, numbers = [torch.empty(0, self.channels)], []
        for n in places.tolist():
            images = batch.satellite[n][None] if config.source == "satellite" else self._views(batch.panorama[n])
            codes.append(self(images).cpu())
            numbers += [n] * len(images)
        return {config.source: Rows(torch.cat(codes)[:, :, None, None], np.array(numbers, np.int64))}

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """A code for each query, encoded by itself."""
        codes = torch.zeros(len(queries), self.channels)
        for n, query in enumerate(queries):
            image = query.columns if isinstance(query, AzimuthColumns) else getattr(query, "image", None)
            if not isinstance(query, (Photo, AzimuthColumns)) or not isinstance(image, np.ndarray):
                raise TypeError(f"queries: expected decoded photos or azimuth columns, got {type(query).__name__}")
            codes[n] = self(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None])[0].cpu()
        return {self.config.source: QueryStrips(codes[:, :, None, None])}

    def _views(self, panorama: Tensor) -> Tensor:
        """[views, 3, H, w] of a panorama [3, H, W], which is a whole turn."""
        turn = panorama.shape[2]
        width = max(1, round(self.config.view_deg / 360 * turn))
        starts = [round(turn * view / self.config.views) for view in range(self.config.views)]
        return torch.stack([panorama.roll(-start, 2)[:, :, :width] for start in starts])

    def forward(self, images: Tensor) -> Tensor:
        """Codes [B, C] of unit norm, of images uint8 [B, 3, h, w] of any size."""
        weight = next(self.network.parameters())
        x = images.to(weight.device).to(weight.dtype) / 255
        if x.shape[2:] != self.config.image_size:
            x = F.interpolate(x, self.config.image_size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (self.config.mean, self.config.std))
        x = self.network((x - mean) / std)
        if self.config.gem:
            x = F.normalize(x, dim=1).clamp(min=1e-6) ** self.power
            x = x.mean((2, 3)) ** (1 / self.power)
        return F.normalize(self.projection(x).float(), dim=1)

    # --- files ---
