"""How alike are generated and real street views? Prints table B1 of the main paper for models of one's own.

    python bench/street_view_table.py benchmark/ panogan=runs/panogan/model.safetensors pix2pix=runs/pix2pix/...
    ... --where area=test --column0 true_column0_deg --classifier weights.safetensors --classifier-name resnet50

The satellite image in polar form is a row of its own: it costs nothing. SSIM, PSNR and sharpness difference are of
`evaluation.metrics`. Inception score (over all classes, the likeliest, the likeliest five), accuracy and KL are those
of a classifier, a timm model whose weights are given; it sees images scaled to its own size. The row of the real street
views then has their inception score.

With `--locator`, a model of `geoloc.py`, stands beside that what a view is worth in finding places: a cut of 90 degrees
of each real street view is the photo, and R@1 is how often its own place comes first of all, known from the generated
view alone, and from it and the satellite image. More rows then have the same of the real street view, and without any.

`--sheet` draws a place of each city: the polar satellite image, what every model makes of it, and the real street view.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import safetensors
import safetensors.torch
import table_lines
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from geoloc_fast import azimuth_match
from geoloc_fast.data.datasets import loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import BundleError
from geoloc_fast.evaluation.metrics import (
    inception_score,
    kl_score,
    prediction_accuracy,
    psnr,
    sharpness_difference,
    ssim,
)
from geoloc_fast.files import write_atomically
from geoloc_fast.images.augment import generator_of
from geoloc_fast.models import Geolocalizer, PanoGAN
from geoloc_fast.models.panogan.model import PanoGANConfig
from geoloc_fast.polar import polar_resample
from geoloc_fast.training.recipes.panogan import DataSettings, Settings, chosen, sample_sheet, street_views

_BATCH = 8
_CUT = 4  # a photo is this part of the horizon
_TURN = 107  # what a random number is for
Classifier = Callable[[Tensor], Tensor]
View = Callable[[dict[str, Tensor]], Tensor]  # of a batch of places


def classifier(path: Path, name: str) -> Classifier:
    """uint8 [B, 3, H, W] to probabilities [B, K]."""
    try:
        known = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        known = None
    if known is None:
        raise ValueError(f"--classifier-name: expected the name of a timm model, got {name!r}")
    try:
        weights = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
    head = known.classifier
    if f"{head}.weight" not in weights:
        raise ValueError(f"{path}: expected the weights of a {name} with {head}.weight, got none of that name")
    classes = len(weights[f"{head}.weight"])
    if classes < 5:
        raise ValueError(f"{path}: expected a classifier of at least 5 classes, got {classes}")
    network = timm.create_model(name, num_classes=classes).eval()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: expected the weights of a {name}, got {str(error).splitlines()[1].strip()}"
        ) from error
    size = known.input_size[1:]
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (known.mean, known.std))

    @torch.inference_mode()
    def probability(images: Tensor) -> Tensor:
        scaled = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return network((scaled - mean) / std).softmax(dim=1)

    return probability


def inception(p: Tensor) -> dict[str, str]:
    return {f"IS {name}": f"{inception_score(p, top=top):.2f}" for name, top in (("all", None), ("1", 1), ("5", 5))}


class Finding:
    """How well photos, cuts of the real street views, find their places by what is known of these."""

    def __init__(self, locator: Geolocalizer) -> None:
        self.locator = locator
        self.strips: dict[str, list[Tensor]] = {}

    def add(self, batch: dict[str, Tensor], polar: Tensor, made: Tensor | None) -> None:
        polar, real = self._scaled(polar), self._scaled(batch["panorama"])
        width = real.shape[3] // _CUT
        turns = [int(generator_of(0, 0, int(row), _TURN).integers(real.shape[3])) for row in batch["place_row"]]
        cuts = torch.stack([x.roll(-turn, 2)[..., :width] for x, turn in zip(real, turns, strict=True)])
        strips = {"photo": self.locator.encode_photo(cuts).strips}
        if made is None:
            strips["R@1 with satellite"] = self.locator.encode_place(polar)
        else:
            made = self._scaled(made)
            strips["R@1"] = self.locator.encode_place(panorama=made)
            strips["R@1 with satellite"] = self.locator.encode_place(polar, made)
        for name, strip in strips.items():
            self.strips.setdefault(name, []).append(strip)

    def _scaled(self, images: Tensor) -> Tensor:
        scaled = F.interpolate(images.float(), self.locator.config.image_size, mode="bilinear", antialias=True)
        return scaled.round().clamp(0, 255).byte()

    def percent(self) -> dict[str, str]:
        strips = {name: torch.cat(parts) for name, parts in self.strips.items()}
        photo = strips.pop("photo")
        own = torch.arange(len(photo))
        found = {name: azimuth_match(photo, places).score.argmax(1) == own for name, places in strips.items()}
        return {name: f"{100 * float(right.double().mean()):.1f} %" for name, right in found.items()}


@torch.inference_mode()
def row(
    view: View | None,
    config: PanoGANConfig,
    manifest: Manifest,
    discriminator: Classifier | None,
    locator: Geolocalizer | None,
) -> dict[str, str]:
    """The metrics of views, over all places of the manifest."""
    views = street_views(manifest, config, Settings(out=""), learn=False)
    pixel: dict[str, list[Tensor]] = {"SSIM": [], "PSNR": [], "SD": []}
    seen: list[tuple[Tensor, Tensor]] = []
    finding = None if locator is None else Finding(locator)
    for batch in loader(views, _BATCH):
        made = None if view is None else view(batch)
        if finding is not None:
            finding.add(batch, polar_of(batch, config), made)
        if made is None:
            continue
        for name, metric in (("SSIM", ssim), ("PSNR", psnr), ("SD", sharpness_difference)):
            pixel[name].append(metric(made, batch["panorama"]))
        if discriminator is not None:
            seen.append((discriminator(made), discriminator(batch["panorama"])))
    found = {name: f"{float(torch.cat(values).mean()):.4g}" for name, values in pixel.items() if values}
    if seen:
        p, q = (torch.cat(part) for part in zip(*seen, strict=True))
        found |= inception(p)
        found |= {f"accuracy {top}": f"{100 * prediction_accuracy(p, q, top=top):.1f} %" for top in (1, 5)}
        found["KL"] = "{:.2f} ± {:.2f}".format(*kl_score(p, q))
    return found if finding is None else found | finding.percent()


def polar_of(batch: dict[str, Tensor], config: PanoGANConfig) -> Tensor:
    return polar_resample(batch["satellite"], config.image_size, column0_deg=config.column0_deg, border="replicate")


def generated_by(model: PanoGAN) -> View:
    return lambda batch: model.generate(batch["satellite"])


@torch.inference_mode()
def sheet(models: dict[str, PanoGAN], base: PanoGANConfig, manifest: Manifest) -> bytes:
    """A PNG: a line for the first place of every city."""
    cities = manifest.places["city"].to_pylist()
    first = sorted({city: row for row, city in reversed(list(enumerate(cities)))}.values())
    few = manifest.replace(places=manifest.places.take(first), photos=manifest.photos.slice(0, 0))

    def batch(config: PanoGANConfig) -> dict[str, Tensor]:
        return next(iter(loader(street_views(few, config, Settings(out=""), learn=False), len(first))))

    shown = {"satellite image, polar": polar_of(batch(base), base)}
    for name, model in models.items():
        shown[name] = generated_by(model)(batch(replace(model.config, classes=0)))
    shown["real street view"] = batch(base)["panorama"]
    lines = [{name: images[n].permute(1, 2, 0).numpy() for name, images in shown.items()} for n in range(len(first))]
    done, content = cv2.imencode(".png", sample_sheet(lines)[:, :, ::-1])
    assert done
    return content.tobytes()


def named(argument: str, given: Sequence[str], expected: str) -> dict[str, str]:
    """What follows the first "=", by what comes before it."""
    for pair in given:
        if "=" not in pair:
            raise ValueError(f"{argument}: expected {expected}, got {pair!r}")
    return dict(pair.split("=", 1) for pair in given)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("models", nargs="+", metavar="name=bundle")
    parser.add_argument("--where", action="append", default=[], metavar="column=value", help="only these places")
    parser.add_argument("--column0", default=DataSettings.column0, help="the places' column of panoramas' headings")
    parser.add_argument(
        "--out", type=Path, help="also as a line of this file: runs/tables.jsonl, for the page of the tables"
    )
    parser.add_argument("--classifier", type=Path, help="safetensors weights of a timm classifier")
    parser.add_argument("--classifier-name", default="resnet50")
    parser.add_argument("--locator", type=Path, help="a model of geoloc.py")
    parser.add_argument("--sheet", type=Path, help="a PNG of the views of one place of each city")
    given = parser.parse_args()
    try:
        where = named("--where", given.where, "column=value")
        bundles = named("models", given.models, "name=bundle")
        discriminator = classifier(given.classifier, given.classifier_name) if given.classifier else None
        locator = Geolocalizer.load(given.locator) if given.locator else None
        data = DataSettings(manifest=given.manifest, column0=given.column0)
        manifest = chosen(Manifest.load(given.manifest), where, data)
        models = {name: PanoGAN.load(path) for name, path in bundles.items()}
        configs = {model.config.image_size: replace(model.config, classes=0) for model in models.values()}
        if len(configs) > 1:
            raise ValueError(f"models: expected one size of panoramas, got {', '.join(map(str, configs))}")
        (config,) = configs.values()
        base = replace(config, condition="polar")

        def measured(view: View | None, config: PanoGANConfig = base) -> dict[str, str]:
            return row(view, config, manifest, discriminator, locator)

        rows = {"polar satellite image": measured(lambda batch: polar_of(batch, base))}
        for name, model in models.items():
            rows[name] = measured(generated_by(model), replace(model.config, classes=0))
        columns = next(iter(rows.values()))
        if discriminator is not None or locator is not None:
            real = measured(lambda batch: batch["panorama"])
            rows["real street view"] = {n: x if n.startswith(("IS", "R@")) else "-" for n, x in real.items()}
        if locator is not None:
            rows["no street view"] = dict.fromkeys(columns, "-") | measured(None)
    except (OSError, ValueError, BundleError) as error:
        print(f"street_view_table: {error}", file=sys.stderr)
        return 1
    if given.out:
        name = f"B1 {' '.join(given.where) or 'everywhere'}"
        table_lines.append(given.out, {"name": name, "places": len(manifest.places), "rows": rows})
    names = list(next(iter(rows.values())))
    print(f"{len(manifest.places)} places")
    print("| | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(values.values()) + " |")
    try:
        if given.sheet:
            write_atomically(given.sheet, sheet(models, base, manifest))
    except (OSError, ValueError) as error:
        print(f"street_view_table: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
