"""Trains the network that makes street views from satellite images.

    python train/panogan.py train/configs/panogan_small.yaml data.manifest=cities/ out=runs/panogan
    python train/panogan.py ... data.train='{city: 00-harbour, split: train}' data.evaluate='{city: 00-harbour}'

One joint model, or one of a city by itself, as the main paper has it. It learns from places that have a satellite
image and, near it in space and time, a real street view of known heading. Settings, the files in `out`, `--resume`,
several processes and Ctrl-C are as in `geoloc.py`; beside them

    samples/epoch-0001.png   condition, made and real street view, made and real class map of a few held-out places,
                             after every epoch, if it evaluates

Every step moves the generator by what the judges say of its panoramas, of all passes, and by its distance from the
real ones; and the judges by how well they tell both apart. Both are computed with the weights as they were before it.
"""

from __future__ import annotations

import colorsys
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor

from geoloc_fast.data.availability import MAX_AGE_DAYS, real_street_views
from geoloc_fast.data.datasets import loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.street_views import StreetViewDataset, learnable
from geoloc_fast.evaluation.metrics import psnr, sharpness_difference, ssim
from geoloc_fast.files import write_atomically
from geoloc_fast.images.augment import Augmentation
from geoloc_fast.models.panogan.model import PanoGAN, PanoGANConfig, to_bytes, to_signed
from geoloc_fast.training.losses import adversarial
from geoloc_fast.training.sampling import PlaceBatches
from geoloc_fast.training.step import reduce_gradients, world
from geoloc_fast.training.trainer import Trainer as GeolocTrainer
from geoloc_fast.training.trainer import TrainSettings, check_training, load_region, merged_settings

_SAMPLES = 6
_MEASURES = {"psnr": psnr, "ssim": ssim, "sharpness_difference": sharpness_difference}
_CLASSES_RIGHT = "classes_right"


@dataclass
class DataSettings:
    manifest: str = MISSING
    train: dict[str, str] = field(default_factory=dict)  # column: value, of places; split is that of their photos
    evaluate: dict[str, str] = field(default_factory=dict)
    column0: str = "street_column0_deg"  # the places' column that says where their panoramas begin
    max_distance_m: float = 3.0  # of a street view from its place
    max_age_days: int = MAX_AGE_DAYS  # between satellite image and street view
    workers: int = 0
    augment: dict[str, Any] = field(default_factory=dict)


@dataclass
class StepSettings:
    seed: int = 0
    bf16: bool = True
    l1: float = 100.0  # weight of the distance from the real panorama, and from the real class map
    adversarial: float = 1.0  # weight of what the judges say
    real: float = 0.9  # what judges are to say of real patches


@dataclass
class PanoGANTrainSettings(TrainSettings):
    batch: int = 8
    lr: float = 2e-4
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float = 1e6
    best: str = "ssim"


@dataclass
class Settings:
    out: str = MISSING
    model: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    step: StepSettings = field(default_factory=StepSettings)
    train: PanoGANTrainSettings = field(default_factory=PanoGANTrainSettings)


# -- data --------------------------------------------------------------------------------------


def chosen(manifest: Manifest, where: dict[str, str], data: DataSettings) -> Manifest:
    """The places to learn from whose columns have these values; photos are not needed.

    A real street view that a synthetic one stands in for is learned from too.
    """
    # Nothing is learned of a place without a satellite image, which may be left without any image here.
    places = real_street_views(manifest.places.filter(manifest.places["satellite"].is_valid()))
    if data.column0 != "street_column0_deg":
        if data.column0 not in places.column_names:
            raise ValueError(f"data.column0: expected a column of the places, got {data.column0!r}")
        at = places.schema.get_field_index("street_column0_deg")
        places = places.set_column(at, "street_column0_deg", places[data.column0].cast(pa.float64()))
        at = places.schema.get_field_index("calibration_column0_deg")  # a measured one would come before it
        places = places.set_column(at, "calibration_column0_deg", pa.nulls(len(places), pa.float64()))
    for name, value in where.items():
        if name == "split":
            photos = manifest.photos.filter(pc.equal(manifest.photos["split"], value))
            places = places.filter(pc.is_in(places["id"], value_set=photos["place"].combine_chunks().unique()))
        elif name in places.column_names:
            places = places.filter(pc.equal(pc.cast(places[name], "string"), value))
        else:
            raise ValueError(f"data: expected split or a column of the places, got {name!r}")
    found = learnable(
        manifest.replace(places=places, photos=manifest.photos.slice(0, 0)),
        max_distance_m=data.max_distance_m,
        max_age_days=data.max_age_days,
    )
    if not len(found):
        raise ValueError(
            f"data: expected places with {where} that have a satellite image and, near it in space and time, a real "
            f"street view of known heading, got none of {len(manifest.places)}"
        )
    return manifest.replace(places=found, photos=manifest.photos.slice(0, 0))


