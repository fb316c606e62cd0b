"""Attributes of places, such as city or date: any names, each of one type in an index.

text    stored as the bytes of all, one after the other, and where each ends; not known: empty
date    days since 1970-01-01; not known: the lowest number
int     not known: the lowest number
float   not known: NaN
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geoloc_fast.index.commits import NAME

__all__ = ["KINDS", "Value", "column_names", "encode", "encode_texts", "joined", "unknown", "values_of"]

KINDS: dict[str, np.dtype[Any]] = {
    "date": np.dtype("<i4"), "float": np.dtype("<f8"), "int": np.dtype("<i8"), "text": np.dtype("u1"),
}  # fmt: skip
Value = str | int | float | datetime.date
_MOST = 64
_LOWEST = {"date": -(2**31), "int": -(2**63), "float": float("nan")}
_EPOCH = datetime.date(1970, 1, 1)
_TAKEN = ("id", "lat", "lon", "key", "geometry")


def column_names(kind: str, name: str) -> tuple[str, ...]:
    """The stored columns of an attribute (or of the key, which is a text)."""
    stored = name if name == "key" else f"attribute.{name}"
    return (stored, f"{stored}{'_end' if name == 'key' else '.end'}") if kind == "text" else (stored,)


def encode_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, where each text ends)"""
    encoded = [text.encode() for text in texts]
    end = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8).copy(), end


def unknown(kind: str, count: int) -> tuple[np.ndarray, ...]:
    """The columns of an attribute that is known of no place."""
    if kind == "text":
        return np.zeros(0, np.uint8), np.zeros(count, np.int64)
    return (np.full(count, _LOWEST[kind], KINDS[kind]),)


def encode(
    name: str, values: Sequence[Value | None], count: int, kind: str | None
) -> tuple[str | None, tuple[np.ndarray, ...]]:
    """(kind, stored columns) of values as a caller gives them; no kind if nothing is known of any place.

    Args:
        kind: of the attribute in the index, None while it has none.
    """
    if not isinstance(name, str) or NAME.fullmatch(name) is None or name in _TAKEN:
        raise ValueError(
            f"attributes: expected names of small letters, digits and _, not {', '.join(_TAKEN)}, got {name!r}"
        )
    what = f"attributes[{name!r}]"
    if isinstance(values, str) or len(values) != count:
        raise ValueError(f"{what}: expected {count} values (one per place), got {len(values)}")
    listed: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    kinds = {_kind(value) for value in listed if value is not None}
    if "float" in kinds or kind == "float":
        kinds = {"float" if found == "int" else found for found in kinds}
    if not kinds:
        return None, ()
    if len(kinds) > 1 or None in kinds or kind not in (None, *kinds):
        wanted = kind or "texts, dates, integers or floats, of one kind"
        got = next(value for value in listed if value is not None and _kind(value) in (None, *kinds - {kind}))
        raise ValueError(f"{what}: expected {wanted}, got {got!r}")
    (found,) = kinds
    assert found is not None
    if found == "text":
        return found, encode_texts([value or "" for value in listed])
    lowest = _LOWEST[found]
    if found == "date":
        listed = [None if value is None else (value - _EPOCH).days for value in listed]
    return found, (np.array([lowest if value is None else value for value in listed], KINDS[found]),)


def values_of(kind: str, stored: np.ndarray | Sequence[str]) -> list[Value | None]:
    """What was stored of some places, None where it is not known."""
    listed: list[Any] = stored.tolist() if isinstance(stored, np.ndarray) else list(stored)
    if kind == "text":
        return [text or None for text in listed]
    if kind == "date":
        return [_date(value) for value in listed]
    return [None if value == _LOWEST["int"] or value != value else value for value in listed]


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return "date"
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) < value < 2**63:
        return "int"
    return "float" if isinstance(value, float) else None


def _date(days: int) -> datetime.date | None:
    if days == _LOWEST["date"]:
        return None
    try:
        return _EPOCH + datetime.timedelta(days)
    except OverflowError:
        return None


def joined(known: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The kinds of an index after an addition."""
    for name, kind in new.items():
        if known.get(name, kind) != kind:
            raise ValueError(f"attributes[{name!r}]: expected {known[name]}, as in the index, got {kind}")
    joined = {**known, **new}
    if len(joined) > _MOST:
        raise ValueError(f"attributes: expected at most {_MOST} names in an index, got {len(joined)}")
    return joined
