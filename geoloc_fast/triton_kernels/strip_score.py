"""`strip_score` and `strip_curve` in Triton: rows are unpacked to float32, then float64 decides, a program per pair.

W K (W + w) float64 multiply-adds per pair. Formula: csrc/include/geoloc_fast/strip_score.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import on_device_of
from geoloc_fast.triton_kernels.azimuth_crop import (
    DOT,
    MIN_ENERGY_SHARE,
    SELECTION,
    block_sizes,
    choose_window,
    compare_windows,
    energy_of,
    load_width,
)
from geoloc_fast.triton_kernels.strip_bank import unpack

_FLOATS_AT_ONCE = 1 << 24  # of unpacked rows


@triton.jit
def strip_score_kernel(
    query, strips, query_width, index, score, shift, n, values, columns, query_columns,
    SELECT: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One program a pair of query and row: all shifts in float64, then the choice."""
    b = tl.program_id(0).to(tl.int64)
    pair = b * n + tl.program_id(1)
    if tl.load(index + pair) < 0:
        tl.store(score + pair, -float("inf"))
        tl.store(shift + pair, tl.full((), -1, tl.int64))
    else:
        best, at, _energy, _broken = choose_window(
            query + b * values * query_columns, strips + pair * values * columns, None, 0, None, 1.0,
            load_width(query_width, b, query_columns), columns, values, 1,
            query_columns, 0, 1, columns, 0, 1, SELECT, S, K,
        )  # fmt: skip
        tl.store(score + pair, best.to(tl.float32))
        tl.store(shift + pair, at.to(tl.int64))


@triton.jit
def strip_curve_kernel(
    query, strips, query_width, index, curve, n, values, columns, query_columns, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """curve [B, n, W]: the cosine at every shift."""
    b = tl.program_id(0).to(tl.int64)
    pair = b * n + tl.program_id(1)
    there = tl.load(index + pair) >= 0
    query += b * values * query_columns
    strip = strips + pair * values * columns
    width = load_width(query_width, b, query_columns)
    query_energy = energy_of(query, width, values, 1, query_columns, 0, 1, S, K)
    strip_energy = energy_of(strip, columns, values, 1, columns, 0, 1, S, K)
    infinity = float("inf")
    whole = (query_energy < infinity) & (strip_energy < infinity)
    least = tl.where(query_energy > 0, strip_energy * MIN_ENERGY_SHARE, infinity)
    for first in range(0, columns, S):
        shift = first + tl.arange(0, S)
        correlation, energy = compare_windows(
            query, strip, shift, width, columns, values, 1, query_columns, 0, 1, columns, 0, 1, S, K
        )  # fmt: skip
        usable = energy > least
        cosine = tl.where(usable, correlation / tl.sqrt(tl.where(usable, query_energy * energy, 1.0)), 0.0)
        cosine = tl.where(there, tl.where(whole, cosine, float("nan")), -infinity)
        tl.store(curve + pair * columns + shift, cosine.to(tl.float32), mask=shift < columns)


def selection(select: str, kind: str) -> int:
    """SELECT of `choose_window` for `select` and the kind of score."""
    return int(DOT.value) if kind == "dot" else SELECTION[select]


def score(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    bf16: bool,
    index: Tensor,
    query_width: Tensor | None,
    select: str,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """Score and shift of chosen rows, exactly: a stretch of rows at a time, so that memory stays bounded."""
    values, columns = shape[1] * shape[2], shape[3]
    query = query.float().contiguous()
    query_width = None if query_width is None else query_width.contiguous()
    best = query.new_full(index.shape, -torch.inf, dtype=torch.float32)
    shift = torch.full_like(index, -1)
    with on_device_of(query):
        for part, rows, strips in _stretches(blocks, shape, bf16, index):
            found, at = torch.empty_like(rows, dtype=torch.float32), torch.empty_like(rows)
            strip_score_kernel[rows.shape](
                query, strips, query_width, rows, found, at, rows.shape[1], values, columns, query.shape[3],
                SELECT=selection(select, kind), **block_sizes(values, columns),
            )  # fmt: skip
            best[:, part], shift[:, part] = found, at
    return best, shift


def curve(
    query: Tensor, blocks: Tensor, shape: Sequence[int], bf16: bool, index: Tensor, query_width: Tensor | None
) -> Tensor:
    """The score at every shift, of chosen rows."""
    values, columns = shape[1] * shape[2], shape[3]
    query = query.float().contiguous()
    query_width = None if query_width is None else query_width.contiguous()
    out = query.new_full((*index.shape, columns), -torch.inf, dtype=torch.float32)
    with on_device_of(query):
        for part, rows, strips in _stretches(blocks, shape, bf16, index):
            found = torch.empty((*rows.shape, columns), dtype=torch.float32, device=query.device)
            strip_curve_kernel[rows.shape](
                query, strips, query_width, rows, found, rows.shape[1], values, columns, query.shape[3],
                **block_sizes(values, columns),
            )  # fmt: skip
            out[:, part] = found
    return out


def _stretches(
    blocks: Tensor, shape: Sequence[int], bf16: bool, index: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some columns of `index` at a time: which, the rows in them (-1: none), and their strips."""
    count, channels, height, columns = shape
    batch, n = index.shape
    at_once = max(1, _FLOATS_AT_ONCE // max(1, batch * channels * height * columns))
    for first in range(0, n if batch and count else 0, at_once):
        part = slice(first, min(first + at_once, n))
        rows = index[:, part]
        rows = torch.where((rows >= 0) & (rows < count), rows, -1)
        yield part, rows, unpack(blocks, shape, bf16, rows.flatten())
