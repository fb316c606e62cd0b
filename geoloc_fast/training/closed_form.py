"""Linear maps fitted in closed form: what two kinds of features of the same thing have in common.

Features x of photos and y of places that show the same azimuth from the same standpoint are standardised, and canonical
correlation finds directions u, v with the correlations rho_1 >= rho_2 >= ... Scaled by sqrt(rho / (1 - rho^2)), the
product of both images is, for Gaussian features, the part of the log-likelihood ratio of "same" against "another" that
depends on both: directions count as much as they tell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LinearMap", "Maps", "Moments", "canonical_maps"]

_ROWS = 1024  # that wait to be summed up
_MOST = 0.999  # of a correlation: the scale stays finite


class LinearMap(NamedTuple):
    """x @ weight + bias"""

    weight: Tensor
    """float32 [D, C]"""
    bias: Tensor
    """float32 [C]"""


class Maps(NamedTuple):
    """Two linear maps into one space, in which pairs are correlated."""

    query: LinearMap
    place: LinearMap
    correlation: Tensor
    """float64 [C], descending: of the fit, ridge included."""


class Moments:
    """Sums over pairs (x, y) that stream by: one pass, memory for D x D numbers, parts can be added up."""

    def __init__(self) -> None:
        self.count = 0.0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []
        self._waiting: list[tuple[Tensor, Tensor, float]] = []

    def add(self, x: Tensor, y: Tensor, weight: float = 1.0) -> None:
        """Pairs x [n, Dx], y [n, Dy], each counted `weight` times."""
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
            raise ValueError(f"y: expected [n, D] with the n of x {list(x.shape)}, got {list(y.shape)}")
        if len(x) == 0:
            return
        if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
            raise ValueError("x: expected finite features, got NaN or infinity")
        x, y = x.float(), y.float()
        if self._origin is None:  # near the mean, so that float32 products lose nothing
            self._origin = x.mean(0), y.mean(0)
        for name, features, origin in zip("xy", (x, y), self._origin, strict=True):
            if features.shape[1] != len(origin):
                raise ValueError(f"{name}: expected {len(origin)} features as before, got {features.shape[1]}")
        self.count += weight * len(x)
        self._waiting.append((x - self._origin[0], y - self._origin[1], weight))
        if sum(len(part) for part, _, _ in self._waiting) >= _ROWS:
            self._sum_up()

    @torch.inference_mode(False)  # the sums go on outside of inference mode, whatever the features come from
    def _sum_up(self) -> None:
        """Adds what waits: the sums are large, and to go through them for every few rows takes longer than the
        products."""
        if not self._waiting or self._origin is None:
            return
        xs, ys, weights = zip(*self._waiting, strict=True)
        x, y = torch.cat(xs), torch.cat(ys)
        weight = torch.cat([torch.full((len(part), 1), value) for part, value in zip(xs, weights, strict=True)])
        wx, wy = weight * x, weight * y
        if not self._sums:
            dx, dy = (len(origin) for origin in self._origin)
            shapes = ((dx,), (dy,), (dx, dx), (dy, dy), (dx, dy))
            self._sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        for total, part in zip(self._sums, (wx.sum(0), wy.sum(0), x.T @ wx, y.T @ wy, wx.T @ y), strict=True):
            total.add_(part)
        self._waiting.clear()

    def covariance(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means [Dx], [Dy] and covariances [Dx, Dx], [Dy, Dy], [Dx, Dy], float64."""
        self._sum_up()
        if self._origin is None or self.count < 2:
            raise ValueError(f"moments: expected at least two pairs, got {self.count:g}")
        sx, sy, xx, yy, xy = (total / self.count for total in self._sums)
        return (
            self._origin[0] + sx,
            self._origin[1] + sy,
            xx - torch.outer(sx, sx),
            yy - torch.outer(sy, sy),
            xy - torch.outer(sx, sy),
        )


def canonical_maps(moments: Moments, channels: int, *, ridge: float = 0.5) -> Maps:
    """The maps of both sides to `channels` shared directions.

    Args:
        ridge: added to the variance 1 of every standardised feature; features that never vary are left out.
    """
    if not ridge > 0:
        raise ValueError(f"ridge: expected above 0, got {ridge}")
    mean_x, mean_y, xx, yy, xy = moments.covariance()
    if not 1 <= channels <= min(xy.shape):
        raise ValueError(
            f"channels: expected from 1 to {min(xy.shape)}, the features of the smaller side, got {channels}"
        )
    scale_x, scale_y = _scale(xx, mean_x), _scale(yy, mean_y)
    root_x, root_y = _root(xx, scale_x, ridge), _root(yy, scale_y, ridge)
    cross = torch.linalg.solve_triangular(root_x, scale_x[:, None] * xy * scale_y, upper=False)
    cross = torch.linalg.solve_triangular(root_y, cross.T, upper=False).T
    squared, left = torch.linalg.eigh(cross @ cross.T)
    rho = squared.flip(0)[:channels].clamp(0, _MOST**2).sqrt()
    left = left.flip(1)[:, :channels]
    right = (cross.T @ left) / rho.clamp(min=1e-9)
    gain = (rho / (1 - rho**2)).sqrt() * (rho > 1e-6)
    return Maps(
        _map(torch.linalg.solve_triangular(root_x.T, left * gain, upper=True), scale_x, mean_x),
        _map(torch.linalg.solve_triangular(root_y.T, right * gain, upper=True), scale_y, mean_y),
        rho,
    )


def _scale(covariance: Tensor, mean: Tensor) -> Tensor:
    """1 / deviation of each feature; 0 for one that does not vary but for rounding."""
    variance = covariance.diagonal()
    varies = variance > 1e-10 * (mean**2 + variance.clamp(min=0).mean())
    return torch.where(varies, variance.clamp(min=1e-30).rsqrt(), 0.0)


def _root(covariance: Tensor, scale: Tensor, ridge: float) -> Tensor:
    standard = scale[:, None] * covariance * scale
    standard.diagonal().add_(ridge)
    return torch.linalg.cholesky(standard)


def _map(directions: Tensor, scale: Tensor, mean: Tensor) -> LinearMap:
    weight = scale[:, None] * directions
    return LinearMap(weight.float(), (-mean @ weight).float())
