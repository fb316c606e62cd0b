"""strip_curve: the score at every shift, against float64 loops and against strip_score, on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc_fast import StripBank, strip_curve, strip_score, strip_topk
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


def loops(query: Tensor, bank: StripBank, index: Tensor, width: Tensor) -> Tensor:
    """[B, n, W] in float64, one window after the other."""
    columns = bank.shape[2]
    out = torch.full((*index.shape, columns), -torch.inf, dtype=torch.float64)
    for b, i in (index >= 0).nonzero().tolist():
        strip, w = bank.unpack(index[b, i : i + 1])[0].double(), int(width[b])
        one = query[b, ..., :w].double()
        for s in range(columns):
            window = torch.roll(strip, -s, dims=2)[..., :w]
            energy = float(window.square().sum())
            counts = energy > 1e-6 * float(strip.square().sum()) and float(one.square().sum()) > 0
            out[b, i, s] = (one * window).sum() / (one.square().sum() * energy).sqrt() if counts else 0.0
    return out


def on_every_path(query: Tensor, bank: StripBank, index: Tensor, **arguments: Any) -> Tensor:
    """The curve, after checking that every instruction set and number of threads gives the same bits."""
    curves = []
    threads = torch.get_num_threads()
    for isa in available_isas():
        for count in (1, 3):
            torch.set_num_threads(count)
            with force_isa(isa), observe_calls() as calls, poisoned_outputs():
                curves.append(strip_curve(query, bank, index, **arguments))
            torch.set_num_threads(threads)
            assert calls == [("strip_curve", "cpu", isa)]
    for other in curves[1:]:
        assert torch.equal(other.nan_to_num(7), curves[0].nan_to_num(7))
    return curves[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 7, 16, 20, 64])
def test_every_shift_is_the_cosine_of_the_renormalised_window(columns: int, dtype: str) -> None:
    generator = torch.Generator().manual_seed(columns)
    scale = 10.0 ** torch.randint(-3, 4, (40, 1, 1, 1), generator=generator)
    strips = random_strips(40, 5, 3, columns, seed=70) * scale
    strips[3] = 0.0
    strips[4, ..., columns // 2 :] *= 1e-5
    bank = StripBank.pack(strips, dtype=dtype)
    padded = max(1, columns // 2)
    query = random_strips(5, 5, 3, padded, seed=71)
    query[4] = 0.0
    width = torch.randint(1, padded + 1, (5,), generator=generator)
    index = torch.randint(-1, 40, (5, 12), generator=generator)
    index[:, :3] = torch.tensor([3, 4, -1])
    curve = on_every_path(query, bank, index, query_width=width)
    assert curve.shape == (5, 12, columns) and curve.dtype == torch.float32
    torch.testing.assert_close(curve.double(), loops(query, bank, index, width), rtol=0, atol=2e-7)
    assert (curve[:, 0] == 0).all() and (curve[4, 1] == 0).all() and (curve[:, 2] == -torch.inf).all()
    with force_backend("reference"), observe_calls() as calls:
        reference = strip_curve(query, bank, index, query_width=width)
    assert calls == [("strip_curve", "reference", "")]
    torch.testing.assert_close(reference, curve, rtol=0, atol=2e-7)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_score_is_the_curve_at_its_shift(backend: str) -> None:
    """To the last bit, so that one layer scored by curves ranks as a search does."""
    bank = StripBank.pack(random_strips(60, 8, 2, 16, seed=72))
    query, index = random_strips(6, 8, 2, 5, seed=73), torch.arange(60).expand(6, -1)
    with force_backend(backend):
        curve = strip_curve(query, bank, index)
        by_cosine = strip_score(query, bank, index, select="cosine")
        by_correlation = strip_score(query, bank, index)
    assert torch.equal(curve.amax(2), by_cosine.score)
    assert torch.equal(curve.gather(2, by_correlation.shift[..., None])[..., 0], by_correlation.score)


def test_padding_of_a_search_and_rows_that_are_not_finite() -> None:
    strips = random_strips(5, 2, 1, 8, seed=74)
    strips[1, 0, 0, 3] = torch.inf
    bank = StripBank.pack(strips)
    query = random_strips(3, 2, 1, 4, seed=75)
    query[2, 0, 0, 0] = torch.nan
    for backend in ("cpu", "reference"):
        with force_backend(backend):
            curve = strip_curve(query, bank, strip_topk(query, bank, 6).index)
            assert (curve[:, 4:] == -torch.inf).all() and not curve[:2].isnan().any()
            broken = strip_curve(query, bank, torch.tensor([[0, 1]]).expand(3, -1)).isnan()
            assert broken.all(2).tolist() == broken.any(2).tolist() == [[False, True], [False, True], [True, True]]
            # A column that does not exist does no harm.
            width, first = torch.tensor([3, 3, 3]), torch.zeros(3, 1, dtype=torch.int64)
            assert not strip_curve(query.flip(3), bank, first, query_width=width).isnan().any()


def test_inputs_of_any_dtype_and_layout_and_none_at_all() -> None:
    bank = StripBank.pack(random_strips(30, 8, 4, 16, seed=76))
    query, index = random_strips(3, 8, 4, 5, seed=77), torch.arange(12).view(3, 4)
    expected = strip_curve(query, bank, index)
    assert torch.equal(strip_curve(query, bank, index.int()), expected)
    assert torch.equal(strip_curve(query, bank, torch.arange(24).view(3, 8)[:, ::2] // 2), expected)
    assert torch.equal(strip_curve(query.contiguous(memory_format=torch.channels_last), bank, index), expected)
    assert torch.equal(strip_curve(torch.cat([query, query], 3)[..., 5:], bank, index), expected)
    assert torch.equal(strip_curve(query.double(), bank, index), expected)
    for backend in ("cpu", "reference"):
        with force_backend(backend):
            assert strip_curve(query[:0], bank, index[:0]).shape == (0, 4, 16)
            assert strip_curve(query, bank, index[:, :0]).shape == (3, 0, 16)
            empty = StripBank.pack(torch.zeros(0, 8, 4, 16))
            assert (strip_curve(query, empty, index * 0 - 1) == -torch.inf).all()


def test_errors_name_the_argument() -> None:
    bank, query = StripBank.pack(random_strips(4, 2, 1, 8)), random_strips(2, 2, 1, 3)
    index = torch.zeros(2, 1, dtype=torch.int64)
    cases: list[tuple[Any, type[Exception], str]] = [
        ((query, bank.buffer, index), TypeError, "bank: expected a StripBank"),
        ((query[0], bank, index), ValueError, r"query: expected shape \[B, C, H, Wq\]"),
        ((query[:, :1], bank, index), ValueError, "query: expected C=2, H=1 as in the bank, got C=1, H=1"),
        ((query, bank, [[0], [0]]), TypeError, r"index: expected a tensor \[B, n\]"),
        ((query, bank, index.float()), TypeError, "index: expected dtype int64, int32"),
        ((query, bank, index[:1]), ValueError, "index: expected 2 rows .B of query., got 1"),
        ((query, bank, index + 4), ValueError, "index: expected rows from -1 to 3, got 4 to 4"),
        ((query, bank, index - 2), ValueError, "index: expected rows from -1 to 3, got -2 to -2"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            strip_curve(*arguments)
    with pytest.raises(ValueError, match="query_width: expected widths from 1 to 3"):
        strip_curve(query, bank, index, query_width=torch.tensor([4, 1]))


def test_as_a_torch_operator() -> None:
    bank = StripBank.pack(random_strips(20, 3, 2, 8, seed=78))
    query, index, width = random_strips(3, 3, 2, 5, seed=79), torch.arange(6).view(3, 2) - 1, torch.tensor([5, 2, 1])
    for w in (width, None):
        torch.library.opcheck(op.curve.overload, (query, bank.blocks, [20, 3, 2, 8], "bf16", index, w))

    def best(q: Tensor) -> Tensor:
        return strip_curve(q * 2, bank, index, query_width=width).amax(1)

    compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query), best(query))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(best(query), compiled(query))
