"""Several processes that train one model: who is who, and how values and gradients are exchanged.

Without `torchrun` there is one process, and nothing here does anything.

    gather_sum    everybody's rows; the gradients of all processes are summed: strips that everybody's scores depend on
    gather_own    everybody's rows; each process takes the gradient of its own: scores of which all know the whole loss
    scatter_sum   everybody's parts of all rows; each process gets the sum of its own rows: `gather_sum` backwards
    shared        a parameter of a loss that every process computes whole

A table that no process could hold is spread over them: each has a range of its rows (`spread`), takes their gradients
and moves them. `whole_tables` puts it together in process 0 for a while, to be saved or measured.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "any_process",
    "barrier",
    "clip_gradients",
    "device_of",
    "gather_own",
    "gather_sum",
    "gathered",
    "join",
    "of_process_0",
    "own_range",
    "own_rows",
    "reduce_gradients",
    "scatter_sum",
    "shared",
    "spread",
    "spread_rows",
    "summed",
    "whole",
    "whole_tables",
    "world",
]


def world() -> tuple[int, int]:
    """(rank, processes)"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join(timeout: timedelta) -> bool:
    """Joins the processes that torchrun started; whether it has started them before, and lost one.

    Its store outlives lost processes, and so do the addresses they left there: a new process that read one would call
    where nobody answers. So new ones meet in a part of the store of their own.
    """
    store, rank, processes = next(iter(dist.rendezvous("env://", timeout=timeout)))
    before = rank == 0 and store.check(["here/0"])
    store = dist.PrefixStore(_part_of_our_own(store, rank, processes), store)
    backend, device = ("nccl", "cuda") if torch.cuda.is_available() else ("gloo", "cpu")
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes, timeout=timeout)
    # The number of a node that joined later, or saw no process of its own fail, is lower than that of others.
    again = before or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return any_process(again, device_of(device))


def _part_of_our_own(store: dist.Store, rank: int, processes: int) -> str:
    """The name of a part of the store that only these processes know. Each says which it is by a word that was not
    there before; process 0 answers to that word, again and again, until each has got the name."""
    word = uuid.uuid4().hex
    store.set(f"here/{rank}", word)
    if rank:
        name = store.get(f"meet/{word}").decode()
        store.set(f"{name}/{rank}", "")
        return name
    missing = set(range(1, processes))
    while missing:
        for other in missing:
            if store.check([f"here/{other}"]):  # perhaps of one that was lost: then nobody reads the answer
                store.set(f"meet/{store.get(f'here/{other}').decode()}", word)
        missing = {other for other in missing if not store.check([f"{word}/{other}"])}
        time.sleep(0.02)
    return word


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


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return _own(total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return gathered(grads[0])


def gather_sum(x: Tensor) -> Tensor:
    """The tensors of all processes in one; gradients are the sum over processes."""
    return x if world()[1] == 1 else _GatherSum.apply(x)


def gather_own(x: Tensor) -> Tensor:
    """The tensors of all processes in one; the gradient is this process's own part."""
    return x if world()[1] == 1 else _GatherOwn.apply(x)


def scatter_sum(x: Tensor) -> Tensor:
    """The sum over all processes of the own rows, of x [rows of all, ...]; a gradient goes to everybody's parts."""
    return x if world()[1] == 1 else _ScatterSum.apply(x)


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


# -- tables of which each process has a range of rows ------------------------------------------------


def spread(table: torch.nn.Parameter) -> None:
    """Leaves this process its own rows of a table that all have whole, [R, D]. To be done before the optimiser."""
    if world()[1] > len(table):
        raise ValueError(f"expected at most as many processes as rows of the table, got {world()[1]} and {len(table)}")
    if world()[1] > 1:
        table.spread_rows = len(table)  # type: ignore[attr-defined]
        table.data = own_rows(table.data, len(table)).clone()


def spread_rows(table: Tensor) -> int | None:
    """How many rows a table that was spread has in all processes together; None if it is whole here."""
    return getattr(table, "spread_rows", None)


def own_range(rows: int) -> tuple[int, int]:
    """(first, end) of the rows that this process has; the ranges of all differ in length by one at most."""
    rank, processes = world()
    return rows * rank // processes, rows * (rank + 1) // processes


def own_rows(x: Tensor, rows: int | None) -> Tensor:
    """This process's part of a whole table of so many rows; all of it where it is not spread (None)."""
    if rows is None:
        return x
    if len(x) != rows:
        raise ValueError(f"expected a table of {rows} rows, got {len(x)}")
    return x[slice(*own_range(rows))]


def whole(x: Tensor, rows: int) -> Tensor:
    """Everybody's parts of a table of so many rows, in every process."""
    _, processes = world()
    if processes == 1:
        return x
    most = -(-rows // processes)
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    parts = gathered(padded).split(most)
    ends = [rows * n // processes for n in range(processes + 1)]
    return torch.cat([part[: b - a] for part, a, b in zip(parts, ends[:-1], ends[1:], strict=True)])


@contextlib.contextmanager
def whole_tables(model: torch.nn.Module, state: Mapping[Tensor, dict[str, Any]]) -> Iterator[None]:
    """Process 0 has all rows of every table that is spread meanwhile, and of what the optimiser keeps of each row.
    To be entered by all processes."""
    before: list[tuple[torch.nn.Parameter, Tensor]] = []
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    for table in model.parameters():
        rows = spread_rows(table)
        if rows is None:
            continue
        before.append((table, table.data))
        found = whole(table.data, rows)
        own = len(table)
        if world()[0] == 0:
            table.data = found
        for name, value in state.get(table, {}).items():
            if isinstance(value, Tensor) and value.ndim and len(value) == own:
                kept.append((state[table], name, value))
                found = whole(value, rows)
                if world()[0] == 0:
                    state[table][name] = found
    try:
        yield
    finally:
        for table, data in before:
            table.data = data
        for values, name, value in kept:
            values[name] = value


def clip_gradients(model: torch.nn.Module, most: float) -> float:
    """Scales all gradients so that their norm is at most so much; returns what it was, the same in every process.
    Those of spread tables count with the rows of all processes, sparse ones with the rows they hold."""
    with_grad = [p for p in model.parameters() if p.grad is not None]
    if not any(p.grad.is_sparse or spread_rows(p) is not None for p in with_grad):  # type: ignore[union-attr]
        return float(torch.nn.utils.clip_grad_norm_(with_grad, most))
    device = next(model.parameters()).device
    here, apart = torch.zeros((), device=device), torch.zeros((), device=device)
    values = []
    for p in with_grad:
        assert p.grad is not None
        if p.grad.is_sparse:
            p.grad = p.grad.coalesce()
        values.append(p.grad.values() if p.grad.is_sparse else p.grad)
        total = here if spread_rows(p) is None else apart
        total += values[-1].detach().float().square().sum()
    if any(spread_rows(p) is not None for p in model.parameters()):
        dist.all_reduce(apart)
    norm = float((here + apart).sqrt())
    if norm > most:
        for part in values:
            part.mul_(most / (norm + 1e-6))
    return norm


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
