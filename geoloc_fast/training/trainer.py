"""Trains the geolocalizer on the pairs of a manifest.

    python train/geoloc.py train/configs/small.yaml data.manifest=cities/ out=runs/small
    torchrun --nproc-per-node 8 train/geoloc.py train/configs/base.yaml data.manifest=ready/ out=runs/base

Settings come from YAML files and from name=value, later ones winning; one that does not exist is an error. The folder
`out` is given

    config.yaml            all settings
    log.jsonl              a line for every logged step and every evaluation
    last.safetensors       everything that is needed to go on: weights, optimiser, neighbours, position
    best.safetensors       the model with the best evaluation, as `Geolocalizer.load` takes it
    model.safetensors      the model of the last step
    tensorboard/           the same numbers, if tensorboard is installed

all of them complete or not at all. `--resume` goes on where `last.safetensors` stands, with the same losses as if
nothing had happened; with `train.decay` also to another last step, as long as the rate has not begun to fall. Ctrl-C
finishes the step, saves and ends with exit code 130. A loss that is not finite writes
the batch's ids to not_finite.<process>.json and stops; what was saved stays as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from tqdm import tqdm

from geoloc_fast import StripBank
from geoloc_fast.data.datasets import PairDataset, PhotoDataset, PlaceDataset, assign_places, finish, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import TrainingStopped
from geoloc_fast.evaluation.protocol import HEADING_DEG, RADII_M, PhotoBatch, measure, table
from geoloc_fast.files import write_atomically
from geoloc_fast.images.augment import Augmentation
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig, PhotoStrips
from geoloc_fast.ops.choose import force_backend
from geoloc_fast.polar import polar_resample
from geoloc_fast.training.memory import PairsInMemory
from geoloc_fast.training.sampling import PlaceBatches, most_similar, nearest_on_ground
from geoloc_fast.training.step import StepSettings, fixed_window, gradients, strip_widths, world
from geoloc_fast.training.street_choice import STREET, VIEWS, chosen_street, chosen_views

_FORMAT = "geoloc_fast.training.2"
_ENCODE_BATCH = 64
_LONGEST_EVALUATION = timedelta(hours=2)  # process 0 evaluates, the others wait
BEST = (
    *(f"recall_at_{k}" for k in ("1", "5", "10", "1_percent")),
    *(f"recall_at_1_within_{radius:g}_m" for radius in RADII_M),
    *(f"heading_within_{limit:g}_deg" for limit in HEADING_DEG),
)


@dataclass
class DataSettings:
    manifest: str = MISSING
    train: dict[str, str] = field(default_factory=dict)  # column: value, of photos; without any split: train
    evaluate: dict[str, str] = field(default_factory=dict)  # without any split: val
    satellite_size: int = 256
    extent_m: float | None = None
    field_of_view: str = "assumed"  # or "known", or, in memory, "mixed": batches of either
    views: str = "given"  # which street views there are: see `street.py`
    street: str = "known"  # how they lie: see there; others than known train in memory
    in_memory: bool = False  # decode everything once; a pair at 64 x 256 takes 100 KB
    cut: float = 0.0  # in memory: the largest share of a photo's columns to cut off
    crop_fov_deg: float | None = None  # photos that go all the way round are cut to this angle, in memory once for all
    search_fov_deg: list[float] = field(default_factory=list)  # evaluation also tries each of these
    workers: int = 0
    augment: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainSettings:
    steps: int = 1000
    batch: int = 64  # over all processes
    lr: float = 1e-3
    fresh: float = 1.0  # beside `pretrained`: times the rate, for the parts it does not set
    weight_decay: float = 0.05
    warmup: int = 50  # steps
    decay: int = 0  # the rate is constant and falls to 0 in this many last steps; 0: a cosine over all steps
    clip: float = 1.0
    channels_last: bool = True
    device: str = "auto"
    hard: int = 0  # negatives that follow each pair of a batch
    similar_after: int = 1  # epochs of neighbours on the ground before those of similar strips
    similar_every: int = 4  # epochs; 0 keeps the neighbours on the ground
    log_every: int = 10
    save_every: int = 200
    evaluate_every: int = 500
    best: str = "recall_at_1"


@dataclass
class Settings:
    out: str = MISSING
    model: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None  # backbones of a timm model's file, encoders of a bundle; "timm" downloads
    start: str | None = None  # a bundle of the same network, all of whose weights are gone on with
    data: DataSettings = field(default_factory=DataSettings)
    step: StepSettings = field(default_factory=StepSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def merged_settings(sources: Sequence[str | dict[str, Any]], kind: Any) -> Any:
    """The dataclass `kind` from YAML files, name=value and dictionaries; ValueError names what is wrong."""
    merged: Any = OmegaConf.structured(kind)
    for source in sources:
        try:
            if isinstance(source, dict):
                given: Any = OmegaConf.create(source)
            else:
                given = OmegaConf.from_dotlist([source]) if "=" in source else OmegaConf.load(source)
            for name in ("train", "evaluate"):  # a choice of photos replaces an earlier one
                if OmegaConf.select(given, f"data.{name}") is not None:
                    merged.data[name] = {}
            merged = OmegaConf.merge(merged, given)
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ValueError(f"{source}: {str(error).splitlines()[0]}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"{missing[0]}: expected a value, got none; give {missing[0]}=...")
    return OmegaConf.to_object(merged)


def check_training(how: TrainSettings) -> None:
    for name in ("steps", "batch", "log_every", "save_every"):
        if getattr(how, name) < 1:
            raise ValueError(f"train.{name}: expected at least 1, got {getattr(how, name)}")
    for name in ("warmup", "decay", "hard", "similar_after", "similar_every", "evaluate_every"):
        if getattr(how, name) < 0:
            raise ValueError(f"train.{name}: expected at least 0, got {getattr(how, name)}")
    for name in ("lr", "fresh"):
        if not 0 < getattr(how, name) < math.inf:
            raise ValueError(f"train.{name}: expected above 0, got {getattr(how, name)}")


def read_settings(sources: Sequence[str | dict[str, Any]]) -> Settings:
    settings: Settings = merged_settings(sources, Settings)
    settings.step.check()
    check_training(settings.train)
    if settings.train.best not in BEST:
        raise ValueError(f"train.best: expected one of {', '.join(BEST)}, got {settings.train.best!r}")
    for name, allowed in (("street", STREET), ("views", VIEWS)):
        if (got := getattr(settings.data, name)) not in allowed:
            raise ValueError(f"data.{name}: expected one of {allowed}, got {got!r}")
    for name, plain in (("cut", 0.0), ("street", "known")):
        if getattr(settings.data, name) != plain and not settings.data.in_memory:
            got = getattr(settings.data, name)
            raise ValueError(f"data.{name}: expected {plain!r} without data.in_memory, got {got!r}")
    allowed = ("assumed", "known", "mixed") if settings.data.in_memory else ("assumed", "known")
    if settings.data.field_of_view not in allowed:
        raise ValueError(
            f"data.field_of_view: expected one of {allowed} with in_memory={settings.data.in_memory}, "
            f"got {settings.data.field_of_view!r}"
        )
    return settings


def deciding(settings: Any) -> dict[str, Any]:
    """The settings that what is learned depends on."""
    found = asdict(settings)
    del found["out"], found["data"]["workers"]
    for name in ("log_every", "save_every", "device"):
        del found["train"][name]
    return found


# -- data --------------------------------------------------------------------------------------


def load_region(folder: str | Path, threshold_m: float = 25.0) -> Manifest:
    """The manifest, every photo of known position with its place."""
    manifest = Manifest.load(folder)
    return assign_places(manifest, threshold_m) if manifest.has_positions else manifest


def chosen(manifest: Manifest, where: dict[str, str]) -> Manifest:
    """Photos whose columns have these values, their places and those of their cities."""
    photos, places = manifest.photos, manifest.places
    for name, value in where.items():
        if name not in photos.column_names:
            raise ValueError(f"data: expected a column of the photos, got {name!r}; there are {photos.column_names}")
        photos = photos.filter(pc.equal(pc.cast(photos[name], "string"), value))
    if not len(photos):
        raise ValueError(f"data: expected photos with {where}, got none of {len(manifest.photos)}")
    cities = set(photos["city"].to_pylist())
    if "" not in cities:  # a photo of an unknown city may be anywhere, and so may a place
        in_city = pc.is_in(places["city"], value_set=pa.array([*cities, ""], "string"))
        places = places.filter(pc.or_(in_city, pc.is_in(places["id"], value_set=pc.unique(photos["place"]))))
    return manifest.replace(places=places, photos=photos)


def own_places(manifest: Manifest) -> np.ndarray:
    """Of every photo the row of its place, -1 where it has none."""
    rows = pc.index_in(manifest.photos["place"], value_set=manifest.places["id"].combine_chunks())
    return np.asarray(pc.if_else(manifest.photos["place"].is_valid(), pc.fill_null(rows, -1), -1), np.int64)


def prepared(manifest: Manifest) -> bool:
    """Whether photos were reprojected by `prepare`: with which field of view was decided there."""
    photos = manifest.photos
    return "projection" in photos.column_names and photos["projection"].null_count < len(photos)


def pairs_of(manifest: Manifest, settings: Settings, config: GeolocalizerConfig) -> PairDataset | PairsInMemory:
    data = settings.data
    try:
        augment = Augmentation(**data.augment)
    except TypeError as error:
        raise ValueError(f"data.augment: expected settings of Augmentation, got {error}") from error
    shared: dict[str, Any] = {
        "panorama_size": config.image_size,
        "augment": None if data.in_memory else augment,
        "seed": settings.step.seed,
    }
    places = PlaceDataset(
        manifest,
        satellite_size=data.satellite_size,
        extent_m=data.extent_m,
        column0_deg=config.column0_deg,
        **shared,
    )
    how = {"assumed": [False], "known": [True], "mixed": [False, True]}[data.field_of_view]
    if prepared(manifest):
        if data.field_of_view == "mixed":
            raise ValueError("data.field_of_view: expected assumed or known for photos that are prepared, got 'mixed'")
        how = [True]
    readings = [
        PhotoDataset(
            manifest,
            assumed_fov_deg=config.assumed_fov_deg,
            use_fov=known,
            crop_fov_deg=data.crop_fov_deg,
            **shared,
        )
        for known in how
    ]
    pairs = PairDataset(readings[0], places)
    if not len(pairs):
        raise ValueError("data: expected photos with a place, got none")
    if data.in_memory:
        return PairsInMemory(
            pairs,
            readings,
            augment,
            street=data.street,
            cut=data.cut,
            seed=settings.step.seed,
            workers=data.workers,
        )
    return pairs


# -- evaluation --------------------------------------------------------------------------------


def place_batches(
    manifest: Manifest, config: GeolocalizerConfig, data: DataSettings, device: torch.device
) -> Iterator[dict[str, Any]]:
    places = PlaceDataset(
        manifest,
        satellite_size=data.satellite_size,
        panorama_size=config.image_size,
        extent_m=data.extent_m,
        column0_deg=config.column0_deg,
    )
    for batch in loader(places, _ENCODE_BATCH, workers=data.workers):
        if data.street != "known":
            batch["panorama"], batch["has_panorama"], batch["heading_known"] = chosen_street(
                data.street,
                batch["panorama"],
                polar_resample(
                    batch["satellite"], config.image_size, column0_deg=config.column0_deg, border="replicate"
                ),
                has_panorama=batch["has_panorama"],
                has_satellite=batch["has_satellite"],
                heading_known=batch["heading_known"],
                column0_deg=config.column0_deg,
            )
        yield finish(batch, device)


@torch.inference_mode()
def encode_places(model: Geolocalizer, batches: Iterable[dict[str, Any]], *, window: str = "best") -> StripBank:
    strips = []
    for batch in batches:
        known = batch["has_panorama"] & batch["heading_known"]
        strips.append(
            model.encode_place(
                batch["polar"], batch["panorama"], has_satellite=batch["has_satellite"], has_panorama=known
            )
        )
    whole = torch.cat(strips)
    if window == "fixed":
        config = model.config
        columns = config.assumed_fov_deg / 360 * config.image_size[1]
        width = strip_widths(model, torch.tensor([round(columns)]))
        whole = fixed_window(whole, int(width))
    return StripBank.pack(whole, column0_deg=model.config.column0_deg)


@torch.inference_mode()
def photo_batches(
    model: Geolocalizer,
    manifest: Manifest,
    data: DataSettings,
    device: torch.device,
    *,
    known: bool = False,
    tried_deg: Sequence[float] = (),
    window: str = "best",
) -> Iterator[PhotoBatch]:
    """The field of view `known`, or tried at several angles, or the one the model assumes."""
    config = model.config
    readings = [
        loader(
            PhotoDataset(
                manifest,
                panorama_size=config.image_size,
                assumed_fov_deg=fov_deg,
                use_fov=known,
                crop_fov_deg=data.crop_fov_deg,
            ),
            _ENCODE_BATCH,
            workers=data.workers,
        )
        for fov_deg in tried_deg or (config.assumed_fov_deg,)
    ]
    groups = [name for name in ("city", "street_view") if name in manifest.photos.column_names]
    labels = {name: manifest.photos[name].to_pylist() for name in groups}
    place = own_places(manifest)
    for batches in zip(*readings, strict=True):
        finished = [finish(batch, device) for batch in batches]
        first = finished[0]
        strips = [model.encode_photo(batch["photo"], batch["photo_width"]) for batch in finished]
        if window == "fixed":
            strips = [PhotoStrips(fixed_window(one, one.shape[3]), torch.ones_like(width)) for one, width in strips]
        yield PhotoBatch(
            strips,
            first["photo_lat"].cpu().numpy(),
            first["photo_lon"].cpu().numpy(),
            first["heading_deg"].cpu().numpy(),
            {name: [str(label[int(row)]) for row in first["photo_row"]] for name, label in labels.items()},
            place[first["photo_row"].cpu().numpy()],
        )


def evaluate(
    model: Geolocalizer, manifest: Manifest, data: DataSettings, device: torch.device, *, window: str = "best"
) -> dict[str, Any]:
    """All chosen photos against all places of their cities, the field of view assumed, known, and searched for; of
    prepared photos the one they were prepared with.
    `window`: of each place the best one, or "fixed", the middle of every strip."""
    training = model.training
    model.eval()
    try:
        bank = encode_places(model, place_batches(manifest, model.config, data, device), window=window)
        lat, lon = (manifest.places[name].to_numpy() for name in ("lat", "lon"))
        ways: dict[str, dict[str, Any]] = {"assumed": {}, "known": {"known": True}}
        if prepared(manifest):
            ways = {"as prepared": {"known": True}}
        elif data.search_fov_deg:
            ways["search"] = {"tried_deg": data.search_fov_deg}
        if window == "fixed":
            ways.pop("known", None)  # no one window fits photos of many widths
        return {
            name: measure(photo_batches(model, manifest, data, device, window=window, **how), bank, lat, lon).metrics()
            for name, how in ways.items()
        }
    finally:
        model.train(training)


@torch.inference_mode()
def similar_places(
    model: Geolocalizer,
    manifest: Manifest,
    pairs: PairDataset | PairsInMemory,
    settings: Settings,
    device: torch.device,
    count: int,
) -> np.ndarray:
    """Which places the photos of each place are taken for by the model as it is now."""
    model.eval()
    lat, lon = (manifest.places[name].to_numpy() for name in ("lat", "lon"))
    if isinstance(pairs, PairsInMemory):
        bank = encode_places(model, pairs.all_places(_ENCODE_BATCH, device))
        photos = (model.encode_photo(b["photo"], b["photo_width"]) for b in pairs.all_photos(_ENCODE_BATCH, device))
    else:
        bank = encode_places(model, place_batches(manifest, model.config, settings.data, device))
        known = settings.data.field_of_view == "known" or prepared(manifest)
        batches = photo_batches(model, manifest, settings.data, device, known=known)
        photos = (PhotoStrips(*batch.readings[0]) for batch in batches)
    own = own_places(manifest)
    found = np.full((len(bank), count), -1, np.int64)
    begin = 0
    for strips, width in photos:
        place = own[begin : begin + len(strips)]
        begin += len(strips)
        keep = torch.from_numpy(place >= 0)
        part = most_similar(
            strips[keep.to(strips.device)],
            bank,
            place[place >= 0],
            lat,
            lon,
            count,
            query_width=width[keep.to(width.device)],
            beyond_m=settings.step.loss.threshold_m,
        )
        found = np.where((part >= 0).any(axis=1, keepdims=True), part, found)
    return found


# -- training ----------------------------------------------------------------------------------


def _groups(model: Geolocalizer, settings: Settings) -> list[dict[str, Any]]:
    """The optimiser's groups: matrices decay, the rest does not; what `pretrained` does not set has its own rate."""
    how = settings.train
    trained = [".network.backbone."] + [".network.head."] * model.encoder.head_pretrained
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        fresh = settings.pretrained is not None and not any(part in name for part in trained)
        groups.setdefault((fresh, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": how.weight_decay * key[1], "times": how.fresh if key[0] else 1.0}
        for key in ((False, True), (False, False), (True, True), (True, False))
        if key in groups
    ]


class Trainer:
    """One run. The position in it is (step, epoch, batch); all randomness is drawn from seed and position."""

    shown: tuple[str, ...] = ("loss", "true_window", "right")  # beside the bar

    def __init__(self, settings: Settings, *, resume: bool = False) -> None:
        self._place(settings)
        how = settings.train
        try:
            config = GeolocalizerConfig(**settings.model)
        except TypeError as error:
            raise ValueError(f"model: expected settings of GeolocalizerConfig, got {error}") from error
        manifest = load_region(settings.data.manifest, settings.step.loss.threshold_m)
        manifest = chosen_views(manifest, settings.data.views)
        self.training = chosen(manifest, settings.data.train or {"split": "train"})
        self.held_out = None
        if how.evaluate_every:
            self.held_out = chosen(manifest, settings.data.evaluate or {"split": "val"})
        self.pairs = pairs_of(self.training, settings, config)
        if self.rank == 0:
            self._say_what_is_special()

        torch.manual_seed(settings.step.seed)
        try:
            self.model = _first_model(settings, config).to(self.device)
        except (OSError, ValueError):
            raise
        except Exception as error:  # timm's, of any kind: no such network, no such argument, too few stages
            raise ValueError(
                f"model: expected a network that can be built, got {type(error).__name__}: {error}"
            ) from error
        if how.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(_groups(self.model, settings), lr=how.lr, betas=(0.9, 0.98))
        lat, lon = (self.training.places[name].to_numpy() for name in ("lat", "lon"))
        self.sampler = PlaceBatches(
            self.pairs.place_rows,
            how.batch,
            hard=how.hard,
            seed=settings.step.seed,
            rank=self.rank,
            world=self.processes,
        )
        self.neighbour_count = min(8 * how.hard, len(lat) - 1)
        if how.hard:
            self.sampler.neighbours = nearest_on_ground(
                lat, lon, self.neighbour_count, beyond_m=settings.step.loss.threshold_m
            )
        self.window = "fixed" if settings.step.loss.select == "fixed" else "best"
        self._begin(resume)

    def _say_what_is_special(self) -> None:
        places = self.training.places
        there = len(places) - pc.and_(places["street"].is_null(), places["street_views"].is_null()).to_pylist().count(
            True
        )
        if made := len(places) - places["street_synthetic"].null_count:
            print(f"train: {made} of {there} street views are synthetic", file=sys.stderr)
        if prepared(self.training):
            print("train: photos have the field of view that they were prepared with", file=sys.stderr)

    def _place(self, settings: Any) -> None:
        """Where this process is among others, on which device, and where it writes."""
        self.settings = settings
        self.rank, self.processes = world()
        self.out = Path(settings.out)
        name = settings.train.device
        name = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        local = int(os.environ.get("LOCAL_RANK", 0))
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        name = f"cuda:{local}" if name == "cuda" else name
        if name not in there:
            raise ValueError(f"train.device: expected auto, or one of {there}, got {settings.train.device!r}")
        self.device = torch.device(name)

    def _begin(self, resume: bool) -> None:
        """At the start, or where the checkpoint stands."""
        self.step, self.best = 0, -math.inf
        self.seconds = 0.0  # of training and evaluation, over all parts of the run
        self.following = 0  # where the batch after this one starts: what a run goes on with
        self.sums: dict[str, list[float]] = {}  # sum and count of what the next line of the log is the mean
        self.due = False  # an evaluation that Ctrl-C came before
        self.stop = False
        last = self.out / "last.safetensors"
        if resume:
            self._load(last)
        elif last.exists():
            raise FileExistsError(f"out: {last} is there already; add --resume to go on, or choose another folder")
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.settings)))
            _cut_log(self.out / "log.jsonl", self.step, due=self.due)

    def _rate(self) -> float:
        how = self.settings.train
        if self.step < how.warmup:
            return how.lr * (self.step + 1) / how.warmup
        if how.decay:
            return how.lr * min(max((how.steps - self.step) / how.decay, 1e-3), 1.0)
        done = (self.step - how.warmup) / max(1, how.steps - how.warmup)
        return how.lr * max(0.5 * (1 + math.cos(math.pi * done)), 1e-3)

    def _batches(self) -> Iterator[dict[str, Any]]:
        """From where the run stands to its end, epoch after epoch."""
        how = self.settings.train
        batches: Iterable[Any] = self.sampler
        if not isinstance(self.pairs, PairsInMemory):
            batches = loader(self.pairs, how.batch, workers=self.settings.data.workers, batches=self.sampler)
        while True:
            if not isinstance(self.pairs, PairsInMemory):
                self.pairs.set_epoch(self.sampler.epoch)
            for batch in batches:
                self.following = self.sampler.start + 1
                if isinstance(self.pairs, PairsInMemory):
                    place = self.sampler.epoch, self.sampler.start
                    yield self.pairs.batch(batch, place, self.device)
                else:
                    yield self._finished(batch)
                self.sampler.start += 1
            self.sampler.epoch += 1
            self.sampler.start = 0
            since = self.sampler.epoch - how.similar_after
            if how.hard and how.similar_every and since >= 0 and since % how.similar_every == 0:
                found = similar_places(
                    self.model, self.training, self.pairs, self.settings, self.device, self.neighbour_count
                )
                if self.processes > 1:  # norms over the batch differ from process to process
                    everyones = torch.from_numpy(found).to(self.device)
                    dist.broadcast(everyones, 0)
                    found = everyones.cpu().numpy()
                self.sampler.neighbours = found

    def run(self) -> None:
        """Trains to the last step. KeyboardInterrupt after SIGINT, with everything saved."""
        how, sums = self.settings.train, self.sums
        began = time.perf_counter() - self.seconds
        with _Log(self.out, self.rank, self.step) as log, self._interruptible():
            bar = tqdm(total=how.steps, initial=self.step, unit="step", disable=None if self.rank == 0 else True)
            source = self._batches()
            with contextlib.closing(bar), contextlib.closing(source):
                if self.due:
                    self._evaluate(log, bar)
                    self.due = False
                    self.seconds = time.perf_counter() - began
                    self.save()
                while self.step < how.steps:
                    batch = next(source)
                    numbers = self._one_step(batch)
                    # The batch counts as done: a run that goes on begins with the next one.
                    self.step += 1
                    bar.update(1)
                    bar.set_postfix({k: f"{numbers[k]:.3f}" for k in self.shown})
                    for name, value in numbers.items():
                        if math.isfinite(value):  # true_window is not, in a batch without headings
                            total, count = sums.get(name, (0.0, 0))
                            sums[name] = [total + value, count + 1]
                    stopping = self._anyone_stops()
                    last = self.step == how.steps
                    self.seconds = time.perf_counter() - began
                    if self.step % how.log_every == 0 or last:
                        means = {name: total / count for name, (total, count) in sums.items()}
                        log.write(
                            {"step": self.step, "epoch": self.sampler.epoch, "seconds": round(self.seconds, 1), **means}
                        )
                        sums.clear()
                    if self.held_out is not None and (self.step % how.evaluate_every == 0 or last):
                        if stopping:
                            self.due = True
                        else:
                            self._evaluate(log, bar)
                            self.seconds = time.perf_counter() - began
                    if self.step % how.save_every == 0 or last or stopping:
                        self.save()
                    if stopping:
                        raise KeyboardInterrupt
            if self.rank == 0:
                self.model.save(self.out / "model.safetensors")

    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        return finish(batch, self.device)

    def _gradients(self, batch: dict[str, Any]) -> dict[str, float]:
        return gradients(self.model, batch, self.settings.step, step=self.step, epoch=self.sampler.epoch)

    def _one_step(self, batch: dict[str, Any]) -> dict[str, float]:
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("times", 1.0)
        numbers = self._gradients(batch)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.train.clip))
        # The same in every process, so that all stop together.
        if not (math.isfinite(numbers["loss"]) and math.isfinite(norm)):
            ids = {"step": self.step, "loss": str(numbers["loss"]), "gradient_norm": str(norm)}
            ids |= {name: batch[name] for name in ("photo_id", "place_id") if name in batch}
            path = self.out / f"not_finite.{self.rank}.json"
            write_atomically(path, json.dumps(ids, indent=1))
            raise TrainingStopped(
                f"the loss is {numbers['loss']} and the gradient's norm {norm} at step {self.step}; the "
                f"batch's ids are in {path}, the last checkpoint is as it was"
            )
        self.optimiser.step()
        return {**numbers, "gradient_norm": norm, "lr": rate}

    def _evaluate(self, log: _Log, bar: Any) -> None:
        if self.rank == 0 and self.held_out is not None:
            found = evaluate(self.model, self.held_out, self.settings.data, self.device, window=self.window)
            way, first = next(iter(found.items()))
            value = first.get(self.settings.train.best)  # None: of headings, while no place is right
            log.write({"step": self.step, "evaluation": found})
            bar.write(f"step {self.step}, field of view {way}: {table(first)}")
            if value is not None and value > self.best:
                self.best = value
                self.model.save(self.out / "best.safetensors")
        if self.processes > 1:
            dist.barrier()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after its step; a second one at once."""

        def note(number: int, frame: Any) -> None:
            self.stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            before = signal.signal(signal.SIGINT, note)
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _anyone_stops(self) -> bool:
        if self.processes == 1:
            return self.stop
        flag = torch.tensor(float(self.stop), device=self.device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    # -- checkpoints -------------------------------------------------------------------------------

    def _same_run(self) -> str:
        """What must not change between the parts of a run."""
        return json.dumps(deciding(self.settings), sort_keys=True, default=list)

    def save(self) -> None:
        if self.rank != 0:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{name}.{key}"] = value
        if self.sampler.neighbours is not None:
            tensors["neighbours"] = torch.from_numpy(self.sampler.neighbours)
        position = {
            "step": self.step,
            "epoch": self.sampler.epoch,
            "start": self.following,
            "seconds": self.seconds,
            "best": self.best,
            "sums": self.sums,
            "due": self.due,
        }
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"format": _FORMAT, "position": json.dumps(position), "settings": self._same_run()}
        metadata["sha256"] = _digest(whole, metadata)
        write_atomically(self.out / "last.safetensors", safetensors.torch.save(whole, metadata))

    def _load(self, path: Path) -> None:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: expected a checkpoint, got {error}") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path}: expected a checkpoint of training, got {metadata.get('format')}")
        if metadata.pop("sha256", None) != _digest(tensors, metadata):
            raise ValueError(f"{path}: expected what training wrote, got something else; the file is damaged")
        theirs, ours = json.loads(metadata["settings"]), json.loads(self._same_run())
        decay, ends = self.settings.train.decay, (theirs["train"]["steps"], ours["train"]["steps"])
        if decay and json.loads(metadata["position"])["step"] <= min(ends) - decay:
            theirs["train"]["steps"] = ours["train"]["steps"]  # nothing depends on the end before the rate falls
        if theirs != ours:
            changed = _first_difference(theirs, ours)
            raise ValueError(f"{path}: expected the settings it was made with, got another {changed}")
        self.model.load_state_dict({n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            prefix = f"optimiser.{name}."
            state = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
            if state:
                self.optimiser.state[parameter] = {
                    key: value if key == "step" else value.to(parameter) for key, value in state.items()
                }
        if "neighbours" in tensors:
            self.sampler.neighbours = tensors["neighbours"].numpy()
        position = json.loads(metadata["position"])
        self.step, self.best = position["step"], position["best"]
        self.sums, self.due = position["sums"], position["due"]
        self.sampler.epoch = position["epoch"]
        self.sampler.start = self.following = position["start"]
        self.seconds = position["seconds"]


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _first_model(settings: Settings, config: GeolocalizerConfig) -> Geolocalizer:
    if settings.start is None:
        pretrained: str | bool = settings.pretrained or False
        return Geolocalizer(config, pretrained=True if pretrained == "timm" else pretrained)
    if settings.pretrained is not None:
        raise ValueError(f"pretrained: expected none beside start, got {settings.pretrained}")
    model = Geolocalizer.load(settings.start)
    if model.config != config:
        theirs, ours = (json.loads(one.to_json()) for one in (model.config, config))
        raise ValueError(f"start: expected a model of these settings, got one with {_first_difference(theirs, ours)}")
    model.fingerprint = None
    return model


def _first_difference(a: Any, b: Any, name: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                return _first_difference(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))
    return f"{name}: {a!r} and now {b!r}"


def _cut_log(path: Path, step: int, *, due: bool) -> None:
    """Without what came after the checkpoint that a run goes on from, its evaluation if that is still due, or after a
    line that was not finished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            found = json.loads(line)
            if found["step"] < step or (found["step"] == step and not (due and "evaluation" in found)):
                kept.append(line)
        except ValueError:
            break
    write_atomically(path, "".join(kept))


