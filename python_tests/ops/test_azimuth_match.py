"""azimuth_match: the reference against loops written here, the CPU kernel against the reference in float64.

Shifts of the kernel are compared without exception: where two shifts are closer than float32 can tell, it sums again
in float64, so only shifts that tie there to the last bits could differ, and exact ties are tested on purpose.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geoloc_fast import _native, azimuth_match
from geoloc_fast.ops import azimuth_match as op
from geoloc_fast.ops.azimuth_match import force_plan
from geoloc_fast.reference import windows
from geoloc_fast.testing import (
    TOLERANCE,
    assert_close,
    available_isas,
    force_backend,
    force_isa,
    observe_calls,
    poisoned_outputs,
    random_strips,
)

ISAS = available_isas()
SELECTIONS = ("correlation", "cosine", "gumbel")
WIDTHS = (1, 2, 3, 7, 16, 20, 64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLANS = (("direct", "scatter"), ("spectral", "spectral"))
native: Any = _native.native_cpu


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_for(*shape: int, seed: int = 7) -> Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -(-(uniform.clamp(1e-12, 1 - 1e-12)).log()).log().float()


def mixed_widths(batch: int, columns: int) -> Tensor:
    return torch.tensor([1 + (3 * b + columns - 1) % columns for b in range(batch)])


class Answer:
    """score, shift and the gradients of sum(score * weight)."""

    def __init__(self, query: Tensor, strips: Tensor, select: str, scale: float = 5.0, **arguments: Any) -> None:
        q, s = query.clone().requires_grad_(), strips.clone().requires_grad_()
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        a = torch.tensor(scale, dtype=wide, requires_grad=True)
        if select == "gumbel":
            arguments["scale"] = a
        found = azimuth_match(q, s, select=select, **arguments)
        self.score, self.shift = found.score.detach(), found.shift
        weight = torch.linspace(-1, 1, found.score.numel(), dtype=wide).reshape(found.score.shape)
        (found.score * weight).sum().backward()
        self.grad_query, self.grad_strips, self.grad_scale = q.grad, s.grad, a.grad

    def gradients(self) -> dict[str, Tensor]:
        every = {"query": self.grad_query, "strips": self.grad_strips, "scale": self.grad_scale}
        return {name: grad for name, grad in every.items() if grad is not None}


def assert_gradients(actual: Answer, expected: Answer) -> None:
    """The "gradient" family, and one rounding to the dtype of a gradient narrower than float32."""
    assert actual.gradients().keys() == expected.gradients().keys()
    for name, grad in actual.gradients().items():
        e = expected.gradients()[name].double()
        rounding = 0.0 if grad.dtype == torch.float32 else TOLERANCE[str(grad.dtype).removeprefix("torch.")].relative
        family = TOLERANCE["gradient"]
        excess = (grad.double() - e).abs() / (family.absolute + (family.relative + rounding) * e.abs())
        assert not bool(excess.isnan().any()), f"gradient of {name}: NaN"
        assert not grad.numel() or float(excess.max()) <= 1, f"gradient of {name}: {float(excess.max())} times allowed"


def inputs(columns: int, query_columns: int, dtype: torch.dtype, mixed: bool) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """5 queries of two channels and height 3 against 35 strips, so that there are two tiles of strips."""
    query = random_strips(5, 2, 3, query_columns, seed=columns).to(dtype)
    strips = random_strips(35, 2, 3, columns, seed=columns + 1).to(dtype)
    return query, strips, {"query_width": mixed_widths(5, query_columns)} if mixed else {}


@cache
def case(columns: int, query_columns: int, select: str, dtype: torch.dtype, mixed: bool) -> tuple[Any, ...]:
    query, strips, arguments = inputs(columns, query_columns, dtype, mixed)
    if select == "gumbel":
        arguments |= {"noise": noise_for(5, 35, columns), "tau": 0.7}
    with observe_calls() as calls:
        expected = Answer(query.double(), strips.double(), select, **arguments)
    assert {backend for _, backend, _ in calls} == {"reference"}
    return query, strips, arguments, expected


def query_widths(columns: int) -> list[int]:
    return sorted({1, max(1, columns // 3), columns})


# --- the reference against loops -------------------------------------------------------------------------------------


def loops(query: Tensor, strips: Tensor, width: list[int], select: str, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, references, columns = query.shape[0], strips.shape[0], strips.shape[3]
    score = torch.zeros(batch, references, dtype=torch.float64)
    shift = torch.zeros(batch, references, dtype=torch.int64)
    for b in range(batch):
        for r in range(references):
            energy_all = float((strips[r] ** 2).sum())
            energy_query = float((query[b, :, :, : width[b]] ** 2).sum())
            best, at, cosines = -math.inf, 0, []
            for s in range(columns):
                product = energy = 0.0
                for x in range(width[b]):
                    column = strips[r, :, :, (s + x) % columns]
                    product += float((query[b, :, :, x] * column).sum())
                    energy += float((column**2).sum())
                usable = energy > 1e-6 * energy_all and energy_query > 0
                cosines.append(product / math.sqrt(energy * energy_query) if usable else 0.0)
                value = cosines[-1] if select == "cosine" else product
                if noise is not None:
                    value = (5.0 * product + float(noise[b, r, s])) / 0.7
                if value > best:
                    best, at = value, s
            score[b, r], shift[b, r] = cosines[at], at
    return score, shift


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(("columns", "query_columns"), [(1, 1), (3, 2), (8, 3), (8, 8)])
def test_reference_against_loops(select: str, columns: int, query_columns: int) -> None:
    query, strips = numbers(3, 2, 2, query_columns).double(), numbers(4, 2, 2, columns, seed=1).double()
    strips[1, :, :, : columns // 2] = 0
    width = mixed_widths(3, query_columns)
    arguments: dict[str, Any] = {"query_width": width}
    if select == "gumbel":
        arguments |= {"noise": noise_for(3, 4, columns).double(), "scale": 5.0, "tau": 0.7}
    found = azimuth_match(query, strips, select=select, **arguments)
    score, shift = loops(query, strips, width.tolist(), select, arguments.get("noise"))
    torch.testing.assert_close(found.score, score, rtol=0, atol=1e-12)
    assert torch.equal(found.shift, shift)


def test_reference_gumbel_is_torchs_gumbel_softmax() -> None:
    """score and gradients of torch.nn.functional.gumbel_softmax(hard=True) with the same noise, window by window."""
    query, strips = numbers(3, 2, 2, 3).double(), numbers(4, 2, 2, 6, seed=1).double()
    noise = noise_for(3, 4, 6).double()
    found = Answer(query, strips, "gumbel", noise=noise, tau=0.7)
    q, s = query.clone().requires_grad_(), strips.clone().requires_grad_()
    a = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    score = []
    for b in range(3):
        for r in range(4):
            every = torch.stack([s[r].roll(-shift, -1)[..., :3] for shift in range(6)])
            logits = a * (every * q[b]).sum((1, 2, 3)) + noise[b, r]
            soft = (logits / 0.7).softmax(0)
            hard = torch.nn.functional.one_hot(soft.argmax(), 6) - soft.detach() + soft
            window = (hard[:, None, None, None] * every).sum(0)
            score.append((window * q[b]).sum() / (window.norm() * q[b].norm()))
    expected = torch.stack(score).view(3, 4)
    (expected * torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)).sum().backward()
    torch.testing.assert_close(found.score, expected.detach())
    for name, grad in {"query": q.grad, "strips": s.grad, "scale": a.grad}.items():
        torch.testing.assert_close(found.gradients()[name], grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("select", ["correlation", "cosine"])
def test_reference_gradcheck(select: str) -> None:
    query, strips = numbers(2, 2, 1, 3).double().requires_grad_(), numbers(3, 2, 1, 5, seed=1).double().requires_grad_()
    width = torch.tensor([3, 2])
    assert torch.autograd.gradcheck(
        lambda q, s: azimuth_match(q, s, select=select, query_width=width).score, (query, strips)
    )


# --- the kernel against the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("isa", ISAS)
def test_kernel(isa: str, columns: int, select: str) -> None:
    for query_columns in query_widths(columns):
        for dtype in DTYPES:
            for mixed in (False, True) if dtype == torch.float32 else (True,):
                query, strips, arguments, expected = case(columns, query_columns, select, dtype, mixed)
                for forward, backward in PLANS:
                    if select == "gumbel":
                        backward = "spectral"
                    with force_isa(isa), force_plan(forward, backward), observe_calls() as calls:
                        found = Answer(query, strips, select, **arguments)
                    assert ("azimuth_match", "cpu", f"{isa}/{forward}") in calls
                    assert ("azimuth_match_backward", "cpu", f"{isa}/{backward}") in calls
                    assert torch.equal(found.shift, expected.shift)
                    assert_close(found.score, expected.score, "float32")
                    assert_gradients(found, expected)


@pytest.mark.parametrize(
    ("batch", "references", "channels", "height", "columns", "query_columns"),
    [(67, 97, 16, 4, 16, 5), (33, 64, 16, 4, 16, 16), (26, 40, 16, 4, 64, 13), (19, 33, 150, 1, 8, 4)],
    ids=["narrow", "whole", "wide-strips", "many-values"],
)
@pytest.mark.parametrize("select", SELECTIONS)
def test_kernel_at_working_sizes(
    batch: int, references: int, channels: int, height: int, columns: int, query_columns: int, select: str
) -> None:
    """Several blocks of everything; the plan is the cost model's."""
    query = random_strips(batch, channels, height, query_columns)
    strips = random_strips(references, channels, height, columns, seed=1)
    arguments: dict[str, Any] = {"query_width": mixed_widths(batch, query_columns)}
    if select == "gumbel":
        arguments |= {"noise": noise_for(batch, references, columns), "scale": 1 / 0.07}
    expected = Answer(query.double(), strips.double(), select, **arguments)
    found = Answer(query, strips, select, **arguments)
    assert torch.equal(found.shift, expected.shift)
    assert_close(found.score, expected.score, "float32")
    for name, grad in found.gradients().items():  # sums over a whole batch: relative to the gradient as a whole
        e = expected.gradients()[name]
        cancelled = 1e-7 if name == "scale" else 0.0  # one number, of terms of either sign
        assert float((grad - e).norm()) <= 2e-6 * float(e.norm()) + cancelled, name


