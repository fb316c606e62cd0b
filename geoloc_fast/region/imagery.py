"""Imagery from above: a folder or an archive of map tiles, or a georeferenced raster.

A `Ground` gives the square of any side round any position, north up, whatever it is stored as. How many metres a pixel
shows comes from the tile's zoom and latitude, or from the raster's georeference: it is never assumed. Only what is
asked for is read.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from geoloc_fast.errors import ImageryError
from geoloc_fast.geo.mercator import web_mercator_metres_per_pixel
from geoloc_fast.geo.regions import Box
from geoloc_fast.geo.sphere import move_m
from geoloc_fast.images.decode import decode_rgba
from geoloc_fast.images.storage import MAX_FILE_BYTES, ImageError, Storage

__all__ = ["KINDS", "Ground", "RasterGround", "Square", "TileGround", "open_imagery", "wanted"]

DEEPEST_ZOOM = 24
_TILE_PX = (128, 4096)
_TILES_OPEN = 96
_CACHE_MB = 192  # of GDAL's blocks
_TILE_NAME = re.compile(r"(\d{1,2})/(\d{1,8})/(\d{1,8})(@2x)?\.(png|jpg|jpeg|webp|tif|tiff)", re.IGNORECASE)
_MAX_TILES = 200_000_000


class Square(NamedTuple):
    """A square of ground, cut out of imagery."""

    image: np.ndarray  # uint8 [px, px, 3], north up, the position at index (px / 2, px / 2)
    covered: float  # share of it that the imagery shows


class Ground(Protocol):
    """What imagery promises to whoever cuts places out of it."""

    bounds: Box
    """Of all that it may show."""
    pixel_m: float
    """Metres a pixel, in the middle of it."""

    def covers(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """bool [N]: where it may show something; a quick look that no image is read for."""

    def order(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """int64 [N]: the order in which neighbours in storage follow one another."""

    def frames(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """float64 [N, ...]: where positions lie in it, for `square`; all at once, since projecting one is slow."""

    def square(self, frame: np.ndarray, side_m: float, px: int) -> Square:
        """The ground round a position. Safe to call from several threads."""


# --- tiles -----------------------------------------------------------------------------------------------


class Tiles(Protocol):
    """Where tiles come from: z/x/y counted from the north, as web maps do."""

    def zooms(self) -> list[int]: ...

    def all(self, zoom: int) -> np.ndarray:
        """int64 [N, 2]: x and y of every tile."""

    def read(self, zoom: int, x: int, y: int) -> bytes | None: ...


class TileGround:
    """Web-Mercator tiles of one zoom.

    Args:
        tiles: where they come from.
        zoom: which; default the deepest there is.
    """

    def __init__(self, tiles: Tiles, *, zoom: int | None = None, name: str = "tiles") -> None:
        there = tiles.zooms()
        if not there:
            raise ImageryError(f"{name}: there are no tiles in it")
        if zoom is not None and zoom not in there:
            raise ImageryError(f"{name}: there are no tiles of zoom {zoom}; there are {', '.join(map(str, there))}")
        self.zoom = there[-1] if zoom is None else zoom
        self.name = name
        self._tiles = tiles
        at = tiles.all(self.zoom)
        if not len(at):
            raise ImageryError(f"{name}: there are no tiles of zoom {self.zoom}")
        self._keys = np.unique(at[:, 0] << 32 | at[:, 1])
        side = 2**self.zoom
        (west, north), (east, south) = at.min(0), at.max(0) + 1
        self.bounds = Box(_lat(south / side), _lon(west / side), _lat(north / side), _lon(east / side))
        self._cache: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()
        self._lock = threading.Lock()
        first = next((image for x, y in at[:64].tolist() if (image := self._tile(int(x), int(y))) is not None), None)
        if first is None:
            raise ImageryError(f"{name}: none of its first tiles of zoom {self.zoom} can be read as an image")
        self._px = first.shape[0]
        self.pixel_m = self._metres((self.bounds.south + self.bounds.north) / 2)

    def _metres(self, lat: float) -> float:
        return web_mercator_metres_per_pixel(lat, self.zoom) * 256 / self._px

    def covers(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        x, y = _world(lat, lon)
        side = 2**self.zoom
        inside = (y >= 0) & (y < 1)
        keys = np.floor(x * side).astype(np.int64) % side << 32 | np.floor(np.clip(y, 0, 1) * side).astype(np.int64)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return inside & (self._keys[at] == keys)

    def order(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        x, y = _world(lat, lon)
        return np.lexsort((x, np.floor(y * 2**self.zoom)))

    def frames(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        return np.stack([*_world(lat, lon), [self._metres(at) for at in np.asarray(lat).tolist()]], 1)

    def square(self, frame: np.ndarray, side_m: float, px: int) -> Square:
        x, y, metres = frame.tolist()
        whole = self._px * 2**self.zoom
        scale = side_m / px / metres  # pixels of the tiles a pixel of the square
        column, row = x * whole, y * whole
        reach = px / 2 * scale + 2
        left, top = math.floor(column - reach), math.floor(row - reach)
        width = math.ceil(column + reach) - left
        patch = np.zeros((width, width, 4), np.uint8)
        for tile_x in range(left // self._px, (left + width - 1) // self._px + 1):
            for tile_y in range(top // self._px, (top + width - 1) // self._px + 1):
                tile = self._tile(tile_x % 2**self.zoom, tile_y)
                if tile is None:
                    continue
                to_left, to_top = tile_x * self._px - left, tile_y * self._px - top
                rows = slice(max(to_top, 0), min(to_top + self._px, width))
                columns = slice(max(to_left, 0), min(to_left + self._px, width))
                patch[rows, columns] = tile[
                    rows.start - to_top : rows.stop - to_top, columns.start - to_left : columns.stop - to_left
                ]
        # Pixel u of the patch is centred at left + u + 1/2.
        centre = column - left - 0.5, row - top - 0.5
        return _cut(patch, np.array([[scale, 0.0], [0.0, scale]]), centre, px)

    def _tile(self, x: int, y: int) -> np.ndarray | None:
        """uint8 [S, S, 4], or None where there is none."""
        with self._lock:
            if (x, y) in self._cache:
                self._cache.move_to_end((x, y))
                return self._cache[x, y]
        content = self._tiles.read(self.zoom, x, y) if 0 <= y < 2**self.zoom else None
        image = None
        if content is not None:
            name = f"{self.name}: tile {self.zoom}/{x}/{y}"
            try:
                image = decode_rgba(content, name, max_pixels=_TILE_PX[1] ** 2)
            except ImageError as error:
                raise ImageryError(str(error)) from error
            if image.shape[0] != image.shape[1] or not _TILE_PX[0] <= len(image) <= _TILE_PX[1]:
                raise ImageryError(f"{name}: expected a square of 128 to 4096 pixels, got {image.shape[:2]}")
            if hasattr(self, "_px") and len(image) != self._px:
                raise ImageryError(f"{name}: is {len(image)} pixels wide, others are {self._px}")
        with self._lock:
            self._cache[x, y] = image
            if len(self._cache) > _TILES_OPEN:
                self._cache.popitem(last=False)
        return image


class TileFolder:
    """zoom/x/y.png and the like; with `tms`, y counts from the south."""

    def __init__(self, path: Path, *, tms: bool = False) -> None:
        if not path.is_dir():
            raise NotADirectoryError(f"path: expected a folder of tiles, got {os.fspath(path)!r}")
        self._storage = Storage(path)
        self._root = path
        self._tms = tms
        self._names: dict[int, dict[int, str]] = {}
        self._zooms = sorted(int(name) for name in os.listdir(path) if name.isdigit() and int(name) <= DEEPEST_ZOOM)

    def zooms(self) -> list[int]:
        return self._zooms

    def all(self, zoom: int) -> np.ndarray:
        found: dict[int, str] = {}
        side = 2**zoom
        for column in os.listdir(self._root / str(zoom)):
            if not column.isdigit() or not (self._root / str(zoom) / column).is_dir():
                continue
            for name in os.listdir(self._root / str(zoom) / column):
                match = _TILE_NAME.fullmatch(f"{zoom}/{column}/{name}")
                if match is not None and int(match[2]) < side and int(match[3]) < side:
                    y = side - 1 - int(match[3]) if self._tms else int(match[3])
                    found[int(match[2]) << 32 | y] = match[0]
        self._names[zoom] = found
        keys = np.fromiter(found, np.int64, len(found))
        return np.stack([keys >> 32, keys & 0xFFFFFFFF], 1)

    def read(self, zoom: int, x: int, y: int) -> bytes | None:
        name = self._names[zoom].get(x << 32 | y)
        return None if name is None else self._storage.read(name)


class MbTiles:
    """A SQLite file of tiles; its rows count from the south."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\x00":
                raise ImageryError(f"{path}: is no MBTiles file")
        self._path = path
        self._lock = threading.Lock()
        self._log = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        self._log.execute("PRAGMA trusted_schema = OFF")
        kind = dict(self._rows("SELECT name, value FROM metadata WHERE name = 'format'")).get("format", "png")
        if kind not in ("png", "jpg", "jpeg", "webp"):
            raise ImageryError(f"{path}: holds tiles of {kind}, which are no images; expected png, jpg or webp")

    def _rows(self, query: str, values: tuple[int, ...] = ()) -> list[Any]:
        try:
            with self._lock:
                return self._log.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise ImageryError(f"{self._path}: cannot be read as an MBTiles file ({error})") from error

    def zooms(self) -> list[int]:
        rows = self._rows("SELECT DISTINCT zoom_level FROM tiles ORDER BY zoom_level")
        return [zoom for (zoom,) in rows if isinstance(zoom, int) and 0 <= zoom <= DEEPEST_ZOOM]

    def all(self, zoom: int) -> np.ndarray:
        rows = self._rows("SELECT tile_column, tile_row FROM tiles WHERE zoom_level = ?", (zoom,))
        at = np.array(rows, np.int64).reshape(-1, 2)
        at[:, 1] = 2**zoom - 1 - at[:, 1]
        return at[((at >= 0) & (at < 2**zoom)).all(1)]

    def read(self, zoom: int, x: int, y: int) -> bytes | None:
        rows = self._rows(
            "SELECT tile_data FROM tiles WHERE zoom_level = ? AND tile_column = ? AND tile_row = ? "
            f"AND length(tile_data) <= {MAX_FILE_BYTES}",
            (zoom, x, 2**zoom - 1 - y),
        )
        return bytes(rows[0][0]) if rows and isinstance(rows[0][0], bytes) else None


