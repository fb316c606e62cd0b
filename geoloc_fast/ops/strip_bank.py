"""Packing, unpacking, scoring and searching a bank as torch operators.

A bank travels as its blocks (uint8) and `shape` = [count, C, H, W]; `dtype` is that of the stored values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.ops import checks, choose
from geoloc_fast.ops.library import register, without_autocast
from geoloc_fast.ops.workspace import workspace
from geoloc_fast.reference import strip_bank, strip_score, strip_topk
from geoloc_fast.reference.strip_bank import LANES, BankLayout

MAX_K = 1024
# Packed at a time, so that a conversion to float32 stays small.
_BLOCKS_AT_ONCE = 256
_BLOCKS_AT_ONCE_CUDA = 16384
_LIST_BYTES_CUDA = 1 << 30  # one list for each query of a search
_reference_score = without_autocast(strip_score.strip_score)
_reference_curve = without_autocast(strip_score.strip_curve)
_reference_topk = without_autocast(strip_topk.strip_topk)
CUDA_SEARCHED_COLUMNS = (1, 16, 64)
_MOST_TRITON_COLUMNS = 4096
_MOST_MOVED = 1 << 26  # numbers of one query at every shift, which the search by Triton multiplies the bank with


@lru_cache
def _made_layout(shape: tuple[int, int, int, int], dtype: str) -> BankLayout:
    return BankLayout(*shape, dtype)


def _layout(shape: Sequence[int], dtype: str) -> BankLayout:
    return _made_layout(tuple(shape), dtype)


# What the native functions say is the same for every instruction set of a machine.
@lru_cache
def _topk_workspace(*sizes: Any) -> int:
    return _native.native_cpu.strip_topk_workspace(*sizes)  # type: ignore[union-attr]


@lru_cache
def _score_workspace(*sizes: int) -> int:
    return _native.native_cpu.strip_score_workspace(*sizes)  # type: ignore[union-attr]


def _choose(
    op: str,
    tensor: Tensor,
    columns: int,
    strips: Tensor | None = None,
    searched: BankLayout | None = None,
) -> str:
    # The usual case, without collecting reasons.
    if choose.cpu_is_free(tensor) and not _problem(_native.native_cpu, columns, strips):
        return "cpu"
    return choose.choose_backend(
        op,
        tensor.device.type,
        {
            "cpu": lambda: _can_run_cpu(tensor, columns, strips),
            "cuda": lambda: (
                choose.can_run_cuda(tensor)
                or _problem(_native.native_cuda, columns, strips)
                or _search_problem(tensor, searched)
            ),
            "triton": lambda: _can_run_triton(tensor, columns, searched),
        },
    )


def _can_run_cpu(tensor: Tensor, columns: int, strips: Tensor | None) -> str:
    return choose.can_run_cpu(tensor) or _problem(_native.native_cpu, columns, strips)


def _problem(native: Any, columns: int, strips: Tensor | None) -> str:
    if columns > native.max_strip_columns:
        return f"strips have {columns} columns, the kernels take at most {native.max_strip_columns}"
    if strips is not None and strips.dtype == torch.float64:
        return "strips of float64 are packed without rounding them to float32 first"
    return ""


def _search_problem(query: Tensor, bank: BankLayout | None) -> str:
    """Where CUDA has no kernel that screens; Triton has one for any W, and tensor cores to run it on."""
    if bank is None or _native.native_cuda.strip_topk_fits(_size(bank), bank.dtype == "bf16", _limits(query.device)):  # type: ignore[union-attr]
        return ""
    if bank.columns not in CUDA_SEARCHED_COLUMNS:
        return f"strips have {bank.columns} columns, the search has kernels for 1, 16 and 64"
    return f"a query of {bank.channels * bank.height} values per column does not fit the shared memory of a block"


def _can_run_triton(tensor: Tensor, columns: int, searched: BankLayout | None) -> str:
    if columns > _MOST_TRITON_COLUMNS:
        return f"strips have {columns} columns, the kernels take at most {_MOST_TRITON_COLUMNS}"
    moved = 0 if searched is None else searched.channels * searched.height * columns**2
    if moved > _MOST_MOVED:
        return f"a query moved to every shift has {moved} numbers, the kernel takes at most {_MOST_MOVED}"
    return choose.can_run_triton(tensor)


@cache
def _circle(columns: int) -> Tensor:
    """float64 [2, W]: cos and sin of 2 pi i / W, which the kernels' transforms read."""
    angle = torch.arange(columns, dtype=torch.float64) * (2 * math.pi / columns)
    return torch.stack([angle.cos(), angle.sin()])


