"""Ready images of a prepared manifest in one flat file of uint8, opened as a memory map.

`cache.bin` holds, one after the other: polar images and panoramas [places, H, W, 3], then photos, each
[H, its columns, 3]; `cache.json` says where each begins, and is written last: without it there is no cache. Rows are
those of the column `cache_row` of the prepared tables. An image that is not there has zeros in its place, and its bit
in `present` is 0.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geoloc_fast.files import write_atomically

__all__ = ["CacheError", "CacheLayout", "StripCache"]

VERSION = 1
HEADER, CONTENT = "cache.json", "cache.bin"


class CacheError(ValueError):
    """A cache that is missing, truncated, altered, or of another version."""


class CacheLayout:
    """Where every image lies; known before any image is read, so that workers can write side by side."""

    def __init__(self, places: int, photo_columns: Sequence[int], size: tuple[int, int]) -> None:
        self.places, self.photos, self.size = places, len(photo_columns), size
        self.photo_columns = np.asarray(photo_columns, np.int64)
        self.place_bytes = size[0] * size[1] * 3
        self.offsets = {"polar": 0, "street": places * self.place_bytes}
        widths = np.concatenate([[0], np.cumsum(self.photo_columns)]) * size[0] * 3
        self._photo_at = 2 * places * self.place_bytes + widths
        self.bytes = int(self._photo_at[-1])

    def place(self, name: str, row: int) -> int:
        return self.offsets[name] + row * self.place_bytes

    def photo(self, row: int) -> int:
        return int(self._photo_at[row])


def seal(folder: Path, layout: CacheLayout, present: dict[str, np.ndarray], spans: list[dict[str, Any]]) -> None:
    """Writes the header over a complete content file. `spans` are {"offset", "bytes", "sha256"} and cover it."""
    body = {
        "version": VERSION,
        "dtype": "uint8",
        "size": list(layout.size),
        "places": layout.places,
        "photos": layout.photos,
        "photo_columns": layout.photo_columns.tolist(),
        "bytes": layout.bytes,
        "present": {name: np.packbits(bits).tobytes().hex() for name, bits in present.items()},
        "spans": spans,
    }
    write_atomically(folder / HEADER, json.dumps({"sha256": _digest(body), **body}, indent=1) + "\n")


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class StripCache:
    """A cache opened for reading. Nothing is read until an image is asked for; images are read-only views."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        try:
            header = json.loads((folder / HEADER).read_text())
            digest, body = header.pop("sha256"), header
            version = body["version"]
        except FileNotFoundError as error:
            raise CacheError(f"{folder / HEADER}: there is no such file, so no cache (or an unfinished one)") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f"{folder / HEADER}: is not the header of a cache: {error}") from error
        if version != VERSION:
            raise CacheError(f"{folder / HEADER}: expected version {VERSION}, got {version!r}")
        if _digest(body) != digest:
            raise CacheError(f"{folder / HEADER}: its checksum does not fit; it was altered or cut off")
        self.layout = CacheLayout(body["places"], body["photo_columns"], tuple(body["size"]))
        self._path, self._spans = folder / CONTENT, body["spans"]
        counts = {"polar": self.layout.places, "street": self.layout.places, "photo": self.layout.photos}
        self.present = {
            name: np.unpackbits(np.frombuffer(bytes.fromhex(body["present"][name]), np.uint8), count=count).astype(bool)
            for name, count in counts.items()
        }
        try:
            size = self._path.stat().st_size
        except OSError as error:
            raise CacheError(f"{self._path}: cannot be opened: {error.strerror}") from error
        if size != self.layout.bytes:
            raise CacheError(f"{self._path}: expected {self.layout.bytes} bytes, got {size}")
        self._content = np.memmap(self._path, np.uint8, "r") if size else np.empty(0, np.uint8)

    def polar(self, row: int) -> np.ndarray | None:
        """uint8 [H, W, 3] of the place with this `cache_row`; None if it has none."""
        return self._image("polar", row)

    def street(self, row: int) -> np.ndarray | None:
        return self._image("street", row)

    def photo(self, row: int) -> np.ndarray | None:
        """uint8 [H, columns, 3]; the columns of a photo are its field of view."""
        return self._image("photo", row)

    def _image(self, name: str, row: int) -> np.ndarray | None:
        if not 0 <= row < len(self.present[name]):
            raise IndexError(f"row: expected 0 to {len(self.present[name]) - 1}, got {row}")
        if not self.present[name][row]:
            return None
        rows, columns = self.layout.size
        if name == "photo":
            at, columns = self.layout.photo(row), int(self.layout.photo_columns[row])
        else:
            at = self.layout.place(name, row)
        return self._content[at : at + rows * columns * 3].reshape(rows, columns, 3)

    def verify(self) -> None:
        """Reads everything and compares it with its checksums; raises CacheError at the first difference."""
        for span in self._spans:
            part = self._content[span["offset"] : span["offset"] + span["bytes"]]
            if hashlib.sha256(part.tobytes()).hexdigest() != span["sha256"]:
                raise CacheError(f"{self._path}: bytes {span['offset']} and on were altered: the checksum does not fit")
