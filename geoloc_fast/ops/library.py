"""The registration shared by all operators."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# The operators live as long as this object.
_library = torch.library.Library("geoloc_fast", "FRAGMENT")
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality
# By names of their own: to look one up inside torch takes as long as to call it.
_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transform, _tracing = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state
_profiling = torch.autograd._profiler_enabled


def without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, computing in the dtypes it names also inside an autocast region, and with autograd at hand also inside a
    compiled graph (reference backwards need it)."""

    def exact(*args: Any) -> Any:
        if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
            return run(*args)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return run(*args)

    def guarded(*args: Any) -> Any:
        # Compiled graphs run with autograd taken out of the dispatch.
        if not torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD):
            return exact(*args)
        torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, False)
        try:
            return exact(*args)
        finally:
            torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, True)

    return guarded


def _in_range(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` inside an NVTX range, for a profiler that does not see torch's operators."""

    def ranged(*args: Any) -> Any:
        with torch.cuda.nvtx.range(f"geoloc_fast::{name}"):
            return run(*args)

    return ranged


class Operator:
    """What the public functions call, with arguments they have checked.

    Where nobody watches it runs at once: torch's dispatcher costs as much as all else that a small call does. Where
    a graph is made, a mode, transform or profiler is on, or a tensor is not a plain one, torch calls `overload`.
    """

    def __init__(self, overload: Any, run: Callable[..., Any]) -> None:
        self.overload = overload
        self._run = run

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _plain(tuple(map(type, args))) or _watched(args[0]):
            return self.overload(*args)
        return self._run(*args)


@cache
def _plain(types: tuple[type, ...]) -> bool:
    return all(kind in (Tensor, torch.nn.Parameter) for kind in types if issubclass(kind, Tensor))


def _watched(tensor: Tensor) -> bool:
    """Whether anything stands between this tensor and its values that only the dispatcher knows how to call."""
    return (
        not (tensor.is_cpu or tensor.is_cuda)
        or _modes() > 0
        or _function_modes() > 0
        or _transform() is not None
        or _tracing() is not None
        or _profiling()
    )


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    check: Callable[..., None],
    guard: bool = True,
) -> Operator:
    """Defines `geoloc_fast::<schema>`: `run` for CPU and CUDA tensors, `fake` for shapes.

    `check` refuses what would make a kernel read or write where it must not: torch.ops can be called with anything.
    `run` computes what it says in the dtype it says, also inside an autocast region. With `guard=False` it sees to
    that itself, where it computes with torch at all.
    """
    name = schema[: schema.index("(")]
    run = without_autocast(run) if guard else run
    run = _in_range(name, run) if os.environ.get("GEOLOC_FAST_NVTX") == "1" else run

    def checked(*args: Any) -> Any:
        check(*args)
        return run(*args)

    _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, checked, key)
    torch.library.register_fake(f"geoloc_fast::{name}", fake, lib=_library)
    return Operator(getattr(torch.ops.geoloc_fast, name).default, run)
