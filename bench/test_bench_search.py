"""Searching a bank, against the best that stock parts give for the same answer.

One group a case, and in it every contestant on the same data with the same threads. Before it is timed, a contestant's
best rows are checked against float64, and the largest difference of its scores is kept. Peers:

- FAISS flat: IndexFlatIP over queries rolled to every shift, with the BLAS threshold that is fastest here. It ranks by
  correlation and cannot renormalise the window, so it does less than the others.
- torch GEMM: matmul of rolled queries with the strips, a stretch of strips at a time, then window norm, maximum over
  shifts, topk.
- torch FFT: matmul per frequency on spectra kept ready, inverse FFT, and the same.
- reference: this package's definition of right, at a tenth of the size.

The limit of a search with one query is reading the bank: a sum over as many bytes (torch) alternates with it.
"""

from __future__ import annotations

import math
import statistics
import timeit
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from geoloc_fast import StripBank, strip_curve, strip_topk
from geoloc_fast.reference.strip_bank import HEADER_BYTES, BankLayout
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
    strips: int


CASES = {
    "one query, Wq=5, 100k strips 16x4x16": Case((16, 4), 16, 5, 1, 100_000),
    "one query, Wq=8, 100k strips 64x1x32": Case((64, 1), 32, 8, 1, 100_000),
    "64 queries, Wq=16, 100k strips 16x4x16": Case((16, 4), 16, 16, 64, 100_000),
    "16 queries, Wq=64, 20k strips 16x4x64": Case((16, 4), 64, 64, 16, 20_000),
    "64 queries, Wq=64, 20k strips 16x4x64": Case((16, 4), 64, 64, 64, 20_000),
    "64 queries, W=1, 100k vectors of 1024": Case((256, 4), 1, 1, 64, 100_000),
}
OURS = {"geoloc_fast, fp32 bank": "fp32", "geoloc_fast, bf16 bank": "bf16"}
PEERS = ("FAISS flat", "torch GEMM, fp32", "torch GEMM, bf16", "torch FFT")
REFERENCE = "reference (a tenth of the strips)"

Search = Callable[[], tuple[Tensor, Tensor]]  # score, index [B, K]


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    strips = random_strips(case.strips, *case.values, case.columns, seed=1)
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


def gemm_scores(
    strips: Tensor, query: Tensor, dtype: torch.dtype, at_once: int = 16384
) -> Callable[[], Tensor]:  # [B, N]
    columns = strips.shape[3]
    flat = strips.flatten(1).to(dtype)
    many = rolled(query, columns).to(dtype)
    inverse_norm = inverse_window_norm(strips, query.shape[3])

    def search() -> Tensor:
        scores = []
        for begin in range(0, flat.shape[0], at_once):
            product = (many @ flat[begin : begin + at_once].T).view(query.shape[0], columns, -1)
            norms = inverse_norm[:, begin : begin + at_once]
            scores.append(best_shift(product, norms, query.shape[3] == columns).float())
        return torch.cat(scores, 1)

    return search


def gemm(strips: Tensor, query: Tensor, dtype: torch.dtype) -> Search:
    scores = gemm_scores(strips, query, dtype)
    return lambda: tuple(scores().topk(K))  # type: ignore[return-value]


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


def peer(contestant: str, strips: Tensor, query: Tensor) -> Search:
    if contestant == "FAISS flat":
        return faiss_flat(strips, query)
    if contestant == "torch FFT":
        return fft(strips, query)
    return gemm(strips, query, torch.bfloat16 if contestant.endswith("bf16") else torch.float32)


