"""From imagery to a manifest of places: `geoloc-fast read raster` and its kind.

out/places.parquet
out/satellite/00000.tar ...     SHARD places each; what an interrupted run has finished is kept by the next
out/imagery.json                what decides their bytes
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.files import write_atomically
from geoloc_fast.progress import Progress
from geoloc_fast.region.imagery import Ground
from geoloc_fast.region.spots import Spots

__all__ = ["Cut", "Price", "cut_places", "price_of"]

SHARD = 1024
QUALITY = 92
LEAST_COVERED = 0.98  # of a square; what shows less is a hole
_PX = (64, 640)
_BYTES_PX = 0.45  # of a JPEG of this quality, measured on aerial images; a guess before the first is cut
_INDEX_BYTES = 2112  # of a row of the model that ships
_VERSION = 1
_STATE = "imagery.json"


@dataclass(frozen=True)
class Price:
    """What cutting would cost."""

    places: int
    px: int
    metres_per_pixel: float
    image_bytes: int
    index_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.places} places, one row each: about {_size(self.image_bytes)} of images ({self.px} pixels of "
            f"{self.metres_per_pixel:.3g} m) and {_size(self.index_bytes)} in an index of the model that ships"
        )


@dataclass(frozen=True)
class Cut:
    """What came of it."""

    places: int
    holes: int
    """Places left out, since the imagery does not show their square."""

    def summary(self) -> str:
        return f"{self.places} places; {self.holes} left out, where the imagery has holes or ends"


def price_of(ground: Ground, spots: Spots, side_m: float) -> Price:
    """Of images at the imagery's own resolution, as far as that is worth its bytes."""
    px = int(min(max(round(side_m / ground.pixel_m), _PX[0]), _PX[1]))
    count = len(spots.id)
    return Price(count, px, side_m / px, round(count * px * px * _BYTES_PX), count * _INDEX_BYTES)


def cut_places(
    ground: Ground,
    spots: Spots,
    out: str | os.PathLike[str],
    *,
    source: str,
    side_m: float = 60.0,
    progress: Progress | None = None,
) -> Cut:
    """Cuts the square round every spot out of the imagery and writes a manifest.

    Args:
        ground: the imagery.
        spots: where.
        out: a folder that is new, empty, or holds what an interrupted run of the same left.
        source: name of the imagery, for whoever asks what these images are.
        side_m: of the squares.
    """
    if not 10 <= side_m <= 1000:
        raise ValueError(f"side_m: expected 10 to 1000 metres, got {side_m}")
    px = price_of(ground, spots, side_m).px
    root = Path(out)
    digest = sha256(b"".join(name.encode() + b"\n" for name in spots.id))
    digest.update(np.stack([spots.lat, spots.lon]).tobytes())
    state = {"version": _VERSION, "source": source, "side_m": side_m, "px": px, "places": digest.hexdigest()}
    _begin(root, state)
    order = ground.order(spots.lat, spots.lon)
    rows: list[dict[str, Any]] = []
    holes = 0
    count = len(order)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for number, begin in enumerate(range(0, count, SHARD)):
            part = order[begin : begin + SHARD].tolist()
            name = f"satellite/{number:05d}.tar"
            there = _members(root / name)
            if there is None:
                there = _write(root / name, pool, ground, spots, part, side_m, px)
            for at in part:
                if str(at) not in there:
                    holes += 1
                    continue
                rows.append(
                    {
                        "id": spots.id[at], "lat": float(spots.lat[at]), "lon": float(spots.lon[at]),
                        "satellite": f"{name}::{at}.jpg", "metres_per_pixel": side_m / px,
                    }
                )  # fmt: skip
            if progress is not None:
                progress(min(begin + SHARD, count), count)
    if not rows:
        raise ValueError(f"{source}: shows none of the {count} places: they are all in holes of the imagery")
    Manifest.from_rows(root, rows, []).save()
    return Cut(len(rows), holes)


def _begin(root: Path, state: dict[str, Any]) -> None:
    if root.exists() and any(root.iterdir()):
        try:
            old = json.loads((root / _STATE).read_bytes())
        except (FileNotFoundError, ValueError):
            raise FileExistsError(f"{root}: expected a new or empty folder") from None
        if old != state:
            changed = ", ".join(name for name in state if not isinstance(old, dict) or old.get(name) != state[name])
            raise FileExistsError(f"{root}: holds images of another {changed}; choose another folder")
    (root / "satellite").mkdir(parents=True, exist_ok=True)
    write_atomically(root / _STATE, json.dumps(state, indent=1))


def _members(path: Path) -> set[str] | None:
    """Stems of what a finished shard holds; None if it is not there."""
    if not path.exists():
        return None
    with tarfile.open(path, "r:") as shard:
        return {name.removesuffix(".jpg") for name in shard.getnames()}


def _write(
    path: Path, pool: ThreadPoolExecutor, ground: Ground, spots: Spots, part: list[int], side_m: float, px: int
) -> set[str]:
    def one(frame: np.ndarray) -> bytes | None:
        square = ground.square(frame, side_m, px)
        if square.covered < LEAST_COVERED:
            return None
        done, content = cv2.imencode(".jpg", square.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        assert done
        return content.tobytes()

    there = set()
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as shard:
        frames = ground.frames(spots.lat[part], spots.lon[part])
        for at, content in zip(part, pool.map(one, frames), strict=True):
            if content is None:
                continue
            entry = tarfile.TarInfo(f"{at}.jpg")
            entry.size = len(content)
            shard.addfile(entry, io.BytesIO(content))
            there.add(str(at))
    write_atomically(path, sink.getbuffer())
    return there


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}"
        count /= 1000
    return ""
