"""Reference of `strip_score` and `strip_curve`: given queries against given rows of a bank."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from geoloc_fast.reference import strip_bank, windows
from geoloc_fast.reference.azimuth_match import azimuth_match, strips_at_once
from geoloc_fast.reference.strip_bank import BankLayout
from geoloc_fast.reference.windows import Pairs


def strip_score(
    query: Tensor,  # [B, C, H, Wq]
    blocks: Tensor,
    layout: BankLayout,
    index: Tensor,  # [B, n]; negative: no row, which scores -inf at shift -1
    query_width: Tensor | None,
    select: str,
    kind: str,  # of score: "cosine" | "dot"
) -> tuple[Tensor, Tensor]:
    """score float32 [B, n] and shift int64 [B, n]."""
    score = torch.full(index.shape, -torch.inf, dtype=torch.float32, device=query.device)
    shift = torch.full(index.shape, -1, dtype=torch.int64, device=query.device)
    for b, present, strips, width in _rows(blocks, layout, index, query_width):
        found, at = score_all(query[b : b + 1], strips, width, select, kind)
        score[b, present], shift[b, present] = found[0], at[0]
    return score, shift


def strip_curve(
    query: Tensor,  # [B, C, H, Wq]
    blocks: Tensor,
    layout: BankLayout,
    index: Tensor,  # [B, n]; negative: no row, which scores -inf at every shift
    query_width: Tensor | None,
) -> Tensor:
    """The cosine at every shift: float32 [B, n, W]."""
    curve = torch.full((*index.shape, layout.columns), -torch.inf, dtype=torch.float32, device=query.device)
    for b, present, strips, width in _rows(blocks, layout, index, query_width):
        parts = [
            torch.where(broken[..., None], torch.nan, pairs.cosine)
            for broken, pairs in _compare(query[b : b + 1], strips, width)
        ]
        if parts:
            curve[b, present] = torch.cat(parts, 1)[0].float()
    return curve


def score_all(
    query: Tensor, strips: Tensor, query_width: Tensor | None, select: str, kind: str
) -> tuple[Tensor, Tensor]:
    """Computed in float64 and rounded once, so that equal strips score equal."""
    if kind == "cosine":
        score, shift = azimuth_match(query.double(), strips.double(), query_width, select, None, 1.0, None)
        return score.float(), shift
    scores = [query.new_empty((query.shape[0], 0), dtype=torch.float32)]
    shifts = [torch.empty((query.shape[0], 0), dtype=torch.int64, device=query.device)]
    for broken, pairs in _compare(query, strips, query_width):
        shift = windows.first_max(pairs.correlation)
        product = pairs.correlation.gather(2, shift[..., None])[..., 0]
        scores.append(torch.where(broken, torch.nan, product).float())
        shifts.append(torch.where(broken, 0, shift))
    return torch.cat(scores, 1), torch.cat(shifts, 1)


def _rows(
    blocks: Tensor, layout: BankLayout, index: Tensor, query_width: Tensor | None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
    """For each query: its number, which of its rows there are (bool [n]), their strips, its width."""
    for b in range(index.shape[0]):
        present = index[b] >= 0
        width = None if query_width is None else query_width[b : b + 1]
        yield b, present, strip_bank.unpack(blocks, layout, index[b, present]), width


def _compare(query: Tensor, strips: Tensor, query_width: Tensor | None) -> Iterator[tuple[Tensor, Pairs]]:
    """In float64, some strips at a time: which pairs hold NaN or Inf (bool [B, r]), and everything about the pairs."""
    mask = windows.column_mask(query, query_width)
    query, query_broken = windows.without_broken(windows.masked(query, mask).double())
    for part in strips.split(strips_at_once(query, strips, "cosine")):
        some, strips_broken = windows.without_broken(part.double())
        yield query_broken[:, None] | strips_broken, windows.compare(query, mask, some)
