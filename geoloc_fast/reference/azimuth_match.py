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
    wide = windows.wide_dtype(query, strips)
    mask = windows.column_mask(query, query_width)
    query = windows.masked(query, mask).to(wide)
    scores = [query.new_zeros((query.shape[0], 0))]
    shifts = [torch.zeros((query.shape[0], 0), dtype=torch.int64, device=query.device)]
    for begin in range(0, strips.shape[0], strips_at_once(query, strips, select)):
        end = begin + strips_at_once(query, strips, select)
        chunk_noise = None if noise is None else noise[:, begin:end]
        score, shift = _match(query, mask, strips[begin:end].to(wide), select, scale, tau, chunk_noise)
        scores.append(score)
        shifts.append(shift)
    return torch.cat(scores, 1), torch.cat(shifts, 1)


def strips_at_once(query: Tensor, strips: Tensor, select: str) -> int:
    values = query.shape[1] * query.shape[2] * query.shape[3]
    copies = strips.shape[3] + (query.shape[0] if select == "gumbel" else 0)
    return max(1, _FLOATS_AT_ONCE // max(1, values * copies))


def _match(
    query: Tensor,
    mask: Tensor,
    strips: Tensor,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    pairs = windows.compare(query, mask, strips)
    if select == "gumbel":
        assert scale is not None and noise is not None
        logits = (scale.to(query.dtype) * pairs.correlation + noise.to(query.dtype)) / tau
        shift = windows.first_max(logits.detach())
        choice = windows.one_hot_through(logits.softmax(-1), shift)
        window = windows.windows(strips, query.shape[3])
        mixed = torch.einsum("brs,rchsx->brchx", choice, window) * mask[:, None, None, None]
        score = windows.guarded_cosine(
            (query[:, None] * mixed).sum((2, 3, 4)),
            mixed.square().sum((2, 3, 4)),
            query.square().sum((1, 2, 3))[:, None],
            strips.square().sum((1, 2, 3)),
        )
    else:
        shift = windows.first_max((pairs.cosine if select == "cosine" else pairs.correlation).detach())
        score = pairs.cosine.gather(2, shift[..., None])[..., 0]
    shift = torch.where(pairs.broken, 0, shift)
    return torch.where(pairs.broken, torch.nan, score), shift
