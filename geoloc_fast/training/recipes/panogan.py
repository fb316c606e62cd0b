"""PanoGAN as a recipe of `Trainer`: a network that makes street views from satellite images.

    python train/panogan.py train/configs/panogan_small.yaml data.manifest=cities/ out=runs/panogan
    python train/panogan.py ... data.train='{city: 00-harbour, split: train}' data.evaluate='{city: 00-harbour}'

One joint model, or one of a city by itself, as the main paper has it. It learns from places that have a satellite
image and, near it in space and time, a real street view of known heading. Beside what every run writes `out` is given

    samples/step-000500.png  condition, made and real street view, made and real class map of a few held-out places,
                             with every evaluation

Every step moves the generator by what the discriminators say of its panoramas, of all passes, and by its distance
from the real ones; and the discriminators by how well they tell both apart. Both are computed with the weights as
they were before it.
"""

from __future__ import annotations

import colorsys
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast.data.availability import MAX_AGE_DAYS, real_street_views
from geoloc_fast.data.datasets import loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.street_views import StreetViewDataset, learnable
from geoloc_fast.evaluation.metrics import psnr, sharpness_difference, ssim
from geoloc_fast.files import write_atomically
from geoloc_fast.images.augment import Augmentation
from geoloc_fast.models.panogan.model import PanoGAN, PanoGANConfig, to_bytes, to_signed
from geoloc_fast.training.distributed import device_of, reduce_gradients, summed, world
from geoloc_fast.training.losses import adversarial
from geoloc_fast.training.recipe import Evaluation
from geoloc_fast.training.region import load_region, places_where
from geoloc_fast.training.sampling import PlaceBatches
from geoloc_fast.training.settings import DataSettings as EveryDataSettings
from geoloc_fast.training.settings import RunSettings, TrainSettings, at_least, merged_settings

__all__ = ["PanoGANRecipe", "Settings", "evaluate_model", "make_recipe", "read_settings"]

_SAMPLES = 6
_MEASURES = {"psnr": psnr, "ssim": ssim, "sharpness_difference": sharpness_difference}
_CLASSES_RIGHT = "classes_right"


@dataclass
class DataSettings(EveryDataSettings):
    """`train` and `evaluate` choose places; the column split is that of their photos."""

    column0: str = "street_column0_deg"  # the places' column that says where their panoramas begin
    max_distance_m: float = 3.0  # of a street view from its place
    max_age_days: int = MAX_AGE_DAYS  # between satellite image and street view


@dataclass
class StepSettings:
    seed: int = 0
    bf16: bool = True
    l1: float = 100.0  # weight of the distance from the real panorama, and from the real class map
    adversarial: float = 1.0  # weight of what the discriminators say
    real: float = 0.9  # what discriminators are to say of real patches

    def check(self) -> None:
        at_least(self, "step", 0, "l1", "adversarial")
        if not 0 < self.real <= 1:
            raise ValueError(f"step.real: expected above 0, at most 1, got {self.real}")


@dataclass
class PanoGANTrainSettings(TrainSettings):
    batch: int = 8
    lr: float = 2e-4
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float = 1e6
    best: str = "ssim"

    def check(self) -> None:
        super().check()
        if self.best not in (*_MEASURES, _CLASSES_RIGHT):
            raise ValueError(f"train.best: expected {', '.join((*_MEASURES, _CLASSES_RIGHT))}, got {self.best!r}")


@dataclass
class Settings(RunSettings):
    """All settings of a run, with their defaults."""

    data: DataSettings = field(default_factory=DataSettings)
    step: StepSettings = field(default_factory=StepSettings)
    train: PanoGANTrainSettings = field(default_factory=PanoGANTrainSettings)


