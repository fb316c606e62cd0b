"""Searching a bank, against the best that stock parts give for the same answer.

    pytest bench/test_bench_search.py --benchmark-enable --benchmark-json=search.json

One group a case, and in it every contestant on the same data with the same threads. Before it is timed, a contestant's
best row is checked against float64, and the largest difference of its scores goes into `extra_info`. Peers:

- faiss: IndexFlatIP over queries rolled to every shift, with the BLAS threshold that is fastest here. It ranks by
  correlation and cannot renormalise the window, so it does less than the others.
- gemm_fp32, gemm_bf16: torch matmul of rolled queries with the strips, a stretch of strips at a time, then window norm,
  maximum over shifts, topk.
- fft: torch matmul per frequency on spectra kept ready, inverse FFT, and the same.
- reference: this package's definition of right, at a tenth of the size.

`bandwidth` reads the bytes of the bank once (torch sum): the limit of a search with one query.
"""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from geoloc_fast import StripBank, strip_topk
from geoloc_fast.testing import force_backend, observe_calls, random_strips

try:
    import faiss
except ImportError:
    faiss = None

K = 10


class Case(NamedTuple):
    values: tuple[int, int]
    columns: int
    width: int
    batch: int
    count: int


CASES = {
    "one_query_w5": Case((16, 4), 16, 5, 1, 100_000),
    "64_queries_w16": Case((16, 4), 16, 16, 64, 100_000),
    "16_queries_w64_of_64": Case((16, 4), 64, 64, 16, 20_000),
    "64_queries_w64_of_64": Case((16, 4), 64, 64, 64, 20_000),
    "64_queries_flat_1024": Case((256, 4), 1, 1, 64, 100_000),
}
CONTESTANTS = (
    "geoloc_fast_fp32", "geoloc_fast_bf16", "faiss", "gemm_fp32", "gemm_bf16", "fft", "reference", "bandwidth_fp32",
    "bandwidth_bf16",
)  # fmt: skip

Search = Callable[[], tuple[Tensor, Tensor]]  # score, index [B, K]


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    strips = random_strips(case.count, *case.values, case.columns, seed=1)
    query = random_strips(case.batch, *case.values, case.width, seed=2)
    return strips, query


def rolled(query: Tensor, columns: int) -> Tensor:
    """[B * W, C * H * W]: the query at every shift of an empty strip, norm 1."""
    batch, channels, height, width = query.shape
    wide = query.new_zeros(batch, columns, channels, height, columns)
    for s in range(columns):
        at = (torch.arange(width) + s) % columns
        wide[:, s, :, :, at] = query
    wide = wide.flatten(2)
    return (wide / wide.norm(dim=2, keepdim=True)).flatten(0, 1)


def inverse_window_norm(strips: Tensor, width: int) -> Tensor:
    """[W, N]"""
    energy = strips.square().sum((1, 2)).T
    window = torch.stack([torch.roll(energy, -x, dims=0) for x in range(width)]).sum(0)
    return window.rsqrt()


def best_shift(correlation: Tensor, inverse_norm: Tensor, same: bool) -> Tensor:
    """correlation [B, W, n] of normalised queries, inverse_norm [W, n] -> score [B, n]; `same`: one norm for all s."""
    if same:
        return correlation.amax(1) * inverse_norm[0]
    value, shift = correlation.max(1)
    return value * inverse_norm.expand_as(correlation).gather(1, shift[:, None])[:, 0]


def gemm(strips: Tensor, query: Tensor, dtype: torch.dtype, at_once: int = 16384) -> Search:
    columns = strips.shape[3]
    flat = strips.flatten(1).to(dtype)
    many = rolled(query, columns).to(dtype)
    inverse_norm = inverse_window_norm(strips, query.shape[3])

    def search() -> tuple[Tensor, Tensor]:
        scores = []
        for begin in range(0, flat.shape[0], at_once):
            product = (many @ flat[begin : begin + at_once].T).view(query.shape[0], columns, -1)
            norms = inverse_norm[:, begin : begin + at_once]
            scores.append(best_shift(product, norms, query.shape[3] == columns).float())
        return tuple(torch.cat(scores, 1).topk(K))  # type: ignore[return-value]

    return search


def fft(strips: Tensor, query: Tensor, at_once: int = 4096) -> Search:
    columns = strips.shape[3]
    spectra = torch.fft.rfft(strips).flatten(1, 2).permute(2, 1, 0).contiguous()  # [F, C * H, N]
    wide = query.new_zeros(*query.shape[:3], columns)
    wide[..., : query.shape[3]] = query / query.flatten(1).norm(dim=1)[:, None, None, None]
    mine = torch.fft.rfft(wide).conj().resolve_conj().flatten(1, 2).permute(2, 0, 1).contiguous()  # [F, B, C * H]
    inverse_norm = inverse_window_norm(strips, query.shape[3])

    def search() -> tuple[Tensor, Tensor]:
        scores = []
        for begin in range(0, strips.shape[0], at_once):
            product = mine @ spectra[:, :, begin : begin + at_once]  # [F, B, n]
            correlation = torch.fft.irfft(product, n=columns, dim=0).transpose(0, 1)
            norms = inverse_norm[:, begin : begin + at_once]
            scores.append(best_shift(correlation, norms, query.shape[3] == columns))
        return tuple(torch.cat(scores, 1).topk(K))  # type: ignore[return-value]

    return search