def _float32(query: Tensor) -> Tensor:
    # To convert what needs no conversion takes torch most of a microsecond.
    return (query if query.dtype is torch.float32 else query.to(torch.float32)).contiguous()


def _check_blocks(blocks: Tensor, layout: BankLayout) -> None:
    """The kernels trust what they are told: this is where it is checked."""
    expected = layout.blocks * layout.block_bytes
    if blocks.dtype != torch.uint8 or blocks.shape != (expected,) or not blocks.is_contiguous():
        raise ValueError(f"blocks: expected {expected} contiguous bytes, got {blocks.dtype} {tuple(blocks.shape)}")
    if blocks.data_ptr() % strip_bank.ALIGNMENT:
        raise ValueError(f"blocks: expected an address that is a multiple of {strip_bank.ALIGNMENT}")


def _run_pack(strips: Tensor, dtype: str) -> Tensor:
    backend = _choose("strip_pack", strips, strips.shape[3], strips)
    if backend == "cuda":
        return _pack_cuda(strips, dtype)
    if backend == "triton":
        from geoloc_fast.triton_kernels import strip_bank as kernels

        blocks = kernels.pack(strips, dtype == "bf16", _layout(strips.shape, dtype).block_bytes)
        choose.ran("strip_pack", "triton")
        return blocks
    if backend == "reference":
        blocks = strip_bank.pack(strips, dtype)
        choose.ran("strip_pack", "reference")
        return blocks
    native: Any = _native.native_cpu
    layout = _layout(strips.shape, dtype)
    values = layout.channels * layout.height
    blocks = torch.empty(layout.blocks * layout.block_bytes, dtype=torch.uint8)
    threads = torch.get_num_threads()
    memory = workspace(native.strip_pack_workspace(layout.columns, threads))
    for part, into in _parts(strips, blocks, layout, _BLOCKS_AT_ONCE):
        native.strip_pack(
            size=(part.shape[0], values, layout.columns), bf16=dtype == "bf16", blocks=into, strips=part,
            circle=_circle(layout.columns), workspace=memory, threads=threads,
        )  # fmt: skip
    choose.ran("strip_pack", "cpu", native.isa())
    return blocks


