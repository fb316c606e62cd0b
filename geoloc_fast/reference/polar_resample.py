"""Reference of `polar_resample`; the formula is in the docstring of the public function."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Weights and indices of the four taps take about 100 bytes an output pixel; this bounds them to some 100 MB.
_PIXELS_AT_ONCE = 1 << 20


def polar_resample(
    images: Tensor,  # [B, C, S_row, S_col]
    rows: int,
    cols: int,
    column0_deg: float,
    outer_radius: bool,
    center: Tensor | None,  # [B, 2] float64
    max_radius: Tensor | None,  # [B] float64
    heading_deg: Tensor | None,  # [B] float64
    replicate_border: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """The definition of `geoloc_fast.polar_resample`, on its checked arguments: [B, C, rows, cols]."""
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    batch = images.shape[0]
    at_once = max(1, _PIXELS_AT_ONCE // (rows * cols))
    pieces = []
    for begin in range(0, max(1, batch), at_once):
        part = slice(begin, begin + at_once)
        row, col = sample_positions(
            images[part], rows, cols, column0_deg, outer_radius,
            *(None if item is None else item[part] for item in (center, max_radius, heading_deg)),
        )  # fmt: skip
        pieces.append(_bilinear(images[part].to(wide), row, col, replicate_border))
    out = torch.cat(pieces)
    if len(mean) > 0:
        out = (out - out.new_tensor(mean)[:, None, None]) / out.new_tensor(std)[:, None, None]
    if dtype == torch.uint8:
        return out.nan_to_num(0.0).round().clamp(0, 255).to(dtype)
    return out.to(dtype)


def sample_positions(
    images: Tensor,
    rows: int,
    cols: int,
    column0_deg: float,
    outer_radius: bool,
    center: Tensor | None,
    max_radius: Tensor | None,
    heading_deg: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(row, col) of every output pixel in index units, float64 [B or 1, H, W]."""
    in_rows, in_cols = images.shape[2:]
    double, device = torch.float64, images.device
    if center is None:
        center = torch.tensor([[in_rows / 2, in_cols / 2]], dtype=double, device=device)
    if max_radius is None:
        max_radius = torch.full((1,), min(in_rows, in_cols) / 2, dtype=double, device=device)
    if heading_deg is None:
        heading_deg = torch.zeros(1, dtype=double, device=device)
    i = torch.arange(rows, dtype=double, device=device)
    j = torch.arange(cols, dtype=double, device=device)
    share = (rows - i if outer_radius else rows - 1 - i) / rows
    r = max_radius[:, None, None] * share[:, None]  # [B, H, 1]
    theta = (column0_deg + heading_deg[:, None, None] + 360.0 * j / cols) * (math.pi / 180.0)  # [B, 1, W]
    row = center[:, 0, None, None] - r * torch.cos(theta)
    col = center[:, 1, None, None] + r * torch.sin(theta)
    return row, col


def _bilinear(images: Tensor, row: Tensor, col: Tensor, replicate: bool) -> Tensor:
    batch, channels, in_rows, in_cols = images.shape
    usable = torch.isfinite(row) & torch.isfinite(col) & (row.abs() < 1e9) & (col.abs() < 1e9)
    nowhere = 0.0 if replicate else -2.0
    row = torch.where(usable, row, nowhere).expand(batch, -1, -1)
    col = torch.where(usable, col, nowhere).expand(batch, -1, -1)
    row0, col0 = row.floor(), col.floor()
    pixels = images.reshape(batch, channels, in_rows * in_cols)
    out = images.new_zeros((batch, channels, *row.shape[1:]))
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        r, c = row0 + down, col0 + right
        weight = (1 - (row - r).abs()) * (1 - (col - c).abs())
        if not replicate:
            inside = (r >= 0) & (r < in_rows) & (c >= 0) & (c < in_cols)
            weight = torch.where(inside, weight, 0.0)
        index = (r.clamp(0, in_rows - 1) * in_cols + c.clamp(0, in_cols - 1)).long()
        value = pixels.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view_as(out)
        weight = weight.to(images.dtype)[:, None]
        # A pixel of weight 0 stays out of the sum: 0 * NaN would spread a neighbour's NaN.
        out = out + torch.where(weight == 0, 0.0, weight * value)
    return out
