"""Makes the cities that the small model learns from: the six training styles of the synthetic world, small images.

    python train/cities.py cities/ --cities 6     # for the first part of its training
    python train/cities.py cities/                # 24 more for the second, 40 minutes on 2 cores

The troubles are a crowd's, except that the heading of every street view is known and few places lack one: training
leaves sources out itself (`step.without_panorama`), and a street view that cannot be placed teaches nothing.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from geoloc_fast.city import CROWD
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.cli.output import progress

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the manifest; an interrupted run goes on")
    parser.add_argument("--cities", type=int, default=30, help="of the six styles in turn")
    parser.add_argument("--places", type=int, default=1400, help="in each city")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    sizes, capture = (
        Sizes(satellite_px=160, panorama=(64, 256), photo=(96, 128)),
        replace(CROWD, missing=0.1, turned=0.0),
    )
    with progress("places") as shown:
        write_city(
            given.out, seed=given.seed, cities=2 * given.cities, places=given.places, area="train", sizes=sizes,
            capture=capture, jobs=given.jobs, progress=shown,
        )  # fmt: skip  # every second city is for tests
