"""A plain folder of photos: positions, headings, dates and fields of view from EXIF."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.images.decode import read_header
from geoloc_fast.images.exif import parse_exif
from geoloc_fast.images.storage import Storage

__all__ = ["find_images", "read_photo_folder"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
# Images that are not read are listed too, with the reason: a folder of them would otherwise look empty.
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".bmp", ".dng")


def find_images(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Relative paths of all images below a folder, sorted. Linked and hidden folders are not entered."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root).as_posix()
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                found.append(name if relative == "." else f"{relative}/{name}")
    return sorted(found)


def read_photo_folder(path: str | os.PathLike[str]) -> Manifest:
    """One photo an image, with its relative path as id. Extra columns:

    - `heading_magnetic_deg`: where the camera wrote a heading from magnetic north, which is not a true heading.
    - `exif_reasons`: why something is unknown.
    - `problem`: why an image cannot be read; such rows stay, and are counted in a warning.
    """
    root = Path(path)
    storage = Storage(root)
    photos: list[dict[str, Any]] = []
    for image in find_images(root, SUFFIXES + OTHER_SUFFIXES):
        row: dict[str, Any] = {"id": image, "image": image, "problem": None}
        try:
            header = read_header(storage.read(image), image)
            exif = parse_exif(header.exif, (header.height, header.width))
        except ImageError as error:
            row["problem"] = error.reason
        else:
            row |= {
                "lat": exif.lat,
                "lon": exif.lon,
                "heading_deg": exif.heading_deg,
                "fov_deg": exif.fov_deg,
                "date": exif.date,
                "heading_magnetic_deg": exif.heading_magnetic_deg,
                "exif_reasons": "; ".join(exif.reasons) or None,
            }
        photos.append(row)
    broken = [row["id"] for row in photos if row["problem"] is not None]
    if broken:
        shown = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        warnings.warn(f"{len(broken)} of {len(photos)} photos cannot be read: {shown}", stacklevel=2)
    return Manifest.from_rows(root, [], photos)
