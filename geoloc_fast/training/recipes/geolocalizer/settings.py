"""Settings of the geolocalizer's training, beside those of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from geoloc_fast.evaluation.protocol import HEADING_DEG, RADII_M, heading_key
from geoloc_fast.training.recipes.geolocalizer.street_choice import STREET, VIEWS
from geoloc_fast.training.settings import DataSettings as EveryDataSettings
from geoloc_fast.training.settings import RunSettings, at_least, merged_settings
from geoloc_fast.training.settings import TrainSettings as EveryTrainSettings

__all__ = ["KINDS", "DataSettings", "LossSettings", "Settings", "StepSettings", "TrainSettings", "read_settings"]

BEST = (
    *(f"recall_at_{k}" for k in ("1", "5", "10", "1_percent")),
    *(f"recall_at_1_within_{radius:g}_m" for radius in RADII_M),
    *(heading_key(limit) for limit in HEADING_DEG),
)
KINDS = ("info_nce", "decoupled", "triplet", "soft_margin_triplet")
SELECT = ("gumbel", "correlation", "cosine", "fixed")  # fixed: the middle of every strip, without matching


@dataclass
class LossSettings:
    """Which losses, and their weights."""

    kind: str = "info_nce"
    label_smoothing: float = 0.0
    symmetric: bool = True
    margin: float = 0.3  # of "triplet"
    sharpness: float = 10.0  # of "soft_margin_triplet"
    learn_temperature: bool = True
    select: str = "gumbel"
    heading: float = 1.0  # weight: the photo's window must be where its heading says
    agreement: float = 0.3  # weight: the two sources of a place must agree as they lie
    cuts: float = 0.0  # weight: cuts of the street view must find their satellite image, and where they lie in it
    alone: float = 0.0  # weight: each source by itself must answer photos too, with place and heading
    threshold_m: float = 25.0  # nearer places are not negatives

    def check(self) -> None:
        at_least(self, "loss", 0, "heading", "agreement", "cuts", "alone")
        for name, allowed in (("kind", KINDS), ("select", SELECT)):
            if (got := getattr(self, name)) not in allowed:
                raise ValueError(f"loss.{name}: expected one of {', '.join(allowed)}, got {got!r}")


@dataclass
class StepSettings:
    """What one step does."""

    seed: int = 0
    chunk: int = 0  # pairs a process encodes at once; 0 is all of them
    bf16: bool = True
    without_panorama: float = 0.2  # share of places whose panorama is left out
    without_satellite: float = 0.0  # share of places with a panorama whose satellite image is left out
    loss: LossSettings = field(default_factory=LossSettings)

    def check(self) -> None:
        at_least(self, "step", 0, "chunk")
        for name in ("without_panorama", "without_satellite"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"step.{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        self.loss.check()


@dataclass
class DataSettings(EveryDataSettings):
    """`train` and `evaluate` choose photos; without any: split train, and split val. What a place is shown as is
    settings of the model: `satellite_px`, `range_m`, `border`."""

    field_of_view: str = "assumed"  # or "known", or, in memory, "mixed": batches of either; prepared photos have theirs
    views: str = "given"  # which street views there are: see `street_choice`
    street: str = "known"  # how they lie: see there; others than known train in memory
    in_memory: bool = False  # decode everything once; a pair at 64 x 256 takes 100 KB
    cut: float = 0.0  # in memory: the largest share of a photo's columns to cut off
    crop_fov_deg: float | None = None  # photos that go all the way round are cut to this angle, in memory once for all
    search_fov_deg: list[float] = field(default_factory=list)  # evaluation also tries each of these

    def check(self) -> None:
        fields_of_view = ("assumed", "known", *(("mixed",) if self.in_memory else ()))
        for name, allowed in (("street", STREET), ("views", VIEWS), ("field_of_view", fields_of_view)):
            if (got := getattr(self, name)) not in allowed:
                more = f" with in_memory={self.in_memory}" if name == "field_of_view" else ""
                raise ValueError(f"data.{name}: expected one of {allowed}{more}, got {got!r}")
        for name, plain in (("cut", 0.0), ("street", "known")):
            if (got := getattr(self, name)) != plain and not self.in_memory:
                raise ValueError(f"data.{name}: expected {plain!r} without data.in_memory, got {got!r}")


@dataclass
class TrainSettings(EveryTrainSettings):
    """How the steps of a run follow one another."""

    fresh: float = 1.0  # beside `pretrained`: times the rate, for the parts it does not set
    decay: int = 0  # the rate is constant and falls to 0 in this many last steps; 0: a cosine over all steps
    hard: int = 0  # negatives that follow each pair of a batch
    similar_after: int = 1  # epochs of neighbours on the ground before those of similar strips
    similar_every: int = 4  # epochs; 0 keeps the neighbours on the ground

    def check(self) -> None:
        super().check()
        at_least(self, "train", 0, "decay", "hard", "similar_after", "similar_every")
        if not 0 < self.fresh < float("inf"):
            raise ValueError(f"train.fresh: expected above 0, got {self.fresh}")
        if self.best not in BEST:
            raise ValueError(f"train.best: expected one of {', '.join(BEST)}, got {self.best!r}")


@dataclass
class Settings(RunSettings):
    """All settings of a run, with their defaults."""

    pretrained: str | None = None  # backbones of a timm model's file, encoders of a bundle; "timm" downloads
    start: str | None = None  # a bundle of the same network, all of whose weights are gone on with
    data: DataSettings = field(default_factory=DataSettings)
    step: StepSettings = field(default_factory=StepSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def read_settings(sources: Sequence[str | dict[str, Any]]) -> Settings:
    """From YAML files, name=value and dictionaries, later ones winning."""
    settings = merged_settings(sources, Settings)
    settings.step.check()
    settings.train.check()
    settings.data.check()
    return settings
