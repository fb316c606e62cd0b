"""Named families of tolerances, against a float64 reference. They are written here once and never loosened to pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """How far two numbers may lie apart: |a - b| <= absolute + relative |b|."""

    absolute: float
    relative: float


TOLERANCE = {
    # float32 sums of some hundred products of values near 1, and scores, which are in [-1, 1].
    "float32": Tolerance(2e-6, 2e-6),
    # One rounding of the result to the 16-bit type, on top of float32 work.
    "float16": Tolerance(1e-6, 2.0**-11 * 1.01),
    "bfloat16": Tolerance(1e-6, 2.0**-8 * 1.01),
    # Grey levels from a uint8 image: float outputs, and uint8 outputs with their rounding.
    "grey_float": Tolerance(0.5, 0.0),
    "grey_uint8": Tolerance(1.0, 0.0),
    # Gradients are longer sums than scores.
    "gradient": Tolerance(2e-5, 2e-5),
}


def assert_close(actual: Tensor, expected: Tensor, family: str) -> None:
    """Fails with the worst element, where it is, and what the family allows. NaN equals NaN only."""
    assert actual.shape == expected.shape, f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    tolerance = TOLERANCE[family]
    a, e = actual.detach().double(), expected.detach().double()
    allowed = tolerance.absolute + tolerance.relative * e.abs()
    same = (a == e) | (a.isnan() & e.isnan())
    excess = torch.where(same, 0.0, (a - e).abs() / allowed).nan_to_num(torch.inf)
    if excess.numel() and float(excess.max()) > 1:
        at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        wrong = int((excess > 1).sum())
        raise AssertionError(
            f"{family}: {wrong} of {excess.numel()} elements differ; worst at {at}: "
            f"expected {float(e[at])!r}, got {float(a[at])!r}, allowed difference {float(allowed[at]):.3g}"
        )