def faiss_flat(strips: Tensor, query: Tensor) -> Search:
    if faiss is None:
        pytest.skip("faiss is not installed")
    faiss.omp_set_num_threads(torch.get_num_threads())
    columns = strips.shape[3]
    index = faiss.IndexFlatIP(strips[0].numel())
    index.add(strips.flatten(1).numpy())
    many = rolled(query, columns).numpy()

    def search() -> tuple[Tensor, Tensor]:
        score, row = index.search(many, K)
        score, row = torch.from_numpy(score).view(query.shape[0], -1), torch.from_numpy(row).view(query.shape[0], -1)
        value, at = score.topk(K)  # a row may come once for each shift; a real user would remove the duplicates
        return value, row.gather(1, at)

    times = {}
    for threshold in (1, 20, 1 << 30):
        faiss.cvar.distance_compute_blas_threshold = threshold
        search()
        times[threshold] = min(timeit.repeat(search, number=1, repeat=2))
    faiss.cvar.distance_compute_blas_threshold = min(times, key=lambda threshold: times[threshold])
    return search


def ours(strips: Tensor, query: Tensor, dtype: str) -> tuple[Search, StripBank]:
    bank = StripBank.pack(strips, dtype=dtype)
    return lambda: strip_topk(query, bank, K)[:2], bank


def exact_scores(query: Tensor, strips: Tensor, index: Tensor) -> Tensor:
    """float64 [B, n] for given rows."""
    out = torch.empty(index.shape, dtype=torch.float64)
    for b in range(index.shape[0]):
        some, one = strips[index[b]].double(), query[b : b + 1].double()
        products = torch.stack(
            [(torch.roll(some, -s, dims=3)[..., : one.shape[3]] * one).sum((1, 2, 3)) for s in range(some.shape[3])], 1
        )
        norms = inverse_window_norm(some, one.shape[3])
        out[b] = best_shift(products.T[None] / one.norm(), norms, False)[0]
    return out


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("name", CASES)
def test_bench_search(benchmark: Any, name: str, contestant: str) -> None:
    if not benchmark.enabled:
        pytest.skip("timing is off (--benchmark-enable)")
    case = CASES[name]
    strips, query = inputs(case._replace(count=case.count // 10) if contestant == "reference" else case)
    stored: Tensor | None = strips
    nbytes = strips.numel() * 4
    plan = ""
    if contestant.startswith("bandwidth"):
        numbers = torch.rand(strips.numel() // (1 if contestant.endswith("fp32") else 2))
        benchmark.group = name
        benchmark.pedantic(numbers.sum, rounds=15, warmup_rounds=2)
        benchmark.extra_info.update(entry=contestant, bytes=numbers.numel() * 4, threads=torch.get_num_threads())
        return
    if contestant.startswith("geoloc_fast"):
        search, bank = ours(strips, query, contestant[-4:])
        nbytes, stored = bank.nbytes, None
        with observe_calls() as calls:
            search()
        plan = calls[0][2]
        assert calls[0][:2] == ("strip_topk", "cpu")
    elif contestant == "reference":
        bank = StripBank.pack(strips, dtype="fp32")

        def search() -> tuple[Tensor, Tensor]:
            with force_backend("reference"):
                return strip_topk(query, bank, K)[:2]

    elif contestant == "faiss":
        search = faiss_flat(strips, query)
    elif contestant == "fft":
        search = fft(strips, query)
    else:
        search = gemm(strips, query, torch.float32 if contestant == "gemm_fp32" else torch.bfloat16)

    score, index = search()
    few = slice(0, min(4, case.batch))
    compared = strips if stored is not None else bank.unpack(index[few].reshape(-1))
    rows = index[few] if stored is not None else torch.arange(index[few].numel()).view(index[few].shape)
    error = (score[few].double() - exact_scores(query[few], compared, rows)).abs().max()
    if contestant == "faiss" and case.width < case.columns:
        error = torch.tensor(math.nan)  # its scores are not cosines
    assert not float(error) > (5e-3 if contestant == "gemm_bf16" else 1e-5)

    benchmark.group = name
    rounds = 3 if contestant == "reference" else 15
    benchmark.pedantic(search, rounds=rounds, warmup_rounds=1)
    pairs = case.batch * strips.shape[0]
    benchmark.extra_info.update(
        entry=contestant,
        plan=plan,
        max_error=float(error),
        threads=torch.get_num_threads(),
        pairs=pairs,
        bytes=nbytes,
        pairs_per_second=pairs / benchmark.stats.stats.median,
        bytes_per_second=nbytes / benchmark.stats.stats.median,
    )
