"""azimuth_match and azimuth_crop, forward and backward, against what a user could write in torch.

Peers, all differentiated by autograd, all given the same noise:

- windows: every window of every strip materialised and mixed, as the published DSM and WITW code does it;
- conv2d: correlation as a convolution of the circularly padded strips with the queries, norms and the mixed window's
  energy from the column Gram matrix (no crop tensor);
- fft: the same with the correlation as a product per frequency: the best composition of stock parts.

Every entry is compared with the reference in float64 before it is timed: scores and both gradients.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc_fast import azimuth_crop, azimuth_match
from geoloc_fast.ops import gumbel_noise
from geoloc_fast.testing import force_backend, random_strips

SCALE = 1 / 0.07
# queries, references, query columns, columns; strips of 16 channels and height 4
CASES = {
    "B=R=128, Wq=16 of 16": (128, 128, 16, 16),
    "B=R=256, Wq=5 of 16": (256, 256, 5, 16),
    "B=R=64, Wq=32 of 64": (64, 64, 32, 64),
}


def windows(strips: Tensor, width: int) -> Tensor:
    """[R, C, H, W, width]"""
    shift = torch.arange(strips.shape[3])
    return strips[..., (shift[:, None] + torch.arange(width)) % strips.shape[3]]


def straight_through(correlation: Tensor, noise: Tensor) -> Tensor:
    soft = (SCALE * correlation + noise).softmax(-1)
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


def by_windows(query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    every = windows(strips, query.shape[3])
    choice = straight_through(torch.einsum("bchx,rchsx->brs", query, every), noise)
    mixed = torch.einsum("brs,rchsx->brchx", choice, every)
    product = torch.einsum("brchx,bchx->br", mixed, query)
    return product / (mixed.square().sum((2, 3, 4)).sqrt() * query.flatten(1).norm(dim=1)[:, None])


def from_correlation(correlation: Tensor, query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    """The mixed window's energy is a quadratic form in the windows' Gram matrix: diagonal sums of the columns'."""
    choice = straight_through(correlation, noise)
    columns = strips.flatten(1, 2)
    gram = torch.einsum("rki,rkj->rij", columns, columns)
    steps = torch.arange(strips.shape[3])
    index = (steps[:, None] + torch.arange(query.shape[3])) % strips.shape[3]  # [W, Wq]
    of_windows = gram[:, index[:, None, :], index[None, :, :]].sum(-1)  # [R, W, W]
    energy = (torch.bmm(choice.transpose(0, 1), of_windows).transpose(0, 1) * choice).sum(-1)
    return (choice * correlation).sum(-1) / (energy.sqrt() * query.flatten(1).norm(dim=1)[:, None])


