"""Things by direction: the space in which a description and an image from above meet.

    text   -> sentences: their tokens' states and word vectors -> what each tells of [A] and where that is [13]
    image  -> maps of a frozen backbone -> small convolutional network -> eight sectors -> shares [A, 8]

A thing is a kind ("water") or a kind with a trait ("house, roof: red"). Of an image, each has a probability in each of
eight sectors (centred on north, north-east, ...). Of a text, each has an amount in each of eight winds, on each of four
sides of a speaker who does not know north, and without a direction. An image answers to all three (`parts`): in a
sector, in a quarter of the horizon, and at all.

The maps from a sentence and from a sector to things are linear and in closed form, and know how sure they are
(`LinearRead.solve`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "PARTS",
    "SECTORS",
    "SIDES",
    "WHERE",
    "LinearRead",
    "Sights",
    "Tellings",
    "log_parts",
    "parts",
    "sides_as_quarters",
]

SECTORS = 8
SIDES = 4
"""Ahead, right, behind, left."""
WHERE = SECTORS + SIDES + 1
"""Winds, sides, and no direction."""
PARTS = (SECTORS, SECTORS, 2)
"""Sectors, quarters of the horizon, somewhere and how much: what `parts` gives of a thing."""
_WIDTH = 64  # channels of the network
_NEAR = 0.52  # of half the tile: the inner part of a sector
_DOUBT = 1e-3  # of every share: a thing that is told of may be there though nothing shows it
_ROWS, _NEWTON = 4096, 25


class LinearRead(nn.Module):
    """Standardised features to shares from 0 to 1: ridge regression, and a logistic curve over each of its outputs that
    says how often a thing is there where the regression says so much."""

    mean: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, features: int, things: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.linear = nn.Linear(features, things)
        self.register_buffer("slope", torch.ones(things))
        self.register_buffer("offset", torch.zeros(things))

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] -> [..., things]."""
        found: Tensor = self.linear((x.float() - self.mean) * self.scale)
        return torch.sigmoid(found * self.slope + self.offset)

    @torch.no_grad()
    def solve(self, x: Tensor, y: Tensor, fold: Tensor, *, ridge: float) -> Tensor:
        """The map of least squares for features x [N, features] and shares y [N, things]; `ridge` is added to the
        variance 1 of each feature. The curves are fitted to what each fold [N] is told by the others' map, so that they
        know what becomes of it elsewhere. Gives these shares of the folds, [N, things]."""
        if len(x) < 2 or int(fold.max()) < 1:
            raise ValueError(f"x, fold: expected at least two rows in two folds, got {len(x)} in {int(fold.max()) + 1}")
        origin = x.float().mean(0).double()  # near the mean: sums of squares lose nothing
        parts = []
        for number in range(int(fold.max()) + 1):
            sums = [torch.zeros(()).double()] * 5
            for rows in (fold == number).nonzero().squeeze(1).split(_ROWS):
                one, told = x[rows].double() - origin, y[rows].double()
                more = [one.new_tensor(len(rows)), one.sum(0), one.T @ one, told.sum(0), one.T @ told]
                sums = [a + b for a, b in zip(sums, more, strict=True)]
            parts.append(sums)
        whole = [torch.stack([part[at] for part in parts if part[0] > 0]).sum(0) for at in range(5)]
        found = torch.empty(len(x), y.shape[1])
        for number, part in enumerate(parts):
            if part[0] > 0:
                self._take(origin, [a - b for a, b in zip(whole, part, strict=True)], ridge)
                rows = (fold == number).nonzero().squeeze(1)
                found[rows] = self.linear((x[rows].float() - self.mean) * self.scale)
        self._take(origin, whole, ridge)
        slope, offset = (part.float() for part in _curves(found.double(), y.double()))
        self.slope.copy_(slope)
        self.offset.copy_(offset)
        return torch.sigmoid(found * slope + offset)

    def _take(self, origin: Tensor, sums: list[Tensor], ridge: float) -> None:
        sx, xx, sy, xy = (value / sums[0] for value in sums[1:])
        covariance, cross = xx - torch.outer(sx, sx), xy - torch.outer(sx, sy)
        scale = 1 / (covariance.diagonal().clamp(min=0).sqrt() + 1e-4)
        covariance = scale[:, None] * covariance * scale
        covariance.diagonal().add_(ridge)
        weight = torch.linalg.solve(covariance, scale[:, None] * cross)
        self.mean.copy_(origin + sx)
        self.scale.copy_(scale)
        self.linear.weight.copy_(weight.T)
        self.linear.bias.copy_(sy)


