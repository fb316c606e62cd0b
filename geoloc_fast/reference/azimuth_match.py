"""Reference of `azimuth_match`: every query against every strip, over all shifts."""

from __future__ import annotations

import torch
from torch import Tensor

from geoloc_fast.reference import windows

# Floats of the largest intermediate held at once: the windows of a chunk of strips, and for "gumbel" the
# mixed windows of all pairs of the chunk.
_FLOATS_AT_ONCE = 1 << 24


def azimuth_match(
    query: Tensor,  # [B, C, H, Wq]
    strips: Tensor,  # [R, C, H, W]
    query_width: Tensor | None,  # [B] int64
    select: str,
    scale: Tensor | None,  # 0-dim; "gumbel" only, like tau and noise
    tau: float,
    noise: Tensor | None,  # [B, R, W]
) -> tuple[Tensor, Tensor]:
    """score [B, R] and shift [B, R]."""
    score, shift, *_ = _all_strips(query, strips, query_width, select, scale, tau, noise, False)
    return score, shift


def azimuth_match_with_slope(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    scale: Tensor,
    tau: float,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of "gumbel": score, shift, d score / d logit [B, W, R] and d score / d scale [B, R]."""
    score, shift, slope, scale_slope = _all_strips(query, strips, query_width, "gumbel", scale, tau, noise, True)
    return score, shift, slope.transpose(1, 2).contiguous(), scale_slope


def azimuth_match_backward(
    grad_score: Tensor,  # [B, R]
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, strips and scale, in their dtypes (without a scale: a zero nobody reads)."""
    wide = windows.wide_dtype(query, strips)
    grad_query = torch.zeros(query.shape, dtype=wide, device=query.device)
    grad_strips = torch.empty(strips.shape, dtype=strips.dtype, device=strips.device)
    grad_scale = query.new_zeros((), dtype=wide)
    at_once = strips_at_once(query, strips, select)
    # Strips do not see one another, so the graph of one chunk at a time is enough.
    for begin in range(0, strips.shape[0], at_once):
        part = slice(begin, begin + at_once)
        with torch.enable_grad():
            q = query.detach().requires_grad_()
            s = strips[part].detach().requires_grad_()
            a = None if scale is None else scale.detach().requires_grad_()
            n = None if noise is None else noise[:, part]
            score, _ = azimuth_match(q, s, query_width, select, a, tau, n)
            inputs = [q, s] if a is None else [q, s, a]
            grads = torch.autograd.grad(score, inputs, grad_score[:, part].to(score.dtype))
        grad_query += grads[0]
        grad_strips[part] = grads[1]
        if a is not None:
            grad_scale += grads[2]
    return grad_query.to(query.dtype), grad_strips, grad_scale if scale is None else grad_scale.to(scale.dtype)


def strips_at_once(query: Tensor, strips: Tensor, select: str) -> int:
    """How many strips are compared together, so that memory stays bounded."""
    values = query.shape[1] * query.shape[2] * query.shape[3]
    copies = strips.shape[3] + (query.shape[0] if select == "gumbel" else 0)
    return max(1, _FLOATS_AT_ONCE // max(1, values * copies))


def _all_strips(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
    with_slope: bool,
) -> tuple[Tensor, ...]:
    wide = windows.wide_dtype(query, strips)
    mask = windows.column_mask(query, query_width)
    query = windows.masked(query, mask).to(wide)
    batch, columns = query.shape[0], strips.shape[3]
    empty = [
        query.new_zeros((batch, 0)),
        torch.zeros((batch, 0), dtype=torch.int64, device=query.device),
        query.new_zeros((batch, 0, columns)),
        query.new_zeros((batch, 0)),
    ]
    parts = [tuple(empty if with_slope else empty[:2])]
    for begin in range(0, strips.shape[0], strips_at_once(query, strips, select)):
        end = begin + strips_at_once(query, strips, select)
        chunk_noise = None if noise is None else noise[:, begin:end]
        parts.append(_match(query, mask, strips[begin:end].to(wide), select, scale, tau, chunk_noise, with_slope))
    return tuple(torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))


def _match(
    query: Tensor,
    mask: Tensor,
    strips: Tensor,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
    with_slope: bool,
) -> tuple[Tensor, ...]:
    query, query_broken = windows.without_broken(query)
    strips, strips_broken = windows.without_broken(strips)
    broken = query_broken[:, None] | strips_broken
    pairs = windows.compare(query, mask, strips)
    slopes: tuple[Tensor, ...] = ()
    if select == "gumbel":
        assert scale is not None and noise is not None
        logits = (scale.to(query.dtype) * pairs.correlation + noise.to(query.dtype)) / tau
        broken = broken | windows.undefined(logits)
        logits = torch.where(broken[..., None], 0.0, logits)
        shift = windows.first_max(logits.detach())
        if with_slope:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_()
                soft_score = _gumbel_score(query.detach(), mask, strips.detach(), leaf, shift)
                (slope,) = torch.autograd.grad(soft_score.sum(), leaf)
            slope = torch.where(broken[..., None], 0.0, slope)
            slopes = slope, (slope * pairs.correlation).sum(-1) / tau
        score = _gumbel_score(query, mask, strips, logits, shift)
    else:
        shift = windows.first_max((pairs.cosine if select == "cosine" else pairs.correlation).detach())
        score = pairs.cosine.gather(2, shift[..., None])[..., 0]
    return torch.where(broken, torch.nan, score), torch.where(broken, 0, shift), *slopes


def _gumbel_score(query: Tensor, mask: Tensor, strips: Tensor, logits: Tensor, shift: Tensor) -> Tensor:
    """Straight through: the window at `shift` forward, the softmax of the logits over all windows backward."""
    choice = windows.one_hot_through(logits.softmax(-1), shift)
    window = windows.windows(strips, query.shape[3])
    mixed = torch.einsum("brs,rchsx->brchx", choice, window) * mask[:, None, None, None]
    return windows.guarded_cosine(
        (query[:, None] * mixed).sum((2, 3, 4)),
        mixed.square().sum((2, 3, 4)),
        query.square().sum((1, 2, 3))[:, None],
        strips.square().sum((1, 2, 3)),
    )
