"""Training losses over a matrix of scores `[queries, references]`, and over scores of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["adversarial", "info_nce", "multi_similarity", "shift_cross_entropy", "soft_margin_triplet", "triplet"]


def info_nce(
    score: Tensor,
    positive: Tensor | None = None,
    *,
    temperature: float | Tensor,
    mask: Tensor | None = None,
    symmetric: bool = True,
    label_smoothing: float = 0.0,
    decoupled: bool = False,
) -> Tensor:
    """InfoNCE of `score [B, R]`, the mean over queries, with the positive in the denominator:

        loss_b = -log( exp(s[b, p_b] / t) / sum_r exp(s[b, r] / t) )

    Args:
        positive: [B], the reference of each query; default the diagonal.
        mask: bool [B, R], true where a reference must not count as a negative of a query (it lies within the
            threshold of it). Positives are never masked.
        symmetric: the other direction, each positive reference against all the batch's queries, is averaged in;
            queries that share their positive do not then count against each other.
        label_smoothing: this share of the target lies evenly on the positive and the negatives that count.
        decoupled: the positive is left out of the denominator. A query without negatives then counts 0.
    """
    score, positive, mask = _checked(score, positive, mask)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a share from 0 up to 1, got {label_smoothing}")
    logits = score / temperature
    loss = _cross_entropy(logits, positive, mask, label_smoothing, decoupled)
    if symmetric:
        rows = torch.arange(len(positive), device=score.device)
        back = logits[:, positive].T, rows, _shared(positive, mask)
        loss = (loss + _cross_entropy(*back, label_smoothing, decoupled)) / 2
    return loss


def _cross_entropy(logits: Tensor, positive: Tensor, mask: Tensor, label_smoothing: float, decoupled: bool) -> Tensor:
    at = positive[:, None] == torch.arange(logits.shape[1], device=logits.device)
    kept = ~mask | at
    own = logits.gather(1, positive[:, None])[:, 0]
    if decoupled:
        others = kept & ~at
        some = others.any(1)
        # Rows without negatives: finite in between, so that their gradient is 0 and not NaN.
        total = logits.masked_fill(~others & some[:, None], float("-inf")).logsumexp(1)
        loss = _smoothed(logits, own, total, kept, label_smoothing)
        return torch.where(some, loss, 0).mean()
    total = logits.masked_fill(~kept, float("-inf")).logsumexp(1)
    return _smoothed(logits, own, total, kept, label_smoothing).mean()


def _smoothed(logits: Tensor, own: Tensor, total: Tensor, kept: Tensor, share: float) -> Tensor:
    if share == 0:
        return total - own
    mean = (logits * kept).sum(1) / kept.sum(1)
    return total - (1 - share) * own - share * mean


def multi_similarity(
    score: Tensor,
    positive: Tensor,
    ignored: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 50.0,
    base: float = 0.0,
) -> Tensor:
    """Multi-similarity loss of `score [B, R]`, the mean over queries that have a positive:

        loss_b = 1/alpha log(1 + sum_p exp(-alpha (s[b, p] - base))) + 1/beta log(1 + sum_n exp(beta (s[b, n] - base)))

    Args:
        positive: bool [B, R]; several per query are right.
        ignored: bool [B, R], neither positive nor negative. All others are negatives.
    """
    if score.ndim != 2 or positive.shape != score.shape or positive.dtype != torch.bool:
        raise ValueError(
            f"positive: expected bool like score {list(score.shape)}, got {positive.dtype} {list(positive.shape)}"
        )
    score = score.float() if score.dtype in (torch.float16, torch.bfloat16) else score  # exp(50) overflows in half
    negative = ~positive if ignored is None else ~positive & ~ignored
    near = _log_one_plus((-alpha * (score - base)).masked_fill(~positive, float("-inf"))) / alpha
    far = _log_one_plus((beta * (score - base)).masked_fill(~negative, float("-inf"))) / beta
    counted = positive.any(1)
    return ((near + far) * counted).sum() / counted.sum().clamp(min=1)


def _log_one_plus(logits: Tensor) -> Tensor:
    """log(1 + sum exp(logits)) of each row."""
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1).logsumexp(1)


def triplet(
    score: Tensor,
    positive: Tensor | None = None,
    *,
    margin: float = 0.3,
    mask: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    """Triplet loss, the mean over all triplets: max(0, d_positive - d_negative + margin), d = 2 - 2 score.

    Arguments as in `info_nce`; every unmasked reference but the positive is a negative.
    """
    return _over_triplets(score, positive, mask, symmetric, lambda gap: F.relu(gap + margin))


def soft_margin_triplet(
    score: Tensor,
    positive: Tensor | None = None,
    *,
    sharpness: float = 10.0,
    mask: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    """Soft-margin triplet loss, the mean over all triplets: log(1 + exp(sharpness (d_positive - d_negative))),
    d = 2 - 2 score. Arguments as in `info_nce`."""
    return _over_triplets(score, positive, mask, symmetric, lambda gap: F.softplus(sharpness * gap))


def _over_triplets(
    score: Tensor,
    positive: Tensor | None,
    mask: Tensor | None,
    symmetric: bool,
    cost: Callable[[Tensor], Tensor],
) -> Tensor:
    score, positive, mask = _checked(score, positive, mask)
    rows = torch.arange(len(positive), device=score.device)
    directions = [(score, positive, mask)]
    if symmetric:
        directions.append((score[:, positive].T, rows, _shared(positive, mask)))
    losses = []
    for way, own, dropped in directions:
        negative = ~dropped & ~F.one_hot(own, way.shape[1]).bool()
        gap = 2 * (way - way.gather(1, own[:, None]))  # d_positive - d_negative
        losses.append((cost(gap) * negative).sum() / negative.sum().clamp(min=1))
    return torch.stack(losses).mean()


def _shared(positive: Tensor, mask: Tensor) -> Tensor:
    """Of the other direction: where a query must not count against a positive reference."""
    return (mask[:, positive] | (positive[:, None] == positive[None, :])).T


def _checked(score: Tensor, positive: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if score.ndim != 2:
        raise ValueError(f"score: expected [B, R], got {list(score.shape)}")
    queries, references = score.shape
    if positive is None:
        if queries > references:
            raise ValueError(
                f"positive: expected given where queries outnumber references, got None for score {list(score.shape)}"
            )
        positive = torch.arange(queries, device=score.device)
    elif positive.shape != (queries,):
        raise ValueError(f"positive: expected [{queries}], got {list(positive.shape)}")
    if mask is None:
        mask = torch.zeros_like(score, dtype=torch.bool)
    elif mask.shape != score.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool {list(score.shape)}, got {mask.dtype} {list(mask.shape)}")
    # A temperature or cosine in half precision would put whole grey steps into the logits.
    return (score if score.dtype == torch.float64 else score.float()), positive, mask


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
    query = F.normalize((query * own[:, None, None]).flatten(1), dim=1).view_as(query)
    # Every query column against every strip column, then the sums along the diagonals: windows are never cut out.
    product = query.flatten(1, 2).transpose(1, 2) @ strips.flatten(1, 2)  # [B, Wq, W]
    energy = own[:, :, None] * strips.square().sum(dim=(1, 2))[:, None]
    at = (column[:, None] + torch.arange(columns, device=query.device)) % columns
    at = at.expand_as(product)
    cosine = product.gather(2, at).sum(1) / energy.gather(2, at).sum(1).clamp(min=1e-24).sqrt()
    left = shift.floor()
    part = (shift - left).to(cosine)[:, None]
    left = left.long() % columns
    target = F.one_hot(left, columns) * (1 - part) + F.one_hot((left + 1) % columns, columns) * part
    return F.cross_entropy(cosine.float() / temperature, target)


def adversarial(scores: Sequence[Tensor], target: float) -> Tensor:
    """Binary cross-entropy of patches' scores (logits) against `target` (1 real, 0 made), the mean over the levels of
    their means: a level counts the same however many patches it has."""
    if not scores:
        raise ValueError("scores: expected those of at least one level, got none")
    losses = [F.binary_cross_entropy_with_logits(level, torch.full_like(level, target)) for level in scores]
    return torch.stack(losses).mean()
