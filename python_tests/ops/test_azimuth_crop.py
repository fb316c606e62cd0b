"""azimuth_crop: the reference against azimuth_match and loops, the CPU kernel against the reference in float64.

As in test_azimuth_match.py, shifts are compared without exception.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc_fast import azimuth_crop, azimuth_match
from geoloc_fast.ops import azimuth_crop as op
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
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BATCH = 6


def noise_for(*shape: int, seed: int = 7) -> Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -(-(uniform.clamp(1e-12, 1 - 1e-12)).log()).log().float()


def widths(columns: int) -> Tensor:
    return torch.tensor([1 + (3 * b + columns - 1) % columns for b in range(BATCH)])


class Answer:
    """crop, score, shift and the gradients of a weighted sum of crop and score."""

    def __init__(self, query: Tensor, strips: Tensor, select: str, scale: float = 5.0, **arguments: Any) -> None:
        q, s = query.clone().requires_grad_(), strips.clone().requires_grad_()
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        a = torch.tensor(scale, dtype=wide, requires_grad=True)
        if select == "gumbel":
            arguments["scale"] = a
        found = azimuth_crop(q, s, select=select, **arguments)
        self.crop, self.score, self.shift = found.crop.detach(), found.score.detach(), found.shift
        of_crop = torch.linspace(-1, 1, found.crop.numel(), dtype=torch.float64).reshape(found.crop.shape).sin() * 3
        of_score = torch.linspace(-1, 2, found.score.numel(), dtype=torch.float64).to(wide)
        of_crop = of_crop.bfloat16()  # so that a gradient in any dtype holds them exactly
        ((found.crop.to(wide) * of_crop.to(wide)).sum() + (found.score * of_score).sum()).backward()
        self.grad_query, self.grad_strips, self.grad_scale = q.grad, s.grad, a.grad

    def gradients(self) -> dict[str, Tensor]:
        every = {"query": self.grad_query, "strips": self.grad_strips, "scale": self.grad_scale}
        return {name: grad for name, grad in every.items() if grad is not None}


def assert_gradients(actual: Answer, expected: Answer) -> None:
    assert actual.gradients().keys() == expected.gradients().keys()
    for name, grad in actual.gradients().items():
        e = expected.gradients()[name].double()
        rounding = 0.0 if grad.dtype == torch.float32 else TOLERANCE[str(grad.dtype).removeprefix("torch.")].relative
        family = TOLERANCE["gradient"]
        excess = (grad.double() - e).abs() / (family.absolute + (family.relative + rounding) * e.abs())
        assert float(excess.nan_to_num(torch.inf).max()) <= 1, f"{name}: {float(excess.max())} times what is allowed"


@cache
def case(columns: int, query_columns: int, select: str, dtype: torch.dtype, mixed: bool) -> tuple[Any, ...]:
    query = random_strips(BATCH, 3, 2, query_columns, seed=columns).to(dtype)
    strips = random_strips(BATCH, 3, 2, columns, seed=columns + 1).to(dtype)
    arguments: dict[str, Any] = {"query_width": widths(query_columns)} if mixed else {}
    if select == "gumbel":
        arguments |= {"noise": noise_for(BATCH, columns), "tau": 0.7}
    return query, strips, arguments, Answer(query.double(), strips.double(), select, **arguments)


@pytest.mark.parametrize("select", SELECTIONS)
def test_reference(select: str) -> None:
    """Shift and score are azimuth_match's on the diagonal; the crop is that window, divided by its norm."""
    query, strips = random_strips(BATCH, 2, 2, 3).double(), random_strips(BATCH, 2, 2, 7, seed=1).double()
    width, noise = widths(3), noise_for(BATCH, 7)
    arguments = {"noise": noise, "scale": 5.0, "tau": 0.7} if select == "gumbel" else {}
    match = {**arguments, "noise": noise[:, None].expand(-1, BATCH, -1)} if select == "gumbel" else {}
    found = azimuth_crop(query, strips, query_width=width, select=select, **arguments)
    every = azimuth_match(query, strips, query_width=width, select=select, **match)
    assert torch.equal(found.shift, every.shift.diagonal())
    torch.testing.assert_close(found.score, every.score.diagonal())
    for b in range(BATCH):
        window = strips[b].roll(-int(found.shift[b]), -1)[..., :3].clone()
        window[..., int(width[b]) :] = 0
        torch.testing.assert_close(found.crop[b], window / window.norm())


