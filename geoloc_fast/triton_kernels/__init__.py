"""The operators in Triton: for GPUs, for any size, without a compiler at installation.

One file per operator. The expensive part of a call is a `@triton.jit` kernel. The cheap parts (packing, prefix sums, a
softmax over a few numbers per pair) are torch operators on the same device and stream. Importing a file imports
triton, so a file is imported when its operator first runs on Triton. With TRITON_INTERPRET=1 in the environment from
the start, the same kernels run on CPU tensors. Begin with `polar_resample`, the simplest.

Block sizes are powers of two, and edges are masked. Offsets that can exceed 2^31 are int64. No call waits for the
device, so calls can be captured in a CUDA graph.
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
