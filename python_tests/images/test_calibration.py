"""The heading of a panorama measured against the satellite image, on the synthetic city and on real pairs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import geoloc_fast
from geoloc_fast.city import make_city
from geoloc_fast.images.calibration import LOW_QUALITY, METHODS, Calibration, calibrate, roll_panorama

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "real_pairs"
BIN_DEG = 360 / 16
COLUMNS = 512
# Cities 101 to 104 chose the features and fitted the quality; these are others.
CITY_SEEDS, CITY_PLACES = (205, 206), 25


def tensors(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def turned(panoramas: torch.Tensor, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Panoramas whose column 0 looked at 180 degrees, each rolled by a random number of columns."""
    columns = np.random.default_rng(seed).integers(0, COLUMNS, len(panoramas))
    rolled = torch.stack([p.roll(-int(n), 2) for p, n in zip(panoramas, columns, strict=True)])
    return rolled, (180 + 360 * columns / COLUMNS) % 360


def error_deg(measured: Calibration, truth_deg: np.ndarray) -> np.ndarray:
    return (measured.column0_deg - truth_deg + 180) % 360 - 180


@pytest.fixture(scope="module")
def city() -> tuple[torch.Tensor, torch.Tensor]:
    """Panoramas with column 0 at 180 degrees, and polar images."""
    views = [make_city(s, places=CITY_PLACES, panorama_size=(128, 512), photo_size=(16, 16)) for s in CITY_SEEDS]
    satellites = tensors(np.concatenate([v.satellite for v in views]))
    return tensors(np.concatenate([v.panorama for v in views])), geoloc_fast.polar_resample(satellites)


def test_synthetic_city(city: tuple[torch.Tensor, torch.Tensor]) -> None:
    panoramas, polar = city
    rolled, truth_deg = turned(panoramas, 0)
    measured = calibrate(rolled, polar)
    error = error_deg(measured, truth_deg)
    right = np.abs(error) <= BIN_DEG
    assert right.mean() >= 0.85
    assert np.median(np.abs(error[right])) < 1.5
    assert abs(error[right].mean()) < 1.0, "a bias: half a bin hides here"
    assert ((measured.quality >= LOW_QUALITY) == (np.array(measured.status) == "measured")).all()
    confident = measured.quality >= LOW_QUALITY
    assert right[confident].mean() >= 0.95
    assert confident.mean() >= 0.6


