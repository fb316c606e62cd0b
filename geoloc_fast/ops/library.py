"""The registration shared by all operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The operators live as long as this object.
_library = torch.library.Library("geoloc_fast", "FRAGMENT")


def without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, computing in the dtypes it names also inside an autocast region."""

    def guarded(*args: Any) -> Any:
        if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
            return run(*args)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return run(*args)

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
