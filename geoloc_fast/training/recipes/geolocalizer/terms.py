"""The loss of a step, term by term.

    contrast     every photo must find its place among all places of the batch
    heading      the photo's window must be where its heading says
    agreement    the two sources of a place must agree as they lie
    cuts         cuts of the street view must find their satellite image, and where they lie in it
    alone        each source by itself must answer photos too: contrast and heading against it

The loss is the sum of weight times value over the terms. A term is either known whole in every process, or each process
has a part of it and the sum over all processes counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast import azimuth_match
from geoloc_fast.azimuth import AzimuthMatch
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.augment import generator_of
from geoloc_fast.models import Geolocalizer
from geoloc_fast.models.geolocalizer.encoder import normalise_strip
from geoloc_fast.ops import gumbel_noise
from geoloc_fast.training.distributed import gather_own, gather_sum, gathered, shared, summed, world
from geoloc_fast.training.losses import info_nce, shift_cross_entropy, soft_margin_triplet, triplet
from geoloc_fast.training.recipes.geolocalizer.settings import LossSettings, StepSettings

__all__ = ["CUTS", "cuts", "fixed_window", "losses", "strip_widths", "true_shift", "window_noise"]

_WINDOWS, CUTS = 103, 106  # what a random number is for


class Term(NamedTuple):
    name: str
    weight: float
    value: Tensor
    whole: bool = True
    """Known in every process; else this is this process's part."""


