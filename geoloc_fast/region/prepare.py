"""Prepare the images of a region for indexing and training: `geoloc-fast prepare`.

Of every place: its satellite image cropped to 50 m x 50 m, its panorama (or its four views,
stitched) at the same size, and the heading of the panorama's column 0, known or measured. Of every photo: its
cylindrical reprojection, or, where it is itself a panorama, that at its size. The output is again a manifest, its
images in tar shards.

The work is cut into shards of rows whatever the number of workers; every shard is written completely or not at all,
by whoever computes it, to the same bytes. What an interrupted run has finished is kept by the next.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.errors import ImageError, PrepareError
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.mercator import web_mercator_metres_per_pixel
from geoloc_fast.geo.sphere import offset_m
from geoloc_fast.images.calibration import METHODS, calibrate
from geoloc_fast.images.cylindrical import WIDEST_PHOTO_DEG, to_cylindrical
from geoloc_fast.images.decode import decode_image, fit_panorama, read_header, require_panorama, stitch_views
from geoloc_fast.images.satellite import crop_satellite
from geoloc_fast.images.storage import Storage
from geoloc_fast.polar import polar_resample
from geoloc_fast.progress import Progress

__all__ = [
    "PlaceImages",
    "Prepared",
    "Settings",
    "load_photo",
    "load_place",
    "photo_columns",
    "prepare",
    "prepared_size",
    "street_polar",
]

VERSION = 1
SHARD_ROWS = 64
POLAR_COLUMN0_DEG = 180.0
STITCHED_COLUMN0_DEG = 315.0  # the first of four views looks north, its left edge half a view before
STANDING_OFF = 0.4  # of the side of the satellite image: a street view further away is hardly on it
_STATE = "prepare.json"
_TEMPORARY = (".places-", ".places.", ".photos-", ".photos.", ".prepare.json.", ".problems.csv.")
_TURN_DEG = 360.0


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the output, beside the manifest.

    Attributes:
        size: (rows, columns) of panoramas; photos get its rows and its degrees per column.
        side_m: side of the satellite crop.
        satellite_px: its side in pixels.
        method: of calibration where the panorama's heading is not known; "known" measures nothing.
        assumed_fov_deg: horizontal field of view of photos that do not say theirs.
        zoom: of Web-Mercator satellite tiles: gives the ground resolution, which shrinks with the cosine of the
            latitude, of places that do not say theirs. None: such an image is taken to show side_m.
        image_format: "jpeg" (quality 95, full colour resolution) or "png" (the exact pixels, ten times slower).
    """

    size: tuple[int, int] = (128, 512)
    side_m: float = 50.0
    satellite_px: int = 336
    method: str = "azimuth"
    assumed_fov_deg: float = 90.0
    zoom: float | None = None
    image_format: str = "jpeg"

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

        rows, columns = self.size
        require(rows >= 16 and columns >= 64 and columns % 4 == 0, "size", "rows >= 16, columns >= 64, a multiple of 4")
        require(0 < self.side_m <= 1000, "side_m", "metres above 0, at most 1000")
        require(16 <= self.satellite_px <= 8192, "satellite_px", "16 to 8192 pixels")
        require(self.method in METHODS, "method", f"one of {', '.join(map(repr, METHODS))}")
        least = 0.5 * _TURN_DEG / columns
        require(least < self.assumed_fov_deg <= WIDEST_PHOTO_DEG, "assumed_fov_deg", f"above {least:g}, at most 170")
        require(self.zoom is None or 0 <= self.zoom <= 25, "zoom", "0 to 25, or None")
        require(self.image_format in ("jpeg", "png"), "image_format", "'jpeg' or 'png'")


