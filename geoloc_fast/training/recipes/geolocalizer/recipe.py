"""The geolocalizer as a recipe of `Trainer`: pairs of photos and places, the step of `step`, rank of the true place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.data.datasets import finish, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.protocol import table
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.training.checkpoint import first_difference
from geoloc_fast.training.distributed import device_of, of_process_0, world
from geoloc_fast.training.recipe import Evaluation
from geoloc_fast.training.recipes.geolocalizer.data import pairs_of, say_what_is_special
from geoloc_fast.training.recipes.geolocalizer.evaluate import evaluate, similar_places
from geoloc_fast.training.recipes.geolocalizer.memory import PairsInMemory
from geoloc_fast.training.recipes.geolocalizer.settings import Settings, read_settings
from geoloc_fast.training.recipes.geolocalizer.step import gradients
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_views
from geoloc_fast.training.region import chosen, load_region
from geoloc_fast.training.sampling import PlaceBatches, nearest_on_ground

__all__ = ["GeolocalizerRecipe", "evaluate_model", "make_recipe"]


class GeolocalizerRecipe:
    """How the paper's network is trained: strips of photos against strips of places."""

    shown: tuple[str, ...] = ("loss", "true_window", "right")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = device_of(settings.train.device)
        how = settings.train
        config = config_of(settings)
        manifest = region_of(settings)
        self.training = chosen(manifest, settings.data.train or {"split": "train"})
        self.held_out = held_out_of(manifest, settings) if how.evaluate_every else None
        self.pairs = pairs_of(self.training, settings, config)
        rank, processes = world()
        if rank == 0:
            say_what_is_special(self.training)

        torch.manual_seed(settings.step.seed)
        try:
            self.model = first_model(settings, config).to(self.device)
        except (OSError, ValueError):
            raise
        except Exception as error:  # timm's, of any kind: no such network, no such argument, too few stages
            raise ValueError(
                f"model: expected a network that can be built, got {type(error).__name__}: {error}"
            ) from error
        if how.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            groups(self.model, settings), lr=how.lr, betas=(0.9, 0.98)
        )
        lat, lon = (self.training.places[name].to_numpy() for name in ("lat", "lon"))
        self.sampler = PlaceBatches(
            self.pairs.place_rows, how.batch, hard=how.hard, seed=settings.step.seed, rank=rank, world=processes
        )
        self._loader = None
        if not isinstance(self.pairs, PairsInMemory):
            self._loader = loader(self.pairs, how.batch, workers=settings.data.workers, batches=self.sampler)
        self._neighbours = min(8 * how.hard, len(lat) - 1)
        if how.hard:
            self.sampler.neighbours = nearest_on_ground(
                lat, lon, self._neighbours, beyond_m=settings.step.loss.threshold_m
            )

    def rate(self, step: int, steps: int) -> float:
        """It rises over `warmup`, and falls over the last `decay` steps, or like a cosine over all."""
        how = self.settings.train
        if step < how.warmup:
            return how.lr * (step + 1) / how.warmup
        if how.decay:
            return how.lr * min(max((steps - step) / how.decay, 1e-3), 1.0)
        done = (step - how.warmup) / max(1, steps - how.warmup)
        return how.lr * max(0.5 * (1 + math.cos(math.pi * done)), 1e-3)

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        self.sampler.epoch, self.sampler.start = epoch, start
        if isinstance(self.pairs, PairsInMemory):
            for number, rows in enumerate(self.sampler, start):
                yield self.pairs.batch(rows, (epoch, number), self.device)
        elif self._loader is not None:
            self.pairs.set_epoch(epoch)
            for batch in self._loader:
                yield finish(batch, self.device, border=self.model.config.border)

    def epoch_begins(self, epoch: int) -> None:
        """From `similar_after` on, every `similar_every` epochs, negatives are what the model confuses."""
        how = self.settings.train
        since = epoch - how.similar_after
        if how.hard and how.similar_every and since >= 0 and since % how.similar_every == 0:
            found = similar_places(self.model, self.training, self.pairs, self.settings, self.device, self._neighbours)
            # Norms over the batch differ from process to process.
            self.sampler.neighbours = of_process_0(found, self.device)

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        return gradients(self.model, batch, self.settings.step, step=step, epoch=epoch)

    def evaluate(self, step: int) -> Evaluation:
        if self.held_out is None:
            raise ValueError("train.evaluate_every: expected more than 0 to evaluate, got 0")
        return measured(self.model, self.held_out, self.settings, self.device)

    def state(self) -> dict[str, Tensor]:
        neighbours = self.sampler.neighbours
        return {} if neighbours is None else {"neighbours": torch.from_numpy(neighbours)}

    def restore(self, state: dict[str, Tensor]) -> None:
        if "neighbours" in state:
            self.sampler.neighbours = state["neighbours"].numpy()

    def save_model(self, path: Path) -> None:
        self.model.save(path)


