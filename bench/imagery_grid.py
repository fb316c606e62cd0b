"""From a GeoTIFF of 20,000 x 20,000 pixels to a grid of places: places a second, and the most memory it took.

    python bench/imagery_grid.py --grid 10 --band 300

The raster is made first, smooth noise in JPEG tiles as orthophotos come; a child process cuts it, so that its memory is
that of cutting alone. The grid is cut in a band of it along the north, of as many metres: all of it would take minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIDE, TILE, PIXEL_M = 20_000, 512, 0.2


def make_raster(path: Path) -> None:
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    noise = np.random.default_rng(0).integers(0, 255, (4 * TILE, 4 * TILE, 3), dtype=np.uint8)
    noise = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    shape = {"width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    how = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "jpeg", "photometric": "ycbcr"}
    place = from_origin(400_000, 5_800_000, PIXEL_M, PIXEL_M)
    with rasterio.open(path, "w", driver="GTiff", transform=place, **shape, **how) as data:
        for row in range(0, SIDE, TILE):
            for column in range(0, SIDE, TILE):
                high, wide = min(TILE, SIDE - row), min(TILE, SIDE - column)
                top, left = (row * 7) % (3 * TILE), (column * 5) % (3 * TILE)
                part = noise[top : top + high, left : left + wide]
                data.write(np.moveaxis(part, 2, 0), window=Window(column, row, wide, high))


def cut(path: Path, out: Path, grid: int, band: float, told: Any) -> None:
    from geoloc_fast.geo.regions import Box
    from geoloc_fast.region.cut import cut_places, price_of
    from geoloc_fast.region.imagery import open_imagery
    from geoloc_fast.region.spots import spots_of

    ground = open_imagery("raster", path)
    south = ground.bounds.north - band / 111_195
    spots = spots_of(f"grid:{grid}", ground, Box(south, ground.bounds.west, ground.bounds.north, ground.bounds.east))
    began, cpu = time.perf_counter(), time.process_time()
    done = cut_places(ground, spots, out, source="noise")
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    count = len(spots.id)
    told.put(
        {
            "asked": count, "places": done.places, "holes": done.holes, "px": price_of(ground, spots, 60.0).px,
            "places_per_second": round(count / took), "places_per_cpu_second": round(count / cpu),
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--grid", type=int, default=10, help="Metres.")
    parser.add_argument("--band", type=float, default=300.0, help="Metres.")
    parser.add_argument("--raster", type=Path, help="Where it is kept for the next time.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.raster or Path(folder) / "noise.tif"
        if not path.exists():
            make_raster(path)
        about = {"megabytes": path.stat().st_size >> 20, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
        spawn = multiprocessing.get_context("spawn")
        told = spawn.Queue()
        child = spawn.Process(target=cut, args=(path, Path(folder) / "region", given.grid, given.band, told))
        child.start()
        print(json.dumps({**about, **told.get()}, indent=1))
        child.join()


if __name__ == "__main__":
    main()
