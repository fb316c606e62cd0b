"""Makes the cities that the small model learns from: the six training styles of the synthetic world, small images.

    python train/cities.py cities/ --cities 6     # for the first part of its training
    python train/cities.py cities/                # 24 more for the second, 40 minutes on 2 cores

The troubles are a crowd's, except that the heading of every street view is known and few places lack one: training
leaves sources out itself (`step.without_panorama`), and a street view that cannot be placed teaches nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from geoloc_fast.city import CROWD
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city

CAPTURE = replace(CROWD, missing=0.1, turned=0.0)
SIZES = Sizes(satellite_px=160, panorama=(64, 256), photo=(96, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the manifest; an interrupted run goes on")
    parser.add_argument("--cities", type=int, default=30, help="of the six styles in turn")
    parser.add_argument("--places", type=int, default=1400, help="in each city")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tqdm(total=options.cities * options.places, unit="place") as bar:
        write_city(
            options.out,
            seed=options.seed,
            cities=2 * options.cities,  # every second one is for tests
            places=options.places,
            area="train",
            sizes=SIZES,
            capture=CAPTURE,
            jobs=options.jobs,
            progress=lambda done, _: bar.update(done - bar.n),
        )


if __name__ == "__main__":
    main()
