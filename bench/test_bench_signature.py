"""tile_signature on satellite tiles of 256 x 256: the counted form against the reference, which is the plain torch."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc_fast import tile_signature
from geoloc_fast.testing import force_backend, observe_calls

BATCH, SIDE = 64, 256


@cache
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(BATCH, 3, 16, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear")
    return (255 * (0.7 * smooth + 0.3 * torch.rand(BATCH, 3, SIDE, SIDE, generator=generator))).to(torch.uint8)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_signature(benchmark: Any, backend: str) -> None:
    with force_backend(backend), observe_calls() as calls:
        got = benchmark(tile_signature, images())
        with force_backend("reference"):
            exact = tile_signature(images().double() / 255)
    assert calls[0] == ("tile_signature", backend, "")
    benchmark.extra_info["tiles"] = BATCH
    benchmark.extra_info["error"] = max(float((a - e).abs().max()) for a, e in zip(got, exact, strict=True))
    assert benchmark.extra_info["error"] < 1e-4