def mapped(manifest: Manifest, classes: int, name: str) -> tuple[Manifest, int]:
    """The places that have a class map; of `data.train` all of them, and no classes, if none has."""
    places = manifest.places
    if not classes:
        return manifest, 0
    if "classes" not in places.column_names or places["classes"].null_count == len(places):
        if name != "data.train":
            raise ValueError(f"{name}: expected places with class maps, as those of data.train, got none")
        print("train: no place has a class map; training without class maps", file=sys.stderr)
        return manifest, 0
    without = places["classes"].null_count
    if without:
        print(f"train: {without} of {len(places)} places have no class map and are left out", file=sys.stderr)
    return manifest.replace(places=places.filter(places["classes"].is_valid())), classes


def street_views(manifest: Manifest, config: PanoGANConfig, settings: Settings, *, learn: bool) -> StreetViewDataset:
    try:
        augment = Augmentation(**settings.data.augment)
    except TypeError as error:
        raise ValueError(f"data.augment: expected settings of Augmentation, got {error}") from error
    return StreetViewDataset(
        manifest,
        image_size=config.image_size,
        satellite_size=config.satellite_size,
        extent_m=config.extent_m,
        column0_deg=config.column0_deg,
        classes=config.classes,
        quarter_turns=config.condition == "rotations",
        augment=augment if learn else None,
        seed=settings.step.seed,
    )


def signed_classes(classes: Tensor, count: int) -> Tensor:
    """uint8 [B, 1, H, W] as [B, count, H, W]: 1 for the class of a pixel, -1 for all others."""
    return 2.0 * (classes == torch.arange(count, device=classes.device)[:, None, None]).float() - 1


# -- one step ----------------------------------------------------------------------------------


def gradients(model: PanoGAN, batch: dict[str, Any], how: StepSettings) -> dict[str, float]:
    """Sets the gradients of the whole batch (of all processes) and returns what is worth logging.

    `batch` holds `condition`, `panorama` and, for a model with classes, `classes`, all in [-1, 1].
    """
    model.train()
    model.zero_grad(set_to_none=True)
    condition, real, classes = batch["condition"], batch["panorama"], batch.get("classes")
    judges = [p for judge in model.judges for p in judge.parameters()]
    makers = list(model.generator.parameters())
    zero = torch.zeros((), device=condition.device)
    numbers = {"image": zero, "classes": zero, "fooled": zero, "judges": zero}

    with torch.autocast(condition.device.type, torch.bfloat16, enabled=how.bf16):
        made = model.passes(condition, judge_last=True)
        total = zero
        for one in made:
            fooled = torch.stack([adversarial(scores, 1.0) for scores in model.scores(one.features)]).sum()
            image = F.l1_loss(one.image, real)
            total = total + how.adversarial * fooled + how.l1 * image
            parts = {"image": image, "fooled": fooled}
            if one.classes is not None and classes is not None:
                parts["classes"] = F.l1_loss(one.classes, classes)
                total = total + how.l1 * parts["classes"]
            for name, value in parts.items():
                numbers[name] = numbers[name] + value.detach() / len(made)
        total = total / len(made)
    for p, grad in zip(makers, torch.autograd.grad(total, makers), strict=True):
        p.grad = grad

    with torch.autocast(condition.device.type, torch.bfloat16, enabled=how.bf16):
        seen = model.scores(model.judge(real, classes, condition))
        right = torch.stack([adversarial(scores, how.real) for scores in seen]).sum()
        for one in made:
            shown = None if one.classes is None else one.classes.detach()
            seen = model.scores(model.judge(one.image.detach(), shown, condition))
            right = right + torch.stack([adversarial(scores, 0.0) for scores in seen]).sum() / len(made)
        right = right / 2
    for p, grad in zip(judges, torch.autograd.grad(right, judges), strict=True):
        p.grad = grad
    numbers |= {"judges": right.detach(), "loss": total.detach()}

    processes = world()[1]
    if processes > 1:  # every loss is a mean over samples
        for p in [*makers, *judges]:
            p.grad = None if p.grad is None else p.grad / processes
        reduce_gradients([*makers, *judges])
        flat = torch.stack([value.float() for value in numbers.values()]) / processes
        dist.all_reduce(flat)
        numbers = dict(zip(numbers, flat, strict=True))
    return {name: float(value) for name, value in numbers.items()}