def _curves(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset [things] of the logistic curves of greatest likelihood, by Newton's steps; a thing that the
    others' maps say nothing about has slope 0."""
    slope = torch.full_like(found[0], 4.0)
    offset = torch.logit(true.mean(0).clamp(1e-3, 1 - 1e-3)) - slope * found.mean(0)
    for _ in range(_NEWTON):
        share = torch.sigmoid(found * slope + offset)
        off, width = true - share, share * (1 - share)
        a, b, c = ((width * found**power).sum(0) + 0.1 for power in (2, 1, 0))
        b = b - 0.1  # the tenth holds both back where all or none of the rows have a thing
        toward, up = (off * found).sum(0) - 0.1 * slope, off.sum(0) - 0.1 * offset
        determinant = a * c - b * b
        slope = (slope + ((c * toward - b * up) / determinant).clamp(-2, 2)).clamp(min=0)
        offset = offset + ((a * up - b * toward) / determinant).clamp(-2, 2)
    return slope, offset


class Tellings(nn.Module):
    """What a text tells of, and where, sentence by sentence: from the mean of its tokens' states, which know the
    context, and the sum of their word vectors, which know the words."""

    def __init__(self, width: int, things: int) -> None:
        super().__init__()
        self.what, self.where = LinearRead(2 * width, things), LinearRead(2 * width, WHERE)

    @staticmethod
    def sentences(states: Tensor, words: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """States and word vectors [B, T, width] of tokens, and the number of each one's sentence [B, T] (-1: of none),
        to features of each sentence [B, S, 2 width] and whether there is one, [B, S]."""
        most = max(1, int(sentence.max()) + 1) if sentence.numel() else 1
        member = (sentence[..., None] == torch.arange(most, device=sentence.device)).float()  # [B, T, S]
        size = member.sum(1)
        mean = torch.einsum("bts,btw->bsw", member, states.float()) / size.clamp(min=1)[..., None]
        return torch.cat([mean, torch.einsum("bts,btw->bsw", member, words.float())], 2), size > 0

    def forward(self, states: Tensor, words: Tensor, sentence: Tensor) -> Tensor:
        """Amounts [B, A, 13], from 0 on."""
        features, there = self.sentences(states, words, sentence)
        what, where = self.what(features) * there[..., None], self.where(features)
        where = where / (where.sum(-1, keepdim=True) + 1e-6)
        return torch.einsum("bsa,bsw->baw", what, where)


class Sights(nn.Module):
    """What an image shows, and where.

    Args:
        channels: of the backbone's maps of strides 4, 8 and 16.
        side: of the map of stride 8, in fields.
        things: how many.
        materials: how many maps of shares of ground the network learns from.
    """

    def __init__(self, channels: tuple[int, int, int], side: int, things: int, materials: int) -> None:
        super().__init__()
        self.side = side
        fine, seen = 4 * channels[0] + channels[1] + 12, _WIDTH + materials
        for name, count in (("fine", fine), ("coarse", channels[2])):
            self.register_buffer(f"mean_{name}", torch.zeros(count))
            self.register_buffer(f"scale_{name}", torch.ones(count))
        self.fine, self.coarse = nn.Conv2d(fine, _WIDTH, 1), nn.Conv2d(channels[2], _WIDTH, 1, bias=False)
        self.second, self.third = (nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(2))
        self.norm_first, self.norm_second = nn.GroupNorm(8, _WIDTH), nn.GroupNorm(8, _WIDTH)
        self.material = nn.Conv2d(_WIDTH, materials, 1)
        self.sector = LinearRead(3 * 3 * seen + 2 * seen, things)
        share, core = _sectors(side)
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("core", core, persistent=False)

    @staticmethod
    def features(images: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """uint8 images [B, 3, S, S] and their maps of strides 4, 8 and 16 to what is seen at stride 8 (the colours and
        the finest maps are folded into it) and at stride 16."""
        colour = F.pixel_unshuffle(F.avg_pool2d(images.to(maps[0]) / 127.5 - 1, 4), 2)
        return torch.cat([F.pixel_unshuffle(maps[0], 2), maps[1], colour], 1), maps[2]

    @torch.no_grad()
    def begin(self, fine: Tensor, coarse: Tensor) -> None:
        """Takes mean and deviation of its inputs from some of them."""
        for name, part in (("fine", fine), ("coarse", coarse)):
            getattr(self, f"mean_{name}").copy_(part.float().mean(dim=(0, 2, 3)))
            getattr(self, f"scale_{name}").copy_(1 / (part.float().std(dim=(0, 2, 3)) + 1e-3))

    def ground(self, fine: Tensor, coarse: Tensor, *, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Logits of shares of ground [B, materials, side, side], and what the network sees beside them [B, 64, side,
        side]; `dropout` of channels of its inputs."""
        fine = (fine - self.mean_fine[:, None, None]) * self.scale_fine[:, None, None]  # type: ignore[index]
        coarse = (coarse - self.mean_coarse[:, None, None]) * self.scale_coarse[:, None, None]  # type: ignore[index]
        if dropout:
            fine, coarse = F.dropout2d(fine, dropout), F.dropout2d(coarse, dropout)
        coarse = F.interpolate(self.coarse(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        x = F.relu(self.norm_first(self.fine(fine) + coarse))
        x = x + F.relu(self.norm_second(self.second(x)))
        x = F.relu(self.third(x))
        return self.material(x), x

    def pooled(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Features of each sector, [B, 8, D]."""
        material, x = self.ground(fine, coarse)
        seen = torch.cat([x.float(), torch.sigmoid(material.float())], 1).flatten(2)  # [B, seen, pixels]
        mean = torch.einsum("bep,srp->bres", seen, self.share).flatten(1, 2)
        most = torch.stack([seen[:, :, core].amax(2) for core in self.core], 2)  # type: ignore[union-attr]
        sector, whole = torch.cat([mean, most], 1), torch.cat([seen.mean(2), seen.amax(2)], 1)
        near = torch.cat([sector, sector.roll(1, 2), sector.roll(-1, 2)], 1).transpose(1, 2)
        return torch.cat([near, whole[:, None].expand(-1, SECTORS, -1)], 2)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Shares of things in each sector, [B, A, 8]."""
        shares: Tensor = self.sector(self.pooled(fine, coarse)).transpose(1, 2)
        return shares


def _sectors(side: int) -> tuple[Tensor, Tensor]:
    """Weights [8, 2, pixels] of the means over the inner and outer part of each sector, and bool [8, pixels] of its
    core."""
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    north, east = -at[:, None].expand(side, side), at[None].expand(side, side)
    bearing = torch.rad2deg(torch.atan2(east, north))
    middle = torch.arange(SECTORS)[:, None, None] * (360 / SECTORS)
    off = ((bearing - middle + 180) % 360 - 180).abs()
    weight = (1 - off / (360 / SECTORS)).clamp(min=0)
    near = torch.hypot(east, north) < _NEAR
    share = torch.stack([weight * near, weight * ~near], 1).flatten(2)
    return share / share.sum(2, keepdim=True), (off < 2 / 3 * 360 / SECTORS).flatten(1)


def parts(shares: Tensor) -> Tensor:
    """Shares of things by sector [..., 8] as all that a text may ask for, [..., 18]: in each sector, in each quarter of
    the horizon round the middle of one, somewhere, and how much of it there is.

    A quarter holds a sector and half of each beside it; a thing is in one, or somewhere, if not all of its sectors are
    without.
    """
    without = 1 - shares
    quarters = 1 - without * (1 - shares.roll(1, -1) / 2) * (1 - shares.roll(-1, -1) / 2)
    anywhere = 1 - without.prod(-1, keepdim=True)
    return torch.cat([shares, quarters, anywhere, shares.mean(-1, keepdim=True)], -1)


def log_parts(shares: Tensor, usual: Tensor) -> Tensor:
    """How much likelier each thing is in each of the `parts` [..., A, 18] than it usually is, [A] in any sector; in
    nats."""
    around = usual[:, None].expand(-1, SECTORS)
    seen, expected = (parts(part.float()).clamp(_DOUBT, 1 - _DOUBT).log() for part in (shares, around))
    return seen - expected


def sides_as_quarters(told: Tensor) -> Tensor:
    """Amounts on the sides of a speaker [B, A, 4] to columns of azimuth [B, A, 8], the fifth of which is ahead."""
    return torch.stack([told, torch.zeros_like(told)], -1).flatten(-2).roll(SECTORS // 2, -1)