def read_settings(sources: Sequence[str | dict[str, Any]]) -> Settings:
    """From YAML files, name=value and dictionaries, later ones winning."""
    settings = merged_settings(sources, Settings)
    settings.train.check()
    settings.step.check()
    return settings


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
    found = learnable(
        manifest.replace(places=places_where(manifest, places, where), photos=manifest.photos.slice(0, 0)),
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
    discriminators = [p for discriminator in model.discriminators for p in discriminator.parameters()]
    makers = list(model.generator.parameters())
    zero = torch.zeros((), device=condition.device)
    numbers = {"image": zero, "classes": zero, "fooled": zero, "discriminators": zero}

    with torch.autocast(condition.device.type, torch.bfloat16, enabled=how.bf16):
        made = model.passes(condition, discriminator_last=True)
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
        seen = model.scores(model.discriminator(real, classes, condition))
        right = torch.stack([adversarial(scores, how.real) for scores in seen]).sum()
        for one in made:
            shown = None if one.classes is None else one.classes.detach()
            seen = model.scores(model.discriminator(one.image.detach(), shown, condition))
            right = right + torch.stack([adversarial(scores, 0.0) for scores in seen]).sum() / len(made)
        right = right / 2
    for p, grad in zip(discriminators, torch.autograd.grad(right, discriminators), strict=True):
        p.grad = grad
    numbers |= {"discriminators": right.detach(), "loss": total.detach()}

    processes = world()[1]
    if processes > 1:  # every loss is a mean over samples
        for p in [*makers, *discriminators]:
            p.grad = None if p.grad is None else p.grad / processes
        reduce_gradients([*makers, *discriminators])
        numbers = {name: value / processes for name, value in summed(numbers).items()}
    return {name: float(value) for name, value in numbers.items()}


# -- looking at it -----------------------------------------------------------------------------


def colours(count: int) -> np.ndarray:
    """uint8 [256, 3]: one of each class, evenly round the circle; black beyond."""
    table = np.zeros((256, 3), np.uint8)
    for n in range(count):
        table[n] = np.round(255 * np.array(colorsys.hsv_to_rgb(n / count, 0.6, 0.55 + 0.4 * (n % 2))))
    return table


def sample_sheet(images: list[dict[str, np.ndarray]]) -> np.ndarray:
    """One row per place, the images of it side by side, each uint8 [H, W, 3]; titles are the names."""
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


# -- the recipe --------------------------------------------------------------------------------


class PanoGANRecipe:
    """How street views are learned from satellite images: a generator against discriminators."""

    shown: tuple[str, ...] = ("loss", "image", "discriminators")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = device_of(settings.train.device)
        how = settings.train
        manifest = load_region(settings.data.manifest)
        config = config_of(settings)
        training = chosen(manifest, settings.data.train or {"split": "train"}, settings.data)
        training, classes = mapped(training, config.classes, "data.train")
        if classes != config.classes:
            config = replace(config, classes=classes)
        if how.evaluate_every and how.best == _CLASSES_RIGHT and not classes:
            raise ValueError(f"train.best: expected {', '.join(_MEASURES)} without class maps, got {how.best!r}")
        self.views = street_views(training, config, settings, learn=True)
        self.held_out = held_out_of(manifest, config, settings) if how.evaluate_every else None

        torch.manual_seed(settings.step.seed)
        self.model = PanoGAN(config).to(self.device)
        if how.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=how.lr, weight_decay=how.weight_decay, betas=(0.5, 0.999)
        )
        rank, processes = world()
        self.sampler = PlaceBatches(
            np.arange(len(training.places)), how.batch, seed=settings.step.seed, rank=rank, world=processes
        )
        self._loader = loader(self.views, how.batch, workers=settings.data.workers, batches=self.sampler)

    def rate(self, step: int, steps: int) -> float:
        """Even for the first half, then straight to 0."""
        how = self.settings.train
        return how.lr * min(1.0, (step + 1) / max(1, how.warmup), 2 * (1 - step / steps))

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        self.sampler.epoch, self.sampler.start = epoch, start
        self.views.set_epoch(epoch)
        for batch in self._loader:
            yield shown_to(self.model, batch, self.settings, self.device)

    def epoch_begins(self, epoch: int) -> None:
        pass

    def gradients(self, batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        return gradients(self.model, batch, self.settings.step)

    def evaluate(self, step: int) -> Evaluation:
        """Also draws the sample sheet."""
        if self.held_out is None:
            raise ValueError("train.evaluate_every: expected more than 0 to evaluate, got 0")
        found, images = measured(self.model, self.held_out, self.settings, self.device)
        done, content = cv2.imencode(".png", sample_sheet(images)[:, :, ::-1])
        if done:
            folder = Path(self.settings.out) / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"step-{step:06d}.png", content.tobytes())
        return found

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        pass

    def save_model(self, path: Path) -> None:
        self.model.save(path)


