"""Generate a street view for every place that lacks one: `geoloc-fast synthesize`.

Where a place has no real street view, or none that counts (`data.availability`), one is made of its satellite image
and marked with the fingerprint of the model that made it (`street_synthetic`), in the manifest and in the image file.
A real street view that a synthetic one stands in for keeps its file, and all that is known of it, in
`street_superseded`. Every run decides anew from the real street views: what comes of a manifest depends on these, the
model and the date, and not on the runs before, but for places that it can make none for: these stay as they are.

An image is named after the model and the satellite image's bytes, and computed by itself on one thread. So its bytes
do not depend on the number of workers, and a run that was interrupted finds what it had finished. The table is
replaced at the end, at once.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import os
import threading
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from geoloc_fast.data.availability import available, real_street_views
from geoloc_fast.data.manifest import PLACES, STREET_COLUMNS, Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.files import write_atomically
from geoloc_fast.images.decode import decode_image
from geoloc_fast.images.satellite import satellite_square
from geoloc_fast.models.panogan.model import PanoGAN
from geoloc_fast.progress import Progress
from geoloc_fast.region.prepare import prepared_size

__all__ = ["FOLDER", "Synthesized", "synthesize"]

FOLDER = "synthetic"
_VERSION = 1  # of what is made of the same model and image
_QUALITY = 95


@dataclass
class Synthesized:
    """What came of the places of a manifest: each is in exactly one of the counts, or has a problem."""

    made: int = 0
    there_already: int = 0
    real: int = 0
    without_satellite: int = 0
    older_satellite: int = 0
    superseded: int = 0  # of made and there_already: those that stand in for a real street view
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        lines = [f"{self.made} street views made, {self.there_already} were there already; {self.real} are real"]
        if self.superseded:
            lines.append(f"{self.superseded} of them stand in for a real one that does not count")
        if self.older_satellite:
            lines.append(
                f"{self.older_satellite} real ones are out of date and stay: their satellite image is not known to be "
                "nearer in time"
            )
        if self.without_satellite:
            lines.append(f"{self.without_satellite} places have no satellite image to make one of")
        if self.problems:
            lines.append(f"{len(self.problems)} places are left as they were")
        return "\n".join(lines)


def synthesize(
    manifest: Manifest | str | os.PathLike[str],
    model: PanoGAN,
    *,
    date: datetime.date | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Synthesized:
    """Completes the street views of a manifest, in its folder, or goes on where an earlier run stopped.

    Args:
        manifest: one that is loaded, or its path: a folder, or its table `places`.
        model: one that was loaded from a bundle.
        date: as of which street views are to be true; without it none counts as out of date.
        workers: threads; default one per core. The images are the same for any number.
        progress: called as progress(done, all).
    """
    if model.fingerprint is None:
        raise ValueError("model: expected one loaded from a bundle, got a fresh one without a fingerprint to mark by")
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if not isinstance(manifest, Manifest):
        path = Path(manifest)
        if not path.is_dir() and path.stem != "places":
            raise ValueError(f"manifest: expected a folder or its table of places, got {path}")
        manifest = Manifest.load(path)
    _check_prepared(manifest, model)
    _check_folder(manifest.root, model)
    places = real_street_views(manifest.places)
    result = Synthesized()
    wanting = _wanting(places, date, result)
    todo = [row for row in wanting if places["satellite"][row].is_valid]
    result.without_satellite = len(wanting) - len(todo)
    taken = {os.path.normpath(path) for path in places["street"].drop_null().to_pylist()}
    taken.update(os.path.normpath(path) for views in places["street_views"].drop_null().to_pylist() for path in views)

    made: dict[int, str] = {}
    with closing(_all(_Maker(manifest, model, taken), todo, places, workers)) as outcomes:
        for done, (row, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, ImageError):
                result.problems.append(f"place {places['id'][row].as_py()}: {outcome}")
            else:
                made[row], new = outcome
                result.made += new
                result.there_already += not new
            if progress is not None:
                progress(done, len(todo))
    result.problems.sort()
    places = _kept(places, manifest.places, [row for row in wanting if row not in made])
    table = _marked(places, made, model, result)
    if not table.equals(manifest.places):
        manifest.replace(places=table).save(tables=("places",))
    return result


def _check_prepared(manifest: Manifest, model: PanoGAN) -> None:
    size = prepared_size(manifest.root)
    if size is not None and size != model.config.image_size:
        rows, columns = model.config.image_size
        raise ValueError(
            f"{manifest.root}: is prepared at {size[0]} x {size[1]}, but the model makes {rows} x {columns}; "
            "use a model of that size, or complete the manifest that this was prepared from"
        )


def _check_folder(root: Path, model: PanoGAN) -> None:
    for folder in (root / FOLDER, root / FOLDER / _of(model)):
        if folder.is_symlink():
            raise ValueError(
                f"{folder}: expected a folder, got a symbolic link; images are written below the manifest's folder, "
                "and read from nowhere else"
            )


def _of(model: PanoGAN) -> str:
    """The folder of what this model makes."""
    return str(model.fingerprint)[:12]


def _wanting(places: pa.Table, date: datetime.date | None, result: Synthesized) -> list[int]:
    """The rows without a street view that counts; counts the others."""
    counts = available(places, date)
    there = ~(places["street"].is_null().to_numpy() & places["street_views"].is_null().to_numpy())
    # A satellite image from further away in time would not bring the place up to date, nor surely one of unknown date.
    when = np.datetime64("NaT") if date is None else np.datetime64(date, "D")
    street, satellite = (
        np.abs(places[name].to_numpy().astype("datetime64[D]") - when) for name in ("street_date", "satellite_date")
    )
    near = available(places, None)
    below = places["satellite"].is_valid().to_numpy()
    older = there & ~counts & near & below & ~(satellite < street)
    result.older_satellite = int(older.sum())
    result.real = int(counts.sum()) + result.older_satellite
    return np.flatnonzero(~counts & ~older).tolist()


class _Maker:
    """Makes one image; shared by all threads."""

    def __init__(self, manifest: Manifest, model: PanoGAN, taken: set[str]) -> None:
        self.manifest, self.taken = manifest, taken
        self.model = model.to(memory_format=torch.channels_last)  # the faster one for so few channels
        self.device = next(model.parameters()).device
        self.note = f"Synthetic street view, generated from a satellite image by model {model.fingerprint}"
        self._writing = threading.Lock()

    def __call__(self, satellite: str, metres_per_pixel: float | None) -> tuple[str, bool] | ImageError:
        """(path below the manifest's folder, whether it was made just now)"""
        # The order of sums, and so the last bit, would depend on how many threads share a convolution.
        torch.set_num_threads(1)
        try:
            content = self.manifest.open_image(satellite)
            seed = f"{_VERSION} {self.model.fingerprint} {metres_per_pixel!r}\n".encode()
            name = hashlib.sha256(seed + content).hexdigest()
            path = f"{FOLDER}/{_of(self.model)}/{name[:2]}/{name[2:26]}.jpg"
            if (self.manifest.root / path).parent.is_symlink():
                raise ImageError(path, "would be written through a symbolic link")
            if path in self.taken:
                raise ImageError(path, "would be overwritten, and is in use as a real street view")
            if self._is_there(path):
                return path, False
            config = self.model.config
            square = satellite_square(
                decode_image(content, satellite),
                satellite,
                metres_per_pixel,
                extent_m=config.extent_m,
                size=config.satellite_size,
            )
        except ImageError as error:
            return error
        images = torch.from_numpy(square).permute(2, 0, 1)[None].to(self.device)
        pixels = self.model.generate(images)[0].permute(1, 2, 0).cpu().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0, comment=self.note.encode())
        where = self.manifest.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        with self._writing:  # two places may share a satellite image
            write_atomically(where, file.getvalue())
        return path, True

    def _is_there(self, path: str) -> bool:
        """Whether an earlier run finished it: the file can be read to its end and is of the right size."""
        try:
            image = decode_image(self.manifest.open_image(path), path)
        except ImageError:
            return False
        return image.shape[:2] == self.model.config.image_size


