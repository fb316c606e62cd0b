"""The cell model: photos, aerial tiles and cells as codes of one space.

    photo -> backbone -> tokens -> SALAD -> z_Q          unit length
    tile  -> backbone -> tokens -> SALAD -> z_A          unit length, weights of its own
    cell  -> row of the prototypes       -> z_P          unit length
    code of a cell: z_A + kappa z_P, compared with z_Q by dot

A cell without a tile has no z_A, one below no prototype no z_P. The mean of all that are there stands in, so that
missing speaks neither for a cell nor against it: codes share a direction, and a zero would count as the worst of all.
The sum is not normalised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.geo import s2
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.models.backbones import Backbone
from geoloc_fast.models.bundle import BundleConfig, BundledModel
from geoloc_fast.models.cells.prototypes import Prototypes, checked_levels
from geoloc_fast.models.cells.salad import Salad
from geoloc_fast.models.contract import Photo, PlaceBatch, PlaceInput, Query, QueryInput

__all__ = ["CellGeolocalizer", "CellsConfig"]


@dataclasses.dataclass(frozen=True)
class CellsConfig(BundleConfig):
    """Everything that is needed to rebuild the model around its weights."""

    prototype_level: int = 15
    """S2 level of the prototypes' cells."""
    cell_level: int = 16
    """S2 level of the cells that are searched."""
    prototypes: int = 0
    """How many there are."""
    backbone: str = "tf_efficientnet_lite0"
    """A timm EfficientNet."""
    strides: tuple[int, ...] = (8, 16)
    """Of its maps; a token is what all of them have at one place of the last."""
    own_backbones: bool = False
    """Photos and tiles have a backbone each; else they share one, which is right where it is frozen."""
    photo_size: tuple[int, int] = (96, 128)
    """Rows and columns that photos are resized to."""
    tile_px: int = 96
    """Side that aerial tiles are resized to."""
    clusters: int = 14
    cluster_dim: int = 16
    global_dim: int = 32
    """A code has clusters * cluster_dim + global_dim values."""
    hidden: int = 256
    """Width of the heads' networks."""
    kappa: float = 1.0
    """Weight of the prototypes in a cell's code: fitted, see `calibrate`."""
    temperature: float = 0.05
    """Of the softmax over cells: fitted with kappa."""
    name: str = "cells"
    trained_on: str = "nothing"
    """A word or two that answers repeat."""
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the backbone's weights: source, sha256, licence."""

    def __post_init__(self) -> None:
        for name in ("strides", "photo_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        checked_levels(self.prototype_level, self.cell_level)
        for name in ("clusters", "cluster_dim", "hidden", "tile_px"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {getattr(self, name)!r}")
        if not 16 <= self.dim <= 4096 or self.global_dim < 0:
            raise ValueError(f"clusters, cluster_dim, global_dim: expected codes of 16 to 4096 values, got {self.dim}")
        if not (math.isfinite(self.kappa) and self.kappa >= 0 and 0 < self.temperature < math.inf):
            raise ValueError(f"kappa, temperature: expected numbers from 0, got {self.kappa!r}, {self.temperature!r}")
        for name, size in (("photo_size", self.photo_size), ("tile_px", (self.tile_px, self.tile_px))):
            tokens = math.prod(math.ceil(side / self.strides[-1]) for side in size)
            if tokens <= self.clusters:
                raise ValueError(
                    f"{name}: expected more tokens than clusters, got {tokens} tokens of {size} pixels at stride "
                    f"{self.strides[-1]} and {self.clusters} clusters: larger images, smaller strides, fewer clusters"
                )

    @property
    def dim(self) -> int:
        """Values of a code."""
        return self.clusters * self.cluster_dim + self.global_dim


class CellGeolocalizer(BundledModel):
    """Codes of cells and photos: the model of kind "cells"."""

    kind = "cells"
    config: CellsConfig
    config_class = CellsConfig
    stand_in: Tensor
    """[2, D]: in place of a missing z_A, and of a missing z_P."""

    def __init__(self, config: CellsConfig | None = None, cells: np.ndarray | None = None) -> None:
        """`cells`: ids of the prototypes, uint64; None with weights that are about to be loaded."""
        super().__init__()
        config = config or CellsConfig()
        if cells is not None:
            config = dataclasses.replace(config, prototypes=len(np.unique(cells)))
        self.config = config
        self.backbone = Backbone(config.backbone, config.strides)
        self.aerial_backbone = Backbone(config.backbone, config.strides) if config.own_backbones else None
        sizes = {"clusters": config.clusters, "cluster_dim": config.cluster_dim, "global_dim": config.global_dim}
        channels = sum(self.backbone.channels)
        self.ground_head = Salad(channels, hidden=config.hidden, **sizes)
        self.aerial_head = Salad(channels, hidden=config.hidden, **sizes)
        found = config.prototypes if cells is None else cells
        self.prototypes = Prototypes(found, config.dim, config.prototype_level)
        self.register_buffer("stand_in", torch.zeros(2, config.dim))

    # --- tokens and codes ---

    def tokens(self, images: Tensor, *, aerial: bool = False) -> Tensor:
        """uint8 [B, 3, H, W] to [B, n, channels]: what the backbone's maps have at each place of the coarsest."""
        backbone = self.aerial_backbone if aerial and self.aerial_backbone is not None else self.backbone
        maps = backbone(images, circular=False)
        size = maps[-1].shape[-2:]
        same = [F.adaptive_avg_pool2d(one, size) for one in maps[:-1]] + [maps[-1]]
        return torch.cat(same, dim=1).flatten(2).transpose(1, 2)

    def ground(self, tokens: Tensor) -> Tensor:
        """z_Q [B, D] of a photo's tokens."""
        return self.ground_head(tokens)

    def aerial(self, tokens: Tensor) -> Tensor:
        """z_A [B, D] of a tile's tokens."""
        return self.aerial_head(tokens)

    def codes(self, ids: np.ndarray, aerial: Tensor, has_aerial: Tensor) -> Tensor:
        """z_A + kappa z_P [n, D] of cells. `aerial` [n, D] counts where `has_aerial` [n]."""
        level = np.unique(s2.level(ids))
        if len(level) and level.tolist() != [self.config.cell_level]:
            raise ValueError(f"ids: expected cells of level {self.config.cell_level}, got {level.tolist()}")
        from_above = torch.where(has_aerial[:, None], aerial, self.stand_in[0])
        prototype = torch.where(self._known(ids)[:, None], self.prototypes.of(ids), self.stand_in[1])
        return from_above + self.config.kappa * prototype

    def _known(self, ids: np.ndarray) -> Tensor:
        """Whether each cell lies below a prototype: bool [n]."""
        rows = self.prototypes.rows(s2.parent(ids, self.config.prototype_level))
        return torch.from_numpy(rows >= 0).to(self.stand_in.device)

    def calibrated(self, kappa: float, temperature: float, stand_in: Tensor | None = None) -> None:
        """Takes what was fitted; the model is another one then, and so must its index be."""
        self.config = dataclasses.replace(self.config, kappa=kappa, temperature=temperature)
        if stand_in is not None:
            self.stand_in.copy_(stand_in)
        self.fingerprint = None

    def same_codes(self, other: CellGeolocalizer) -> bool:
        """Whether both make the same z_Q, z_A and z_P, whatever they make of them."""
        one, two = (
            dataclasses.replace(model.config, kappa=1.0, temperature=1.0, name="", trained_on="")
            for model in (self, other)
        )
        if one != two:
            return False
        theirs = other.state_dict()
        return all(torch.equal(value.cpu(), theirs[name].cpu()) for name, value in self.state_dict().items())

    # --- the contract of models/contract.py ---

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of an index of this model."""
        return (Layer("cell", (self.config.dim, 1, 1), "dot", None, 1.0, 0.0),)

    @property
    def place_input(self) -> PlaceInput:
        """The images of places that the model expects."""
        return PlaceInput(takes=("satellite",), satellite_px=self.config.tile_px, range_m=None)

    @property
    def query_input(self) -> QueryInput:
        """The queries that the model expects."""
        return QueryInput(("photo",), self.config.photo_size)

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        """A row for the cell that each place stands in; none where neither a tile nor a prototype is known."""
        ids = s2.from_lat_lon(batch.lat.cpu().numpy(), batch.lon.cpu().numpy(), self.config.cell_level)
        device = self.prototypes.weight.device
        has = batch.has_satellite.to(device)
        aerial = torch.zeros(len(ids), self.config.dim, device=device)
        if bool(has.any()):
            aerial[has] = self.aerial(self.tokens(self.tiles(batch.satellite.to(device)[has]), aerial=True))
        codes = self.codes(ids, aerial, has).cpu()
        place = (has | self._known(ids)).nonzero()[:, 0].cpu().numpy()
        return {"cell": Rows(codes[torch.from_numpy(place)][:, :, None, None], place)}

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """z_Q of each photo, as a strip of one column. Each is encoded by itself."""
        device = self.prototypes.weight.device
        codes = torch.zeros(len(queries), self.config.dim)
        for n, query in enumerate(queries):
            if not isinstance(query, Photo) or not isinstance(query.image, np.ndarray):
                raise TypeError(f"queries: expected decoded photos, got {type(query).__name__}")
            codes[n] = self.ground(self.tokens(self.photo(query.image)[None].to(device)))[0].cpu()
        return {"cell": QueryStrips(codes[:, :, None, None])}

    def photo(self, image: np.ndarray) -> Tensor:
        """uint8 [h, w, 3] as the ground encoder sees it, uint8 [3, H, W]."""
        rows, columns = self.config.photo_size
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image: expected uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
        if image.shape[:2] != (rows, columns):
            image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)

    def tiles(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] as the aerial encoder sees it."""
        side = self.config.tile_px
        if images.shape[-2:] == (side, side):
            return images
        return F.interpolate(images.float(), (side, side), mode="area").round().to(torch.uint8)

    # --- files ---
