"""strip_topk and strip_score: against float64 loops, on every path, on banks made to be difficult."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geoloc_fast import StripBank, _native, strip_score, strip_topk
from geoloc_fast.ops import strip_bank as op
from geoloc_fast.testing import (
    available_isas,
    force_backend,
    force_isa,
    observe_calls,
    poisoned_outputs,
    random_strips,
)

DTYPES = ("fp32", "bf16")
SELECTIONS = ("correlation", "cosine")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@threads(1)
def brute_force(
    query: Tensor, strips: Tensor, width: Tensor | None, select: str, kind: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """score and shift [B, R] in float64, one shift after the other, from the formulas of the docstrings."""
    query, strips = query.double(), strips.double()
    padded, columns = query.shape[3], strips.shape[3]
    widths = torch.full((query.shape[0],), padded) if width is None else width
    exists = (torch.arange(padded) < widths[:, None]).double()  # [B, Wq]
    query = query * exists[:, None, None]
    products, energies = [], []
    for s in range(columns):
        window = torch.roll(strips, -s, dims=3)[..., :padded]
        products.append(query.flatten(1) @ window.flatten(1).T)
        energies.append(exists @ window.square().sum((1, 2)).T)
    product, energy = torch.stack(products, 2), torch.stack(energies, 2)
    query_energy, strip_energy = query.square().sum((1, 2, 3)), strips.square().sum((1, 2, 3))
    usable = (energy > 1e-6 * strip_energy[:, None]) & (query_energy > 0)[:, None, None]
    cosine = torch.where(usable, product / (query_energy[:, None, None] * energy).sqrt(), 0.0)
    if kind == "dot":
        return product.amax(2), product.argmax(2)
    shift = (cosine if select == "cosine" else product).argmax(2)
    return cosine.gather(2, shift[..., None])[..., 0], shift


def assert_is_the_answer(
    found: tuple[Tensor, Tensor, Tensor],
    query: Tensor,
    bank: StripBank,
    k: int,
    width: Tensor | None = None,
    select: str = "correlation",
    alive: Tensor | None = None,
    scores: Tensor | None = None,
) -> None:
    """Scores are the k best of float64 brute force, every row scores what is said, and no row comes twice."""
    score, index, shift = found
    exact, exact_shift = brute_force(query, bank.unpack(), width, select)
    exact = exact if alive is None else torch.where(alive, exact, -torch.inf)
    best = exact.sort(dim=1, descending=True, stable=True).values[:, :k]
    rows = min(k, len(bank) if alive is None else int(alive.sum()))
    assert score.shape == index.shape == shift.shape == (query.shape[0], k)
    torch.testing.assert_close(score[:, :rows].double(), best[:, :rows], rtol=0, atol=2e-7)
    torch.testing.assert_close(score[:, :rows].double(), exact.gather(1, index[:, :rows]), rtol=0, atol=2e-7)
    assert (score[:, rows:] == -torch.inf).all() and (index[:, rows:] == -1).all() and (shift[:, rows:] == -1).all()
    for b in range(query.shape[0]):
        assert len(set(index[b, :rows].tolist())) == rows
        for i in range(rows - 1):
            assert (-float(score[b, i]), int(index[b, i])) < (-float(score[b, i + 1]), int(index[b, i + 1]))
    # The shift may differ only between shifts that float64 cannot tell apart well.
    chosen = exact_shift.gather(1, index[:, :rows])
    for b, i in (chosen != shift[:, :rows]).nonzero().tolist():
        w = query.shape[3] if width is None else int(width[b])
        strip = bank.unpack(index[b, i : i + 1]).double()[0]
        products = [
            float((query[b, ..., :w].double() * torch.roll(strip, -s, dims=2)[..., :w]).sum())
            for s in (int(chosen[b, i]), int(shift[b, i]))
        ]
        assert select == "cosine" or products[0] == pytest.approx(products[1], rel=1e-12, abs=1e-12)


def all_paths(
    query: Tensor, bank: StripBank, k: int, **arguments: object
) -> tuple[tuple[Tensor, Tensor, Tensor], list[str]]:
    """The answer, after checking that every instruction set and 1, 2 and 5 threads give the same bits."""
    answers, plans = [], []
    for isa in available_isas():
        for count in (1, 2, 5):
            with threads(count), force_isa(isa), observe_calls() as calls, poisoned_outputs():
                answers.append(strip_topk(query, bank, k, **arguments))  # type: ignore[arg-type]
            assert [call[:2] for call in calls] == [("strip_topk", "cpu")]
            plans.append(calls[0][2])
    for answer in answers[1:]:
        for one, other in zip(answer, answers[0], strict=True):
            assert torch.equal(one, other)
    return answers[0], plans


# --- every path against float64 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 16, 20, 64])
def test_answers_are_those_of_brute_force(columns: int, dtype: str, select: str) -> None:
    strips = random_strips(150, 5, 3, columns, seed=columns)
    bank = StripBank.pack(strips, dtype=dtype)
    padded = max(1, columns * 3 // 4)
    generator = torch.Generator().manual_seed(columns)
    query = random_strips(13, 5, 3, padded, seed=columns + 1)
    query[:5] = torch.roll(strips[:5], -2, dims=3)[..., :padded] + 0.2 * query[:5]
    width = torch.randint(1, padded + 1, (13,), generator=generator)
    found, plans = all_paths(query, bank, 9, query_width=width, select=select)
    assert_is_the_answer(found, query, bank, 9, width, select)
    form = {1: "flat", 16: "spectral16", 64: "spectral64"}.get(columns, "spectral")
    products = {
        "fp32": dict.fromkeys(available_isas(), "fp32"),
        "bf16": {isa: "bf16-dot" if isa == "avx512bf16" else "bf16" for isa in available_isas()},
    }[dtype]
    assert plans == [f"{isa}/{products[isa]}/{form}" for isa in available_isas() for _ in range(3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("values", "columns"), [((16, 4), 16), ((300, 2), 1), ((300, 3), 4), ((1, 1), 45)])
def test_channel_counts_beyond_a_run_and_below_a_vector(values: tuple[int, int], columns: int, dtype: str) -> None:
    bank = StripBank.pack(random_strips(90, *values, columns, seed=1), dtype=dtype)
    query = random_strips(19, *values, max(1, columns // 2), seed=2)
    found, _ = all_paths(query, bank, 5)
    assert_is_the_answer(found, query, bank, 5)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 9, 31, 70])
@pytest.mark.parametrize("columns", [1, 16])
def test_every_tile_of_queries(batch: int, columns: int) -> None:
    for dtype in DTYPES:
        bank = StripBank.pack(random_strips(70, 4, 2, columns, seed=3), dtype=dtype)
        query = random_strips(batch, 4, 2, columns, seed=4)
        found, _ = all_paths(query, bank, 3)
        assert_is_the_answer(found, query, bank, 3)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 33, 48])
def test_every_number_of_blocks_and_lanes(count: int) -> None:
    for dtype in DTYPES:
        bank = StripBank.pack(random_strips(count, 4, 2, 16, seed=5), dtype=dtype)
        query = random_strips(5, 4, 2, 6, seed=6)
        found, _ = all_paths(query, bank, 4)
        assert_is_the_answer(found, query, bank, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_passes_of_queries_give_the_answer_of_one(dtype: str) -> None:
    """So many values that the operands of all queries do not fit into one pass."""
    bank = StripBank.pack(random_strips(33, 64, 8, 16, seed=7), dtype=dtype)
    query = random_strips(200, 64, 8, 4, seed=8)
    found = strip_topk(query, bank, 3)
    for begin in range(0, 200, 40):
        part = strip_topk(query[begin : begin + 40], bank, 3)
        for mine, theirs in zip(found, part, strict=True):
            assert torch.equal(mine[begin : begin + 40], theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 3, 16, 64])
@pytest.mark.parametrize("select", SELECTIONS)
def test_score_agrees_with_brute_force_and_with_the_search(columns: int, dtype: str, select: str) -> None:
    bank = StripBank.pack(random_strips(60, 5, 3, columns, seed=9), dtype=dtype)
    query = random_strips(4, 5, 3, max(1, columns // 2), seed=10)
    rows = torch.arange(60).expand(4, 60)
    seen = []
    for isa in available_isas():
        with force_isa(isa), observe_calls() as calls, poisoned_outputs():
            seen.append(strip_score(query, bank, rows, select=select))
        assert calls == [("strip_score", "cpu", isa)]
    for other in seen[1:]:
        assert torch.equal(other.score, seen[0].score) and torch.equal(other.shift, seen[0].shift)
    exact, shift = brute_force(query, bank.unpack(), None, select)
    torch.testing.assert_close(seen[0].score.double(), exact, rtol=0, atol=2e-7)
    assert torch.equal(seen[0].shift, shift)
    found = strip_topk(query, bank, 20, select=select)
    again = strip_score(query, bank, found.index, select=select)
    assert torch.equal(again.score, found.score) and torch.equal(again.shift, found.shift)


def test_score_of_no_row_and_of_padding() -> None:
    bank = StripBank.pack(random_strips(3, 2, 1, 8, seed=11))
    query = random_strips(2, 2, 1, 4, seed=12)
    padded = strip_topk(query, bank, 5)
    result = strip_score(query, bank, padded.index)
    assert torch.equal(result.score, padded.score) and torch.equal(result.shift, padded.shift)
    assert strip_score(query, bank, torch.zeros(2, 0, dtype=torch.int64)).score.shape == (2, 0)
    with pytest.raises(ValueError, match="strip_score: expected rows from -1 to 2"):
        op.score(query, bank.blocks, [3, 2, 1, 8], "bf16", torch.tensor([[3], [0]]), None, "correlation")


# --- ties, near-ties, banks made to be difficult ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 16, 64])
def test_duplicates_come_in_the_order_of_their_rows(columns: int, dtype: str) -> None:
    strips = random_strips(500, 3, 2, columns, seed=13)
    query = strips[100:101, ..., : max(1, columns // 3)]
    strips[[490, 17, 333, 250, 16, 499]] = strips[100].clone()
    found, _ = all_paths(query, StripBank.pack(strips, dtype=dtype), 10)
    assert found[1][0, :7].tolist() == [16, 17, 100, 250, 333, 490, 499]
    assert len(set(found[0][0, :7].tolist())) == 1
    for k in (1, 3, 7):
        assert all_paths(query, StripBank.pack(strips, dtype=dtype), k)[0][1][0].tolist() == found[1][0, :k].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("select", SELECTIONS)
def test_a_strip_that_repeats_takes_its_first_shift(dtype: str, select: str) -> None:
    half = random_strips(40, 3, 2, 8, seed=14)
    bank = StripBank.pack(half.repeat(1, 1, 1, 2), dtype=dtype)
    query = torch.roll(half[:9], -5, dims=3)[..., :4]
    found, _ = all_paths(query, bank, 6, select=select)
    assert int(found[2].max()) < 8
    assert found[1][:, 0].tolist() == list(range(9))
    assert found[2][:, 0].tolist() == [5] * 9


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_of_one_strip_many_times_over(dtype: str) -> None:
    """Every pair is within the bound of every other: the lists run full and are rescored."""
    strip = random_strips(1, 4, 2, 16, seed=15)
    bank = StripBank.pack(strip.repeat(3000, 1, 1, 1), dtype=dtype)
    found, _ = all_paths(random_strips(2, 4, 2, 5, seed=16), bank, 30)
    assert found[1].tolist() == [list(range(30))] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 16, 20])
def test_near_ties_are_decided_by_the_exact_score(columns: int, dtype: str) -> None:
    """Scores closer together than the screening's bound, in an order that has nothing to do with their rows."""
    strips = random_strips(1, 4, 4, columns, seed=17) + 1e-4 * random_strips(3000, 4, 4, columns, seed=18)
    bank = StripBank.pack(strips, dtype=dtype)
    query = random_strips(1, 4, 4, columns, seed=17)[..., : max(1, columns // 2)].repeat(3, 1, 1, 1)
    query[1:] += 0.1 * random_strips(2, 4, 4, query.shape[3], seed=19)
    found, _ = all_paths(query, bank, 50)
    everything = strip_score(query, bank, torch.arange(3000).expand(3, -1))
    score, order = everything.score.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found[0], score[:, :50])
    assert torch.equal(found[1], order[:, :50])
    assert torch.equal(found[2], everything.shift.gather(1, order[:, :50]))
    assert_is_the_answer(found, query, bank, 50)


def difficult_strips(kind: str) -> Tensor:
    strips = random_strips(700, 4, 2, 16, seed=20)
    generator = torch.Generator().manual_seed(21)
    if kind == "masked columns":  # a different half of every strip is empty
        start = torch.randint(16, (700, 1), generator=generator)
        gone = (torch.arange(16) - start) % 16 < 8
        strips = torch.where(gone[:, None, None], 0.0, strips)
    elif kind == "one column":
        at = torch.randint(16, (700, 1), generator=generator)
        strips = torch.where((torch.arange(16) == at)[:, None, None], strips, 0.0)
    elif kind == "nearly empty columns":  # some windows lie on either side of the least energy that counts
        strips = strips * 10.0 ** torch.randint(-5, 1, (700, 1, 1, 16), generator=generator)
    elif kind == "zero strips":
        strips[torch.rand(700, generator=generator) < 0.7] = 0.0
    elif kind == "all zero":
        strips = torch.zeros_like(strips)
    elif kind == "scales":
        strips = strips * 10.0 ** torch.randint(-15, 16, (700, 1, 1, 1), generator=generator)
    elif kind == "beyond the range of float32 energies":
        strips = strips * 10.0 ** (torch.randint(0, 2, (700, 1, 1, 1), generator=generator) * 60.0 - 30)
    elif kind == "one sign":  # every cosine is near 1
        strips = strips.abs() + 0.2
    elif kind == "opposite":  # every cosine is near -1
        strips = -strips.abs() - 0.2
    return strips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(
    "kind",
    [
        "masked columns",
        "one column",
        "nearly empty columns",
        "zero strips",
        "all zero",
        "scales",
        "beyond the range of float32 energies",
        "one sign",
        "opposite",
    ],
)
def test_difficult_banks_are_searched_exactly(kind: str, select: str, dtype: str) -> None:
    strips = difficult_strips(kind)
    bank = StripBank.pack(strips, dtype=dtype)
    query = random_strips(6, 4, 2, 5, seed=22)
    query[0] = strips[3, ..., :5]
    query[1] = strips[5, ..., 7:12] * 1e-20
    query[2] = query[2].abs()
    query[3] = 0.0
    width = torch.tensor([5, 3, 5, 5, 1, 4])
    found, _ = all_paths(query, bank, 12, query_width=width, select=select)
    everything = strip_score(query, bank, torch.arange(700).expand(6, -1), query_width=width, select=select)
    score, order = everything.score.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found[0], score[:, :12])
    assert torch.equal(found[1], order[:, :12])
    assert torch.equal(found[2], everything.shift.gather(1, order[:, :12]))
    exact = brute_force(query, bank.unpack(), width, select)[0]
    torch.testing.assert_close(everything.score.double(), exact, rtol=0, atol=2e-7)


