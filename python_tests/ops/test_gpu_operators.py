"""Every operator on a GPU, by every backend that has a kernel for it: `make gpu-test`. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc_fast import StripBank, azimuth_crop, azimuth_match, polar_resample, strip_curve, strip_topk
from geoloc_fast.ops import strip_bank as bank_op
from geoloc_fast.testing import contracts, force_backend, observe_calls, random_strips

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

BACKENDS = ("cuda", "triton")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SELECTIONS = contracts.SELECTIONS
GPU = torch.device("cuda")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- right answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usual", [True, False])
@pytest.mark.parametrize("images", [torch.uint8, *FLOATS])
@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
def test_polar_resample(backend: str, images: torch.dtype, dtype: torch.dtype, usual: bool) -> None:
    contracts.check_polar(backend, GPU, images, dtype, usual=usual, size=64)


@pytest.mark.parametrize("dtype", FLOATS)
def test_polar_resample_backward(backend: str, dtype: torch.dtype) -> None:
    contracts.check_polar_backward(backend, GPU, dtype)


@pytest.mark.parametrize(
    ("columns", "query_columns", "mixed"),
    [(1, 1, False), (3, 2, True), (7, 3, False), (16, 5, True), (16, 16, False), (20, 20, True), (64, 13, False)],
)
@pytest.mark.parametrize("select", SELECTIONS)
def test_azimuth_match(backend: str, select: str, columns: int, query_columns: int, mixed: bool) -> None:
    contracts.check_match(backend, GPU, select, columns=columns, query_columns=query_columns, mixed=mixed)


@pytest.mark.parametrize("dtype", FLOATS[1:])
@pytest.mark.parametrize("select", SELECTIONS)
def test_azimuth_match_of_narrow_types(backend: str, select: str, dtype: torch.dtype) -> None:
    contracts.check_match(backend, GPU, select, dtype, mixed=True)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(
    ("batch", "references", "values", "columns", "query_columns"),
    [(67, 97, (16, 4), 16, 5), (33, 130, (16, 4), 16, 16), (26, 40, (16, 4), 64, 13), (19, 33, (150, 1), 8, 4)],
)
def test_azimuth_match_at_working_sizes(
    backend: str, select: str, batch: int, references: int, values: tuple[int, int], columns: int, query_columns: int
) -> None:
    inputs = random_strips(batch, *values, query_columns), random_strips(references, *values, columns, seed=1)
    contracts.check_match(backend, GPU, select, inputs=inputs, mixed=True)


@pytest.mark.parametrize(
    ("columns", "query_columns", "mixed", "dtype"),
    [
        (1, 1, False, torch.float32),
        (7, 3, True, torch.bfloat16),
        (16, 5, True, torch.float16),
        (20, 20, False, torch.float32),
        (64, 13, True, torch.float32),
    ],
)
@pytest.mark.parametrize("select", SELECTIONS)
def test_azimuth_crop(
    backend: str, select: str, columns: int, query_columns: int, mixed: bool, dtype: torch.dtype
) -> None:
    contracts.check_crop(backend, GPU, select, dtype, columns=columns, query_columns=query_columns, mixed=mixed)


@pytest.mark.parametrize("select", SELECTIONS[:2])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "query_columns", "batch"),
    [
        ((300, 5, 1, 1), 1, 3),
        ((1000, 512, 1, 1), 1, 33),
        ((77, 3, 1, 3), 2, 2),
        ((130, 2, 2, 7), 3, 1),
        ((3000, 16, 4, 16), 5, 1),
        ((3000, 16, 4, 16), 16, 65),
        ((100, 2, 1, 20), 20, 9),
        ((500, 16, 4, 64), 13, 17),
        ((700, 16, 4, 64), 64, 1),
        ((300, 5, 3, 64), 64, 33),
    ],
)
def test_bank(
    backend: str, shape: tuple[int, int, int, int], query_columns: int, batch: int, dtype: str, select: str
) -> None:
    mixed = batch % 2 == 1
    contracts.check_bank(backend, GPU, dtype, select,
        shape=shape, query_columns=query_columns, batch=batch, k=20, mixed=mixed, alive=mixed,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "group"), [("dot", 0), ("cosine", 19), ("dot", 3)])
@pytest.mark.parametrize("shape", [(1000, 70, 1, 1), (3000, 16, 4, 16), (300, 5, 3, 64), (300, 5, 3, 20)])
def test_dot_and_groups(backend: str, shape: tuple[int, int, int, int], kind: str, group: int, dtype: str) -> None:
    contracts.check_bank(backend, GPU, dtype, "correlation",
        shape=shape, query_columns=min(shape[3], 5), batch=17, k=20, kind=kind, group=group, mixed=True,
        alive=group == 3,
    )  # fmt: skip


def test_opcheck_and_compile(backend: str) -> None:
    query, strips = random_strips(3, 2, 1, 5).to(GPU), random_strips(40, 2, 1, 16, seed=1).to(GPU)
    bank, group = StripBank.pack(strips), torch.arange(40, device=GPU) // 3
    index = torch.tensor([[0, -1], [2, 1], [39, 7]], device=GPU)
    arguments = (query, bank.blocks, [40, 2, 1, 16], "bf16")
    with force_backend(backend):
        for op, rest in (
            (bank_op.score, (index, None, "correlation", "dot")),
            (bank_op.curve, (index, None)),
            (bank_op.topk, (4, None, "cosine", None, "dot", group)),
        ):
            torch.library.opcheck(op.overload, (*arguments, *rest), test_utils=("test_schema", "test_faketensor"))

        def search(query: Tensor) -> Tensor:
            found = strip_topk(query * 1.0, bank, 4, score="dot", group=group)
            return strip_curve(query, bank, found.index) + found.score[..., None]

        compiled = torch.compile(search, fullgraph=True)
        torch.testing.assert_close(compiled(query), search(query))


def test_a_bank_beyond_one_stretch(backend: str) -> None:
    strips = random_strips(40_000, 4, 1, 16)
    contracts.check_bank(backend, GPU, "bf16", "correlation", strips=strips, batch=200, query_columns=8)


@pytest.mark.parametrize("count", [1, 64, 100_000])
def test_gumbel_noise(backend: str, count: int) -> None:
    contracts.check_noise(backend, GPU, count)


# --- streams, devices, graphs ----------------------------------------------------------------------------------------


def calls_of(device: torch.device) -> dict[str, Callable[[], Any]]:
    """One call of each operator on tensors that lie ready, forward and backward."""
    query, strips = random_strips(8, 4, 2, 5).to(device), random_strips(50, 4, 2, 16, seed=1).to(device)
    noise = torch.zeros(8, 50, 16, device=device)
    bank = StripBank.pack(strips)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8).to(device)

    def step() -> tuple[Tensor, ...]:
        q, s = query.detach().requires_grad_(), strips.detach().requires_grad_()
        score = azimuth_match(q, s, select="gumbel", scale=5.0, noise=noise).score
        return (score.detach(), *torch.autograd.grad(score.sum(), (q, s)))

    return {
        "polar_resample": lambda: (polar_resample(images, (16, 64), mean=[1.0] * 3, std=[2.0] * 3),),
        "azimuth_match": lambda: azimuth_match(query, strips),
        "azimuth_match gumbel, both ways": step,
        "azimuth_crop": lambda: azimuth_crop(query, strips[:8]),
        "strip_topk": lambda: strip_topk(query, bank, 5),
    }


CALLS = ("polar_resample", "azimuth_match", "azimuth_match gumbel, both ways", "azimuth_crop", "strip_topk")


@pytest.fixture
def ready(backend: str) -> dict[str, Callable[[], Any]]:
    with force_backend(None):
        return calls_of(GPU)


@pytest.mark.parametrize("name", CALLS)
def test_current_stream_is_used_and_never_waited_for(
    backend: str, ready: dict[str, Callable[[], Any]], name: str
) -> None:
    """On a side stream that is kept busy: the call comes back before the stream is done, and the answer is right."""
    with force_backend(backend):
        expected = [part.clone() for part in ready[name]()]
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # memory for this stream: to get it from the driver may wait
            ready[name]()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(400_000_000)
                found = ready[name]()
                done = torch.cuda.Event()
                done.record()
                busy = not done.query()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stream.synchronize()
    assert busy, "the call waited for the device"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", CALLS)
def test_graph_capture(backend: str, ready: dict[str, Callable[[], Any]], name: str) -> None:
    with force_backend(backend):
        expected = [part.clone() for part in ready[name]()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            ready[name]()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = ready[name]()
        for part in found:
            part.fill_(0)
        graph.replay()
        torch.cuda.synchronize()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", CALLS)
def test_second_device(backend: str, name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    with force_backend(None):
        here, there = calls_of(torch.device("cuda:0")), calls_of(torch.device("cuda:1"))
    with torch.cuda.device(0), force_backend(backend):
        for one, other in zip(here[name](), there[name](), strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu())


# --- choice and faults -----------------------------------------------------------------------------------------------


def test_without_a_word_every_operator_runs_on_a_kernel() -> None:
    with observe_calls() as calls:
        for call in calls_of(GPU).values():
            call()
    assert {name for name, backend, _ in calls if backend not in BACKENDS} == set()


def test_columns_that_cuda_does_not_search_go_to_triton() -> None:
    strips = random_strips(50, 4, 2, 8).to(GPU)
    bank = StripBank.pack(strips)
    with observe_calls() as calls:
        strip_topk(strips[:2, :, :, :3].contiguous(), bank, 2)
    assert [call[1] for call in calls] == ["triton"]


def test_mixed_devices_are_named() -> None:
    query, strips = random_strips(2, 2, 2, 3), random_strips(2, 2, 2, 4)
    bank = StripBank.pack(strips, device="cuda")
    with pytest.raises(ValueError, match="query: expected the device of strips"):
        azimuth_match(query, strips.to(GPU))
    with pytest.raises(ValueError, match="query: expected the device of the bank"):
        strip_topk(query, bank, 1)
    with pytest.raises(ValueError, match="alive: expected the device of the bank"):
        strip_topk(query.to(GPU), bank, 1, alive=torch.ones(2).bool())


def test_out_of_memory_is_typed_and_leaves_the_bank_usable(backend: str) -> None:
    strips = random_strips(100, 4, 2, 16)
    with force_backend(None):
        bank = StripBank.pack(strips, device="cuda")
    query = strips[:3].to(GPU)
    with force_backend(backend):
        before = strip_topk(query, bank, 2)
        # The limit is held against what this process has reserved, whatever others on the card have.
        allowed = torch.cuda.memory_reserved() + (1 << 30)
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / torch.cuda.mem_get_info()[1]))
        try:
            with pytest.raises(torch.cuda.OutOfMemoryError):
                polar_resample(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=GPU), (40_000, 40_000))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        after = strip_topk(query, bank, 2)
    assert torch.equal(before.index, after.index)


def test_no_difference_from_run_to_run(backend: str, ready: dict[str, Callable[[], Any]]) -> None:
    with force_backend(backend):
        for name in CALLS:
            for one, other in zip(ready[name](), ready[name](), strict=True):
                assert torch.equal(one, other), name


def test_rows_and_widths_outside_what_exists_do_no_harm(backend: str) -> None:
    """On a GPU values are not looked at before a call, so the kernels are defined for all of them."""
    strips = random_strips(20, 4, 2, 16)
    with force_backend(None):
        bank = StripBank.pack(strips, device="cuda")
    with force_backend(backend):
        query, width = strips[:4, :, :, :3].to(GPU).contiguous(), torch.tensor([-5, 0, 3, 1 << 40], device=GPU)
        azimuth_match(query, strips.to(GPU), query_width=width)
        strip_topk(query, bank, 3, query_width=width)
        torch.cuda.synchronize()
        usable = strip_topk(query, bank, 3)
    assert usable.index[:, 0].tolist() == [0, 1, 2, 3]
