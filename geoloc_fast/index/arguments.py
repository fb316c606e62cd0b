"""Checks of the arguments of an index: every message names the argument, what was expected, and what was given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.index.attributes import Value, column_names, encode, encode_texts
from geoloc_fast.index.commits import LAST_ID, NAME, IndexState
from geoloc_fast.index.segment import Columns, LayerRows, search_order
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.ops import checks
from geoloc_fast.retrieval import StripBank

__all__ = ["checked_ids", "checked_layers", "checked_places", "checked_query", "same_layers"]


def checked_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Those an index is made with: what belongs to it, the rest as a layer has it by default."""
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    found: list[Layer] = []
    for layer in layers:
        if not isinstance(layer.name, str) or NAME.fullmatch(layer.name) is None:
            raise ValueError(f"layers: expected a name of small letters, digits and _, got {layer.name!r}")
        if len(layer.strip) != 3:
            raise ValueError(f"layers[{layer.name!r}]: expected strips (C, H, W), got {layer.strip!r}")
        c, h, w = layer.strip
        for name, value in zip("CHW", layer.strip, strict=True):
            checks.whole(f"layers[{layer.name!r}] ({name})", value, 1, 1 << 16)
        checks.choice(f"layers[{layer.name!r}] (score)", layer.score, ("cosine", "dot"))
        checks.whole(f"layers[{layer.name!r}] (scanned_rows)", layer.scanned_rows, 1, LAST_ID)
        frame = layer.column0_deg
        frame = None if frame is None else checks.finite(f"layers[{layer.name!r}] (column0_deg)", frame)
        found.append(Layer(layer.name, (c, h, w), layer.score, frame, scanned_rows=layer.scanned_rows))
    if len({layer.name for layer in found}) < len(found):
        raise ValueError(f"layers: expected each name once, got {[layer.name for layer in found]}")
    frames = {(layer.strip[2], layer.column0_deg) for layer in found if layer.column0_deg is not None}
    if len(frames) > 1:
        raise ValueError(f"layers: those with a heading must share W and column0_deg, got {sorted(frames)}")
    headed = [layer for layer in found if layer.column0_deg is not None]
    if len(headed) > 1 and any(layer.score != "cosine" for layer in headed):
        raise ValueError("layers: where several have a heading, each must be compared by cosine")
    return tuple(found)


