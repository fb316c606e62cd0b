"""Hand-made features of azimuth columns, for which nothing is learned: where it is bright, colourful or green."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["COLOUR_CHANNELS", "colour_cells"]

_ROWS = 8  # of the lower half
COLOUR_CHANNELS = 3 * _ROWS


def colour_cells(image: np.ndarray, columns: int) -> np.ndarray:
    """Float32 [3, 8, columns] of uint8 [H, w, 3]: brightness, chroma and green excess of the lower half in cells.

    Every row is standardised over what was seen of it (black was not), so that neither light nor camera counts.
    """
    image = image[image.shape[0] // 2 :].astype(np.float32)
    seen = (image.sum(axis=2) > 0).astype(np.float32)
    features = np.stack(
        [image.mean(axis=2), image.max(axis=2) - image.min(axis=2), image @ np.array((-1, 2, -1), np.float32)]
    )
    cells = (columns, _ROWS)
    weight = cv2.resize(seen, cells, interpolation=cv2.INTER_AREA)
    strip = []
    for feature in features:
        mean = cv2.resize(feature * seen, cells, interpolation=cv2.INTER_AREA) / np.maximum(weight, 1e-3)
        there = weight > 0.3
        total = np.maximum(there.sum(axis=1, keepdims=True), 1)
        mean = (mean - (mean * there).sum(axis=1, keepdims=True) / total) * there
        strip.append(mean / (np.sqrt((mean**2).sum(axis=1, keepdims=True) / total) + 2))
    return np.stack(strip)
