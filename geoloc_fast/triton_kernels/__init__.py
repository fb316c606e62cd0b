"""The operators in Triton: the portable path on GPUs, for any size, needing no compiler at installation.

One file per operator. The heavy part of a call is a `@triton.jit` body; what is small beside it (packing, prefix sums,
a softmax of a few numbers a pair) is torch on the same device and stream. Importing a file imports triton, so it is
done when an operator first runs here. With TRITON_INTERPRET=1 in the environment from the start, the same bodies run
on CPU tensors. Begin with `polar_resample`, the simplest.

Sizes of blocks are powers of two and edges are masked; every offset that can pass 2^31 is computed in int64. Nothing
waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Triton looks at this when it defines a kernel. Its interpreter multiplies bfloat16 only as float32.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on torch's current device and stream; inside the `with` the device is the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def padded(size: int, low: int, high: int) -> int:
    """A block for `size` things: the power of two that holds them, from `low` to `high`."""
    return min(max(1 << (size - 1).bit_length(), low), high)