class PmTiles:
    """A PMTiles archive, version 3."""

    def __init__(self, path: Path) -> None:
        self._reader = wanted("pmtiles.reader")
        self._path = path
        with path.open("rb") as file:
            if file.read(8) != b"PMTiles\x03":
                raise ImageryError(f"{path}: is no PMTiles archive of version 3")
            file.seek(0)
            self._bytes = self._reader.MmapSource(file)
        self._archive = self._reader.Reader(self._bytes)
        self._header = self._said(self._archive.header)
        if self._header["tile_type"].name not in ("PNG", "JPEG", "WEBP"):
            raise ImageryError(f"{path}: holds tiles of {self._header['tile_type'].name}, which are no images")

    def _said(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # the library raises anything at a damaged archive
            raise ImageryError(f"{self._path}: cannot be read ({error or type(error).__name__})") from error

    def zooms(self) -> list[int]:
        least, most = self._header["min_zoom"], self._header["max_zoom"]
        return list(range(least, min(most, DEEPEST_ZOOM) + 1))

    def all(self, zoom: int) -> np.ndarray:
        def walk() -> Iterator[tuple[int, int]]:
            header = self._header
            entries = self._reader.traverse(self._bytes, header, header["root_offset"], header["root_length"])
            for count, ((z, x, y), _) in enumerate(entries):
                if count > _MAX_TILES:
                    raise ImageryError(f"{self._path}: claims more than {_MAX_TILES} tiles")
                if z == zoom:
                    yield x, y

        return np.array(self._said(lambda: list(walk())), np.int64).reshape(-1, 2)

    def read(self, zoom: int, x: int, y: int) -> bytes | None:
        content = self._said(lambda: self._archive.get(zoom, x, y))
        return None if not content else bytes(content)


# --- rasters ---------------------------------------------------------------------------------------------


class RasterGround:
    """A GeoTIFF in any projection, cloud-optimized or not."""

    def __init__(self, path: Path) -> None:
        # Read once, when the first block is; else its cache takes a twentieth of the machine's memory.
        os.environ.setdefault("GDAL_CACHEMAX", str(_CACHE_MB))
        rasterio = wanted("rasterio")
        self._warp = wanted("rasterio.warp")
        self._windows = wanted("rasterio.windows")
        resampling = wanted("rasterio.enums").Resampling
        self._averaged, self._as_it_is = resampling.average, resampling.nearest
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        self.path = path
        self._lock = threading.Lock()
        # One driver alone: for some others a file of a few lines can name an address.
        try:
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a file without georeference, which is refused below
                self._data = rasterio.open(path, driver="GTiff")
        except rasterio.errors.RasterioError as error:
            raise ImageryError(f"{path}: cannot be read as a GeoTIFF ({error})") from error
        data = self._data
        if data.crs is None or data.transform.is_identity:
            raise ImageryError(f"{path}: has no georeference, so its position and size are unknown")
        if data.dtypes[0] != "uint8" or data.count == 2:
            raise ImageryError(
                f"{path}: expected 8 bits in one, three or four bands, got {data.count} of {data.dtypes[0]}; "
                "gdal_translate -ot Byte -scale makes it so"
            )
        self._bands = [1, 2, 3] if data.count >= 3 else [1]
        self._masked = not all("all_valid" in [flag.name for flag in flags] for flags in data.mask_flag_enums)
        self._back = ~data.transform
        edge = np.linspace(0, 1, 21)
        column, row = np.meshgrid(edge * data.width, edge * data.height)
        x, y = _through(data.transform, column.ravel(), row.ravel())
        lon, lat = self._warp.transform(data.crs, "EPSG:4326", x, y)
        if not np.isfinite([*lat, *lon]).all():
            raise ImageryError(f"{path}: its georeference is not a position on the Earth")
        self.bounds = Box(max(min(lat), -90.0), max(min(lon), -180.0), min(max(lat), 90.0), min(max(lon), 180.0))
        middle = self._warp.transform(
            data.crs, "EPSG:4326", *([value] for value in _through(data.transform, data.width / 2, data.height / 2))
        )
        frame = self.frames(np.array(middle[1]), np.array(middle[0]))[0]
        self.pixel_m = float(1 / math.sqrt(abs(np.linalg.det(frame[:, :2]))))

    def frames(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """[N, 2, 3]: (column, row) a metre to the east, a metre to the south, and of the position."""
        lat, lon = np.asarray(lat, float), np.asarray(lon, float)
        step = 20.0
        east, south = move_m(lat, lon, step, 0.0), move_m(lat, lon, 0.0, -step)
        all_lat = np.concatenate([lat, east[0], south[0]])
        all_lon = np.concatenate([lon, east[1], south[1]])
        with self._lock:
            x, y = self._warp.transform("EPSG:4326", self._data.crs, all_lon.tolist(), all_lat.tolist())
        column, row = _through(self._back, np.array(x), np.array(y))
        at = np.stack([column, row], 1).reshape(3, -1, 2)
        return np.stack([(at[1] - at[0]) / step, (at[2] - at[0]) / step, at[0]], 2)

    def covers(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        at = self.frames(lat, lon)[..., 2]
        return np.isfinite(at).all(1) & (at >= 0).all(1) & (at < [self._data.width, self._data.height]).all(1)

    def order(self, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        at = self.frames(lat, lon)[..., 2]
        return np.lexsort((at[:, 0], np.floor(at[:, 1] / max(self._data.block_shapes[0][0], 256))))

    def square(self, frame: np.ndarray, side_m: float, px: int) -> Square:
        scale, at = frame[:, :2] * (side_m / px), frame[:, 2]  # pixels of the raster a pixel of the square; its middle
        reach = np.abs(scale).sum(1) * px / 2 + 2
        size = np.array([self._data.width, self._data.height])
        low = np.clip(np.floor(at - reach), 0, size).astype(int)
        width, height = (np.clip(np.ceil(at + reach), 0, size).astype(int) - low).tolist()
        if not (width and height):
            return Square(np.zeros((px, px, 3), np.uint8), 0.0)
        # Of much finer imagery an overview is enough; GDAL averages where there is none.
        shrink = max(1, int(math.sqrt(abs(np.linalg.det(scale)))))
        shape = max(1, height // shrink), max(1, width // shrink)
        window = self._windows.Window(int(low[0]), int(low[1]), width, height)
        with self._lock:
            pixels = self._data.read(
                self._bands, window=window, out_shape=(len(self._bands), *shape),
                resampling=self._averaged if shrink > 1 else self._as_it_is,
            )  # fmt: skip
            mask = self._data.dataset_mask(window=window, out_shape=shape) if self._masked else None
        patch = np.empty((*shape, 4), np.uint8)
        patch[..., :3] = np.moveaxis(pixels, 0, 2)  # one band is grey
        patch[..., 3] = 255
        if mask is not None:
            patch[mask == 0] = 0
        by = np.array([shape[1] / width, shape[0] / height])
        centre = (at - low) * by - 0.5
        return _cut(patch, scale * by[:, None], (float(centre[0]), float(centre[1])), px)


# --- both ------------------------------------------------------------------------------------------------


def _cut(patch: np.ndarray, scale: np.ndarray, centre: tuple[float, float], px: int) -> Square:
    """The square whose pixel (px/2, px/2) lies over `centre` (column, row) of a patch; `scale` [2, 2] is what of the
    patch (column, row) a pixel to the right and one down is."""
    step = math.sqrt(abs(float(np.linalg.det(scale))))
    shrink = int(step)
    if shrink >= 2:  # average first, so that nothing aliases
        rows, columns = patch.shape[0] // shrink, patch.shape[1] // shrink
        patch = cv2.resize(patch[: rows * shrink, : columns * shrink], (columns, rows), interpolation=cv2.INTER_AREA)
        centre = ((centre[0] - (shrink - 1) / 2) / shrink, (centre[1] - (shrink - 1) / 2) / shrink)
        scale = scale / shrink
    back = np.concatenate([scale, (np.array(centre) - scale @ np.array([px / 2, px / 2]))[:, None]], 1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(patch, back, (px, px), flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return Square(np.ascontiguousarray(cut[..., :3]), float((cut[..., 3] >= 128).mean()))


def _through(affine: Any, x: Any, y: Any) -> tuple[Any, Any]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def _world(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Web-Mercator coordinates from 0 to 1, from the west and from the north."""
    sine = np.sin(np.radians(np.clip(lat, -89.9, 89.9)))
    return (np.asarray(lon) + 180.0) / 360.0, 0.5 - np.arctanh(sine) / (2 * np.pi)


def _lat(y: float) -> float:
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y))))


def _lon(x: float) -> float:
    return x * 360.0 - 180.0


def wanted(module: str) -> Any:
    """A module of the extra that imagery needs."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageryError(
            f"{module.split('.')[0]} is not installed; pip install 'geoloc_fast[imagery]' brings it"
        ) from error


KINDS = ("tiles", "raster", "pmtiles", "mbtiles")


def open_imagery(
    kind: str, path: str | os.PathLike[str], *, zoom: int | None = None, tms: bool = False
) -> TileGround | RasterGround:
    """Imagery of one of `KINDS`.

    Args:
        zoom: of tiles; default the deepest there is.
        tms: rows of a folder of tiles count from the south.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "raster":
        if zoom is not None:
            raise ValueError("zoom: means nothing to a raster, whose resolution is in its georeference")
        return RasterGround(path)
    if tms and kind != "tiles":
        raise ValueError(f"tms: means nothing to {kind}, which says how its rows count")
    tiles: Tiles = (
        TileFolder(path, tms=tms) if kind == "tiles" else MbTiles(path) if kind == "mbtiles" else PmTiles(path)
    )
    return TileGround(tiles, zoom=zoom, name=str(path))