def _parts(strips: Tensor, blocks: Tensor, layout: BankLayout, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Strips of `at_once` blocks as float32, and those blocks."""
    for first in range(0, layout.blocks, at_once):
        last = first + at_once
        yield (
            _float32(strips[first * LANES : last * LANES]),
            blocks[first * layout.block_bytes : last * layout.block_bytes],
        )


def _fake_pack(strips: Tensor, dtype: str) -> Tensor:
    count, channels, height, columns = strips.shape
    layout = BankLayout(count, channels, height, columns, dtype)  # of symbols, perhaps
    return strips.new_empty((layout.blocks * layout.block_bytes,), dtype=torch.uint8)


def _run_unpack(blocks: Tensor, shape: Sequence[int], dtype: str, index: Tensor) -> Tensor:
    layout = _layout(shape, dtype)
    backend = _choose("strip_unpack", blocks, layout.columns)
    if backend == "cuda":
        return _unpack_cuda(blocks, layout, index)
    if backend == "triton":
        from geoloc_fast.triton_kernels import strip_bank as kernels

        _check_blocks(blocks, layout)
        strips = kernels.unpack(blocks, shape, dtype == "bf16", index)
        choose.ran("strip_unpack", "triton")
        return strips
    if backend == "reference":
        strips = strip_bank.unpack(blocks, layout, index)
        choose.ran("strip_unpack", "reference")
        return strips
    native: Any = _native.native_cpu
    index = index.contiguous()
    strips = torch.empty((index.shape[0], *shape[1:]), dtype=torch.float32)
    threads = torch.get_num_threads()
    memory = workspace(native.strip_unpack_workspace(layout.columns, threads))
    native.strip_unpack(
        size=_size(layout), bf16=dtype == "bf16", blocks=blocks, index=index, out=strips,
        circle=_circle(layout.columns), workspace=memory, threads=threads,
    )  # fmt: skip
    choose.ran("strip_unpack", "cpu", native.isa())
    return strips


def _size(layout: BankLayout) -> tuple[int, int, int]:
    return layout.count, layout.channels * layout.height, layout.columns


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
    kind: str = "cosine",
) -> tuple[Tensor, Tensor]:
    layout = _layout(shape, dtype)
    backend = _choose("strip_score", query, layout.columns)
    if backend == "cuda":
        score = torch.empty(index.shape, dtype=torch.float32, device=query.device)
        shift = torch.empty(index.shape, dtype=torch.int64, device=query.device)
        _score_cuda(query, blocks, layout, index, query_width, select, kind, score=score, shift=shift)
        choose.ran("strip_score", "cuda")
        return score, shift
    if backend == "triton":
        from geoloc_fast.triton_kernels import strip_score as kernels

        _check_blocks(blocks, layout)
        found = kernels.score(query, blocks, shape, dtype == "bf16", index, query_width, select, kind)
        choose.ran("strip_score", "triton")
        return found
    if backend == "reference":
        result = _reference_score(query, blocks, layout, index, query_width, select, kind)
        choose.ran("strip_score", "reference")
        return result
    native: Any = _native.native_cpu
    query, index = _float32(query), index.contiguous()
    query_width = None if query_width is None else query_width.contiguous()
    size, threads = _size(layout), torch.get_num_threads()
    batch, _, _, padded_width = query.shape
    # (torch takes sizes one by one in half the time of a shape)
    score, shift = query.new_empty(*index.shape), index.new_empty(*index.shape)
    memory = workspace(_score_workspace(batch, *size[1:], padded_width, threads))
    native.strip_score(
        size=size, bf16=dtype == "bf16", blocks=blocks, query=query, query_width=query_width,
        cosine=select == "cosine", dot=kind == "dot", index=index, score=score, shift=shift, curve=None,
        circle=_circle(layout.columns), workspace=memory, threads=threads,
    )  # fmt: skip
    choose.ran("strip_score", "cpu", native.isa())
    return score, shift


def _fake_score(query: Tensor, blocks: Tensor, shape: Any, dtype: str, index: Tensor, *rest: Any) -> Any:
    return query.new_empty(index.shape, dtype=torch.float32), torch.empty_like(index)


def _run_curve(
    query: Tensor, blocks: Tensor, shape: Sequence[int], dtype: str, index: Tensor, query_width: Tensor | None
) -> Tensor:
    layout = _layout(shape, dtype)
    backend = _choose("strip_curve", query, layout.columns)
    if backend == "cuda":
        curve = torch.empty((*index.shape, layout.columns), dtype=torch.float32, device=query.device)
        _score_cuda(query, blocks, layout, index, query_width, "correlation", "cosine", curve=curve)
        choose.ran("strip_curve", "cuda")
        return curve
    if backend == "triton":
        from geoloc_fast.triton_kernels import strip_score as kernels

        _check_blocks(blocks, layout)
        curve = kernels.curve(query, blocks, shape, dtype == "bf16", index, query_width)
        choose.ran("strip_curve", "triton")
        return curve
    if backend == "reference":
        curve = _reference_curve(query, blocks, layout, index, query_width)
        choose.ran("strip_curve", "reference")
        return curve
    native: Any = _native.native_cpu
    query, index = _float32(query), index.contiguous()
    query_width = None if query_width is None else query_width.contiguous()
    size, threads = _size(layout), torch.get_num_threads()
    batch, _, _, padded_width = query.shape
    curve = query.new_empty(*index.shape, layout.columns)
    memory = workspace(_score_workspace(batch, *size[1:], padded_width, threads))
    native.strip_score(
        size=size, bf16=dtype == "bf16", blocks=blocks, query=query, query_width=query_width,
        cosine=False, dot=False, index=index, score=None, shift=None, curve=curve,
        circle=_circle(layout.columns), workspace=memory, threads=threads,
    )  # fmt: skip
    choose.ran("strip_curve", "cpu", native.isa())
    return curve


def _fake_curve(query: Tensor, blocks: Tensor, shape: Any, dtype: str, index: Tensor, *rest: Any) -> Any:
    return query.new_empty((*index.shape, shape[3]), dtype=torch.float32)


def _run_topk(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    dtype: str,
    k: int,
    query_width: Tensor | None,
    select: str,
    alive: Tensor | None,
    kind: str = "cosine",
    group: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _layout(shape, dtype)
    backend = _choose("strip_topk", query, layout.columns, searched=layout)
    if backend == "cuda":
        return _topk_cuda(query, blocks, layout, k, query_width, select, alive, kind, group)
    if backend == "triton":
        from geoloc_fast.triton_kernels import strip_topk as kernels

        _check_blocks(blocks, layout)
        best = kernels.topk(query, blocks, shape, dtype == "bf16", k, query_width, select, alive, kind, group)
        choose.ran("strip_topk", "triton")
        return best
    if backend == "reference":
        result = _reference_topk(query, blocks, layout, k, query_width, select, alive, kind, group)
        choose.ran("strip_topk", "reference")
        return result
    native: Any = _native.native_cpu
    query = _float32(query)
    query_width = None if query_width is None else query_width.contiguous()
    alive = None if alive is None else alive.contiguous()
    group = None if group is None else group.contiguous()
    size, threads = _size(layout), torch.get_num_threads()
    batch, _, _, padded_width = query.shape
    score, index = query.new_empty(batch, k), torch.empty(batch, k, dtype=torch.int64)
    shift = index.new_empty(batch, k)
    bf16 = dtype == "bf16"
    memory = workspace(_topk_workspace(size, bf16, batch, padded_width, k, threads))
    plan = native.strip_topk(
        size=size, bf16=bf16, blocks=blocks, query=query, query_width=query_width, cosine=select == "cosine",
        dot=kind == "dot", k=k, alive=alive, group=group, score=score, index=index, shift=shift,
        circle=_circle(layout.columns), workspace=memory, threads=threads,
    )  # fmt: skip
    choose.ran("strip_topk", "cpu", plan)
    return score, index, shift


def _fake_topk(query: Tensor, blocks: Tensor, shape: Any, dtype: str, k: int, *rest: Any) -> Any:
    size = (query.shape[0], k)
    return (
        query.new_empty(size, dtype=torch.float32),
        query.new_empty(size, dtype=torch.int64),
        query.new_empty(size, dtype=torch.int64),
    )


# On a GPU: nothing is looked at, so that nothing waits. A row that unpack is asked for outside the bank comes out NaN,
# and scores NaN.


@cache
def _circle_on(device: torch.device, columns: int) -> Tensor:
    """The same on a GPU, copied there once: before a graph is captured, a call of the same W must have run."""
    return _circle(columns).to(device)


@cache
def _limits(device: torch.device) -> tuple[int, int]:
    limits: tuple[int, int] = _native.native_cuda.device_limits(device.index)  # type: ignore[union-attr]
    return limits


def _memory_on(device: torch.device, nbytes: int) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


def _pack_cuda(strips: Tensor, dtype: str) -> Tensor:
    native: Any = _native.native_cuda
    layout = _layout(strips.shape, dtype)
    device = strips.device
    blocks = torch.empty(layout.blocks * layout.block_bytes, dtype=torch.uint8, device=device)
    for part, into in _parts(strips, blocks, layout, _BLOCKS_AT_ONCE_CUDA):
        size = (part.shape[0], *_size(layout)[1:])
        memory = _memory_on(device, native.strip_pack_workspace(size, dtype == "bf16"))
        native.strip_pack(
            size=size, bf16=dtype == "bf16", blocks=into, strips=part, circle=_circle_on(device, layout.columns),
            workspace=memory, **choose.cuda_place(strips),
        )  # fmt: skip
    choose.ran("strip_pack", "cuda")
    return blocks


def _unpack_cuda(blocks: Tensor, layout: BankLayout, index: Tensor) -> Tensor:
    native: Any = _native.native_cuda
    device, size, bf16 = blocks.device, _size(layout), layout.dtype == "bf16"
    index = index.contiguous()
    strips = torch.empty(
        (index.shape[0], layout.channels, layout.height, layout.columns), dtype=torch.float32, device=device
    )
    memory = _memory_on(device, native.strip_unpack_workspace(size, bf16, index.shape[0]))
    native.strip_unpack(
        size=size, bf16=bf16, blocks=blocks, index=index, out=strips, circle=_circle_on(device, layout.columns),
        workspace=memory, **choose.cuda_place(blocks),
    )  # fmt: skip
    choose.ran("strip_unpack", "cuda")
    return strips


def _score_cuda(
    query: Tensor,
    blocks: Tensor,
    layout: BankLayout,
    index: Tensor,
    query_width: Tensor | None,
    select: str,
    kind: str,
    *,
    score: Tensor | None = None,
    shift: Tensor | None = None,
    curve: Tensor | None = None,
) -> None:
    """Fills `score` and `shift`, or `curve`."""
    native: Any = _native.native_cuda
    device, size, bf16 = query.device, _size(layout), layout.dtype == "bf16"
    query, index = _float32(query), index.contiguous()
    query_width = None if query_width is None else query_width.contiguous()
    memory = _memory_on(device, native.strip_score_workspace(size, bf16, *index.shape))
    native.strip_score(
        size=size, bf16=bf16, blocks=blocks, query=query, query_width=query_width, cosine=select == "cosine",
        dot=kind == "dot", index=index, score=score, shift=shift, curve=curve,
        circle=_circle_on(device, layout.columns), workspace=memory, **choose.cuda_place(query),
    )  # fmt: skip


def _topk_cuda(
    query: Tensor,
    blocks: Tensor,
    layout: BankLayout,
    k: int,
    query_width: Tensor | None,
    select: str,
    alive: Tensor | None,
    kind: str,
    group: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    native: Any = _native.native_cuda
    device, size, bf16 = query.device, _size(layout), layout.dtype == "bf16"
    query = _float32(query)
    query_width = None if query_width is None else query_width.contiguous()
    alive = None if alive is None else alive.contiguous()
    group = None if group is None else group.contiguous()
    batch, _, _, padded_width = query.shape
    score = torch.empty((batch, k), dtype=torch.float32, device=device)
    index = torch.empty((batch, k), dtype=torch.int64, device=device)
    shift = torch.empty((batch, k), dtype=torch.int64, device=device)
    limits = _limits(device)
    # A query has one list at least, of which its share of the work space grows with k.
    at_once, plan = max(1, _LIST_BYTES_CUDA // native.strip_topk_list_bytes(k)), ""
    for first in range(0, max(batch, 1), at_once):
        part = slice(first, min(first + at_once, batch))
        queries, widths = part.stop - first, None if query_width is None else query_width[part]
        memory = _memory_on(
            device,
            native.strip_topk_workspace(size, bf16, queries, padded_width, query_width is not None, k, limits),
        )
        plan = native.strip_topk(
            size=size, bf16=bf16, blocks=blocks, query=query[part], query_width=widths, cosine=select == "cosine",
            dot=kind == "dot", k=k, alive=alive, group=group, score=score[part], index=index[part],
            shift=shift[part], circle=_circle_on(device, layout.columns), workspace=memory, limits=limits,
            **choose.cuda_place(query),
        )  # fmt: skip
    choose.ran("strip_topk", "cuda", plan)
    return score, index, shift


def _check_pack(strips: Tensor, dtype: str) -> None:
    checks.tensor("strips", strips, "[N, C, H, W]")
    if min(strips.shape[1:]) < 1:
        raise ValueError(f"strips: expected at least one value per strip, got {checks.describe(strips)}")
    checks.choice("dtype", dtype, strip_bank.DTYPES)


def _check_bank(blocks: Tensor, shape: Sequence[int], dtype: str) -> None:
    checks.choice("dtype", dtype, strip_bank.DTYPES)
    if len(shape) != 4 or shape[0] < 0 or min(shape[1:]) < 1:
        raise ValueError(f"shape: expected [count, C, H, W] of a bank, got {list(shape)}")
    _check_blocks(blocks, _layout(shape, dtype))


def _check_unpack(blocks: Tensor, shape: Sequence[int], dtype: str, index: Tensor) -> None:
    _check_bank(blocks, shape, dtype)
    checks.exactly("index", index, (torch.int64,), (index.numel(),), "blocks", blocks)


def _check_search(
    query: Tensor, blocks: Tensor, shape: Sequence[int], dtype: str, query_width: Tensor | None, select: str, kind: str
) -> None:
    _check_bank(blocks, shape, dtype)
    checks.tensor("query", query, "[B, C, H, Wq]")
    checks.same_device("query", query, "blocks", blocks)
    checks.fits("query", query, "the bank", shape)
    checks.exactly("query_width", query_width, (torch.int64,), query.shape[:1], "query", query)
    checks.choice("select", select, checks.SELECTIONS[:2])
    checks.choice("score", kind, checks.SCORES)


def _check_score(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    dtype: str,
    index: Tensor,
    query_width: Tensor | None,
    select: str = "cosine",
    kind: str = "cosine",
) -> None:
    _check_search(query, blocks, shape, dtype, query_width, select, kind)
    checks.exactly("index", index, (torch.int64,), (query.shape[0], *index.shape[-1:]), "query", query)


def _check_topk(
    query: Tensor,
    blocks: Tensor,
    shape: Sequence[int],
    dtype: str,
    k: int,
    query_width: Tensor | None,
    select: str,
    alive: Tensor | None,
    kind: str = "cosine",
    group: Tensor | None = None,
) -> None:
    _check_search(query, blocks, shape, dtype, query_width, select, kind)
    checks.whole("k", k, 1, MAX_K)
    checks.exactly("alive", alive, (torch.bool,), shape[:1], "blocks", blocks)
    checks.exactly("group", group, (torch.int64,), shape[:1], "blocks", blocks)


pack = register("strip_pack(Tensor strips, str dtype) -> Tensor", _run_pack, _fake_pack, check=_check_pack)
unpack = register(
    "strip_unpack(Tensor blocks, SymInt[] shape, str dtype, Tensor index) -> Tensor",
    _run_unpack,
    _fake_unpack,
    check=_check_unpack,
)
score = register(
    "strip_score(Tensor query, Tensor blocks, SymInt[] shape, str dtype, Tensor index, Tensor? query_width, "
    'str select, str score="cosine") -> (Tensor, Tensor)',
    _run_score,
    _fake_score,
    check=_check_score,
    guard=False,
)
curve = register(
    "strip_curve(Tensor query, Tensor blocks, SymInt[] shape, str dtype, Tensor index, Tensor? query_width) -> Tensor",
    _run_curve,
    _fake_curve,
    check=_check_score,
    guard=False,
)
topk = register(
    "strip_topk(Tensor query, Tensor blocks, SymInt[] shape, str dtype, SymInt k, Tensor? query_width, str select, "
    'Tensor? alive, str score="cosine", Tensor? group=None) -> (Tensor, Tensor, Tensor)',
    _run_topk,
    _fake_topk,
    check=_check_topk,
    guard=False,
)
