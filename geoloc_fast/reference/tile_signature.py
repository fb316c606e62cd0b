"""Reference of `tile_signature`; the formula is in the docstring of the public function."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

COLOURS, AZIMUTHS, RINGS = 32, 16, 32
LUMA = (0.299, 0.587, 0.114)


def tile_signature(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """images [B, 3, H, W] uint8, or floating in [0, 1] -> colour [B, 96], structure [B, 16], texture [B, 32]."""
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    values = images.to(wide) / 255 if images.dtype == torch.uint8 else images.to(wide)
    rows, cols = values.shape[2] // 2 * 2, values.shape[3] // 2 * 2
    values = values[..., :rows, :cols]
    halved = (values[..., 0::2, 0::2] + values[..., 0::2, 1::2] + values[..., 1::2, 0::2] + values[..., 1::2, 1::2]) / 4
    grey = LUMA[0] * halved[:, 0] + LUMA[1] * halved[:, 1] + LUMA[2] * halved[:, 2]
    return _colour(halved), _structure(grey), _texture(grey)


def _colour(halved: Tensor) -> Tensor:
    centres = torch.arange(COLOURS, dtype=halved.dtype, device=halved.device)
    bins = [
        (1 - ((COLOURS - 1) * halved - centre).abs()).clamp(min=0).mean(dim=(2, 3))  # [B, 3]
        for centre in centres
    ]
    return torch.stack(bins, dim=2).flatten(1)


def _structure(grey: Tensor) -> Tensor:
    east = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
    north = (grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1]) / 2
    size = torch.hypot(east, north)
    column = torch.atan2(east, north) * (AZIMUTHS / (2 * math.pi)) - 0.5  # in columns from the middle of the first
    shares = []
    for j in range(AZIMUTHS):
        away = (column - j + AZIMUTHS / 2).remainder(AZIMUTHS) - AZIMUTHS / 2
        shares.append(((1 - away.abs()).clamp(min=0) * size).sum(dim=(1, 2)))
    rose = torch.stack(shares, dim=1)
    total = size.sum(dim=(1, 2))[:, None]
    return torch.where(total == 0, 0.0, rose / torch.where(total == 0, 1.0, total))


def _texture(grey: Tensor) -> Tensor:
    rows, cols = grey.shape[1:]
    double: Any = {"dtype": torch.float64, "device": grey.device}
    window = torch.outer(
        torch.hann_window(rows, periodic=False, **double), torch.hann_window(cols, periodic=False, **double)
    )
    spectrum = torch.fft.fft2((grey - grey.mean(dim=(1, 2), keepdim=True)) * window.to(grey.dtype))
    power = spectrum.real.square() + spectrum.imag.square()
    radius = torch.hypot(
        torch.fft.fftfreq(rows, **double)[:, None].expand(rows, cols), torch.fft.fftfreq(cols, **double)
    )
    means = []
    for k in range(RINGS):
        share = (1 - (2 * RINGS * radius - (k + 1)).abs()).clamp(min=0).to(grey.dtype)
        means.append((power * share).sum(dim=(1, 2)) / share.sum())
    # Below this a ring holds nothing but rounding: a thousandth of a grey level everywhere.
    least = rows * cols * (1e-3 / 255) ** 2
    log = (torch.stack(means, dim=1) + least).log()
    return log - log.mean(dim=1, keepdim=True)