def by_conv2d(query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    around = torch.cat([strips, strips[..., : query.shape[3] - 1]], -1)
    correlation = torch.nn.functional.conv2d(around, query)[:, :, 0].transpose(0, 1)  # [B, R, W]
    return from_correlation(correlation, query, strips, noise)


def by_fft(query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    columns = strips.shape[3]
    of_query = torch.fft.rfft(query.flatten(1, 2), n=columns).permute(2, 0, 1)  # [F, B, K]
    of_strips = torch.fft.rfft(strips.flatten(1, 2)).permute(2, 1, 0)  # [F, K, R]
    correlation = torch.fft.irfft(torch.bmm(of_query.conj(), of_strips).permute(1, 2, 0), n=columns)
    return from_correlation(correlation, query, strips, noise)


def ours(query: Tensor, strips: Tensor, noise: Tensor) -> Tensor:
    return azimuth_match(query, strips, select="gumbel", scale=SCALE, noise=noise).score


ENTRIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "geoloc_fast": ours,
    "torch: fft and Gram matrix": by_fft,
    "torch: conv2d and Gram matrix": by_conv2d,
    "torch: materialised windows": by_windows,
}


def noise_for(*shape: int) -> Tensor:
    return gumbel_noise.draw(torch.tensor(5), list(shape), torch.float32)


@cache
def inputs(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, references, query_columns, columns = CASES[case]
    query = random_strips(batch, 16, 4, query_columns)
    strips = random_strips(references, 16, 4, columns, seed=1)
    weight = torch.randn(batch, references, generator=torch.Generator().manual_seed(2))
    return query, strips, noise_for(batch, references, columns), weight


def step(score: Callable[[Tensor, Tensor, Tensor], Tensor], case: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    query, strips, noise, weight = (tensor.to(dtype) for tensor in inputs(case))
    query, strips = query.detach().requires_grad_(), strips.detach().requires_grad_()
    found = score(query, strips, noise)
    gradients = torch.autograd.grad((found * weight).sum(), (query, strips))
    return found.detach(), *gradients


@cache
def expected(case: str) -> tuple[Tensor, ...]:
    with force_backend("reference"):
        return step(ours, case, torch.float64)


def error_of(found: tuple[Tensor, ...], case: str) -> float:
    """Of the scores, and of the gradients relative to their largest element; pairs whose shift differs are counted
    out (float32 ties of a peer), one in a thousand at most."""
    score, reference = found[0].double(), expected(case)[0]
    off = (score - reference).abs()
    same = off < 1e-3
    assert float((~same).double().mean()) < 1e-3
    errors = [float(off[same].max())]
    if bool(same.all()):
        errors += [
            float((a - e).abs().max() / e.abs().max()) for a, e in zip(found[1:], expected(case)[1:], strict=True)
        ]
    return max(errors)


@pytest.mark.avx2
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", list(CASES))
def test_match_step(benchmark: Any, case: str, entry: str) -> None:
    benchmark.group = f"azimuth_match gumbel, forward and backward, 16x4x{CASES[case][3]}, {case}"
    error = error_of(step(ENTRIES[entry], case, torch.float32), case)
    assert error < 1e-4
    benchmark.extra_info.update(entry=entry, max_error=error)
    batch, references, _, columns = CASES[case]
    if entry == "geoloc_fast":
        # Three products per frequency: what must be computed this way. The transforms and the softmax come on top.
        benchmark.extra_info["flops"] = 3 * 2 * batch * references * 64 * (4 * (columns // 2) - 2)
    rounds = 3 if entry.endswith("windows") else 30
    benchmark.pedantic(step, args=(ENTRIES[entry], case, torch.float32), rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("entry", ["geoloc_fast", "torch: fft", "torch: conv2d", "torch: materialised windows"])
def test_match_evaluation(benchmark: Any, entry: str) -> None:
    """Scores of 64 queries against 2,000 strips of 64 columns, without gradients."""
    query, strips = random_strips(64, 16, 4, 16), random_strips(2000, 16, 4, 64, seed=1)

    def norms() -> Tensor:
        column = strips.square().sum((1, 2))
        return column[:, (torch.arange(64)[:, None] + torch.arange(16)) % 64].sum(-1).sqrt()

    def finish(correlation: Tensor) -> Tensor:
        best, shift = correlation.max(-1)
        return best / (norms()[None].expand_as(correlation).gather(2, shift[..., None])[..., 0] * query_norm)

    def by_frequency() -> Tensor:
        of_query = torch.fft.rfft(query.flatten(1, 2), n=64).permute(2, 0, 1)
        of_strips = torch.fft.rfft(strips.flatten(1, 2)).permute(2, 1, 0)
        return finish(torch.fft.irfft(torch.bmm(of_query.conj(), of_strips).permute(1, 2, 0), n=64))

    def by_convolution() -> Tensor:
        around = torch.cat([strips, strips[..., :15]], -1)
        return finish(torch.nn.functional.conv2d(around, query)[:, :, 0].transpose(0, 1))

    def by_gather() -> Tensor:
        return finish(torch.einsum("bchx,rchsx->brs", query, windows(strips, 16)))

    query_norm = query.flatten(1).norm(dim=1)[:, None]
    run = {
        "geoloc_fast": lambda: azimuth_match(query, strips).score,
        "torch: fft": by_frequency,
        "torch: conv2d": by_convolution,
        "torch: materialised windows": by_gather,
    }[entry]
    benchmark.group = "azimuth_match correlation, forward, 64 queries of 16 columns against 2,000 strips 16x4x64"
    with torch.inference_mode():
        exact = azimuth_match(query[:, :, :, :].double(), strips[:200].double()).score
        error = float((run()[:, :200] - exact).abs().max())
        assert error < 1e-5
        benchmark.extra_info.update(entry=entry, max_error=error)
        if entry == "geoloc_fast":
            benchmark.extra_info["flops"] = 2 * 64 * 2000 * 64 * 126
        benchmark.pedantic(run, rounds=10, warmup_rounds=1)


PEAK = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_bench_match import ENTRIES, inputs, CASES, step
CASES["large"] = (1024, 1024, 5, 16)
inputs("large")
def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
before = resident("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins again
step(ENTRIES[{entry!r}], "large", torch.float32)
print(resident("VmHWM:") - before)
"""


@pytest.mark.parametrize("entry", list(ENTRIES)[:3])
def test_match_memory(benchmark: Any, entry: str) -> None:
    """Peak memory of a training step above its inputs (noise included), measured in a process of its own."""
    benchmark.group = "azimuth_match gumbel, forward and backward, 16x4x16, B=R=1024, Wq=5 of 16"
    code = PEAK.format(folder=__file__.rsplit("/", 1)[0], entry=entry)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak = float(done.stdout)
    assert peak > 4  # the scores alone
    if entry == "geoloc_fast":
        assert peak < 600
    benchmark.extra_info.update(entry=entry, peak_mb=peak)
    CASES["large"] = (1024, 1024, 5, 16)
    benchmark.pedantic(step, args=(ENTRIES[entry], "large", torch.float32), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("entry", ["geoloc_fast", "torch: materialised windows"])
def test_crop_step(benchmark: Any, entry: str) -> None:
    query, strips = random_strips(256, 16, 4, 5), random_strips(256, 16, 4, 16, seed=1)
    noise, weight = noise_for(256, 16), torch.randn(256, 16, 4, 5, generator=torch.Generator().manual_seed(2))

    def materialised(q: Tensor, s: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        every = windows(s, 5)
        choice = straight_through(torch.einsum("bchx,bchsx->bs", q, every), n)
        mixed = torch.einsum("bs,bchsx->bchx", choice, every)
        crop = mixed / mixed.flatten(1).norm(dim=1)[:, None, None, None]
        return crop, (crop * q).sum((1, 2, 3)) / q.flatten(1).norm(dim=1)

    def fused(q: Tensor, s: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return azimuth_crop(q, s, select="gumbel", scale=SCALE, noise=n)[:2]

    def run(form: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> tuple[Tensor, ...]:
        q, s = query.to(dtype).requires_grad_(), strips.to(dtype).requires_grad_()
        crop, score = form(q, s, noise.to(dtype))
        return score.detach(), *torch.autograd.grad((crop * weight.to(dtype)).sum() + score.sum(), (q, s))

    form = fused if entry == "geoloc_fast" else materialised
    exact = run(materialised, torch.float64)
    error = max(
        float((a - e).abs().max() / e.abs().max()) for a, e in zip(run(form, torch.float32), exact, strict=True)
    )
    assert error < 1e-4
    benchmark.group = "azimuth_crop gumbel, forward and backward, 256 pairs 16x4x16, Wq=5"
    benchmark.extra_info.update(entry=entry, max_error=error)
    benchmark.pedantic(run, args=(form, torch.float32), rounds=20, warmup_rounds=1)


@pytest.mark.parametrize("entry", ["geoloc_fast", "torch: exponential_ and log", "torch: rand and two logs"])
def test_noise(benchmark: Any, entry: str) -> None:
    tiny = torch.finfo(torch.float32).tiny
    run = {
        "geoloc_fast": lambda: noise_for(1 << 20),
        "torch: exponential_ and log": lambda: -torch.empty(1 << 20).exponential_().clamp_min(tiny).log(),
        "torch: rand and two logs": lambda: -(-torch.rand(1 << 20).clamp_min(tiny).log()).log(),
    }[entry]
    noise = run()
    assert abs(float(noise.mean()) - 0.5772) < 0.01 and abs(float(noise.var()) - 1.6449) < 0.03
    benchmark.group = "a million values of Gumbel noise"
    benchmark.extra_info["entry"] = entry
    benchmark.pedantic(run, rounds=20, warmup_rounds=1)
