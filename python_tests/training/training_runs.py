"""What the tests of training share: a tiny network, a batch, the settings of a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.training.recipes.geolocalizer import GeolocalizerRecipe, Settings, read_settings
from geoloc_fast.training.recipes.geolocalizer import step as steps
from geoloc_fast.training.recipes.geolocalizer.settings import LossSettings, StepSettings
from geoloc_fast.training.trainer import Trainer

__all__ = ["LossSettings", "StepSettings", "steps"]

NETWORK: dict[str, Any] = {
    "backbone": "convnext_atto",
    "backbone_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 32], "ls_init_value": None},
    "image_size": [32, 128],
    "strip": [8, 2, 8],
    "satellite_px": 64,
}


def network(**kwargs: Any) -> Geolocalizer:
    torch.manual_seed(0)
    model = Geolocalizer(GeolocalizerConfig(**{**NETWORK, "backbone_kwargs": {**NETWORK["backbone_kwargs"], **kwargs}}))
    with torch.no_grad():  # a fresh network hardly looks at its image
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model


def some_batch(count: int, part: slice = slice(None)) -> dict[str, Any]:
    """Pairs like those of `finish`, two of them within 25 m, some without heading, panorama or satellite image."""
    generator = torch.Generator().manual_seed(1)

    def images(columns: int) -> Tensor:
        return torch.randn(count, 3, 32, columns, generator=generator)

    row = torch.arange(count)
    lat = 48 + 1e-3 * row.double()
    lat[1] = lat[0] + 1e-4
    heading = torch.rand(count, generator=generator, dtype=torch.float64) * 360
    heading[3] = float("nan")
    batch = {
        "photo": images(44),
        "photo_width": 28 + 2 * (row % 9),
        "polar": images(128),
        "panorama": images(128),
        "has_satellite": row != 2,
        "has_panorama": row % 5 != 4,
        "heading_known": row != 5,
        "heading_deg": heading,
        "turn_deg": 45.0 * row.double(),
        "photo_lat": lat,
        "photo_lon": torch.full((count,), 11.0, dtype=torch.float64),
        "place_lat": lat,
        "place_lon": torch.full((count,), 11.0, dtype=torch.float64),
        "place_row": row,
        "photo_row": row,
    }
    return {name: value[part] for name, value in batch.items()}


def settings(**given: Any) -> StepSettings:
    return StepSettings(bf16=False, **given)


def gradients(model: Geolocalizer, how: StepSettings, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    numbers = steps.gradients(model, batch, how, step=7, epoch=2)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), numbers


def assert_same(one: Tensor, two: Tensor, tolerance: float = 1e-4) -> None:
    assert one.shape == two.shape
    assert float((one - two).norm()) < tolerance * float(one.norm())


def given(region: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.manifest={region}",
        f"out={out}",
        f"model={json.dumps(NETWORK)}",
        "data.train={split: train}",
        "data.evaluate={split: train}",
        "step.bf16=false",
        "train.device=cpu",
        "train.batch=8",
        "train.log_every=1",
        "train.evaluate_every=0",
        *more,
    ]


def configured(region: Path, out: Path, *more: str) -> Settings:
    return read_settings(given(region, out, *more))


def trainer(region: Path, out: Path, *more: str, resume: bool = False) -> Trainer:
    return Trainer(GeolocalizerRecipe(configured(region, out, *more)), resume=resume)


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
