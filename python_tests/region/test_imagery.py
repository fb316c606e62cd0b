"""Imagery in: squares of ground out of tiles and rasters, where places are to be, street photos with their tracks."""

from __future__ import annotations

import datetime
import io
import json
import math
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoloc_fast.cli import main
from geoloc_fast.data.manifest import Manifest, ManifestError
from geoloc_fast.data.readers import read
from geoloc_fast.data.readers.video import read_track
from geoloc_fast.errors import ImageryError
from geoloc_fast.geo.mercator import web_mercator_metres_per_pixel
from geoloc_fast.geo.regions import Circle
from geoloc_fast.geo.sphere import great_circle_m, move_m, offset_m
from geoloc_fast.images.decode import decode_image
from geoloc_fast.region import cut as cut_module
from geoloc_fast.region.cut import cut_places, price_of
from geoloc_fast.region.imagery import TileGround, open_imagery
from geoloc_fast.region.spots import Spots, spots_of

ZOOM, TILES = 19, 3
LAT, LON = 59.3293, 18.0686  # where a pixel is half as wide as at the equator
FIRST = int((LON + 180) / 360 * 2**ZOOM), int((1 - math.asinh(math.tan(math.radians(LAT))) / math.pi) / 2 * 2**ZOOM)


def position(x: float, y: float) -> tuple[float, float]:
    """Of a point in units of tiles, counted from the first one's corner."""
    at = (1 - 2 * (FIRST[1] + y) / 2**ZOOM) * math.pi
    return math.degrees(math.atan(math.sinh(at))), (FIRST[0] + x) / 2**ZOOM * 360 - 180


def world() -> np.ndarray:
    """A smooth picture of all tiles with a bright disc of ten metres' radius in the middle, and another 30 m north."""
    side = 256 * TILES
    row, column = np.mgrid[0:side, 0:side].astype(float)
    image = np.stack([40 + 20 * np.sin(row / 40), 60 + 20 * np.cos(column / 50), np.full_like(row, 50)], 2)
    metres = web_mercator_metres_per_pixel(position(1.5, 1.5)[0], ZOOM)
    for north, colour in ((0.0, (250, 30, 30)), (30.0, (30, 30, 250))):
        away = np.hypot(row + 0.5 - side / 2 + north / metres, column + 0.5 - side / 2) * metres
        image[away <= 10] = colour
    return image.astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "png")
    return sink.getvalue()


