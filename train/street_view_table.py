"""How alike are generated and real street views? Prints table B1 of the main paper for models of one's own.

    python train/street_view_table.py cities/ panogan=runs/panogan/model.safetensors pix2pix=runs/pix2pix/...
    ... --where area=test --column0 true_column0_deg --classifier weights.safetensors --classifier-name resnet50

The satellite image in polar form is a row of its own: it costs nothing. SSIM, PSNR and sharpness difference are of
`geoloc_fast.metrics`. Inception score (over all classes, the likeliest, the likeliest five), accuracy and KL are those
of a classifier, a timm model whose weights are given; it sees images scaled to its own size. The last row is then the
inception score of the real street views.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from panogan import DataSettings, Settings, chosen, street_views
from torch import Tensor

from geoloc_fast.data.datasets import loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.files import write_atomically
from geoloc_fast.metrics import inception_score, kl_score, prediction_accuracy, psnr, sharpness_difference, ssim
from geoloc_fast.models import BundleError, PanoGAN
from geoloc_fast.models.panogan import PanoGANConfig, to_bytes

_BATCH = 8
Classifier = Callable[[Tensor], Tensor]


def classifier(path: Path, name: str) -> Classifier:
    """uint8 [B, 3, H, W] to probabilities [B, K]."""
    try:
        known = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ValueError(f"--classifier-name: expected the name of a timm model, got {name!r}") from error
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


@torch.inference_mode()
def row(model: PanoGAN | None, config: PanoGANConfig, manifest: Manifest, judge: Classifier | None) -> dict[str, str]:
    """The metrics of a model, or of the polar satellite image, over all places of the manifest."""
    views = street_views(manifest, config, Settings(out=""), learn=False)
    polar = (
        PanoGAN(replace(config, condition="polar", channels=1, judge_channels=1, features=1)) if model is None else None
    )
    pixel: dict[str, list[Tensor]] = {"SSIM": [], "PSNR": [], "SD": []}
    seen: list[tuple[Tensor, Tensor]] = []
    for batch in loader(views, _BATCH):
        if model is not None:
            made = model.generate(batch["satellite"])
        elif polar is not None:
            made = to_bytes(polar.condition(batch["satellite"]))
        for name, metric in (("SSIM", ssim), ("PSNR", psnr), ("SD", sharpness_difference)):
            pixel[name].append(metric(made, batch["panorama"]))
        if judge is not None:
            seen.append((judge(made), judge(batch["panorama"])))
    found = {name: f"{float(torch.cat(values).mean()):.4g}" for name, values in pixel.items()}
    if seen:
        p, q = (torch.cat(part) for part in zip(*seen, strict=True))
        found |= inception(p)
        found |= {f"accuracy {top}": f"{100 * prediction_accuracy(p, q, top=top):.1f} %" for top in (1, 5)}
        found["KL"] = "{:.2f} ± {:.2f}".format(*kl_score(p, q))
    return found


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
    parser.add_argument("--out", type=Path, help="also as JSON: runs/b1.NAME.json comes onto the page of the tables")
    parser.add_argument("--classifier", type=Path, help="safetensors weights of a timm classifier")
    parser.add_argument("--classifier-name", default="resnet50")
    given = parser.parse_args()
    try:
        where = named("--where", given.where, "column=value")
        bundles = named("models", given.models, "name=bundle")
        judge = classifier(given.classifier, given.classifier_name) if given.classifier else None
        data = DataSettings(manifest=given.manifest, column0=given.column0)
        manifest = chosen(Manifest.load(given.manifest), where, data)
        models = {name: PanoGAN.load(path) for name, path in bundles.items()}
        configs = {model.config.image_size: replace(model.config, classes=0) for model in models.values()}
        if len(configs) > 1:
            raise ValueError(f"models: expected one size of panoramas, got {', '.join(map(str, configs))}")
        (config,) = configs.values()
        base = replace(config, condition="polar")
        rows = {"polar satellite image": row(None, base, manifest, judge)}
        for name, model in models.items():
            rows[name] = row(model, replace(model.config, classes=0), manifest, judge)
        if judge is not None:
            views = street_views(manifest, base, Settings(out=""), learn=False)
            real = torch.cat([judge(batch["panorama"]) for batch in loader(views, _BATCH)])
            columns = next(iter(rows.values()))
            rows["real street view"] = dict.fromkeys(columns, "-") | inception(real)
    except (OSError, ValueError, BundleError) as error:
        print(f"street_view_table: {error}", file=sys.stderr)
        return 1
    if given.out:
        found = {"places": len(manifest.places), "where": " ".join(given.where), "rows": rows}
        write_atomically(given.out, json.dumps(found, indent=1) + "\n")
    names = list(next(iter(rows.values())))
    print(f"{len(manifest.places)} places")
    print("| | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(values.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
