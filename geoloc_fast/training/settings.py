"""Settings of a run: dataclasses that are filled from YAML files and name=value arguments; later ones override.

Settings that every run has are here. A recipe adds its own in dataclasses that extend these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["DataSettings", "RunSettings", "TrainSettings", "at_least", "deciding", "merged_settings"]


@dataclass
class DataSettings:
    """Where the data is. `train` and `evaluate` choose rows by column: value."""

    manifest: str = MISSING
    train: dict[str, str] = field(default_factory=dict)
    evaluate: dict[str, str] = field(default_factory=dict)
    workers: int = 0
    augment: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainSettings:
    """How long, how fast, and what is written when."""

    steps: int = 1000
    batch: int = 64  # over all processes
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 50  # steps
    clip: float = 1.0
    channels_last: bool = True
    device: str = "auto"
    log_every: int = 10
    save_every: int = 200
    evaluate_every: int = 500  # 0: never
    best: str = "recall_at_1"  # of an evaluation: what decides which model is the best

    def check(self) -> None:
        """ValueError that names the first setting that cannot be. A recipe calls it."""
        at_least(self, "train", 1, "steps", "batch", "log_every", "save_every")
        at_least(self, "train", 0, "warmup", "evaluate_every")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"train.lr: expected above 0, got {self.lr}")


@dataclass
class RunSettings:
    """What the trainer has to know of a run."""

    out: str = MISSING
    model: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


Kind = TypeVar("Kind", bound=RunSettings)


def at_least(settings: object, of: str, least: int, *names: str) -> None:
    """ValueError unless each of these is at least so much, and finite."""
    for name in names:
        if not least <= getattr(settings, name) < math.inf:
            raise ValueError(f"{of}.{name}: expected at least {least}, got {getattr(settings, name)}")


def merged_settings(sources: Sequence[str | dict[str, Any]], kind: type[Kind]) -> Kind:
    """Settings from YAML files, name=value and dictionaries; ValueError names what is wrong."""
    merged: Any = OmegaConf.structured(kind)
    for source in sources:
        try:
            if isinstance(source, dict):
                given: Any = OmegaConf.create(source)
            else:
                given = OmegaConf.from_dotlist([source]) if "=" in source else OmegaConf.load(source)
            for name in ("train", "evaluate"):  # a choice of rows replaces an earlier one
                if OmegaConf.select(given, f"data.{name}") is not None:
                    merged.data[name] = {}
            merged = OmegaConf.merge(merged, given)
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ValueError(f"{source}: {str(error).splitlines()[0]}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"{missing[0]}: expected a value, got none; give {missing[0]}=...")
    found: Any = OmegaConf.to_object(merged)
    made: Kind = found
    return made


def deciding(settings: RunSettings) -> dict[str, Any]:
    """The settings that what is learned depends on."""
    found = asdict(settings)
    del found["out"], found["data"]["workers"]
    for name in ("log_every", "save_every", "device"):
        del found["train"][name]
    return found
