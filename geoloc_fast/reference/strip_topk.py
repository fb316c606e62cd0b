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
        found, at = score_all(query, strip_bank.unpack(blocks, layout, rows), query_width, select)
        real = ~torch.isnan(found)
        found = torch.where(real, found, -torch.inf)
        which = torch.where(real, rows, -1)
        # Rows already kept have lower indices and stand first: a stable sort keeps ties in that order.
        score, order = torch.cat([score, found], 1).sort(dim=1, descending=True, stable=True)
        score, order = score[:, :k], order[:, :k]
        index = torch.cat([index, which], 1).gather(1, order)
        shift = torch.cat([shift, torch.where(real, at, -1)], 1).gather(1, order)
    return score, index, shift
