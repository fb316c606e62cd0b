"""What all operators share: torch.ops refuses what would lead a kernel astray, eager calls go past the dispatcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from geoloc_fast import StripBank, azimuth_match, polar_resample, strip_topk
from geoloc_fast.ops import azimuth_match as match_op
from geoloc_fast.ops import strip_bank as bank_op
from geoloc_fast.ops import tile_signature  # noqa: F401  # registers its operator
from geoloc_fast.testing import force_backend, random_strips

OPS = torch.ops.geoloc_fast
_query, _strips = random_strips(2, 3, 2, 4), random_strips(2, 3, 2, 8, seed=1)
_bank = StripBank.pack(random_strips(20, 3, 2, 8, seed=2))
_width, _noise, _one = torch.tensor([4, 2]), torch.zeros(2, 2, 8), torch.tensor(1.0)
_pairs, _shift = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)
_images, _pair = torch.zeros(2, 3, 5, 6), torch.zeros(2, 2, dtype=torch.float64)
_stored = (_bank.blocks, [20, 3, 2, 8], "bf16")

GOOD: dict[str, tuple[Any, ...]] = {
    "strip_pack": (_strips, "bf16"),
    "strip_unpack": (*_stored, torch.tensor([0, 19])),
    "strip_score": (_query, *_stored, torch.zeros(2, 5, dtype=torch.int64), _width, "correlation", "cosine"),
    "strip_curve": (_query, *_stored, torch.zeros(2, 5, dtype=torch.int64), _width),
    "strip_topk": (
        _query, *_stored, 3, _width, "cosine", torch.ones(20, dtype=torch.bool), "dot", torch.arange(20),
    ),
    "azimuth_match": (_query, _strips, _width, "gumbel", _one, 1.0, _noise),
    "azimuth_match_with_slope": (_query, _strips, _width, _one, 1.0, _noise),
    "azimuth_match_backward": (
        _pairs, _query, _strips, _width, "gumbel", _one, 1.0, _noise, _pairs, _shift, torch.zeros(2, 8, 2), _pairs,
    ),
    "azimuth_crop": (_query, _strips, _width, "gumbel", _one, 1.0, _noise[0]),
    "azimuth_crop_backward": (
        _query, _pairs[0], _query, _strips, _width, "gumbel", _one, 1.0, _noise[0], _pairs[0], _shift[0],
    ),
    "gumbel_noise": (torch.tensor(3), [2, 2], torch.float32),
    "polar_resample": (_images, 4, 8, 0.0, False, _pair, _pair[0], _pair[1], False, [0.0] * 6, torch.float32),
    "tile_signature": (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),),
    "polar_resample_backward": (
        torch.zeros(2, 3, 4, 8), 5, 6, 0.0, False, _pair, _pair[0], _pair[1], False, [1.0] * 3, torch.float32,
    ),
}  # fmt: skip

BAD: list[tuple[str, int, Any, str]] = [  # operator, number of the argument, what it gets, the error
    ("strip_pack", 0, _strips[0], "strips: expected shape"),
    ("strip_pack", 0, _strips[..., :0], "strips: expected at least one value"),
    ("strip_pack", 1, "int8", "dtype: expected one of 'fp32', 'bf16'"),
    ("strip_unpack", 0, _bank.blocks[:-64], "blocks: expected .* contiguous bytes"),
    ("strip_unpack", 1, [1 << 40, 3, 2, 8], "blocks: expected"),
    ("strip_unpack", 1, [20, 3, 2], "shape: expected"),
    ("strip_unpack", 1, [20, 3, 0, 8], "shape: expected"),
    ("strip_unpack", 1, [-1, 3, 2, 8], "shape: expected"),
    ("strip_unpack", 3, torch.tensor([20]), "expected rows from 0 to 19"),
    ("strip_unpack", 3, torch.tensor([-1]), "expected rows from 0 to 19"),
    ("strip_unpack", 3, torch.tensor([0], dtype=torch.int32), "index: expected int64"),
    ("strip_unpack", 3, torch.zeros(1, 1, dtype=torch.int64), "index: expected int64"),
    ("strip_score", 0, _query[:, :1], "query: expected C=3, H=2"),
    ("strip_score", 0, random_strips(2, 3, 2, 9), "query: expected 1 to 8 columns"),
    ("strip_score", 3, "fp16", "dtype: expected"),
    ("strip_score", 4, torch.zeros(3, 5, dtype=torch.int64), "index: expected int64 of shape"),
    ("strip_score", 4, torch.full((2, 5), 20), "expected rows from -1 to 19"),
    ("strip_score", 5, _width[:1], "query_width: expected int64 of shape"),
    ("strip_score", 5, _width + 3, "widths from 1 to the padded width"),
    ("strip_score", 5, _width.int(), "query_width: expected int64"),
    ("strip_score", 6, "nonsense", "select: expected one of"),
    ("strip_score", 7, "l2", "score: expected one of"),
    ("strip_curve", 0, _query[0], "query: expected shape"),
    ("strip_curve", 4, torch.zeros(2, dtype=torch.int64), "index: expected int64 of shape"),
    ("strip_topk", 0, _query[:, :1], "query: expected C=3, H=2"),
    ("strip_topk", 4, 0, "k: expected an integer from 1 to 1024"),
    ("strip_topk", 4, 1 << 40, "k: expected an integer from 1 to 1024"),
    ("strip_topk", 5, _width[:1], "query_width: expected int64 of shape"),
    ("strip_topk", 5, _width - 2, "widths from 1 to the padded width"),
    ("strip_topk", 6, "gumbel", "select: expected one of"),
    ("strip_topk", 7, torch.ones(1, dtype=torch.bool), "alive: expected bool of shape .20,."),
    ("strip_topk", 7, torch.ones(20, dtype=torch.uint8), "alive: expected bool of shape .20,."),
    ("strip_topk", 8, "", "score: expected one of"),
    ("strip_topk", 9, torch.arange(19), "group: expected int64 of shape .20,."),
    ("strip_topk", 9, torch.arange(20).int(), "group: expected int64 of shape .20,."),
    ("azimuth_match", 0, _query[:, :2], "query: expected C=3, H=2"),
    ("azimuth_match", 1, _strips[..., :3], "query: expected 1 to 3 columns"),
    ("azimuth_match", 2, _width[:1], "query_width: expected int64 of shape"),
    ("azimuth_match", 2, _width + 1, "query_width: expected widths from 1 to 4"),
    ("azimuth_match", 3, "nonsense", "select: expected one of"),
    ("azimuth_match", 4, None, "scale, noise: expected"),
    ("azimuth_match", 4, torch.ones(2), "scale: expected"),
    ("azimuth_match", 6, _noise[:1], "noise: expected"),
    ("azimuth_match_with_slope", 5, _noise[..., :7], "noise: expected"),
    ("azimuth_match_backward", 0, _pairs[:1], "grad_score: expected"),
    ("azimuth_match_backward", 8, _pairs.double(), "score: expected float32"),
    ("azimuth_match_backward", 9, _shift + 8, "shift: expected shifts from 0 to 7, got 8 to 8"),
    ("azimuth_match_backward", 9, _shift - 1, "shift: expected shifts from 0 to 7"),
    ("azimuth_match_backward", 9, torch.zeros(4, 2, dtype=torch.int64)[::2], "shift: expected contiguous"),
    ("azimuth_match_backward", 10, None, "slope, scale_slope: expected"),
    ("azimuth_match_backward", 10, torch.zeros(2, 2, 8), "slope: expected"),
    ("azimuth_match_backward", 11, _pairs[:1], "scale_slope: expected"),
    ("azimuth_crop", 1, _strips[:1], "noise|strips: expected"),
    ("azimuth_crop", 6, _noise[0, :1], "noise: expected"),
    ("azimuth_crop_backward", 0, _query[..., :3], "grad_crop: expected"),
    ("azimuth_crop_backward", 10, _shift[0] + 8, "shift: expected shifts from 0 to 7"),
    ("gumbel_noise", 0, torch.tensor([3]), "seed: expected int64"),
    ("gumbel_noise", 2, torch.int32, "dtype: expected one of"),
    ("tile_signature", 0, torch.zeros(1, 4, 8, 8), "images: expected .B, 3, H, W."),
    ("tile_signature", 0, torch.zeros(1, 3), "images: expected"),
    ("polar_resample", 0, _images[:, :, :0], "images: expected at least one pixel"),
    ("polar_resample", 1, 0, "rows: expected an integer at least 1"),
    ("polar_resample", 5, _pair[:1], "center: expected float64 of shape .2, 2."),
    ("polar_resample", 5, _pair.float(), "center: expected float64"),
    ("polar_resample", 5, _pair.T.contiguous().T, "center: expected contiguous"),
    ("polar_resample", 6, _pair[0, :1], "max_radius: expected float64"),
    ("polar_resample", 9, [0.0] * 5, "mean_std: expected 6 numbers or none, got 5"),
    ("polar_resample", 10, torch.int64, "dtype: expected one of"),
    ("polar_resample_backward", 1, -1, "in_rows: expected an integer at least 1"),
    ("polar_resample_backward", 7, _pair[1, :1], "heading_deg: expected float64"),
    ("polar_resample_backward", 9, [1.0], "std: expected 3 numbers or none, got 1"),
]


@pytest.mark.parametrize("name", GOOD)
def test_every_operator_of_the_package_is_here_and_runs(name: str) -> None:
    getattr(OPS, name)(*GOOD[name])
    # dir() knows what has been asked for; the schemas know all.
    schemas = torch._C._jit_get_all_schemas()
    assert {s.name.split("::")[1] for s in schemas if s.name.startswith("geoloc_fast::")} == set(GOOD)


@pytest.mark.parametrize(("name", "number", "value", "message"), BAD)
def test_torch_ops_refuses_what_would_lead_a_kernel_astray(name: str, number: int, value: Any, message: str) -> None:
    arguments = list(GOOD[name])
    arguments[number] = value
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(OPS, name)(*arguments)


def test_rows_of_a_large_bank_that_alive_does_not_cover() -> None:
    """What would have read far beyond `alive`, or in a strip of more channels than the query has."""
    bank = StripBank.pack(torch.zeros(1, 1, 1, 1).expand(2_000_000, 1, 1, 1))
    with pytest.raises(ValueError, match=r"alive: expected bool of shape \(2000000,\), got .* of shape \(1,\)"):
        OPS.strip_topk(
            torch.zeros(1, 1, 1, 1), bank.blocks, [2_000_000, 1, 1, 1], "bf16", 1, None, "cosine", torch.ones(1).bool()
        )


# --- past the dispatcher ---------------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """Which operators of the package torch's dispatcher sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "geoloc_fast":
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls that eager code handed to torch."""
    calls: list[str] = []

    class Watch:
        def __init__(self, overload: Any) -> None:
            self.overload = overload

        def __call__(self, *args: Any) -> Any:
            calls.append(self.overload._schema.name)
            return self.overload(*args)

    for operator in (bank_op.topk, match_op.forward):
        monkeypatch.setattr(operator, "overload", Watch(operator.overload))
    return calls


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "strip_topk": lambda query: strip_topk(query, _bank, 3),
    "azimuth_match": lambda query: azimuth_match(query, _strips),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_eager_call_goes_past_the_dispatcher_and_answers_the_same(
    name: str, backend: str, dispatched: list[str]
) -> None:
    with force_backend(backend):
        direct = CALLS[name](_query)
        assert dispatched == []
        for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
            with context:
                for mine, theirs in zip(CALLS[name](_query), direct, strict=True):
                    assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype
        assert dispatched == []
        with Count() as mode:
            through = CALLS[name](_query)
        assert mode.seen == dispatched == [f"geoloc_fast::{name}"]
    for mine, theirs in zip(through, direct, strict=True):
        assert torch.equal(mine, theirs) and not mine.requires_grad


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("name", CALLS)
def test_whoever_watches_is_served_by_torch(name: str, dispatched: list[str]) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        CALLS[name](_query)
    assert f"geoloc_fast::{name}" in {event.key for event in seen.key_averages()}
    with torch.device("cpu"):
        CALLS[name](_query)
    CALLS[name](_query.as_subclass(Subclass))
    assert dispatched == [f"geoloc_fast::{name}"] * 3


def test_tensors_without_values_get_shapes() -> None:
    found = azimuth_match(_query.to("meta"), _strips.to("meta"))
    assert found.score.device.type == "meta" and found.score.shape == (2, 2)
    with FakeTensorMode() as mode:
        fake = polar_resample(mode.from_tensor(_images), (4, 8))
    assert fake.shape == (2, 3, 4, 8)


def test_a_default_device_is_not_the_kernels() -> None:
    """torch.set_default_device is a mode too: the outputs of a CPU call stay where its tensors are."""
    with torch.device("meta"):
        found = strip_topk(_query, _bank, 3)
    assert found.score.is_cpu and torch.equal(found.index, strip_topk(_query, _bank, 3).index)


def test_an_operator_is_an_nvtx_range_when_asked() -> None:
    code = """
import torch
names = []
torch.cuda.nvtx.range_push = names.append
torch.cuda.nvtx.range_pop = lambda: names.append("end")
import geoloc_fast
strips = torch.rand(3, 2, 1, 4)
geoloc_fast.azimuth_match(strips, strips)
print(names)
"""
    for asked, printed in (("1", "['geoloc_fast::azimuth_match', 'end']"), ("0", "[]")):
        environment = {**os.environ, "GEOLOC_FAST_NVTX": asked}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip() == printed