def test_reference_gumbel_gradient() -> None:
    """crop and gradients of torch.nn.functional.softmax straight through, window by window."""
    query, strips = random_strips(BATCH, 2, 2, 3).double(), random_strips(BATCH, 2, 2, 5, seed=1).double()
    noise = noise_for(BATCH, 5).double()
    with force_backend("reference"):
        found = Answer(query, strips, "gumbel", noise=noise, tau=0.7)
    q, s = query.clone().requires_grad_(), strips.clone().requires_grad_()
    a = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    crops, scores = [], []
    for b in range(BATCH):
        every = torch.stack([s[b].roll(-shift, -1)[..., :3] for shift in range(5)])
        soft = ((a * (every * q[b]).sum((1, 2, 3)) + noise[b]) / 0.7).softmax(0)
        hard = torch.nn.functional.one_hot(soft.argmax(), 5) - soft.detach() + soft
        window = (hard[:, None, None, None] * every).sum(0)
        crops.append(window / window.norm())
        scores.append((crops[-1] * q[b]).sum() / q[b].norm())
    crop, score = torch.stack(crops), torch.stack(scores)
    of_crop = (torch.linspace(-1, 1, crop.numel(), dtype=torch.float64).reshape(crop.shape).sin() * 3).bfloat16()
    ((crop * of_crop.double()).sum() + (score * torch.linspace(-1, 2, BATCH, dtype=torch.float64)).sum()).backward()
    torch.testing.assert_close(found.crop, crop.detach())
    for name, grad in {"query": q.grad, "strips": s.grad, "scale": a.grad}.items():
        torch.testing.assert_close(found.gradients()[name], grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("select", ["correlation", "cosine"])
def test_reference_gradcheck(select: str) -> None:
    query = random_strips(2, 2, 1, 3).double().requires_grad_()
    strips = random_strips(2, 2, 1, 5, seed=1).double().requires_grad_()
    width = torch.tensor([3, 2])
    assert torch.autograd.gradcheck(
        lambda q, s: azimuth_crop(q, s, select=select, query_width=width)[:2], (query, strips)
    )


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 16, 20, 64])
@pytest.mark.parametrize("isa", ISAS)
def test_kernel(isa: str, columns: int, select: str) -> None:
    for query_columns in sorted({1, max(1, columns // 3), columns}):
        for dtype in DTYPES:
            for mixed in (False, True):
                query, strips, arguments, expected = case(columns, query_columns, select, dtype, mixed)
                with force_isa(isa), observe_calls() as calls:
                    found = Answer(query, strips, select, **arguments)
                assert ("azimuth_crop", "cpu", f"{isa}/direct") in calls
                assert ("azimuth_crop_backward", "cpu", f"{isa}/direct") in calls
                assert torch.equal(found.shift, expected.shift)
                assert found.crop.dtype == dtype
                assert_close(found.crop, expected.crop, str(dtype).removeprefix("torch."))
                assert_close(found.score, expected.score, "float32")
                assert_gradients(found, expected)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(("columns", "query_columns"), [(16, 5), (16, 16), (64, 64)])
def test_kernel_at_working_sizes(columns: int, query_columns: int, select: str) -> None:
    query, strips = random_strips(40, 16, 4, query_columns), random_strips(40, 16, 4, columns, seed=1)
    arguments = {"noise": noise_for(40, columns), "scale": 1 / 0.07} if select == "gumbel" else {}
    expected = Answer(query.double(), strips.double(), select, **arguments)
    found = Answer(query, strips, select, **arguments)
    assert torch.equal(found.shift, expected.shift)
    assert_close(found.crop, expected.crop, "float32")
    assert_close(found.score, expected.score, "float32")
    assert_gradients(found, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("select", ["correlation", "cosine"])
def test_exact_ties_take_the_lowest_shift(isa: str, select: str) -> None:
    for columns in (3, 7, 16, 20):
        generator = torch.Generator().manual_seed(columns)
        strips = torch.randint(-4, 5, (5, 3, 2, columns), generator=generator).float()
        strips[0] = strips[0, ..., :1]
        strips[1, ..., columns // 2] = strips[1, ..., 0]
        strips[2] = 0
        query = torch.randint(-4, 5, (5, 3, 2, max(1, columns // 2)), generator=generator).float()
        query[4] = 0
        expected = azimuth_crop(query.double(), strips.double(), select=select)
        with force_isa(isa):
            found = azimuth_crop(query, strips, select=select)
        assert torch.equal(found.shift, expected.shift)
        assert_close(found.crop, expected.crop, "float32")
        assert not found.crop[2].any() and not found.score[[2, 4]].any() and bool(found.crop[4].any())


@pytest.mark.parametrize("select", SELECTIONS)
def test_nearly_empty_windows(select: str) -> None:
    strips = random_strips(33, 4, 4, 16)
    strips[:, :, :, 4:12] *= torch.logspace(-7, -3, 33).sqrt()[:, None, None, None]
    query = strips[:, :, :, 5:11].clone()
    query[::2] *= -1
    arguments = {"noise": noise_for(33, 16) * 3} if select == "gumbel" else {}
    expected = Answer(query.double(), strips.double(), select, scale=1.0, **arguments)
    found = Answer(query, strips, select, scale=1.0, **arguments)
    assert torch.equal(found.shift, expected.shift)
    assert_close(found.crop, expected.crop, "float32")
    assert_close(found.score, expected.score, "float32")
    for name, grad in found.gradients().items():
        e = expected.gradients()[name]
        assert float((grad - e).abs().max()) <= 2e-6 * float(e.abs().max()), name


@pytest.mark.parametrize("factor", [1e-40, 1e-30, 1e30])
def test_the_size_of_the_values_does_not_matter(factor: float) -> None:
    query, strips = random_strips(5, 2, 3, 4) * factor, random_strips(5, 2, 3, 16, seed=1) * factor
    expected = azimuth_crop(query.double(), strips.double())
    found = azimuth_crop(query, strips)
    assert torch.equal(found.shift, expected.shift)
    assert_close(found.crop, expected.crop, "float32")
    assert_close(found.score, expected.score, "float32")


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_broken_pairs_harm_nobody(backend: str, select: str) -> None:
    query, strips = random_strips(6, 2, 3, 5), random_strips(6, 2, 3, 16, seed=1)
    arguments: dict[str, Any] = {"query_width": torch.tensor([5, 5, 5, 3, 5, 5])}
    if select == "gumbel":
        arguments |= {"noise": noise_for(6, 16)}
    with force_backend(backend):
        clean = Answer(query, strips, select, **arguments)
        query[1, 1, 1, 2], strips[4, 0, 2, 7] = math.nan, math.inf
        query[3, :, :, 3:] = math.nan
        if select == "gumbel":
            arguments["noise"][5, 3] = math.nan
        found = Answer(query, strips, select, **arguments)
    broken = [1, 4, 5] if select == "gumbel" else [1, 4]
    whole = [b for b in range(6) if b not in broken]
    assert bool(found.crop[broken].isnan().all()) and bool(found.score[broken].isnan().all())
    assert not bool(found.shift[broken].any())
    assert torch.equal(found.crop[whole], clean.crop[whole]) and torch.equal(found.shift[whole], clean.shift[whole])
    assert all(bool(torch.isfinite(grad).all()) for grad in found.gradients().values())
    assert torch.equal(found.grad_strips[whole], clean.grad_strips[whole])
    assert not bool(found.grad_query[broken].any())


@pytest.mark.parametrize("select", SELECTIONS)
def test_empty_batch(select: str) -> None:
    with observe_calls() as calls:
        found = azimuth_crop(torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 3, 8), select=select)
    assert ("azimuth_crop", "cpu") in {call[:2] for call in calls}
    assert found.crop.shape == (0, 2, 3, 4) and found.score.shape == found.shift.shape == (0,)


@pytest.mark.parametrize("select", SELECTIONS)
def test_strides_and_threads(select: str) -> None:
    query = random_strips(9, 8, 6, 12)[1:8, ::2, 1:3, 2:9]
    strips = random_strips(9, 8, 6, 40, seed=1).to(memory_format=torch.channels_last)[2:, ::2, 1:3, 3::2]
    arguments: dict[str, Any] = {"query_width": torch.tensor([7, 1, 3, 7, 2, 5, 6])}
    plain = dict(arguments)
    if select == "gumbel":
        noise = noise_for(19, 7)
        arguments["noise"], plain["noise"] = noise.t(), noise.t().contiguous()
    expected = Answer(query.contiguous(), strips.contiguous(), select, **plain)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with poisoned_outputs():
                found = Answer(query, strips, select, **arguments)
            assert torch.equal(found.crop, expected.crop) and torch.equal(found.score, expected.score)
            assert torch.equal(found.shift, expected.shift)
            for name, grad in found.gradients().items():
                assert torch.equal(grad, expected.gradients()[name]), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("select", SELECTIONS)
def test_opcheck(select: str, dtype: torch.dtype) -> None:
    query, strips = random_strips(3, 2, 2, 4).to(dtype), random_strips(3, 2, 2, 8, seed=1).to(dtype)
    scale = torch.tensor(3.0) if select == "gumbel" else None
    noise = noise_for(3, 8) if select == "gumbel" else None
    arguments = (query, strips, torch.tensor([4, 2, 1]), select, scale, 0.5, noise)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op.forward.overload, arguments, test_utils=tests)
    crop, score, shift = op.forward(*arguments)
    backward = (torch.ones_like(crop), torch.ones_like(score), *arguments, score, shift)
    torch.library.opcheck(op.backward.overload, backward, test_utils=tests)


@pytest.mark.parametrize("select", SELECTIONS)
def test_compile(select: str) -> None:
    query, strips = random_strips(3, 2, 2, 4), random_strips(3, 2, 2, 8, seed=1)
    arguments = {"noise": noise_for(3, 8)} if select == "gumbel" else {}

    def loss(q: Tensor, s: Tensor) -> Tensor:
        found = azimuth_crop(q, s, select=select, **arguments)
        return (found.crop**3).sum() + found.score.sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (query, strips)]
        value = function(*leaves)
        value.backward()
        results.append([value.detach(), *[leaf.grad for leaf in leaves]])
    for a, e in zip(*results, strict=True):
        assert torch.equal(a, e)


def test_autocast_and_inference_mode() -> None:
    query, strips = random_strips(3, 2, 2, 4), random_strips(3, 2, 2, 8, seed=1)
    expected = azimuth_crop(query, strips)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = azimuth_crop(query, strips)
    assert torch.equal(found.crop, expected.crop) and torch.equal(found.score, expected.score)


def test_noise_is_drawn_from_torchs_generator() -> None:
    query, strips = random_strips(200, 2, 2, 3), torch.zeros(200, 2, 2, 8)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(azimuth_crop(query, strips, select="gumbel").shift)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert set(draws[0].tolist()) == set(range(8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strips": torch.zeros(3, 2, 3, 8)}, ValueError, r"strips: expected 2 strips, one per query, got 3"),
        ({"query": torch.zeros(2, 3)}, ValueError, r"query: expected shape \[B, C, H, Wq\], got .* \(2, 3\)"),
        ({"strips": 1}, TypeError, r"strips: expected a tensor \[B, C, H, W\], got 1 \(int\)"),
        ({"query": torch.zeros(2, 2, 3, 9)}, ValueError, r"query: expected 1 to 8 columns \(W of strips\), got 9"),
        ({"select": "all"}, ValueError, r"select: expected one of 'correlation', 'cosine', 'gumbel', got 'all'"),
        ({"query_width": torch.tensor([4, 9])}, ValueError, r"query_width: expected widths from 1 to 4"),
        ({"select": "gumbel", "noise": torch.zeros(2, 5, 8)}, ValueError, r"noise: expected shape \[B, W\]"),
        ({"select": "gumbel", "noise": torch.zeros(2, 7)}, ValueError, r"noise: expected shape \(2, 8\), got \(2, 7\)"),
        ({"select": "gumbel", "tau": -1.0}, ValueError, r"tau: expected a number above 0, got -1.0"),
        ({"select": "gumbel", "scale": "5"}, TypeError, r"scale: expected a number, got '5' \(str\)"),
    ],
)
def test_errors(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults = {"query": torch.zeros(2, 2, 3, 4), "strips": torch.zeros(2, 2, 3, 8)}
    with pytest.raises(error, match=message):
        azimuth_crop(**{**defaults, **arguments})