def test_wrong_pairs_are_marked(city: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Panoramas of other places: whatever is measured is wrong seven times in eight."""
    panoramas, polar = city
    rolled, truth_deg = turned(panoramas.roll(1, 0), 1)
    measured = calibrate(rolled, polar)
    right = np.abs(error_deg(measured, truth_deg)) <= BIN_DEG
    marked = np.array([status == "low quality" for status in measured.status])
    assert marked[~right].mean() >= 0.7


@pytest.mark.skipif(not PAIRS.is_dir(), reason=f"no real pairs at {PAIRS}: their imagery cannot be shipped")
def test_real_pairs() -> None:
    panoramas, polar = [], []
    for path in sorted(PAIRS.glob("*.aerial.*")):
        name = path.name.split(".")[0]
        satellite = tensors(cv2.imread(str(path))[None, :, :, ::-1])
        panorama = cv2.imread(str(next(PAIRS.glob(f"{name}.ground.*"))))[:, :, ::-1]
        panorama = panorama[64:192] if name.startswith("cvact") else panorama
        panoramas.append(cv2.resize(panorama, (COLUMNS, 128), interpolation=cv2.INTER_AREA))
        polar.append(geoloc_fast.polar_resample(satellite)[0])
    street, above = tensors(np.stack(panoramas)), torch.stack(polar)
    errors, marked = [], []
    for offset in range(50):
        rolled, truth_deg = turned(street, offset)
        measured = calibrate(rolled, above)
        errors.append(error_deg(measured, truth_deg))
        marked.append([status == "low quality" for status in measured.status])
    right = np.abs(np.array(errors)) <= BIN_DEG
    assert right.mean() >= 0.8, right.mean(0)
    assert np.array(marked)[~right].mean() >= 0.7
    assert np.median(np.abs(np.array(errors)[right])) < 3.0
    assert np.array(marked)[right].mean() <= 0.55


def test_the_key_point_rows_of_the_table(city: tuple[torch.Tensor, torch.Tensor]) -> None:
    panoramas, polar = city
    rolled, truth_deg = turned(panoramas, 3)
    right = {
        method: np.mean(np.abs(error_deg(calibrate(rolled, polar, method=method), truth_deg)) <= BIN_DEG)
        for method in METHODS
        if method != "known"
    }
    # With so few places the rows below the first are too near one another to be ordered.
    assert right["azimuth"] > max(right["orb"], right["sift"], right["orb-mean"]) + 0.3, right
    # A panorama against itself: every method but the plain mean finds any turn.
    for method in ("azimuth", "orb", "sift"):
        measured = calibrate(rolled[:6], panoramas[:6], method=method)
        assert np.abs(error_deg(measured, truth_deg[:6])).max() < 1, method
        assert set(measured.status) == {"measured"}, method


def test_frames(city: tuple[torch.Tensor, torch.Tensor]) -> None:
    panoramas, polar = city[0][:8], city[1][:8]
    here = calibrate(panoramas, polar).column0_deg
    # The same polar images, stored from another column on.
    there = calibrate(panoramas, polar.roll(-64, 3), polar_column0_deg=180 + 45).column0_deg
    assert np.abs((here - there + 180) % 360 - 180).max() < 0.01
    # Rolled by what was measured, a panorama is in the satellite's frame.
    rolled, truth_deg = turned(panoramas, 5)
    for image, degrees, original in zip(rolled, truth_deg, panoramas, strict=True):
        back = roll_panorama(image.permute(1, 2, 0).numpy(), degrees)
        assert (back == original.permute(1, 2, 0).numpy()).all()
    assert roll_panorama(np.arange(8)[None], 90.0, to_deg=180.0).tolist() == [[2, 3, 4, 5, 6, 7, 0, 1]]


def test_known_is_exact_and_wins(city: tuple[torch.Tensor, torch.Tensor]) -> None:
    panoramas, polar = city[0][:4], city[1][:4]
    known = np.array([12.5, np.nan, -90.0, 360.0])
    measured = calibrate(panoramas, polar, known_column0_deg=known)
    assert measured.status[0] == measured.status[2] == measured.status[3] == "known"
    assert measured.column0_deg[[0, 2, 3]].tolist() == [12.5, 270.0, 0.0]
    assert measured.quality[[0, 2, 3]].tolist() == [1, 1, 1]
    assert measured.status[1] in ("measured", "low quality")
    alone = calibrate(panoramas, polar, method="known", known_column0_deg=known)
    assert alone.status == ["known", "none", "known", "known"]
    assert np.isnan(alone.column0_deg[1]) and np.isnan(alone.quality[1])


def test_nothing_to_see_is_none_and_harms_nobody(city: tuple[torch.Tensor, torch.Tensor]) -> None:
    panoramas, polar = city[0][:3].clone(), city[1][:3]
    alone = calibrate(panoramas, polar)
    panoramas[1] = 90
    for method in ("azimuth", "orb", "sift", "orb-mean"):
        measured = calibrate(panoramas, polar, method=method)
        assert measured.status[1] == "none", method
        assert np.isnan(measured.column0_deg[1]) and np.isnan(measured.quality[1]), method
    measured = calibrate(panoramas, polar)
    assert measured.column0_deg[[0, 2]].tolist() == alone.column0_deg[[0, 2]].tolist()
    floats = panoramas.float()
    floats[1] = torch.nan
    assert calibrate(floats, polar.float()).status[1] == "none"
    empty = calibrate(panoramas[:0], polar[:0])
    assert empty.status == [] and empty.column0_deg.shape == (0,)


def test_errors_name_the_argument() -> None:
    image = torch.zeros(2, 3, 128, 512, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"method: expected one of 'azimuth'.*got 'superpoint'"):
        calibrate(image, image, method="superpoint")
    with pytest.raises(TypeError, match="panorama: expected a tensor"):
        calibrate(image.numpy(), image)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"polar: expected a tensor \[B, 3, H, W\], H >= 16 and W >= 64, got shape"):
        calibrate(image, image[:, :, :, :32])
    with pytest.raises(ValueError, match="panorama: expected"):
        calibrate(image[:, :1], image)
    with pytest.raises(ValueError, match="polar: expected 2 images, one per panorama, got 1"):
        calibrate(image, image[:1])
    with pytest.raises(ValueError, match='known_column0_deg: expected headings for method="known"'):
        calibrate(image, image, method="known")
    with pytest.raises(ValueError, match="known_column0_deg: expected 2 numbers"):
        calibrate(image, image, known_column0_deg=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="known_column0_deg: expected finite degrees"):
        calibrate(image, image, known_column0_deg=float("inf"))
    with pytest.raises(ValueError, match="polar: expected the size of the panoramas"):
        calibrate(image, image[:, :, :64], method="orb")
    with pytest.raises(ValueError, match="panorama: expected"):
        roll_panorama(np.zeros(3), 0.0)
