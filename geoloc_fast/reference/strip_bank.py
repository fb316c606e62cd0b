"""The bytes of a `StripBank`, and the reference of packing and unpacking them.

A bank is one contiguous little-endian buffer, the same for every backend, and the body of an index file:

    header   128 bytes                          fields of `_HEADER`, then zeros
    blocks   ceil(count / 16) of `block_bytes`  16 strips each, interleaved; unused lanes are 0

    block    values   [W planes][words][16 lanes] of 32 bits
             energies [W columns][16 lanes] of float32

A strip is stored as its orthonormal real Fourier transform along azimuth, channel by channel, because
correlation over all shifts is then a product per frequency, and the values take the room of the strip.
Planes, with K = C*H channels and n the column:

    plane 0              sum_n x[n] / sqrt(W)
    plane 2f-1, 2f       sqrt(2/W) sum_n x[n] cos(2 pi f n / W),   -sqrt(2/W) sum_n x[n] sin(2 pi f n / W)
    plane W-1 (W even)   sum_n x[n] (-1)^n / sqrt(W)

One 32-bit word holds one float32 channel or two consecutive bfloat16 channels (the lower in the low half),
so that a word of all 16 strips is one 64-byte line: lanes are strips, and no sum crosses lanes. An odd channel
count ends in a zero. `energies` are the column energies sum_c,h x[n]^2 of the strip *as stored*, so that the norm
of any window is a circular sum of them.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

LANES = 16
HEADER_BYTES = 128
ALIGNMENT = 64
MAGIC = b"GEOSTRIP"
VERSION = 1
# magic, version, dtype code, count, C, H, W, lanes, column0_deg, block_bytes
_HEADER = struct.Struct("<8sIIqIIIIdq")
_SPECTRAL = {"fp32": 1, "bf16": 2}
_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
DTYPES = tuple(_SPECTRAL)

_FLOATS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class BankLayout:
    """Where everything lies in the buffer of a bank."""

    count: int
    channels: int
    height: int
    columns: int
    dtype: str = "bf16"
    column0_deg: float = 180.0

    @property  # torch.compile looks at it, and does not know the lock of a cached property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every strip."""
        return self.channels, self.height, self.columns

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(count, C, H, W), what operators call `shape`."""
        return self.count, self.channels, self.height, self.columns

    @cached_property
    def words(self) -> int:
        """32-bit words a plane and a strip take."""
        values = self.channels * self.height
        return values if self.dtype == "fp32" else (values + 1) // 2

    @cached_property
    def block_bytes(self) -> int:
        return 4 * LANES * self.columns * (self.words + 1)

    @cached_property
    def blocks(self) -> int:
        return (self.count + LANES - 1) // LANES

    @cached_property
    def nbytes(self) -> int:
        return HEADER_BYTES + self.blocks * self.block_bytes

    def header(self) -> bytes:
        fields = _HEADER.pack(
            MAGIC, VERSION, _SPECTRAL[self.dtype], self.count, self.channels, self.height,
            self.columns, LANES, self.column0_deg, self.block_bytes,
        )  # fmt: skip
        return fields.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def from_header(cls, header: bytes) -> BankLayout:
        """Reads and checks a header; every message says what was expected and what was found."""
        if len(header) < HEADER_BYTES:
            raise ValueError(f"buffer: expected a header of {HEADER_BYTES} bytes, got {len(header)}")
        magic, version, code, count, channels, height, columns, lanes, column0_deg, block_bytes = _HEADER.unpack_from(
            header
        )
        if magic != MAGIC:
            raise ValueError(f"buffer: expected a strip bank (it begins {MAGIC!r}), got {magic!r}")
        if version != VERSION:
            raise ValueError(f"buffer: expected bank version {VERSION}, got {version}")
        dtypes = {number: name for name, number in _SPECTRAL.items()}
        if code not in dtypes:
            raise ValueError(f"buffer: expected dtype code {sorted(dtypes)}, got {code}")
        if lanes != LANES:
            raise ValueError(f"buffer: expected {LANES} strips per block, got {lanes}")
        if count < 0 or min(channels, height, columns) < 1 or channels * height * columns > 1 << 24:
            raise ValueError(
                f"buffer: expected a possible shape, got count={count}, C={channels}, H={height}, W={columns}"
            )
        if not math.isfinite(column0_deg):
            raise ValueError(f"buffer: expected a finite column0_deg, got {column0_deg}")
        layout = cls(count, channels, height, columns, dtypes[code], column0_deg)
        if block_bytes != layout.block_bytes or any(header[_HEADER.size : HEADER_BYTES]):
            raise ValueError(
                f"buffer: expected blocks of {layout.block_bytes} bytes and a header that ends in zeros, "
                f"got {block_bytes}: the header is damaged"
            )
        return layout


@cache
def fourier_basis(columns: int) -> Tensor:
    """float64 [W planes, W columns], orthonormal: planes = basis @ columns, columns = basis.T @ planes."""
    n = torch.arange(columns, dtype=torch.float64)
    basis = torch.empty((columns, columns), dtype=torch.float64)
    basis[0] = 1 / math.sqrt(columns)
    for f in range(1, (columns + 1) // 2):
        # f * n is reduced modulo W as an integer, so that the angle is exact for large W.
        angle = 2 * math.pi * ((f * n) % columns) / columns
        basis[2 * f - 1] = math.sqrt(2 / columns) * torch.cos(angle)
        basis[2 * f] = -math.sqrt(2 / columns) * torch.sin(angle)
    if columns % 2 == 0 and columns > 1:
        basis[columns - 1] = (1 - 2 * (n % 2)) / math.sqrt(columns)
    return basis


def pack(strips: Tensor, dtype: str) -> Tensor:
    """The blocks of strips [N, C, H, W]: uint8 [blocks * block_bytes]."""
    count, channels, height, columns = strips.shape
    layout = BankLayout(count, channels, height, columns, dtype)
    stored = _TORCH[dtype]
    basis = fourier_basis(columns).to(strips.device)
    size = (layout.blocks, LANES, columns, layout.words * (4 // stored.itemsize))
    out = torch.zeros((layout.blocks, layout.block_bytes), dtype=torch.uint8, device=strips.device)
    at_once = max(1, _FLOATS_AT_ONCE // (LANES * channels * height * columns))
    for begin in range(0, layout.blocks, at_once):
        part = strips[begin * LANES : (begin + at_once) * LANES]
        blocks = -(-part.shape[0] // LANES)
        values = part.double().reshape(part.shape[0], channels * height, columns) @ basis.T
        planes = values.new_zeros((blocks * LANES, *size[2:]), dtype=stored)
        planes[: part.shape[0], :, : channels * height] = values.mT.to(stored)
        energies = values.new_zeros((blocks * LANES, columns), dtype=torch.float32)
        decoded = planes[: part.shape[0], :, : channels * height].double().mT @ basis
        energies[: part.shape[0]] = decoded.square().sum(1).float()
        # [blocks, lanes, planes, words, values a word] -> [blocks, planes, words, lanes, values a word]
        words = planes.view(blocks, LANES, columns, layout.words, -1).permute(0, 2, 3, 1, 4)
        rows = out[begin : begin + blocks]
        rows[:, : layout.block_bytes - 4 * LANES * columns] = words.contiguous().view(torch.uint8).reshape(blocks, -1)
        rows[:, layout.block_bytes - 4 * LANES * columns :] = (
            energies.view(blocks, LANES, columns).mT.contiguous().view(torch.uint8).reshape(blocks, -1)
        )
    return out.view(-1)


def unpack(blocks: Tensor, layout: BankLayout, index: Tensor) -> Tensor:
    """The strips of rows `index` [n] as they are stored: float32 [n, C, H, W]."""
    stored = _TORCH[layout.dtype]
    values = layout.channels * layout.height
    basis = fourier_basis(layout.columns).to(blocks.device)
    rows = blocks.view(layout.blocks, layout.block_bytes)[:, : layout.block_bytes - 4 * LANES * layout.columns]
    words = rows.view(stored).view(layout.blocks, layout.columns, layout.words, LANES, 4 // stored.itemsize)
    out = torch.empty((index.shape[0], values, layout.columns), dtype=torch.float32, device=blocks.device)
    at_once = max(1, _FLOATS_AT_ONCE // (values * layout.columns))
    for begin in range(0, index.shape[0], at_once):
        part = index[begin : begin + at_once]
        planes = words[part // LANES, :, :, part % LANES].reshape(part.shape[0], layout.columns, -1)
        out[begin : begin + at_once] = (planes[..., :values].double().mT @ basis).float()
    return out.view(-1, layout.channels, layout.height, layout.columns)


def records(blocks: Tensor, layout: BankLayout, index: Tensor) -> Tensor:
    """Rows `index` [n] exactly as they are stored, energies too: int32 words [n, W * (words + 1)]."""
    first, last = (int(index.min()) // LANES, int(index.max()) // LANES) if index.numel() else (0, -1)
    words = blocks.view(torch.int32).view(layout.blocks, -1, LANES)[first : last + 1]
    # Lanes side by side first: one transposition of whole lines is far cheaper than picking words out of each.
    return words.mT.reshape(-1, words.shape[1])[index - first * LANES]


def blocks_of(records: Tensor) -> Tensor:
    """The blocks of rows that `records` gave, of banks of one shape and dtype."""
    count, words = records.shape
    blocks = -(-count // LANES)
    padded = torch.zeros((blocks * LANES, words), dtype=torch.int32, device=records.device)
    padded[:count] = records
    return padded.view(blocks, LANES, words).mT.contiguous().view(torch.uint8).view(-1)
