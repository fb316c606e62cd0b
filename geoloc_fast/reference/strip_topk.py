"""Reference of `strip_topk`: the k best rows of a bank for each query, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from geoloc_fast.reference import strip_bank
from geoloc_fast.reference.strip_bank import BankLayout
from geoloc_fast.reference.strip_score import score_all

_FLOATS_AT_ONCE = 1 << 22


def strip_topk(
    query: Tensor,  # [B, C, H, Wq]
    blocks: Tensor,
    layout: BankLayout,
    k: int,
    query_width: Tensor | None,
    select: str,
    alive: Tensor | None,  # bool [R]
    kind: str,  # of score: "cosine" | "dot"
    group: Tensor | None,  # int64 [R], ascending
) -> tuple[Tensor, Tensor, Tensor]:
    """score, index, shift [B, k]: best first, ties by lowest index; missing rows are -inf, -1, -1."""
    batch, device = query.shape[0], query.device
    score = torch.full((batch, k), -torch.inf, dtype=torch.float32, device=device)
    index = torch.full((batch, k), -1, dtype=torch.int64, device=device)
    shift = torch.full((batch, k), -1, dtype=torch.int64, device=device)
    values = layout.channels * layout.height * layout.columns
    at_once = max(1, _FLOATS_AT_ONCE // max(values, batch))
    for begin in range(0, layout.count, at_once):
        rows = torch.arange(begin, min(begin + at_once, layout.count), device=device)
        if alive is not None:
            rows = rows[alive[rows]]
        found, at = score_all(query, strip_bank.unpack(blocks, layout, rows), query_width, select, kind)
        real = found > -torch.inf  # neither NaN nor below all numbers
        score = torch.cat([score, torch.where(real, found, -torch.inf)], 1)
        index = torch.cat([index, torch.where(real, rows, -1)], 1)
        shift = torch.cat([shift, torch.where(real, at, -1)], 1)
        score, index, shift = _best_first(score, index, shift)
        if group is not None and layout.count > 0:
            again = _repeats(group[index.clamp(min=0)])
            score, index, shift = _best_first(
                score.masked_fill(again, -torch.inf), index.masked_fill(again, -1), shift.masked_fill(again, -1)
            )
        score, index, shift = score[:, :k], index[:, :k], shift[:, :k]
    return score, index, shift


def _best_first(score: Tensor, index: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows kept before have lower indices and stand first: a stable sort keeps ties in that order."""
    score, order = score.sort(dim=1, descending=True, stable=True)
    return score, index.gather(1, order), shift.gather(1, order)


def _repeats(group: Tensor) -> Tensor:
    """bool [B, n]: whether the same number stood before in its row."""
    ordered, order = group.sort(dim=1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)
