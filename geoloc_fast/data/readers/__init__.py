"""Published data sets, and plain folders of photos, as manifests.

A reader uses lists and file names and does not open images; only `photo_folder` reads EXIF. Images stay where they
are, and paths are relative to the data set's folder. docs/guide/data.md shows the layout that each reader expects.
Begin with `photo_folder`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.readers.cvact import read_cvact
from geoloc_fast.data.readers.cvusa import read_cvusa
from geoloc_fast.data.readers.described import read_cvg_text, read_geotext, read_rsicd
from geoloc_fast.data.readers.msgd import read_msgd
from geoloc_fast.data.readers.photo_folder import read_photo_folder
from geoloc_fast.data.readers.street_folders import read_kartaview, read_mapillary
from geoloc_fast.data.readers.utm_names import read_utm_names
from geoloc_fast.data.readers.video import read_video
from geoloc_fast.data.readers.vigor import read_vigor

__all__ = [
    "READERS",
    "read",
    "read_cvact",
    "read_cvg_text",
    "read_cvusa",
    "read_geotext",
    "read_kartaview",
    "read_mapillary",
    "read_msgd",
    "read_photo_folder",
    "read_rsicd",
    "read_utm_names",
    "read_video",
    "read_vigor",
]

READERS: dict[str, Callable[..., Manifest]] = {
    "cvusa": read_cvusa,
    "cvact": read_cvact,
    "vigor": read_vigor,
    "msgd": read_msgd,
    "utm-names": read_utm_names,
    "photos": read_photo_folder,
    "video": read_video,
    "mapillary": read_mapillary,
    "kartaview": read_kartaview,
    "cvg-text": read_cvg_text,
    "rsicd": read_rsicd,
    "geotext": read_geotext,
}


def read(kind: str, path: str | os.PathLike[str], **options: Any) -> Manifest:
    """Reads the data set at `path` of a kind (a key of READERS). `options` are passed to its reader."""
    if kind == "manifest":
        return Manifest.load(path, **options)
    if kind not in READERS:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, ['manifest', *READERS]))}, got {kind!r}")
    if not Path(path).is_dir():
        raise NotADirectoryError(f"path: expected the folder of a data set, got {os.fspath(path)!r}")
    return READERS[kind](path, **options)
