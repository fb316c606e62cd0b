"""Real aligned pairs, where they are at hand: satellite and panorama agree under the default convention."""

from pathlib import Path

import pytest
import torch

import geoloc_fast

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "real_pairs"
COLUMNS = 64

pytestmark = pytest.mark.skipif(not PAIRS.is_dir(), reason=f"no real pairs at {PAIRS}: their imagery cannot be shipped")


def cheap_features(image: torch.Tensor) -> torch.Tensor:
    """[3, 128, 512] in 0..1 to a strip [4, 8, 64]: brightness, chroma, green excess and edges of the ground."""
    ground = image[:, image.shape[1] // 2 :]
    grey = ground.mean(0)
    chroma = ground.amax(0) - ground.amin(0)
    green = ground[1] - (ground[0] + ground[2]) / 2
    edges = (grey.roll(-1, 1) - grey.roll(1, 1)).abs()
    cells = torch.nn.functional.adaptive_avg_pool2d(torch.stack([grey, chroma, green, edges]), (8, COLUMNS))
    cells = cells - cells.mean(2, keepdim=True)
    return cells / cells.std(2, keepdim=True).clamp_min(1e-6)


def load_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    import cv2

    polar, street = [], []
    for path in sorted(PAIRS.glob("*.aerial.*")):
        name = path.name.split(".")[0]
        satellite = torch.from_numpy(cv2.imread(str(path))[:, :, ::-1].copy()).permute(2, 0, 1)[None]
        panorama = cv2.imread(str(next(PAIRS.glob(f"{name}.ground.*"))))[:, :, ::-1]
        if name.startswith("cvact"):
            panorama = panorama[64:192]
        panorama = torch.from_numpy(cv2.resize(panorama, (512, 128), interpolation=cv2.INTER_AREA))
        polar.append(cheap_features(geoloc_fast.polar_resample(satellite, dtype=torch.float32)[0] / 255))
        street.append(cheap_features(panorama.permute(2, 0, 1) / 255))
    return torch.stack(polar), torch.stack(street)


def test_polar_images_line_up_with_their_panoramas() -> None:
    polar, street = load_pairs()
    assert len(polar) == 8
    shift = geoloc_fast.azimuth_crop(street, polar).shift
    away = torch.minimum(shift, COLUMNS - shift)
    # The eighth stands on a straight road that looks alike both ways.
    assert int((away <= 1).sum()) >= 7, shift.tolist()


def test_and_do_not_when_turned_half_round() -> None:
    polar, street = load_pairs()
    here = torch.nn.functional.cosine_similarity(street.flatten(1), polar.flatten(1))
    turned = torch.nn.functional.cosine_similarity(street.flatten(1), polar.roll(COLUMNS // 2, 3).flatten(1))
    assert int((here > turned).sum()) >= 7
    assert float(here.mean()) > float(turned.mean()) + 0.1
