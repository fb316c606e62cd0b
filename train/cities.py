"""Makes the cities that models learn from: the six training styles of the synthetic world.

    python train/cities.py tidy/ --photos         # for the layered model: images as large as photos, and what they show
    python train/cities.py crowd/ --crowd         # and photos as a crowd takes them
    python train/cities.py small/ --cities 6      # for the paper's network on a CPU: small images, first part
    python train/cities.py small/                 # 24 more for the second, 40 minutes on 2 cores

For the network the troubles are a crowd's, except that the heading of every street view is known and few places lack
one: training leaves sources out itself (`step.without_panorama`), and a street view that cannot be placed teaches
nothing. The layered model is fitted on both, tidy images and a crowd's.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from geoloc_fast.city import CROWD, TIDY
from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import REALISTIC, write_city
from geoloc_fast.cli.output import progress

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the manifest; an interrupted run goes on")
    parser.add_argument("--photos", action="store_true", help="photos of 480 x 640, and the kinds of what they show")
    parser.add_argument("--crowd", action="store_true", help="a crowd's photos of 240 x 320, for the layered model")
    parser.add_argument("--cities", type=int, help="of the six styles in turn; default 30, with --photos or --crowd 6")
    parser.add_argument("--places", type=int, help="in each city; default 1400, with --photos or --crowd 500")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    if given.photos:
        sizes, capture = Sizes(512, (320, 1280), (480, 640), satellite_m=64.0), TIDY
    else:
        capture = replace(CROWD, missing=0.1, turned=0.0)
        sizes = REALISTIC if given.crowd else Sizes(160, (64, 256), (96, 128))
    cities, places = (6, 500) if given.photos or given.crowd else (30, 1400)
    with progress("places") as shown:
        write_city(
            given.out, seed=given.seed, cities=2 * (given.cities or cities), places=given.places or places,
            area="train", sizes=sizes, capture=capture, kinds=given.photos or given.crowd, jobs=given.jobs,
            progress=shown,
        )  # fmt: skip  # every second city is for tests
