"""Which way does a street panorama look? Spatial feature calibration against the satellite image.

A satellite image is north-up, so its polar image has a known frame. A panorama of unknown heading is turned round it
until the two fit; what comes out is the heading of the *panorama's* column 0. The satellite image is never turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from geoloc_fast.azimuth import azimuth_crop

__all__ = ["LOW_QUALITY", "METHODS", "STATUSES", "Calibration", "calibrate", "roll_panorama"]

METHODS = ("azimuth", "orb", "sift", "orb-mean", "known")
STATUSES = ("known", "measured", "low quality", "none")

COLUMNS = 64  # of the strips that are correlated: bins of 5.6 degrees, refined between them
_ROWS = 8
_TURN_DEG = 360.0
_CHUNK = 8  # pairs measured at once: their features stay in the cache
_SEPARATE_COLUMNS = 6  # a rival direction lies further than one and a half of 16 bins from the best
_GREY = (0.299, 0.587, 0.114)

# quality = 1 / (1 + exp(-(a + b * margin))), the chance of being within one of 16 bins, fitted on synthetic cities
# (bench/calibration_table.py --fit): for "azimuth" the margin is how far the best direction stands above its
# best rival, in standard deviations of the whole curve; for the votes, in square roots of matches.
_LOGISTIC = {"azimuth": (-0.69, 2.55), "orb": (-1.51, 0.75), "sift": (-1.24, 1.68), "orb-mean": (-1.79, 0.0)}
LOW_QUALITY = 0.95  # below it a calibration is marked "low quality"


class Calibration(NamedTuple):
    """One entry a pair; `column0_deg` and `quality` are NaN where status is "none"."""

    column0_deg: np.ndarray  # float64 [B], heading of the panorama's column 0, in [0, 360)
    quality: np.ndarray  # float64 [B] in [0, 1]: estimated chance of being within 22.5 degrees
    status: list[str]  # [B] of STATUSES


def calibrate(
    panorama: Tensor,
    polar: Tensor,
    *,
    method: str = "azimuth",
    polar_column0_deg: float = 180.0,
    known_column0_deg: Any = None,
) -> Calibration:
    """The heading of column 0 of panoramas [B, 3, H, W], measured against polar images [B, 3, H', W'].

    Both are RGB in 0..255 and see the whole circle; the horizon is near the middle row of the panorama, and the
    bottom row of the polar image is the centre of a north-up satellite image, as `polar_resample` leaves it.

    Args:
        method: "azimuth" slides the panorama round the polar image and correlates cheap features of the ground (the
            lower half of both). "orb" and "sift" match key points and let each match vote for an offset, round the
            circle; "orb-mean" takes the plain mean of the offsets of ORB matches, as the main paper does. "known"
            measures nothing.
        polar_column0_deg: heading of column 0 of the polar images.
        known_column0_deg: [B], NaN where it is not known, or one number for all. Where it is known it is the
            answer, whatever the method: status "known", quality 1.

    A pair in which nothing can be measured (an empty image, too few matches) has status "none" and NaN for an answer;
    one that is measured, with a quality below `LOW_QUALITY`, is marked "low quality". Nothing is ever left out.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, METHODS))}, got {method!r}")
    _check_images("panorama", panorama)
    _check_images("polar", polar)
    if len(panorama) != len(polar):
        raise ValueError(f"polar: expected {len(panorama)} images, one per panorama, got {len(polar)}")
    if panorama.device != polar.device:
        raise ValueError(f"polar: expected the device of panorama ({panorama.device}), got {polar.device}")
    frame_deg = _finite("polar_column0_deg", polar_column0_deg)
    known = _known(known_column0_deg, len(panorama))
    if method == "known" and known_column0_deg is None:
        raise ValueError('known_column0_deg: expected headings for method="known", got None')

    offset_turns = np.full(len(panorama), np.nan)
    quality = np.full(len(panorama), np.nan)
    todo = np.flatnonzero(np.isnan(known))
    if method != "known" and len(todo):
        chosen = torch.from_numpy(todo).to(panorama.device)
        measure = _azimuth if method == "azimuth" else _MATCHERS[method]
        start, slope = _LOGISTIC[method]
        for at in range(0, len(todo), _CHUNK):
            these, part = todo[at : at + _CHUNK], chosen[at : at + _CHUNK]
            offset_turns[these], margin = measure(panorama.detach()[part], polar.detach()[part])
            quality[these] = 1 / (1 + np.exp(-(start + slope * margin)))
    column0_deg = np.where(np.isnan(known), (frame_deg + _TURN_DEG * offset_turns) % _TURN_DEG, known % _TURN_DEG)
    column0_deg = np.where(column0_deg >= _TURN_DEG, 0.0, column0_deg)  # a tiny negative remainder rounds up to 360
    quality = np.where(np.isnan(known), quality, 1.0)
    status = [
        "known" if is_known else "none" if math.isnan(q) else "measured" if q >= LOW_QUALITY else "low quality"
        for is_known, q in zip(~np.isnan(known), quality, strict=True)
    ]
    return Calibration(column0_deg, quality, status)


