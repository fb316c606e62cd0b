"""The parts of every azimuth operator: correlation, window energy, and the choice of a shift.

A window of width w at shift s of a strip is its columns s .. s+w-1 modulo W. Shapes: query [B, C, H, Wq],
strips [R, C, H, W], query_width int64 [B] (columns of a query beyond its own width do not exist).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A window with less than this share of its strip's energy is noise: it scores 0.
MIN_ENERGY_SHARE = 1e-6


class Pairs(NamedTuple):
    """Everything the choice of a shift needs, for every pair of a query and a strip."""

    correlation: Tensor  # [B, R, W] inner product of the query with the window at each shift
    energy: Tensor  # [B, R, W] squared norm of that window
    cosine: Tensor  # [B, R, W] cosine of query and window; 0 where the window (or the query) is empty


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: what the reference computes in."""
    return torch.float64 if torch.float64 in (tensor.dtype for tensor in tensors) else torch.float32


def column_mask(query: Tensor, query_width: Tensor | None) -> Tensor:
    """bool [B, Wq]: the columns that exist."""
    columns = torch.arange(query.shape[3], device=query.device)
    if query_width is None:
        return columns.new_ones((query.shape[0], query.shape[3]), dtype=torch.bool)
    return columns < query_width[:, None]


def masked(query: Tensor, mask: Tensor) -> Tensor:
    """The query with 0 in the columns that do not exist (whatever was stored there, NaN included)."""
    return torch.where(mask[:, None, None], query, 0.0)


def without_broken(items: Tensor) -> tuple[Tensor, Tensor]:
    """The items with 0 in place of those that hold NaN or Inf (or overflow), and which those are: bool [N].

    So a broken item touches neither its neighbours' results nor their gradients.
    """
    broken = ~torch.isfinite(items.detach().square().sum((1, 2, 3)))
    return torch.where(broken[:, None, None, None], 0.0, items), broken


def windows(strips: Tensor, width: int) -> Tensor:
    """[R, C, H, W, width]: every window of every strip, materialised. Only the reference can afford it."""
    columns = strips.shape[3]
    shift = torch.arange(columns, device=strips.device)
    index = (shift[:, None] + torch.arange(width, device=strips.device)) % columns
    return strips[..., index]


def compare(query: Tensor, mask: Tensor, strips: Tensor) -> Pairs:
    """`query` already masked, nothing broken."""
    window = windows(strips, query.shape[3])
    correlation = torch.einsum("bchx,rchsx->brs", query, window)
    column_energy = strips.square().sum((1, 2))  # [R, W]
    window_energy = windows(column_energy[:, None, None], query.shape[3])[:, 0, 0]  # [R, W, Wq]
    energy = torch.einsum("bx,rsx->brs", mask.to(query.dtype), window_energy)
    query_energy = query.square().sum((1, 2, 3))
    strip_energy = column_energy.sum(1)
    cosine = guarded_cosine(correlation, energy, query_energy[:, None, None], strip_energy[:, None])
    return Pairs(correlation, energy, cosine)


def guarded_cosine(product: Tensor, energy: Tensor, query_energy: Tensor, strip_energy: Tensor) -> Tensor:
    """product / (|query| |window|), and 0 where the window is empty, nearly empty, or the query is."""
    usable = (energy > MIN_ENERGY_SHARE * strip_energy) & (query_energy > 0)
    norm = torch.where(usable, query_energy * energy, 1.0).sqrt()
    return torch.where(usable, product / norm, 0.0)


def first_max(values: Tensor) -> Tensor:
    """The lowest index of the maximum along the last axis (torch.argmax promises no order); 0 under NaN."""
    last = values.shape[-1]
    index = torch.arange(last, device=values.device)
    index = torch.where(values == values.amax(-1, keepdim=True), index, last).amin(-1)
    return torch.where(index == last, 0, index)


def undefined(logits: Tensor) -> Tensor:
    """Where a softmax along the last axis is not defined: NaN or +Inf among the logits, or nothing but -Inf."""
    return ~torch.isfinite(logits.detach().amax(-1))


def one_hot_through(soft: Tensor, shift: Tensor) -> Tensor:
    """One-hot at `shift` forward, the gradient of `soft` backward."""
    hard = torch.zeros_like(soft).scatter(-1, shift[..., None], 1.0)
    return hard + (soft - soft.detach())
