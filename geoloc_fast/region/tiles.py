"""Map tiles of a region's own satellite images, as one PMTiles file: the background map of the web page."""

from __future__ import annotations

import math
import os
import tempfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.geo.mercator import web_mercator_metres_per_pixel
from geoloc_fast.images.decode import decode_image, read_header
from geoloc_fast.progress import Progress
from geoloc_fast.region.imagery import wanted

__all__ = ["make_tiles"]

_PX = 256
_DEEPEST = 20
_SHALLOWEST = 8
_FADE = 0.16  # of an image's side: how fast it gives way to its neighbours
_QUALITY = 80
_IMAGES_OPEN = 256
_MOST = 4_000_000


def make_tiles(
    region: str | os.PathLike[str] | Manifest,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> int:
    """Writes WebP tiles of every zoom from that of the images upwards; returns how many. Seams are blended: the image
    whose middle is nearest counts most.

    Args:
        region: a manifest with satellite images of known ground resolution.
        out: the file.
    """
    writer_of, tile_of = wanted("pmtiles.writer"), wanted("pmtiles.tile")
    manifest = region if isinstance(region, Manifest) else Manifest.load(region)
    rows = [row for row in manifest.places.to_pylist() if None not in (row["satellite"], row["lat"])]
    rows = [row for row in rows if row["metres_per_pixel"] is not None]
    if not rows:
        raise ValueError(f"{manifest.root}: has no satellite images of known position and resolution")
    finest = float(np.median([row["metres_per_pixel"] for row in rows]))
    lat = float(np.median([row["lat"] for row in rows]))
    ideal = math.log2(web_mercator_metres_per_pixel(lat, 0) / finest)
    zoom = max(_SHALLOWEST, min(_DEEPEST, round(ideal)))
    touched: dict[tuple[int, int], list[int]] = defaultdict(list)
    frames: list[tuple[float, float, float] | None] = []
    for n, row in enumerate(rows):
        try:
            header = read_header(manifest.open_image(row["satellite"]), row["satellite"])
        except ImageError:
            frames.append(None)
            continue
        side = row["metres_per_pixel"] * min(header.height, header.width)
        px = side / web_mercator_metres_per_pixel(row["lat"], zoom)
        world = _PX * 2**zoom
        x = (row["lon"] + 180) / 360 * world
        y = (1 - math.asinh(math.tan(math.radians(row["lat"]))) / math.pi) / 2 * world
        frames.append((x, y, px))
        for tile_x in range(int((x - px / 2) // _PX), int((x + px / 2) // _PX) + 1):
            for tile_y in range(int((y - px / 2) // _PX), int((y + px / 2) // _PX) + 1):
                if 0 <= tile_x < 2**zoom and 0 <= tile_y < 2**zoom:
                    touched[tile_x, tile_y].append(n)
        if len(touched) > _MOST:
            raise ValueError(f"{manifest.root}: needs more than {_MOST} tiles; make them of a smaller region")
    images: OrderedDict[int, np.ndarray | None] = OrderedDict()

    def image_of(n: int) -> np.ndarray | None:
        if n not in images:
            path = rows[n]["satellite"]
            try:
                images[n] = decode_image(manifest.open_image(path), path)
            except ImageError:
                images[n] = None
            if len(images) > _IMAGES_OPEN:
                images.popitem(last=False)
        images.move_to_end(n)
        return images[n]

    path = Path(out)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            content: dict[tuple[int, int, int], bytes] = {}
            level: dict[tuple[int, int], np.ndarray] = {}
            total = len(touched)
            for done, (at, which) in enumerate(sorted(touched.items()), start=1):
                picture = _drawn(at, which, frames, image_of)
                if picture is not None:
                    content[zoom, at[0], at[1]] = _webp(picture)
                    level[at] = cv2.resize(picture, (_PX // 2, _PX // 2), interpolation=cv2.INTER_AREA)
                if progress is not None:
                    progress(done, total)
            for upper in range(zoom - 1, max(_SHALLOWEST, zoom - 8) - 1, -1):
                parents: dict[tuple[int, int], np.ndarray] = {}
                for (x, y), half in level.items():
                    whole = parents.setdefault((x // 2, y // 2), np.zeros((_PX, _PX, 4), np.uint8))
                    top, left = y % 2 * _PX // 2, x % 2 * _PX // 2
                    whole[top : top + _PX // 2, left : left + _PX // 2] = half
                for at, whole in parents.items():
                    content[upper, at[0], at[1]] = _webp(whole)
                level = {
                    at: cv2.resize(whole, (_PX // 2, _PX // 2), interpolation=cv2.INTER_AREA)
                    for at, whole in parents.items()
                }
            if not content:
                raise ValueError(f"{manifest.root}: none of its satellite images can be read")
            writer = writer_of.Writer(file)
            for (z, x, y), tile in sorted(content.items(), key=lambda item: tile_of.zxy_to_tileid(*item[0])):
                writer.write_tile(tile_of.zxy_to_tileid(z, x, y), tile)
            writer.finalize(_header(tile_of, rows, min(z for z, _, _ in content), zoom), {})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return len(content)


def _drawn(
    at: tuple[int, int],
    which: list[int],
    frames: list[tuple[float, float, float] | None],
    image_of: Callable[[int], np.ndarray | None],
) -> np.ndarray | None:
    """uint8 [_PX, _PX, 4] of a tile, transparent where no image shows it."""
    total = np.zeros((_PX, _PX, 4), np.float32)
    left, top = at[0] * _PX, at[1] * _PX
    for n in which:
        frame, image = frames[n], image_of(n)
        if frame is None or image is None:
            continue
        x, y, px = frame
        side = min(image.shape[:2])
        scale = side / px
        back = np.array(
            [
                [scale, 0, image.shape[1] / 2 + (left + 0.5 - x) * scale - 0.5],
                [0, scale, image.shape[0] / 2 + (top + 0.5 - y) * scale - 0.5],
            ]
        )
        flags = cv2.INTER_AREA if scale > 1.5 else cv2.INTER_LINEAR
        drawn = cv2.warpAffine(image, back, (_PX, _PX), flags=flags | cv2.WARP_INVERSE_MAP).astype(np.float32)
        east = (np.arange(_PX) + left + 0.5 - x) / px
        south = (np.arange(_PX) + top + 0.5 - y) / px
        fall = [np.exp(-(values**2) / (2 * _FADE**2)) * (np.abs(values) < 0.5) for values in (south, east)]
        weight = (fall[0][:, None] * fall[1]).astype(np.float32)
        total[..., :3] += drawn * weight[..., None]
        total[..., 3] += weight
    covered = total[..., 3] > 0
    if not covered.any():
        return None
    picture = np.zeros((_PX, _PX, 4), np.uint8)
    picture[covered, :3] = np.rint(total[covered, :3] / total[covered, 3:])
    picture[covered, 3] = 255
    return picture


def _webp(picture: np.ndarray) -> bytes:
    done, content = cv2.imencode(
        ".webp", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_WEBP_QUALITY, _QUALITY]
    )
    if not done:
        raise RuntimeError("tiles: a tile could not be encoded as WebP")
    return bytes(content.tobytes())


def _header(tile_of: Any, rows: list[dict[str, Any]], least: int, most: int) -> dict[str, Any]:
    lat, lon = [row["lat"] for row in rows], [row["lon"] for row in rows]
    corners = {"min_lon": min(lon), "min_lat": min(lat), "max_lon": max(lon), "max_lat": max(lat)}
    corners |= {"center_lon": (min(lon) + max(lon)) / 2, "center_lat": (min(lat) + max(lat)) / 2}
    return {
        "tile_type": tile_of.TileType.WEBP,
        "tile_compression": tile_of.Compression.NONE,
        "min_zoom": least,
        "max_zoom": most,
        "center_zoom": most,
        **{f"{name}_e7": round(value * 1e7) for name, value in corners.items()},
    }