def roll_panorama(panorama: np.ndarray, column0_deg: float, *, to_deg: float = 180.0) -> np.ndarray:
    """The panorama [H, W, ...] with its columns moved round: column 0 looks at `to_deg`, within half a column."""
    if panorama.ndim < 2 or panorama.shape[1] == 0:
        raise ValueError(f"panorama: expected [H, W, ...] with columns in it, got shape {panorama.shape}")
    column0_deg, to_deg = _finite("column0_deg", column0_deg), _finite("to_deg", to_deg)
    columns = panorama.shape[1]
    return np.roll(panorama, math.floor((column0_deg - to_deg) * columns / _TURN_DEG + 0.5), axis=1)


def _check_images(name: str, value: Any) -> None:
    expected = f"{name}: expected a tensor [B, 3, H, W], H >= {2 * _ROWS} and W >= {COLUMNS}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.dtype != torch.uint8 and not value.dtype.is_floating_point:
        raise TypeError(f"{expected}, of uint8 or floats, got {value.dtype}")
    if value.dim() != 4 or value.shape[1] != 3 or value.shape[2] < 2 * _ROWS or value.shape[3] < COLUMNS:
        raise ValueError(f"{expected}, got shape {tuple(value.shape)}")


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected finite degrees, got {value}")
    return float(value)


def _known(value: Any, count: int) -> np.ndarray:
    if value is None:
        return np.full(count, np.nan)
    given = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    try:
        known = np.broadcast_to(np.asarray(given, dtype=np.float64), (count,))
    except (TypeError, ValueError) as error:
        raise ValueError(f"known_column0_deg: expected {count} numbers, one per panorama, got {value!r}") from error
    if np.isinf(known).any():
        raise ValueError(f"known_column0_deg: expected finite degrees, or NaN where unknown, got {value!r}")
    return known


