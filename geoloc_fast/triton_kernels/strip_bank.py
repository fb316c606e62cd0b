"""Packing and unpacking a bank in Triton. Layout: csrc/include/geoloc_fast/strip_bank.h.

Transforms are sums of W products in float64 with `basis` [W planes, W columns], each plane in one fixed order, rounded
once to what is stored. Bytes: 4 K W a strip on one side, the stored strip on the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import on_device_of, padded
from geoloc_fast.triton_kernels.rounding import rounded

LANES = tl.constexpr(16)


@triton.jit
def row_of(blocks, row, columns, words):
    """Address of word 0, plane 0 of a row (int32 pointer), and of its first energy."""
    block = row // LANES * (columns * (words + 1) * LANES)
    return blocks + block + row % LANES, blocks + block + row % LANES + columns * words * LANES


@triton.jit
def stored_value(strip, plane, k, values, words, BF16: tl.constexpr):
    """Value k of a plane as float64; `strip` from `row_of`."""
    word = k // 2 if BF16 else k
    bits = tl.load(strip + (plane * tl.cast(words, tl.int64) + word) * LANES, mask=k < values, other=0)
    if BF16:
        bits = tl.where(k % 2 == 0, bits << 16, bits & -65536)
    return bits.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def decoded(strip, basis, first, values, columns, words, BF16: tl.constexpr, K: tl.constexpr, W: tl.constexpr):
    """Channels first .. first+K-1 of a stored strip as float32 columns [K, W], in float64; 0 beyond what exists."""
    k = (first + tl.arange(0, K)).to(tl.int64)
    j = tl.arange(0, W)
    total = tl.zeros([K, W], tl.float64)
    for plane in range(columns):
        wave = tl.load(basis + tl.cast(columns, tl.int64) * plane + j, mask=j < columns, other=0.0)
        total += stored_value(strip, plane, k, values, words, BF16)[:, None] * wave[None, :]
    return total.to(tl.float32).to(tl.float64)


@triton.jit
def strip_unpack_kernel(
    blocks, index, basis, out, count, values, columns, words,
    BF16: tl.constexpr, K: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """A row outside the bank is NaN."""
    n = tl.program_id(0).to(tl.int64)
    row = tl.load(index + n)
    there = (row >= 0) & (row < count)
    strip, _ = row_of(blocks, tl.where(there, row, 0), columns, words)
    first = tl.program_id(1) * K
    numbers = decoded(strip, basis, first, values, columns, words, BF16, K, W) + tl.where(there, 0.0, float("nan"))
    k = (first + tl.arange(0, K)).to(tl.int64)
    j = tl.arange(0, W)
    inside = (k < values)[:, None] & (j < columns)[None, :]
    tl.store(out + (n * values + k[:, None]) * columns + j[None, :], numbers.to(tl.float32), mask=inside)


@triton.jit
def strip_pack_kernel(
    strips, basis, halves, floats, blocks, count, values, height, columns, words,
    stride_n, stride_c, stride_h, stride_w, BF16: tl.constexpr, K: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """One row. `halves` and `floats` are the bank's bytes as bfloat16 and float32."""
    row = tl.program_id(0).to(tl.int64)
    source = strips + row * stride_n
    p = tl.arange(0, W)
    energy = tl.zeros([W], tl.float64)
    block = row // LANES * (columns * (words + 1) * LANES)
    for first in range(0, values, K):
        k = (first + tl.arange(0, K)).to(tl.int64)
        item = source + k // height * stride_c + k % height * stride_h
        total = tl.zeros([K, W], tl.float64)
        for j in range(columns):
            value = tl.load(item + tl.cast(stride_w, tl.int64) * j, mask=k < values, other=0.0).to(tl.float64)
            wave = tl.load(basis + p.to(tl.int64) * columns + j, mask=p < columns, other=0.0)
            total += value[:, None] * wave[None, :]
        inside = (k < values)[:, None] & (p < columns)[None, :]
        if BF16:
            kept = rounded(total.to(tl.float32), tl.bfloat16)
            at = ((block + (p[None, :] * words + k[:, None] // 2) * LANES + row % LANES) * 2) + k[:, None] % 2
            tl.store(halves + at, kept, mask=inside)
        else:
            kept = total.to(tl.float32)
            tl.store(floats + block + (p[None, :] * words + k[:, None]) * LANES + row % LANES, kept, mask=inside)
        kept = tl.where(inside, kept.to(tl.float64), 0.0)
        for j in range(columns):
            wave = tl.load(basis + p.to(tl.int64) * columns + j, mask=p < columns, other=0.0)
            column = tl.sum(kept * wave[None, :], 1)
            energy += tl.where(p == j, tl.sum(column * column, 0), 0.0)
    place = floats + block + (tl.cast(columns, tl.int64) * words + p) * LANES + row % LANES
    tl.store(place, energy.to(tl.float32), mask=p < columns)


def fourier_basis(columns: int, device: torch.device) -> Tensor:
    """`reference.strip_bank.fourier_basis`, made on the device without waiting for it: float64 [W, W]."""
    n = torch.arange(columns, device=device)
    frequency = (n[:, None] + 1) // 2
    angle = (frequency * n % columns).double() * (2 * torch.pi / columns)
    wave = torch.where(n[:, None] % 2 == 1, angle.cos(), -angle.sin()) * (2 / columns) ** 0.5
    once = (1 - 2 * (frequency * n * 2 // columns % 2)).double() * columns**-0.5  # frequencies 0 and W/2: 1 and -1
    return torch.where((frequency == 0) | (2 * frequency == columns), once, wave)


def words_a_plane(values: int, bf16: bool) -> int:
    """How many stored numbers a plane of a strip's spectrum takes: two bfloat16 share one."""
    return (values + 1) // 2 if bf16 else values


def block_sizes(values: int, columns: int) -> dict[str, int]:
    """Channels and columns held at once: 2048 float64 numbers a program where W allows, four warps."""
    w = padded(columns, 2, 1 << 30)
    return {"K": padded(values, 2, max(2, 2048 // w)), "W": w, "num_warps": 4}


def unpack(blocks: Tensor, shape: Sequence[int], bf16: bool, index: Tensor) -> Tensor:
    """The strips of some rows [n, C, H, W], as they were packed."""
    count, channels, height, columns = shape
    values = channels * height
    out = blocks.new_empty((index.shape[0], channels, height, columns), dtype=torch.float32)
    if count == 0:
        return out.fill_(torch.nan)
    if out.numel():
        with on_device_of(blocks):
            sizes = block_sizes(values, columns)
            strip_unpack_kernel[(index.shape[0], triton.cdiv(values, sizes["K"]))](
                blocks.view(torch.int32), index, fourier_basis(columns, blocks.device), out, count, values, columns,
                words_a_plane(values, bf16), BF16=bf16, **sizes,
            )  # fmt: skip
    return out


def pack(strips: Tensor, bf16: bool, block_bytes: int) -> Tensor:
    """The blocks of a bank, as bytes."""
    count, channels, height, columns = strips.shape
    values = channels * height
    blocks = torch.zeros(triton.cdiv(count, 16) * block_bytes, dtype=torch.uint8, device=strips.device)
    if count:
        with on_device_of(strips):
            strip_pack_kernel[(count,)](
                strips, fourier_basis(columns, strips.device), blocks.view(torch.bfloat16), blocks.view(torch.float32),
                blocks, count, values, height, columns, words_a_plane(values, bf16), *strips.stride(),
                BF16=bf16, **block_sizes(values, columns),
            )  # fmt: skip
    return blocks
