"""Code that the steps of all recipes share: gradient caching, and random numbers that depend on a seed.

Gradient caching: strips of all chunks are computed without a graph, the loss gives the gradient of the strips, and
every chunk is computed once more, with a graph, to take that gradient on to the weights. Memory is that of one chunk
and of strips. What is random is drawn from seeds, so both passes see the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from geoloc_fast.images.augment import generator_of

__all__ = ["cached_backward", "seeded"]

Numbers = TypeVar("Numbers")


def cached_backward(
    encode: Callable[[int, slice], dict[str, Tensor]],
    loss: Callable[[dict[str, Tensor]], tuple[Tensor, Numbers]],
    rows: int,
    chunk: int,
) -> Numbers:
    """Adds the gradient of `loss` of all rows to the weights, and returns the loss's numbers.

    Args:
        encode: (number of the chunk, its rows) to tensors by name, one row each; the same values when called again.
        loss: of the tensors of all rows.
        chunk: rows encoded at once; 0 is all of them, in one pass.
    """
    size = chunk or rows
    chunks = [slice(begin, min(begin + size, rows)) for begin in range(0, rows, size)]
    if len(chunks) == 1:
        total, numbers = loss(encode(0, chunks[0]))
        total.backward()
        return numbers
    with torch.no_grad():
        parts = [encode(n, part) for n, part in enumerate(chunks)]
    leaves = {name: torch.cat([part[name] for part in parts]).requires_grad_() for name in parts[0]}
    del parts
    total, numbers = loss(leaves)
    total.backward()
    for n, part in enumerate(chunks):
        encoded = encode(n, part)
        grads = {name: leaf.grad[part] for name, leaf in leaves.items() if leaf.grad is not None}
        torch.autograd.backward([encoded[name] for name in grads], list(grads.values()))
    return numbers


@contextmanager
def seeded(device: torch.device, *seed: int) -> Iterator[None]:
    """Inside, torch's random numbers are those of `seed`; outside they go on as if nothing had been."""
    devices = [device] if device.type == "cuda" else []
    number = int(generator_of(*seed).integers(2**62))
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            torch.cuda.manual_seed_all(number)
        yield
