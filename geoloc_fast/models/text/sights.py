"""Things by direction: the space in which a description and an image from above meet.

    text   -> sentences: their tokens' states and word vectors -> what each tells of [A] and where that is [13]
    image  -> maps of a frozen backbone -> small convolutional network -> eight sectors -> shares [A, 9]

A thing is a kind ("water") or a kind with a trait ("house, roof: red"). Of an image, each has a probability in each of
eight sectors (centred on north, north-east, ...) and one for the tile as a whole. Of a text, each has an amount in each
of eight winds, on each of four sides of a speaker who does not know north, and without a direction.

The maps from a sentence and from a sector to things are linear and in closed form (`LinearRead.solve`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SECTORS", "SIDES", "WHERE", "LinearRead", "Sights", "Tellings", "log_share", "sides_as_sectors"]

SECTORS = 8
SIDES = 4
"""Ahead, right, behind, left."""
WHERE = SECTORS + SIDES + 1
"""Winds, sides, and no direction."""
_WIDTH = 64  # channels of the network
_NEAR = 0.52  # of half the tile: the inner part of a sector
_DOUBT = 0.01  # of every share: a thing that is told of may be there though nothing shows it


class LinearRead(nn.Module):
    """Standardised features to shares: ridge regression."""

    def __init__(self, features: int, things: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.linear = nn.Linear(features, things)

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] -> [..., things], near 0 to 1 and not bounded."""
        shares: Tensor = self.linear((x.float() - self.mean) * self.scale)  # type: ignore[operator]
        return shares

    @torch.no_grad()
    def solve(self, pairs: Iterable[tuple[Tensor, Tensor]], *, ridge: float) -> None:
        """The map of least squares for features [n, features] and shares [n, things], given in parts; `ridge` is added
        to the variance 1 of each feature."""
        count = 0
        origin = torch.zeros(())
        sums: list[Tensor] = []
        for x, y in pairs:
            x, y = x.double(), y.double()
            if not sums:
                origin = x.mean(0)  # near the mean: sums of squares lose nothing
            x = x - origin
            part = [x.sum(0), x.T @ x, y.sum(0), x.T @ y]
            sums = [a + b for a, b in zip(sums, part, strict=True)] if sums else part
            count += len(x)
        if count < 2:
            raise ValueError(f"pairs: expected features and shares of at least two rows, got {count}")
        sx, xx, sy, xy = (value / count for value in sums)
        covariance, cross = xx - torch.outer(sx, sx), xy - torch.outer(sx, sy)
        scale = 1 / (covariance.diagonal().clamp(min=0).sqrt() + 1e-4)
        covariance = scale[:, None] * covariance * scale
        covariance.diagonal().add_(ridge)
        weight = torch.linalg.solve(covariance, scale[:, None] * cross)
        self.mean.copy_(origin + sx)  # type: ignore[operator]
        self.scale.copy_(scale)  # type: ignore[operator]
        self.linear.weight.copy_(weight.T)
        self.linear.bias.copy_(sy)


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
        what = self.what(features).clamp(0, 1) * there[..., None]
        where = self.where(features).clamp(min=0) ** 2
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
        self.tile = LinearRead(SECTORS * 3 * seen + 2 * seen, things)
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

    def pooled(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Features of each sector [B, 8, D] and of the tile [B, E], for `sector` and `tile`."""
        material, x = self.ground(fine, coarse)
        seen = torch.cat([x.float(), torch.sigmoid(material.float())], 1).flatten(2)  # [B, seen, pixels]
        mean = torch.einsum("bep,srp->bres", seen, self.share).flatten(1, 2)
        most = torch.stack([seen[:, :, core].amax(2) for core in self.core], 2)  # type: ignore[union-attr]
        sector, whole = torch.cat([mean, most], 1), torch.cat([seen.mean(2), seen.amax(2)], 1)
        near = torch.cat([sector, sector.roll(1, 2), sector.roll(-1, 2)], 1).transpose(1, 2)
        whole_too = whole[:, None].expand(-1, SECTORS, -1)
        return torch.cat([near, whole_too], 2), torch.cat([sector.flatten(1), whole], 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Shares of things [B, A, 9]: in each sector, and in the tile."""
        sector, tile = self.pooled(fine, coarse)
        return torch.cat([self.sector(sector).transpose(1, 2), self.tile(tile)[..., None]], 2)


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


def log_share(shares: Tensor, usual: Tensor) -> Tensor:
    """How much likelier than usual each thing is, in nats."""
    return shares.float().clamp(_DOUBT, 1 - _DOUBT).log() - usual.clamp(_DOUBT, 1 - _DOUBT).log()


def sides_as_sectors(told: Tensor) -> Tensor:
    """Amounts on the sides of a speaker [B, A, 4] to eight columns of azimuth [B, A, 8], the middle straight ahead: a
    side is a quarter of the horizon, two columns."""
    return told.repeat_interleave(2, dim=-1).roll(3, -1) / 2
