"""A loss over a bank of millions of rows without its matrix of scores: forward and backward block by block.

`bank_log_sum` is what a multi-similarity loss, a softmax or an InfoNCE over all prototypes needs of them. The
definition is `geoloc_fast.reference.bank_log_sum`; here memory is O(batch x block), and the gradient of
the bank holds only the rows that mattered.

Where the bank is spread over processes, each by a range of its rows, everybody's queries visit every process
(`spread_log_sum`, `spread_mix`): what travels is O(batch), never a row of the bank or its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.training.distributed import gather_sum, gathered, own_range, scatter_sum, world

__all__ = ["bank_log_sum", "blocks", "spread_log_sum", "spread_mix"]

_BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}  # of a block's scores: on a CPU what its caches hold
_LEAST_ROWS, _MOST_ROWS = 256, 1 << 16


def bank_log_sum(query: Tensor, bank: Tensor, ignored: Tensor, scale: float, *, least: float | None = None) -> Tensor:
    """log sum_r exp(scale <query_b, bank_r>) over the rows r that b does not ignore: [B].

    Args:
        query: [B, D], floating point.
        bank: [R, D], of the same type.
        ignored: int64 [B, K], rows that do not count for a query, -1 for none.
        scale: positive.
        least: with a number, the gradient of the bank is sparse and holds the rows whose share of some query's sum,
            times the gradient of that sum, is above it. None: dense, of all rows.
    """
    if query.ndim != 2 or bank.ndim != 2 or query.shape[1] != bank.shape[1] or query.dtype != bank.dtype:
        raise ValueError(
            f"query, bank: expected [B, D] and [R, D] of one type, got {query.dtype} {list(query.shape)} and "
            f"{bank.dtype} {list(bank.shape)}"
        )
    if ignored.ndim != 2 or len(ignored) != len(query) or ignored.dtype != torch.int64:
        raise ValueError(f"ignored: expected int64 [{len(query)}, K], got {ignored.dtype} {list(ignored.shape)}")
    if ignored.numel() and not (int(ignored.min()) >= -1 and int(ignored.max()) < len(bank)):
        raise ValueError(f"ignored: expected rows from -1 to {len(bank) - 1}, got {int(ignored.max())}")
    found: Tensor = _BankLogSum.apply(query, bank, ignored, float(scale), least)
    return found


def spread_log_sum(
    query: Tensor, bank: Tensor, rows: int, ignored: Tensor, scale: float, *, least: float | None = None
) -> Tensor:
    """`bank_log_sum` of this process's queries over all `rows` of a bank of which it has its own: [B].

    `ignored` counts rows of the whole. All processes have as many queries. The gradient of the bank is of everybody's
    queries, that of the queries over everybody's rows.
    """
    if world()[1] == 1:
        return bank_log_sum(query, bank, ignored, scale, least=least)
    here = bank_log_sum(gather_sum(query), bank, _own(gathered(ignored), rows), scale, least=least)
    found: Tensor = _LogSumAcross.apply(here)
    return found


def spread_mix(mix: Callable[[Tensor, Tensor], Tensor], rows: int, at: Tensor, weights: Tensor) -> Tensor:
    """mix(at, weights) [B, D], a sum over rows `at` [B, K] of a table of which this process has its own.

    `at` counts rows of the whole, -1 for none; `mix` is asked for everybody's, with those that are not here as -1.
    """
    if world()[1] == 1:
        return mix(at, weights)
    return scatter_sum(mix(_own(gathered(at), rows), gathered(weights)))


def _own(at: Tensor, rows: int) -> Tensor:
    """Rows of the whole as rows of this process's part, -1 where they are not in it."""
    first, end = own_range(rows)
    return torch.where((at >= first) & (at < end), at - first, -1)


class _LogSumAcross(torch.autograd.Function):
    """log of the sum over processes of exp(x), [B of all] in each, for the own queries: [B]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rank, processes = world()
        total = gathered(x).view(processes, -1).logsumexp(0)
        ctx.save_for_backward(torch.where(total.isfinite(), (x - total).exp(), 0))
        return total.chunk(processes)[rank]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (share,) = ctx.saved_tensors
        return share * gathered(grads[0])


def blocks(query: Tensor, rows: int) -> list[tuple[int, int]]:
    """Where the blocks of rows that a pass holds at once begin and end."""
    step = min(max(_BLOCK_BYTES[query.device.type] // max(4 * len(query), 1), _LEAST_ROWS), _MOST_ROWS)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _logits(query: Tensor, bank: Tensor, ignored: Tensor, start: int, stop: int) -> Tensor:
    """Scores of scaled queries with a block of the bank; minus infinity where ignored."""
    logits = query @ bank[start:stop].T
    for column in ignored.T:
        at = ((column >= start) & (column < stop)).nonzero()[:, 0]
        logits[at, column[at] - start] = float("-inf")
    return logits


class _BankLogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, bank: Tensor, ignored: Tensor, scale: float, least: float | None) -> Tensor:
        total = query.new_full((len(query),), float("-inf"))
        scaled = scale * query
        for start, stop in blocks(query, len(bank)):
            total = torch.logaddexp(total, _logits(scaled, bank, ignored, start, stop).logsumexp(1))
        ctx.save_for_backward(query, bank, ignored, total)
        ctx.scale, ctx.least = scale, least
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, bank, ignored, total = ctx.saved_tensors
        scale, least = ctx.scale, ctx.least
        wants_query, wants_bank = ctx.needs_input_grad[:2]
        grad = torch.where(total.isfinite(), grads[0], 0) * scale
        lift = torch.where(total.isfinite(), total, 0)
        scaled = scale * query
        to_query = torch.zeros_like(query) if wants_query else None
        to_bank = torch.empty_like(bank) if wants_bank and least is None else None
        rows: list[Tensor] = []
        values: list[Tensor] = []
        for start, stop in blocks(query, len(bank)):
            share = _logits(scaled, bank, ignored, start, stop).sub_(lift[:, None]).exp_().mul_(grad[:, None])
            if to_query is not None:
                to_query.addmm_(share, bank[start:stop])
            if to_bank is not None:
                torch.mm(share.T, query, out=to_bank[start:stop])
            elif wants_bank:
                kept = (share.abs().amax(0) > least * scale).nonzero()[:, 0]
                rows.append(kept + start)
                values.append(share[:, kept].T @ query)
        if wants_bank and least is not None:
            at, found = torch.cat(rows)[None], torch.cat(values)
            to_bank = torch.sparse_coo_tensor(at, found, bank.shape, is_coalesced=True, check_invariants=False)
        return to_query, to_bank, None, None, None
