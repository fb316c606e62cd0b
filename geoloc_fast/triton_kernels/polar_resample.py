"""`polar_resample` in Triton. Formula: csrc/include/geoloc_fast/polar_resample.h.

One program takes 128 neighbouring columns of one output row, all channels. Coordinates are float64, so taps and
weights are those of the reference; weights and sums are float32, one rounding to the output. Bytes: the image's disc
once (neighbouring rows meet in L2), the strip once. The backward adds taps atomically: its last bits vary from run to
run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import on_device_of, padded
from geoloc_fast.triton_kernels.rounding import rounded

_BLOCK = 128


@triton.jit
def position(direction, center, radius, b, i, j, rows, cols, in_rows, in_cols, OUTER: tl.constexpr):
    """Row and column in the image, float64, of output pixels (i, j)."""
    share = (rows - i if OUTER else rows - 1 - i).to(tl.float64) / rows
    # An argument equal to 1 is a constant to Triton, which has no methods.
    half = tl.cast(tl.minimum(in_rows, in_cols), tl.float64) * 0.5
    largest = half if radius is None else tl.load(radius + b)
    center_row = tl.cast(in_rows, tl.float64) * 0.5 if center is None else tl.load(center + 2 * b)
    center_col = tl.cast(in_cols, tl.float64) * 0.5 if center is None else tl.load(center + 2 * b + 1)
    inside = j < cols
    cosine = tl.load(direction + j, mask=inside, other=0.0)
    sine = tl.load(direction + cols + j, mask=inside, other=0.0)
    return center_row - largest * share * cosine, center_col + largest * share * sine


@triton.jit
def tap(row, col, down, right, in_rows, in_cols, REPLICATE: tl.constexpr):
    """Pixel and weight of one of the four neighbours of a position."""
    usable = (tl.abs(row) < 1e9) & (tl.abs(col) < 1e9)  # false for NaN
    nowhere = 0.0 if REPLICATE else -2.0
    row = tl.where(usable, row, nowhere)
    col = tl.where(usable, col, nowhere)
    r = tl.floor(row) + down
    c = tl.floor(col) + right
    weight = (1.0 - tl.abs(row - r)) * (1.0 - tl.abs(col - c))
    r = r.to(tl.int64)
    c = c.to(tl.int64)
    if not REPLICATE:
        weight = tl.where((r >= 0) & (r < in_rows) & (c >= 0) & (c < in_cols), weight, 0.0)
    r = tl.minimum(tl.maximum(r, 0), in_rows - 1)
    c = tl.minimum(tl.maximum(c, 0), in_cols - 1)
    return r, c, weight.to(tl.float32)


@triton.jit
def polar_resample_kernel(
    images, out, direction, center, radius, mean_std,
    channels, in_rows, in_cols, rows, cols, stride_b, stride_c, stride_row, stride_col, direction_stride,
    OUTER: tl.constexpr, REPLICATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a stretch of a row: bilinear samples of all channels, normalised."""
    tiles = tl.cdiv(cols, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    i = program // tiles % rows
    b = program // tiles // rows
    j = program % tiles * BLOCK + tl.arange(0, BLOCK)
    row, col = position(
        direction + b * direction_stride, center, radius, b, i, j, rows, cols, in_rows, in_cols, OUTER
    )  # fmt: skip
    for c in range(channels):
        value = tl.zeros([BLOCK], tl.float32)
        image = images + b * stride_b + tl.cast(stride_c, tl.int64) * c
        for n in tl.static_range(4):
            r, k, weight = tap(row, col, n // 2, n % 2, in_rows, in_cols, REPLICATE)
            # A pixel of weight 0 is not read, so that its NaN does not spread.
            taken = (j < cols) & (weight != 0.0)
            value += weight * tl.load(image + r * stride_row + k * stride_col, mask=taken, other=0).to(tl.float32)
        if mean_std is not None:
            value = (value - tl.load(mean_std + c)) / tl.load(mean_std + channels + c)
        if out.dtype.element_ty == tl.uint8:
            value = tl.where(value == value, tl.minimum(tl.maximum(value, 0.0), 255.0), 0.0)
            up = tl.floor(value + 0.5)
            odd = up - 2.0 * tl.floor(up * 0.5)
            value = tl.where(up - value == 0.5, up - odd, up)  # halves to even
        at = ((b * channels + c) * rows + i) * cols + j
        tl.store(out + at, rounded(value, out.dtype.element_ty), mask=j < cols)


@triton.jit
def polar_resample_backward_kernel(
    grad, grad_images, direction, center, radius, std,
    channels, in_rows, in_cols, rows, cols, stride_b, stride_c, stride_row, stride_col, direction_stride,
    OUTER: tl.constexpr, REPLICATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same stretches backwards: gradients are added to the four pixels of each sample."""
    tiles = tl.cdiv(cols, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    i = program // tiles % rows
    b = program // tiles // rows
    j = program % tiles * BLOCK + tl.arange(0, BLOCK)
    row, col = position(
        direction + b * direction_stride, center, radius, b, i, j, rows, cols, in_rows, in_cols, OUTER
    )  # fmt: skip
    for c in range(channels):
        source = grad + b * stride_b + tl.cast(stride_c, tl.int64) * c + i * stride_row + j * stride_col
        value = tl.load(source, mask=j < cols, other=0.0).to(tl.float32)
        if std is not None:
            value = value / tl.load(std + c)
        image = grad_images + (b * channels + c) * in_rows * in_cols
        for n in tl.static_range(4):
            r, k, weight = tap(row, col, n // 2, n % 2, in_rows, in_cols, REPLICATE)
            tl.atomic_add(image + r * in_cols + k, weight * value, mask=(j < cols) & (weight != 0.0))


def _directions(cols: int, column0_deg: float, heading_deg: Tensor | None, device: torch.device) -> Tensor:
    """float64 [B or 1, 2, W]: cosine and sine of every column's azimuth."""
    theta = torch.arange(cols, dtype=torch.float64, device=device)[None] * (360.0 / cols) + column0_deg
    theta = theta if heading_deg is None else theta + heading_deg[:, None]
    theta = theta * (math.pi / 180.0)
    return torch.stack([theta.cos(), theta.sin()], 1)


def forward(
    images: Tensor,
    rows: int,
    cols: int,
    column0_deg: float,
    outer_radius: bool,
    center: Tensor | None,
    max_radius: Tensor | None,
    heading_deg: Tensor | None,
    replicate_border: bool,
    mean_std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Polar images [B, C, rows, cols]."""
    batch, channels, in_rows, in_cols = images.shape
    out = images.new_empty((batch, channels, rows, cols), dtype=dtype)
    if out.numel() == 0:
        return out
    block = padded(cols, 16, _BLOCK)
    with on_device_of(images):
        direction = _directions(cols, column0_deg, heading_deg, images.device)
        polar_resample_kernel[(batch * rows * triton.cdiv(cols, block),)](
            images, out, direction, center, max_radius, _numbers(mean_std, images.device),
            channels, in_rows, in_cols, rows, cols, *images.stride(),
            0 if heading_deg is None else direction.stride(0),
            OUTER=outer_radius, REPLICATE=replicate_border, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    in_rows: int,
    in_cols: int,
    column0_deg: float,
    outer_radius: bool,
    center: Tensor | None,
    max_radius: Tensor | None,
    heading_deg: Tensor | None,
    replicate_border: bool,
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of the images."""
    batch, channels, rows, cols = grad.shape
    grad_images = grad.new_zeros((batch, channels, in_rows, in_cols), dtype=torch.float32)
    if grad.numel():
        block = padded(cols, 16, _BLOCK)
        with on_device_of(grad):
            direction = _directions(cols, column0_deg, heading_deg, grad.device)
            polar_resample_backward_kernel[(batch * rows * triton.cdiv(cols, block),)](
                grad, grad_images, direction, center, max_radius, _numbers(std, grad.device),
                channels, in_rows, in_cols, rows, cols, *grad.stride(),
            0 if heading_deg is None else direction.stride(0),
                OUTER=outer_radius, REPLICATE=replicate_border, BLOCK=block, num_warps=4,
            )  # fmt: skip
    return grad_images.to(dtype)


def _numbers(values: Sequence[float], device: torch.device) -> Tensor | None:
    """On the device without waiting for it: each number is a fill, not a copy from pageable memory."""
    if len(values) == 0:
        return None
    return torch.cat([torch.full((1,), value, dtype=torch.float32, device=device) for value in values])
