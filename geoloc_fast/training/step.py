"""One training step: encode, exchange between processes, match, losses, gradients.

Of a batch of B pairs over all processes each process encodes its own share, matches its own photos against all B
places, and is given everybody's scores. So every process knows the whole loss, and the sum of all processes' gradients
is that of one process with the whole batch:

    gather_sum    strips of places: everybody's scores depend on them, so their gradients are summed
    gather_own    scores: every process holds the whole loss, so each takes the gradient of its own rows

Gradient caching (`chunk`): strips of all chunks are computed without a graph, the loss gives the gradient of the
strips, and every chunk is computed once more, with a graph, to take that gradient on to the weights. Memory is that of
one chunk and of strips. What is random is drawn from seeds, so both passes see the same noise, and the noise of the
window selection does not depend on how a batch is shared out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast import azimuth_match
from geoloc_fast.azimuth import AzimuthMatch
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.augment import generator_of
from geoloc_fast.models import Geolocalizer
from geoloc_fast.models.geolocalizer.encoder import normalise_strip
from geoloc_fast.ops import gumbel_noise
from geoloc_fast.training.losses import info_nce, shift_cross_entropy, soft_margin_triplet, triplet

KINDS = ("info_nce", "decoupled", "triplet", "soft_margin_triplet")
SELECT = ("gumbel", "correlation", "cosine", "fixed")  # fixed: the middle of every strip, without matching
_SOURCES, _NETWORK, _WINDOWS, _CUTS = 101, 102, 103, 106  # what a random number is for


@dataclass
class LossSettings:
    kind: str = "info_nce"
    label_smoothing: float = 0.0
    symmetric: bool = True
    margin: float = 0.3  # of "triplet"
    sharpness: float = 10.0  # of "soft_margin_triplet"
    learn_temperature: bool = True
    select: str = "gumbel"
    heading: float = 1.0  # weight: the photo's window must be where its heading says
    agreement: float = 0.3  # weight: the two sources of a place must agree as they lie
    cuts: float = 0.0  # weight: cuts of the street view must find their satellite image, and where they lie in it
    alone: float = 0.0  # weight: each source by itself must answer photos too, with place and heading
    threshold_m: float = 25.0  # nearer places are not negatives

    def check(self) -> None:
        for name in ("heading", "agreement", "cuts", "alone"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"loss.{name}: expected at least 0, got {getattr(self, name)}")
        if self.kind not in KINDS:
            raise ValueError(f"loss.kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.select not in SELECT:
            raise ValueError(f"loss.select: expected one of {', '.join(SELECT)}, got {self.select!r}")


@dataclass
class StepSettings:
    seed: int = 0
    chunk: int = 0  # pairs a process encodes at once; 0 is all of them
    bf16: bool = True
    without_panorama: float = 0.2  # share of places whose panorama is left out
    without_satellite: float = 0.0  # share of places with a panorama whose satellite image is left out
    loss: LossSettings = field(default_factory=LossSettings)

    def check(self) -> None:
        if self.chunk < 0:
            raise ValueError(f"step.chunk: expected at least 0, got {self.chunk}")
        for name in ("without_panorama", "without_satellite"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"step.{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        self.loss.check()


# -- processes ---------------------------------------------------------------------------------


def world() -> tuple[int, int]:
    """(rank, processes)"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(x: Tensor) -> Tensor:
    """Everybody's rows, without a gradient."""
    if world()[1] == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world()[1])]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _own(x: Tensor) -> Tensor:
    rank, processes = world()
    return x.chunk(processes)[rank]


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gathered(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return _own(grad)


class _GatherOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gathered(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _own(grads[0])


def gather_sum(x: Tensor) -> Tensor:
    return x if world()[1] == 1 else _GatherSum.apply(x)


def gather_own(x: Tensor) -> Tensor:
    return x if world()[1] == 1 else _GatherOwn.apply(x)


def _shared(x: Tensor) -> Tensor:
    """A parameter of a loss that every process computes whole: each gives its part of the gradient."""
    return x if world()[1] == 1 else x.detach() + (x - x.detach()) / world()[1]


def reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """The sum over all processes, in one message."""
    if world()[1] == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p).to(p.dtype)


# -- encoding ----------------------------------------------------------------------------------


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


def _encode(
    model: Geolocalizer, batch: Mapping[str, Any], part: slice, used: tuple[Tensor, Tensor], settings: StepSettings
) -> dict[str, Tensor]:
    """Strips of photos and places; of sources too, where the model has both."""
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


def fixed_window(strips: Tensor, width: int) -> Tensor:
    """The middle `width` columns of strips [N, C, H, W] as strips of one column [N, C H width, 1, 1] at unit norm:
    matching them is a cosine, without a search over headings."""
    start = (strips.shape[3] - width) // 2
    flat = strips[..., start : start + width].flatten(1)
    return F.normalize(flat, dim=1)[:, :, None, None]


def strip_widths(model: Geolocalizer, photo_width: Tensor) -> Tensor:
    cell = model.encoder.columns_per_strip_column
    return ((photo_width + cell // 2) // cell).clamp(1, model.config.strip[2])


@contextmanager
def _noise_of(device: torch.device, *seed: int) -> Iterator[None]:
    """Inside, torch's random numbers are those of `seed`; outside they go on as if nothing had been."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(generator_of(*seed).integers(2**62)))  # type: ignore[call-arg]
        yield


def _window_noise(settings: StepSettings, step: int, queries: int, places: int, columns: int, like: Tensor) -> Tensor:
    """[queries, places, columns], row by row from seeds of their own: the same for any number of processes."""
    first = world()[0] * queries
    seeds = generator_of(settings.seed, step, 0, _WINDOWS).integers(2**62, size=first + queries)[first:]
    seeds = torch.from_numpy(seeds).to(like.device)
    return torch.stack([gumbel_noise.draw(seed, [columns, places], torch.float32) for seed in seeds]).transpose(1, 2)


# -- losses ------------------------------------------------------------------------------------


def true_shift(batch: Mapping[str, Any], width: Tensor, model: Geolocalizer) -> Tensor:
    """Fractional strip column at which each photo's strip begins in that of its own place; NaN where unknown."""
    columns = model.config.strip[2]
    centre = (batch["heading_deg"] - model.config.column0_deg - batch["turn_deg"]) / 360 * columns
    return (centre - width / 2) % columns


def _cuts_found(
    above: Tensor, street: Tensor, start: Tensor, width: Tensor, same: Tensor, temperature: Tensor, how: LossSettings
) -> Tensor:
    """Cuts of the panoramas' strips, as wide as the batch's photos, against the satellite images: photos taken where
    the satellite image has its middle, with nothing in the way."""
    cut = cuts(street, start, width)
    score = azimuth_match(cut, above, query_width=width).score
    turned = shift_cross_entropy(cut, above, start, query_width=width, temperature=temperature)
    return info_nce(score, temperature=temperature, mask=same) + how.heading * turned


def cuts(strips: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Of each strip [N, C, H, W] the `width` columns from `start` on, at unit norm, zero beyond them."""
    column = torch.arange(int(width.max()), device=strips.device)
    at = (start[:, None] + column) % strips.shape[3]
    cut = strips.gather(3, at[:, None, None].expand(*strips.shape[:3], -1))
    return normalise_strip(cut * (column < width[:, None])[:, None, None])


def _among(pairs: Tensor, chosen: Tensor) -> Tensor:
    return pairs if bool(chosen.all()) else pairs[chosen][:, chosen]


def _losses(
    model: Geolocalizer,
    strips: Mapping[str, Tensor],
    batch: Mapping[str, Any],
    used: tuple[Tensor, Tensor],
    settings: StepSettings,
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    how = settings.loss
    rank, processes = world()
    columns = model.config.strip[2]
    width = strip_widths(model, batch["photo_width"]).to(strips["photo"].device)
    places = gather_sum(strips["place"])
    count = len(width)
    gumbel: dict[str, Any] = {}
    if how.select == "gumbel":
        noise = _window_noise(settings, step, count, len(places), columns, places)
        gumbel = {"noise": noise, "scale": model.scale}
    lat, lon, at_lat, at_lon, row = (
        gathered(batch[name]) for name in ("photo_lat", "photo_lon", "place_lat", "place_lon", "place_row")
    )
    lat, lon = torch.where(lat.isnan(), at_lat, lat), torch.where(lon.isnan(), at_lon, lon)  # not known: at its place
    near = great_circle_m(lat[:, None], lon[:, None], at_lat, at_lon) <= how.threshold_m
    near |= row[:, None] == row
    temperature = model.temperature if how.learn_temperature else model.temperature.detach()
    truth = true_shift(batch, width, model)
    known = truth.isfinite()

    def contrast(score: Tensor, near: Tensor) -> Tensor:
        if how.kind == "triplet":
            return triplet(score, margin=how.margin, mask=near, symmetric=how.symmetric)
        if how.kind == "soft_margin_triplet":
            return soft_margin_triplet(score, sharpness=how.sharpness, mask=near, symmetric=how.symmetric)
        return info_nce(
            score,
            temperature=_shared(temperature),
            mask=near,
            symmetric=how.symmetric,
            label_smoothing=how.label_smoothing,
            decoupled=how.kind == "decoupled",
        )

    def heading(strip: Tensor, chosen: Tensor) -> Tensor:
        """This process's part of the mean over all processes."""
        share = chosen.sum() / gathered(chosen.byte()).sum().clamp(min=1)
        if not chosen.any():
            return torch.zeros((), device=chosen.device)
        return share * shift_cross_entropy(
            strips["photo"][chosen],
            strip[chosen],
            truth[chosen],
            query_width=width[chosen],
            temperature=temperature,
        )

    def matched(places: Tensor) -> AzimuthMatch:
        if how.select != "fixed":
            return azimuth_match(strips["photo"], places, query_width=width, select=how.select, **gumbel)
        if int(width.min()) != int(width.max()):
            raise ValueError("loss.select: expected photos of one width for fixed, got several; assume a field of view")
        of_photos, of_places = (fixed_window(strip, int(width[0])) for strip in (strips["photo"], places))
        return azimuth_match(of_photos, of_places, select="correlation")

    match = matched(places)
    score = gather_own(match.score)
    seen = gathered((used[0] | used[1]).byte()).bool()  # a place that the model sees nothing of teaches nothing
    total = contrast(_among(score, seen), _among(near, seen)) if int(seen.sum()) > 1 else 0 * score.sum()
    numbers = {"contrast": total.detach()}  # whole in every process
    parts = {"heading": torch.zeros((), device=width.device)}  # each process has its part
    if how.heading:
        part = heading(strips["place"], known & (used[0] | used[1]))
        total = total + how.heading * part
        parts["heading"] = part.detach()

    if "above" in strips:
        has = {
            "above": batch["has_satellite"],
            "street": batch["has_panorama"] & batch["heading_known"],
        }
        both = gathered((has["above"] & has["street"]).byte()).bool()
        if (how.agreement or how.cuts) and int(both.sum()) > 1:
            above, street = (gather_own(strips[name])[both] for name in ("above", "street"))
            same = great_circle_m(at_lat[both, None], at_lon[both, None], at_lat[both], at_lon[both]) <= how.threshold_m
            if how.agreement:
                cosine = above.flatten(1) @ street.flatten(1).T
                numbers["agreement"] = info_nce(cosine, temperature=_shared(temperature), mask=same)
                total = total + how.agreement * numbers["agreement"]
            if how.cuts:
                turns = generator_of(settings.seed, step, 0, _CUTS).integers(columns, size=len(both))
                start = torch.from_numpy(turns).to(both.device)[both]
                numbers["cuts"] = _cuts_found(
                    above, street, start, gathered(width)[both], same, _shared(temperature), how
                )
                total = total + how.cuts * numbers["cuts"]
        for name in ("above", "street") if how.alone else ():
            there = gathered(has[name].byte()).bool()
            if int(there.sum()) < 2:
                continue
            only = matched(gather_sum(strips[name]))
            alone = contrast(_among(gather_own(only.score), there), _among(near, there))
            turned = heading(strips[name], known & has[name])
            total = total + how.alone * (alone + how.heading * turned)
            numbers[name], parts[f"{name}_heading"] = alone.detach(), turned.detach()

    known_everywhere = gathered(known.byte()).sum()
    parts["true_window"] = torch.zeros((), device=known.device)
    if known.any():
        own = match.shift[torch.arange(count), rank * count + torch.arange(count)]
        off = ((own - truth + columns / 2) % columns - columns / 2).abs()[known]
        parts["true_window"] = known.sum() / known_everywhere * (off <= 1).float().mean()
    summed = torch.stack([part.float() for part in parts.values()])
    if processes > 1:
        dist.all_reduce(summed)
    numbers |= dict(zip(parts, summed, strict=True))
    if not int(known_everywhere):
        numbers["true_window"] = torch.tensor(float("nan"))
    numbers["right"] = (score.argmax(1) == torch.arange(len(score), device=score.device)).float().mean()
    numbers["loss"] = numbers["contrast"] + how.heading * numbers["heading"]
    for name in ("agreement", "cuts"):
        if name in numbers:
            numbers["loss"] = numbers["loss"] + getattr(how, name) * numbers[name]
    for name in ("above", "street"):
        if name in numbers:
            numbers["loss"] = numbers["loss"] + how.alone * (numbers[name] + how.heading * numbers[f"{name}_heading"])
    numbers["scale"], numbers["temperature"] = model.scale.detach(), model.temperature.detach()
    return total, {name: float(value.detach()) for name, value in numbers.items()}


def gradients(
    model: Geolocalizer, batch: Mapping[str, Any], settings: StepSettings, *, step: int, epoch: int
) -> dict[str, float]:
    """Sets the gradients of the whole batch (of all processes) and returns what is worth logging.

    `batch` is what `geoloc_fast.data.datasets.finish` returns for a batch of pairs.
    """
    model.train()
    model.zero_grad(set_to_none=True)
    count, device = len(batch["photo"]), batch["photo"].device
    size = settings.chunk or count
    chunks = [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]
    used = sources_used(batch, settings, epoch, model.config.sources)

    def encode(n: int) -> dict[str, Tensor]:
        with _noise_of(device, settings.seed, step, world()[0] * 1_000_000 + n, _NETWORK):
            return _encode(model, batch, chunks[n], used, settings)

    if len(chunks) == 1:
        loss, numbers = _losses(model, encode(0), batch, used, settings, step)
        loss.backward()
    else:
        with torch.no_grad():
            parts = [encode(n) for n in range(len(chunks))]
        leaves = {name: torch.cat([part[name] for part in parts]).requires_grad_() for name in parts[0]}
        del parts
        loss, numbers = _losses(model, leaves, batch, used, settings, step)
        loss.backward()
        for n, chunk in enumerate(chunks):
            strips = encode(n)
            grads = {name: leaf.grad[chunk] for name, leaf in leaves.items() if leaf.grad is not None}
            torch.autograd.backward([strips[name] for name in grads], list(grads.values()))
    reduce_gradients([p for p in model.parameters() if p.requires_grad])
    return numbers
