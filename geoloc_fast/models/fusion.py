"""Fusing the strips of one place: iterative attentional feature fusion (Dai et al., 2021).

With M an MS-CAM, x and y two strips of the same place in the same frame:

    z = M1(x + y) * x + (1 - M1(x + y)) * y
    F = M2(z)     * x + (1 - M2(z))     * y

M1 and M2 are two modules with weights of their own, each with a local and a global branch. The
result is a weighted mean of the two sources at every position, so fusing a strip with itself gives
that strip back: a place known from one source only is fused with itself, through the same path.

Every operation is pointwise or a mean over the whole map, so fusion commutes with rolling both
strips along azimuth.
"""

from __future__ import annotations

from torch import Tensor, nn

from geoloc_fast.models.encoder import normalise_strip

__all__ = ["IAFF", "MSCAM"]


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


class IAFF(nn.Module):
    """Fuses two strips `[N, C, H, W]` of the same places into one at unit norm."""

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.first_attention = MSCAM(channels, reduction=reduction)
        self.second_attention = MSCAM(channels, reduction=reduction)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape:
            raise ValueError(f"y: expected the shape of x {list(x.shape)}, got {list(y.shape)}")
        weight = self.first_attention(x + y)
        mixed = x * weight + y * (1 - weight)
        weight = self.second_attention(mixed)
        return normalise_strip(x * weight + y * (1 - weight))
