"""The CUDA backend of azimuth_match, azimuth_crop, gumbel_noise and the bank as torch sees it.

Without a GPU a stand-in for the native module hands every call on to the CPU kernels: what is checked then is that
each argument reaches its place. The kernels themselves run in the emulator (csrc/tests/simt). With a GPU: that calls
neither wait nor depend on the stream or on chance, and can be captured in a graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc_fast import _native, azimuth_crop, azimuth_match
from geoloc_fast.ops import azimuth_match as op
from geoloc_fast.ops import choose
from geoloc_fast.testing import contracts, force_backend, poisoned_outputs, random_strips

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(_native.cuda_problem), reason=_native.cuda_problem or "torch sees no GPU"
)
SELECTIONS = contracts.SELECTIONS


class StandIn:
    """Takes what the CUDA module takes, with tensors on the CPU."""

    max_columns = 4096

    def __init__(self) -> None:
        self.native: Any = _native.native_cpu
        self.spaces: dict[int, Tensor] = {}

    def _on_cpu(self, op: str, named: dict[str, Any]) -> Any:
        assert named.pop("device") is None and named.pop("stream") == 77
        return getattr(self.native, op)(**named, threads=1)

    def azimuth_match_plan(self, *arguments: Any) -> tuple[int, int]:
        plan: tuple[int, int] = self.native.azimuth_match_plan(*arguments, 1)
        return plan

    def azimuth_match_shared_bytes(self, query: tuple[int, ...], strips: tuple[int, ...]) -> int:
        return 1000 * strips[3]

    def azimuth_match(self, **named: Any) -> None:
        self._on_cpu("azimuth_match", named)

    def azimuth_match_backward(self, **named: Any) -> None:
        self._on_cpu("azimuth_match_backward", named)

    def azimuth_crop_shared_bytes(self, query: tuple[int, ...], strips: tuple[int, ...]) -> int:
        return 32 * strips[3]

    def azimuth_crop_workspace(self, batch: int, columns: int) -> int:
        return 1 << 20

    def azimuth_crop(self, **named: Any) -> None:
        self._on_cpu("azimuth_crop", named)

    def azimuth_crop_backward(self, **named: Any) -> None:
        self._on_cpu("azimuth_crop_backward", named)

    def gumbel_noise(self, **named: Any) -> None:
        self._on_cpu("gumbel_noise", named)

    # The bank: all memory is the CPU's, and what CUDA takes in another place is moved.

    max_strip_columns = 64

    def device_limits(self, device: None) -> tuple[int, int]:
        return 2, 1 << 17

    def strip_topk_fits(self, size: tuple[int, ...], bf16: bool, limits: tuple[int, int]) -> bool:
        return size[2] in (1, 16, 64) and limits == (2, 1 << 17)

    def strip_topk_list_bytes(self, k: int) -> int:
        return 1 << 29  # two queries at once

    def strip_pack_workspace(self, size: tuple[int, ...], bf16: bool) -> int:
        return int(self.native.strip_pack_workspace(size[2], 1))

    def strip_unpack_workspace(self, size: tuple[int, ...], bf16: bool, rows: int) -> int:
        return int(self.native.strip_unpack_workspace(size[2], 1))

    def strip_score_workspace(self, size: tuple[int, ...], bf16: bool, batch: int, rows: int) -> int:
        return int(self.native.strip_score_workspace(batch, size[1], size[2], size[2], 1))

    def strip_topk_workspace(
        self,
        size: tuple[int, ...],
        bf16: bool,
        batch: int,
        width: int,
        has_width: bool,
        k: int,
        limits: tuple[int, int],
    ) -> int:
        return int(self.native.strip_topk_workspace(size, bf16, batch, width, k, 1))

    def strip_pack(self, **named: Any) -> None:
        self._on_cpu("strip_pack", named)

    def strip_unpack(self, **named: Any) -> None:
        self._on_cpu("strip_unpack", named)

    def strip_score(self, **named: Any) -> None:
        self._on_cpu("strip_score", named)

    def strip_topk(self, **named: Any) -> str:
        assert named.pop("limits") == (2, 1 << 17)
        self._on_cpu("strip_topk", named)
        return "a plan"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_native, "native_cuda", StandIn())
    monkeypatch.setattr(choose, "can_run_cuda", lambda tensor: "")
    monkeypatch.setattr(op, "_shared_bytes", lambda device: 99 << 10)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    with poisoned_outputs():
        yield


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arguments_arrive(select: str, dtype: torch.dtype) -> None:
    contracts.check_match("cuda", CPU, select, dtype, mixed=dtype == torch.float32)
    contracts.check_crop("cuda", CPU, select, dtype, mixed=dtype == torch.float32)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("select", "kind", "group", "columns"),
    [
        ("cosine", "cosine", 0, 16),
        ("correlation", "dot", 0, 1),
        ("correlation", "cosine", 3, 16),
        ("cosine", "dot", 2, 7),
    ],
)
def test_bank_arguments_arrive(select: str, kind: str, group: int, columns: int, dtype: str) -> None:
    calls = contracts.check_bank(
        "cuda", CPU, dtype, select, shape=(70, 3, 2, columns), query_columns=min(columns, 5), batch=5, mixed=True,
        alive=group != 3, kind=kind, group=group,
    )  # fmt: skip
    assert {name for name, _, _ in calls} >= {"strip_pack", "strip_unpack", "strip_score", "strip_curve"}
    assert [plan for name, _, plan in calls if name == "strip_topk"] == ["a plan"] * (columns != 7)


@pytest.mark.usefixtures("stand_in")
def test_noise_arguments_arrive() -> None:
    contracts.check_noise("cuda", CPU, 1000)
    query, strips = random_strips(3, 2, 2, 4), random_strips(5, 2, 2, 8)
    with force_backend("cuda"):
        found = azimuth_match(query, strips, select="gumbel")  # draws its own
    assert bool(found.score.isfinite().all())


@pytest.mark.skipif(_native.native_cuda is None, reason="the CUDA module is not built")
def test_the_module_takes_what_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device 99: the call gets through to CUDA and comes back with operator, shapes and CUDA's own words."""
    native: Any = _native.native_cuda

    def on_device_99(name: str) -> Any:
        call = getattr(native, name)
        if name in (
            "max_columns",
            "azimuth_match_plan",
            "azimuth_match_shared_bytes",
            "azimuth_crop_workspace",
            "azimuth_crop_shared_bytes",
        ):
            return call
        return lambda **named: call(**{**named, "device": 99, "stream": 0})

    monkeypatch.setattr(
        _native, "native_cuda", type("On99", (), {"__getattr__": lambda self, name: on_device_99(name)})()
    )
    monkeypatch.setattr(choose, "can_run_cuda", lambda tensor: "")
    monkeypatch.setattr(op, "_shared_bytes", lambda device: 99 << 10)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    query, strips = random_strips(3, 2, 2, 4), random_strips(3, 2, 2, 8)
    shapes = r"device not available. query \[3, 2, 2, 4\], strips \[3, 2, 2, 8\]: .+"
    noise = torch.zeros(3, 3, 8)
    with force_backend("cuda"):
        for select in ("correlation", "gumbel"):
            arguments = {"noise": noise} if select == "gumbel" else {}
            with pytest.raises(RuntimeError, match="azimuth_match: " + shapes):
                azimuth_match(query, strips, select=select, **arguments)
            arguments = {"noise": noise[0]} if select == "gumbel" else {}
            with pytest.raises(RuntimeError, match="azimuth_crop: " + shapes):
                azimuth_crop(query, strips, select=select, **arguments)
        with pytest.raises(RuntimeError, match=r"gumbel_noise: device not available. 72 values: .+"):
            azimuth_match(query, strips, select="gumbel")
    for call in (torch.ops.geoloc_fast.azimuth_match_backward, torch.ops.geoloc_fast.azimuth_crop_backward):
        crop = call is torch.ops.geoloc_fast.azimuth_crop_backward
        score, shift = (
            (torch.zeros(3), torch.zeros(3).long()) if crop else (torch.zeros(3, 3), torch.zeros(3, 3).long())
        )
        grads = (torch.zeros_like(query), score) if crop else (score,)
        rest = () if crop else (None, None)
        with force_backend("cuda"), pytest.raises(RuntimeError, match="backward: " + shapes):
            call(*grads, query, strips, None, "correlation", None, 1.0, None, score, shift, *rest)


