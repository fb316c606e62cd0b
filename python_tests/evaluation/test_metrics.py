"""R@1%, heading errors, likeness of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoloc_fast.evaluation.metrics import (
    heading_error_deg,
    inception_score,
    kl_score,
    one_percent,
    prediction_accuracy,
    psnr,
    sharpness_difference,
    ssim,
)


def test_one_percent() -> None:
    assert [one_percent(r) for r in (0, 99, 100, 199, 8884)] == [1, 1, 2, 2, 89]


def test_heading_error_is_signed_and_wraps() -> None:
    assert heading_error_deg(10.0, 350.0) == 20.0
    assert heading_error_deg(350.0, 10.0) == -20.0
    assert heading_error_deg(180.0, 0.0) == -180.0
    np.testing.assert_array_equal(heading_error_deg(np.array([0.0, 725.0]), np.array([359.0, 0.0])), [1.0, 5.0])
    assert heading_error_deg(torch.tensor([1.0]), torch.tensor([359.0])).tolist() == [2.0]


# -- generated images --------------------------------------------------------------------------


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy images of 14 x 13 pixels and what is meant to be like them, bytes."""
    generator = torch.Generator().manual_seed(7)
    real = torch.randint(0, 256, (2, 3, 14, 13), generator=generator)
    other = (real + torch.randint(-60, 61, real.shape, generator=generator)).clamp(0, 255)
    return other.to(torch.uint8), real.to(torch.uint8)


def test_pixel_metrics_are_their_definitions(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Loops over pixels, in Python's own floats."""
    found = [metric(*pair) for metric in (psnr, ssim, sharpness_difference)]
    gauss = [np.exp(-((i - 5) ** 2) / 4.5) for i in range(11)]
    weight = [[a * b / sum(gauss) ** 2 for b in gauss] for a in gauss]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for b in range(2):
        x, y = (images[b].tolist() for images in pair)
        square, apart, likeness = [], [], []
        for c in range(3):
            for i in range(14):
                for j in range(13):
                    square.append((x[c][i][j] - y[c][i][j]) ** 2)
                    if i and j:
                        one, two = (abs(z[c][i][j] - z[c][i - 1][j]) + abs(z[c][i][j] - z[c][i][j - 1]) for z in (x, y))
                        apart.append(abs(one - two) / 255)
            for i in range(4):
                for j in range(3):
                    window = [
                        (weight[u][v], x[c][i + u][j + v], y[c][i + u][j + v]) for u in range(11) for v in range(11)
                    ]
                    mx, my = sum(w * p for w, p, _ in window), sum(w * q for w, _, q in window)
                    sx, sy = sum(w * (p - mx) ** 2 for w, p, _ in window), sum(w * (q - my) ** 2 for w, _, q in window)
                    sxy = sum(w * (p - mx) * (q - my) for w, p, q in window)
                    above, below = (2 * mx * my + c1) * (2 * sxy + c2), (mx**2 + my**2 + c1) * (sx + sy + c2)
                    likeness.append(above / below)
        expected = (
            10 * np.log10(255**2 * len(square) / sum(square)),
            sum(likeness) / len(likeness),
            10 * np.log10(len(apart) / sum(apart)),
        )
        for values, value in zip(found, expected, strict=True):
            assert values.dtype == torch.float64
            assert float(values[b]) == pytest.approx(value, rel=1e-9)


def test_pixel_metrics_of_equal_images_and_of_other_ranges(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, real = pair
    assert psnr(real, real).tolist() == [float("inf")] * 2
    assert ssim(real, real).tolist() == pytest.approx([1, 1])
    for metric in (psnr, ssim, sharpness_difference):
        unit = tuple(images.double() / 255 for images in pair)
        assert torch.allclose(metric(*unit, peak=1.0), metric(*pair), rtol=1e-9)  # type: ignore[operator]
        with pytest.raises(ValueError, match="the shape of real"):
            metric(real, real[:1])  # type: ignore[operator]
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(real[..., :10], real[..., :10])


def test_what_a_classifier_says() -> None:
    sure = torch.eye(4, dtype=torch.float64)
    alike = torch.full((4, 4), 0.25)
    assert inception_score(sure) == pytest.approx(4) and inception_score(alike) == pytest.approx(1)
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    q = torch.tensor([[0.2, 0.7, 0.1], [0.2, 0.3, 0.5]])
    terms = [
        [a * np.log(a / b) for a, b in zip(x, y, strict=True)] for x, y in zip(p.tolist(), q.tolist(), strict=True)
    ]
    each = [sum(row) for row in terms]
    assert kl_score(p, q) == pytest.approx((np.mean(each), np.std(each)), rel=1e-6)
    assert kl_score(p, p) == pytest.approx((0, 0), abs=1e-12)
    assert prediction_accuracy(p, q) == 0.5 and prediction_accuracy(p, q, top=2) == 1.0
    mean = [0.4, 0.25, 0.35]
    whole = np.mean([sum(a * np.log(a / m) for a, m in zip(x, mean, strict=True)) for x in p.tolist()])
    assert inception_score(p) == pytest.approx(np.exp(whole), rel=1e-6)
    assert inception_score(p, top=1) == pytest.approx(2)  # one class each, and not the same
    with pytest.raises(ValueError, match="probability: expected probabilities that sum to 1"):
        inception_score(torch.ones(2, 3))
    with pytest.raises(ValueError, match="real: expected the shape"):
        kl_score(p, q[:, :2] / q[:, :2].sum(1, keepdim=True))