def same_layers(index: Sequence[Layer], layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of a search in the order of the index, which holds the same."""
    given = {layer.name: layer for layer in layers}
    for layer in index:
        other = given.get(layer.name)
        if other is None or tuple(other[1:4]) != layer[1:4]:
            raise ValueError(f"layers: expected {layer} among them, which the index holds, got {other}")
        if not other.weight > 0 or not np.isfinite([other.weight, other.absent]).all():
            raise ValueError(f"layers: expected a weight above 0 and a finite score for what is absent, got {other}")
        if other.scanned_rows != layer.scanned_rows:
            raise ValueError(
                f"layers[{layer.name!r}] (scanned_rows): expected {layer.scanned_rows}, as the index was made with, "
                f"got {other.scanned_rows}; build an index that searches so many"
            )
    return tuple(given[layer.name] for layer in index)


def checked_query(
    layers: Sequence[Layer], query: Mapping[str, QueryStrips], device: torch.device
) -> tuple[int, dict[str, QueryStrips]]:
    """(B, the strips on the device), of B readings"""
    known = {layer.name: layer for layer in layers}
    if not isinstance(query, Mapping) or not query or not set(query) <= set(known):
        got = sorted(query) if isinstance(query, Mapping) else type(query).__name__
        raise ValueError(f"query: expected strips by layer, of {', '.join(known)}, got {got}")
    found, batch, headed = {}, None, None
    of = next(iter(query.values())).query
    for name, (strips, width, absent, own) in query.items():
        checks.tensor(f"query[{name!r}]", strips, "[B, C, H, Wq]")
        if not bool(torch.isfinite(strips).all()):
            raise ValueError(f"query[{name!r}]: expected finite values, got NaN or Inf")
        if batch not in (None, len(strips)):
            raise ValueError(f"query[{name!r}]: expected {batch} queries as in the other layers, got {len(strips)}")
        batch = len(strips)
        if width is not None and known[name].column0_deg is not None:
            if headed is not None and bool(((width != headed) & (width > 0) & (headed > 0)).any()):
                raise ValueError(f"query[{name!r}]: expected the widths of the other layers that have a heading")
            headed = width
        if absent is not None and (absent.shape != (batch,) or not bool(torch.isfinite(absent).all())):
            raise ValueError(f"query[{name!r}]: expected {batch} finite scores for what is absent, got {absent}")
        if not _readings(own, of, batch):
            raise ValueError(
                f"query[{name!r}] (query): expected of which query each of {batch} strips is a reading, int64 from 0 "
                f"on, ascending, none left out, the same in every layer; got {own}"
            )
        found[name] = QueryStrips(strips.to(device), None if width is None else width.to(device), absent, own)
    assert batch is not None
    return batch, found


def _readings(own: Tensor | None, of: Tensor | None, batch: int) -> bool:
    if own is None or of is None:
        return own is of
    if own.dtype != torch.int64 or own.shape != (batch,) or not torch.equal(own, of):
        return False
    step = torch.diff(own, prepend=own.new_full((1,), -1))
    return bool(((step == 0) | (step == 1)).all()) and bool((own[:1] == 0).all())


def checked_places(
    state: IndexState,
    rows: Mapping[str, Rows],
    lat: Any,
    lon: Any,
    key: Sequence[str] | None,
    attributes: Mapping[str, Sequence[Value | None]] | None,
) -> tuple[Columns, dict[str, LayerRows], dict[str, str]]:
    """(the table of places, ids from 0; the rows of each layer; kinds of the attributes)"""
    known = {layer.name: layer for layer in state.layers}
    if not isinstance(rows, Mapping) or not set(rows) <= set(known):
        got = sorted(rows) if isinstance(rows, Mapping) else type(rows).__name__
        raise ValueError(f"rows: expected rows by layer, of {', '.join(known)}, got {got}")
    if (lat is None) != (lon is None):
        raise ValueError("lat, lon: expected both or neither")
    count = len(lat) if lat is not None else max((_count(part) for part in rows.values()), default=0)
    at_lat, at_lon = _degrees("lat", lat, count, 90), _degrees("lon", lon, count, 180)
    if np.any(np.isnan(at_lat) != np.isnan(at_lon)):
        raise ValueError("lat, lon: expected None in both or neither")
    columns: Columns = {"id": np.arange(count), "lat": at_lat, "lon": at_lon}
    columns["key"], columns["key_end"] = _text("key", key, count)
    kinds: dict[str, str] = {}
    for name, values in (attributes or {}).items():
        kind, stored = encode(name, values, count, state.attributes.get(name))
        if kind is not None:
            kinds[name] = kind
            columns |= dict(zip(column_names(kind, name), stored, strict=True))
    layers = {name: _layer_rows(state.dtype, known[name], part, at_lat, at_lon) for name, part in rows.items()}
    return columns, layers, kinds


def _layer_rows(dtype: str, layer: Layer, part: Rows, lat: np.ndarray, lon: np.ndarray) -> LayerRows:
    name, (strips, place, row_lat, row_lon) = f"rows[{layer.name!r}]", part
    checks.tensor(name, strips, "[n, C, H, W]")
    if tuple(strips.shape[1:]) != layer.strip:
        raise ValueError(f"{name}: expected (C, H, W) = {layer.strip}, got {tuple(strips.shape[1:])}")
    if not _all_finite(strips):
        raise ValueError(f"{name}: expected finite values, got NaN or Inf")
    at = np.arange(len(lat)) if place is None else np.asarray(place)
    if at.shape != (len(strips),) or at.dtype.kind not in "iu":
        expected = "one per place" if place is None else "one per strip"
        raise ValueError(f"{name}: expected {len(strips)} rows ({expected}), got {at.dtype} {list(at.shape)}")
    if len(at) and not (at[0] >= 0 and at[-1] < len(lat) and np.all(np.diff(at) >= 0)):
        raise ValueError(f"{name}: expected places from 0 to {len(lat) - 1}, ascending")
    if (row_lat is None) != (row_lon is None):
        raise ValueError(f"{name}: expected both lat and lon, or neither")
    nowhere = np.isnan(lat[at])  # a row of a place without a position need not have one
    at_lat = lat[at] if row_lat is None else _degrees(f"{name}.lat", row_lat, len(at), 90, nowhere)
    at_lon = lon[at] if row_lon is None else _degrees(f"{name}.lon", row_lon, len(at), 180, nowhere)
    order, searched = search_order(at, layer.scanned_rows)
    if searched < len(at):
        at, at_lat, at_lon, strips = at[order], at_lat[order], at_lon[order], strips[torch.from_numpy(order)]
    bank = StripBank.pack(strips.cpu(), dtype=dtype, column0_deg=layer.column0_deg or 0.0)
    return LayerRows(at.astype(np.int64), at_lat, at_lon, [bank.buffer.numpy().data], len(lat), searched)


def _count(part: Rows) -> int:
    return len(part.strips) if part.place is None else int(np.max(part.place, initial=-1)) + 1


def checked_ids(ids: Iterable[int] | np.ndarray) -> np.ndarray:
    """The ids as int64 in one row; TypeError unless they are integers."""
    values = ids if isinstance(ids, np.ndarray) else np.asarray(list(ids))
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got {values.dtype}")
    return values.astype(np.int64).ravel()


def _all_finite(values: Tensor) -> bool:
    # A sum is ten times cheaper and keeps what is not finite; large values alone can make it overflow.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _degrees(name: str, values: Any, count: int, limit: int, may_lack: np.ndarray | None = None) -> np.ndarray:
    """float64 [count]; NaN for None, and where it came as NaN and may lack a value."""
    if values is None:
        return np.full(count, np.nan)
    absent = np.zeros(count, bool)
    if not isinstance(values, np.ndarray):
        absent = np.array([value is None for value in values], bool)
    array = np.asarray(values, dtype=np.float64)
    if may_lack is not None and array.shape == (count,):
        absent = absent | (may_lack & np.isnan(array))
    if array.shape != (count,):
        raise ValueError(f"{name}: expected {count} values, got shape {array.shape}")
    bad = ~(np.abs(array) <= limit) & ~absent  # NaN too
    if bad.any():
        raise ValueError(f"{name}: expected degrees from {-limit} to {limit}, or None, got {array[bad][0]}")
    return array


def _text(name: str, texts: Sequence[str] | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    if texts is None:
        return np.zeros(0, np.uint8), np.zeros(count, np.int64)
    if isinstance(texts, str) or len(texts) != count:
        raise ValueError(f"{name}: expected {count} texts (one per place), got {len(texts)}")
    return encode_texts(texts)
