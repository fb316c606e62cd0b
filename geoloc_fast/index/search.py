"""Search over segments and layers.

    score(p) = max over headings h of the sum over layers l of  w_l * max over p's rows r in l of c_lr(h)

c is the cosine of the renormalised window at every shift. Layers without a heading add a constant; a layer in which the
place or the query has nothing adds w_l * absent_l. A place that has nothing in any layer of the query is no answer.

One layer that takes part alone is one call of `strip_topk` for each segment. Otherwise each layer names its best
places, they are scored over all layers, and no place that was named by none can exceed

    sum over layers of  w_l * max(last score of layer l's list, absent_l),

so the lists are made longer until the k-th place stands above that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.azimuth import shift_to_heading
from geoloc_fast.geo.regions import Region
from geoloc_fast.index.merge import Neighbours, merge
from geoloc_fast.index.segment import Bank, Segment
from geoloc_fast.layers import Layer
from geoloc_fast.retrieval import strip_curve, strip_score, strip_topk

__all__ = ["Query", "search"]

_FIRST_DEPTH = 64
_DEEPER = 4
_VALUES_AT_ONCE = 1 << 24
_ROUNDING = 1e-6  # between a score and the same window's value in a curve


class Query(NamedTuple):
    """Queries that have something in the same layers."""

    strips: dict[str, Tensor]  # [B, C, H, Wq] on the banks' device
    width: dict[str, Tensor | None]  # [B]
    centre: Tensor  # [B] columns, of a layer with heading

    def take(self, rows: np.ndarray) -> Query:
        index = torch.from_numpy(rows).to(self.centre.device)
        return Query(
            {name: strips[index] for name, strips in self.strips.items()},
            {name: None if width is None else width[index] for name, width in self.width.items()},
            self.centre[index],
        )


def nothing(batch: int, k: int, layers: int) -> Neighbours:
    """k columns of no place."""
    none, score = np.full((batch, k), -1), np.full((batch, k), np.nan, np.float32)
    heading_and_positions = [np.full((batch, k), np.nan) for _ in range(5)]
    parts = np.full((batch, k, layers), np.nan, np.float32)
    return Neighbours._make([none, score, none.copy(), *heading_and_positions, parts, np.ones(batch, bool)])


def search(
    segments: Sequence[Segment], layers: Sequence[Layer], query: Query, k: int, select: str, within: Region | None,
    depth: int,
) -> Neighbours:  # fmt: skip
    """The k best places of the segments for queries that have something in the layers of `query`."""
    batch = len(query.centre)
    taking = [layer for layer in layers if layer.name in query.strips]
    usable = [segment for segment in segments if any(layer.name in segment.banks for layer in taking)]
    if within is not None:
        usable = [segment for segment in usable if np.any(segment.alive(within))]
    if not usable or not batch:
        return nothing(batch, k, len(layers))
    whole = all(
        segment.banks[layer.name].entry.most <= layer.scanned_rows
        for segment in usable for layer in taking if layer.name in segment.banks
    )  # fmt: skip
    if len(taking) == 1 and whole:
        found = [_one_layer(segment, layers, taking[0], query, k, select, within) for segment in usable]
        return merge([nothing(batch, k, len(layers)), *found], k)
    select = select if len(taking) == 1 else "cosine"
    return _deepened(usable, layers, taking, query, k, select, within, depth, whole)


def _absent(layer: Layer) -> float:
    return layer.weight * layer.absent


def _topk(
    bank: Bank, layer: Layer, query: Query, k: int, select: str, alive: Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows of the bank, score, shift), [B, k] each, one row a place."""
    options: dict[str, Any] = {}
    if layer.score != "cosine":
        options["score"] = layer.score
    if bank.group is not None:
        options["group"] = bank.group
    strips, width = query.strips[layer.name], query.width[layer.name]
    found = strip_topk(strips, bank.strips, k, query_width=width, select=select, alive=alive, **options)
    return found.index.cpu().numpy(), found.score.cpu().numpy(), found.shift.cpu().numpy()


def _heading(layer: Layer, shift: np.ndarray, centre: Tensor) -> np.ndarray:
    if layer.column0_deg is None:
        return np.full(shift.shape, np.nan)
    heading = shift_to_heading(
        torch.from_numpy(shift), centre[:, None].cpu(), layer.strip[2], column0_deg=layer.column0_deg
    )
    return np.where(shift < 0, np.nan, heading.numpy())


