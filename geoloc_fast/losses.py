"""Training losses over a matrix of scores `[queries, references]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["info_nce", "shift_cross_entropy"]


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


def shift_cross_entropy(
    query: Tensor,
    strips: Tensor,
    shift: Tensor,
    *,
    temperature: float | Tensor,
    query_width: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the true shift among all shifts, for photos whose heading is known.

    The b-th query `[B, C, H, Wq]` against the b-th strip `[B, C, H, W]`: softmax over the cosines of
    all W windows, divided by the temperature. `shift [B]` may be fractional; the two columns around
    it then share the target. It tells the encoder which window is right where InfoNCE, through the
    window it selected itself, only tells whether that one was.
    """
    columns, width = strips.shape[3], query.shape[3]
    column = torch.arange(width, device=query.device)
    own = torch.ones_like(query[:, 0, 0]) if query_width is None else (column < query_width[:, None]).to(query)
    at = (torch.arange(columns, device=query.device)[:, None] + column) % columns
    windows = strips[..., at] * own[:, None, None, None]  # [B, C, H, W, Wq]
    query = F.normalize((query * own[:, None, None]).flatten(1), dim=1).view_as(query)
    windows = F.normalize(windows.transpose(1, 3).flatten(2), dim=2)  # [B, W, H C Wq]
    cosine = torch.einsum("bwn,bn->bw", windows, query.transpose(1, 2).flatten(1))
    left = shift.floor()
    part = (shift - left).to(cosine)[:, None]
    left = left.long() % columns
    target = F.one_hot(left, columns) * (1 - part) + F.one_hot((left + 1) % columns, columns) * part
    return F.cross_entropy(cosine.float() / temperature, target)
