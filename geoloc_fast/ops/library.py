"""The registration shared by all operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The operators live as long as this object.
_library = torch.library.Library("geoloc_fast", "FRAGMENT")


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines `geoloc_fast::<schema>`: `run` for CPU and CUDA tensors, `fake` for shapes; returns the op.

    `run` computes what it says in the dtype it says, also inside an autocast region.
    """
    name = schema[: schema.index("(")]
    _library.define(schema)

    def without_autocast(*args: Any) -> Any:
        if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
            return run(*args)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return run(*args)

    for key in ("CPU", "CUDA"):
        _library.impl(name, without_autocast, key)
    torch.library.register_fake(f"geoloc_fast::{name}", fake, lib=_library)
    return getattr(torch.ops.geoloc_fast, name).default
