"""The MATLAB file that CVACT and, after it, MSGD describe themselves with.

Files of MATLAB 5 to 7.2, as much of the format as these lists use: numbers, text, cells, plain structures. Our own
reader, because SciPy's crashes the process on damaged files.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geoloc_fast.data.manifest import Problem
from geoloc_fast.errors import ManifestError

__all__ = ["PanoramaList", "load_mat", "read_panorama_list"]

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED, _UTF8, _UTF16, _UTF32 = 14, 15, 16, 17, 18
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC_CLASSES = range(6, 16)
_MAX_BYTES = 1 << 26  # of one variable, unpacked
_MAX_DEPTH = 4


class PanoramaList(NamedTuple):
    """What CVACT's MATLAB file says: names, positions, sets."""

    ids: list[str]
    utm: np.ndarray  # [N, 2], in the order of the file
    splits: dict[str, np.ndarray]  # name of the set -> rows, counted from 0


class _Bad(ValueError):
    pass


def read_panorama_list(path: Path, sets: dict[str, str]) -> PanoramaList:
    """Reads `panoIds`, `utm` and index sets.

    Args:
        sets: structure -> its field of indices, counted from 1, such as {"trainSet": "trainInd"}.
    """
    name = path.name
    try:
        content = load_mat(path.read_bytes(), {"panoIds", "utm", *sets})
    except FileNotFoundError:
        raise ManifestError([Problem(name, None, None, f"is missing in {path.parent}")]) from None
    except (OSError, ValueError) as error:
        raise ManifestError([Problem(name, None, None, f"cannot be read as a MATLAB file: {error}")]) from error

    problems = [Problem(name, None, key, "is missing") for key in ("panoIds", "utm", *sets) if key not in content]
    if problems:
        raise ManifestError(problems)
    ids = _texts(content["panoIds"])
    for row, pano in enumerate(ids, start=1):
        if not pano:
            problems.append(Problem(name, row, "panoIds", "expected a name"))
    utm = content["utm"]
    if not isinstance(utm, np.ndarray) or utm.shape != (len(ids), 2):
        got = utm.shape if isinstance(utm, np.ndarray) else "no numbers"
        problems.append(Problem(name, None, "utm", f"expected {len(ids)} pairs as in panoIds, got {got}"))
        utm = np.zeros((0, 2))
    utm = utm.astype(np.float64)
    for bad in np.flatnonzero(~np.isfinite(utm).all(1)):
        problems.append(Problem(name, int(bad) + 1, "utm", f"expected two finite numbers, got {utm[bad]}"))
    splits = {key: _rows(content[key], key, field, len(ids), name, problems) for key, field in sets.items()}
    if problems:
        raise ManifestError(problems)
    return PanoramaList(ids, utm, splits)


def _texts(value: Any) -> list[str]:
    """Rows of a character matrix, which are padded with blanks, or cells with a text each."""
    rows = value if isinstance(value, list) else []
    return [(row[0] if isinstance(row, list) and row else row if isinstance(row, str) else "").strip() for row in rows]


def _rows(structure: Any, key: str, field: str, count: int, name: str, problems: list[Problem]) -> np.ndarray:
    column = f"{key}.{field}"
    values = structure.get(field) if isinstance(structure, dict) else None
    if not isinstance(values, np.ndarray):
        problems.append(Problem(name, None, column, "is missing"))
        return np.zeros(0, np.int64)
    values = values.ravel().astype(np.float64)
    good = (values == np.floor(values)) & (values >= 1) & (values <= count)
    for row in np.flatnonzero(~good):
        reason = f"expected a number from 1 to {count}, got {values[row]:g}"
        problems.append(Problem(name, int(row) + 1, column, reason))
    return values[good].astype(np.int64) - 1


def load_mat(data: bytes, names: set[str]) -> dict[str, Any]:
    """Variables of a MATLAB file by name: numbers as an array, text as a list of rows, cells as a list (in the order
    of columns), a structure as a dict. ValueError if the file is damaged, or a variable is of another kind."""
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[124:126] in (b"\x00\x02", b"\x02\x00"):
        raise ValueError("it is in format 7.3; save it in MATLAB with save(..., '-v7')")
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("it has no header of MATLAB 5 to 7.2")
    order = "<" if data[126:128] == b"IM" else ">"
    found: dict[str, Any] = {}
    at = 128
    while at < len(data):
        kind, start, size, at = _tag(data, at, order, top=True)
        element = data[start : start + size]
        if kind == _COMPRESSED:
            # Enough of it to see the name; other variables stay packed.
            head = _unpack(element, 4096, whole=False)
            if _name_of_packed(head, order) not in names:
                continue
            element = _unpack(element, _MAX_BYTES, whole=True)
            kind, start, size, _ = _tag(element, 0, order)
            element = element[start : start + size]
        if kind != _MATRIX:
            continue
        name = _head(element, order)[2]
        if name in names:
            found[name] = _matrix(element, order, 0)
    return found


def _unpack(element: bytes, limit: int, *, whole: bool) -> bytes:
    packed = zlib.decompressobj()
    try:
        content = packed.decompress(element, limit)
    except zlib.error as error:
        raise _Bad(f"a compressed variable is damaged ({error})") from None
    if whole and (packed.unconsumed_tail or not packed.eof):
        raise _Bad("a compressed variable is cut off" if not packed.unconsumed_tail else "a variable is too large")
    return content