def tiles() -> dict[tuple[int, int], bytes]:
    image = world()
    return {
        (FIRST[0] + x, FIRST[1] + y): png(image[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256])
        for x in range(TILES)
        for y in range(TILES)
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same ground as folder, TMS folder, MBTiles, PMTiles and GeoTIFFs in two projections."""
    root = tmp_path_factory.mktemp("imagery")
    last = 2**ZOOM - 1
    for (x, y), content in tiles().items():
        for name, row in (("tiles", y), ("tms", last - y)):
            path = root / name / str(ZOOM) / str(x) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    with sqlite3.connect(root / "region.mbtiles") as log:
        log.execute("CREATE TABLE metadata (name text, value text)")
        log.execute("INSERT INTO metadata VALUES ('format', 'png')")
        log.execute("CREATE TABLE tiles (zoom_level integer, tile_column integer, tile_row integer, tile_data blob)")
        rows = [(ZOOM, x, last - y, content) for (x, y), content in tiles().items()]
        log.executemany("INSERT INTO tiles VALUES (?, ?, ?, ?)", rows)
    log.close()
    return {"tiles": root / "tiles", "tms": root / "tms", "mbtiles": root / "region.mbtiles", "root": root}


@pytest.fixture(scope="module")
def pmtiles(sources: dict[str, Path]) -> Path:
    pytest.importorskip("pmtiles", reason="the extra [imagery] is not installed")
    from pmtiles.tile import Compression, TileType, zxy_to_tileid
    from pmtiles.writer import Writer

    path = sources["root"] / "region.pmtiles"
    with path.open("wb") as file:
        writer = Writer(file)
        for (x, y), content in sorted(tiles().items(), key=lambda item: zxy_to_tileid(ZOOM, *item[0])):
            writer.write_tile(zxy_to_tileid(ZOOM, x, y), content)
        about = {"tile_type": TileType.PNG, "tile_compression": Compression.NONE, "min_zoom": ZOOM, "max_zoom": ZOOM}
        corners = {f"{kind}_{side}_e7": 0 for kind in ("min", "max", "center") for side in ("lon", "lat")}
        writer.finalize({**about, **corners, "center_zoom": ZOOM}, {})
    return path


def raster(path: Path, crs: str, image: np.ndarray, transform: Any, **options: Any) -> Path:
    rasterio = pytest.importorskip("rasterio", reason="the extra [imagery] is not installed")
    shape = {"width": image.shape[1], "height": image.shape[0], "count": image.shape[2], "dtype": str(image.dtype)}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **options) as data:
        data.write(np.moveaxis(image, 2, 0))
    return path


@pytest.fixture(scope="module")
def rasters(sources: dict[str, Path]) -> dict[str, Path]:
    rasterio = pytest.importorskip("rasterio", reason="the extra [imagery] is not installed")
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    side = 2 * math.pi * 6378137.0 / 2**ZOOM
    west, north = FIRST[0] * side - math.pi * 6378137.0, math.pi * 6378137.0 - FIRST[1] * side
    image = world()
    mercator = rasterio.transform.from_origin(west, north, side / 256, side / 256)
    found = {"EPSG:3857": raster(sources["root"] / "mercator.tif", "EPSG:3857", image, mercator, tiled=True)}
    bounds = (west, north - 3 * side, west + 3 * side, north)
    # The Swedish grid is turned against north here, and the UTM zone even more; a pixel of degrees is no square.
    for crs in ("EPSG:3006", "EPSG:32632", "EPSG:4326"):
        to, width, height = calculate_default_transform("EPSG:3857", crs, 768, 768, *bounds)
        turned = np.zeros((3, height, width), np.uint8)
        for band in range(3):
            reproject(
                np.ascontiguousarray(image[..., band]), turned[band], src_transform=mercator, src_crs="EPSG:3857",
                dst_transform=to, dst_crs=crs, resampling=Resampling.bilinear,
            )  # fmt: skip
        path = sources["root"] / f"{crs[5:]}.tif"
        found[crs] = raster(path, crs, np.moveaxis(turned, 0, 2).copy(), to, nodata=0)
    return found


def discs(image: np.ndarray, metres: float) -> tuple[list[float], list[float]]:
    """(east, north, radius) in metres of the red and of the blue disc, from the image's middle."""
    found = []
    for here in (
        (image[..., 0] > 150) & (image[..., 2] < 120),
        (image[..., 2] > 150) & (image[..., 0] < 120),
    ):
        row, column = np.nonzero(here)
        middle = column.mean() - len(image) / 2, len(image) / 2 - row.mean()
        found.append([middle[0] * metres, middle[1] * metres, math.sqrt(len(row) / math.pi) * metres])
    return found[0], found[1]


def check(ground: Any) -> None:
    lat, lon = position(1.5, 1.5)
    for px, side in ((300, 90.0), (150, 90.0), (64, 80.0)):
        square = ground.square(ground.frames(np.array([lat]), np.array([lon]))[0], side, px)
        assert square.image.shape == (px, px, 3) and square.covered == 1.0
        red, blue = discs(square.image, side / px)
        tolerance = max(0.4, side / px)
        assert red == pytest.approx([0, 0, 10], abs=tolerance)
        assert blue == pytest.approx([0, 30, 10], abs=tolerance)  # north is up, and metres are metres


@pytest.mark.parametrize("kind", ["tiles", "tms", "mbtiles"])
def test_tiles_give_squares_in_metres_with_north_up(kind: str, sources: dict[str, Path]) -> None:
    ground = open_imagery("tiles" if kind == "tms" else kind, sources[kind], tms=kind == "tms")
    assert isinstance(ground, TileGround) and ground.zoom == ZOOM
    assert ground.pixel_m == pytest.approx(0.1523, abs=1e-3)  # 0.2986 at the equator
    check(ground)


def test_pmtiles_give_the_same(pmtiles: Path) -> None:
    check(open_imagery("pmtiles", pmtiles))


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:3006", "EPSG:32632", "EPSG:4326"])
def test_rasters_of_any_projection_give_the_same(crs: str, rasters: dict[str, Path]) -> None:
    ground = open_imagery("raster", rasters[crs])
    assert ground.pixel_m == pytest.approx(0.169 if crs == "EPSG:4326" else 0.1523, rel=0.03)
    check(ground)


def test_what_imagery_does_not_show_is_a_hole(sources: dict[str, Path], rasters: dict[str, Path]) -> None:
    lat, lon = position(0.1, 1.5)  # ten metres from the edge
    for ground in (open_imagery("tiles", sources["tiles"]), open_imagery("raster", rasters["EPSG:3857"])):
        square = ground.square(ground.frames(np.array([lat]), np.array([lon]))[0], 40.0, 100)
        assert 0.5 < square.covered < 0.75 and (square.image[:, :20] == 0).all()
        assert ground.covers(np.array([lat, lat]), np.array([lon, lon - 0.01])).tolist() == [True, False]
    turned = open_imagery("raster", rasters["EPSG:32632"])
    corner = position(0.02, 0.02)  # inside the raster of the turned one there are corners without data
    square = turned.square(turned.frames(*(np.array([value]) for value in corner))[0], 40.0, 100)
    assert square.covered < 0.6


# --- where ---------------------------------------------------------------------------------------------------


def test_a_grid_has_its_distance_in_metres(sources: dict[str, Path]) -> None:
    ground = open_imagery("tiles", sources["tiles"])
    spots = spots_of("grid:20", ground)
    away = great_circle_m(spots.lat[:, None], spots.lon[:, None], spots.lat, spots.lon) + 1e9 * np.eye(len(spots.id))
    assert away.min(1) == pytest.approx(np.full(len(away), 20.0), abs=0.2)
    width = 3 * 256 * ground.pixel_m
    assert len(spots.id) == pytest.approx((width / 20) ** 2, rel=0.25) and len(set(spots.id)) == len(spots.id)
    near = spots_of("grid:20", ground, Circle(*position(1.5, 1.5), 25.0))
    assert 2 <= len(near.id) <= 9 and set(near.id) <= set(spots.id)


def test_points_of_ones_own_keep_their_names(sources: dict[str, Path], tmp_path: Path) -> None:
    ground = open_imagery("tiles", sources["tiles"])
    path = tmp_path / "points.csv"
    (a, b), (c, d) = position(1, 1), position(2, 2)
    path.write_text(f"id,lat,lon,note\ncafe,{a},{b},x\n,{c},{d},y\n")
    spots = spots_of(str(path), ground)
    assert spots.id == ["cafe", f"{c:.6f}_{d:.6f}"] and spots.lat.tolist() == [a, c]
    for text, message in (
        ("lat,lng\n1,2\n", "lon is not there"),
        (f"lat,lon\n{a},{b}\nnan,3\n95,1\n", "row 2, column lat"),
        (f"id,lat,lon\nx,{a},{b}\nx,{a},{b}\n", "'x' is there already"),
    ):
        path.write_text(text)
        with pytest.raises(ManifestError, match=message):
            spots_of(str(path), ground)


def test_points_along_lines_are_not_doubled_at_crossings(sources: dict[str, Path], tmp_path: Path) -> None:
    ground = open_imagery("tiles", sources["tiles"])
    lat, lon = position(1.5, 1.5)
    ends = [[move_m(lat, lon, *offset) for offset in pair] for pair in (((-40, 0), (40, 0)), ((0, -40), (0, 40)))]
    lines = [[[float(at[1]), float(at[0])] for at in line] for line in ends]
    path = tmp_path / "roads.geojson"
    features = [{"type": "Feature", "geometry": {"type": "MultiLineString", "coordinates": [lines[0]]}}]
    features += [{"type": "Feature", "geometry": {"type": "LineString", "coordinates": lines[1]}}] * 2
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    spots = spots_of(f"{path}:5", ground)
    assert len(spots.id) == 17 + 16  # the crossing once, the second road once
    east, north = offset_m(lat, lon, spots.lat, spots.lon)
    assert np.minimum(np.abs(east), np.abs(north)).max() < 0.01
    for text, message in (
        ("[1]", "GeoJSON object"),
        ('{"type": "LineString", "coordinates": [[1, 95]]}', "in degrees"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            spots_of(f"{path}:5", ground)


@pytest.mark.parametrize("text", ["grid:0", "grid:x", "grid", "roads.geojson", "nan:5", "grid:nan", "a.shp:5"])
def test_other_places_are_refused(text: str, sources: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="places: expected"):
        spots_of(text, open_imagery("tiles", sources["tiles"]))


def test_places_that_are_not_on_the_imagery_are_told(sources: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="none of grid:20 is on the imagery"):
        spots_of("grid:20", open_imagery("tiles", sources["tiles"]), Circle(0, 0, 100))


# --- cutting -------------------------------------------------------------------------------------------------


def test_cutting_makes_a_manifest_that_goes_on_where_it_stopped(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut_module, "SHARD", 8)
    ground = open_imagery("tiles", sources["tiles"])
    spots = spots_of("grid:20", ground)
    price = price_of(ground, spots, 40.0)
    assert price.places == len(spots.id) and price.metres_per_pixel == pytest.approx(ground.pixel_m, rel=0.01)
    assert f"{price.places} places, one row each" in str(price) and "kB" in str(price)

    def stop(done: int, total: int | None) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_places(ground, spots, tmp_path / "out", source="x", side_m=40.0, progress=stop)
    assert len(list((tmp_path / "out" / "satellite").iterdir())) == 2
    monkeypatch.setattr(type(ground), "square", _only_new(type(ground).square, calls := []))
    done = cut_places(ground, spots, tmp_path / "out", source="x", side_m=40.0)
    assert len(calls) == len(spots.id) - 16
    assert done.places + done.holes == len(spots.id) and done.holes > 5 and "left out" in done.summary()
    made = Manifest.load(tmp_path / "out")
    assert made.validate(images=True) == [] and len(made.places) == done.places
    assert set(made.places["id"].to_pylist()) < set(spots.id)
    row = made.place(0)
    image = decode_image(made.open_image(row["satellite"]), "x")
    assert image.shape == (price.px, price.px, 3) and row["metres_per_pixel"] * price.px == pytest.approx(40.0)
    for path in sorted((tmp_path / "out" / "satellite").iterdir()):
        before = path.read_bytes()
        path.unlink()
        cut_places(ground, spots, tmp_path / "out", source="x", side_m=40.0)
        assert path.read_bytes() == before  # the same bytes whatever is left
        break
    with pytest.raises(FileExistsError, match="another side_m"):
        cut_places(ground, spots, tmp_path / "out", source="x", side_m=50.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").touch()
    with pytest.raises(FileExistsError, match="new or empty"):
        cut_places(ground, spots, tmp_path / "other", source="x")


def _only_new(square: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return square(*arguments)

    return counted


def test_memory_of_a_large_raster_is_that_of_what_is_read(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="the extra [imagery] is not installed")
    path = tmp_path / "large.tif"
    shape = {"width": 20_000, "height": 20_000, "count": 3, "dtype": "uint8", "sparse_ok": True, "tiled": True}
    to = rasterio.transform.from_origin(674_000, 6_580_000, 0.2, 0.2)
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:3006", transform=to, **shape) as data:
        data.write(np.full((3, 512, 512), 90, np.uint8), window=rasterio.windows.Window(9_984, 9_984, 512, 512))
    ground = open_imagery("raster", path)
    read_pixels = []
    data = ground._data  # type: ignore[union-attr]

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(data, name)

        def read(self, *arguments: Any, **options: Any) -> Any:
            found = data.read(*arguments, **options)
            read_pixels.append(found.size)
            return found

    ground._data = Watched()  # type: ignore[union-attr]
    lon, lat = rasterio.warp.transform("EPSG:3006", "EPSG:4326", [676_050.0], [6_577_950.0])
    spots = Spots(["middle"], np.array(lat), np.array(lon))
    assert cut_places(ground, spots, tmp_path / "out", source="x").places == 1
    assert max(read_pixels) < 3 * 400**2


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("no georeference", "has no georeference"), ("16 bits", "expected 8 bits"),
        ("text", "cannot be read as a GeoTIFF"),
        ("vrt", "cannot be read as a GeoTIFF"), ("cut", "cannot be read|Read"),
    ],
)  # fmt: skip
def test_rasters_that_cannot_be_used_say_why(harm: str, message: str, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="the extra [imagery] is not installed")
    path = tmp_path / "x.tif"
    image = np.zeros((64, 64, 3), np.uint16 if harm == "16 bits" else np.uint8)
    if harm == "text":
        path.write_text("no raster")
    elif harm == "vrt":
        path.write_text('<VRTDataset rasterXSize="1" rasterYSize="1"/>')
    elif harm == "no georeference":
        Image.fromarray(image).save(path)
    else:
        raster(path, "EPSG:3006", image, rasterio.transform.from_origin(674_000, 6_580_000, 0.2, 0.2))
        if harm == "cut":
            path.write_bytes(path.read_bytes()[:60])
    with pytest.raises((ImageryError, OSError), match=message):
        open_imagery("raster", path)


def test_a_geotiff_is_no_image_of_a_place(rasters: dict[str, Path], tmp_path: Path) -> None:
    content = rasters["EPSG:3857"].read_bytes()
    (tmp_path / "a.tif").write_bytes(content)
    manifest = Manifest.from_rows(tmp_path, [{"id": "a", "lat": LAT, "lon": LON, "satellite": "a.tif"}], [])
    (problem,) = manifest.validate(images=True)
    assert "is a map (GeoTIFF); crop places from it with `geoloc-fast read raster`" in str(problem)


@pytest.mark.parametrize("kind", ["mbtiles", "pmtiles", "tiles"])
def test_archives_that_are_none_say_so(kind: str, tmp_path: Path) -> None:
    if kind == "pmtiles":
        pytest.importorskip("pmtiles", reason="the extra [imagery] is not installed")
    path = tmp_path / "x"
    for content in (b"", b"nonsense" * 50, b"SQLite format 3\x00" + bytes(200), b"PMTiles\x03" + b"\xff" * 300):
        path.write_bytes(content)
        with pytest.raises((ImageryError, NotADirectoryError)):
            open_imagery(kind, path)
    (tmp_path / "folder" / "19").mkdir(parents=True)
    with pytest.raises((ImageryError, IsADirectoryError), match=r"no tiles|Is a directory"):
        open_imagery(kind, tmp_path / "folder")


def test_a_tile_of_another_size_is_named(sources: dict[str, Path], tmp_path: Path) -> None:
    ground = open_imagery("tiles", sources["tiles"])
    ground._tiles = type(ground._tiles)(sources["tiles"])  # type: ignore[union-attr,call-arg]
    ground._tiles.read = lambda *_: png(np.zeros((512, 512, 3), np.uint8))  # type: ignore[union-attr,method-assign]
    ground._cache.clear()  # type: ignore[union-attr]
    lat, lon = position(1.5, 1.5)
    with pytest.raises(ImageryError, match=r"tile 19/\d+/\d+: is 512 pixels wide, others are 256"):
        ground.square(ground.frames(np.array([lat]), np.array([lon]))[0], 40.0, 100)


# --- tracks --------------------------------------------------------------------------------------------------


def gpx(path: Path, fixes: list[tuple[str, float, float]]) -> Path:
    points = "".join(f'<trkpt lat="{lat}" lon="{lon}"><time>{time}</time></trkpt>' for time, lat, lon in fixes)
    head = '<?xml version="1.0"?><gpx xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>'
    path.write_text(f"{head}{points}</trkseg></trk></gpx>")
    return path


@pytest.fixture
def track(tmp_path: Path) -> Path:
    """East at 1.5 m/s for 20 s, then a gap of two minutes, then north."""
    lat, lon = 48.0, 11.0
    fixes = []
    for n in range(21):
        at = move_m(lat, lon, 1.5 * n, 0.0)
        fixes.append((f"2024-05-01T10:00:{n:02d}.50Z", float(at[0]), float(at[1])))
    fixes += [("2024-05-01T10:02:20Z", 48.001, 11.0), ("2024-05-01T12:02:30+02:00", 48.0012, 11.0)]
    return gpx(tmp_path / "track.gpx", fixes)


def frame(path: Path, time: str | None = None, zone: str | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    if time is not None:
        exif.get_ifd(0x8769)[0x9003] = time
    if zone is not None:
        exif.get_ifd(0x8769)[0x9011] = zone
    Image.new("RGB", (64, 48)).save(path, exif=exif)


def test_frames_of_a_film_lie_along_the_track(track: Path, tmp_path: Path) -> None:
    for n in (1, 2, 10, 11, 60):  # in the order of their numbers, not of their letters
        frame(tmp_path / "frames" / f"frame{n}.jpg")
    with pytest.warns(UserWarning, match="3 of 5 frames lie outside the track"):
        found = read("video", tmp_path / "frames", gpx=track, fps=0.1, offset=-2.0, facing=90.0)
    rows = found.photos.to_pylist()
    assert [row["id"] for row in rows] == ["frame2.jpg", "frame10.jpg"]
    east, _ = offset_m(48.0, 11.0, rows[0]["lat"], rows[0]["lon"])
    assert east == pytest.approx(1.5 * 8, abs=0.01)  # ten seconds after the first, two earlier by the offset
    assert rows[0]["heading_deg"] == pytest.approx(180.0, abs=0.1) and rows[0]["date"] == datetime.date(2024, 5, 1)
    around = read("video", tmp_path / "frames", gpx=track, fps=10.0, facing=0.0, panoramas=True)
    assert len(around.photos) == 0 and len(around.places) == 5
    assert around.place(0)["street_column0_deg"] == pytest.approx(270.0, abs=0.1)


def test_photos_that_know_their_time_lie_where_the_track_was(track: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    frame(folder / "a.jpg", "2024:05:01 12:00:05", "+02:00")
    frame(folder / "b.jpg", "2024:05:01 10:02:25")
    frame(folder / "c.jpg", "2024:05:01 10:01:00")  # in the gap
    frame(folder / "d.jpg")
    with pytest.warns(UserWarning, match="are left out") as warned:
        found = read("video", folder, gpx=track)
    assert {row["id"]: row["heading_deg"] for row in found.photos.to_pylist()} == {"a.jpg": None, "b.jpg": None}
    assert found.photo(1)["lat"] == pytest.approx(48.0011, abs=1e-6)
    said = " ".join(str(warning.message) for warning in warned)
    assert "1 of 4 frames do not say when" in said and "1 of 4 frames lie outside the track, or in a gap" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<gpx></gpx>", "at least two points"), ("no xml", "is no GPX file"),
        ('<!DOCTYPE gpx [<!ENTITY a "b">]><gpx>&a;</gpx>', "declares a document type"),
        ('<gpx><trkpt lat="1" lon="2"><time>yesterday</time></trkpt></gpx>', "is no GPX file"),
        ('<gpx><trkpt lat="91" lon="2"><time>2024-05-01T10:00:00Z</time></trkpt></gpx>', "is no position"),
        ('<gpx><trkpt lat="nan" lon="2"><time>2024-05-01T10:00:00Z</time></trkpt></gpx>', "is no position"),
    ],
)  # fmt: skip
def test_a_track_that_is_none_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gpx").write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_track(tmp_path / "x.gpx")


# --- Mapillary and KartaView ---------------------------------------------------------------------------------


def test_a_mapillary_folder_is_read_by_its_metadata(tmp_path: Path) -> None:
    for name in ("11", "12", "13", "14"):
        frame(tmp_path / f"{name}.jpg")
    point = {"type": "Point", "coordinates": [18.07, 59.33]}
    computed = {"type": "Point", "coordinates": [18.0701, 59.3301]}
    common = {"captured_at": 1714557600000, "compass_angle": 10.0, "sequence": "s"}
    said = [
        {
            "id": "11",
            "geometry": point,
            "computed_geometry": computed,
            "computed_compass_angle": 380.0,
            "is_pano": True,
        },
        {"id": 12, "geometry": point, "is_pano": False, **common},
        {"id": "13", "geometry": None},
    ]
    (tmp_path / "images.json").write_text(json.dumps({"data": said}))
    with pytest.warns(UserWarning, match="are left out") as warned:
        found = read("mapillary", tmp_path)
    text = " ".join(str(warning.message) for warning in warned)
    assert "1 images have no metadata" in text and "14.jpg" in text and "without a position" in text
    (place,), (photo,) = found.places.to_pylist(), found.photos.to_pylist()
    assert (place["lat"], place["lon"], place["street_column0_deg"]) == (59.3301, 18.0701, 200.0)
    assert (photo["heading_deg"], photo["date"], photo["sequence"]) == (10.0, datetime.date(2024, 5, 1), "s")
    features = [{"type": "Feature", "geometry": point, "properties": {"id": "11", "compass_angle": 1.0}}]
    (tmp_path / "images.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pytest.warns(UserWarning, match="3 images have no metadata"):
        assert read("mapillary", tmp_path).photo(0)["lat"] == 59.33


def test_a_kartaview_folder_is_read_by_its_metadata(tmp_path: Path) -> None:
    for name in ("100_3", "5"):
        frame(tmp_path / f"{name}.jpg")
    old = {
        "id": "1",
        "name": "storage/100_3.jpg",
        "lat": "48.1",
        "lng": "11.5",
        "heading": "90",
        "shot_date": "2017-09-24 23:58:07",
    }
    new = {"id": 5, "lat": 48.2, "lng": 11.6, "heading": None, "shotDate": "2020-01-02", "projection": "SPHERE"}
    (tmp_path / "a.json").write_text(json.dumps({"currentPageItems": [old]}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"result": {"data": [new]}}) + "\n")
    found = read("kartaview", tmp_path)
    (place,), (photo,) = found.places.to_pylist(), found.photos.to_pylist()
    assert (photo["id"], photo["heading_deg"], photo["date"]) == ("100_3.jpg", 90.0, datetime.date(2017, 9, 24))
    assert (place["id"], place["lat"], place["street_column0_deg"]) == ("5.jpg", 48.2, None)
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(ManifestError, match="is no JSON"):
        read("kartaview", tmp_path)


# --- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoloc-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return call


def test_the_command_says_the_price_first(run: Any, sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "region"
    given = ("read", "tiles", sources["tiles"], out, "--places", "grid:20", "--side", 40)
    code, said, _ = run(*given, "--dry-run")
    assert code == 0 and "places, one row each: about" in said and not out.exists()
    code, said, _ = run(*given)
    assert code == 0 and len(said.splitlines()) == 2 and "left out, where the imagery has holes or ends" in said
    assert Manifest.load(out).has_positions
    for arguments, message in (
        (("read", "tiles", sources["tiles"], tmp_path / "x"), "needs OUT, a new folder, and --places"),
        (("read", "photos", tmp_path, "--places", "grid:5"), "mean nothing to photos"),
        (("read", "video", tmp_path), "needs --gpx"),
        (("read", "tiles", sources["tiles"], tmp_path / "x", "--places", "grid:5", "--zoom", 3), "no tiles of zoom 3"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and message in err, err