def test_plan_follows_the_costs() -> None:
    def plan(values: int, query_columns: int, columns: int, select: int = 0, backward: bool = False) -> str:
        query, strips = (64, values, 1, query_columns), (64, values, 1, columns)
        code, _ = native.azimuth_match_plan(query, strips, False, select, False, backward, -1, 2)
        return ("direct", "spectral", "scatter")[code]

    assert plan(64, 5, 16) == plan(64, 16, 16) == plan(64, 13, 64) == "spectral"
    assert plan(1024, 1, 1) == plan(64, 1, 16) == plan(64, 1, 64) == "direct"
    assert plan(1, 9, 360) == "direct"  # the slow transform of a width that is no power of two, for a single value
    assert plan(64, 5, 16, backward=True) == plan(64, 13, 64, backward=True) == "scatter"
    assert plan(64, 16, 16, backward=True) == "spectral"
    assert plan(64, 5, 16, select=2, backward=True) == "spectral"


def test_memory_is_bounded() -> None:
    """Forward and backward of 1024 against 1024, Wq = 5: what is allocated above the inputs, noise included."""
    query, strips = (1024, 16, 4, 5), (1024, 16, 4, 16)
    pairs = 1024 * 1024
    _, forward = native.azimuth_match_plan(query, strips, False, 2, True, False, -1, 2)
    _, backward = native.azimuth_match_plan(query, strips, False, 2, False, True, -1, 2)
    kept = pairs * (4 + 8 + 4 + 2 * 16 * 4)  # score, shift, scale_slope; slope and noise
    gradients = 4 * 64 * 1024 * (5 + 16) + 2 * 4 * pairs
    assert kept + max(forward, backward + gradients) < 300e6