def losses(
    model: Geolocalizer,
    strips: Mapping[str, Tensor],
    batch: Mapping[str, Any],
    used: tuple[Tensor, Tensor],
    settings: StepSettings,
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the whole batch, of all processes, and what is worth logging.

    Args:
        strips: "photo" and "place" [b, C, H, W] of this process's b pairs; "above" and "street", the place's sources.
        used: of `sources_used`, bool [b] each.
    """
    how, asked = settings.loss, Asked.of(model, strips, batch, settings, step)
    seen = used[0] | used[1]  # a place that the model sees nothing of teaches nothing
    match = asked.match(gather_sum(strips["place"]))
    score = gather_own(match.score)
    terms = [Term("contrast", 1.0, contrast(asked, score, gathered(seen)))]
    if how.heading:
        terms.append(Term("heading", how.heading, heading(asked, strips["place"], seen), whole=False))
    if "above" in strips:
        has = {"above": batch["has_satellite"], "street": batch["has_panorama"] & batch["heading_known"]}
        terms += between_sources(asked, strips, gathered(has["above"] & has["street"]), settings.seed, step)
        for name in ("above", "street") if how.alone else ():
            terms += alone(asked, name, strips[name], has[name])
    total = terms[0].value
    for term in terms[1:]:
        total = total + term.weight * term.value

    with torch.no_grad():
        parts = {term.name: term.value for term in terms if not term.whole}
        values = {term.name: term.value for term in terms if term.whole}
        values |= summed(parts | {"true_window": true_window(asked, match)})
        right = (score.argmax(1) == torch.arange(len(score), device=score.device)).float().mean()
        loss = torch.stack([term.weight * values[term.name] for term in terms]).sum()
        values |= {"right": right, "loss": loss, "scale": model.scale, "temperature": model.temperature}
    return total, {name: float(value.detach()) for name, value in values.items()}


@dataclass(frozen=True)
class Asked:
    """What the terms of a batch look at: b photos of this process, against B places of all of them."""

    how: LossSettings
    photo: Tensor
    """[b, C, H, w]"""
    width: Tensor
    """int64 [b], in columns of a strip"""
    truth: Tensor
    """[b], the column of its own place's strip at which each photo's strip begins; NaN where unknown"""
    near: Tensor
    """bool [B, B], whether a photo's place or one within the threshold: no negative"""
    at: tuple[Tensor, Tensor]
    """lat and lon [B] of the places"""
    temperature: Tensor
    columns: int
    gumbel: dict[str, Any]

    @classmethod
    def of(
        cls,
        model: Geolocalizer,
        strips: Mapping[str, Tensor],
        batch: Mapping[str, Any],
        settings: StepSettings,
        step: int,
    ) -> Asked:
        how, columns = settings.loss, model.config.strip[2]
        photo = strips["photo"]
        width = strip_widths(model, batch["photo_width"]).to(photo.device)
        lat, lon, at_lat, at_lon, row = (
            gathered(batch[name]) for name in ("photo_lat", "photo_lon", "place_lat", "place_lon", "place_row")
        )
        # A photo whose position is not known stands at its place.
        lat, lon = torch.where(lat.isnan(), at_lat, lat), torch.where(lon.isnan(), at_lon, lon)
        near = great_circle_m(lat[:, None], lon[:, None], at_lat, at_lon) <= how.threshold_m
        gumbel: dict[str, Any] = {}
        if how.select == "gumbel":
            noise = window_noise(settings.seed, step, len(width), len(row), columns, photo.device)
            gumbel = {"noise": noise, "scale": model.scale}
        return cls(
            how=how,
            photo=photo,
            width=width,
            truth=true_shift(batch, width, model),
            near=near | (row[:, None] == row),
            at=(at_lat, at_lon),
            temperature=model.temperature if how.learn_temperature else model.temperature.detach(),
            columns=columns,
            gumbel=gumbel,
        )

    def match(self, places: Tensor) -> AzimuthMatch:
        """The photos of this process against places [B, C, H, W]."""
        if self.how.select != "fixed":
            return azimuth_match(self.photo, places, query_width=self.width, select=self.how.select, **self.gumbel)
        if int(self.width.min()) != int(self.width.max()):
            raise ValueError("loss.select: expected photos of one width for fixed, got several; assume a field of view")
        photos, windows = (fixed_window(strip, int(self.width[0])) for strip in (self.photo, places))
        return azimuth_match(photos, windows, select="correlation")


# -- the terms -----------------------------------------------------------------------------------


def contrast(asked: Asked, score: Tensor, there: Tensor) -> Tensor:
    """Of scores [B, B] of photos and places, those of places that are `there`, the loss of `loss.kind`."""
    how = asked.how
    if int(there.sum()) < 2:
        return 0 * score.sum()
    near = asked.near
    if not bool(there.all()):
        score, near = score[there][:, there], near[there][:, there]
    if how.kind == "triplet":
        return triplet(score, margin=how.margin, mask=near, symmetric=how.symmetric)
    if how.kind == "soft_margin_triplet":
        return soft_margin_triplet(score, sharpness=how.sharpness, mask=near, symmetric=how.symmetric)
    return info_nce(
        score,
        temperature=shared(asked.temperature),
        mask=near,
        symmetric=how.symmetric,
        label_smoothing=how.label_smoothing,
        decoupled=how.kind == "decoupled",
    )


def heading(asked: Asked, strips: Tensor, there: Tensor) -> Tensor:
    """This process's part of the mean over all photos of known heading whose place is `there`."""
    asks = asked.truth.isfinite() & there
    share = asks.sum() / gathered(asks).sum().clamp(min=1)
    if not asks.any():
        return torch.zeros((), device=asks.device)
    return share * shift_cross_entropy(
        asked.photo[asks],
        strips[asks],
        asked.truth[asks],
        query_width=asked.width[asks],
        temperature=asked.temperature,
    )


def between_sources(asked: Asked, strips: Mapping[str, Tensor], both: Tensor, seed: int, step: int) -> Iterator[Term]:
    """`agreement` and `cuts`, over the places of all processes that have both sources."""
    how = asked.how
    if not (how.agreement or how.cuts) or int(both.sum()) < 2:
        return
    above, street = (gather_own(strips[name])[both] for name in ("above", "street"))
    lat, lon = (x[both] for x in asked.at)
    same = great_circle_m(lat[:, None], lon[:, None], lat, lon) <= how.threshold_m
    if how.agreement:
        cosine = above.flatten(1) @ street.flatten(1).T
        yield Term("agreement", how.agreement, info_nce(cosine, temperature=shared(asked.temperature), mask=same))
    if how.cuts:
        turns = generator_of(seed, step, 0, CUTS).integers(asked.columns, size=len(both))
        start = torch.from_numpy(turns).to(both.device)[both]
        yield Term("cuts", how.cuts, found_by_cuts(asked, above, street, start, gathered(asked.width)[both], same))


def found_by_cuts(asked: Asked, above: Tensor, street: Tensor, start: Tensor, width: Tensor, same: Tensor) -> Tensor:
    """Cuts of the panoramas' strips, as wide as the batch's photos, against the satellite images: photos taken where
    the satellite image has its middle, with nothing in the way."""
    temperature = shared(asked.temperature)
    cut = cuts(street, start, width)
    score = azimuth_match(cut, above, query_width=width).score
    turned = shift_cross_entropy(cut, above, start, query_width=width, temperature=temperature)
    return info_nce(score, temperature=temperature, mask=same) + asked.how.heading * turned


def alone(asked: Asked, name: str, strips: Tensor, has: Tensor) -> Iterator[Term]:
    """Contrast and heading against one source, over the places that have it."""
    there = gathered(has)
    if int(there.sum()) < 2:
        return
    match = asked.match(gather_sum(strips))
    yield Term(name, asked.how.alone, contrast(asked, gather_own(match.score), there))
    turned = heading(asked, strips, has)
    yield Term(f"{name}_heading", asked.how.alone * asked.how.heading, turned, whole=False)


def true_window(asked: Asked, match: AzimuthMatch) -> Tensor:
    """This process's part of the share of photos whose chosen window lies within a column of where their heading says;
    NaN if no heading is known."""
    known = asked.truth.isfinite()
    everywhere = gathered(known).sum()
    if not int(everywhere):
        return torch.full((), float("nan"), device=known.device)
    if not known.any():
        return torch.zeros((), device=known.device)
    row = torch.arange(len(known), device=known.device)
    own = match.shift[row, world()[0] * len(known) + row]
    half = asked.columns / 2
    off = ((own - asked.truth + half) % asked.columns - half).abs()[known]
    return known.sum() / everywhere * (off <= 1).float().mean()


# -- windows -------------------------------------------------------------------------------------


def strip_widths(model: Geolocalizer, photo_width: Tensor) -> Tensor:
    """Columns of an image as columns of its strip."""
    cell = model.encoder.columns_per_strip_column
    return ((photo_width + cell // 2) // cell).clamp(1, model.config.strip[2])


def true_shift(batch: Mapping[str, Any], width: Tensor, model: Geolocalizer) -> Tensor:
    """Fractional strip column at which each photo's strip begins in that of its own place; NaN where unknown."""
    columns = model.config.strip[2]
    centre = (batch["heading_deg"] - model.config.column0_deg - batch["turn_deg"]) / 360 * columns
    return (centre - width / 2) % columns


def fixed_window(strips: Tensor, width: int) -> Tensor:
    """The middle `width` columns of strips [N, C, H, W] as strips of one column [N, C H width, 1, 1] at unit norm:
    matching them is a cosine, without a search over headings."""
    start = (strips.shape[3] - width) // 2
    flat = strips[..., start : start + width].flatten(1)
    return F.normalize(flat, dim=1)[:, :, None, None]


def cuts(strips: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Of each strip [N, C, H, W] the `width` columns from `start` on, at unit norm, zero beyond them."""
    column = torch.arange(int(width.max()), device=strips.device)
    at = (start[:, None] + column) % strips.shape[3]
    cut = strips.gather(3, at[:, None, None].expand(*strips.shape[:3], -1))
    return normalise_strip(cut * (column < width[:, None])[:, None, None])


def window_noise(seed: int, step: int, queries: int, places: int, columns: int, device: torch.device) -> Tensor:
    """[queries, places, columns], row by row from seeds of their own: the same for any number of processes."""
    first = world()[0] * queries
    drawn = generator_of(seed, step, 0, _WINDOWS).integers(2**62, size=first + queries)[first:]
    seeds = torch.from_numpy(drawn).to(device)
    return torch.stack([gumbel_noise.draw(seed, [columns, places], torch.float32) for seed in seeds]).transpose(1, 2)
