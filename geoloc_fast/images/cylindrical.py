"""Reproject perspective photos to columns of azimuth, like those of panoramas and polar images."""

from __future__ import annotations

import math

import cv2
import numpy as np

__all__ = ["WIDEST_PHOTO_DEG", "pixels_across", "to_cylindrical"]

WIDEST_PHOTO_DEG = 170.0  # of a perspective photo; beyond it is a panorama, whose columns are azimuth already


def pixels_across(fov_deg: float, columns: int) -> int:
    """Width at which a perspective photo has the two pixels a column that `to_cylindrical` shrinks to itself."""
    return math.ceil(4 * math.tan(math.radians(fov_deg / 2)) * columns / (2 * math.pi))


def to_cylindrical(photo: np.ndarray, fov_deg: float, *, size: tuple[int, int] = (64, 256)) -> np.ndarray:
    """Reprojects a level perspective photo to the columns and rows of a panorama.

    With (H, W) = `size` of the panorama and d = 360 / W degrees per column, the result has
    columns = round(fov_deg / d) columns:

    - column j samples the azimuth (j - columns / 2) d from the photo's optical axis: the left edge of
      its bin, as in panoramas and polar images. So the photo's heading lies over column index
      columns / 2, and a photo that fits best at panorama column s looks at
      column0_deg + (s + columns / 2) d.
    - row i samples the elevation (H / 2 - 0.5 - i) d: the horizon is between rows H/2-1 and H/2.

    Each sample is the mean over its d x d degrees, so a large photo does not alias. What lies above or
    below the photo is black (0). Columns never are: rounding puts the outermost bins at most a quarter
    column beyond the photo's edge, where its edge pixels are repeated.

    Args:
        photo: uint8 [h, w, 3], square pixels, optical axis through the middle of the image, and the
            horizon on its middle row.
        fov_deg: horizontal angle between the photo's left and right edges, at least half a column
            and at most 170.
        size: (H, W) of the panorama; H is also the height of the result.

    Returns:
        uint8 [H, columns, 3]
    """
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8:
        got = photo.dtype if isinstance(photo, np.ndarray) else type(photo).__name__
        raise TypeError(f"photo: expected a uint8 array, got {got}")
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.size == 0:
        raise ValueError(f"photo: expected shape [h, w, 3] with pixels in it, got {photo.shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (rows, columns) of a panorama, both positive, got {size}")
    rows, degrees = size[0], 360.0 / size[1]
    if fov_deg is None:
        raise TypeError(
            "fov_deg: expected degrees, got None; a photo that does not say its own takes `assumed_fov_deg`"
        )
    if not 0.5 * degrees < fov_deg <= WIDEST_PHOTO_DEG:  # refuses NaN too
        raise ValueError(
            f"fov_deg: expected more than half a column ({0.5 * degrees:g}) and at most 170 degrees, got {fov_deg}"
        )
    columns = round(fov_deg / degrees)

    height, width = photo.shape[:2]
    focal_px = width / 2 / np.tan(np.radians(fov_deg) / 2)
    # Shrink first, to about two pixels a column in the middle of the photo; four rays each way then
    # cover every pixel out to the edges of a wide photo, where a column spans more of them.
    shrink = max(1.0, focal_px * np.radians(degrees) / 2)
    small_size = max(1, round(width / shrink)), max(1, round(height / shrink))
    small = cv2.resize(photo, small_size, interpolation=cv2.INTER_AREA) if shrink > 1 else photo
    focal_x, focal_y = focal_px * small_size[0] / width, focal_px * small_size[1] / height

    rays = 4
    spread = (np.arange(rays) + 0.5) / rays - 0.5  # symmetric, so that no sample is biased
    azimuth = np.radians(degrees) * (np.arange(columns)[:, None] - columns / 2 + spread).ravel()
    azimuth = np.clip(azimuth, *np.radians((-fov_deg / 2, fov_deg / 2)))
    elevation = np.radians(degrees) * (rows / 2 - 0.5 - np.arange(rows)[:, None] + spread).ravel()
    elevation = np.clip(elevation, *np.radians((-89.9, 89.9)))
    x = ((small_size[0] - 1) / 2 + focal_x * np.tan(azimuth)).astype(np.float32)
    y = np.multiply.outer((-focal_y * np.tan(elevation)).astype(np.float32), (1 / np.cos(azimuth)).astype(np.float32))
    y += np.float32((small_size[1] - 1) / 2)
    inside = (y >= -0.5) & (y <= small_size[1] - 0.5)
    np.clip(y, -1, small_size[1], out=y)
    x = np.repeat(x[None], len(y), axis=0)
    fine = cv2.remap(small, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    fine = cv2.bitwise_and(fine, fine, mask=inside.view(np.uint8))
    # Means over blocks of rays x rays: exact, since sums of 16 bytes and bits are exact in float32.
    mean = cv2.resize(fine.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    covered = cv2.resize(inside.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)[..., None]
    mean = np.divide(mean, covered, out=np.zeros_like(mean), where=np.broadcast_to(2 * covered >= 1, mean.shape))
    return np.rint(mean).astype(np.uint8)
