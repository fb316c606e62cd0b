"""The training loader: 128 x 512 panoramas, satellite images and photos from JPEG files, augmented, polar included.

Goal: 120 samples/s on two cores. An epoch of the benchmark is 512 samples in batches of 32.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from geoloc_fast.data.datasets import PairDataset, PhotoDataset, PlaceDataset, finish, loader
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.images.augment import Augmentation

IMAGES, BATCH = 16, 32
SAMPLES = {"prepared": 512, "original": 64}
# (panorama, satellite, photo): as a prepared data set has them, and as they come from cameras and tile servers.
SIZES = {
    "prepared": ((128, 512), (335, 335), (480, 640)),
    "original": ((1024, 2048), (640, 640), (3000, 4000)),
}


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Structure at all scales, so that JPEG has as much to do as with a photo."""
    image = np.zeros((height, width, 3), np.float32)
    for share in (4, 16, 64):
        coarse = rng.normal(0, 40, (max(2, height // share), max(2, width // share), 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + 128, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=SIZES)
def sized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    root: Path = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        for name, size in zip(("street", "satellite", "photo"), SIZES[request.param], strict=True):
            cv2.imwrite(str(root / f"{name}{number}.jpg"), picture(rng, *size), [cv2.IMWRITE_JPEG_QUALITY, 90])
    samples = range(SAMPLES[request.param])
    places = [
        {"id": str(i), "lat": 1.0, "lon": 2.0, "street_column0_deg": 180.0}
        | {"satellite": f"satellite{i % IMAGES}.jpg", "street": f"street{i % IMAGES}.jpg"}
        for i in samples
    ]
    photos = [{"id": str(i), "image": f"photo{i % IMAGES}.jpg", "place": str(i)} for i in samples]
    return request.param, Manifest.from_rows(root, places, photos)


@pytest.mark.once
@pytest.mark.parametrize("workers", [0, 2])
def test_loader(benchmark: Any, sized: tuple[str, Manifest], workers: int) -> None:
    name, manifest = sized
    augment = Augmentation()
    pairs = PairDataset(PhotoDataset(manifest, augment=augment), PlaceDataset(manifest, augment=augment))
    batches = loader(pairs, BATCH, workers=workers, shuffle=True)

    def epoch() -> int:
        return sum(len(finish(batch, "cpu")["polar"]) for batch in batches)

    benchmark.group = f"the training loader, {SAMPLES[name]} samples of {name} sizes, augmented"
    benchmark.extra_info["entry"] = f"geoloc_fast, {workers} workers" if workers else "geoloc_fast, in the process"
    assert benchmark.pedantic(epoch, rounds=2, warmup_rounds=1) == SAMPLES[name]
    if benchmark.stats:
        benchmark.extra_info["note"] = f"{SAMPLES[name] / benchmark.stats.stats.median:.0f} samples/s"