def make_recipe(sources: Sequence[str | dict[str, Any]]) -> PanoGANRecipe:
    """A run as the settings say, ready to train."""
    return PanoGANRecipe(read_settings(sources))


def evaluate_model(sources: Sequence[str | dict[str, Any]], path: Path) -> Evaluation:
    """Of the model at `path`, on the places that `data.evaluate` chooses."""
    settings = read_settings(sources)
    device = device_of(settings.train.device)
    model = PanoGAN.load(path).to(device)
    views = held_out_of(load_region(settings.data.manifest), model.config, settings)
    return measured(model, views, settings, device)[0]


def config_of(settings: Settings) -> PanoGANConfig:
    try:
        return PanoGANConfig(**settings.model)
    except TypeError as error:
        raise ValueError(f"model: expected settings of PanoGANConfig, got {error}") from error


def held_out_of(manifest: Manifest, config: PanoGANConfig, settings: Settings) -> StreetViewDataset:
    held_out = chosen(manifest, settings.data.evaluate or {"split": "val"}, settings.data)
    held_out, _ = mapped(held_out, config.classes, "data.evaluate")
    return street_views(held_out, config, settings, learn=False)


def shown_to(model: PanoGAN, batch: dict[str, Any], settings: Settings, device: torch.device) -> dict[str, Any]:
    """A batch of places as `gradients` takes it."""
    on = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    condition = model.condition(on["satellite"], turn_deg=on["turn_deg"], mirrored=on["mirrored"])
    done = {"condition": condition, "panorama": to_signed(on["panorama"]), "place_id": on["place_id"]}
    if model.config.classes:
        done["classes"] = signed_classes(on["classes"], model.config.classes)
    if settings.train.channels_last:
        done |= {
            name: value.contiguous(memory_format=torch.channels_last)
            for name, value in done.items()
            if isinstance(value, Tensor)
        }
    return done


@torch.inference_mode()
def measured(
    model: PanoGAN, views: StreetViewDataset, settings: Settings, device: torch.device
) -> tuple[Evaluation, list[dict[str, np.ndarray]]]:
    """Means over the places of `views`, and images of the first few for `sample_sheet`."""
    training = model.training
    model.eval()
    sums: dict[str, float] = {}
    images: list[dict[str, np.ndarray]] = []
    try:
        for part in loader(views, settings.train.batch):
            batch = shown_to(model, part, settings, device)
            made = model.passes(batch["condition"])[-1]
            pair = to_bytes(made.image), to_bytes(batch["panorama"])
            values = {name: measure(*pair) for name, measure in _MEASURES.items()}
            if made.classes is not None:
                right = made.classes.argmax(1) == batch["classes"].argmax(1)
                values[_CLASSES_RIGHT] = right.double().mean((1, 2))
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
            images += looked_at(batch, made.image, made.classes, model.config.classes)[: _SAMPLES - len(images)]
    finally:
        model.train(training)
    found = {name: value / len(views) for name, value in sums.items()}
    text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    return Evaluation(found, found.get(settings.train.best), text), images


def looked_at(batch: dict[str, Any], made: Tensor, classes: Tensor | None, count: int) -> list[dict[str, np.ndarray]]:
    """What a sample sheet shows of each place of a batch."""
    table = colours(count)
    rows = []
    for n, image in enumerate(made):
        row = {"satellite": _pixels(batch["condition"][n]), "made": _pixels(image)}
        row["real"] = _pixels(batch["panorama"][n])
        if classes is not None:
            row["classes made"] = table[classes[n].argmax(0).cpu().numpy()]
            row["classes real"] = table[batch["classes"][n].argmax(0).cpu().numpy()]
        rows.append(row)
    return rows