def _one_layer(
    segment: Segment, layers: Sequence[Layer], layer: Layer, query: Query, k: int, select: str, within: Region | None
) -> Neighbours:
    bank = segment.banks[layer.name]
    alive = bank.alive(segment.alive(within), within, layer.scanned_rows)
    row, score, shift = _topk(bank, layer, query, k, select, alive)
    missing = row < 0
    place = bank.places(row)
    ids = np.where(missing, -1, segment.ids(place))
    rest = sum(_absent(other) for other in layers if other is not layer)
    if layer.weight != 1 or rest:
        score = (score.astype(np.float64) * layer.weight + rest).astype(np.float32)
    score = np.where(missing, np.float32(np.nan), score)
    if len(layers) == 1:
        parts = score[..., None]
    else:
        parts = np.empty((*score.shape, len(layers)), np.float32)
        for n, other in enumerate(layers):
            parts[..., n] = np.where(missing, np.nan, score - np.float32(rest) if other is layer else _absent(other))
    lat, lon, at_lat, at_lon = (
        np.where(missing, np.nan, values[index])
        for values, index in ((segment.lat, place), (segment.lon, place), (bank.lat, row), (bank.lon, row))
    )
    if layer.column0_deg is None:
        shift = np.full_like(shift, -1)
    heading = _heading(layer, shift, query.centre)
    return Neighbours(ids, score, shift, heading, lat, lon, at_lat, at_lon, parts, np.ones(len(ids), bool))


# --- several layers ----------------------------------------------------------------------------------------------


def _deepened(
    segments: Sequence[Segment], layers: Sequence[Layer], taking: Sequence[Layer], query: Query, k: int, select: str,
    within: Region | None, depth: int, whole: bool,
) -> Neighbours:  # fmt: skip
    batch = len(query.centre)
    answer = nothing(batch, k, len(layers))
    left = np.arange(batch)
    length = min(max(_FIRST_DEPTH, _DEEPER * k), depth)
    others = sum(_absent(layer) for layer in layers if layer not in taking)
    while True:
        part = query if len(left) == batch else query.take(left)
        bound = np.full(len(left), float(others))
        named: list[list[np.ndarray]] = [[] for _ in segments]  # of each segment, places [B, n], -1 pads
        complete = np.ones(len(left), bool)
        for layer in taking:
            last, full = _named_by(layer, segments, part, length, select, within, named)
            bound += layer.weight * np.maximum(np.where(full, last, -np.inf), layer.absent)
            complete &= ~full
        found = [
            _scored(segment, layers, taking, part, _unique(np.hstack(places)), select)
            for segment, places in zip(segments, named, strict=True)
            if places
        ]
        best = merge([nothing(len(left), k, len(layers)), *found], k)
        enough = np.where(best.id[:, -1] >= 0, best.score[:, -1] > bound + _ROUNDING, False)
        exact = (complete | enough) & whole
        for target, values in zip(answer, best._replace(exact=exact), strict=True):
            target[left] = values
        if length >= depth:
            return answer
        # Rows that are not scanned have no bound, however deep the lists are.
        left = left[~(complete | enough)]
        if not len(left):
            return answer
        length = min(_DEEPER * length, depth)


