"""Data sets of images from above with descriptions: CVG-Text, RSICD, GeoText-1652.

Each image becomes a place with its descriptions in the column `captions` and its part in `split`. RSICD and GeoText say
nothing of where an image was taken: their places have no position.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from geoloc_fast.data.captions import COLUMN
from geoloc_fast.data.manifest import Manifest, Problem
from geoloc_fast.data.readers.lists import file_names, warn_left_out
from geoloc_fast.errors import ManifestError
from geoloc_fast.geo.mercator import web_mercator_metres_per_pixel

__all__ = ["read_cvg_text", "read_geotext", "read_rsicd"]

_LARGEST_JSON = 1 << 30
_NAME = re.compile(r"^(?P<lat>-?\d+(\.\d+)?),(?P<lon>-?\d+(\.\d+)?)_")
_ZOOM = 20  # of CVG-Text's satellite images


def read_cvg_text(path: str | os.PathLike[str]) -> Manifest:
    """CVG-Text: `annotation/CITY/{train,test}.json` (or `CVG-text/CITY/...`), which map an image's name to its
    description, and `CITY-satellite/NAME`. A name begins with `LAT,LON_`; CITY may end in "-photos"."""
    root = Path(path)
    folder = next((root / name for name in ("annotation", "CVG-text", "annotations") if (root / name).is_dir()), None)
    if folder is None:
        raise ManifestError([Problem("annotation", None, None, f"expected this folder in {root}, got none")])
    rows: dict[str, dict[str, Any]] = {}
    missing, total = [], 0
    for version in sorted(entry.name for entry in folder.iterdir() if entry.is_dir()):
        images = f"{version}-satellite"
        there = file_names(root / images)
        for split in ("train", "test"):
            told = folder / version / f"{split}.json"
            if not told.is_file():
                continue
            for name, text in _pairs(_json(told), told):
                total += 1
                match = _NAME.match(name)
                if match is None or name not in there:
                    missing.append(name)
                    continue
                row = rows.setdefault(
                    f"{version}/{name}",
                    {
                        "id": f"{version}/{name}",
                        "lat": float(match["lat"]),
                        "lon": float(match["lon"]),
                        "city": version.removesuffix("-photos"),
                        "satellite": f"{images}/{name}",
                        "metres_per_pixel": web_mercator_metres_per_pixel(float(match["lat"]), _ZOOM),
                        "split": split,
                        COLUMN: [],
                    },
                )
                row[COLUMN].append(text)
    warn_left_out("descriptions", missing, total)
    return Manifest.from_rows(root, rows.values(), [])


def read_rsicd(path: str | os.PathLike[str]) -> Manifest:
    """RSICD: `dataset_rsicd.json` with images of five sentences each, and the folder `RSICD_images`."""
    root = Path(path)
    told = root / "dataset_rsicd.json"
    there = file_names(root / "RSICD_images")
    rows, missing = [], []
    content = _json(told)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise _problem(told, "expected an object with the list images")
    for number, entry in enumerate(entries, start=1):
        try:
            name, split = str(entry["filename"]), str(entry["split"])
            texts = [str(sentence["raw"]) for sentence in entry["sentences"]]
        except (KeyError, TypeError) as error:
            raise _problem(told, f"expected an image with sentences, got {error!r}", number) from error
        if name not in there:
            missing.append(name)
            continue
        rows.append(_without_position(name, f"RSICD_images/{name}", split, dict.fromkeys(texts)))
    warn_left_out("images", missing, len(entries))
    return Manifest.from_rows(root, rows, [])


def read_geotext(path: str | os.PathLike[str]) -> Manifest:
    """GeoText-1652: `train.json` and `test*.json`, lists of {"image": path, "caption": text or texts}; what stands in
    boxes is left. The column `platform` says drone, satellite or ground, as the path does."""
    root = Path(path)
    rows: dict[str, dict[str, Any]] = {}
    missing, total = [], 0
    for told in sorted([*root.glob("train*.json"), *root.glob("test*.json")]):
        entries = _json(told)
        if not isinstance(entries, list):
            raise _problem(told, f"expected a list of images, got {type(entries).__name__}")
        for number, entry in enumerate(entries, start=1):
            try:
                image, caption = str(entry["image"]), entry["caption"]
            except (KeyError, TypeError) as error:
                raise _problem(told, f"expected image and caption, got {error!r}", number) from error
            total += 1
            if not (root / image).is_file():
                missing.append(image)
                continue
            split = "train" if told.name.startswith("train") else "test"
            row = rows.setdefault(image, _without_position(image, image, split, ()))
            texts = [caption] if isinstance(caption, str) else caption
            row[COLUMN] = list(dict.fromkeys([*row[COLUMN], *map(str, texts)]))
            row["platform"] = next((kind for kind in ("drone", "satellite") if kind in Path(image).parts), "ground")
    warn_left_out("descriptions", missing, total)
    return Manifest.from_rows(root, rows.values(), [])


def _without_position(number: str, image: str, split: str, texts: Iterable[str]) -> dict[str, Any]:
    return {"id": number, "satellite": image, "split": split, COLUMN: list(texts)}


def _problem(path: Path, text: str, row: int | None = None) -> ManifestError:
    return ManifestError([Problem(path.name, row, None, text)])


def _json(path: Path) -> Any:
    if not path.is_file():
        raise _problem(path, f"expected this file in {path.parent}, got none")
    if path.stat().st_size > _LARGEST_JSON:
        raise _problem(path, f"expected at most {_LARGEST_JSON} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _problem(path, f"expected JSON, got {error}") from error


def _pairs(told: Any, path: Path) -> list[tuple[str, str]]:
    if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
        raise _problem(path, "expected an object of image names and descriptions")
    return list(told.items())