@given(
    seed=st.integers(0, 1 << 30),
    columns=st.sampled_from([1, 2, 5, 8, 16, 32, 33]),
    dtype=st.sampled_from(DTYPES),
    select=st.sampled_from(SELECTIONS),
    k=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_permuting_the_bank_permutes_the_answer(seed: int, columns: int, dtype: str, select: str, k: int) -> None:
    strips = random_strips(60, 3, 2, columns, seed=seed)
    query = random_strips(3, 3, 2, 1 + seed % columns, seed=seed + 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    plain = strip_topk(query, StripBank.pack(strips, dtype=dtype), k, select=select)
    mixed = strip_topk(query, StripBank.pack(strips[order], dtype=dtype), k, select=select)
    assert torch.equal(plain.score, mixed.score)
    if len(plain.score.unique()) == plain.score.numel():
        assert torch.equal(plain.index, order[mixed.index])
        assert torch.equal(plain.shift, mixed.shift)


@given(
    seed=st.integers(0, 1 << 30),
    rank=st.integers(1, 4),
    noise=st.sampled_from([0.0, 1e-7, 1e-4, 1e-2]),
    columns=st.sampled_from([1, 4, 16, 64]),
    select=st.sampled_from(SELECTIONS),
)
@settings(max_examples=40, deadline=None)
def test_bf16_screening_against_exhaustive_scoring(
    seed: int, rank: int, noise: float, columns: int, select: str
) -> None:
    """Banks spanned by few strips, so that many scores lie close together."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rank, 4, 2, columns, generator=generator)
    mix = torch.randn(400, rank, generator=generator)
    strips = torch.einsum("nr,rchw->nchw", mix, base) + noise * torch.randn(400, 4, 2, columns, generator=generator)
    bank = StripBank.pack(strips, dtype="bf16")
    query = torch.randn(3, 4, 2, 1 + seed % columns, generator=generator)
    found = strip_topk(query, bank, 11, select=select)
    everything = strip_score(query, bank, torch.arange(400).expand(3, -1), select=select)
    score, order = everything.score.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.score, score[:, :11])
    assert torch.equal(found.index, order[:, :11])


# --- k, alive, NaN ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_k_beyond_the_bank_and_the_largest_k(dtype: str) -> None:
    bank = StripBank.pack(random_strips(20, 3, 1, 16, seed=23), dtype=dtype)
    query = random_strips(3, 3, 1, 5, seed=24)
    found, _ = all_paths(query, bank, 33)
    assert_is_the_answer(found, query, bank, 33)
    bank = StripBank.pack(random_strips(5000, 3, 1, 16, seed=25), dtype=dtype)
    found, _ = all_paths(query, bank, 1024)
    assert_is_the_answer(found, query, bank, 1024)


@pytest.mark.parametrize("pattern", ["all", "none", "every other", "one block", "last", "few"])
def test_rows_that_are_not_alive_are_passed_over(pattern: str) -> None:
    rows = torch.arange(203)
    alive = {
        "all": rows >= 0,
        "none": rows < 0,
        "every other": rows % 2 == 0,
        "one block": rows // 16 == 5,
        "last": rows == 202,
        "few": rows % 50 == 3,
    }[pattern]
    for dtype in DTYPES:
        bank = StripBank.pack(random_strips(203, 3, 2, 16, seed=26), dtype=dtype)
        query = random_strips(5, 3, 2, 5, seed=27)
        found, _ = all_paths(query, bank, 7, alive=alive)
        assert_is_the_answer(found, query, bank, 7, alive=alive)
        every_other = torch.zeros(406, dtype=torch.bool)
        every_other[::2] = alive
        for mine, theirs in zip(strip_topk(query, bank, 7, alive=every_other[::2]), found, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_strips_and_queries_that_are_not_finite_never_enter_the_answer(value: float, dtype: str) -> None:
    strips = random_strips(100, 3, 2, 16, seed=28)
    whole = StripBank.pack(strips, dtype=dtype)
    strips[[0, 17, 18, 99], 1, 1, 3] = value
    bank = StripBank.pack(strips, dtype=dtype)
    query = random_strips(5, 3, 2, 5, seed=29)
    alive = torch.ones(100, dtype=torch.bool)
    alive[[0, 17, 18, 99]] = False
    expected = strip_topk(query, whole, 99, alive=alive)
    query[2, 0, 0, 4] = value
    found, _ = all_paths(query, bank, 99)
    for b in (0, 1, 3, 4):
        assert torch.equal(found[0][b], expected.score[b])
        assert torch.equal(found[1][b], expected.index[b])
    assert (found[1][2] == -1).all() and (found[0][2] == -torch.inf).all() and (found[2][2] == -1).all()
    # In a column that does not exist it does no harm.
    width = torch.tensor([5, 5, 4, 5, 5])
    assert int((strip_topk(query, bank, 5, query_width=width).index[2] >= 0).sum()) == 5
    scored = strip_score(query, bank, torch.tensor([[0, 1, 17, 99]]).expand(5, 4))
    assert (
        scored.score.isnan().tolist()
        == [[True, False, True, True]] * 2 + [[True] * 4] + [[True, False, True, True]] * 2
    )
    assert (scored.shift[scored.score.isnan()] == 0).all()
    with force_backend("reference"):
        reference = strip_score(query, bank, torch.tensor([[0, 1, 17, 99]]).expand(5, 4))
    torch.testing.assert_close(scored.score, reference.score, rtol=0, atol=1e-6, equal_nan=True)


def test_bytes_that_contradict_their_energies_do_not_crash() -> None:
    """A bank whose bytes were altered: any answer will do, but the search ends."""
    bank = StripBank.pack(random_strips(64, 3, 2, 16, seed=30))
    buffer = bank.buffer.clone()
    buffer[128:1100] = 0xFF
    for isa in available_isas():
        with force_isa(isa):
            found = strip_topk(random_strips(3, 3, 2, 5, seed=31), StripBank(buffer), 5)
        assert not found.score.isnan().any()


# --- score="dot" -----------------------------------------------------------------------------------------------------


def everything(
    query: Tensor, bank: StripBank, k: int, group: Tensor | None = None, alive: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What a search must answer, row for row: strip_score on every pair, the best of each group, sorted."""
    rows = torch.arange(len(bank))
    scored = strip_score(query, bank, rows.expand(len(query), -1), **arguments)
    answer = []
    for score, shift in zip(scored.score, scored.shift, strict=True):
        counts = score > -torch.inf if alive is None else (score > -torch.inf) & alive
        order = sorted(rows[counts].tolist(), key=lambda row: (-float(score[row]), row))
        if group is not None:
            first: dict[int, int] = {}
            for row in order:
                first.setdefault(int(group[row]), row)
            order = list(first.values())
        best = torch.tensor(order[:k], dtype=torch.int64)
        missing = k - len(best)
        answer.append(
            (
                torch.cat([score[best], torch.full((missing,), -torch.inf)]),
                torch.cat([best, torch.full((missing,), -1)]),
                torch.cat([shift[best], torch.full((missing,), -1)]),
            )
        )
    return tuple(torch.stack(parts) for parts in zip(*answer, strict=True))  # type: ignore[return-value]


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 3, 16, 20, 64])
def test_dot_answers_are_those_of_brute_force(columns: int, dtype: str) -> None:
    """Strips and queries of very different norms, so that the cosine would answer otherwise."""
    scale = torch.logspace(-3, 3, 170)[torch.randperm(170, generator=torch.Generator().manual_seed(columns))]
    bank = StripBank.pack(random_strips(170, 5, 3, columns, seed=50) * scale[:, None, None, None], dtype=dtype)
    padded = max(1, columns * 2 // 3)
    query = random_strips(9, 5, 3, padded, seed=51) * torch.logspace(-6, 6, 9)[:, None, None, None]
    width = torch.randint(1, padded + 1, (9,), generator=torch.Generator().manual_seed(52))
    found, plans = all_paths(query, bank, 11, query_width=width, score="dot")
    assert {plan.split("/")[0] for plan in plans} == set(available_isas())
    assert_equal(found, everything(query, bank, 11, query_width=width, score="dot"))
    exact, shift = brute_force(query, bank.unpack(), width, "correlation", "dot")
    best = exact.sort(dim=1, descending=True)
    torch.testing.assert_close(found[0].double(), best.values[:, :11], rtol=2e-7, atol=0)
    assert torch.equal(found[1], best.indices[:, :11]) and torch.equal(found[2], shift.gather(1, found[1]))
    assert not torch.equal(found[1], strip_topk(query, bank, 11, query_width=width).index)
    with observe_calls() as calls, force_backend("reference"):
        reference = strip_topk(query, bank, 11, query_width=width, score="dot")
    assert calls == [("strip_topk", "reference", "")]
    torch.testing.assert_close(reference.score, found[0], rtol=2e-7, atol=0)
    assert torch.equal(reference.index, found[1]) and torch.equal(reference.shift, found[2])
    # `select` has no say.
    assert_equal(found, strip_topk(query, bank, 11, query_width=width, score="dot", select="cosine"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_of_extreme_numbers(dtype: str) -> None:
    """Norms beyond what the bound is proven for, zeros, products beyond float32, NaN."""
    scale = torch.tensor([0.0, 1e-38, 1e-25, 1e-6, 1.0, 1e10, 1e17, 1e30])[torch.arange(240) % 8]
    strips = random_strips(240, 4, 2, 16, seed=53) * scale[:, None, None, None]
    strips[7::40] = torch.nan
    bank = StripBank.pack(strips, dtype=dtype)
    query = random_strips(8, 4, 2, 5, seed=54) * scale[:8, None, None, None]
    for k in (3, 240):
        found, _ = all_paths(query, bank, k, score="dot")
        assert_equal(found, everything(query, bank, k, score="dot"))
    assert (found[0][7] == torch.inf).any(), "a product beyond float32 stands first"
    assert (found[1] >= 0).sum(1).lt(240).all(), "NaN, and what is beneath every number, is no score"
    with force_backend("reference"):
        reference = strip_topk(query, bank, 240, score="dot")
    torch.testing.assert_close(reference.score, found[0], rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_near_ties_and_duplicates(dtype: str) -> None:
    strips = random_strips(1, 4, 4, 16, seed=55) + 1e-4 * random_strips(2000, 4, 4, 16, seed=56)
    strips[1500:] = strips[7]
    bank = StripBank.pack(strips, dtype=dtype)
    query = torch.cat([strips[7:8, ..., :6], random_strips(2, 4, 4, 6, seed=57)])
    found, _ = all_paths(query, bank, 40, score="dot")
    assert_equal(found, everything(query, bank, 40, score="dot"))


# --- group -----------------------------------------------------------------------------------------------------------

GROUPS = {
    "one row each": lambda rows: rows,
    "one group": lambda rows: rows * 0 + 5,
    "nineteen rows each": lambda rows: rows // 19 - 3,
    "of all sizes": lambda rows: (rows.double().sqrt() * 2).long() * 1000,
    "some of one row, one of half the bank": lambda rows: torch.where(rows < len(rows) // 2, -(1 << 62), rows),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("columns", [1, 16])
def test_the_best_row_of_a_group_is_kept_and_k_counts_groups(columns: int, kind: str, dtype: str) -> None:
    strips = random_strips(1, 4, 2, columns, seed=58) + 0.7 * random_strips(900, 4, 2, columns, seed=59)
    bank = StripBank.pack(strips, dtype=dtype)
    rows = torch.arange(900)
    group, alive = GROUPS[kind](rows), rows % 5 != 2
    query = random_strips(4, 4, 2, max(1, columns // 3), seed=60)
    for k, arguments in ((1, {}), (7, {"select": "cosine"}), (30, {"alive": alive, "score": "dot"})):
        found, _ = all_paths(query, bank, k, group=group, **arguments)
        assert_equal(found, everything(query, bank, k, group=group, **arguments))
        with force_backend("reference"):
            reference = strip_topk(query, bank, k, group=group, **arguments)
        assert torch.equal(reference.index, found[1]) and torch.equal(reference.shift, found[2])
        torch.testing.assert_close(reference.score, found[0], rtol=1e-6, atol=1e-6)
    if kind == "one row each":
        for mine, theirs in zip(strip_topk(query, bank, 9, group=group), strip_topk(query, bank, 9), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 16])
def test_only_the_first_rows_are_searched(columns: int, dtype: str) -> None:
    """In the middle of a block too; what lies beyond is not looked at, so it may be anything."""
    strips = random_strips(300, 4, 2, columns, seed=65)
    query = random_strips(3, 4, 2, max(1, columns // 3), seed=66)
    strips[77:] = query[0].repeat(1, 1, columns)[..., :columns]
    bank = StripBank.pack(strips, dtype=dtype)
    for rows in (77, 16, 1, 0):
        own = torch.arange(rows) // 3
        for arguments in ({}, {"group": own}, {"alive": own % 2 == 0}):
            found, _ = all_paths(query, bank, 9, rows=rows, **arguments)
            assert_equal(found, all_paths(query, StripBank.pack(strips[:rows], dtype=dtype), 9, **arguments)[0])
    for wrong in (-1, 301):
        with pytest.raises(ValueError, match="rows: expected an integer from 0 to 300"):
            strip_topk(query, bank, 9, rows=wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-4])
def test_groups_of_rows_that_are_hard_to_tell_apart(noise: float, dtype: str) -> None:
    """Within and across groups: every pair may be its group's best, and every group among the k."""
    strips = random_strips(1, 4, 2, 16, seed=61) + noise * random_strips(2500, 4, 2, 16, seed=62)
    bank = StripBank.pack(strips, dtype=dtype)
    group = torch.arange(2500) // 7
    query = random_strips(3, 4, 2, 5, seed=63)
    found, _ = all_paths(query, bank, 20, group=group)
    assert_equal(found, everything(query, bank, 20, group=group))
    if noise == 0.0:
        assert found[1].tolist() == [list(range(0, 140, 7))] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_difficult_strips(dtype: str) -> None:
    """Zeros, NaN, energies beyond the bound and windows near the least that counts, side by side in one group."""
    strips = torch.cat([difficult_strips(kind)[:170] for kind in ("nearly empty columns", "zero strips", "scales")])
    strips = torch.cat([strips, difficult_strips("beyond the range of float32 energies")[:170]])
    strips = strips[torch.randperm(680, generator=torch.Generator().manual_seed(64))]
    strips[::11] = torch.nan
    bank = StripBank.pack(strips, dtype=dtype)
    group = torch.arange(680) // 4
    query = random_strips(5, 4, 2, 5, seed=65)
    query[1] = 0.0
    for arguments in ({}, {"select": "cosine"}, {"score": "dot"}):
        found, _ = all_paths(query, bank, 60, group=group, **arguments)
        assert_equal(found, everything(query, bank, 60, group=group, **arguments))


@given(
    seed=st.integers(0, 1 << 30),
    largest=st.sampled_from([1, 2, 30, 400]),
    columns=st.sampled_from([1, 5, 16]),
    dtype=st.sampled_from(DTYPES),
    k=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_any_groups(seed: int, largest: int, columns: int, dtype: str, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, largest + 1, (400,), generator=generator)
    group = torch.arange(400).repeat_interleave(sizes)[:400]
    bank = StripBank.pack(random_strips(400, 3, 2, columns, seed=seed), dtype=dtype)
    query = random_strips(2, 3, 2, max(1, columns // 2), seed=seed + 1)
    assert_equal(strip_topk(query, bank, k, group=group), everything(query, bank, k, group=group))


def test_group_and_score_say_what_is_wrong() -> None:
    bank, query = StripBank.pack(random_strips(4, 1, 1, 8)), random_strips(1, 1, 1, 2)
    cases: list[tuple[Any, type[Exception], str]] = [
        ([0, 1, 2, 3], TypeError, r"group: expected a tensor \[R\], got \[0, 1, 2, 3\]"),
        (torch.zeros(4), TypeError, r"group: expected dtype int64, got a torch.float32"),
        (torch.zeros(3).long(), ValueError, "group: expected 4 values .one per strip., got 3"),
        (torch.zeros(4, 1).long(), ValueError, r"group: expected shape \[R\]"),
        (
            torch.tensor([0, 5, 4, 4]),
            ValueError,
            "group: expected ascending values .rows of one place lie together., got 4 after 5 at row 2",
        ),
    ]
    for value, error, message in cases:
        with pytest.raises(error, match=message):
            strip_topk(query, bank, 1, group=value)
    for call in (
        lambda: strip_topk(query, bank, 1, score="l2"),
        lambda: strip_score(query, bank, torch.zeros(1, 1).long(), score="l2"),
    ):
        with pytest.raises(ValueError, match="score: expected one of 'cosine', 'dot', got 'l2'"):
            call()


def test_group_of_an_empty_bank_and_of_strided_memory() -> None:
    query = random_strips(3, 2, 1, 4)
    empty = StripBank.pack(torch.zeros(0, 2, 1, 8))
    found, _ = all_paths(query, empty, 2, group=torch.zeros(0).long())
    assert (found[1] == -1).all() and (found[0] == -torch.inf).all()
    with force_backend("reference"):
        assert (strip_topk(query, empty, 2, group=torch.zeros(0).long()).index == -1).all()
    bank = StripBank.pack(random_strips(40, 2, 1, 8))
    group = torch.arange(80)[::2] // 6
    assert_equal(strip_topk(query, bank, 5, group=group), strip_topk(query, bank, 5, group=group.clone()))
    found, _ = all_paths(query[:0], bank, 2, group=group, score="dot")
    assert found[0].shape == (0, 2)


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_queries_of_any_dtype_and_layout() -> None:
    bank = StripBank.pack(random_strips(100, 8, 4, 16, seed=32))
    query = random_strips(6, 8, 4, 5, seed=33)
    for some in (
        query.half(),
        query.bfloat16(),
        query.double(),
        query.contiguous(memory_format=torch.channels_last),
        torch.cat([query, query], 3)[..., 2:7],
        query.expand(6, 8, 4, 5).flip(0),
        query[:1].expand(6, -1, -1, -1),
    ):
        with observe_calls() as calls:
            found = strip_topk(some, bank, 4)
            scored = strip_score(some, bank, found.index)
        assert [call[1] for call in calls] == ["cpu", "cpu"]
        expected = strip_topk(some.float().contiguous(), bank, 4)
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(scored.score, found.score)
    width = torch.tensor([5, 1, 2, 3, 4, 5], dtype=torch.int32)
    strided = torch.stack([width, width], 1).long()[:, 0]
    for mine, theirs in zip(
        strip_topk(query, bank, 4, query_width=strided), strip_topk(query, bank, 4, query_width=width), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_empty_bank_and_empty_batch() -> None:
    query = random_strips(3, 2, 1, 4)
    for dtype in DTYPES:
        found, _ = all_paths(query, StripBank.pack(torch.zeros(0, 2, 1, 8), dtype=dtype), 2)
        assert (found[1] == -1).all() and (found[0] == -torch.inf).all() and (found[2] == -1).all()
        bank = StripBank.pack(random_strips(20, 2, 1, 8), dtype=dtype)
        found, _ = all_paths(query[:0], bank, 2)
        assert found[0].shape == found[1].shape == found[2].shape == (0, 2)
        assert strip_score(query[:0], bank, torch.zeros(0, 3, dtype=torch.int64)).score.shape == (0, 3)


def test_too_many_columns_for_the_kernels_run_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _native.native_cpu is not None
    monkeypatch.setattr(_native.native_cpu, "max_strip_columns", 8)
    bank, query = StripBank.pack(random_strips(4, 1, 1, 9)), random_strips(1, 1, 1, 2)
    with observe_calls() as calls:
        strip_topk(query, bank, 1)
    assert calls == [("strip_topk", "reference", "")]
    with force_backend("cpu"), pytest.raises(RuntimeError, match="9 columns, the kernels take at most 8"):
        strip_topk(query, bank, 1)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_eight_threads_searching_at_once_give_the_answer_of_one() -> None:
    bank = StripBank.pack(random_strips(3000, 8, 2, 16, seed=34))
    queries = [random_strips(1 + i, 8, 2, 5, seed=35 + i) for i in range(8)]
    expected = [strip_topk(query, bank, 10) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for mine, theirs in zip(pool.map(lambda q: strip_topk(q, bank, 10), queries), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_another_thread_runs_during_a_search() -> None:
    bank = StripBank.pack(random_strips(20000, 8, 2, 16, seed=36))
    query = random_strips(2000, 8, 2, 16, seed=37)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticking = threading.Thread(target=tick)
    ticking.start()
    begin = time.perf_counter()
    strip_topk(query, bank, 10)
    end = time.perf_counter()
    done.set()
    ticking.join()
    during = [at for at in ticks if begin < at < end]
    assert len(during) >= 3, f"{len(during)} ticks in {end - begin:.3f} s"


# --- as a torch operator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: str) -> None:
    bank = StripBank.pack(random_strips(20, 3, 2, 8, seed=38), dtype=dtype)
    query, width = random_strips(3, 3, 2, 5, seed=39), torch.tensor([5, 2, 1])
    shape, alive = [20, 3, 2, 8], torch.arange(20) % 3 != 0
    torch.library.opcheck(op.pack.overload, (random_strips(20, 3, 2, 8), dtype))
    torch.library.opcheck(op.unpack.overload, (bank.blocks, shape, dtype, torch.tensor([3, 1])))
    torch.library.opcheck(
        op.score.overload, (query, bank.blocks, shape, dtype, torch.zeros(3, 2).long(), width, "cosine")
    )
    torch.library.opcheck(op.topk.overload, (query, bank.blocks, shape, dtype, 4, width, "correlation", alive))
    torch.library.opcheck(op.topk.overload, (query, bank.blocks, shape, dtype, 4, None, "cosine", None))
    group = torch.arange(20) // 3
    torch.library.opcheck(op.topk.overload, (query, bank.blocks, shape, dtype, 4, width, "cosine", alive, "dot", group))
    rows = torch.zeros(3, 2).long()
    torch.library.opcheck(op.score.overload, (query, bank.blocks, shape, dtype, rows, width, "cosine", "dot"))


def test_compile_and_autocast() -> None:
    bank = StripBank.pack(random_strips(50, 3, 2, 16, seed=40))
    query = random_strips(3, 3, 2, 5, seed=41)

    def search(q: Tensor) -> tuple[Tensor, ...]:
        found = strip_topk(q * 2, bank, 4)
        places = strip_topk(q, bank, 4, score="dot", group=torch.arange(50) // 4)
        return found.score, found.index, strip_score(q, bank, found.index).score, *places

    compiled = torch.compile(search, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(query), search(query), strict=True):
        assert torch.equal(mine, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mine, theirs in zip(search(query), compiled(query), strict=True):
            assert torch.equal(mine, theirs)
