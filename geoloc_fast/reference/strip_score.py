"""Reference of `strip_score`: given queries against given rows of a bank."""

from __future__ import annotations

import torch
from torch import Tensor

from geoloc_fast.reference import strip_bank
from geoloc_fast.reference.azimuth_match import azimuth_match
from geoloc_fast.reference.strip_bank import BankLayout


def strip_score(
    query: Tensor,  # [B, C, H, Wq]
    blocks: Tensor,
    layout: BankLayout,
    index: Tensor,  # [B, n]; negative: no row, which scores -inf at shift -1
    query_width: Tensor | None,
    select: str,
) -> tuple[Tensor, Tensor]:
    """score float32 [B, n] and shift int64 [B, n]."""
    score = torch.full(index.shape, -torch.inf, dtype=torch.float32, device=query.device)
    shift = torch.full(index.shape, -1, dtype=torch.int64, device=query.device)
    for b in range(query.shape[0]):
        present = index[b] >= 0
        strips = strip_bank.unpack(blocks, layout, index[b, present])
        width = None if query_width is None else query_width[b : b + 1]
        found, at = score_all(query[b : b + 1], strips, width, select)
        score[b, present], shift[b, present] = found[0], at[0]
    return score, shift


def score_all(query: Tensor, strips: Tensor, query_width: Tensor | None, select: str) -> tuple[Tensor, Tensor]:
    """Computed in float64 and rounded once, so that equal strips score equal."""
    score, shift = azimuth_match(query.double(), strips.double(), query_width, select, None, 1.0, None)
    return score.float(), shift