def make_recipe(sources: Sequence[str | dict[str, Any]]) -> GeolocalizerRecipe:
    """A run as the settings say, ready to train."""
    return GeolocalizerRecipe(read_settings(sources))


def evaluate_model(sources: Sequence[str | dict[str, Any]], path: Path) -> Evaluation:
    """Of the model at `path`, on what `data.evaluate` chooses."""
    settings = read_settings(sources)
    device = device_of(settings.train.device)
    model = Geolocalizer.load(path).to(device)
    return measured(model, held_out_of(region_of(settings), settings), settings, device)


def measured(model: Geolocalizer, held_out: Manifest, settings: Settings, device: torch.device) -> Evaluation:
    """`train.best` and the text are of the first way of reading photos, the field of view assumed."""
    found = evaluate(model, held_out, settings.data, device, window=window_of(settings))
    way, first = next(iter(found.items()))
    return Evaluation(found, first.get(settings.train.best), f"field of view {way}: {table(first)}")


def window_of(settings: Settings) -> str:
    """How photos are matched: each place's "best" window, or the "fixed" one that a loss without matching learns."""
    return "fixed" if settings.step.loss.select == "fixed" else "best"


def region_of(settings: Settings) -> Manifest:
    """The manifest, with the street views that `data.views` wants."""
    return chosen_views(load_region(settings.data.manifest, settings.step.loss.threshold_m), settings.data.views)


def held_out_of(manifest: Manifest, settings: Settings) -> Manifest:
    return chosen(manifest, settings.data.evaluate or {"split": "val"})


def config_of(settings: Settings) -> GeolocalizerConfig:
    """That of `model`; trained on the folder of the manifest, unless it says something else."""
    try:
        return GeolocalizerConfig(**{"trained_on": Path(settings.data.manifest).resolve().name, **settings.model})
    except TypeError as error:
        raise ValueError(f"model: expected settings of GeolocalizerConfig, got {error}") from error


def first_model(settings: Settings, config: GeolocalizerConfig) -> Geolocalizer:
    """Fresh, or with the weights that `pretrained` or `start` names."""
    if settings.start is None:
        pretrained: str | bool = settings.pretrained or False
        return Geolocalizer(config, pretrained=True if pretrained == "timm" else pretrained)
    if settings.pretrained is not None:
        raise ValueError(f"pretrained: expected none beside start, got {settings.pretrained}")
    model = Geolocalizer.load(settings.start)
    theirs = replace(model.config, name=config.name, trained_on=config.trained_on)
    if theirs != config:
        theirs, ours = (json.loads(one.to_json()) for one in (theirs, config))
        raise ValueError(f"start: expected a model of these settings, got one with {first_difference(theirs, ours)}")
    model.config, model.fingerprint = config, None
    return model


def groups(model: Geolocalizer, settings: Settings) -> list[dict[str, Any]]:
    """The optimiser's groups: matrices decay, the rest does not; what `pretrained` does not set has its own rate."""
    how = settings.train
    trained = [".network.backbone."] + [".network.head."] * model.encoder.head_pretrained
    found: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        fresh = settings.pretrained is not None and not any(part in name for part in trained)
        found.setdefault((fresh, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": found[key], "weight_decay": how.weight_decay * key[1], "times": how.fresh if key[0] else 1.0}
        for key in ((False, True), (False, False), (True, True), (True, False))
        if key in found
    ]