def _named_by(
    layer: Layer, segments: Sequence[Segment], query: Query, length: int, select: str, within: Region | None,
    named: list[list[np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Adds each segment's places of the layer's list to `named`; (its last score, whether it is full) [B]."""
    scores, owners = [np.full((len(query.centre), length), -np.inf, np.float32)], []
    for n, segment in enumerate(segments):
        bank = segment.banks.get(layer.name)
        if bank is None:
            continue
        alive = bank.alive(segment.alive(within), within, layer.scanned_rows)
        row, score, _ = _topk(bank, layer, query, length, select, alive)
        scores.append(score)
        owners.append((n, np.where(row < 0, -1, bank.places(row))))
    # Of all segments together, the list is as long as that of one would be.
    last = -np.partition(-np.hstack(scores), length - 1, axis=1)[:, length - 1]
    for (n, place), score in zip(owners, scores[1:], strict=True):
        named[n].append(np.where(score >= last[:, None], place, -1))
    return last.astype(np.float64), last > -np.inf


def _unique(places: np.ndarray) -> np.ndarray:
    """Each row's values once, ascending, -1 where there are no more."""
    ordered = np.sort(places, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    ordered = -np.sort(-ordered, axis=1)
    return ordered[:, : max(1, int((ordered >= 0).sum(axis=1).max()))][:, ::-1]


class _Best(NamedTuple):
    """Of some places in one layer, the best row at every shift, or over all of them (then S = 1)."""

    score: np.ndarray  # [B, n, S] float64, -inf where a place has no row
    row: np.ndarray  # [B, n, S] of the bank
    several: np.ndarray  # [B, n] bool: whether a place has more rows than one, with a heading
    shift: np.ndarray | None  # [B, n] if S = 1


def _scored(
    segment: Segment, layers: Sequence[Layer], taking: Sequence[Layer], query: Query, places: np.ndarray, select: str
) -> Neighbours:
    """Places [B, n] of a segment (-1 pads), scored over all layers."""
    with_heading = [layer for layer in taking if layer.column0_deg is not None]
    widest = max([1, *(layer.strip[2] for layer in with_heading)]) if len(with_heading) > 1 else 1
    most = max(bank.entry.most for bank in segment.banks.values())
    at_once = max(1, _VALUES_AT_ONCE // (len(places) * widest * most))
    found = [
        _scored_part(segment, layers, taking, query, places[:, begin : begin + at_once], select, len(with_heading) > 1)
        for begin in range(0, places.shape[1], at_once)
    ]
    return merge(found, places.shape[1]) if len(found) > 1 else found[0]


def _scored_part(
    segment: Segment, layers: Sequence[Layer], taking: Sequence[Layer], query: Query, places: np.ndarray, select: str,
    curves: bool,
) -> Neighbours:  # fmt: skip
    total: np.ndarray = np.zeros((*places.shape, 1))
    best: dict[str, _Best] = {}
    for layer in taking:
        bank = segment.banks.get(layer.name)
        if bank is not None:
            best[layer.name] = _best_rows(bank, layer, query, places, select, curves and layer.column0_deg is not None)
    for layer in layers:
        rows = best.get(layer.name)
        if rows is None:
            total = total + _absent(layer)
        else:
            total = total + layer.weight * np.where(rows.score > -np.inf, rows.score, layer.absent)
    at = total.argmax(axis=2, keepdims=True)  # the first shift of a tie
    score = np.take_along_axis(total, at, 2)[..., 0].astype(np.float32)
    missing = places < 0
    parts = np.empty((*places.shape, len(layers)), np.float32)
    shift, heading = np.full(places.shape, -1), np.full(places.shape, np.nan)
    standpoint = np.full((2, *places.shape), np.nan)
    most, chose = np.full(places.shape, -np.inf), np.zeros(places.shape, bool)
    for n, layer in enumerate(layers):
        parts[..., n] = _absent(layer)
        rows = best.get(layer.name)
        if rows is None:
            continue
        own = np.minimum(at, rows.score.shape[2] - 1)
        value, row = (np.take_along_axis(values, own, 2)[..., 0] for values in (rows.score, rows.row))
        there = value > -np.inf
        weighted = layer.weight * value
        parts[..., n] = np.where(there, weighted, _absent(layer))
        if layer.column0_deg is not None:
            chosen = at[..., 0] if rows.shift is None else rows.shift
            shift = np.where(there, chosen, shift)
            heading = np.where(there, _heading(layer, np.where(there, chosen, -1), query.centre), heading)
        # Where a place has one row only, that says nothing of where beside the place a photo was taken.
        ahead = there & np.where(rows.several == chose, weighted > most, rows.several)
        most, chose = np.where(ahead, weighted, most), chose | (there & rows.several)
        bank = segment.banks[layer.name]
        standpoint = np.where(ahead, np.stack([bank.lat[row], bank.lon[row]]), standpoint)
    parts[missing] = np.nan
    lat, lon, at_lat, at_lon, heading = (
        np.where(missing, np.nan, values) for values in (segment.lat[places], segment.lon[places], *standpoint, heading)
    )
    return Neighbours(
        np.where(missing, -1, segment.ids(places)), np.where(missing, np.float32(np.nan), score),
        np.where(missing, -1, shift), heading, lat, lon, at_lat, at_lon, parts, np.ones(len(places), bool),
    )  # fmt: skip


def _best_rows(bank: Bank, layer: Layer, query: Query, places: np.ndarray, select: str, curve: bool) -> _Best:
    first, end = bank.rows(places.clip(0))
    count = np.where(places < 0, 0, end - first)
    index = first[..., None] + np.arange(max(1, int(count.max())))
    there = index < (first + count)[..., None]
    flat = torch.from_numpy(np.where(there, index, -1).reshape(len(places), -1)).to(bank.strips.device)
    several = (count > 1) & (layer.column0_deg is not None)
    strips, width = query.strips[layer.name], query.width[layer.name]
    if curve:
        values = strip_curve(strips, bank.strips, flat, query_width=width).double().cpu().numpy()
        values = values.reshape(*there.shape, -1)
        values = np.where(there[..., None], values, -np.inf)
        row = values.argmax(axis=2)
        index = np.where(there, index, 0)
        return _Best(values.max(axis=2), np.take_along_axis(index, row, 2), several, None)
    options: dict[str, Any] = {} if layer.score == "cosine" else {"score": layer.score}
    found = strip_score(strips, bank.strips, flat, query_width=width, select=select, **options)
    score = found.score.double().cpu().numpy().reshape(there.shape)
    shifts = found.shift.cpu().numpy().reshape(there.shape)
    row = score.argmax(axis=2, keepdims=True)
    pick = [np.take_along_axis(values, row, 2) for values in (score, np.where(there, index, 0), shifts)]
    return _Best(pick[0], pick[1], several, pick[2][..., 0])


def group(query: Mapping[str, tuple[Tensor, Tensor | None]], batch: int) -> list[tuple[np.ndarray, list[str]]]:
    """(queries, the layers they have something in), for each such set of layers."""
    present = np.stack([
        np.ones(batch, bool) if width is None else (width > 0).cpu().numpy() for _, width in query.values()
    ])  # fmt: skip
    names = list(query)
    if present.all():
        return [(np.arange(batch), names)]
    kinds, which = np.unique(present, axis=1, return_inverse=True)
    which = which.reshape(-1)
    return [
        (np.flatnonzero(which == n), [name for name, has in zip(names, kind, strict=True) if has])
        for n, kind in enumerate(kinds.T)
    ]
