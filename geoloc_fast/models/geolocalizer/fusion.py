"""Fusing the two strips of one place, x and y in the same frame, into one `[N, C, H, W]` at unit norm.

    iaff    z = M1(x + y) x + (1 - M1(x + y)) y,   F = M2(z) x + (1 - M2(z)) y      (Dai et al., 2021)
    aff     F = M(x + y) x + (1 - M(x + y)) y
    awa     F = a x + (1 - a) y, one learned weight a in (0, 1) for all
    fcl     F = layers([x, y]): two fully connected layers over the channels of both, at every position
    concat  F = [P x, Q y]: each strip reduced to half its channels, side by side

M, M1 and M2 are MS-CAMs with weights of their own, each with a local and a global branch. The first three are
weighted means of the two sources, so fusing a strip with itself gives that strip back: a place known from one source
only is fused with itself, through the same path. The last two are not; there a lone source is still fused with
itself, and training with sources left out is what makes that meaningful.

Every operation is pointwise or a mean over the whole map, so fusion commutes with rolling both strips along azimuth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from geoloc_fast.models.geolocalizer.encoder import normalise_strip

__all__ = ["AFF", "AWA", "FCL", "FUSIONS", "IAFF", "MSCAM", "Concat"]


class MSCAM(nn.Module):
    """Multi-scale channel attention: `[N, C, H, W]` to weights in (0, 1) of the same shape.

    Sigmoid of the sum of a local branch (per position) and a global branch (on the mean over the
    map); each is 1x1 convolution to C/r, norm, ReLU, 1x1 convolution to C, norm. The norm is
    GroupNorm with one group where the paper has BatchNorm: it needs no batch and no map, so batch
    size 1 trains.
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        # Below four values a norm over the channels of a 1x1 map leaves next to nothing.
        hidden = max(channels // reduction, 4)
        self.local_branch = _attention_branch(channels, hidden)
        self.global_branch = _attention_branch(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return (self.local_branch(x) + self.global_branch(pooled)).sigmoid()


def _attention_branch(channels: int, hidden: int) -> nn.Sequential:
    # No bias before a norm over channels: on unit-norm strips, whose values are near 0.03, it would
    # be larger than the signal and the norm would not take it out.
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.GroupNorm(1, hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 1, bias=False),
        nn.GroupNorm(1, channels),
    )


class _Fusion(nn.Module, ABC):
    """Checks, mixes and normalises; subclasses say how to mix."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape:
            raise ValueError(f"y: expected the shape of x {list(x.shape)}, got {list(y.shape)}")
        return normalise_strip(self.mix(x, y))

    @abstractmethod
    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, C, H, W] and [N, C, H, W] to [N, C, H, W], before it is brought to unit norm."""


class IAFF(_Fusion):
    """Iterative attentional feature fusion: attention on the sum, then on what that attention made."""

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.first_attention = MSCAM(channels, reduction=reduction)
        self.second_attention = MSCAM(channels, reduction=reduction)

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.first_attention(x + y)
        weight = self.second_attention(x * weight + y * (1 - weight))
        return x * weight + y * (1 - weight)


class AFF(_Fusion):
    """Attentional feature fusion: attention on the sum."""

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.attention = MSCAM(channels, reduction=reduction)

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.attention(x + y)
        return x * weight + y * (1 - weight)


class AWA(_Fusion):
    """Adaptive weighted addition: one learned weight for all places and positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.logit.sigmoid()
        return x * weight + y * (1 - weight)


class FCL(_Fusion):
    """Fully connected layers over the channels of both strips."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1)
        )

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat((x, y), dim=1))


class Concat(_Fusion):
    """Both strips side by side, each at half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"channels: expected an even number for two halves, got {channels}")
        self.first = nn.Conv2d(channels, channels // 2, 1)
        self.second = nn.Conv2d(channels, channels // 2, 1)

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((self.first(x), self.second(y)), dim=1)


FUSIONS = {"iaff": IAFF, "aff": AFF, "awa": AWA, "fcl": FCL, "concat": Concat}
