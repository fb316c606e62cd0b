"""Match strips over azimuth: find the best window, its score, and its heading."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from geoloc_fast.ops import azimuth_crop as crop_op
from geoloc_fast.ops import azimuth_match as match_op
from geoloc_fast.ops import checks
from geoloc_fast.ops import gumbel_noise as noise_op


class AzimuthMatch(NamedTuple):
    """The best window of each of R strips, for each of B queries."""

    score: Tensor
    """[B, R] cosine of query and chosen window."""
    shift: Tensor
    """[B, R] int64, first column of that window."""


class AzimuthCrop(NamedTuple):
    """The best window of the b-th strip, for each of B queries."""

    crop: Tensor
    """[B, C, H, Wq] the chosen window, norm 1; 0 beyond the query's width."""
    score: Tensor
    """[B] cosine of query and chosen window."""
    shift: Tensor
    """[B] int64, first column of that window."""


def azimuth_match(
    query: Tensor,
    strips: Tensor,
    *,
    query_width: Tensor | None = None,
    select: str = "correlation",
    scale: float | Tensor = 1.0,
    tau: float = 1.0,
    noise: Tensor | None = None,
) -> AzimuthMatch:
    """Slides every query [B, C, H, Wq] around every strip [R, C, H, W] and returns the best window of each pair.

    With window_s = columns s .. s+w-1 (modulo W) of a strip and w the query's width::

        correlation[s] = <query, window_s>          cosine[s] = correlation[s] / (|query| |window_s|)

    Args:
        query_width: int64 [B], how many columns of each query exist; default all Wq.
        select: the shift is the first maximum of the raw correlation ("correlation"), or of the cosine
            ("cosine"); for training, "gumbel" draws it from softmax((scale * correlation + noise) / tau), one-hot
            forward and soft backward.
        scale, tau: of "gumbel". `scale` may be a tensor with a gradient. On unit-norm strips 1/0.07 makes
            the draw follow the correlation; at 1 the noise drowns it.
        noise: [B, R, W] standard Gumbel noise for "gumbel"; drawn here when absent.

    The score is cosine[shift], in [-1, 1]: 0 where the query is empty, or the window holds less than 1e-6 of its
    strip's energy. A pair with NaN or Inf in it scores NaN at shift 0. Gradients reach query, strips and scale.
    """
    checks.strips_and_query(query, strips, "query", "[B, C, H, Wq]", "strips", "[R, C, H, W]")
    query_width = checks.query_width(query_width, query)
    shape = (query.shape[0], strips.shape[0], strips.shape[3])
    scale_, noise, tau = _selection(query, select, scale, tau, noise, shape)
    if torch.is_grad_enabled() and _needs_grad(query, strips, scale_):
        score, shift = _AzimuthMatch.apply(query, strips, query_width, select, scale_, tau, noise)
    else:
        score, shift = match_op.forward(query, strips, query_width, select, scale_, tau, noise)
    return AzimuthMatch(score, shift)


def azimuth_crop(
    query: Tensor,
    strips: Tensor,
    *,
    query_width: Tensor | None = None,
    select: str = "correlation",
    scale: float | Tensor = 1.0,
    tau: float = 1.0,
    noise: Tensor | None = None,
) -> AzimuthCrop:
    """Matches the b-th query [B, C, H, Wq] with the b-th strip [B, C, H, W], and returns the chosen window too.

    Arguments as in `azimuth_match`; `noise` is [B, W]. `crop` is the window divided by its norm, 0 where the
    window is empty and in columns beyond the query's width. Gradients reach query, strips and scale.
    """
    checks.strips_and_query(query, strips, "query", "[B, C, H, Wq]", "strips", "[B, C, H, W]")
    if query.shape[0] != strips.shape[0]:
        raise ValueError(f"strips: expected {query.shape[0]} strips, one per query, got {strips.shape[0]}")
    query_width = checks.query_width(query_width, query)
    shape = (query.shape[0], strips.shape[3])
    scale_, noise, tau = _selection(query, select, scale, tau, noise, shape)
    if torch.is_grad_enabled() and _needs_grad(query, strips, scale_):
        crop, score, shift = _AzimuthCrop.apply(query, strips, query_width, select, scale_, tau, noise)
    else:
        crop, score, shift = crop_op.forward(query, strips, query_width, select, scale_, tau, noise)
    return AzimuthCrop(crop, score, shift)


