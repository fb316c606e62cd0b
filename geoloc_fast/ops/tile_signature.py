"""`tile_signature` as a torch operator.

There is no kernel: bytes are counted instead of compared, and what is left is cheap in plain torch. Backends "cpu" and
"cuda" are this form on either device.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from geoloc_fast.ops import checks, choose
from geoloc_fast.ops.library import register
from geoloc_fast.reference import tile_signature as reference
from geoloc_fast.reference.tile_signature import AZIMUTHS, COLOURS, LUMA, RINGS

_SUMS = 1024  # the sum of four bytes is at most 1020
_AT_ONCE = 32  # tiles: what one step writes is still in the cache when the next reads it


def _run(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bytes_only = "" if images.dtype == torch.uint8 else f"it counts bytes, and there is no counting {images.dtype}"
    device = images.device.type
    backend = choose.choose_backend(
        "tile_signature",
        device,
        {
            "cpu": lambda: bytes_only or ("" if device == "cpu" else f"the images are on {device}"),
            "cuda": lambda: bytes_only or ("" if device == "cuda" else f"the images are on {device}"),
            "triton": lambda: "there is no Triton kernel",
        },
    )
    if len(images) == 0:  # a Fourier transform of nothing is an error
        colour, structure, texture = _fake(images)
    elif backend == "reference":
        colour, structure, texture = reference.tile_signature(images)
    else:
        count = len(images) if device == "cuda" else _AT_ONCE
        pieces = [_counted(images[begin : begin + count]) for begin in range(0, len(images), count)]
        colour, structure, texture = (torch.cat(part) for part in zip(*pieces, strict=True))
    choose.ran("tile_signature", backend)
    return colour, structure, texture


def _counted(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, rows, cols = images.shape
    rows, cols = rows // 2, cols // 2
    images = images[..., : 2 * rows, : 2 * cols]
    pairs = images[..., 0::2, :].to(torch.int16) + images[..., 1::2, :]
    sums = pairs[..., 0::2] + pairs[..., 1::2]  # [B, 3, rows, cols], of 2 x 2 bytes: 0 to 1020

    first = torch.arange(3 * batch, dtype=torch.int32, device=images.device) * _SUMS
    counts = torch.bincount((sums + first.view(batch, 3, 1, 1)).flatten(), minlength=3 * batch * _SUMS)
    tables = _tables(rows, cols, images.device)
    shares = counts.view(batch, 3, _SUMS).to(torch.float32) / (rows * cols)  # counts below 2^24 are exact
    colour = (shares @ tables[0]).flatten(1)

    red, green, blue = (weight * sums[:, channel].float() for channel, weight in enumerate(LUMA))
    grey = (red + green + blue) / (4 * 255)
    east = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    north = grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1]
    size = torch.hypot(east, north)
    column = torch.atan2(east, north) * (AZIMUTHS / (2 * math.pi)) + (AZIMUTHS - 0.5)
    below = column.floor()
    upper = (column - below) * size
    at = below.to(torch.int32) % AZIMUTHS
    at += torch.arange(batch, dtype=torch.int32, device=images.device).view(batch, 1, 1) * AZIMUTHS
    # In double: a tile has thousands of terms, and a float32 sum would feel their order.
    left, right = (
        torch.bincount(at.flatten(), share.flatten().double(), minlength=batch * AZIMUTHS).view(batch, AZIMUTHS)
        for share in (size - upper, upper)
    )
    rose = left + right.roll(1, dims=1)
    total = rose.sum(1, keepdim=True)
    structure = torch.where(total == 0, 0.0, rose / torch.where(total == 0, 1.0, total)).float()

    spectrum = torch.fft.rfft2((grey - grey.mean(dim=(1, 2), keepdim=True)) * tables[1])
    power = spectrum.real.square() + spectrum.imag.square()
    least = rows * cols * (1e-3 / 255) ** 2
    log = (power.flatten(1) @ tables[2] + least).log()
    return colour, structure, log - log.mean(dim=1, keepdim=True)


@lru_cache(maxsize=8)
def _tables(rows: int, cols: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What a sum of bytes gives each bin [1024, 32], the window [rows, cols], and what a frequency gives each ring
    [rows (cols / 2 + 1), 32], columns of sum 1 where the frequencies that are not computed count with their twins."""
    double = torch.float64
    value = torch.arange(_SUMS, dtype=double)[:, None] / (4 * 255)
    bins = (1 - ((COLOURS - 1) * value - torch.arange(COLOURS)).abs()).clamp(min=0)
    window = torch.outer(
        torch.hann_window(rows, periodic=False, dtype=double), torch.hann_window(cols, periodic=False, dtype=double)
    )
    half = cols // 2 + 1
    radius = torch.hypot(
        torch.fft.fftfreq(rows, dtype=double)[:, None].expand(rows, half), torch.fft.rfftfreq(cols, dtype=double)
    )
    twins = torch.full((half,), 2.0, dtype=double)
    twins[0] = 1.0
    if cols % 2 == 0:
        twins[-1] = 1.0
    share = (1 - (2 * RINGS * radius[..., None] - torch.arange(1, RINGS + 1)).abs()).clamp(min=0)
    share = (share * twins[:, None]).flatten(0, 1)
    rings = share / share.sum(0)
    return bins.float().to(device), window.float().to(device), rings.float().to(device)


def _fake(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    sizes = (3 * COLOURS, AZIMUTHS, RINGS)
    colour, structure, texture = (images.new_empty((images.shape[0], size), dtype=dtype) for size in sizes)
    return colour, structure, texture


def _check(images: Tensor) -> None:
    checks.tensor("images", images, "[B, 3, H, W]", checks.PIXELS)
    if images.shape[1] != 3:
        raise ValueError(f"images: expected [B, 3, H, W], got {checks.describe(images)}")


forward = register("tile_signature(Tensor images) -> (Tensor, Tensor, Tensor)", _run, _fake, check=_check)
