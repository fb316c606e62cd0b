"""Reference of `azimuth_crop`: the b-th query against the b-th strip, and the window it chose."""

from __future__ import annotations

import torch
from torch import Tensor

from geoloc_fast.reference import windows

_FLOATS_AT_ONCE = 1 << 24  # of the materialised windows


def azimuth_crop(
    query: Tensor,  # [B, C, H, Wq]
    strips: Tensor,  # [B, C, H, W]
    query_width: Tensor | None,  # [B] int64
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,  # [B, W]
) -> tuple[Tensor, Tensor, Tensor]:
    """crop [B, C, H, Wq] of norm 1 (0 where the window is empty), score [B], shift [B]."""
    wide = windows.wide_dtype(query, strips)
    mask = windows.column_mask(query, query_width)
    query = windows.masked(query, mask).to(wide)
    at_once = max(1, _FLOATS_AT_ONCE // max(1, query[:1].numel() * strips.shape[3]))
    pieces = [
        _crop(
            query[begin : begin + at_once],
            mask[begin : begin + at_once],
            strips[begin : begin + at_once].to(wide),
            select,
            scale,
            tau,
            None if noise is None else noise[begin : begin + at_once],
        )
        for begin in range(0, max(1, query.shape[0]), at_once)
    ]
    crop, score, shift = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return crop, score, shift


def azimuth_crop_backward(
    grad_crop: Tensor,  # [B, C, H, Wq]
    grad_score: Tensor,  # [B]
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, strips and scale, in their dtypes (without a scale: a zero nobody reads)."""
    with torch.enable_grad():
        q, s = query.detach().requires_grad_(), strips.detach().requires_grad_()
        a = None if scale is None else scale.detach().requires_grad_()
        crop, score, _ = azimuth_crop(q, s, query_width, select, a, tau, noise)
        grads = torch.autograd.grad(
            (crop, score),
            [q, s] if a is None else [q, s, a],
            (grad_crop.to(crop.dtype), grad_score.to(score.dtype)),
        )
    nobody = query.new_zeros((), dtype=windows.wide_dtype(query, strips))
    return grads[0], grads[1], nobody if scale is None else grads[2].to(scale.dtype)


def _crop(
    query: Tensor,
    mask: Tensor,
    strips: Tensor,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = query.dtype
    query, query_broken = windows.without_broken(query)
    strips, strips_broken = windows.without_broken(strips)
    broken = query_broken | strips_broken
    all_windows = windows.windows(strips, query.shape[3])  # [B, C, H, W, Wq]
    correlation = torch.einsum("bchx,bchsx->bs", query, all_windows)
    column_energy = strips.square().sum((1, 2))
    energy = torch.einsum(
        "bx,bsx->bs", mask.to(wide), windows.windows(column_energy[:, None, None], query.shape[3])[:, 0, 0]
    )
    query_energy = query.square().sum((1, 2, 3))
    strip_energy = column_energy.sum(1)
    if select == "gumbel":
        assert scale is not None and noise is not None
        logits = (scale.to(wide) * correlation + noise.to(wide)) / tau
        broken = broken | windows.undefined(logits)
        logits = torch.where(broken[..., None], 0.0, logits)
        shift = windows.first_max(logits.detach())
        choice = windows.one_hot_through(logits.softmax(-1), shift)
    else:
        cosine = windows.guarded_cosine(correlation, energy, query_energy[:, None], strip_energy[:, None])
        shift = windows.first_max((cosine if select == "cosine" else correlation).detach())
        choice = torch.zeros_like(correlation).scatter(1, shift[:, None], 1.0)
    window = torch.einsum("bs,bchsx->bchx", choice, all_windows) * mask[:, None, None]
    window_energy = window.square().sum((1, 2, 3))
    usable = window_energy > windows.MIN_ENERGY_SHARE * strip_energy
    norm = torch.where(usable, window_energy, 1.0).sqrt()
    crop = torch.where(usable[:, None, None, None], window / norm[:, None, None, None], 0.0)
    score = windows.guarded_cosine((query * window).sum((1, 2, 3)), window_energy, query_energy, strip_energy)
    crop = torch.where(broken[:, None, None, None], torch.nan, crop)
    return crop, torch.where(broken, torch.nan, score), torch.where(broken, 0, shift)
