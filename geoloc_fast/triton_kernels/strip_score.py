"""`strip_score` in Triton: rows are unpacked to float32, then `choose_window` decides in float64, a program a pair.

W K (W + w) float64 multiply-adds a pair. Formula: csrc/include/geoloc_fast/strip_score.h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import on_device_of
from geoloc_fast.triton_kernels.azimuth_crop import SELECTION, block_sizes, choose_window, load_width
from geoloc_fast.triton_kernels.strip_bank import unpack

_FLOATS_AT_ONCE = 1 << 24  # of unpacked rows


@triton.jit
def strip_score_kernel(
    query, strips, query_width, index, score, shift, n, values, columns, query_columns,
    SELECT: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
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


def score(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    bf16: bool,
    index: Tensor,
    query_width: Tensor | None,
    select: str,
) -> tuple[Tensor, Tensor]:
    count, channels, height, columns = shape
    batch, n = index.shape
    values = channels * height
    query = query.float().contiguous()
    query_width = None if query_width is None else query_width.contiguous()
    best = query.new_full(index.shape, -torch.inf, dtype=torch.float32)
    shift = torch.full_like(index, -1)
    if count == 0:
        return best, shift
    at_once = max(1, _FLOATS_AT_ONCE // max(1, batch * values * columns))
    with on_device_of(query):
        for first in range(0, n if batch else 0, at_once):
            rows = index[:, first : first + at_once]
            rows = torch.where((rows >= 0) & (rows < count), rows, -1)
            strips = unpack(blocks, shape, bf16, rows.flatten())
            found, at = torch.empty_like(rows, dtype=torch.float32), torch.empty_like(rows)
            strip_score_kernel[(batch, rows.shape[1])](
                query, strips, query_width, rows, found, at, rows.shape[1], values, columns, query.shape[3],
                SELECT=SELECTION[select], **block_sizes(values, columns),
            )  # fmt: skip
            best[:, first : first + at_once], shift[:, first : first + at_once] = found, at
    return best, shift
