"""Packing, unpacking, scoring and searching a bank as torch operators.

A bank travels as its blocks (uint8) and `shape` = [count, C, H, W]; `dtype` is that of the stored values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.ops import choose
from geoloc_fast.ops.library import register
from geoloc_fast.reference import strip_bank, strip_score, strip_topk
from geoloc_fast.reference.strip_bank import BankLayout

_NOT_WRITTEN = {name: choose.not_written(name) for name in ("cpu", "cuda", "triton")}


def _layout(shape: Sequence[int], dtype: str) -> BankLayout:
    count, channels, height, columns = shape
    return BankLayout(count, channels, height, columns, dtype)


def _run_pack(strips: Tensor, dtype: str) -> Tensor:
    choose.choose_backend("strip_pack", strips.device.type, _NOT_WRITTEN)
    blocks = strip_bank.pack(strips, dtype)
    choose.ran("strip_pack", "reference")
    return blocks


def _fake_pack(strips: Tensor, dtype: str) -> Tensor:
    layout = _layout(strips.shape, dtype)
    return strips.new_empty((layout.blocks * layout.block_bytes,), dtype=torch.uint8)


def _run_unpack(blocks: Tensor, shape: Sequence[int], dtype: str, index: Tensor) -> Tensor:
    choose.choose_backend("strip_unpack", blocks.device.type, _NOT_WRITTEN)
    strips = strip_bank.unpack(blocks, _layout(shape, dtype), index)
    choose.ran("strip_unpack", "reference")
    return strips


def _fake_unpack(blocks: Tensor, shape: Sequence[int], dtype: str, index: Tensor) -> Tensor:
    return blocks.new_empty((index.shape[0], *shape[1:]), dtype=torch.float32)


def _run_score(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    dtype: str,
    index: Tensor,
    query_width: Tensor | None,
    select: str,
) -> tuple[Tensor, Tensor]:
    choose.choose_backend("strip_score", query.device.type, _NOT_WRITTEN)
    result = strip_score.strip_score(query, blocks, _layout(shape, dtype), index, query_width, select)
    choose.ran("strip_score", "reference")
    return result


def _fake_score(query: Tensor, blocks: Tensor, shape: Any, dtype: str, index: Tensor, *rest: Any) -> Any:
    return query.new_empty(index.shape, dtype=torch.float32), torch.empty_like(index)


def _run_topk(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    dtype: str,
    k: int,
    query_width: Tensor | None,
    select: str,
    alive: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    choose.choose_backend("strip_topk", query.device.type, _NOT_WRITTEN)
    result = strip_topk.strip_topk(query, blocks, _layout(shape, dtype), k, query_width, select, alive)
    choose.ran("strip_topk", "reference")
    return result


def _fake_topk(query: Tensor, blocks: Tensor, shape: Any, dtype: str, k: int, *rest: Any) -> Any:
    size = (query.shape[0], k)
    return (
        query.new_empty(size, dtype=torch.float32),
        query.new_empty(size, dtype=torch.int64),
        query.new_empty(size, dtype=torch.int64),
    )


pack = register("strip_pack(Tensor strips, str dtype) -> Tensor", _run_pack, _fake_pack)
unpack = register(
    "strip_unpack(Tensor blocks, SymInt[] shape, str dtype, Tensor index) -> Tensor", _run_unpack, _fake_unpack
)
score = register(
    "strip_score(Tensor query, Tensor blocks, SymInt[] shape, str dtype, Tensor index, Tensor? query_width, "
    "str select) -> (Tensor, Tensor)",
    _run_score,
    _fake_score,
)
topk = register(
    "strip_topk(Tensor query, Tensor blocks, SymInt[] shape, str dtype, SymInt k, Tensor? query_width, str select, "
    "Tensor? alive) -> (Tensor, Tensor, Tensor)",
    _run_topk,
    _fake_topk,
)
