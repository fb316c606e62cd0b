"""Search over segments and layers.

    score(p) = max over headings h of the sum over layers l of  w_l * max over p's rows r in l of c_lr(h)

c is the cosine of the renormalised window at every shift. Layers without a heading add a constant; a layer in which the
place or the query has nothing adds w_l * absent_l, which a query may know better than its layer. A place that has
nothing in any layer of the query is no answer.

Of several readings r of a query the best counts. A wider photo scores less everywhere, so each is measured from its own
`COMMON`-th place, and the sum is that of the first reading:

    score(p) = max over r of  score_r(p) - score_r(r's 16th place) + score_1(1's 16th place)

One layer that takes part alone is one call of `strip_topk` for each segment. Otherwise each layer names its best
places, they are scored over all layers, and no place that was named by none can exceed

    sum over layers of  w_l * max(last score of layer l's list, absent_l),

so the lists are made longer until the k-th place stands above that. Where places have rows that are not searched
nothing bounds those: the lists are made once, the places with the highest sums that the lists allow are scored with
all their rows, and the answer is not called exact. What a list does not name has a row that scores no more than the
last of the list, or nothing: those places are taken that are among the highest if every such score is the last, or if
every such score is absent_l.

All of it asks `Parts`, which are the segments of an index here or the shards of one elsewhere: the same steps in the
same order, so that the answer is the same to the last bit however the places are spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.azimuth import shift_to_heading
from geoloc_fast.geo.regions import Region
from geoloc_fast.index.arguments import checked_query, same_layers
from geoloc_fast.index.merge import Neighbours, merge
from geoloc_fast.index.segment import Bank, Segment
from geoloc_fast.layers import Layer, QueryStrips
from geoloc_fast.ops import checks
from geoloc_fast.retrieval import MAX_K, strip_curve, strip_score, strip_topk

__all__ = ["COMMON", "Call", "Lists", "Parts", "Query", "Segments", "best_readings", "search"]

_FIRST_DEPTH = 64
_DEEPER = 4
_ONE_DEPTH = 256  # of the only lists, where rows are not searched
COMMON = 16  # the place from which a reading's scores are measured: near the best of the wrong ones
_RESCORED = 96  # places that are then scored with all their rows, and more if more are asked for
_VALUES_AT_ONCE = 1 << 21  # so that intermediate arrays stay in memory that is at hand
_ROUNDING = 1e-6  # between a score and the same window's value in a curve


class Query(NamedTuple):
    """Queries that have something in the same layers."""

    strips: dict[str, Tensor]  # [B, C, H, Wq] on the banks' device
    width: dict[str, Tensor | None]  # [B]
    centre: Tensor  # [B] columns, of a layer with heading
    absent: dict[str, np.ndarray]  # float64 [B], what stands in where a place has nothing

    def take(self, rows: np.ndarray) -> Query:
        index = torch.from_numpy(rows).to(self.centre.device)
        return Query(
            {name: strips[index] for name, strips in self.strips.items()},
            {name: None if width is None else width[index] for name, width in self.width.items()},
            self.centre[index],
            {name: absent[rows] for name, absent in self.absent.items()},
        )

    def to(self, device: torch.device) -> Query:
        return Query(
            {name: strips.to(device) for name, strips in self.strips.items()},
            {name: None if width is None else width.to(device) for name, width in self.width.items()},
            self.centre.to(device),
            self.absent,
        )


class Call(NamedTuple):
    """What is asked of every part."""

    layers: tuple[Layer, ...]
    query: Query
    select: str
    within: Region | None

    @property
    def taking(self) -> list[Layer]:
        """The layers in which the queries have something."""
        return [layer for layer in self.layers if layer.name in self.query.strips]


Lists = dict[str, tuple[np.ndarray, np.ndarray]]
"""The best places of each layer: (number of the place in its part, score), [B, n] each; -1 pads."""


class Parts(Protocol):
    """Where places lie. Every method but `whole` gives one item for each part."""

    def whole(self, call: Call) -> bool:
        """Whether no place has rows that are not searched."""

    def nearest(self, call: Call, k: int) -> list[Neighbours]:
        """The k best places, of a call in which one layer takes part and no row is left out."""

    def lists(self, call: Call, length: int) -> list[Lists]:
        """The `length` best places of each layer that takes part, or more."""

    def scored(self, call: Call, places: Sequence[np.ndarray]) -> list[Neighbours]:
        """These places of each part, [B, n] as `lists` numbers them (-1 pads), scored over all layers."""


def nothing(batch: int, k: int, layers: int) -> Neighbours:
    """k columns of no place."""
    none, score = np.full((batch, k), -1), np.full((batch, k), np.nan, np.float32)
    heading_and_positions = [np.full((batch, k), np.nan) for _ in range(5)]
    parts = np.full((batch, k, layers), np.nan, np.float32)
    return Neighbours._make(
        [none, score, none.copy(), *heading_and_positions, parts, np.zeros((batch, k), np.int64), np.ones(batch, bool)]
    )


def search(
    parts: Parts, own: Sequence[Layer], query: Mapping[str, QueryStrips], k: int, *, layers: Sequence[Layer] | None,
    select: str, within: Region | None, depth: int, device: torch.device,
) -> Neighbours:  # fmt: skip
    """The k best places of all parts; arguments as of `PlaceIndex.search`.

    Args:
        own: the layers of the index.
    """
    checks.whole("k", k, 1, MAX_K)
    checks.whole("depth", depth, k, MAX_K)
    taking = tuple(own) if layers is None else same_layers(own, layers)
    batch, given = checked_query(own, query, device)
    of = next(iter(given.values())).query
    wanted, k = k, k if of is None else max(k, COMMON)
    groups = group({name: (one.strips, one.width) for name, one in given.items()}, batch)
    found = []
    for rows, names in groups:
        width = {name: given[name][1] for name in names}
        headed = [layer.name for layer in taking if layer.name in names and layer.column0_deg is not None]
        centre = torch.zeros(batch, dtype=torch.int64)
        if headed:
            first = width[headed[0]]
            centre = torch.full((batch,), given[headed[0]][0].shape[3]) if first is None else first
        absent = {
            layer.name: np.full(batch, layer.absent) if stands_in is None else stands_in.double().cpu().numpy()
            for layer in taking if layer.name in names for stands_in in (given[layer.name].absent,)
        }  # fmt: skip
        part = Query({name: given[name][0] for name in names}, width, centre, absent)
        if len(rows) < batch:
            part = part.take(rows)
        found.append(_search(parts, Call(taking, part, select, within), k, depth))
    answer = found[0] if len(groups) == 1 else nothing(batch, k, len(taking))
    if len(groups) > 1:
        for (rows, _), part_of in zip(groups, found, strict=True):
            for target, values in zip(answer, part_of, strict=True):
                target[rows] = values
    return answer if of is None else best_readings(answer, of.cpu().numpy(), wanted)


def best_readings(readings: Neighbours, of: np.ndarray, k: int) -> Neighbours:
    """The k best places of each query, of the answers to its readings: a place with that which says most for it, equals
    by the earlier one.

    Args:
        of: [n] the query of each reading.
    """
    first = np.searchsorted(of, np.arange(of[-1] + 1)) if len(of) else np.zeros(0, np.int64)
    number, length = np.arange(len(of)) - first[of], readings.id.shape[1]
    common = np.minimum(COMMON, np.maximum((readings.id >= 0).sum(axis=1), 1)) - 1  # the last where there are fewer
    common = np.take_along_axis(readings.score.astype(np.float64), common[:, None], 1)
    beyond = common - common[first[of]]
    each = np.broadcast_to(number[:, None], readings.id.shape).astype(np.int64)
    readings = readings._replace(score=(readings.score - beyond).astype(np.float32), reading=each)
    most = int(number.max(initial=0)) + 1
    side = nothing(len(first), most * length, readings.parts.shape[2])
    at = number[:, None] * length + np.arange(length)
    for target, values in zip(side[:-1], readings[:-1], strict=True):
        target[of[:, None], at] = values
    np.logical_and.at(side.exact, of, readings.exact)
    order = np.lexsort((side.reading, -side.score, side.id), axis=1)  # NaN last
    again = np.zeros(order.shape, bool)
    ids = np.take_along_axis(side.id, order, 1)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    np.put_along_axis(again, order, again.copy(), 1)
    side.id[again] = -1
    for values in side[1:-1]:
        values[side.id < 0] = -1 if values is side.shift else 0 if values is side.reading else np.nan
    return merge([side], k)


def _search(parts: Parts, call: Call, k: int, depth: int) -> Neighbours:
    batch = len(call.query.centre)
    if not batch:
        return nothing(batch, k, len(call.layers))
    whole, taking = parts.whole(call), call.taking
    if len(taking) == 1 and whole:
        found = parts.nearest(call, k)
        return found[0] if len(found) == 1 else merge([nothing(batch, k, len(call.layers)), *found], k)
    if len(taking) > 1:
        call = call._replace(select="cosine")
    return _deepened(parts, call, k, depth, whole)


def _deepened(parts: Parts, call: Call, k: int, depth: int, whole: bool) -> Neighbours:
    batch, taking, query = len(call.query.centre), call.taking, call.query
    answer = nothing(batch, k, len(call.layers))
    left = np.arange(batch)
    length = min(max(_FIRST_DEPTH if whole else _ONE_DEPTH, _DEEPER * k), depth)
    others = sum(_absent(layer) for layer in call.layers if layer not in taking)
    while True:
        part = call if len(left) == batch else call._replace(query=query.take(left))
        bound = np.full(len(left), float(others))
        lists = parts.lists(part, length)
        # Of each list its places, and what it adds to their sums if those it lacks have a row or nothing.
        none = np.full((len(left), 1), -1), *[np.full((len(left), 1), -np.inf)] * 2
        named: list[list[tuple[np.ndarray, ...]]] = [[none] for _ in lists]
        complete = np.ones(len(left), bool)
        for layer in taking:
            last = _last([found[layer.name][1] for found in lists if layer.name in found], len(left), length)
            full = last > -np.inf
            absent = part.query.absent[layer.name]
            unlisted = np.where(full, last, absent), absent
            bound += layer.weight * np.maximum(*unlisted)
            complete &= ~full
            for n, found in enumerate(lists):
                if layer.name in found:
                    place, score = found[layer.name]
                    gains = [layer.weight * (score - lacked[:, None]) for lacked in unlisted]
                    named[n].append((np.where(score >= last[:, None], place, -1), *gains))
        if whole:
            places = [_unique(np.hstack([place for place, *_ in each])) for each in named]
        else:
            either = [
                _highest([[(one[0], one[which]) for one in each] for each in named], max(_RESCORED, 4 * k))
                for which in (1, 2)
            ]
            places = [_unique(np.hstack(both)) for both in zip(*either, strict=True)]
        best = merge([nothing(len(left), k, len(call.layers)), *parts.scored(part, places)], k)
        enough = np.where(best.id[:, -1] >= 0, best.score[:, -1] > bound + _ROUNDING, False)
        # Rows that are not searched have no bound, however deep the lists are. Where nothing is named nothing is there.
        exact = (complete | enough) & (whole | np.all([each[:, -1] < 0 for each in places], axis=0))
        for target, values in zip(answer, best._replace(exact=exact), strict=True):
            target[left] = values
        if length >= depth or not whole:  # longer lists would prove nothing
            return answer
        left = left[~(complete | enough)]
        if not len(left):
            return answer
        length = min(_DEEPER * length, depth)


def _highest(named: list[list[tuple[np.ndarray, np.ndarray]]], count: int) -> list[np.ndarray]:
    """Of each part its places [B, n] (-1 pads) among the `count` to which lists add most; equals of the last stay.

    Args:
        named: of each part what its lists name: places [B, n], and what each list adds to their sums.
    """
    if not named:
        return []
    sums = [_sums(*map(np.hstack, zip(*lists, strict=True))) for lists in named]
    last = _last([gain for _, gain in sums], len(sums[0][0]), count)
    return [_unique(np.where(gain >= last[:, None], place, -1)) for place, gain in sums]


def _sums(place: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's places once (-1 pads), and what is added to each in all (-inf)."""
    stride = int(place.max()) + 2
    key, which = np.unique((np.arange(len(place))[:, None] * stride + place + 1).ravel(), return_inverse=True)
    row, number = np.divmod(key, stride)
    column = np.arange(len(key)) - np.searchsorted(row, row)
    places, sums = (np.full((len(place), int(column.max()) + 1), fill) for fill in (-1, -np.inf))
    places[row, column] = number - 1
    sums[row, column] = np.where(number > 0, np.bincount(which, gain.ravel().astype(np.float64)), -np.inf)
    return places, sums


