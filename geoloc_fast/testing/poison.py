"""Outputs that are filled with NaN first, so that tests notice an element that a kernel does not write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


def poison(tensor: Tensor) -> Tensor:
    """Fills in place: NaN for floats, a large odd value for integers."""
    if tensor.dtype.is_floating_point:
        return tensor.fill_(torch.nan)
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(0xAB if tensor.dtype == torch.uint8 else torch.iinfo(tensor.dtype).max // 3)


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Inside the `with`, torch.empty and its kin give poisoned memory."""

    def poisoned(create: Any) -> Any:
        return lambda *args, **kwargs: poison(create(*args, **kwargs))

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", poisoned(Tensor.new_empty)),
    ):
        yield
