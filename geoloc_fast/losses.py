"""Training losses over a matrix of scores `[queries, references]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["info_nce"]


def info_nce(
    score: Tensor,
    positive: Tensor | None = None,
    *,
    temperature: float | Tensor,
    mask: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    """InfoNCE of `score [B, R]`, the mean over queries, with the positive in the denominator:

        loss_b = -log( exp(s[b, p_b] / t) / sum_r exp(s[b, r] / t) )

    `positive [B]` is the reference of each query, default the diagonal. `mask [B, R]` is true
    where a reference must not count as a negative of a query (it lies within the threshold of it);
    positives are never masked. With `symmetric` the other direction, each positive reference
    against all the batch's queries, is averaged in; queries that share their positive do not then
    count against each other.
    """
    if score.ndim != 2:
        raise ValueError(f"score: expected [B, R], got {list(score.shape)}")
    queries, references = score.shape
    rows = torch.arange(queries, device=score.device)
    if positive is None:
        if queries > references:
            raise ValueError(
                f"positive: expected given where queries outnumber references, got None for score {list(score.shape)}"
            )
        positive = rows
    elif positive.shape != (queries,):
        raise ValueError(f"positive: expected [{queries}], got {list(positive.shape)}")
    if mask is None:
        mask = torch.zeros_like(score, dtype=torch.bool)
    elif mask.shape != score.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool {list(score.shape)}, got {mask.dtype} {list(mask.shape)}")
    # A temperature or cosine in half precision would put whole grey steps into the logits.
    logits = score.float() / temperature
    loss = _cross_entropy(logits, positive, mask)
    if symmetric:
        shared = mask[:, positive] | (positive[:, None] == positive[None, :])
        loss = (loss + _cross_entropy(logits[:, positive].T, rows, shared.T)) / 2
    return loss


def _cross_entropy(logits: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(positive), device=positive.device)
    dropped = mask.clone()
    dropped[rows, positive] = False
    return F.cross_entropy(logits.masked_fill(dropped, float("-inf")), positive)
