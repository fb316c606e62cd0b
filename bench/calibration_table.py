"""Table A1 for calibration: how often each method finds the heading of a panorama, and what it takes.

    python bench/calibration_table.py                          # synthetic cities, and real pairs where they are
    python bench/calibration_table.py --fit                    # the constants of `quality`, from other cities

Times are CPU milliseconds a pair on one core, decoding and the polar image not included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch

import geoloc_fast
from geoloc_fast.city import make_city
from geoloc_fast.images import calibration
from geoloc_fast.images.decode import decode_image

PAIRS = Path(__file__).resolve().parents[2] / "shared" / "data" / "real_pairs"
COLUMNS = 512
BIN_DEG = 22.5
METHODS = ("azimuth", "orb", "sift", "orb-mean")
Pairs = tuple[torch.Tensor, torch.Tensor]  # panoramas with column 0 at 180 degrees, polar images


def tensors(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def city(seed: int, places: int) -> Pairs:
    views = make_city(seed, places=places, satellite_px=336, panorama_size=(128, COLUMNS), photo_size=(16, 16))
    return tensors(views.panorama), geoloc_fast.polar_resample(tensors(views.satellite))


def read_rgb(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes(), path.name)


def real_pairs() -> Pairs:
    street, polar = [], []
    for path in sorted(PAIRS.glob("*.aerial.*")):
        name = path.name.split(".")[0]
        panorama = read_rgb(next(PAIRS.glob(f"{name}.ground.*")))
        panorama = panorama[64:192] if name.startswith("cvact") else panorama
        street.append(cv2.resize(panorama, (COLUMNS, 128), interpolation=cv2.INTER_AREA))
        polar.append(geoloc_fast.polar_resample(tensors(read_rgb(path)[None]))[0])
    return tensors(np.stack(street)), torch.stack(polar)


def measure(pairs: Pairs, method: str, turns: int) -> dict[str, np.ndarray]:
    """Every pair at `turns` random offsets."""
    street, polar = pairs
    rng = np.random.default_rng(0)
    errors, qualities, spent = [], [], 0.0
    for _ in range(turns):
        columns = rng.integers(0, COLUMNS, len(street))
        rolled = torch.stack([image.roll(-int(n), 2) for image, n in zip(street, columns, strict=True)])
        start = time.process_time()
        found = calibration.calibrate(rolled, polar, method=method)
        spent += time.process_time() - start
        errors.append((found.column0_deg - 180 - 360 * columns / COLUMNS + 180) % 360 - 180)
        qualities.append(found.quality)
    ms = np.array(1e3 * spent / (turns * len(street)))
    return {"error": np.concatenate(errors), "quality": np.concatenate(qualities), "ms": ms}


def row(name: str, method: str, pairs: Pairs, turns: int) -> str:
    got = measure(pairs, method, turns)
    right = np.abs(got["error"]) <= BIN_DEG  # NaN, where nothing could be measured, is wrong
    low = ~(got["quality"] >= calibration.LOW_QUALITY)
    wrong_marked = f"{low[~right].mean():.0%} of {(~right).sum()}" if (~right).any() else "none wrong"
    median = np.median(np.abs(got["error"][right])) if right.any() else np.nan
    return (
        f"| {name} | {method} | {right.mean():.1%} | {median:.1f} | {got['ms']:.1f} | {wrong_marked} "
        f"| {low[right].mean():.0%} |"
    )


def fit(seeds: list[int], places: int) -> None:
    """Logistic regression of "within one bin" on the margin of each method."""
    made = [city(seed, places) for seed in seeds]
    pairs = torch.cat([street for street, _ in made]), torch.cat([polar for _, polar in made])
    calibration._LOGISTIC = {method: (0.0, 1.0) for method in METHODS}  # quality is then a function of the margin alone
    for method in METHODS:
        got = measure(pairs, method, 1)
        there = ~np.isnan(got["quality"])
        right = np.abs(got["error"][there]) <= BIN_DEG
        quality = np.clip(got["quality"][there], 1e-12, 1 - 1e-12)
        margin = np.log(quality / (1 - quality))
        design = np.stack([np.ones_like(margin), margin], 1)
        weights = np.zeros(2)
        for _ in range(50):
            p = 1 / (1 + np.exp(-design @ weights))
            hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
            weights += np.linalg.solve(hessian, design.T @ (right - p))
        print(f"{method}: ({weights[0]:.2f}, {weights[1]:.2f})   right {right.mean():.1%} of {len(right)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="cities; default 105..108, or 101..104 with --fit")
    parser.add_argument("--places", type=int, default=200, help="in each city")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.fit:
        fit(options.seeds or [101, 102, 103, 104], options.places)
        return
    print(
        "| pairs | method | within one of 16 bins | median of those, deg | ms | wrong marked low | right marked low |"
    )
    print("|---|---|---|---|---|---|---|")
    made = [city(seed, options.places) for seed in options.seeds or [105, 106, 107, 108]]
    synthetic = torch.cat([street for street, _ in made]), torch.cat([polar for _, polar in made])
    for method in METHODS:
        print(row("synthetic", method, synthetic, 1), flush=True)
    if PAIRS.is_dir():
        for method in METHODS:
            print(row("real, 8 pairs x 50 offsets", method, real_pairs(), 50), flush=True)
    else:
        print(f"no real pairs at {PAIRS}")


if __name__ == "__main__":
    main()
