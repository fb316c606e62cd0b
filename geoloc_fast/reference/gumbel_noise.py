"""Reference of `gumbel_noise`: Philox-4x32-10 in int64 arithmetic (csrc/include/geoloc_fast/gumbel_noise.h)."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox(counter: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits, as int64, for every counter (int64, at least 0)."""
    x0, x1 = counter & _LOW, counter >> 32
    x2, x3 = torch.zeros_like(counter), torch.zeros_like(counter)
    key0, key1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        high0, low0 = _product(x0, 0xD2511F53)
        high1, low1 = _product(x2, 0xCD9E8D57)
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _LOW, (key1 + 0xBB67AE85) & _LOW
    return x0, x1, x2, x3


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of a b; in halves, so that nothing reaches the sign bit."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def gumbel_noise(seed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """[count] standard Gumbel noise from an int64 seed."""
    n = torch.arange(-(-count // 64) * 16, device=seed.device)
    words = torch.stack([word.view(-1, 16) for word in philox(n, seed)], 1).flatten()[:count]
    u = ((words >> 9).to(dtype) + 0.5) * 2.0**-23
    return -(-u.log()).log()
