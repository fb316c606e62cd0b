"""What a call costs beside the work: tiny tensors, inference mode, every argument a tensor where it can be one.

"bare" is the native function called again with the very arguments the operator gave it: what is left of the public
function is dispatch, checks and the making of its outputs. A torch addition stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from geoloc_fast import StripBank, _native, azimuth_crop, azimuth_match, polar_resample, strip_score, strip_topk
from geoloc_fast.testing import random_strips

_query, _strips = random_strips(1, 2, 1, 4), random_strips(1, 2, 1, 4, seed=1)
_bank = StripBank.pack(_strips)
_width, _index = torch.tensor([4]), torch.tensor([[0]])
_image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
_center, _radius = torch.tensor([[2.0, 2.0]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
_one = torch.zeros(1)

CALLS: dict[str, Callable[[], Any]] = {
    "polar_resample": lambda: polar_resample(_image, (2, 2), center=_center, max_radius=_radius),
    "azimuth_match": lambda: azimuth_match(_query, _strips, query_width=_width),
    "azimuth_crop": lambda: azimuth_crop(_query, _strips, query_width=_width),
    "strip_topk": lambda: strip_topk(_query, _bank, 1, query_width=_width),
    "strip_score": lambda: strip_score(_query, _bank, _index, query_width=_width),
    "torch: x + 1": lambda: _one + 1,
}


@cache
def bare(op: str) -> Callable[[], Any]:
    """The native call that `op` makes."""
    native = _native.native_cpu
    recorded: list[tuple[Callable[..., Any], dict[str, Any]]] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            value = getattr(native, name)
            if name != op:
                return value

            def call(**arguments: Any) -> Any:
                recorded.append((value, arguments))
                return value(**arguments)

            return call

    _native.native_cpu = Recorder()  # type: ignore[assignment]
    try:
        CALLS[op]()
    finally:
        _native.native_cpu = native
    ((function, arguments),) = recorded
    return lambda: function(**arguments)


@pytest.mark.parametrize("entry", [*CALLS, *(f"{op}, bare native call" for op in list(CALLS)[:-1])])
def test_overhead(benchmark: Any, entry: str) -> None:
    with torch.inference_mode():
        run = bare(entry.split(",")[0]) if entry.endswith("call") else CALLS[entry]
        benchmark.group = "the cost of a call: tiny tensors, inference mode, tensor arguments"
        benchmark.extra_info["entry"] = entry
        benchmark.pedantic(run, rounds=300, iterations=50, warmup_rounds=20)
