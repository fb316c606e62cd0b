"""`gumbel_noise` in Triton: Philox-4x32-10, in the order of csrc/include/geoloc_fast/gumbel_noise.h.

4 bytes written a value, about 40 integer operations and two logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from geoloc_fast.triton_kernels import on_device_of

_COUNTERS = 256  # a program; each is four values


@triton.jit
def gumbel_noise_kernel(seed, out, count, COUNTERS: tl.constexpr):
    """Four numbers a counter of Philox, laid out as every other backend lays them out."""
    n = tl.program_id(0).to(tl.int64) * COUNTERS + tl.arange(0, COUNTERS)
    low = (n & 0xFFFFFFFF).to(tl.uint32)
    zero = low * 0
    words = tl.philox(tl.load(seed), low, (n >> 32).to(tl.uint32), zero, zero)
    for word in tl.static_range(4):
        u = ((words[word] >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
        at = n // 16 * 64 + word * 16 + n % 16
        tl.store(out + at, -tl.log(-tl.log(u)), mask=at < count)


def draw(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard Gumbel noise of a shape, decided by the seed alone."""
    out = seed.new_empty(tuple(shape), dtype=torch.float32)
    if out.numel():
        with on_device_of(seed):
            programs = triton.cdiv(triton.cdiv(out.numel(), 4), _COUNTERS)
            gumbel_noise_kernel[(programs,)](seed, out, out.numel(), COUNTERS=_COUNTERS, num_warps=4)
    return out
