"""Places a second of `prepare`: JPEG satellite images of 335 x 335 and panoramas of 512 x 128 from a synthetic city.

    python bench/prepare_throughput.py --places 2000 --workers 2

The wall time is that of a machine with nothing else to do, or means little. With one worker the CPU time a place is
printed beside it. A first run that is not counted starts the worker processes' server.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from geoloc_fast.city import make_city
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.region.prepare import prepare

DISTINCT = 100


def make_manifest(root: Path, places: int, known: bool) -> Manifest:
    views = make_city(1, places=DISTINCT, satellite_px=336, panorama_size=(128, 512), photo_size=(16, 16))
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    for n in range(DISTINCT):
        cv2.imwrite(str(root / f"{n}.sat.jpg"), views.satellite[n, :335, :335, ::-1], quality)
        cv2.imwrite(str(root / f"{n}.pan.jpg"), np.roll(views.panorama[n], -5 * n, axis=1)[:, :, ::-1], quality)
    rows = [
        {
            "id": f"p{k}",
            "lat": float(views.lat[k % DISTINCT]),
            "lon": float(views.lon[k % DISTINCT]),
            "satellite": f"{k % DISTINCT}.sat.jpg",
            "metres_per_pixel": 50 / 336,
            "street": f"{k % DISTINCT}.pan.jpg",
            "street_column0_deg": (180 + 360 * 5 * (k % DISTINCT) / 512) % 360 if known else None,
        }
        for k in range(places)
    ]
    return Manifest.from_rows(root, rows, [])


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(places: int, known: bool, workers: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_manifest(Path(folder), places, known)
        wall, cpu = time.perf_counter(), cpu_s()
        prepare(manifest, Path(folder) / "out", workers=workers)
        return time.perf_counter() - wall, cpu_s() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    run(2 * DISTINCT, True, options.workers)
    for known in (True, False):
        wall, cpu = run(options.places, known, options.workers)
        about = f", {1e3 * cpu / options.places:.1f} ms of CPU a place" if options.workers == 1 else ""
        print(
            f"{'without' if known else 'with'} calibration, {options.workers} workers: "
            f"{options.places / wall:.0f} places/s{about}",
            flush=True,
        )


if __name__ == "__main__":
    main()
