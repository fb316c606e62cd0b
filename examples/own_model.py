"""A model of your own, by the contract: index a region with it, and locate photos.

    python examples/own_model.py

The model learns nothing. It measures how strong the edges are in 64 columns of azimuth and 8 rows, in street views and
in photos. docs/design/rooms.md explains the contract of models, and geoloc_fast/models/contract.py defines it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geoloc_fast import Locator, Photo, PlaceIndex, load_model
from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.models.bundle import BundleConfig, BundledModel
from geoloc_fast.models.contract import KINDS, AzimuthColumns, PlaceBatch, PlaceInput, Query, QueryInput
from geoloc_fast.region.encode import build_index

COLUMNS, ROWS = 64, 8
SIZE = (64, 256)  # of a whole turn, for street views and for photos alike


@dataclass(frozen=True)
class EdgesConfig(BundleConfig):
    """What the model is built from; it is stored in the model's file."""

    name: str = "edges"
    trained_on: str = "nothing"


class Edges(BundledModel):
    """One layer, "street", with a heading: strips of edges across and along, [2, ROWS, COLUMNS]."""

    kind = "edges"
    config_class = EdgesConfig
    layers = (Layer("street", (2, ROWS, COLUMNS), column0_deg=180.0),)
    place_input = PlaceInput(takes=("street",), panorama_size=SIZE)
    query_input = QueryInput(takes=("photo", "columns"), size=SIZE)

    def __init__(self, config: EdgesConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = torch.nn.Parameter(torch.ones(2))  # a real network has its weights here

    def strip(self, image: Tensor, columns: int) -> Tensor:
        """uint8 [B, 3, h, w] to [B, 2, ROWS, columns], standardised over azimuth."""
        grey = image.float().mean(1)
        across, along = grey.diff(dim=2).abs(), grey.diff(dim=1).abs()
        pooled = [torch.nn.functional.adaptive_avg_pool2d(edges, (ROWS, columns)) for edges in (across, along)]
        strips = torch.stack(pooled, 1) * self.scale[:, None, None]
        spread = strips.std(3, keepdim=True) if columns > 1 else torch.ones(1)
        return (strips - strips.mean(3, keepdim=True)) / (spread + 1e-3)

    @torch.inference_mode()
    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        """A row for each place that has a street view. The images of the others are black, and are left out."""
        there = batch.has_panorama.nonzero().squeeze(1)
        return {"street": Rows(self.strip(batch.panorama[there], COLUMNS), there.numpy())}

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """Strips as wide as each query's part of the horizon, padded to one width."""
        strips = []
        for query in queries:
            if isinstance(query, AzimuthColumns):
                seen = query.columns
            else:
                assert isinstance(query, Photo) and isinstance(query.image, np.ndarray)
                fov_deg = query.fov_deg or self.query_input.assumed_fov_deg
                seen = to_cylindrical(query.image, fov_deg, size=SIZE)
            width = max(1, round(COLUMNS * seen.shape[1] / SIZE[1]))
            image = torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)[None]
            strips.append(self.strip(image, width)[0])
        widths = torch.tensor([strip.shape[2] for strip in strips])
        padded = [torch.nn.functional.pad(strip, (0, int(widths.max()) - strip.shape[2])) for strip in strips]
        return {"street": QueryStrips(torch.stack(padded), widths)}


def main(folder: Path, places: int = 24) -> float:
    """The share of photos whose first candidate is their own place; files are left in `folder`."""
    KINDS[Edges.kind] = Edges.load
    Edges(EdgesConfig()).save(folder / "edges.safetensors")
    model = load_model(folder / "edges.safetensors")

    sizes = Sizes(satellite_px=64, panorama=SIZE, photo=(48, 64))
    region = write_city(folder / "region", seed=5, cities=1, places=places, sizes=sizes, capture=TIDY)
    build_index(folder / "index", model, region)
    locator = Locator(PlaceIndex.open(folder / "index"), model)
    photos = region.photos.to_pylist()
    answers = locator.locate([Photo(region.root / photo["image"], photo["fov_deg"]) for photo in photos])
    right = [answer.candidates[0].key == photo["place"] for answer, photo in zip(answers, photos, strict=True)]
    share = sum(right) / len(right)
    print(f"{sum(right)} of {len(right)} photos found their place; by chance one would")
    return share


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
