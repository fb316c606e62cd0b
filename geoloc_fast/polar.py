"""Resample satellite images to columns of azimuth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.ops import checks
from geoloc_fast.ops import polar_resample as op


def polar_resample(
    images: Tensor,
    size: Sequence[int] = (128, 512),
    *,
    column0_deg: float = 180.0,
    radius: str = "inner",
    center: Tensor | Sequence[float] | None = None,
    max_radius: Tensor | float | None = None,
    heading_deg: Tensor | float | None = None,
    border: str = "zeros",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Resamples north-up images [B, C, S_row, S_col] around a centre to [B, C, H, W], whose columns are azimuth.

    Column j looks at ``theta_j = column0_deg + heading_deg[b] + 360 j / W`` degrees clockwise from north, and
    row i lies at ``r_i = R (H-1-i) / H`` ("inner") or ``R (H-i) / H`` ("outer") pixels from the centre::

        row = center_row - r_i cos(theta_j)        col = center_col + r_i sin(theta_j)

    in index units (pixel 0 sits at 0.0), bilinear. The defaults put north in the middle, as the published
    data sets store their panoramas; ``column0_deg=0, radius="outer"`` is the paper's equation.

    Args:
        images: uint8, float16, bfloat16, float32 or float64; contiguous and channels_last are both read in place.
        size: (H, W) of the result.
        center: (row, col) of each image, [B, 2] or one pair; default the middle (S_row/2, S_col/2).
        max_radius: R in pixels, [B] or one number; default half the shorter side.
        heading_deg: added to every column's azimuth, [B] or one number; default 0.
        border: a tap outside the image counts as 0 ("zeros") or as the nearest pixel ("replicate").
        mean, std: per channel, in the images' units; the result is (value - mean) / std.
        dtype: of the result; default that of the images, but float32 when uint8 images are normalised.

    The gradient reaches `images` only.
    """
    checks.tensor("images", images, "[B, C, H, W]", checks.PIXELS)
    if len(size) != 2:
        raise ValueError(f"size: expected (rows, columns), got {size!r}")
    rows, cols = size
    checks.whole("size[0]", rows, 1)
    checks.whole("size[1]", cols, 1)
    batch, channels, in_rows, in_cols = images.shape
    if in_rows == 0 or in_cols == 0:
        raise ValueError(f"images: expected at least one pixel, got {checks.describe(images)}")
    column0_deg = checks.finite("column0_deg", column0_deg)
    outer, replicate = radius == "outer", border == "replicate"
    if not outer:
        checks.choice("radius", radius, ("inner", "outer"))
    if not replicate:
        checks.choice("border", border, ("zeros", "replicate"))
    # What is absent is not looked at: on a small image each look is a good part of the call.
    if center is not None:
        center = checks.per_item("center", center, (batch, 2), images.device)
    if max_radius is not None:
        max_radius = checks.per_item("max_radius", max_radius, (batch,), images.device)
    if heading_deg is not None:
        heading_deg = checks.per_item("heading_deg", heading_deg, (batch,), images.device)
    mean_std = [] if mean is None and std is None else _normalization(mean, std, channels)
    if dtype is None:
        dtype = torch.float32 if mean_std and images.dtype == torch.uint8 else images.dtype
    elif dtype not in checks.PIXELS:
        raise TypeError(f"dtype: expected uint8 or a floating dtype, got {dtype}")

    geometry = (column0_deg, outer, center, max_radius, heading_deg, replicate)
    if images.requires_grad and torch.is_grad_enabled():
        if not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating dtype for images that require grad, got {dtype}")
        return _PolarResample.apply(images, rows, cols, geometry, mean_std, dtype)
    return op.forward(images, rows, cols, *geometry, mean_std, dtype)


def _normalization(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> list[float]:
    """Means, then standard deviations."""
    values = {"mean": [0.0] * channels, "std": [1.0] * channels}
    for name, given in (("mean", mean), ("std", std)):
        if given is None:
            continue
        numbers = given.tolist() if isinstance(given, Tensor) else list(given)
        if len(numbers) != channels:
            raise ValueError(f"{name}: expected {channels} numbers, one per channel, got {given!r}")
        values[name] = [checks.finite(name, number) for number in numbers]
    if 0.0 in values["std"]:
        raise ValueError(f"std: expected numbers other than 0, got {std!r}")
    return values["mean"] + values["std"]


class _PolarResample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        rows: int,
        cols: int,
        geometry: tuple[Any, ...],
        mean_std: list[float],
        dtype: torch.dtype,
    ) -> Tensor:
        column0_deg, outer, center, max_radius, heading_deg, replicate = geometry
        ctx.save_for_backward(center, max_radius, heading_deg)
        std = mean_std[len(mean_std) // 2 :]
        ctx.static = (images.shape[2], images.shape[3], column0_deg, outer, replicate, std, images.dtype)
        return op.forward(images, rows, cols, *geometry, mean_std, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        center, max_radius, heading_deg = ctx.saved_tensors
        in_rows, in_cols, column0_deg, outer, replicate, std, dtype = ctx.static
        grad_images = op.backward(
            grads[0], in_rows, in_cols, column0_deg, outer, center, max_radius, heading_deg, replicate, std, dtype
        )
        return grad_images, None, None, None, None, None
