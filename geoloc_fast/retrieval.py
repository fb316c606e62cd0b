"""A bank of strips, and the search for the strips that match a photo best."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from geoloc_fast import _native, files
from geoloc_fast.ops import checks
from geoloc_fast.ops import strip_bank as op
from geoloc_fast.reference import strip_bank as layouts
from geoloc_fast.reference.strip_bank import BankLayout

MAX_K = op.MAX_K


class StripTopK(NamedTuple):
    """The best k rows of the bank for each of B queries."""

    score: Tensor
    """[B, k] float32, best first; -inf where there is no row."""
    index: Tensor  # type: ignore[assignment]
    """[B, k] int64 rows of the bank; -1 where there is no row."""
    shift: Tensor
    """[B, k] int64; -1 where there is no row."""


class StripScore(NamedTuple):
    """Scores of chosen rows of the bank for each of B queries."""

    score: Tensor
    """[B, n] float32; -inf where `index` is -1."""
    shift: Tensor
    """[B, n] int64; -1 where `index` is -1."""


class StripBank:
    """Strips packed for search, in one contiguous buffer that can also be a memory-mapped file.

    `buffer` (uint8) is the bank: `StripBank(buffer)` opens one, `StripBank.pack` makes one. Its bytes are
    documented in `geoloc_fast/reference/strip_bank.py`. The buffer is never written to.
    """

    def __init__(self, buffer: Tensor) -> None:
        checks.tensor("buffer", buffer, "[bytes]", (torch.uint8,))
        if not buffer.is_contiguous():
            raise ValueError(f"buffer: expected contiguous bytes, got stride {buffer.stride()}")
        self.layout = BankLayout.from_header(bytes(buffer[: layouts.HEADER_BYTES].tolist()))
        if buffer.shape[0] != self.layout.nbytes:
            raise ValueError(
                f"buffer: expected {self.layout.nbytes} bytes for {len(self)} strips, got {buffer.shape[0]}"
            )
        if buffer.data_ptr() % layouts.ALIGNMENT:
            raise ValueError(
                f"buffer: expected an address that is a multiple of {layouts.ALIGNMENT}, "
                f"got {buffer.data_ptr() % layouts.ALIGNMENT} bytes past one; copy it with .clone()"
            )
        self.buffer = buffer
        self.blocks = buffer[layouts.HEADER_BYTES :]
        self._file: tuple[str, int] | None = None  # path and descriptor of the file that is mapped

    @staticmethod
    def pack(
        strips: Tensor,
        *,
        dtype: str = "bf16",
        column0_deg: float = 180.0,
        device: torch.device | str | None = None,
    ) -> StripBank:
        """Packs strips [N, C, H, W], stored in `dtype` ("bf16" or "fp32").

        `column0_deg` is the heading of the left edge of every strip. Values must be finite.
        """
        checks.tensor("strips", strips, "[N, C, H, W]")
        if min(strips.shape[1:]) < 1:
            raise ValueError(f"strips: expected at least one value per strip, got {checks.describe(strips)}")
        checks.choice("dtype", dtype, layouts.DTYPES)
        column0_deg = checks.finite("column0_deg", column0_deg)
        strips = strips.detach().to(device)
        count, channels, height, columns = strips.shape
        layout = BankLayout(count, channels, height, columns, dtype, column0_deg)
        buffer = torch.empty(layout.nbytes, dtype=torch.uint8, device=strips.device)
        if buffer.is_cpu and _native.native_cpu is not None:
            _native.native_cpu.strip_bank_memory(bytes=layout.nbytes, memory=buffer)
        header = torch.frombuffer(bytearray(layout.header()), dtype=torch.uint8)
        buffer[: layouts.HEADER_BYTES] = header.to(strips.device)
        buffer[layouts.HEADER_BYTES :] = op.pack(strips, dtype)
        return StripBank(buffer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the bank as a file that `open` reads: complete under its name or not at all."""
        self._check_file()
        files.write_atomically(path, self.buffer.cpu().numpy().data)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> StripBank:
        """The bank in a file, mapped into memory: nothing is read before a search needs it.

        The map is private, so that nothing done to `buffer` reaches the file. A file that is not a bank, is cut
        short or has bytes too many is a ValueError. Do not change the file while it is open (`save` does not: it
        puts a new one in its place); a file that has shrunk is an error at the next search.
        """
        name = os.fspath(path)
        descriptor = os.open(name, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            try:
                layout = BankLayout.from_header(os.pread(descriptor, layouts.HEADER_BYTES, 0))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if size != layout.nbytes:
                raise ValueError(
                    f"{name}: expected {layout.nbytes} bytes for {layout.count} strips, got {size}: "
                    f"the file is {'cut short' if size < layout.nbytes else 'longer than its bank'}"
                )
            # No swap is set aside for the copies that a write would make, so a bank may be larger than memory.
            no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
            mapped = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE | no_reserve, mmap.PROT_READ | mmap.PROT_WRITE)
            bank = StripBank(torch.frombuffer(mapped, dtype=torch.uint8))
        except BaseException:
            os.close(descriptor)
            raise
        bank._file = (name, descriptor)
        weakref.finalize(bank, os.close, descriptor)
        return bank

    def _check_file(self) -> None:
        """Reading a map beyond the end of its file kills the process, so a file that shrank is found out before."""
        if self._file is None or torch.compiler.is_compiling():
            return
        name, descriptor = self._file
        size = os.fstat(descriptor).st_size
        if size != self.nbytes:
            raise RuntimeError(f"bank: {name} had {self.nbytes} bytes when it was opened and has {size} now")

    def unpack(self, index: Tensor | None = None) -> Tensor:
        """The strips of rows `index` [n] (default all) as they are stored: float32 [n, C, H, W]."""
        if index is None:
            index = torch.arange(len(self), device=self.buffer.device)
        checks.tensor("index", index, "[n]", (torch.int64, torch.int32))
        checks.same_device("index", index, "the bank", self.buffer)
        if checks.values_known(index) and index.numel():
            self._check_rows(*checks.extremes(index), 0)
        self._check_file()
        return op.unpack(self.blocks, self.layout.sizes, self.dtype, index.to(torch.int64))

    @staticmethod
    def join(parts: Sequence[tuple[StripBank, Tensor]]) -> StripBank:
        """One bank of the given rows [n] of several banks of one shape, dtype and frame, in this order.

        Values are copied as they are stored, so every score stays what it was, to the last bit.
        """
        if not parts:
            raise ValueError("parts: expected at least one bank, got none")
        layout = parts[0][0].layout
        for bank, rows in parts:
            if replace(bank.layout, count=0) != replace(layout, count=0):
                raise ValueError(f"parts: expected banks of one kind, got {parts[0][0]} and {bank}")
            checks.tensor("rows", rows, "[n]", (torch.int64,))
            if rows.numel():
                bank._check_rows(int(rows.min()), int(rows.max()), 0)
            bank._check_file()
        blocks = layouts.blocks_of(torch.cat([layouts.records(bank.blocks, bank.layout, rows) for bank, rows in parts]))
        layout = replace(layout, count=sum(rows.numel() for _, rows in parts))
        header = torch.frombuffer(bytearray(layout.header()), dtype=torch.uint8)
        return StripBank(torch.cat([header.to(blocks.device), blocks]))

    def __len__(self) -> int:
        return self.layout.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every strip."""
        return self.layout.shape

    @property
    def dtype(self) -> str:
        """How strips are stored: "bf16" or "fp32"."""
        return self.layout.dtype

    @property
    def column0_deg(self) -> float:
        """Heading of the left edge of every strip."""
        return self.layout.column0_deg

    @property
    def nbytes(self) -> int:
        """Size of the bank in bytes, header included."""
        return self.layout.nbytes

    @property
    def device(self) -> torch.device:
        """Where the bank lies."""
        return self.buffer.device

    def __repr__(self) -> str:
        return (
            f"StripBank({len(self)} strips of {self.shape}, {self.dtype}, column0_deg={self.column0_deg}, "
            f"{self.nbytes} bytes on {self.device})"
        )

    def _check_rows(self, low: int, high: int, lowest: int) -> None:
        if low < lowest or high >= len(self):
            raise ValueError(f"index: expected rows from {lowest} to {len(self) - 1}, got {low} to {high}")


def strip_topk(
    query: Tensor,
    bank: StripBank,
    k: int,
    *,
    query_width: Tensor | None = None,
    select: str = "correlation",
    score: str = "cosine",
    rows: int | None = None,
    alive: Tensor | None = None,
    group: Tensor | None = None,
) -> StripTopK:
    """Finds the k strips of the bank that match each query [B, C, H, Wq] best, over all shifts.

    Exact for the values the bank stores (what `bank.unpack` returns); ties go to the lowest row. Only the first `rows`
    strips are searched, R in all (default the whole bank); of them those with `alive[row] == False` (bool [R]) are
    skipped. Where fewer than k rows are left, index and shift are -1 and the score -inf. Memory is O(B k) beside the
    bank. `query_width` and `select` as in `azimuth_match`.

    With `score="dot"` the highest raw correlation chooses the shift and is the score, whatever `select` says; a score
    that float32 cannot tell from -inf is no score.

    `group` (int64 [R], ascending) says which rows belong to one place: the best row of a place is kept (of
    equals the lowest) and `k` counts places. `index` of the answer stays the row: `group[index]` is the place.
    """
    _check_search(query, bank, select)
    checks.choice("score", score, checks.SCORES)
    query_width = checks.query_width(query_width, query)
    checks.whole("k", k, 1, MAX_K)
    layout, blocks = bank.layout, bank.blocks
    if rows is not None:
        checks.whole("rows", rows, 0, len(bank))
        layout = replace(layout, count=rows)
        blocks = blocks[: layout.nbytes - layouts.HEADER_BYTES]
    if alive is not None:
        checks.tensor("alive", alive, "[R]", (torch.bool,))
        checks.same_device("alive", alive, "the bank", bank.buffer)
        if alive.shape[0] != layout.count:
            raise ValueError(f"alive: expected {layout.count} values (one per strip), got {alive.shape[0]}")
    if group is not None:
        checks.tensor("group", group, "[R]", (torch.int64,))
        checks.same_device("group", group, "the bank", bank.buffer)
        if group.shape[0] != layout.count:
            raise ValueError(f"group: expected {layout.count} values (one per strip), got {group.shape[0]}")
        if checks.values_known(group):
            checks.ascending("group", group)
    found = op.topk(_constant(query), blocks, layout.sizes, bank.dtype, k, query_width, select, alive, score, group)
    return StripTopK(*found)


def strip_score(
    query: Tensor,
    bank: StripBank,
    index: Tensor,
    *,
    query_width: Tensor | None = None,
    select: str = "correlation",
    score: str = "cosine",
) -> StripScore:
    """Score and shift of given rows, index [B, n], for each query. `strip_topk` decides with the same routine.

    An index of -1 scores -inf at shift -1, so that the padded answer of a search can be passed in as it is.
    `select` and `score` as in `strip_topk`.
    """
    _check_search(query, bank, select)
    checks.choice("score", score, checks.SCORES)
    query_width = checks.query_width(query_width, query)
    index = _check_index(index, query, bank)
    return StripScore(
        *op.score(_constant(query), bank.blocks, bank.layout.sizes, bank.dtype, index, query_width, select, score)
    )


def strip_curve(query: Tensor, bank: StripBank, index: Tensor, *, query_width: Tensor | None = None) -> Tensor:
    """The score of given rows, index [B, n], at every shift for each query: float32 [B, n, W].

    Value s is the cosine of the query and the renormalised window at shift s, to the last bit what `strip_score` gives
    where it chooses s: 0 where the window has less than 1e-6 of its strip's energy, NaN throughout where the strip or
    the query holds NaN or Inf. An index of -1 is -inf at every shift. So the maximum over several rows of a place is
    the best of them heading by heading, and layers that share a heading are added up curve by curve.
    """
    _check_search(query, bank, "cosine")
    query_width = checks.query_width(query_width, query)
    index = _check_index(index, query, bank)
    curve: Tensor = op.curve(_constant(query), bank.blocks, bank.layout.sizes, bank.dtype, index, query_width)
    return curve


def _check_index(index: Tensor, query: Tensor, bank: StripBank) -> Tensor:
    """int64 [B, n], each a row of the bank or -1."""
    checks.tensor("index", index, "[B, n]", (torch.int64, torch.int32))
    checks.same_device("index", index, "the bank", bank.buffer)
    if index.shape[0] != query.shape[0]:
        raise ValueError(f"index: expected {query.shape[0]} rows (B of query), got {index.shape[0]}")
    if checks.values_known(index) and index.numel():
        bank._check_rows(*checks.extremes(index), -1)
    return index if index.dtype is torch.int64 else index.to(torch.int64)


def _constant(query: Tensor) -> Tensor:
    return query.detach() if query.requires_grad else query


def _check_search(query: Tensor, bank: StripBank, select: str) -> None:
    checks.tensor("query", query, "[B, C, H, Wq]")
    if not isinstance(bank, StripBank):
        raise TypeError(f"bank: expected a StripBank, got {checks.describe(bank)}")
    checks.same_device("query", query, "the bank", bank.buffer)
    checks.fits("query", query, "the bank", bank.layout.sizes)
    checks.choice("select", select, checks.SELECTIONS[:2])
    bank._check_file()