class _Log:
    """log.jsonl, and TensorBoard where it is installed. Only process 0 writes."""

    def __init__(self, out: Path, rank: int, step: int) -> None:
        self.file = (out / "log.jsonl").open("a") if rank == 0 else None
        self.board: Any = None
        if rank == 0:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                # What an interrupted run wrote after its checkpoint does not count.
                self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in _flat(line):
                self.board.add_scalar(name, value, line["step"])

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()


def _flat(values: dict[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("by", "interval"):
            yield from _flat(value, f"{name}{key}/")
        elif isinstance(value, int | float):
            yield name + key, value


def run(settings: list[str], resume: bool) -> None:
    Trainer(read_settings(settings), resume=resume).run()


def main(about: str = str(__doc__), train: Callable[[list[str], bool], None] = run) -> int:
    """A training script: its arguments, processes and exit codes."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("settings", nargs="+", help="YAML files and name=value")
    parser.add_argument("--resume", action="store_true", help="go on from out/last.safetensors")
    parser.add_argument("--ops", choices=("fast", "reference"), default="fast", help="which operators")
    arguments = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_LONGEST_EVALUATION)
    operators = force_backend("reference") if arguments.ops == "reference" else contextlib.nullcontext()
    try:
        with operators:
            train(arguments.settings, arguments.resume)
    except KeyboardInterrupt:
        print("stopped; --resume goes on from here", file=sys.stderr)
        return 130
    except (OSError, ValueError, TrainingStopped) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