def _last(scores: list[np.ndarray], batch: int, length: int) -> np.ndarray:
    """float64 [B], the last score of a list over all parts, as long as one index would; -inf if it is shorter."""
    joined = np.hstack([np.full((batch, length), -np.inf, np.float32), *scores])
    return (-np.partition(-joined, length - 1, axis=1)[:, length - 1]).astype(np.float64)


# --- the segments of an index here -------------------------------------------------------------------------------


class Segments:
    """The segments of an index, as one part. A place's number counts through all of their tables."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self._begin = np.cumsum([0, *map(len, segments)])

    def _usable(self, call: Call) -> list[tuple[int, Segment]]:
        return [
            (begin, segment) for begin, segment in zip(self._begin.tolist(), self.segments, strict=False)
            if any(layer.name in segment.banks for layer in call.taking)
            and (call.within is None or np.any(segment.alive(call.within)))
        ]  # fmt: skip

    def whole(self, call: Call) -> bool:
        return all(
            segment.banks[layer.name].whole
            for _, segment in self._usable(call) for layer in call.taking if layer.name in segment.banks
        )  # fmt: skip

    def nearest(self, call: Call, k: int) -> list[Neighbours]:
        layers, query, select, within = call
        (layer,) = call.taking
        found = [_one_layer(segment, layers, layer, query, k, select, within) for _, segment in self._usable(call)]
        if len(found) == 1:
            return found
        return [merge([nothing(len(query.centre), k, len(layers)), *found], k)]

    def lists(self, call: Call, length: int) -> list[Lists]:
        found: Lists = {}
        for layer in call.taking:
            places, scores = [], []
            for begin, segment in self._usable(call):
                bank = segment.banks.get(layer.name)
                if bank is not None:
                    alive = bank.alive(segment.alive(call.within), call.within)
                    row, score, _ = _topk(bank, layer, call.query, length, call.select, alive)
                    places.append(np.where(row < 0, -1, bank.places(row) + begin))
                    scores.append(score)
            if places:
                found[layer.name] = np.hstack(places), np.hstack(scores)
        return [found]

    def scored(self, call: Call, places: Sequence[np.ndarray]) -> list[Neighbours]:
        (numbers,) = places
        found = [nothing(len(numbers), 1, len(call.layers))]
        for begin, end, segment in zip(self._begin, self._begin[1:], self.segments, strict=False):
            here = (numbers >= begin) & (numbers < end)
            if here.any():
                own = _unique(np.where(here, numbers - begin, -1))
                found.append(_scored(segment, call.layers, call.taking, call.query, own, call.select))
        return [merge(found, sum(each.id.shape[1] for each in found))]


def _absent(layer: Layer) -> float:
    return layer.weight * layer.absent


def _topk(
    bank: Bank, layer: Layer, query: Query, k: int, select: str, alive: Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows of the bank, score, shift), [B, k] each, one row per place."""
    options: dict[str, Any] = {}
    if layer.score != "cosine":
        options["score"] = layer.score
    if bank.group is not None:
        options["group"] = bank.group
    strips, width = query.strips[layer.name], query.width[layer.name]
    if not bank.whole:
        options["rows"] = bank.entry.searched
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
    alive = bank.alive(segment.alive(within), within)
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
    zeros = np.zeros_like(ids)
    return Neighbours(ids, score, shift, heading, lat, lon, at_lat, at_lon, parts, zeros, np.ones(len(ids), bool))


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
    def absent(layer: Layer) -> np.ndarray:
        return query.absent.get(layer.name, np.full(len(places), layer.absent))

    total: np.ndarray = np.zeros((*places.shape, 1))
    best: dict[str, _Best] = {}
    for layer in taking:
        bank = segment.banks.get(layer.name)
        if bank is not None:
            best[layer.name] = _best_rows(bank, layer, query, places, select, curves and layer.column0_deg is not None)
    for layer in layers:
        rows = best.get(layer.name)
        stands_in = absent(layer)[:, None, None]
        if rows is None:
            total = total + layer.weight * stands_in
        else:
            total = total + layer.weight * np.where(rows.score > -np.inf, rows.score, stands_in)
    at = total.argmax(axis=2, keepdims=True)  # the first shift of a tie
    score = np.take_along_axis(total, at, 2)[..., 0].astype(np.float32)
    missing = places < 0
    parts = np.empty((*places.shape, len(layers)), np.float32)
    shift, heading = np.full(places.shape, -1), np.full(places.shape, np.nan)
    standpoint = np.full((2, *places.shape), np.nan)
    most, chose = np.full(places.shape, -np.inf), np.zeros(places.shape, bool)
    for n, layer in enumerate(layers):
        parts[..., n] = stands_in = layer.weight * absent(layer)[:, None]
        rows = best.get(layer.name)
        if rows is None:
            continue
        own = np.minimum(at, rows.score.shape[2] - 1)
        value, row = (np.take_along_axis(values, own, 2)[..., 0] for values in (rows.score, rows.row))
        there = value > -np.inf
        weighted = layer.weight * value
        parts[..., n] = np.where(there, weighted, stands_in)
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
        np.where(missing, -1, shift), heading, lat, lon, at_lat, at_lon, parts, np.zeros_like(places),
        np.ones(len(places), bool),
    )  # fmt: skip


