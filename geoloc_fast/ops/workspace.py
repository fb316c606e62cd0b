"""Work space of the CPU kernels: memory from torch, which each thread keeps if it is small."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_KEPT = 1 << 20  # bytes; beyond, an allocation no longer counts


class _Kept(threading.local):
    def __init__(self) -> None:
        self.memory = torch.empty(_KEPT, dtype=torch.uint8)


_kept = _Kept()


def workspace(nbytes: int) -> Tensor:
    """At least `nbytes` of memory aligned to 64, the caller's until its next call of this."""
    return _kept.memory if nbytes <= _KEPT else torch.empty(nbytes, dtype=torch.uint8)