def share_of_read(search: Search, nbytes: int, rounds: int = 15) -> float:
    """How near a search comes to reading its bank, both timed in turn."""
    numbers = torch.rand(nbytes // 4)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        times[0].append(timeit.timeit(search, number=1))
        times[1].append(timeit.timeit(lambda: numbers.sum(), number=1))
    return statistics.median(times[1]) / statistics.median(times[0])


AGAINST_THE_REFERENCE = "64 queries, Wq=16, 100k strips 16x4x16"
RUNS = [
    pytest.param(name, contestant, marks=[pytest.mark.avx2] if case.columns < 64 and contestant != REFERENCE else [])
    for name, case in CASES.items()
    for contestant in [*OURS, *PEERS, *([REFERENCE] if name == AGAINST_THE_REFERENCE else [])]
]


@pytest.mark.parametrize(("name", "contestant"), RUNS)
def test_search(benchmark: Any, name: str, contestant: str) -> None:
    case = CASES[name]
    strips, query = inputs(case._replace(strips=case.strips // 10) if contestant == REFERENCE else case)
    bank: StripBank | None = None
    if contestant in OURS:
        search, bank = ours(strips, query, OURS[contestant])
        with observe_calls() as calls:
            search()
        assert calls[0][:2] == ("strip_topk", "cpu")
        benchmark.extra_info["plan"] = calls[0][2]
    elif contestant == REFERENCE:
        packed = StripBank.pack(strips, dtype="fp32")

        def search() -> tuple[Tensor, Tensor]:
            with force_backend("reference"):
                return strip_topk(query, packed, K)[:2]

    else:
        search = peer(contestant, strips, query)

    score, index = search()
    few = slice(0, min(4, case.batch))
    compared = strips if bank is None else bank.unpack(index[few].reshape(-1))
    rows = index[few] if bank is None else torch.arange(index[few].numel()).view(index[few].shape)
    error = float((score[few].double() - exact_scores(query[few], compared, rows)).abs().max())
    if contestant == "FAISS flat" and case.width < case.columns:
        error = math.nan  # its scores are not cosines
    assert not error > (5e-3 if contestant.endswith("GEMM, bf16") else 1e-5)

    benchmark.group = f"strip_topk, {name}"
    benchmark.extra_info["entry"] = contestant
    if not math.isnan(error):
        benchmark.extra_info["max_error"] = error
    rounds = 15 if contestant in OURS or case.batch == 1 else 1 if contestant == REFERENCE else 3
    benchmark.pedantic(search, rounds=rounds)  # it has run twice
    if bank is None:
        return
    # Multiply-adds of the products alone: planes 0 and W-1 once, the frequencies between three times for each pair of
    # planes in fp32, and four in bf16, which is done two at a time.
    pairs, values, between = case.batch * case.strips, case.values[0] * case.values[1], (case.columns - 1) // 2
    ends = 1 if case.columns == 1 else 2 - case.columns % 2
    times = 3 if bank.dtype == "fp32" else 4
    kind = "bf16" if bank.dtype == "bf16" and "bf16" in benchmark.extra_info["plan"] else "fp32"
    benchmark.extra_info.update(
        flops=2 * pairs * values * (ends + times * between), flops_dtype=kind, bytes=bank.nbytes
    )
    if case.batch == 1:
        benchmark.extra_info["share_of_read"] = share_of_read(search, bank.nbytes)


@cache
def large_bank(count: int) -> StripBank:
    """bf16. Beyond a million strips the first million come again: what they hold makes no difference to the time."""
    distinct = min(count, 1_000_000)
    layout = BankLayout(count, 16, 4, 16, "bf16")
    buffer = torch.empty(layout.nbytes, dtype=torch.uint8)
    buffer[:HEADER_BYTES] = torch.frombuffer(bytearray(layout.header()), dtype=torch.uint8)
    blocks = buffer[HEADER_BYTES:].view(layout.blocks, -1)
    at_once = 50_000
    for begin in range(0, distinct, at_once):
        packed = StripBank.pack(random_strips(min(at_once, distinct), 16, 4, 16, seed=begin + 1)).blocks
        blocks[begin // 16 : begin // 16 + packed.numel() // blocks.shape[1]] = packed.view(-1, blocks.shape[1])
    for begin in range(distinct, count, distinct):
        blocks[begin // 16 : (begin + distinct) // 16] = blocks[: distinct // 16]
    return StripBank(buffer)


GALLERIES = (1_000, 10_000, 100_000, 1_000_000, 4_000_000)


@pytest.mark.once
@pytest.mark.parametrize("contestant", ["geoloc_fast, bf16 bank", "torch GEMM, bf16", "FAISS flat"])
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("count", GALLERIES)
def test_gallery(benchmark: Any, count: int, batch: int, contestant: str) -> None:
    """Latency against the size of the gallery: photos of five columns against strips 16x4x16."""
    if contestant not in OURS and count * batch > 1_000_000:
        pytest.skip("peers stop where they take seconds, or gigabytes in float32")
    query = random_strips(batch, 16, 4, 5, seed=2)
    if contestant in OURS:
        bank = large_bank(count)
        search: Search = lambda: strip_topk(query, bank, K)[:2]  # noqa: E731
    else:
        strips = random_strips(1_000, 16, 4, 16, seed=1).repeat(count // 1_000, 1, 1, 1)
        search = peer(contestant, strips, query)
    benchmark.group = f"strip_topk against gallery size, Wq=5, strips 16x4x16: {batch} photo{'s'[: batch > 1]}"
    benchmark.extra_info.update(
        entry=f"{contestant}, {count:,} strips", series=contestant, gallery=count, queries=batch
    )
    seconds = timeit.timeit(search, number=1)
    benchmark.pedantic(search, rounds=max(3, min(30, int(1 / seconds))), warmup_rounds=1)


# --- places of several rows, scores by dot, curves -------------------------------------------------------------------

ROWS_A_PLACE = 19  # standpoints


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("contestant", ["geoloc_fast, group=", "geoloc_fast, no places", "torch GEMM, bf16"])
def test_search_by_place(benchmark: Any, batch: int, contestant: str) -> None:
    """The best row of each place; beside it the same bank with every row for itself, which is less to find out."""
    strips, query = inputs(Case((16, 4), 16, 5, batch, 100_000))
    group = torch.arange(len(strips)) // ROWS_A_PLACE
    bank = StripBank.pack(strips)
    scores = gemm_scores(strips, query, torch.bfloat16) if contestant.startswith("torch") else None

    def by_gemm() -> tuple[Tensor, Tensor]:
        assert scores is not None
        best = torch.full((batch, int(group[-1]) + 1), -math.inf)
        best.scatter_reduce_(1, group.expand(batch, -1), scores(), "amax")
        return tuple(best.topk(K))  # type: ignore[return-value]

    search: Search = {
        "geoloc_fast, group=": lambda: strip_topk(query, bank, K, group=group)[:2],
        "geoloc_fast, no places": lambda: strip_topk(query, bank, K)[:2],
        "torch GEMM, bf16": by_gemm,
    }[contestant]
    score, index = search()
    if contestant == "geoloc_fast, group=":
        exact = exact_scores(query[:2], bank.unpack(index[:2].reshape(-1)), torch.arange(2 * K).view(2, K)[:batch])
        assert float((score[:2].double() - exact).abs().max()) < 1e-6
        assert all(len(set(group[rows].tolist())) == K for rows in index)
    photos = "one query" if batch == 1 else f"{batch} queries"
    benchmark.group = f"strip_topk, places of {ROWS_A_PLACE} rows, {photos}, Wq=5, 100k strips 16x4x16 bf16"
    benchmark.extra_info.update(entry=contestant, queries=batch)
    benchmark.pedantic(search, rounds=15 if contestant != "torch GEMM, bf16" or batch == 1 else 3)


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("contestant", [*OURS, "FAISS flat", "torch GEMM, fp32"])
def test_search_by_dot(benchmark: Any, batch: int, contestant: str) -> None:
    """Codes that are not of unit length, such as those of cells."""
    generator = torch.Generator().manual_seed(3)
    codes = random_strips(100_000, 256, 2, 1, seed=1) * (0.5 + torch.rand(100_000, 1, 1, 1, generator=generator))
    query = random_strips(batch, 256, 2, 1, seed=2)
    flat, one = codes.flatten(1), query.flatten(1)
    if contestant in OURS:
        bank = StripBank.pack(codes, dtype=OURS[contestant])
        search: Search = lambda: strip_topk(query, bank, K, score="dot")[:2]  # noqa: E731
        flat = bank.unpack().flatten(1)
    elif contestant == "FAISS flat":
        if faiss is None:
            pytest.skip("faiss is not installed")
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(flat.shape[1])
        index.add(flat.numpy())
        search = lambda: tuple(map(torch.from_numpy, index.search(one.numpy(), K)))  # type: ignore # noqa: E731
    else:
        search = lambda: tuple((one @ flat.T).topk(K))  # type: ignore[assignment,return-value] # noqa: E731
    score, rows = search()
    error = float((score.double() - (flat[rows].double() * one[:, None].double()).sum(2)).abs().max())
    assert error < 1e-5
    benchmark.group = f'strip_topk, score="dot", {batch} quer{"y" if batch == 1 else "ies"}, 100k codes of 512'
    benchmark.extra_info.update(entry=contestant, max_error=error, queries=batch)
    benchmark.pedantic(search, rounds=15, warmup_rounds=1)


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("contestant", ["geoloc_fast, bf16 bank", "reference", "torch GEMM, fp32"])
def test_curves(benchmark: Any, batch: int, contestant: str) -> None:
    """The cosine at every shift of 100 rows per query, as a search over several layers asks for the best places."""
    rows, case = 100, Case((16, 4), 16, 5, batch, 20_000)
    strips, query = inputs(case)
    bank = StripBank.pack(strips)
    index = torch.randint(case.strips, (batch, rows), generator=torch.Generator().manual_seed(4))

    def by_gemm() -> Tensor:  # unpacked rows, every query at every shift
        some = bank.unpack(index.view(-1))
        many = rolled(query, case.columns).view(batch, case.columns, -1)
        product = many @ some.flatten(1).view(batch, rows, -1).mT
        return product.mT * inverse_window_norm(some, case.width).T.reshape(batch, rows, -1)

    def ours() -> Tensor:
        with force_backend("reference" if contestant == "reference" else "cpu"):
            return strip_curve(query, bank, index)

    run = by_gemm if contestant.startswith("torch") else ours
    error = float((run() - strip_curve(query, bank, index)).abs().max())
    assert error < 1e-5
    benchmark.group = f"strip_curve, {batch} quer{'y' if batch == 1 else 'ies'}, 100 rows each, Wq=5, 16x4x16 bf16"
    benchmark.extra_info.update(entry=contestant, max_error=error, queries=batch)
    benchmark.pedantic(run, rounds=15, warmup_rounds=1)
