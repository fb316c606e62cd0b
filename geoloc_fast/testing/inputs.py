"""Inputs for tests and benchmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geoloc_fast import _native


def available_isas() -> list[str]:
    """Instruction sets whose CPU kernels can run here, narrowest first."""
    if _native.native_cpu is None:
        return []
    return [name for name, problem in _native.native_cpu.isas().items() if not problem]


def random_strips(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Strips of unit norm, as an encoder makes them."""
    generator = torch.Generator().manual_seed(seed)
    strips = torch.randn(shape, generator=generator, dtype=torch.float64)
    norm = strips.flatten(1).norm(dim=1).clamp_min(1e-30) if strips.numel() else strips.new_ones(shape[0])
    return (strips / norm[:, None, None, None]).to(dtype)


def arrow_image(heading_deg: float, size: int, spread_deg: float = 20.0) -> Tensor:
    """[1, 3, size, size], north up: a wedge of light from the middle towards `heading_deg`, on black.

    Brightness falls off as a Gaussian of the angle to the heading, so that its centroid is the heading.
    """
    position = torch.arange(size, dtype=torch.float64) - size / 2
    east, south = position[None, :], position[:, None]
    azimuth = torch.atan2(east, -south) * (180 / math.pi)
    away = (azimuth - heading_deg + 180.0) % 360.0 - 180.0
    light = torch.exp(-0.5 * (away / spread_deg) ** 2)
    return light.expand(1, 3, size, size).float().contiguous()