def _best_rows(bank: Bank, layer: Layer, query: Query, places: np.ndarray, select: str, curve: bool) -> _Best:
    index = bank.rows(places)
    there = index >= 0
    flat = torch.from_numpy(np.ascontiguousarray(index.reshape(len(places), -1))).to(bank.strips.device)
    several = (there.sum(axis=2) > 1) & (layer.column0_deg is not None)
    index = np.where(there, index, 0)
    strips, width = query.strips[layer.name], query.width[layer.name]
    if curve:
        values = strip_curve(strips, bank.strips, flat, query_width=width).double().cpu().numpy()
        values = values.reshape(*there.shape, -1)
        values = np.where(there[..., None], values, -np.inf)
        row = values.argmax(axis=2)
        return _Best(values.max(axis=2), np.take_along_axis(index, row, 2), several, None)
    options: dict[str, Any] = {} if layer.score == "cosine" else {"score": layer.score}
    found = strip_score(strips, bank.strips, flat, query_width=width, select=select, **options)
    score = found.score.double().cpu().numpy().reshape(there.shape)
    shifts = found.shift.cpu().numpy().reshape(there.shape)
    row = score.argmax(axis=2, keepdims=True)
    pick = [np.take_along_axis(values, row, 2) for values in (score, index, shifts)]
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
