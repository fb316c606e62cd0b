"""Several processes that train one model: who is who, and how values and gradients are exchanged.

Without `torchrun` there is one process, and nothing here does anything.

    gather_sum    everybody's rows; the gradients of all processes are summed: strips that everybody's scores depend on
    gather_own    everybody's rows; each process takes the gradient of its own: scores of which all know the whole loss
    shared        a parameter of a loss that every process computes whole
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "any_process",
    "barrier",
    "device_of",
    "gather_own",
    "gather_sum",
    "gathered",
    "of_process_0",
    "reduce_gradients",
    "shared",
    "summed",
    "world",
]


def world() -> tuple[int, int]:
    """(rank, processes)"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def device_of(name: str) -> torch.device:
    """The device of this process: "auto", "cpu", "cuda" (its own, by LOCAL_RANK) or one by number."""
    chosen = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda":
        chosen = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
    there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if chosen not in there:
        raise ValueError(f"train.device: expected auto, or one of {there}, got {name!r}")
    return torch.device(chosen)


def gathered(x: Tensor) -> Tensor:
    """Everybody's rows, without a gradient."""
    if world()[1] == 1:
        return x
    if x.dtype == torch.bool:
        return gathered(x.byte()).bool()
    parts = [torch.empty_like(x) for _ in range(world()[1])]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _own(x: Tensor) -> Tensor:
    rank, processes = world()
    return x.chunk(processes)[rank]


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gathered(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return _own(grad)


class _GatherOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gathered(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _own(grads[0])


def gather_sum(x: Tensor) -> Tensor:
    """The tensors of all processes in one; gradients are the sum over processes."""
    return x if world()[1] == 1 else _GatherSum.apply(x)


def gather_own(x: Tensor) -> Tensor:
    """The tensors of all processes in one; the gradient is this process's own part."""
    return x if world()[1] == 1 else _GatherOwn.apply(x)


def shared(x: Tensor) -> Tensor:
    """A parameter of a loss that every process computes whole: each gives its part of the gradient."""
    return x if world()[1] == 1 else x.detach() + (x - x.detach()) / world()[1]


def summed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each value (of one element) summed over all processes, in one message."""
    flat = torch.stack([value.detach().float() for value in values.values()])
    if world()[1] > 1:
        dist.all_reduce(flat)
    return dict(zip(values, flat, strict=True))


def reduce_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """The sum over all processes, in one message."""
    if world()[1] == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p).to(p.dtype)


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if world()[1] == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found)
    return bool(found > 0)


def of_process_0(values: np.ndarray, device: torch.device) -> np.ndarray:
    """Process 0's values, in every process."""
    if world()[1] == 1:
        return values
    everyones = torch.from_numpy(values).to(device)
    dist.broadcast(everyones, 0)
    found: np.ndarray = everyones.cpu().numpy()
    return found


def barrier() -> None:
    """Waits until every process is here."""
    if world()[1] > 1:
        dist.barrier()