def _all(
    maker: _Maker, rows: list[int], places: pa.Table, workers: int
) -> Generator[tuple[int, tuple[str, bool] | ImageError], None, None]:
    """Every row with what came of it, in any order."""
    satellite, metres = places["satellite"].to_pylist(), places["metres_per_pixel"].to_pylist()
    threads = torch.get_num_threads()
    waiting = iter(rows)
    running: dict[Future[Any], int] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(running) < 4 * workers and (row := next(waiting, None)) is not None:
                    running[pool.submit(maker, satellite[row], metres[row])] = row
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


_MARKED = (*STREET_COLUMNS, "street_synthetic", "street_superseded")


def _kept(places: pa.Table, before: pa.Table, rows: list[int]) -> pa.Table:
    """The rows as they were before."""
    which = np.zeros(len(places), bool)
    which[rows] = True
    for name in _MARKED:
        values = pc.if_else(pa.array(which), before[name], places[name])
        places = places.set_column(places.schema.get_field_index(name), places.schema.field(name), values)
    return places


def _marked(places: pa.Table, made: dict[int, str], model: PanoGAN, result: Synthesized) -> pa.Table:
    columns = {name: places[name].to_pylist() for name in _MARKED}
    for row, path in made.items():
        old = {name: columns[name][row] for name in STREET_COLUMNS if columns[name][row] is not None}
        if "street" in old or "street_views" in old:
            columns["street_superseded"][row] = json.dumps(old, default=str, sort_keys=True)
            result.superseded += 1
        for name in STREET_COLUMNS:
            columns[name][row] = None
        columns["street"][row] = path
        columns["street_synthetic"][row] = model.fingerprint
        # It is made in the compass's frame.
        columns["street_column0_deg"][row] = columns["calibration_column0_deg"][row] = model.config.column0_deg
        columns["calibration_quality"][row], columns["calibration_status"][row] = 1.0, "known"
    for name in _MARKED:
        at = places.schema.get_field_index(name)
        places = places.set_column(at, name, pa.array(columns[name], PLACES.field(name).type))
    return places
