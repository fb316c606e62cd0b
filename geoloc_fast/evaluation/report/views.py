"""Parts that both pages share: the region from above, a place cropped to a photo's view, and files of the package."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from importlib import resources

import cv2
import numpy as np
import torch

from geoloc_fast.evaluation.report.pictures import COLUMN0_DEG, Tile
from geoloc_fast.polar import polar_resample

__all__ = ["data_uri", "mosaic", "own_file", "polar_window", "street_window"]

_POLAR = (96, 768)
_FINEST_M = 0.2  # a pixel of the mosaic
_COARSEST_M = 20.0
_FADE = 0.16  # of a tile's side: how fast it gives way to its neighbours


def mosaic(
    tiles: Iterable[tuple[float, float, Callable[[], Tile | None]]],
    box: tuple[float, float, float, float],
    *,
    longer_px: int,
) -> np.ndarray | None:
    """The tiles of a region as one picture, uint8 [h, w, 4], transparent where there is none; None if it is empty.

    Each pixel is a mean in which the tile whose middle is nearest counts most, so that seams do not show.

    Args:
        tiles: (east_m, north_m) of the middle of each, and what opens it.
        box: west, south, east, north of the picture, in the same metres.
        longer_px: its longer side.
    """
    west, south, east, north = box
    metres = max(max(east - west, north - south) / longer_px, _FINEST_M)
    if metres > _COARSEST_M:  # places of several cities: a tile would be a dot
        return None
    width, height = max(1, round((east - west) / metres)), max(1, round((north - south) / metres))
    total = np.zeros((height, width, 4), np.float32)  # weighted colours, and the weight
    for at_east, at_north, open_tile in tiles:
        tile = open_tile()
        if tile is None or tile.side_m is None or tile.side_m < 2 * metres:
            continue
        px = round(tile.side_m / metres)
        left, top = round((at_east - west) / metres - px / 2), round((north - at_north) / metres - px / 2)
        rows, columns = slice(max(top, 0), min(top + px, height)), slice(max(left, 0), min(left + px, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        image = cv2.resize(tile.image, (px, px), interpolation=cv2.INTER_AREA).astype(np.float32)
        fall = np.exp(-(((np.arange(px) + 0.5) / px - 0.5) ** 2) / (2 * _FADE**2)).astype(np.float32)
        weight = fall[:, None] * fall
        inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        total[rows, columns, :3] += image[inside] * weight[inside][..., None]
        total[rows, columns, 3] += weight[inside]
    covered = total[..., 3] > 0
    if not covered.any():
        return None
    picture = np.zeros((height, width, 4), np.uint8)
    picture[covered, :3] = np.rint(total[covered, :3] / total[covered, 3:])
    picture[covered, 3] = 255
    return picture


def street_window(panorama: np.ndarray, heading_deg: float, fov_deg: float, size: tuple[int, int]) -> np.ndarray:
    """What a photo of this heading and field of view would show of a panorama: perspective, uint8 [*size, 3]."""
    height, width = panorama.shape[:2]
    azimuth, elevation = _rays(fov_deg, size)
    x = (heading_deg + azimuth - COLUMN0_DEG) % 360 / 360 * width - 0.5
    y = height / 2 - 0.5 - elevation * width / 360  # rows have the columns' degrees
    return _sampled(panorama, x, np.clip(y, 0, height - 1))


def polar_window(tile: np.ndarray, heading_deg: float, fov_deg: float, size: tuple[int, int]) -> np.ndarray:
    """The same stretch of the satellite image in polar form, far at the top, near at the bottom; columns as above."""
    square = torch.from_numpy(np.ascontiguousarray(tile)).permute(2, 0, 1)[None]
    polar = polar_resample(square, _POLAR, column0_deg=COLUMN0_DEG)[0].permute(1, 2, 0).numpy()
    azimuth, _ = _rays(fov_deg, size)
    x = (heading_deg + azimuth - COLUMN0_DEG) % 360 / 360 * _POLAR[1]
    rows = (np.arange(size[0]) + 0.5) * _POLAR[0] / size[0] - 0.5
    return _sampled(polar, x, np.broadcast_to(rows[:, None], x.shape))


def _rays(fov_deg: float, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of azimuth from the axis, and of elevation, of every pixel of a photo."""
    rows, columns = size
    focal = columns / 2 / np.tan(np.radians(fov_deg) / 2)
    x = (np.arange(columns) + 0.5 - columns / 2) / focal
    y = (rows / 2 - np.arange(rows) - 0.5)[:, None] / focal
    azimuth = np.degrees(np.arctan(np.broadcast_to(x, (rows, columns))))
    return azimuth, np.degrees(np.arctan(y / np.hypot(1, x)))


def _sampled(panorama: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    wrapped = np.concatenate([panorama[:, -1:], panorama, panorama[:, :1]], axis=1)
    return cv2.remap(np.ascontiguousarray(wrapped), (x + 1).astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def data_uri(image: np.ndarray, *, longer_px: int, quality: int = 82) -> str:
    """As WebP in a `data:` address, no larger than asked for."""
    scale = longer_px / max(image.shape[:2])
    if scale < 1:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    order = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    done, content = cv2.imencode(".webp", cv2.cvtColor(image, order), [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise RuntimeError(f"report: an image of {image.shape} could not be encoded as WebP")
    return f"data:image/webp;base64,{base64.b64encode(content.tobytes()).decode()}"


def own_file(name: str) -> str:
    """A file that lies beside this one."""
    return (resources.files("geoloc_fast.evaluation.report") / name).read_text(encoding="utf-8")
