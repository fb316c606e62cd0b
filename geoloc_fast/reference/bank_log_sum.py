"""The definition of `bank_log_sum`: the whole matrix of scores at once."""

from __future__ import annotations

from torch import Tensor

__all__ = ["bank_log_sum"]


def bank_log_sum(query: Tensor, bank: Tensor, ignored: Tensor, scale: float) -> Tensor:
    """log sum_r exp(scale <query_b, bank_r>) over the rows r that b does not ignore: [B].

    `query` [B, D], `bank` [R, D], `ignored` int64 [B, K] rows, -1 for none. Minus infinity where nothing is left.
    """
    logits = scale * (query @ bank.T)
    mask = logits.new_zeros(logits.shape).bool()
    for column in ignored.T:
        at = (column >= 0).nonzero()[:, 0]
        mask[at, column[at]] = True
    return logits.masked_fill(mask, float("-inf")).logsumexp(1)