def _azimuth(panorama: Tensor, polar: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Offsets in turns, and how far each stands above its best rival in standard deviations of its curve."""
    street, street_spectrum = _strips(panorama)
    above, above_spectrum = _strips(polar)
    # Column 0 of the panorama lies over column `shift` of the polar image; the curve is the correlation it maximises.
    shift = azimuth_crop(torch.from_numpy(street), torch.from_numpy(above)).shift.numpy()
    curve = np.fft.irfft((street_spectrum.conj() * above_spectrum).sum((1, 2)), n=COLUMNS)
    pair = np.arange(len(curve))
    left, best, right = (curve[pair, (shift + step) % COLUMNS] for step in (-1, 0, 1))
    bend = left - 2 * best + right
    between = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1), 0.0).clip(-0.5, 0.5)
    away = np.abs((np.arange(COLUMNS) - shift[:, None] + COLUMNS // 2) % COLUMNS - COLUMNS // 2)
    rival = np.where(away >= _SEPARATE_COLUMNS, curve, -np.inf).max(1)
    spread = curve.std(1)
    seen = np.isfinite(spread) & (spread > 1e-6)  # an image of one colour fits every way round
    margin = (best - rival) / np.where(seen, spread, 1)
    return np.where(seen, (shift + between) / COLUMNS, np.nan), np.where(seen, margin, np.nan)


def _strips(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Strips [B, 6, 8, 64] of the lower half of images [B, 3, H, W], where the ground changes as one looks round;
    and their spectra. Not in torch: a thread pool costs more than these small planes take."""
    planes = images[:, :, images.shape[2] // 2 :].cpu()
    planes = planes.to(torch.float32) if planes.dtype.is_floating_point else planes
    cells = np.stack([_cells(image) for image in planes.numpy()])
    # Every row of every channel counts alike. Within a row, the square root flattens the spectrum: one bright side
    # (the sun, a long shadow) is a strong first harmonic that says little about which way the street runs.
    spectrum = np.fft.rfft(cells)
    spectrum[..., 0] = 0
    with np.errstate(invalid="ignore"):  # NaN comes out as NaN: nothing is measured there
        spectrum /= np.sqrt(np.abs(spectrum) + 1e-6)
        energy = np.square(np.abs(spectrum)).sum(-1, keepdims=True)
        spectrum *= np.where(energy < 1e-4, 0, 1 / np.sqrt(energy + 1e-9))  # a row of one value says nothing
    return np.fft.irfft(spectrum, n=COLUMNS).astype(np.float32), spectrum


def _cells(ground: np.ndarray) -> np.ndarray:
    """Means over 8 x 64 cells of what the ground looks like in an image [3, H, W]."""
    red, green, blue = (plane.astype(np.float32) * np.float32(1 / 255) for plane in ground)
    grey = (red + green + blue) / 3
    across = np.abs(np.roll(grey, -1, axis=1) - np.roll(grey, 1, axis=1))
    down = np.zeros_like(grey)
    np.abs(grey[1:] - grey[:-1], out=down[:-1])
    # Seasons and cameras change colours and contrast; the last channel measures edges against the brightness they
    # are on, so that shade and sun count alike.
    relative = cv2.log((across + np.float32(0.01)) / (grey + np.float32(0.1)))
    features = (grey, red - blue, green - (red + blue) / 2, across, down, relative)
    return np.stack([cv2.resize(plane, (COLUMNS, _ROWS), interpolation=cv2.INTER_AREA) for plane in features])


def _each_pair(
    panorama: Tensor, polar: Tensor, detector: Callable[[], Any], norm: int, vote: Callable[[np.ndarray], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Key points of the panorama matched to those of the polar image, and a vote on their offsets in turns."""
    if panorama.shape[2:] != polar.shape[2:]:
        raise ValueError(
            f"polar: expected the size of the panoramas, {tuple(panorama.shape[2:])}, to match key points, "
            f"got {tuple(polar.shape[2:])}"
        )
    found, matcher = detector(), cv2.BFMatcher(norm, crossCheck=True)
    offset, margin = np.full((2, len(panorama)), np.nan)
    columns = panorama.shape[3]
    for n, (street, above) in enumerate(zip(_grey(panorama), _grey(polar), strict=True)):
        points, codes = found.detectAndCompute(street, None)
        points_above, codes_above = found.detectAndCompute(above, None)
        if codes is None or codes_above is None:
            continue
        matches = matcher.match(codes, codes_above)
        if len(matches) < 10:  # the published script's rule
            continue
        moved = [points_above[match.trainIdx].pt[0] - points[match.queryIdx].pt[0] for match in matches]
        offset[n], margin[n] = vote(np.asarray(moved) / columns)
    return offset, margin


def _grey(images: Tensor) -> list[np.ndarray]:
    weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
    return list((images.to(torch.float32) * weights).sum(1).round().clamp(0, 255).to(torch.uint8).cpu().numpy())


def _circular_vote(moved: np.ndarray) -> tuple[float, float]:
    """The offset most matches agree on, round the circle: a histogram of COLUMNS bins, softened by one bin."""
    votes = np.bincount((moved * COLUMNS).round().astype(int) % COLUMNS, minlength=COLUMNS).astype(float)
    spectrum = np.fft.rfft(votes) * np.exp(-0.5 * (2 * np.pi * np.arange(COLUMNS // 2 + 1) * 1.5 / COLUMNS) ** 2)
    smooth = np.fft.irfft(spectrum, n=COLUMNS)
    best = int(smooth.argmax())
    near = np.abs((np.arange(COLUMNS) - best + COLUMNS // 2) % COLUMNS - COLUMNS // 2)
    here = np.abs((moved * COLUMNS - best + COLUMNS / 2) % COLUMNS - COLUMNS / 2) <= 2
    turn = np.exp(2j * np.pi * moved[here]).sum()
    offset = np.angle(turn) / (2 * np.pi) % 1 if here.any() else best / COLUMNS
    rival = smooth[near >= _SEPARATE_COLUMNS].max()
    return float(offset), float((smooth[best] - rival) / math.sqrt(len(moved)) * COLUMNS / 8)


def _plain_mean(moved: np.ndarray) -> tuple[float, float]:
    return float(moved.mean() % 1), 0.0


_cv2: Any = cv2  # the stubs of OpenCV know neither factory
_MATCHERS: dict[str, Callable[[Tensor, Tensor], tuple[np.ndarray, np.ndarray]]] = {
    "orb": lambda p, s: _each_pair(p, s, _cv2.ORB_create, cv2.NORM_HAMMING, _circular_vote),
    "sift": lambda p, s: _each_pair(p, s, _cv2.SIFT_create, cv2.NORM_L2, _circular_vote),
    "orb-mean": lambda p, s: _each_pair(p, s, _cv2.ORB_create, cv2.NORM_HAMMING, _plain_mean),
}