def test_what_the_kernels_do_not_take(stand_in: None) -> None:
    query = torch.zeros(1, 1, 1, 5)
    for strips, message in (
        (torch.zeros(1, 1, 1, 5000), "take 4096 columns"),
        (torch.zeros(1, 1, 1, 128), "wants 128000 bytes of shared memory a block, this GPU has 101376"),
        (torch.zeros(1, 1, 1, 8).double(), "no kernel for torch.float64"),
    ):
        with force_backend("cuda"), pytest.raises(RuntimeError, match=message):
            azimuth_match(query, strips)


# --- with a GPU -------------------------------------------------------------------------------------------------------


def gumbel_step(query: Tensor, strips: Tensor, noise: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    q, s, a = (t.detach().requires_grad_() for t in (query, strips, scale))
    found = azimuth_match(q, s, select="gumbel", scale=a, noise=noise)
    (found.score * found.score).sum().backward()
    assert q.grad is not None and s.grad is not None and a.grad is not None
    return found.score.detach(), found.shift, q.grad, s.grad, a.grad


def gpu_inputs(batch: int = 70, references: int = 100) -> tuple[Tensor, ...]:
    query, strips = random_strips(batch, 16, 4, 5).cuda(), random_strips(references, 16, 4, 16, seed=1).cuda()
    noise = -torch.empty(batch, references, 16).exponential_(generator=torch.Generator().manual_seed(2)).log()
    return query, strips, noise.cuda(), torch.tensor(1 / 0.07, device="cuda")


@needs_gpu
@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(("columns", "query_columns"), [(1, 1), (4, 3), (7, 3), (16, 5), (16, 16), (32, 9), (64, 64)])
def test_on_a_gpu(select: str, columns: int, query_columns: int) -> None:
    gpu = torch.device("cuda")
    for dtype in (torch.float32, torch.bfloat16):
        contracts.check_match("cuda", gpu, select, dtype, columns=columns, query_columns=query_columns, mixed=True)
        contracts.check_crop("cuda", gpu, select, dtype, columns=columns, query_columns=query_columns, mixed=True)


@needs_gpu
def test_no_call_waits_for_the_device() -> None:
    inputs = gpu_inputs()
    gumbel_step(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gumbel_step(*inputs)
        azimuth_crop(inputs[0], inputs[1][:70], select="gumbel", scale=inputs[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_same_bits_every_time_and_on_a_side_stream() -> None:
    inputs = gpu_inputs()
    once = gumbel_step(*inputs)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        again = gumbel_step(*inputs)
    side.synchronize()
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)


@needs_gpu
def test_captured_in_a_graph() -> None:
    query, strips, noise, scale = gpu_inputs()

    def match() -> tuple[Tensor, Tensor]:
        return azimuth_match(query, strips, select="gumbel", scale=scale, noise=noise)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        match()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        score, shift = match()
    query.copy_(query.flip(0))
    scale.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    expected = match()
    assert torch.equal(score, expected[0]) and torch.equal(shift, expected[1])


@needs_gpu
@pytest.mark.parametrize("query_columns", [5, 16])
def test_memory_at_training_size(query_columns: int) -> None:
    """1024 against 1024: nothing of queries x strips x values."""
    query, strips = random_strips(1024, 16, 4, query_columns).cuda(), random_strips(1024, 16, 4, 16, seed=1).cuda()
    noise = torch.zeros(1024, 16, 1024, device="cuda").transpose(1, 2)
    scale = torch.tensor(1 / 0.07, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = gumbel_step(query, strips, noise, scale)
    assert all(bool(part.isfinite().all()) for part in step)
    assert torch.cuda.max_memory_allocated() - before < 300e6
    assert math.isfinite(float(step[-1]))
