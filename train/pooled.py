"""Make a bundle from a published place-recognition checkpoint that is on this machine.

    python train/pooled.py resnet18_cosplace.pth --network resnet18 --trained-on "street views" --out street.safetensors
    python train/pooled.py weights.pth --network convnext_base --source satellite --image-size 384 384 --trained-on …

The layouts that are read are those of `geoloc_fast/models/pooled/checkpoint.py`. How good such a model is in a region
is for `geoloc-fast evaluate` to say.
"""

import argparse
import sys
from pathlib import Path

from geoloc_fast.errors import GeolocError
from geoloc_fast.models.pooled import PooledConfig, load_checkpoint

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--network", required=True, help="timm's name of the network: resnet50, convnext_base")
    parser.add_argument(
        "--source", choices=("street", "satellite"), default="street", help="which images of places it encodes"
    )
    parser.add_argument("--image-size", type=int, nargs=2, default=(480, 640), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--name", default="pooled")
    parser.add_argument(
        "--trained-on", required=True, help="what the network was trained on, in a few words; answers repeat it"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    config = PooledConfig(
        network=given.network, source=given.source, image_size=tuple(given.image_size), name=given.name,
        trained_on=given.trained_on,
    )  # fmt: skip
    try:
        model = load_checkpoint(given.weights, config)
        print(f"{given.out}: {model.save(given.out)}; {model.config.provenance['weights']}")
    except (GeolocError, OSError, ValueError) as error:
        sys.exit(f"pooled: {error}")