def shift_to_heading(shift: Tensor | float, width: Tensor | float, columns: int, *, column0_deg: float) -> Tensor:
    """Heading of a window's centre, in degrees clockwise from true north, in [0, 360).

    A window of `width` columns at `shift` of a strip of `columns` looks at
    ``column0_deg + 360 (shift + width / 2) / columns``, where `column0_deg` is the heading of the strip's left edge.
    `shift` may be fractional. The result is float64.
    """
    checks.whole("columns", columns, 1)
    column0_deg = checks.finite("column0_deg", column0_deg)
    device = next((value.device for value in (shift, width) if isinstance(value, Tensor)), None)
    shift_ = torch.as_tensor(shift, dtype=torch.float64, device=device)
    width_ = torch.as_tensor(width, dtype=torch.float64, device=device)
    heading = torch.remainder(column0_deg + 360.0 * (shift_ + width_ / 2) / columns, 360.0)
    return torch.where(heading >= 360.0, 0.0, heading)  # a tiny negative remainder rounds up to 360


def _selection(
    query: Tensor,
    select: str,
    scale: float | Tensor,
    tau: float,
    noise: Tensor | None,
    shape: tuple[int, ...],
) -> tuple[Tensor | None, Tensor | None, float]:
    """The checked arguments of "gumbel"; (None, None, 1.0) for the other selections."""
    checks.choice("select", select, checks.SELECTIONS)
    if select != "gumbel":
        if noise is not None:
            raise ValueError(f'noise: only select="gumbel" takes noise, got select={select!r}')
        return None, None, 1.0
    tau = checks.positive("tau", tau)
    if isinstance(scale, Tensor):
        if scale.numel() != 1 or not scale.dtype.is_floating_point:
            raise ValueError(f"scale: expected one number, got {checks.describe(scale)}")
        scale = scale.reshape(()).to(query.device)
    else:
        scale = torch.full((), checks.finite("scale", scale), device=query.device)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if noise is None:
        # From one number of torch's generator. Drawn with the strips last: the kernels read many strips at a time.
        seed = torch.randint(0, 2**62, (), dtype=torch.int64, device=query.device)
        noise = noise_op.draw(seed, [shape[0], shape[-1], *shape[1:-1]], wide)
        noise = noise.transpose(1, -1) if len(shape) == 3 else noise
    else:
        checks.tensor("noise", noise, "[B, W]" if len(shape) == 2 else "[B, R, W]")
        checks.same_device("noise", noise, "query", query)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise: expected shape {shape}, got {tuple(noise.shape)}")
    return scale, noise.detach(), tau


def _needs_grad(query: Tensor, strips: Tensor, scale: Tensor | None) -> bool:
    return query.requires_grad or strips.requires_grad or (scale is not None and scale.requires_grad)


class _AzimuthMatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        strips: Tensor,
        query_width: Tensor | None,
        select: str,
        scale: Tensor | None,
        tau: float,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        slope = scale_slope = None
        if scale is not None and noise is not None:
            score, shift, slope, scale_slope = match_op.forward_with_slope(
                query, strips, query_width, scale, tau, noise
            )
        else:
            score, shift = match_op.forward(query, strips, query_width, select, scale, tau, noise)
        ctx.save_for_backward(query, strips, query_width, scale, noise, score, shift, slope, scale_slope)
        ctx.select, ctx.tau = select, tau
        ctx.mark_non_differentiable(shift)
        return score, shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, strips, query_width, scale, noise, score, shift, slope, scale_slope = ctx.saved_tensors
        grad_query, grad_strips, grad_scale = match_op.backward(
            grads[0], query, strips, query_width, ctx.select, scale, ctx.tau, noise, score, shift, slope, scale_slope
        )
        return grad_query, grad_strips, None, None, None if scale is None else grad_scale, None, None


class _AzimuthCrop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        strips: Tensor,
        query_width: Tensor | None,
        select: str,
        scale: Tensor | None,
        tau: float,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        crop, score, shift = crop_op.forward(query, strips, query_width, select, scale, tau, noise)
        ctx.save_for_backward(query, strips, query_width, scale, noise, score, shift)
        ctx.select, ctx.tau = select, tau
        ctx.mark_non_differentiable(shift)
        return crop, score, shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, strips, query_width, scale, noise, score, shift = ctx.saved_tensors
        grad_query, grad_strips, grad_scale = crop_op.backward(
            grads[0], grads[1], query, strips, query_width, ctx.select, scale, ctx.tau, noise, score, shift
        )
        return grad_query, grad_strips, None, None, None if scale is None else grad_scale, None, None
