"""Losses against loops that spell the formula out."""

from __future__ import annotations

import math

import pytest
import torch

from geoloc_fast.training.losses import adversarial, info_nce, shift_cross_entropy, soft_margin_triplet, triplet


def one_way(
    score: list[list[float]],
    positive: list[int],
    mask: list[list[bool]],
    temperature: float,
    smoothing: float = 0.0,
    decoupled: bool = False,
) -> float:
    total = 0.0
    for b, row in enumerate(score):
        kept = [s / temperature for r, s in enumerate(row) if r == positive[b] or not mask[b][r]]
        below = [s / temperature for r, s in enumerate(row) if r != positive[b] and not mask[b][r]]
        below = below if decoupled else kept
        if not below:
            continue
        target = (1 - smoothing) * row[positive[b]] / temperature + smoothing * sum(kept) / len(kept)
        total += math.log(sum(map(math.exp, below))) - target
    return total / len(score)


def some_scores(references: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(5, references, generator=generator, dtype=torch.float64) * 2 - 1
    mask = torch.rand(5, references, generator=generator) < 0.3
    mask[2] = True  # nothing but the positive is left
    return score, mask, torch.randperm(references, generator=generator)[:5]


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("references", [5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_is_its_formula(references: int, symmetric: bool, smoothing: float, decoupled: bool) -> None:
    score, mask, positive = some_scores(references)
    score.requires_grad_()
    for chosen, given in ((positive, positive), (torch.arange(5), None)):
        expected = one_way(score.tolist(), chosen.tolist(), mask.tolist(), 0.1, smoothing, decoupled)
        if symmetric:
            back = score[:, chosen].T.tolist()
            expected += one_way(back, list(range(5)), mask[:, chosen].T.tolist(), 0.1, smoothing, decoupled)
            expected /= 2
        loss = info_nce(
            score,
            given,
            temperature=0.1,
            mask=mask,
            symmetric=symmetric,
            label_smoothing=smoothing,
            decoupled=decoupled,
        )
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
        (grad,) = torch.autograd.grad(loss, score)
        assert bool(grad.isfinite().all())


@pytest.mark.parametrize("symmetric", [False, True])
def test_triplets_are_their_formulas(symmetric: bool) -> None:
    score, mask, positive = some_scores(8)
    rows: list[tuple[list[list[float]], list[int], list[list[bool]]]] = [
        (score.tolist(), positive.tolist(), mask.tolist())
    ]
    if symmetric:
        rows.append((score[:, positive].T.tolist(), list(range(5)), mask[:, positive].T.tolist()))
    for loss, cost in (
        (triplet(score, positive, margin=0.4, mask=mask, symmetric=symmetric), lambda gap: max(0.0, gap + 0.4)),
        (
            soft_margin_triplet(score, positive, sharpness=7.0, mask=mask, symmetric=symmetric),
            lambda gap: math.log1p(math.exp(7 * gap)),
        ),
    ):
        means = []
        for scores, own, dropped in rows:
            costs = [
                cost((2 - 2 * row[own[b]]) - (2 - 2 * s))
                for b, row in enumerate(scores)
                for r, s in enumerate(row)
                if r != own[b] and not dropped[b][r]
            ]
            means.append(sum(costs) / len(costs))
        assert float(loss) == pytest.approx(sum(means) / len(means), rel=1e-12)


def test_triplets_without_negatives_are_nothing() -> None:
    score = torch.zeros(3, 3, requires_grad=True)
    everything = torch.ones(3, 3, dtype=torch.bool)
    for loss in (triplet(score, mask=everything), soft_margin_triplet(score, mask=everything)):
        assert float(loss.detach()) == 0


def test_positive_stays_in_the_denominator() -> None:
    loss = info_nce(torch.zeros(4, 4), temperature=1.0)
    assert float(loss) == pytest.approx(math.log(4))


def test_queries_that_share_a_positive_do_not_push_it_away() -> None:
    score = torch.tensor([[1.0, 0.2, 0.0], [0.9, 0.1, 0.3]])
    loss = info_nce(score, torch.tensor([0, 0]), temperature=1.0)
    forward = info_nce(score, torch.tensor([0, 0]), temperature=1.0, symmetric=False)
    assert float(loss) == pytest.approx(float(forward) / 2)


def test_masked_entries_get_no_gradient_and_positives_cannot_be_masked() -> None:
    score = torch.randn(3, 3, requires_grad=True)
    loss = info_nce(score, temperature=0.5, mask=torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert score.grad is not None
    assert not score.grad.any()


def test_learned_temperature_gets_a_gradient() -> None:
    temperature = torch.tensor(0.07, requires_grad=True)
    info_nce(torch.randn(4, 4), temperature=temperature).backward()
    assert temperature.grad is not None
    assert temperature.grad.isfinite()


def test_shift_cross_entropy_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    query, strips = torch.randn(3, 2, 2, 4, generator=generator), torch.randn(3, 2, 2, 6, generator=generator)
    width, shift = torch.tensor([4, 2, 3]), torch.tensor([1.0, 5.25, 2.5])
    expected = 0.0
    for b in range(3):
        w = int(width[b])
        columns = [[(s + j) % 6 for j in range(w)] for s in range(6)]
        windows = torch.stack([strips[b][..., at].flatten() for at in columns])
        cosine = torch.cosine_similarity(windows, query[b, ..., :w].flatten()[None])
        log_p = (cosine / 0.2).log_softmax(0)
        left, part = int(shift[b]), float(shift[b]) % 1
        expected -= float((1 - part) * log_p[left] + part * log_p[(left + 1) % 6]) / 3
    loss = shift_cross_entropy(query, strips, shift, query_width=width, temperature=0.2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    full = shift_cross_entropy(query, strips, shift, temperature=0.2)
    same = shift_cross_entropy(query, strips, shift, query_width=torch.full((3,), 4), temperature=0.2)
    assert float(full) == float(same)


def test_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="label_smoothing: expected"):
        info_nce(torch.zeros(3, 3), temperature=1.0, label_smoothing=1.0)
    with pytest.raises(ValueError, match="score: expected"):
        triplet(torch.zeros(3))
    with pytest.raises(ValueError, match="score: expected"):
        info_nce(torch.zeros(3), temperature=1.0)
    with pytest.raises(ValueError, match="positive: expected"):
        info_nce(torch.zeros(3, 2), temperature=1.0)
    with pytest.raises(ValueError, match="positive: expected"):
        info_nce(torch.zeros(3, 3), torch.zeros(2, dtype=torch.long), temperature=1.0)
    with pytest.raises(ValueError, match="mask: expected"):
        info_nce(torch.zeros(3, 3), temperature=1.0, mask=torch.zeros(3, 3))


def test_adversarial_is_the_mean_of_the_levels_means() -> None:
    levels = [torch.tensor([[0.5, -2.0, 8.0]]), torch.tensor([[1.0]])]

    def one(score: float, target: float) -> float:
        p = 1 / (1 + math.exp(-score))
        return -target * math.log(p) - (1 - target) * math.log1p(-p)

    for target in (0.0, 0.9, 1.0):
        expected = sum(sum(one(s, target) for s in level[0].tolist()) / level.numel() for level in levels) / 2
        assert float(adversarial(levels, target)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at least one level"):
        adversarial([], 1.0)