# --- ties, empty windows, extremes, NaN -----------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("plan", ["direct", "spectral"])
@pytest.mark.parametrize("select", ["correlation", "cosine"])
def test_exact_ties_take_the_lowest_shift(isa: str, plan: str, select: str) -> None:
    for columns in (3, 7, 16, 20, 64):
        generator = torch.Generator().manual_seed(columns)
        base = torch.randint(-4, 5, (6, 3, 2, columns), generator=generator).float()
        strips = torch.cat(
            [
                base[:1, ..., :1].expand(-1, -1, -1, columns),  # constant: every shift ties
                torch.cat([base[1:2, ..., : columns // 2]] * 3, -1)[..., :columns],  # nearly periodic
                base[2:4],
                torch.zeros_like(base[:1]),
            ]
        )
        strips[2, ..., columns // 2] = strips[2, ..., 0]  # two equal columns
        query = torch.randint(-4, 5, (7, 3, 2, columns), generator=generator).float()
        query[0] = 0
        width = mixed_widths(7, columns)
        expected = azimuth_match(query.double(), strips.double(), query_width=width, select=select)
        with force_isa(isa), force_plan(plan):
            found = azimuth_match(query, strips, query_width=width, select=select)
        assert torch.equal(found.shift, expected.shift), columns
        assert_close(found.score, expected.score, "float32")
        assert int(found.shift[0].max()) == 0


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_near_ties_are_decided_in_float64(isa: str, select: str) -> None:
    """Pairs whose two best shifts differ by a few float32 roundings."""
    strips = random_strips(64, 4, 4, 8)
    strips = torch.cat([strips, strips * (1 + 2e-7 * numbers(64, 4, 4, 8, seed=3))], -1).contiguous()
    query = random_strips(16, 4, 4, 4, seed=1)
    arguments: dict[str, Any] = {}
    if select == "gumbel":
        arguments = {"noise": noise_for(16, 64, 8).repeat(1, 1, 2), "scale": 10.0}
    expected = azimuth_match(query.double(), strips.double(), select=select, **arguments)
    with force_isa(isa):
        found = azimuth_match(query, strips, select=select, **arguments)
    assert torch.equal(found.shift, expected.shift)
    assert 100 < int((expected.shift >= 8).sum()) < 924  # the second half does win


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("plan", ["direct", "spectral"])
def test_empty_and_nearly_empty_windows(select: str, plan: str) -> None:
    """Windows of 0, and of 1e-7 to 1e-3 of the strip's energy: on either side of the share that counts."""
    strips = random_strips(33, 4, 4, 16)
    share = torch.logspace(-7, -3, 33)
    strips[:, :, :, 4:12] *= (share.sqrt() * 1.0)[:, None, None, None]
    strips[3] = 0
    strips[5, :, :, 4:12] = 0
    query = random_strips(12, 4, 4, 6, seed=1)
    query[0] = 0
    query[1:] *= -1  # full windows score low, so that thin ones are chosen
    query[6:] = strips[6:12, :, :, 5:11]  # the thin window itself
    arguments: dict[str, Any] = {"query_width": mixed_widths(12, 6)}
    if select == "gumbel":
        arguments |= {"noise": noise_for(12, 33, 16) * 3, "scale": 1.0}
    expected = Answer(query.double(), strips.double(), select, **arguments)
    with force_plan(plan):
        found = Answer(query, strips, select, **arguments)
    assert torch.equal(found.shift, expected.shift)
    assert_close(found.score, expected.score, "float32")
    # Products per frequency mix a thin window with the rest of its strip: 2e-7 |strip| / |window| of what is summed up,
    # here at most 2e-4 and, over all strips, a tenth of that.
    for name, grad in found.gradients().items():
        e = expected.gradients()[name]
        assert float((grad - e).abs().max()) <= 2e-5 * float(e.abs().max()) + 2e-5, name
    assert not bool(expected.score[0].any()) and not bool(expected.score[:, 3].any())


@pytest.mark.parametrize("factor", [1e-40, 1e-30, 1e-12, 1e15, 1e30])
@pytest.mark.parametrize("select", ["correlation", "cosine"])
def test_the_size_of_the_values_does_not_matter(factor: float, select: str) -> None:
    query, strips = random_strips(5, 2, 3, 4) * factor, random_strips(9, 2, 3, 16, seed=1) * factor
    expected = azimuth_match(query.double(), strips.double(), select=select)
    found = azimuth_match(query, strips, select=select)
    assert torch.equal(found.shift, expected.shift)
    assert_close(found.score, expected.score, "float32")


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_pairs_harm_nobody(backend: str, select: str, bad: float) -> None:
    query, strips = random_strips(7, 2, 3, 5), random_strips(40, 2, 3, 16, seed=1)
    arguments: dict[str, Any] = {"query_width": torch.tensor([5, 5, 5, 3, 5, 5, 1])}
    if select == "gumbel":
        arguments |= {"noise": noise_for(7, 40, 16)}
    with force_backend(backend):
        clean = Answer(query, strips, select, **arguments)
        query[2, 1, 1, 2], strips[4, 0, 2, 7], strips[33, 1, 0, 0] = bad, bad, bad
        query[3, :, :, 3:] = bad  # beyond its width: does not exist
        found = Answer(query, strips, select, **arguments)
    broken = torch.zeros(7, 40, dtype=torch.bool)
    broken[2], broken[:, [4, 33]] = True, True
    assert bool(found.score[broken].isnan().all()) and not bool(found.shift[broken].any())
    assert torch.equal(found.score[~broken], clean.score[~broken])
    assert torch.equal(found.shift[~broken], clean.shift[~broken])
    for grad in found.gradients().values():
        assert bool(torch.isfinite(grad).all())
    assert not bool(found.grad_query[2].any()) and not bool(found.grad_strips[[4, 33]].any())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_undefined_noise(backend: str) -> None:
    query, strips, noise = random_strips(2, 2, 3, 5), random_strips(20, 2, 3, 16, seed=1), noise_for(2, 20, 16)
    noise[0, 3, 5], noise[0, 4, 5], noise[0, 5] = math.nan, math.inf, -math.inf
    noise[1, 6, :9] = -math.inf  # rules shifts out; the rest is a distribution
    with force_backend(backend):
        found = Answer(query, strips, "gumbel", noise=noise)
    undefined = torch.zeros(2, 20, dtype=torch.bool)
    undefined[0, 3:6] = True
    assert torch.equal(found.score.isnan(), undefined)
    assert not bool(found.shift[undefined].any()) and int(found.shift[1, 6]) >= 9
    assert all(bool(torch.isfinite(grad).all()) for grad in found.gradients().values())


# --- shapes, strides, threads, memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(("batch", "references"), [(0, 3), (3, 0), (0, 0)])
def test_empty(batch: int, references: int, select: str) -> None:
    with observe_calls() as calls:
        found = Answer(torch.zeros(batch, 2, 3, 4), torch.zeros(references, 2, 3, 16), select)
    assert {backend for _, backend, _ in calls} == {"cpu"}
    assert found.score.shape == found.shift.shape == (batch, references)
    assert not any(bool(grad.any()) for grad in found.gradients().values())


@pytest.mark.parametrize("select", SELECTIONS)
def test_strides(select: str) -> None:
    """Slices, channels_last, a transposed width, expanded batches, noise in any order."""
    big_query, big_strips = numbers(9, 8, 6, 12), numbers(50, 8, 6, 40, seed=1)
    views = [
        (big_query[1:8, ::2, 1:3, 2:9], big_strips[3::2, ::2, 1:3, 5:21]),
        (
            big_query[:, :4].to(memory_format=torch.channels_last),
            big_strips.to(memory_format=torch.channels_last)[:, :4],
        ),
        (numbers(5, 7, 3, 4).permute(0, 2, 3, 1), numbers(6, 20, 3, 4, seed=1).permute(0, 2, 3, 1)),
        (numbers(1, 3, 4, 5).expand(4, 3, 4, 5), numbers(1, 3, 4, 9, seed=1).expand(6, 3, 4, 9)),
        (big_query[..., ::3], big_strips[..., ::3]),
    ]
    for query, strips in views:
        shape = (query.shape[0], strips.shape[0], strips.shape[3])
        every_noise: list[Tensor | None] = [None]
        if select == "gumbel":
            noise = noise_for(*shape)
            every_noise = [noise, noise.transpose(1, 2).contiguous().transpose(1, 2), noise_for(*shape, 2)[..., 0]]
            every_noise.append(noise.double())
        for noise_ in every_noise:
            arguments = {} if noise_ is None else {"noise": noise_}
            plain = {} if noise_ is None else {"noise": noise_.float().contiguous()}
            expected = Answer(query.contiguous(), strips.contiguous(), select, **plain)
            found = Answer(query, strips, select, **arguments)
            assert torch.equal(found.score, expected.score) and torch.equal(found.shift, expected.shift)
            for name, grad in found.gradients().items():
                assert torch.equal(grad, expected.gradients()[name]), name


def test_mixed_dtypes() -> None:
    query, strips = random_strips(5, 2, 3, 4).bfloat16(), random_strips(9, 2, 3, 16, seed=1)
    expected = Answer(query.double(), strips.double(), "correlation")
    with observe_calls() as calls:
        found = Answer(query, strips, "correlation")
    assert {backend for _, backend, _ in calls} == {"cpu"}
    assert found.grad_query.dtype == torch.bfloat16 and found.grad_strips.dtype == torch.float32
    assert_close(found.score, expected.score, "float32")
    assert_gradients(found, expected)


def test_float64_stays_on_the_reference() -> None:
    with observe_calls() as calls:
        azimuth_match(random_strips(2, 1, 1, 3).double(), random_strips(2, 1, 1, 3))
    assert calls == [("azimuth_match", "reference", "")]
    with force_backend("cpu"), pytest.raises(RuntimeError, match=r"'cpu' is forced .* no kernel for torch.float64"):
        azimuth_match(random_strips(2, 1, 1, 3).double(), random_strips(2, 1, 1, 3))


@pytest.mark.parametrize("select", SELECTIONS)
def test_same_bits_for_any_number_of_threads(select: str) -> None:
    query, strips = random_strips(41, 16, 4, 7), random_strips(75, 16, 4, 16, seed=1)
    arguments: dict[str, Any] = {"query_width": mixed_widths(41, 7)}
    if select == "gumbel":
        arguments |= {"noise": noise_for(41, 75, 16)}
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            answers.append(Answer(query, strips, select, **arguments))
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert torch.equal(answers[0].score, other.score) and torch.equal(answers[0].shift, other.shift)
        for name, grad in other.gradients().items():
            assert torch.equal(answers[0].gradients()[name], grad), name


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("plans", PLANS, ids=["direct", "spectral"])
def test_every_output_is_written(select: str, plans: tuple[str, str]) -> None:
    backward = "spectral" if select == "gumbel" else plans[1]
    for columns, query_columns in ((16, 5), (7, 7), (20, 3)):
        query, strips = random_strips(5, 2, 3, query_columns), random_strips(35, 2, 3, columns, seed=1)
        arguments: dict[str, Any] = {"query_width": mixed_widths(5, query_columns)}
        if select == "gumbel":
            arguments |= {"noise": noise_for(5, 35, columns)}
        with force_plan(plans[0], backward):
            clean = Answer(query, strips, select, **arguments)
            with poisoned_outputs():
                found = Answer(query, strips, select, **arguments)
        assert torch.equal(found.score, clean.score) and torch.equal(found.shift, clean.shift)
        for name, grad in found.gradients().items():
            assert torch.equal(grad, clean.gradients()[name]), name


@settings(max_examples=40, deadline=None)
@given(
    columns=st.integers(1, 33),
    by=st.integers(0, 40),
    share=st.floats(0, 1),
    select=st.sampled_from(["correlation", "cosine"]),
    seed=st.integers(0, 1000),
)
def test_rolling_the_strips_rolls_the_shifts(columns: int, by: int, share: float, select: str, seed: int) -> None:
    query = random_strips(3, 3, 2, 1 + int(share * (columns - 1)), seed=seed)
    strips = random_strips(4, 3, 2, columns, seed=seed + 1)
    plain = azimuth_match(query, strips, select=select)
    rolled = azimuth_match(query, strips.roll(by, -1), select=select)
    assert torch.equal(rolled.shift, (plain.shift + by) % columns)
    assert_close(rolled.score, plain.score.double(), "float32")


def test_a_window_finds_itself() -> None:
    strips = random_strips(16, 16, 4, 16)
    query = torch.stack([strips[r].roll(-r, -1)[..., :5] for r in range(16)])
    found = azimuth_match(query, strips, select="cosine")
    assert torch.equal(found.shift.diagonal(), torch.arange(16))
    assert_close(found.score.diagonal(), torch.ones(16).double(), "float32")
    assert float(found.score.max()) <= 1.0


# --- torch ------------------------------------------------------------------------------------------------------------


def operator_arguments(select: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    query, strips = random_strips(3, 2, 2, 4).to(dtype), random_strips(5, 2, 2, 8, seed=1).to(dtype)
    scale = torch.tensor(3.0) if select == "gumbel" else None
    noise = noise_for(3, 5, 8) if select == "gumbel" else None
    return query, strips, torch.tensor([4, 2, 1]), select, scale, 0.5, noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("select", SELECTIONS)
def test_opcheck(select: str, dtype: torch.dtype) -> None:
    arguments = operator_arguments(select, dtype)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op.forward.overload, arguments, test_utils=tests)
    query, strips, width, _, scale, tau, noise = arguments
    slope = scale_slope = None
    if select == "gumbel":
        sloped = (query, strips, width, scale, tau, noise)
        torch.library.opcheck(op.forward_with_slope.overload, sloped, test_utils=tests)
        score, shift, slope, scale_slope = op.forward_with_slope(*sloped)
    else:
        score, shift = op.forward(*arguments)
    grad = torch.ones_like(score)
    torch.library.opcheck(op.backward.overload, (grad, *arguments, score, shift, slope, scale_slope), test_utils=tests)


def test_slopes_of_kernel_and_reference_agree() -> None:
    query, strips, width, _, scale, tau, noise = operator_arguments("gumbel")
    found = op.forward_with_slope(query, strips, width, scale, tau, noise)
    expected = op.forward_with_slope(query.double(), strips.double(), width, scale, tau, noise)
    for a, e in zip(found, expected, strict=True):
        assert_close(a, e, "float32")


@pytest.mark.parametrize("select", SELECTIONS)
def test_compile(select: str) -> None:
    query, strips = random_strips(3, 2, 2, 4), random_strips(5, 2, 2, 8, seed=1)
    width = torch.tensor([4, 2, 1])
    arguments: dict[str, Any] = {"noise": noise_for(3, 5, 8)} if select == "gumbel" else {}

    def loss(q: Tensor, s: Tensor, a: Tensor) -> Tensor:
        scale = {"scale": a} if select == "gumbel" else {}
        return (azimuth_match(q, s, query_width=width, select=select, **arguments, **scale).score ** 2).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (query, strips, torch.tensor(2.0))]
        value = function(*leaves)
        value.backward()
        results.append([value.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]])
    for a, e in zip(*results, strict=True):
        assert torch.equal(a, e)


def test_compile_draws_its_noise() -> None:
    query, strips = random_strips(3, 2, 2, 4), random_strips(5, 2, 2, 8, seed=1)
    compiled = torch.compile(
        lambda q, s: azimuth_match(q, s, select="gumbel").shift, fullgraph=True, backend="aot_eager"
    )
    draws = torch.stack([compiled(query, strips) for _ in range(8)])
    assert bool((draws != draws[0]).any())


def test_autocast_and_inference_mode() -> None:
    query, strips = random_strips(3, 2, 2, 4), random_strips(5, 2, 2, 8, seed=1)
    expected = azimuth_match(query, strips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = azimuth_match(query, strips)
    assert torch.equal(found.score, expected.score) and found.score.dtype == torch.float32
    with torch.inference_mode():
        found = azimuth_match(query, strips)
    assert torch.equal(found.score, expected.score) and torch.equal(found.shift, expected.shift)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_drawn_noise_follows_the_softmax() -> None:
    """With zero strips the shift is uniform; in general its frequencies are softmax(scale correlation)."""
    torch.manual_seed(0)
    query, strips = random_strips(1, 2, 2, 3), random_strips(1, 2, 2, 8, seed=1)
    draws = 40_000
    shift = azimuth_match(query.expand(draws, -1, -1, -1), strips, select="gumbel", scale=4.0, tau=0.9).shift[:, 0]
    correlation = windows.compare(query.double(), torch.ones(1, 3, dtype=torch.bool), strips.double()).correlation
    expected = (4.0 * correlation[0, 0]).softmax(0)  # tau scales logits and noise alike: it moves no maximum
    assert float((shift.bincount(minlength=8) / draws - expected).abs().max()) < 4 * 0.5 / math.sqrt(draws)


def test_noise_is_replayed_and_seeded() -> None:
    query, strips = random_strips(4, 2, 2, 3), random_strips(20, 2, 2, 16, seed=1)
    noise = noise_for(4, 20, 16)
    a = Answer(query, strips, "gumbel", noise=noise)
    b = Answer(query, strips, "gumbel", noise=noise)
    assert torch.equal(a.shift, b.shift) and torch.equal(a.grad_strips, b.grad_strips)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(azimuth_match(query, strips, select="gumbel").shift)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, r"query: expected a tensor \[B, C, H, Wq\], got \[1.0\] \(list\)"),
        ({"query": torch.zeros(2, 3)}, ValueError, r"query: expected shape \[B, C, H, Wq\], got .* \(2, 3\)"),
        ({"query": torch.zeros(2, 2, 3, 4).int()}, TypeError, r"query: expected dtype float32, .*int32"),
        ({"query": torch.zeros(2, 2, 9, 4)}, ValueError, r"query: expected C=2, H=3 as in strips, got C=2, H=9"),
        ({"query": torch.zeros(2, 2, 3, 9)}, ValueError, r"query: expected 1 to 8 columns \(W of strips\), got 9"),
        (
            {"query": torch.zeros(2, 2, 3, 4, device="meta")},
            ValueError,
            r"query: expected the device of strips \(cpu\)",
        ),
        ({"strips": torch.zeros(5)}, ValueError, r"strips: expected shape \[R, C, H, W\], got .* \(5,\)"),
        ({"select": "best"}, ValueError, r"select: expected one of 'correlation', 'cosine', 'gumbel', got 'best'"),
        ({"query_width": [4, 4]}, TypeError, r"query_width: expected a tensor \[B\]"),
        ({"query_width": torch.tensor([4.0, 4.0])}, TypeError, r"query_width: expected dtype int64"),
        ({"query_width": torch.tensor([4])}, ValueError, r"query_width: expected 2 widths \(B of query\), got 1"),
        ({"query_width": torch.tensor([0, 4])}, ValueError, r"query_width: expected widths from 1 to 4 .* got 0 to 4"),
        ({"query_width": torch.tensor([1, 5])}, ValueError, r"query_width: expected widths from 1 to 4 .* got 1 to 5"),
        ({"noise": torch.zeros(2, 5, 8)}, ValueError, r'noise: only select="gumbel" takes noise'),
        ({"select": "gumbel", "noise": torch.zeros(2, 5)}, ValueError, r"noise: expected shape \[B, R, W\]"),
        ({"select": "gumbel", "noise": torch.zeros(2, 5, 7)}, ValueError, r"noise: expected shape \(2, 5, 8\), got"),
        ({"select": "gumbel", "noise": 3}, TypeError, r"noise: expected a tensor \[B, R, W\], got 3 \(int\)"),
        ({"select": "gumbel", "tau": 0}, ValueError, r"tau: expected a number above 0, got 0"),
        ({"select": "gumbel", "tau": "1"}, TypeError, r"tau: expected a number, got '1' \(str\)"),
        ({"select": "gumbel", "scale": math.inf}, ValueError, r"scale: expected a finite number, got inf"),
        ({"select": "gumbel", "scale": torch.zeros(2)}, ValueError, r"scale: expected one number, got"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults = {"query": torch.zeros(2, 2, 3, 4), "strips": torch.zeros(5, 2, 3, 8)}
    with pytest.raises(error, match=message):
        azimuth_match(**{**defaults, **arguments})
