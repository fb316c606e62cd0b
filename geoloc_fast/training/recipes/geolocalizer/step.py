"""One training step: encode, exchange between processes, match, losses, gradients.

Of a batch of B pairs over all processes each process encodes its own share, matches its own photos against all B
places, and is given everybody's scores. So every process knows the whole loss, and the sum of all processes' gradients
is that of one process with the whole batch. The noise of the window selection does not depend on how a batch is shared
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.images.augment import generator_of
from geoloc_fast.models import Geolocalizer
from geoloc_fast.training.distributed import reduce_gradients, world
from geoloc_fast.training.recipes.geolocalizer.settings import StepSettings
from geoloc_fast.training.recipes.geolocalizer.terms import losses
from geoloc_fast.training.step import cached_backward, seeded

__all__ = ["NETWORK", "encode", "gradients", "sources_used"]

_SOURCES, NETWORK = 101, 102  # what a random number is for


def gradients(
    model: Geolocalizer, batch: Mapping[str, Any], settings: StepSettings, *, step: int, epoch: int
) -> dict[str, float]:
    """Sets the gradients of the whole batch (of all processes) and returns what is worth logging.

    `batch` is what `geoloc_fast.data.datasets.finish` returns for a batch of pairs.
    """
    model.train()
    model.zero_grad(set_to_none=True)
    device = batch["photo"].device
    used = sources_used(batch, settings, epoch, model.config.sources)

    def encoded(n: int, part: slice) -> dict[str, Tensor]:
        with seeded(device, settings.seed, step, world()[0] * 1_000_000 + n, NETWORK):
            return encode(model, batch, part, used, settings)

    numbers = cached_backward(
        encoded,
        lambda strips: losses(model, strips, batch, used, settings, step),
        len(batch["photo"]),
        settings.chunk,
    )
    reduce_gradients([p for p in model.parameters() if p.requires_grad])
    return numbers


def sources_used(
    batch: Mapping[str, Any], settings: StepSettings, epoch: int, sources: str = "both"
) -> tuple[Tensor, Tensor]:
    """Which images of the places are looked at: bool [B] of satellite images and of panoramas.

    A panorama whose heading is not known is not. Some are left out at random, so that a model of both sources learns
    places of one; by photo and epoch, however the batch is shared out.
    """
    if sources != "both":
        none = torch.zeros_like(batch["has_satellite"])
        panorama = batch["has_panorama"] & batch["heading_known"]
        return (batch["has_satellite"], none) if sources == "satellite" else (none, panorama)
    draws = torch.tensor(
        [generator_of(settings.seed, epoch, int(row), _SOURCES).random(2).tolist() for row in batch["photo_row"]]
    ).to(batch["has_panorama"].device)
    satellite = batch["has_satellite"]
    panorama = batch["has_panorama"] & batch["heading_known"]
    panorama &= (draws[:, 0] >= settings.without_panorama) | ~satellite
    satellite = satellite & ((draws[:, 1] >= settings.without_satellite) | ~panorama)
    return satellite, panorama


def encode(
    model: Geolocalizer, batch: Mapping[str, Any], part: slice, used: tuple[Tensor, Tensor], settings: StepSettings
) -> dict[str, Tensor]:
    """Strips of photos and places; of sources too, where the model has both and a loss asks for them."""
    device = batch["photo"].device
    columns, cell = model.config.strip[2], model.encoder.columns_per_strip_column
    # The same width in every chunk.
    widest = min(max((int(batch["photo_width"].max()) + cell // 2) // cell, 1), columns)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
        above, street = model.encode_sources(batch["polar"][part], batch["panorama"][part])
        place = model.fuse(above, street, has_satellite=used[0][part], has_panorama=used[1][part])
        photo = model.encode_photo(batch["photo"][part], batch["photo_width"][part])
    strips = {"photo": F.pad(photo.strips, (0, widest - photo.strips.shape[3])), "place": place}
    how = settings.loss
    if above is not None and street is not None and (how.agreement or how.cuts or how.alone):
        strips |= {"above": above, "street": street}
    return strips
