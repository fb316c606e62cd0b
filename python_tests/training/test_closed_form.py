"""Maps in closed form against canonical correlation written out, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoloc_fast.training.closed_form import Moments, canonical_maps


def pairs(count: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that share three directions, among others that they do not share, far from zero."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, 3)) * (3, 2, 1)
    x = shared @ rng.standard_normal((3, 12)) + rng.standard_normal((count, 12)) + 50
    y = shared @ rng.standard_normal((3, 9)) + rng.standard_normal((count, 9)) - 20
    return torch.from_numpy(x), torch.from_numpy(y)


def written_out(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Correlations, and products of both images of the first and another pair, by symmetric roots and an SVD."""

    def standard(v: np.ndarray) -> np.ndarray:
        return (v - v.mean(0)) / v.std(0)

    def inverse_root(c: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(c)
        return (vectors / np.sqrt(values)) @ vectors.T

    x, y = standard(x), standard(y)
    wx = inverse_root(x.T @ x / len(x) + ridge * np.eye(x.shape[1]))
    wy = inverse_root(y.T @ y / len(y) + ridge * np.eye(y.shape[1]))
    u, rho, vt = np.linalg.svd(wx @ (x.T @ y / len(x)) @ wy)
    u, rho, v = u[:, :3], rho[:3], vt[:3].T
    gain = rho / (1 - rho**2)
    return rho, ((x @ wx @ u) * gain) @ (y @ wy @ v).T


def test_maps_are_canonical_correlation() -> None:
    x, y = pairs()
    moments = Moments()
    for part in range(0, 4000, 500):
        moments.add(x[part : part + 500], y[part : part + 500])
    maps = canonical_maps(moments, 3, ridge=0.3)
    rho, products = written_out(x.numpy(), y.numpy(), 0.3)
    np.testing.assert_allclose(maps.correlation.numpy(), rho, rtol=1e-5)
    ours = (x.float() @ maps.query.weight + maps.query.bias) @ (y.float() @ maps.place.weight + maps.place.bias).T
    np.testing.assert_allclose(ours.numpy(), products, atol=2e-3 * np.abs(products).max())


def test_a_weight_counts_as_repeating() -> None:
    x, y = pairs(300)
    twice, weighted = Moments(), Moments()
    for weight, moments in ((1.0, twice), (2.0, weighted)):
        moments.add(x[:100], y[:100])
        moments.add(x[100:], y[100:], weight)
    twice.add(x[100:], y[100:])
    for one, other in zip(twice.covariance(), weighted.covariance(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert twice.count == weighted.count == 500


def test_features_that_never_vary_are_left_out() -> None:
    x, y = pairs(500)
    x[:, 4], y[:, 0] = 7.0, 0.0
    moments = Moments()
    moments.add(x, y)
    maps = canonical_maps(moments, 3)
    for part in (*maps.query, *maps.place, maps.correlation):
        assert part.isfinite().all()
    assert not maps.query.weight[4].any()
    assert not maps.place.weight[0].any()
    constant = Moments()
    constant.add(torch.ones(5, 4), torch.ones(5, 4))
    assert not canonical_maps(constant, 2).query.weight.any()


def test_arguments() -> None:
    moments = Moments()
    with pytest.raises(ValueError, match="at least two pairs"):
        canonical_maps(moments, 1)
    with pytest.raises(ValueError, match="finite"):
        moments.add(torch.full((2, 3), torch.nan), torch.ones(2, 3))
    with pytest.raises(ValueError, match="y: expected"):
        moments.add(torch.ones(2, 3), torch.ones(3, 3))
    moments.add(torch.rand(4, 3), torch.rand(4, 2))
    with pytest.raises(ValueError, match="x: expected 3 features"):
        moments.add(torch.rand(4, 5), torch.rand(4, 2))
    with pytest.raises(ValueError, match="channels: expected from 1 to 2"):
        canonical_maps(moments, 3)
    with pytest.raises(ValueError, match="ridge"):
        canonical_maps(moments, 1, ridge=0)


def test_features_of_inference_mode_are_summed_in_any_number() -> None:
    """The sums are begun inside of inference mode and used outside of it, once there are more than wait."""
    x, y = torch.randn(3000, 4), torch.randn(3000, 3)
    plain, inferred = Moments(), Moments()
    plain.add(x, y)
    with torch.inference_mode():
        for begin in range(0, 3000, 250):
            inferred.add(1.0 * x[begin : begin + 250], 1.0 * y[begin : begin + 250])
    for found, expected in zip(inferred.covariance(), plain.covariance(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