# -- looking at it -----------------------------------------------------------------------------


def colours(count: int) -> np.ndarray:
    """uint8 [256, 3]: one of each class, evenly round the circle; black beyond."""
    table = np.zeros((256, 3), np.uint8)
    for n in range(count):
        table[n] = np.round(255 * np.array(colorsys.hsv_to_rgb(n / count, 0.6, 0.55 + 0.4 * (n % 2))))
    return table


def sample_sheet(images: list[dict[str, np.ndarray]]) -> np.ndarray:
    """One row a place, the images of it side by side, each uint8 [H, W, 3]; titles are the names."""
    rows = []
    for n, row in enumerate(images):
        shown = list(row.values())
        gap = np.full((shown[0].shape[0], 6, 3), 250, np.uint8)
        line = np.concatenate([part for image in shown for part in (image, gap)][:-1], axis=1)
        if n == 0:
            title = np.full((24, line.shape[1], 3), 250, np.uint8)
            for at, name in enumerate(row):
                where = (at * (shown[0].shape[1] + 6) + 4, 17)
                cv2.putText(title, name, where, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
            rows.append(title)
        rows += [line, np.full((6, line.shape[1], 3), 250, np.uint8)]
    return np.concatenate(rows[:-1])


def _pixels(image: Tensor) -> np.ndarray:
    return to_bytes(image).permute(1, 2, 0).cpu().numpy()


# -- training ----------------------------------------------------------------------------------


class Trainer(GeolocTrainer):
    """A run like that of `geoloc.py` with another network, other data and another step."""

    shown = ("loss", "image", "judges")

    def __init__(self, settings: Settings, *, resume: bool = False) -> None:
        self._place(settings)
        how = settings.train
        manifest = load_region(settings.data.manifest)
        try:
            config = PanoGANConfig(**settings.model)
        except TypeError as error:
            raise ValueError(f"model: expected settings of PanoGANConfig, got {error}") from error
        training = chosen(manifest, settings.data.train or {"split": "train"}, settings.data)
        training, classes = mapped(training, config.classes, "data.train")
        if classes != config.classes:
            config = PanoGANConfig(**{**settings.model, "classes": classes})
        if how.evaluate_every and how.best == _CLASSES_RIGHT and not classes:
            raise ValueError(f"train.best: expected {', '.join(_MEASURES)} without class maps, got {how.best!r}")
        self.training = training
        self.pairs = street_views(training, config, settings, learn=True)  # type: ignore[assignment]
        self.views = None
        if how.evaluate_every:
            held_out = chosen(manifest, settings.data.evaluate or {"split": "val"}, settings.data)
            held_out, _ = mapped(held_out, classes, "data.evaluate")
            self.views = street_views(held_out, config, settings, learn=False)
            self.held_out = held_out
        else:
            self.held_out = None

        torch.manual_seed(settings.step.seed)
        self.model = PanoGAN(config).to(self.device)  # type: ignore[assignment]
        if how.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=how.lr, weight_decay=how.weight_decay, betas=(0.5, 0.999)
        )
        self.sampler = PlaceBatches(
            np.arange(len(training.places)), how.batch, seed=settings.step.seed, rank=self.rank, world=self.processes
        )
        self._begin(resume)
        self.drawn = self.sampler.epoch

    def _rate(self) -> float:
        """Even for the first half, then straight to 0."""
        how = self.settings.train
        return how.lr * min(1.0, (self.step + 1) / max(1, how.warmup), 2 * (1 - self.step / how.steps))

    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        on = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        condition = self.model.condition(on["satellite"], turn_deg=on["turn_deg"], mirrored=on["mirrored"])
        done = {"condition": condition, "panorama": to_signed(on["panorama"]), "place_id": on["place_id"]}
        if self.model.config.classes:
            done["classes"] = signed_classes(on["classes"], self.model.config.classes)
        if self.settings.train.channels_last:
            done |= {
                name: value.contiguous(memory_format=torch.channels_last)
                for name, value in done.items()
                if isinstance(value, Tensor)
            }
        return done

    def _gradients(self, batch: dict[str, Any]) -> dict[str, float]:
        if self.drawn != self.sampler.epoch:
            self.draw()
        return gradients(self.model, batch, self.settings.step)

    def run(self) -> None:
        super().run()
        self.sampler.epoch += 1
        self.draw()

    def draw(self) -> None:
        """The sample sheet of the epochs that are over."""
        self.drawn = self.sampler.epoch
        if self.rank != 0 or self.views is None:
            return
        sheet = sample_sheet(self.samples(_SAMPLES))
        done, content = cv2.imencode(".png", sheet[:, :, ::-1])
        if done:
            folder = self.out / "samples"
            folder.mkdir(exist_ok=True)
            write_atomically(folder / f"epoch-{self.drawn:04d}.png", content.tobytes())

    @torch.inference_mode()
    def _made(self) -> Iterator[tuple[dict[str, Any], Tensor, Tensor | None]]:
        """Batches of the held-out places, with the panoramas and class maps made of them."""
        assert self.views is not None
        training = self.model.training
        self.model.eval()
        try:
            for batch in loader(self.views, self.settings.train.batch):
                batch = self._finished(batch)
                last = self.model.passes(batch["condition"])[-1]
                yield batch, last.image, last.classes
        finally:
            self.model.train(training)

    def samples(self, count: int) -> list[dict[str, np.ndarray]]:
        table = colours(self.model.config.classes)
        rows: list[dict[str, np.ndarray]] = []
        for batch, images, classes in self._made():
            for n, image in enumerate(images):
                row = {"satellite": _pixels(batch["condition"][n]), "made": _pixels(image)}
                row["real"] = _pixels(batch["panorama"][n])
                if classes is not None:
                    row["classes made"] = table[classes[n].argmax(0).cpu().numpy()]
                    row["classes real"] = table[batch["classes"][n].argmax(0).cpu().numpy()]
                rows.append(row)
                if len(rows) == count:
                    return rows
        return rows

    def _evaluate(self, log: Any, bar: Any) -> None:
        if self.rank == 0:
            sums: dict[str, float] = {}
            for batch, images, classes in self._made():
                pair = to_bytes(images), to_bytes(batch["panorama"])
                values = {name: measure(*pair) for name, measure in _MEASURES.items()}
                if classes is not None:
                    values[_CLASSES_RIGHT] = (classes.argmax(1) == batch["classes"].argmax(1)).double().mean((1, 2))
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value.sum())
            found = {name: value / len(self.held_out.places) for name, value in sums.items()}
            log.write({"step": self.step, "evaluation": found})
            bar.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
            if found[self.settings.train.best] > self.best:
                self.best = found[self.settings.train.best]
                self.model.save(self.out / "best.safetensors")
        if self.processes > 1:
            dist.barrier()


def read_settings(sources: list[str]) -> Settings:
    settings: Settings = merged_settings(sources, Settings)
    how, step = settings.train, settings.step
    check_training(how)
    for name in ("hard", "decay", "fresh", "similar_after", "similar_every"):  # they would do nothing
        plain = getattr(TrainSettings, name)
        if getattr(how, name) != plain:
            raise ValueError(f"train.{name}: expected {plain} here, got {getattr(how, name)}")
    if how.best not in (*_MEASURES, _CLASSES_RIGHT):
        raise ValueError(f"train.best: expected {', '.join((*_MEASURES, _CLASSES_RIGHT))}, got {how.best!r}")
    for name in ("l1", "adversarial"):
        if not 0 <= getattr(step, name) < math.inf:
            raise ValueError(f"step.{name}: expected at least 0, got {getattr(step, name)}")
    if not 0 < step.real <= 1:
        raise ValueError(f"step.real: expected above 0, at most 1, got {step.real}")
    return settings


def run(settings: list[str], resume: bool) -> None:
    Trainer(read_settings(settings), resume=resume).run()