@dataclass
class Prepared:
    """What came of it. Every row of the input is in exactly one of `places`/`photos` or of the unusable ones."""

    folder: Path
    places: int = 0
    photos: int = 0
    unusable_places: int = 0
    unusable_photos: int = 0
    calibration: dict[str, int] = field(default_factory=dict)  # status -> places with a street view
    notes: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def summary(self) -> str:
        lines = [f"{self.places} places and {self.photos} photos are ready in {self.folder}"]
        if self.calibration:
            states = ", ".join(f"{count} {status}" for status, count in self.calibration.items())
            lines.append(f"headings of street views: {states}")
        lines += [f"{count} {note}" for note, count in self.notes.items()]
        lost = self.unusable_places + self.unusable_photos
        if lost:
            lines.append(
                f"{self.unusable_places} places and {self.unusable_photos} photos have no image that can be used"
            )
        if self.problems:
            lines.append(f"{len(self.problems)} problems with images, all in problems.csv; the first of them:")
            lines += [f"  {problem}" for problem in self.problems[:5]]
        return "\n".join(lines)


def prepared_size(folder: Path) -> tuple[int, int] | None:
    """(rows, columns) of the panoramas of a prepared manifest; None if the folder is none."""
    try:
        rows, columns = json.loads((folder / _STATE).read_text())["settings"]["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(rows), int(columns)


# --- one place, one photo ----------------------------------------------------------------------------------


@dataclass
class PlaceImages:
    """The decoded images of a place, at their size; None where there are none that can be used."""

    satellite: np.ndarray | None = None  # [satellite_px, satellite_px, 3], north up
    street: np.ndarray | None = None  # [H, W, 3]
    street_column0_deg: float | None = None  # of `street`, where it is known
    street_at_m: tuple[float, float] = (0.0, 0.0)  # where it was taken: metres east and north of the place
    problems: list[tuple[str, str]] = field(default_factory=list)  # column of the manifest, what is wrong
    notes: list[str] = field(default_factory=list)


def _metres_per_pixel(row: dict[str, Any], settings: Settings) -> float | None:
    """Of the satellite image, as the manifest has it, or as zoom and latitude give it."""
    if row["metres_per_pixel"] is not None or settings.zoom is None or row["lat"] is None:
        return row["metres_per_pixel"]
    return web_mercator_metres_per_pixel(row["lat"], settings.zoom)


def load_place(row: dict[str, Any], storage: Storage, settings: Settings) -> PlaceImages:
    """Reads what images a row of places has. A broken one is a problem, never an exception."""
    found = PlaceImages()
    if row["satellite"] is not None:
        try:
            image = decode_image(storage.read(row["satellite"]), row["satellite"])
            metres = _metres_per_pixel(row, settings)
            if metres is None:
                found.notes.append(
                    f"satellite images of unknown ground resolution, taken to show {settings.side_m:g} m"
                )
            elif metres * min(image.shape[:2]) < 0.99 * settings.side_m:
                found.notes.append(f"satellite images that show less than {settings.side_m:g} m, black beyond")
            found.satellite = crop_satellite(image, metres, settings.side_m, settings.satellite_px)
        except ImageError as error:
            found.problems.append(("satellite", str(error)))
    if row["street"] is not None:
        try:
            found.street, width = _load_panorama(row["street"], _TURN_DEG, storage, settings)
            if row["street_column0_deg"] is not None:
                # A column of the result is the mean of several: their middle lies a little further on.
                further = _TURN_DEG / 2 * (1 / settings.size[1] - 1 / width)
                found.street_column0_deg = (row["street_column0_deg"] + further) % _TURN_DEG
        except ImageError as error:
            found.problems.append(("street", str(error)))
    if row["street_lat"] is not None and row["lat"] is not None:
        east_m, north_m = offset_m(row["lat"], row["lon"], row["street_lat"], row["street_lon"])
        found.street_at_m = float(east_m), float(north_m)
    if found.street is None and row["street_views"] is not None:
        try:
            views = [decode_image(storage.read(path), path) for path in row["street_views"]]
            for path, view in zip(row["street_views"], views, strict=True):
                if not 0.5 <= view.shape[0] / view.shape[1] <= 2:
                    shape = f"{view.shape[1]} x {view.shape[0]}"
                    raise ImageError(path, f"{shape} pixels are no view of 90 degrees")
            found.street, found.street_column0_deg = stitch_views(views, settings.size), STITCHED_COLUMN0_DEG
        except ImageError as error:
            found.problems.append(("street_views", str(error)))
    return found


def load_photo(row: dict[str, Any], storage: Storage, settings: Settings) -> np.ndarray:
    """A photo in azimuth columns, uint8 [H, columns, 3]; ImageError if it cannot be used.

    Beyond `WIDEST_PHOTO_DEG` it is a panorama, or a part of one: its columns are azimuth already, and only its size
    changes.
    """
    fov_deg = settings.assumed_fov_deg if row["fov_deg"] is None else row["fov_deg"]
    if not photo_columns(row, settings):
        raise ImageError(row["image"], f"a field of view of {fov_deg:g} degrees is less than half a column")
    if fov_deg > WIDEST_PHOTO_DEG:
        return _load_panorama(row["image"], fov_deg, storage, settings)[0]
    enough = (2 * settings.size[0], 2 * photo_columns(row, settings))
    image = decode_image(storage.read(row["image"]), row["image"], at_least=enough)
    return to_cylindrical(image, fov_deg, size=settings.size)


def _load_panorama(path: str, fov_deg: float, storage: Storage, settings: Settings) -> tuple[np.ndarray, int]:
    """A panorama over `fov_deg` at the size it is needed in, and how many columns its file has."""
    data = storage.read(path)
    header = read_header(data, path)
    require_panorama(header, path, fov_deg)
    columns = round(fov_deg / _TURN_DEG * settings.size[1])
    image = decode_image(data, path, at_least=(1, columns))  # its columns decide: rows are cut or stretched
    return fit_panorama(image, (settings.size[0], columns)), header.width


def photo_columns(row: dict[str, Any], settings: Settings) -> int:
    """How many columns the ready photo has; 0 if it cannot be one."""
    degrees = _TURN_DEG / settings.size[1]
    fov_deg = settings.assumed_fov_deg if row["fov_deg"] is None else row["fov_deg"]
    return round(fov_deg / degrees) if 0.5 * degrees < fov_deg <= _TURN_DEG else 0


# --- shards ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """A run of rows of one table; all a worker needs."""

    table: str  # "places" or "photos"
    file: str  # of the source, for messages
    first: int
    rows: list[dict[str, Any]]
    root: Path
    out: Path
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.table}-{self.first // SHARD_ROWS:05d}"


def _run(shard: _Shard) -> str:
    """Computes and writes a shard: images, then the record that says it is finished."""
    work = _prepare_places if shard.table == "places" else _prepare_photos
    images, record = work(shard)
    shards = io.BytesIO()
    with tarfile.open(fileobj=shards, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in images:
            entry = tarfile.TarInfo(name)  # no time, owner or mode of this machine
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    write_atomically(shard.out / f"{shard.name}.tar", shards.getvalue())
    record["sha256"] = hashlib.sha256(shards.getvalue()).hexdigest()
    write_atomically(shard.out / f"{shard.name}.json", json.dumps(record, indent=1) + "\n")
    return shard.name


_Outcome = tuple[list[tuple[str, bytes]], dict[str, Any]]


def _prepare_places(shard: _Shard) -> _Outcome:
    storage, settings = Storage(shard.root), shard.settings
    found = [_guarded(shard, storage, n, load_place) for n in range(len(shard.rows))]
    calibration = _calibrate_places(found, settings)

    images: list[tuple[str, bytes]] = []
    updates: list[dict[str, Any] | None] = []
    problems: list[list[Any]] = []
    notes: Counter[str] = Counter()
    for n, place in enumerate(found):
        notes.update(place.notes)
        update: dict[str, Any] = {"satellite": None, "street": None, "street_views": None}
        for name, image in (("satellite", place.satellite), ("street", place.street)):
            if image is not None:
                update[name] = _add(images, shard, n, name, image)
        row = shard.rows[n]
        if place.street is not None and row["street_synthetic"] is not None:
            notes["street views are synthetic"] += 1
        metres_known = _metres_per_pixel(row, settings) is not None
        update["metres_per_pixel"] = (
            settings.side_m / settings.satellite_px if place.satellite is not None and metres_known else None
        )
        update["street_column0_deg"] = place.street_column0_deg
        update.update(calibration[n])
        update["problem"] = "; ".join(f"{column}: {text}" for column, text in place.problems) or None
        updates.append(update if place.satellite is not None or place.street is not None else None)
        problems += [[shard.first + n + 1, column, text] for column, text in place.problems]
    record = {"updates": updates, "problems": problems, "notes": dict(sorted(notes.items()))}
    return images, record


def _calibrate_places(found: list[PlaceImages], settings: Settings) -> list[dict[str, Any]]:
    """What the manifest says of each place's calibration. Without a street view there is nothing to calibrate."""
    result: list[dict[str, Any]] = []
    for place in found:
        known = place.street_column0_deg
        result.append(
            {
                "calibration_column0_deg": known,
                "calibration_quality": None if known is None else 1.0,
                "calibration_status": "none" if known is None else "known",
            }
        )
    todo = [
        n
        for n, place in enumerate(found)
        if place.street is not None and place.street_column0_deg is None and place.satellite is not None
    ]
    near = [n for n in todo if math.hypot(*found[n].street_at_m) <= STANDING_OFF * settings.side_m]
    if settings.method != "known":
        for n in set(todo) - set(near):
            found[n].notes.append("street views too far from their place to be calibrated against its satellite image")
    if not near or settings.method == "known":
        return result
    street = torch.from_numpy(np.stack([found[n].street for n in near])).permute(0, 3, 1, 2)  # type: ignore[misc]
    above = street_polar([found[n] for n in near], settings)
    measured = calibrate(street, above, method=settings.method, polar_column0_deg=POLAR_COLUMN0_DEG)
    for at, n in enumerate(near):
        if measured.status[at] != "none":
            result[n] = {
                "calibration_column0_deg": float(measured.column0_deg[at]),
                "calibration_quality": float(measured.quality[at]),
                "calibration_status": measured.status[at],
            }
    return result


def street_polar(found: list[PlaceImages], settings: Settings) -> torch.Tensor:
    """Polar images [n, 3, H, W] about where each street view was taken, which is what its panorama can be laid over.

    A few metres from there to the place turn everything near the camera by tens of degrees.
    """
    satellites = torch.from_numpy(np.stack([place.satellite for place in found]))  # type: ignore[misc]
    east_m, north_m = np.array([place.street_at_m for place in found]).T
    middle, pixels = settings.satellite_px / 2, settings.satellite_px / settings.side_m
    center = torch.from_numpy(np.stack([middle - north_m * pixels, middle + east_m * pixels], axis=1))
    images = satellites.permute(0, 3, 1, 2)
    return polar_resample(images, settings.size, column0_deg=POLAR_COLUMN0_DEG, center=center)


def _prepare_photos(shard: _Shard) -> _Outcome:
    images: list[tuple[str, bytes]] = []
    updates: list[dict[str, Any] | None] = []
    problems: list[list[Any]] = []
    storage = Storage(shard.root)
    for n in range(len(shard.rows)):
        try:
            strip = _guarded(shard, storage, n, load_photo)
        except ImageError as error:
            problems.append([shard.first + n + 1, "image", str(error)])
            updates.append(None)
            continue
        strip_fov_deg = strip.shape[1] * _TURN_DEG / shard.settings.size[1]
        path = _add(images, shard, n, "photo", strip)
        updates.append({"image": path, "projection": "cylindrical", "strip_fov_deg": strip_fov_deg})
    return images, {"updates": updates, "problems": problems, "notes": {}}


def _guarded(shard: _Shard, storage: Storage, n: int, load: Callable[[dict[str, Any], Storage, Settings], Any]) -> Any:
    """A fault of ours comes out of the worker with the row it happened at; one of the image is an ImageError."""
    try:
        return load(shard.rows[n], storage, shard.settings)
    except ImageError:
        raise
    except Exception as error:
        where = f"{shard.file}, row {shard.first + n + 1} ({shard.rows[n]['id']!r})"
        raise PrepareError(f"{where}: {type(error).__name__}: {error}") from error


def _add(images: list[tuple[str, bytes]], shard: _Shard, n: int, name: str, image: np.ndarray) -> str:
    if shard.settings.image_format == "png":
        kind, options = "png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
    else:
        full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        kind, options = "jpg", [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    done, content = cv2.imencode(f".{kind}", image[:, :, ::-1], options)
    if not done:
        raise PrepareError(f"{shard.file}, row {shard.first + n + 1}: its {name} image could not be encoded")
    member = f"{shard.first + n:08d}.{name}.{kind}"
    images.append((member, content.tobytes()))
    return f"{shard.name}.tar::{member}"


# --- the whole ---------------------------------------------------------------------------------------------


def prepare(
    manifest: Manifest | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Prepares all places and photos of a manifest into the folder `out`, or goes on where an earlier run stopped.

    Args:
        manifest: one that is loaded, or its path.
        out: a new folder, or that of an interrupted run of the same manifest and settings.
        workers: processes; default one per core. The output is the same for any number. A script that starts this
            needs the usual `if __name__ == "__main__":`.
        progress: called as progress(images done, of how many).

    An image that cannot be used is a problem with file and row in the answer and in OUT/problems.csv. A place that has
    another image stays; one that has none is counted as unusable, and listed there.
    """
    settings = Settings() if settings is None else settings
    if not isinstance(manifest, Manifest):
        manifest = Manifest.load(manifest)
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    folder = Path(out)
    if not len(manifest.places) and not len(manifest.photos):
        raise PrepareError(f"{manifest.root}: the manifest has no places and no photos")
    if folder.resolve() == manifest.root.resolve():
        raise PrepareError(f"{folder}: is the folder of the manifest itself; choose another one for the output")
    if "projection" in manifest.photos.column_names and manifest.photos["projection"].null_count < len(manifest.photos):
        raise PrepareError(f"{manifest.root}: is already prepared: its photos have azimuth columns")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        return _prepare(manifest, folder, settings, workers, progress)


def _prepare(
    manifest: Manifest,
    folder: Path,
    settings: Settings,
    workers: int,
    progress: Progress | None,
) -> Prepared:
    places, photos = manifest.places.to_pylist(), manifest.photos.to_pylist()
    _claim(folder, settings, places, photos)
    for stale in folder.glob(".*"):  # of a run that was killed while it wrote
        if stale.name.startswith(_TEMPORARY):
            stale.unlink()

    shards = [
        _Shard(
            table,
            f"{table}.{manifest.format}",
            first,
            rows[first : first + SHARD_ROWS],
            manifest.root.resolve(),
            folder.resolve(),
            settings,
        )
        for table, rows in (("places", places), ("photos", photos))
        for first in range(0, len(rows), SHARD_ROWS)
    ]
    todo = [shard for shard in shards if _record(shard) is None]
    sizes = {shard.name: len(shard.rows) for shard in todo}
    done, total = len(places) + len(photos) - sum(sizes.values()), len(places) + len(photos)
    if progress is not None:
        progress(done, total)
    for name in _run_all(todo, workers):
        done += sizes[name]
        if progress is not None:
            progress(done, total)
    return _finish(manifest, folder, shards)


def _run_all(shards: list[_Shard], workers: int) -> Iterator[str]:
    """Runs every shard, in any order."""
    if workers == 1 or len(shards) <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(_run, shards)
        finally:
            torch.set_num_threads(threads)
        return
    # Not a plain fork: the threads of torch and OpenCV do not survive one.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context, initializer=_start_worker) as pool:
        waiting = iter(shards)
        running: dict[Future[str], _Shard] = {}
        try:
            while True:
                while len(running) < 2 * workers and (shard := next(waiting, None)) is not None:
                    running[pool.submit(_run, shard)] = shard
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    shard = running.pop(done)
                    try:
                        yield done.result()
                    except BrokenProcessPool as error:
                        raise PrepareError(
                            "a worker was killed (by a lack of memory, perhaps: try fewer --workers) while "
                            f"{shard.file} was prepared, near row {shard.first + 1}; run again to continue from there"
                        ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which lets begun shards end
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _record(shard: _Shard) -> dict[str, Any] | None:
    """What a finished shard wrote of itself; None if it has to be done (again)."""
    try:
        record = json.loads((shard.out / f"{shard.name}.json").read_text())
        tar = (shard.out / f"{shard.name}.tar").read_bytes()
        good = record["sha256"] == hashlib.sha256(tar).hexdigest() and len(record["updates"]) == len(shard.rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if good else None


def _claim(folder: Path, settings: Settings, places: list[dict[str, Any]], photos: list[dict[str, Any]]) -> None:
    """Marks the folder as that of this manifest and these settings, or refuses one that is another's."""
    rows = hashlib.sha256()
    for row in (*places, None, *photos):
        rows.update(json.dumps(row, sort_keys=True, default=str).encode())
    ours = {"version": VERSION, "settings": asdict(settings), "manifest_sha256": rows.hexdigest()}
    ours = json.loads(json.dumps(ours))
    try:
        theirs = json.loads((folder / _STATE).read_text())
    except FileNotFoundError:
        if any(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
            raise PrepareError(f"{folder}: is not empty, and holds no preparation to continue") from None
        write_atomically(folder / _STATE, json.dumps(ours, indent=1) + "\n")
        return
    except ValueError as error:
        raise PrepareError(f"{folder / _STATE}: cannot be read: {error}") from error
    if theirs == ours:
        return
    settings_there = theirs.get("settings", {}) if isinstance(theirs, dict) else {}
    changed = [
        f"{name} {settings_there.get(name)!r}, now {value!r}"
        for name, value in ours["settings"].items()
        if settings_there.get(name) != value
    ]
    what = ", ".join(changed) if changed else "another manifest, or another version of this program"
    raise PrepareError(f"{folder}: holds the preparation of {what}; remove it or choose another folder")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise PrepareError(f"{folder}: another process is preparing into this folder") from error
    finally:
        os.close(handle)


def _finish(manifest: Manifest, folder: Path, shards: list[_Shard]) -> Prepared:
    """Joins what the shards say into tables."""
    result = Prepared(folder)
    notes: Counter[str] = Counter()
    tables: dict[str, list[dict[str, Any]]] = {"places": [], "photos": []}
    for shard in shards:
        record = _record(shard)
        if record is None:
            raise PrepareError(f"{folder / shard.name}: changed while the rest was prepared; run again")
        notes.update(record["notes"])
        result.problems += [Problem(shard.file, row, column, text) for row, column, text in record["problems"]]
        for row, update in zip(shard.rows, record["updates"], strict=True):
            if update is None:
                setattr(result, f"unusable_{shard.table}", getattr(result, f"unusable_{shard.table}") + 1)
            else:
                tables[shard.table].append({**row, **update})

    there = {row["id"] for row in tables["places"]}
    orphans = [row for row in tables["photos"] if row["place"] is not None and row["place"] not in there]
    for row in orphans:  # where it was taken is still known: it stays in every denominator
        row["problem"] = f"place {row['place']!r} has no image that can be used"
        row["place"] = None
    if orphans:
        notes["photos of places without a usable image: they stay, of no place"] += len(orphans)

    for row in tables["places"]:
        row.pop("classes", None)  # class maps are of the images before, and stay with them
        row["street_superseded"] = None  # so do real street views that synthetic ones stand in for
        if row["street"] is None:
            row["street_synthetic"] = None
    prepared = Manifest.from_rows(folder, tables["places"], tables["photos"])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "row", "column", "problem"))
    writer.writerows((problem.file, problem.row, problem.column, problem.text) for problem in result.problems)
    write_atomically(folder / "problems.csv", text.getvalue())
    prepared.save(format="parquet")

    result.places, result.photos = len(tables["places"]), len(tables["photos"])
    result.notes = dict(sorted(notes.items()))
    status = Counter(row["calibration_status"] for row in tables["places"] if row["street"] is not None)
    result.calibration = {name: status[name] for name in ("known", "measured", "low quality", "none") if status[name]}
    return result
