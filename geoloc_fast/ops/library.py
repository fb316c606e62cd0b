"""The registration shared by all operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The operators live as long as this object.
_library = torch.library.Library("geoloc_fast", "FRAGMENT")
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


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


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any], *, guard: bool = True) -> Any:
    """Defines `geoloc_fast::<schema>`: `run` for CPU and CUDA tensors, `fake` for shapes; returns the op.

    `run` computes what it says in the dtype it says, also inside an autocast region. With `guard=False` it sees to
    that itself, where it computes with torch at all.
    """
    name = schema[: schema.index("(")]
    _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, without_autocast(run) if guard else run, key)
    torch.library.register_fake(f"geoloc_fast::{name}", fake, lib=_library)
    return getattr(torch.ops.geoloc_fast, name).default
