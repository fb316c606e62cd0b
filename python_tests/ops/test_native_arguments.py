"""Native calls take arguments by name and in order; tensors that are swapped raise before memory is touched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch

from geoloc_fast import StripBank, _native, azimuth_crop, azimuth_match, polar_resample, strip_score, strip_topk
from geoloc_fast.retrieval import strip_curve
from geoloc_fast.testing import random_strips

pytestmark = pytest.mark.skipif(_native.native_cpu is None, reason="the CPU module is not built")
QUERY, STRIPS = random_strips(3, 2, 2, 4), random_strips(5, 2, 2, 8, seed=1)
WIDTH = torch.tensor([4, 2, 3])
SCALE = torch.tensor(2.0, requires_grad=True)


def searched() -> dict[str, Any]:
    return {"query": QUERY, "bank": StripBank.pack(STRIPS), "query_width": WIDTH}


def resample() -> None:
    images = torch.rand(3, 2, 6, 5, requires_grad=True)
    center, radius = torch.rand(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    polar_resample(images, (2, 4), center=center, max_radius=radius).sum().backward()


def match(crop: bool) -> None:
    operator, strips = (azimuth_crop, STRIPS[:3]) if crop else (azimuth_match, STRIPS)
    query, strips = QUERY.clone().requires_grad_(), strips.clone().requires_grad_()
    found: Any = operator(query, strips, query_width=WIDTH, select="gumbel", scale=SCALE)
    ((found.crop.sum() if crop else 0) + found.score.sum()).backward()


RUNS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "polar_resample": (resample, ("polar_resample", "polar_resample_backward")),
    "azimuth_match": (lambda: match(False), ("azimuth_match", "azimuth_match_backward", "gumbel_noise")),
    "azimuth_crop": (lambda: match(True), ("azimuth_crop", "azimuth_crop_backward")),
    "bank": (lambda: StripBank.pack(STRIPS).unpack(torch.tensor([4, 0])), ("strip_pack", "strip_unpack")),
    "strip_score": (lambda: strip_score(index=torch.zeros(3, 2).long(), **searched()), ("strip_score",)),
    "strip_curve": (lambda: strip_curve(index=torch.zeros(3, 2).long(), **searched()), ("strip_score",)),
    "strip_topk": (
        lambda: strip_topk(k=2, alive=torch.ones(5).bool(), group=torch.arange(5), **searched()),
        ("strip_topk",),
    ),
    "memory": (lambda: StripBank.pack(STRIPS), ("strip_bank_memory",)),
}
ENTRIES = [(run, op) for run, (_, ops) in RUNS.items() for op in ops]


def recorded(run: Callable[[], Any], op: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of the native call of `op` that `run` makes."""
    native = _native.native_cpu
    calls: list[dict[str, Any]] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            value = getattr(native, name)

            def call(**named: Any) -> Any:
                calls.append(named)
                return value(**named)

            return call if name == op else value

    with monkeypatch.context() as patched:
        patched.setattr(_native, "native_cpu", Recorder())
        run()
    return calls[-1]


def calls_to(module: str, op: str, named: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    if module == "cuda":  # there is no device 99: what reads its arguments to the end fails then
        del named["threads"]
        named |= ({"limits": (2, 1 << 17)} if op == "strip_topk" else {}) | {"device": 99, "stream": 0}
    return getattr(getattr(_native, f"native_{module}"), op), named


@pytest.mark.parametrize(("run", "op"), ENTRIES)
@pytest.mark.parametrize("module", ["cpu", "cuda"])
def test_swapped_arguments_raise(module: str, run: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "cuda" and (_native.native_cuda is None or op == "strip_bank_memory"):
        pytest.skip("the CUDA module is not built, or has no such call")
    call, named = calls_to(module, op, recorded(RUNS[run][0], op, monkeypatch))
    tensors = [name for name, value in named.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) >= (1 if op == "strip_bank_memory" else 2)

    with pytest.raises(TypeError):
        call(*named.values())
    items = list(named.items())
    for a, b in combinations(range(len(items)), 2):  # by name: their order is that of the call
        order = items.copy()
        order[a], order[b] = order[b], order[a]
        with pytest.raises(TypeError, match=f"{op}: expected argument '{items[a][0]}' next, got '{items[b][0]}'"):
            call(**dict(order))
    for a_name, b_name in combinations(tensors, 2):  # by value: type and number of values
        a_value, b_value = named[a_name], named[b_name]
        if (a_value.dtype, a_value.numel()) != (b_value.dtype, b_value.numel()):
            with pytest.raises((TypeError, ValueError)):
                call(**{**named, a_name: b_value, b_name: a_value})
    for name in tensors:
        with pytest.raises(TypeError, match=f"{op}: {name} is not a tensor"):
            call(**{**named, name: named[name].data_ptr()})
    for short in ({**named, "more": 1}, dict(items[:-1])):
        with pytest.raises(TypeError, match=f"{op}: expected"):
            call(**short)
    if module == "cpu":
        call(**named)
