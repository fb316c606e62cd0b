"""Multi-similarity, and the sum over a bank without its matrix: against definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch

from geoloc_fast.reference.bank_log_sum import bank_log_sum as dense
from geoloc_fast.training import bank as bank_module
from geoloc_fast.training.bank import bank_log_sum
from geoloc_fast.training.losses import multi_similarity


def by_loops(score: torch.Tensor, positive: torch.Tensor, ignored: torch.Tensor) -> float:
    rows = []
    for b in range(len(score)):
        near = sum(math.exp(-1.0 * (float(score[b, r]) - 0.1)) for r in range(score.shape[1]) if positive[b, r])
        far = [r for r in range(score.shape[1]) if not positive[b, r] and not ignored[b, r]]
        others = sum(math.exp(20.0 * (float(score[b, r]) - 0.1)) for r in far)
        if positive[b].any():
            rows.append(math.log(1 + near) + math.log(1 + others) / 20)
    return sum(rows) / len(rows)


def test_multi_similarity_is_its_formula() -> None:
    draw = torch.Generator().manual_seed(3)
    score = torch.rand(5, 9, generator=draw, dtype=torch.float64) * 2 - 1
    positive = torch.rand(5, 9, generator=draw) < 0.3
    positive[2] = False
    ignored = torch.rand(5, 9, generator=draw) < 0.3
    got = multi_similarity(score, positive, ignored, alpha=1.0, beta=20.0, base=0.1)
    assert float(got) == pytest.approx(by_loops(score, positive, ignored), rel=1e-12)
    assert float(multi_similarity(score.half(), torch.zeros(5, 9, dtype=torch.bool))) == 0
    half = multi_similarity(torch.full((2, 3), 1.0).half(), torch.eye(3)[:2].bool())
    assert bool(half.isfinite())
    with pytest.raises(ValueError, match="positive: expected bool like score"):
        multi_similarity(score, positive[:, :3])


def inputs(count: int = 7, rows: int = 1100, dim: int = 12) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(5)
    query = torch.nn.functional.normalize(torch.randn(count, dim, generator=draw, dtype=torch.float64), dim=1)
    bank = torch.nn.functional.normalize(torch.randn(rows, dim, generator=draw, dtype=torch.float64), dim=1)
    ignored = torch.randint(-1, rows, (count, 5), generator=draw)
    ignored[:, 1] = ignored[:, 0]  # twice
    ignored[0] = -1
    return query.requires_grad_(), bank.requires_grad_(), ignored


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_stream_is_the_dense_form_forward_and_backward(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "_MOST_ROWS", 256)
    query, bank, ignored = inputs()
    assert len(bank_module.blocks(query, len(bank))) == 5  # the path under test
    weights = torch.linspace(-1, 2, len(query), dtype=torch.float64)
    grads = []
    for form in (dense, bank_log_sum):
        total = form(query, bank, ignored, scale)
        grads.append((total.detach(), *torch.autograd.grad((total * weights).sum(), (query, bank))))
    for got, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_a_sparse_gradient_holds_what_matters_and_leaves_the_rest() -> None:
    query, bank, ignored = inputs()
    (full,) = torch.autograd.grad(bank_log_sum(query, bank, ignored, 50.0).sum(), bank)
    total = bank_log_sum(query, bank, ignored, 50.0, least=1e-3)
    (sparse,) = torch.autograd.grad(total.sum(), bank)
    assert sparse.is_sparse
    kept = sparse.indices()[0]
    assert 0 < len(kept) < len(bank) // 4
    torch.testing.assert_close(sparse.values(), full[kept])
    left = torch.ones(len(bank), dtype=torch.bool).index_fill(0, kept, False)
    assert float(full[left].norm(dim=1).max()) <= 1e-3 * 50 * len(query)


def test_no_row_left_is_minus_infinity_with_no_gradient() -> None:
    query, bank, _ = inputs(2, 3)
    ignored = torch.tensor([[0, 1, 2], [-1, -1, -1]])
    total = bank_log_sum(query, bank, ignored, 5.0)
    assert float(total[0].detach()) == -math.inf
    (grad,) = torch.autograd.grad(torch.logaddexp(total, torch.zeros_like(total)).sum(), query)
    assert bool(grad.isfinite().all())
    assert float(grad[0].abs().max()) == 0


def test_wrong_arguments_are_named() -> None:
    query, bank, ignored = inputs()
    for call, words in (
        (lambda: bank_log_sum(query, bank[:, :4], ignored, 1.0), "query, bank: expected"),
        (lambda: bank_log_sum(query, bank.float(), ignored, 1.0), "of one type"),
        (lambda: bank_log_sum(query, bank, ignored[:3], 1.0), "ignored: expected int64"),
        (lambda: bank_log_sum(query, bank, ignored + len(bank), 1.0), "ignored: expected rows"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
