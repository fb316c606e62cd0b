"""Choose the number of threads for a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ALONE = 1 << 28  # multiply-adds


@contextmanager
def threads_for(multiply_adds: int) -> Iterator[None]:
    """Inside the `with`, a small network has one thread: a second gains it next to nothing, and beside another busy
    process torch's threads spin while they wait for one another, so that it may take tens of times as long."""
    threads = torch.get_num_threads()
    if multiply_adds > _ALONE or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
