"""Describe a tile without a learned model: its colours, the directions of its edges, its texture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geoloc_fast.ops import checks
from geoloc_fast.ops import tile_signature as op

__all__ = ["TileSignature", "tile_signature"]

_LEAST_PX = 128  # below, the lowest rings of the spectrum hold no frequency


class TileSignature(NamedTuple):
    """Descriptors of B tiles, float32 (float64 of float64 images)."""

    colour: Tensor
    """[B, 96]: histograms of R, G and B in 32 bins each that overlap; each channel's sum is 1."""
    structure: Tensor
    """[B, 16]: how much of all change of brightness goes which way, in columns of azimuth; the sum is 1, or 0 in a tile
    without any."""
    texture: Tensor
    """[B, 32]: log power by spatial frequency, from coarse to fine, with mean 0."""

    def strip(self) -> Tensor:
        """`structure` as strips [B, 1, 1, 16] for `azimuth_match`, with column 0 at north (`column0_deg=0`)."""
        return self.structure[:, None, None]


def tile_signature(images: Tensor) -> TileSignature:
    """Colour, structure and texture of images [B, 3, H, W] (RGB, north up), at least 128 pixels each way.

    With x the images in [0, 1], averaged over squares of 2 x 2 pixels (what is finer belongs to sensor and
    compression; an odd last row or column is left out), and y = 0.299 R + 0.587 G + 0.114 B of them::

        colour[c, k]  = mean over pixels of max(0, 1 - |31 x_c - k|)                  k = 0 .. 31

    Of the central differences of y (towards east e and north n, border left out), with p = 16 atan2(e, n) / 360 deg::

        structure[j]  = sum of |(e, n)| max(0, 1 - |p - (j + 1/2)|) / sum of |(e, n)|  j = 0 .. 15, p modulo 16

    so column j is centred on azimuth 22.5 (j + 1/2) and an image turned clockwise by 22.5 degrees has its columns
    rolled by one to the right. Of P = |FFT((y - mean y) * Hann window)|^2 at frequency f in cycles a (halved) pixel::

        texture[k]    = log(mean of P with weights max(0, 1 - |64 f - (k + 1)|))       k = 0 .. 31, minus its mean

    Colour and texture do not feel a turn by 90 degrees; none of the three is differentiable (nothing in it is learned).

    Args:
        images: uint8, or floating in [0, 1].
    """
    checks.tensor("images", images, "[B, 3, H, W]", (torch.uint8, *checks.FLOATS))
    if images.shape[1] != 3 or min(images.shape[2:]) < _LEAST_PX:
        raise ValueError(
            f"images: expected [B, 3, H, W] of at least {_LEAST_PX} x {_LEAST_PX}, got {checks.describe(images)}"
        )
    return TileSignature(*op.forward(images.detach()))