def _name_of_packed(head: bytes, order: str) -> str:
    # Not through _tag: the head is cut off inside the matrix, which is as it should be.
    return _head(head[8:], order)[2]


def _tag(data: bytes, at: int, order: str, *, top: bool = False) -> tuple[int, int, int, int]:
    """(kind, start, size, where the next element begins) of the element at `at`."""
    if at + 8 > len(data):
        raise _Bad("it ends inside an element")
    kind, size = struct.unpack_from(f"{order}II", data, at)
    start = at + 8
    if kind >> 16:  # short form: up to four bytes of content within the tag
        size, kind, start = kind >> 16, kind & 0xFFFF, at + 4
        if size > 4:
            raise _Bad("a short element is longer than four bytes")
        return kind, start, size, at + 8
    if start + size > len(data):
        raise _Bad("it ends inside an element")
    padded = size if top and kind == _COMPRESSED else (size + 7) // 8 * 8
    return kind, start, size, start + padded


def _head(data: bytes, order: str) -> tuple[int, tuple[int, ...], str, int]:
    """(class, dimensions, name, where the content begins) of a matrix."""
    kind, start, size, at = _tag(data, 0, order)
    if kind != 6 or size != 8:
        raise _Bad("a variable has no flags")
    (flags,) = struct.unpack_from(f"{order}I", data, start)
    if flags & 0x800:
        raise _Bad("complex numbers")
    kind, start, size, at = _tag(data, at, order)
    if kind != 5 or not 8 <= size <= 32 or size % 4:
        raise _Bad("a variable has no dimensions")
    shape = struct.unpack_from(f"{order}{size // 4}i", data, start)
    if min(shape) < 0:
        raise _Bad(f"dimensions {shape}")
    kind, start, size, at = _tag(data, at, order)
    if kind != 1 or size > 63:
        raise _Bad("a variable has no name")
    return flags & 0xFF, shape, data[start : start + size].decode("ascii", "replace"), at


def _matrix(data: bytes, order: str, depth: int) -> Any:
    if not data:
        return np.zeros((0, 0))  # an empty cell
    if depth > _MAX_DEPTH:
        raise _Bad("cells within cells")
    kind, shape, _, at = _head(data, order)
    count = math.prod(shape)
    if kind in _NUMERIC_CLASSES or kind == _CHAR:
        stored, start, size, at = _tag(data, at, order)
        if kind == _CHAR:
            return _characters(data[start : start + size], stored, shape, order)
        if stored not in _NUMBERS:
            raise _Bad(f"numbers of kind {stored}")
        values = np.frombuffer(data, np.dtype(order + _NUMBERS[stored]), size // int(_NUMBERS[stored][1]), start)
        if len(values) != count:
            raise _Bad(f"{len(values)} numbers for dimensions {shape}")
        return values.reshape(shape, order="F")
    fields = [""]
    if kind == _STRUCT:
        if count != 1:
            raise _Bad(f"a structure of dimensions {shape}")
        fields, at = _field_names(data, at, order)
    elif kind != _CELL:
        raise _Bad(f"a variable of class {kind}")
    if count * len(fields) > len(data) // 8:
        raise _Bad(f"{len(data)} bytes for dimensions {shape}")
    cells = []
    for _ in range(count * len(fields)):
        stored, start, size, at = _tag(data, at, order)
        if stored != _MATRIX:
            raise _Bad(f"an element of kind {stored} where a matrix belongs")
        # An unused field may hold anything; what is not understood is None.
        try:
            cells.append(_matrix(data[start : start + size], order, depth + 1))
        except _Bad:
            if kind == _CELL:
                raise
            cells.append(None)
    return dict(zip(fields, cells, strict=True)) if kind == _STRUCT else cells


def _field_names(data: bytes, at: int, order: str) -> tuple[list[str], int]:
    kind, start, size, at = _tag(data, at, order)
    if kind != 5 or size != 4:
        raise _Bad("a structure has no length of names")
    (length,) = struct.unpack_from(f"{order}i", data, start)
    kind, start, size, at = _tag(data, at, order)
    if kind != 1 or not 1 <= length <= 64 or size % length:
        raise _Bad("a structure has no names")
    parts = (data[start + i : start + i + length] for i in range(0, size, length))
    return [part.split(b"\0")[0].decode("ascii", "replace") for part in parts], at


def _characters(content: bytes, stored: int, shape: tuple[int, ...], order: str) -> list[str]:
    if stored == _UTF8:
        text = content.decode("utf-8", "replace")
    elif stored in (_UTF16, 4):
        text = content.decode("utf-16-le" if order == "<" else "utf-16-be", "replace")
    elif stored == _UTF32:
        text = content.decode("utf-32-le" if order == "<" else "utf-32-be", "replace")
    elif stored in (1, 2):
        text = content.decode("latin-1")
    else:
        raise _Bad(f"text of kind {stored}")
    if len(shape) != 2 or len(text) != math.prod(shape):
        raise _Bad(f"{len(text)} characters for dimensions {shape}")
    return [text[row :: shape[0]] for row in range(shape[0])]  # stored column by column
