"""Crop squares of ground from satellite images."""

from __future__ import annotations

import cv2
import numpy as np

from geoloc_fast.errors import ImageError

__all__ = ["crop_satellite", "satellite_square"]

_SHORT = 0.98  # of the ground that is needed: what rounding may take


def crop_satellite(image: np.ndarray, metres_per_pixel: float | None, side_m: float, side_px: int) -> np.ndarray:
    """The middle `side_m` x `side_m` of a north-up image as uint8 [side_px, side_px, 3]; black where it shows nothing.

    Pixel index (S/2, S/2) is the place in both, for their own S. With `metres_per_pixel` None the shorter side of the
    image is taken to be `side_m`.
    """
    height, width = image.shape[:2]
    metres = side_m / min(height, width) if metres_per_pixel is None else metres_per_pixel
    row, col, scale = height / 2, width / 2, side_m / side_px / metres  # scale: source pixels a target pixel
    shrink = min(int(scale), height, width)
    if shrink >= 2:  # average first, so that nothing aliases; pixel u of the result is the mean of shrink u and on
        rows, cols = height // shrink, width // shrink
        image = cv2.resize(image[: rows * shrink, : cols * shrink], (cols, rows), interpolation=cv2.INTER_AREA)
        row, col, scale = (row - (shrink - 1) / 2) / shrink, (col - (shrink - 1) / 2) / shrink, scale / shrink
    back = np.array([[scale, 0, col - scale * side_px / 2], [0, scale, row - scale * side_px / 2]])
    if np.array_equal(back, [[1, 0, 0], [0, 1, 0]]) and image.shape[:2] == (side_px, side_px):
        return image
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, back, (side_px, side_px), flags=flags, borderMode=cv2.BORDER_CONSTANT))


def satellite_square(
    image: np.ndarray, path: str, metres_per_pixel: float | None, *, extent_m: float, size: int
) -> np.ndarray:
    """The middle `extent_m` x `extent_m` as uint8 [size, size, 3]; ImageError if the image shows less ground, or shows
    it in less than half as many pixels. Without a resolution the image is taken to show just that much."""
    side = min(image.shape[:2])
    metres = extent_m / side if metres_per_pixel is None else metres_per_pixel
    if metres * side < _SHORT * extent_m:
        raise ImageError(path, f"shows {metres * side:.3g} m across; {extent_m:g} m are needed")
    if 2 * extent_m < size * metres:
        raise ImageError(path, f"has {extent_m / metres:.0f} pixels across {extent_m:g} m; {size // 2} are needed")
    return crop_satellite(image, metres, extent_m, size)
