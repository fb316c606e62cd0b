"""Search over layers: places with any number of rows in each, against the formula written out in loops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from geoloc_fast import StripBank, strip_topk
from geoloc_fast.geo.regions import Box
from geoloc_fast.index import PlaceIndex, merge
from geoloc_fast.index import search as searching
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.testing import random_strips

MODEL = "b" * 64
COLUMNS, FRAME = 8, 90.0
STREET = Layer("street", (3, 2, COLUMNS), "cosine", FRAME, weight=1.0, absent=0.1)
SATELLITE = Layer("satellite", (2, 1, COLUMNS), "cosine", FRAME, weight=0.6, absent=0.3)
TEXT = Layer("text", (5, 1, 1), "cosine", None, weight=0.8, absent=0.2)
CELL = Layer("cell", (4, 1, 1), "dot", None, weight=0.5, absent=-0.4)
LAYERS = (STREET, SATELLITE, TEXT, CELL)
TURNED = Layer("turned", (2, 2, 6), "cosine", None, weight=0.7, absent=0.0)  # a circle in an unknown frame


@dataclass
class World:
    """Places and what each has in each layer."""

    layers: tuple[Layer, ...]
    lat: np.ndarray
    lon: np.ndarray
    rows: dict[str, Rows]

    def __len__(self) -> int:
        return len(self.lat)

    def part(self, begin: int, end: int) -> dict[str, Any]:
        """Arguments of `add` for some of the places."""
        found = {}
        for name, (strips, place, lat, lon) in self.rows.items():
            assert place is not None and lat is not None and lon is not None
            at = np.flatnonzero((place >= begin) & (place < end))
            found[name] = Rows(strips[at], place[at] - begin, lat[at], lon[at])
        return {"rows": found, "lat": self.lat[begin:end], "lon": self.lon[begin:end]}


def world(layers: tuple[Layer, ...], places: int, seed: int, most: int = 4) -> World:
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(48, 48.1, places), rng.uniform(11, 11.1, places)
    rows = {}
    for n, layer in enumerate(layers):
        count = rng.integers(0, most + 1, places)
        place = np.repeat(np.arange(places), count)
        strips = random_strips(len(place), *layer.strip, seed=100 * seed + n)
        rows[layer.name] = Rows(
            strips, place, lat[place] + rng.normal(0, 1e-4, len(place)), lon[place] + rng.normal(0, 1e-4, len(place))
        )
    return World(layers, lat, lon, rows)


def make(path: Path, of: World, sizes: tuple[int, ...], dtype: str = "fp32") -> PlaceIndex:
    index = PlaceIndex.create(path, model=MODEL, layers=of.layers, dtype=dtype)
    begin = 0
    for size in sizes:
        index.add(**of.part(begin, begin + size), model=MODEL)
        begin += size
    assert begin == len(of)
    return index


def queries(of: World, count: int, seed: int, width: tuple[int, ...] = (5, 3)) -> dict[str, QueryStrips]:
    """Photos seen from some of the places, with noise; their widths differ."""
    rng = np.random.default_rng(seed)
    wide = torch.tensor([width[n % len(width)] for n in range(count)])
    found = {}
    for n, layer in enumerate(of.layers):
        columns = min(max(width), layer.strip[2])
        strips = random_strips(count, *layer.strip[:2], columns, seed=seed + n)
        rows = of.rows[layer.name].strips
        for b in range(count):
            like = rows[rng.integers(len(rows))]
            strips[b] = 0.5 * strips[b] + like.roll(int(rng.integers(layer.strip[2])), 2)[..., :columns]
        found[layer.name] = QueryStrips(strips, wide.clamp(max=layer.strip[2]))
    return found


def curve(layer: Layer, query: np.ndarray, strip: np.ndarray) -> list[float]:
    """Score of the window at every shift, by the definition."""
    columns, width = strip.shape[2], query.shape[2]
    found = []
    for shift in range(columns):
        window = strip[..., (shift + np.arange(width)) % columns]
        score = float((query * window).sum())
        if layer.score == "cosine":
            energy = float((window**2).sum())
            score = 0.0 if energy < 1e-6 * (strip**2).sum() else score / (np.linalg.norm(query) * np.sqrt(energy))
        found.append(score)
    return found


def by_the_formula(of: World, query: dict[str, QueryStrips], b: int, dtype: str) -> list[dict[str, Any]]:
    """Every place that has anything in a layer of the query: score, shift and parts, in float64 loops."""
    stored = {
        layer.name: StripBank.pack(of.rows[layer.name].strips, dtype=dtype).unpack().double().numpy()
        for layer in of.layers
    }
    found = []
    for place in range(len(of)):
        total = np.zeros(COLUMNS)
        curves, headed = {}, False
        stands_in = {
            layer.name: layer.absent
            if strips is None or strips.absent is None or (strips.width is not None and not strips.width[b])
            else float(strips.absent[b])
            for layer in of.layers for strips in (query.get(layer.name),)
        }  # fmt: skip
        for layer in of.layers:
            strips = query.get(layer.name)
            width = 0
            if strips is not None:
                width = strips.strips.shape[3] if strips.width is None else int(strips.width[b])
            at = np.flatnonzero(of.rows[layer.name].place == place)
            if strips is None or width == 0 or not len(at):
                total += layer.weight * stands_in[layer.name]
                continue
            photo = strips.strips[b, ..., :width].double().numpy()
            own = np.array([curve(layer, photo, stored[layer.name][row]) for row in at])
            if layer.column0_deg is None:
                own = own.max(axis=1, keepdims=True).repeat(COLUMNS, 1)
            else:
                headed = True
            curves[layer.name] = own
            total += layer.weight * own.max(axis=0)
        if not curves:
            continue
        shift = int(total.argmax())
        parts = [
            layer.weight * (curves[layer.name][:, shift].max() if layer.name in curves else stands_in[layer.name])
            for layer in of.layers
        ]
        found.append({"id": place, "score": total[shift], "shift": shift if headed else -1, "parts": parts})
    return sorted(found, key=lambda each: (-each["score"], each["id"]))


def check(index: PlaceIndex, of: World, query: dict[str, QueryStrips], k: int, dtype: str, **options: Any) -> Any:
    found = index.search(query, k, layers=of.layers, select="cosine", **options)
    for b in range(len(found.id)):
        expected = by_the_formula(of, query, b, dtype)[:k]
        assert found.id[b, : len(expected)].tolist() == [each["id"] for each in expected], b
        assert (found.id[b, len(expected) :] == -1).all()
        for n, each in enumerate(expected):
            assert found.score[b, n] == pytest.approx(each["score"], abs=2e-6)
            assert found.parts[b, n] == pytest.approx(each["parts"], abs=2e-6)
            assert found.shift[b, n] == each["shift"]
            assert np.isnan(found.heading_deg[b, n]) == (each["shift"] < 0)
            assert (found.lat[b, n], found.lon[b, n]) == (of.lat[each["id"]], of.lon[each["id"]])
    return found


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("layers", [LAYERS, (STREET, TEXT), (SATELLITE, STREET), (TURNED, STREET), (TEXT, CELL)])
def test_the_score_is_that_of_the_formula(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    of = world(layers, 60, seed=len(layers))
    query = queries(of, 5, seed=3)
    with make(tmp_path / "index", of, (25, 1, 34)) as index:
        found = check(index, of, query, 7, "fp32")
        assert found.exact.all()
        assert PlaceIndex.verify(tmp_path / "index") == []
        index.compact(keep=0)
        assert same(found, index.search(query, 7, layers=of.layers, select="cosine"))


def test_stored_as_bf16_too(tmp_path: Path) -> None:
    of = world((STREET, TEXT), 40, seed=7)
    check(make(tmp_path / "index", of, (40,), "bf16"), of, queries(of, 3, seed=4), 10, "bf16")


def test_the_heading_is_one_for_all_layers(tmp_path: Path) -> None:
    """Alone, each layer sees the photo at a shift of its own; together they agree on a third."""
    street, satellite = torch.zeros(1, 3, 2, COLUMNS), torch.zeros(1, 2, 1, COLUMNS)
    street[0, :, :, 1], street[0, :, :, 4], satellite[0, :, :, 6], satellite[0, :, :, 4] = 1.0, 0.9, 1.0, 0.9
    street[0, 0, :, 4], satellite[0, 0, :, 4] = 0.6, 0.6
    query = {
        "street": QueryStrips(torch.ones(1, 3, 2, 1)),
        "satellite": QueryStrips(torch.ones(1, 2, 1, 1)),
    }
    with PlaceIndex.create(tmp_path / "index", model=MODEL, layers=(STREET, SATELLITE), dtype="fp32") as index:
        index.add({"street": Rows(street), "satellite": Rows(satellite)}, model=MODEL, lat=[48.0], lon=[11.0])
        assert index.search({"street": query["street"]}).shift[0, 0] == 1
        assert index.search({"satellite": query["satellite"]}).shift[0, 0] == 6
        both = index.search(query)
        assert both.shift[0, 0] == 4
        assert both.heading_deg[0, 0] == (FRAME + 360 * 4.5 / COLUMNS) % 360


def test_queries_and_places_may_have_nothing_in_a_layer(tmp_path: Path) -> None:
    of = world(LAYERS, 50, seed=11, most=1)
    query = queries(of, 6, seed=5)
    widths = {"street": [5, 0, 5, 0, 3, 0], "satellite": [5, 5, 0, 0, 3, 0], "text": [1, 0, 0, 1, 1, 0]}
    query = {name: QueryStrips(query[name].strips, torch.tensor(width)) for name, width in widths.items()}
    with make(tmp_path / "index", of, (20, 30)) as index:
        found = check(index, of, query, 9, "fp32")
        assert (found.id[5] == -1).all()  # it has nothing anywhere
        assert (found.shift[3] == -1).all() and np.isnan(found.heading_deg[3]).all()  # a text knows no heading


def test_a_query_may_know_what_stands_in_for_what_is_absent(tmp_path: Path) -> None:
    of = world(LAYERS, 50, seed=17, most=1)
    query = queries(of, 4, seed=6)
    wide = {"street": [5, 5, 0, 3], "satellite": [5, 5, 5, 0], "text": [1, 1, 1, 1]}
    scores = torch.tensor([-0.3, 0.2, 0.9, 0.6], dtype=torch.float64)
    query = {name: QueryStrips(query[name].strips, torch.tensor(width), scores) for name, width in wide.items()}
    with make(tmp_path / "index", of, (20, 30)) as index:
        found = check(index, of, query, 9, "fp32")
        assert found.exact.all()
        without = {name: strips._replace(absent=None) for name, strips in query.items()}
        assert not np.array_equal(index.search(without, 9, layers=of.layers, select="cosine").id, found.id)
        for wrong in (scores[:3], scores * np.nan):
            with pytest.raises(ValueError, match="finite scores for what is absent"):
                index.search({**query, "text": query["text"]._replace(absent=wrong)}, 9)


def test_the_standpoint_is_that_of_the_row_that_says_most(tmp_path: Path) -> None:
    of = world((STREET,), 30, seed=13)
    rows = of.rows["street"]
    assert rows.place is not None and rows.lat is not None
    with make(tmp_path / "index", of, (10, 20)) as index:
        for row in (0, 5, len(rows.strips) - 1):
            found = index.search({"street": QueryStrips(rows.strips[row : row + 1])}, 3)
            assert found.id[0, 0] == rows.place[row] and found.standpoint_lat[0, 0] == rows.lat[row]
            assert found.score[0, 0] == pytest.approx(1, abs=1e-5)
            assert len(set(found.id[0].tolist())) == 3  # a place counts once


def test_one_row_of_a_place_says_nothing_of_the_standpoint(tmp_path: Path) -> None:
    of = world((STREET, SATELLITE), 20, seed=14, most=1)
    strips = random_strips(3 * 20, *SATELLITE.strip, seed=15)
    place = np.repeat(np.arange(20), 3)
    lat, lon = of.lat[place] + np.tile((0, 1e-5, 2e-5), 20), of.lon[place]
    of.rows["satellite"] = Rows(strips, place, lat, lon)
    street = of.rows["street"]
    assert street.place is not None
    with make(tmp_path / "index", of, (20,)) as index:
        for row in range(0, 60, 7):
            own = np.flatnonzero(street.place == place[row])
            query = {"satellite": QueryStrips(strips[row : row + 1])}
            if len(own):  # the street's part is the larger one, and stands elsewhere
                query["street"] = QueryStrips(street.strips[own])
            found = index.search(query, 1, layers=of.layers)
            assert found.id[0, 0] == place[row] and found.standpoint_lat[0, 0] == lat[row]


def test_of_several_readings_the_best_counts(tmp_path: Path) -> None:
    """Each measured from its own 16th place, as if that scored as much as that of the first; equals by the earlier."""
    layers = (STREET, SATELLITE, TEXT)
    of = world(layers, 60, seed=41)
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    query = queries(of, 6, seed=7)
    for strips in query.values():
        assert strips.width is not None
        strips.strips[2], strips.width[2] = strips.strips[1], strips.width[1]  # the third as the second
    with make(tmp_path / "index", of, (25, 35)) as index:
        apart = index.search(query, 60, layers=layers)
        for k in (60, 3):
            found = index.search({n: one._replace(query=owner) for n, one in query.items()}, k, layers=layers)
            for b, own in enumerate(([0, 1, 2], [3], [4, 5])):
                best: dict[int, tuple[float, int]] = {}
                for reading, row in enumerate(own):
                    for place, score in zip(apart.id[row].tolist(), apart.score[row].tolist(), strict=True):
                        shown = score - (float(apart.score[row, 15]) - float(apart.score[own[0], 15]))
                        if place >= 0 and (place not in best or shown > best[place][0] + 1e-9):
                            best[place] = shown, reading
                expected = sorted(best, key=lambda place: (-best[place][0], place))[:k]
                count = len(expected)
                assert found.id[b, :count].tolist() == expected and (found.id[b, count:] == -1).all()
                assert found.score[b, :count] == pytest.approx([best[place][0] for place in expected], abs=1e-6)
                assert found.reading[b, :count].tolist() == [best[place][1] for place in expected]
                for n in range(count):
                    row = own[found.reading[b, n]]
                    (at,) = np.flatnonzero(apart.id[row] == found.id[b, n])
                    assert found.heading_deg[b, n] == pytest.approx(apart.heading_deg[row, at], nan_ok=True)
                    assert found.parts[b, n] == pytest.approx(apart.parts[row, at])
            if k == 60:
                assert set(found.reading[0]) == set(found.reading[2]) == {0, 1} and not found.reading[1].any()
        box = Box(48.0, 11.0, 48.01, 11.1)  # fewer than 16 places
        few = index.search({n: one._replace(query=owner) for n, one in query.items()}, 9, layers=layers, within=box)
        assert 0 < (few.id[0] >= 0).sum() < 16 and np.isfinite(few.score[few.id >= 0]).all()
        for wrong in ([0, 0, 0, 1, 3, 3], [1, 1, 1, 2, 2, 2], [0, 1, 0, 1, 2, 2], [0, 1, 2], [0.0] * 6):
            with pytest.raises(ValueError, match=r"query\['street'\] \(query\): expected of which query"):
                index.search({n: one._replace(query=torch.tensor(wrong)) for n, one in query.items()}, 3)
        with pytest.raises(ValueError, match="the same in every layer"):
            index.search({**query, "text": query["text"]._replace(query=owner)}, 3)


def test_rows_that_are_not_scanned_rescore(tmp_path: Path) -> None:
    few, every = ((STREET._replace(scanned_rows=number),) for number in (1, 5))
    of = world(few, 40, seed=17, most=5)
    rows = of.rows["street"]
    assert rows.place is not None
    second = next(row for row in range(1, len(rows.strips)) if rows.place[row] == rows.place[row - 1])
    query = {"street": QueryStrips(rows.strips[second : second + 1])}
    with (
        make(tmp_path / "few", of, (40,)) as index,
        make(tmp_path / "every", replace(of, layers=every), (40,)) as whole,
    ):
        found, right = index.search(query, 40, layers=few), whole.search(query, 40, layers=every)
        assert found.id[0, 0] == rows.place[second] and found.score[0, 0] == pytest.approx(1, abs=1e-5)
        assert not found.exact.any()  # a row that nobody looked at may be better
        assert right.exact.all() and same(right[:-1], found[:-1])
        with pytest.raises(ValueError, match=r"scanned_rows.: expected 1, as the index was made with, got 5"):
            index.search(query, 4, layers=every)


def test_a_high_score_for_what_is_absent_hides_no_place_that_has_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lists are shorter than the index, a place that only one of them names may still have rows in the other."""
    layers = (STREET._replace(scanned_rows=1), SATELLITE._replace(scanned_rows=1))
    of = world(layers, 60, seed=43, most=1)
    for name, rows in of.rows.items():
        place = np.repeat(np.arange(60), 2)
        strips = random_strips(120, *rows.strips.shape[1:], seed=len(name))
        of.rows[name] = Rows(strips, place, of.lat[place], of.lon[place])
    monkeypatch.setattr(searching, "_ONE_DEPTH", 6)
    monkeypatch.setattr(searching, "_RESCORED", 2)
    high = torch.tensor([1.5])
    with make(tmp_path / "index", of, (60,)) as index:
        for place in range(0, 60, 5):
            seen = of.rows["street"].strips[2 * place : 2 * place + 1]
            other = random_strips(1, *SATELLITE.strip, seed=place)
            query = {"street": QueryStrips(seen, absent=high), "satellite": QueryStrips(other)}
            found = index.search(query, 1, layers=layers)
            assert found.id.tolist() == [[place]] and not found.exact.any()


@pytest.mark.parametrize("count", [1, 4, 50])
def test_the_places_that_are_rescored_have_the_highest_sums(count: int) -> None:
    """Over lists of two layers of two parts, places that both name counted once; equals of the last stay."""
    rng = np.random.default_rng(count)
    named = [[(rng.permuted(np.tile(np.arange(-1, 20), (3, 1)), axis=1)[:, :8], rng.integers(-9, 9, (3, 8)) / 4)
              for _ in range(2)] for _ in range(2)]  # fmt: skip
    found = searching._highest(named, count)
    for b in range(3):
        sums: dict[tuple[int, int], float] = {}
        for part, lists in enumerate(named):
            for place, gain in lists:
                for each, value in zip(place[b].tolist(), gain[b].tolist(), strict=True):
                    if each >= 0:
                        sums[part, each] = sums.get((part, each), 0.0) + value
        last = sorted(sums.values(), reverse=True)[:count][-1] if len(sums) >= count else -np.inf
        expected = {each for each, value in sums.items() if value >= last}
        assert {(part, n) for part, own in enumerate(found) for n in own[b].tolist() if n >= 0} == expected


def test_rows_that_are_searched_lie_before_the_others(tmp_path: Path) -> None:
    """Also after segments are merged, with the answers as they were and the rows as they were given."""
    of = world((STREET._replace(scanned_rows=2), SATELLITE._replace(scanned_rows=1)), 50, seed=19, most=4)
    query = queries(of, 4, seed=5)
    with make(tmp_path / "index", of, (20, 30)) as index:
        index.remove([3, 30])
        before, kept = index.search(query, 9, layers=of.layers), index.ids()
        index.compact(keep=0)
        assert same(before, index.search(query, 9, layers=of.layers))
        for layer in of.layers:
            place = of.rows[layer.name].place
            assert place is not None
            (name,) = (tmp_path / "index").glob("*.places")
            with safetensors.safe_open(name, "np") as table:
                stored = kept[table.get_tensor(f"layer.{layer.name}.place")]
            there = place[np.isin(place, kept)]
            number = np.arange(len(there)) - np.searchsorted(there, there)
            first = number < layer.scanned_rows
            assert stored.tolist() == [*there[first], *there[~first]]
            strips = index.strips(layer.name, kept).strips
            given = StripBank.pack(of.rows[layer.name].strips, dtype="fp32").unpack()
            assert torch.equal(strips, given[np.isin(place, kept)])
        with index.slice(tmp_path / "part", kept[::2]) as part:
            half = np.isin(before.id, part.ids())
            assert np.isin(before.id[half], part.search(query, 9, layers=of.layers).id).all()
        assert PlaceIndex.verify(tmp_path / "index") == PlaceIndex.verify(tmp_path / "part") == []


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_called_exact_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Short lists make mistakes; none of them is called exact, and deeper ones have none."""
    of = world((STREET, SATELLITE, TEXT), 120, seed=seed, most=2)
    query = queries(of, 8, seed=seed)
    index = make(tmp_path / "index", of, (50, 70))
    right = index.search(query, 3, layers=of.layers)
    assert right.exact.all()
    monkeypatch.setattr(searching, "_FIRST_DEPTH", 1)
    monkeypatch.setattr(searching, "_DEEPER", 2)
    wrong = 0
    for depth in (3, 6, 12, 24, 60):
        found = index.search(query, 3, layers=of.layers, depth=depth)
        differs = (found.id != right.id).any(axis=1)
        assert not (differs & found.exact).any(), depth
        wrong += int(differs.sum())
    assert wrong > 0 or seed > 0
    assert same(index.search(query, 3, layers=of.layers), right)


def test_many_rows_at_once_are_scored_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = world((STREET, SATELLITE), 60, seed=23)
    query = queries(of, 4, seed=23)
    index = make(tmp_path / "index", of, (30, 30))
    whole = index.search(query, 10, layers=of.layers)
    monkeypatch.setattr(searching, "_VALUES_AT_ONCE", 300)
    assert same(whole, index.search(query, 10, layers=of.layers))


def test_parts_of_an_index_give_what_the_whole_gives(tmp_path: Path) -> None:
    of = world(LAYERS, 80, seed=29)
    query = queries(of, 5, seed=29)
    with make(tmp_path / "index", of, (30, 50)) as index:
        index.remove([3, 4, 40, 79])
        whole = index.search(query, 12, layers=of.layers)
        assert not np.isin(whole.id, [3, 4, 40, 79]).any()
        west, east = Box(48, 11, 48.1, 11.05), Box(48, np.nextafter(11.05, 12), 48.1, 11.1)
        shards = [index.slice(tmp_path / name, box) for name, box in (("west", west), ("east", east))]
        assert sum(len(shard) for shard in shards) == len(index) == 76
        found = [shard.search(query, 12, layers=of.layers) for shard in shards]
        assert same(merge(found, 12), whole)
        assert same(index.search(query, 12, layers=of.layers, within=west), found[0])
        for shard in shards:
            assert PlaceIndex.verify(shard.path) == []
            assert shard.places(shard.ids()) == index.places(shard.ids())
    with pytest.raises(ValueError, match="same queries and layers"):
        merge([whole, whole._replace(id=whole.id[:1])], 3)
    with pytest.raises(ValueError, match="k: expected at most"):
        merge(found, 100)


def test_strips_are_read_as_they_are_stored_whatever_the_order_of_their_places(tmp_path: Path) -> None:
    of = world(LAYERS, 40, seed=37)
    with make(tmp_path / "index", of, (25, 15)) as index:
        index.remove([7])
        asked = [33, 2, 2, 26, 11]
        for layer in of.layers:
            strips, place, lat, lon = index.strips(layer.name, asked)
            rows = of.rows[layer.name]
            assert rows.place is not None
            expected = [np.flatnonzero(rows.place == number) for number in asked]
            assert place is not None
            assert place.tolist() == [n for n, at in enumerate(expected) for _ in at]
            stored = StripBank.pack(rows.strips, dtype="fp32").unpack()
            assert torch.equal(strips, stored[np.concatenate(expected)])
            assert (lat, lon) == (None, None)
        assert len(index.strips("cell", []).strips) == 0
        for wrong, words in ((7, "there is no place 7"), (40, "there is no place 40")):
            with pytest.raises(KeyError, match=words):
                index.strips("cell", [1, wrong])
        with pytest.raises(ValueError, match="layer"):
            index.strips("sound", [1])


def test_one_layer_of_several_rows_is_a_search_by_group(tmp_path: Path) -> None:
    of = world((STREET,), 50, seed=31)
    rows = of.rows["street"]
    query = queries(of, 4, seed=31)["street"]
    bank = StripBank.pack(rows.strips, dtype="fp32")
    group = torch.from_numpy(rows.place)
    with make(tmp_path / "index", of, (50,)) as index:
        for select in ("correlation", "cosine"):
            expected = strip_topk(query.strips, bank, 8, query_width=query.width, select=select, group=group)
            found = index.search({"street": query}, 8, select=select)
            assert np.array_equal(found.id, group[expected.index].numpy())
            assert np.array_equal(found.score, expected.score.numpy())
            assert np.array_equal(found.shift, expected.shift.numpy())


def test_layers_that_an_index_cannot_hold_are_refused(tmp_path: Path) -> None:
    for layers, message in (
        ((), "at least one"),
        ((STREET, STREET), "each name once"),
        ((STREET._replace(name="Street"),), "small letters"),
        ((STREET._replace(name="a/b"),), "small letters"),
        ((STREET, SATELLITE._replace(column0_deg=0.0)), "share W and column0_deg"),
        ((STREET, SATELLITE._replace(strip=(2, 1, 16))), "share W and column0_deg"),
        ((STREET, SATELLITE._replace(score="dot")), "compared by cosine"),
        ((STREET._replace(score="l2"),), "score"),
        ((STREET._replace(column0_deg=float("nan")),), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            PlaceIndex.create(tmp_path / "index", model=MODEL, layers=layers)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_the_layers_is_refused(tmp_path: Path) -> None:
    of = world((STREET, SATELLITE), 10, seed=37)
    with make(tmp_path / "index", of, (10,)) as index:
        where = {"model": MODEL, "lat": [48.0] * 2, "lon": [11.0] * 2}
        strips = random_strips(2, *STREET.strip)
        for rows, message in (
            ({"text": Rows(strips)}, "rows by layer, of street, satellite"),
            ({"street": Rows(strips, np.array([1, 0]))}, "ascending"),
            ({"street": Rows(strips, np.array([0, 2]))}, "places from 0 to 1"),
            ({"street": Rows(strips, np.array([0.0, 1.0]))}, "rows"),
            ({"street": Rows(strips, None, np.zeros(2))}, "both lat and lon"),
            ({"street": Rows(strips, None, np.zeros(2), np.full(2, 200.0))}, "lon: expected degrees"),
        ):
            with pytest.raises(ValueError, match=message):
                index.add(rows, **where)
        with pytest.raises(ValueError, match="rows by layer"):
            index.add(strips, **where)  # type: ignore[arg-type]
        query = queries(of, 2, seed=1)
        for asked, options, message in (
            ({}, {}, "strips by layer"),
            ({"cell": query["street"]}, {}, "of street, satellite"),
            ({**query, "street": QueryStrips(query["street"].strips[:1])}, {}, "queries as in the other layers"),
            ({**query, "street": QueryStrips(query["street"].strips, torch.tensor([4, 3]))}, {}, "the widths"),
            (query, {"layers": [STREET]}, "layers: expected"),
            (query, {"layers": [STREET, SATELLITE._replace(weight=0.0)]}, "weight above 0"),
            (query, {"layers": [STREET, SATELLITE._replace(absent=float("inf"))]}, "finite score"),
            (query, {"depth": 2}, "depth"),
        ):
            with pytest.raises(ValueError, match=message):
                index.search(asked, 3, **options)
        assert index.commit == 1


def test_a_row_of_a_place_without_position_need_not_have_one(tmp_path: Path) -> None:
    with PlaceIndex.create(tmp_path / "index", model=MODEL, layers=LAYERS) as index:
        somewhere, nowhere = np.array([48.0001, np.nan]), np.array([np.nan, np.nan])
        rows = {"street": Rows(random_strips(2, *STREET.strip), None, somewhere, somewhere - 37)}
        index.add(rows, model=MODEL, lat=[48.0, None], lon=[11.0, None])
        found = index.search({"street": QueryStrips(rows["street"].strips[1:])}, 2)
        assert found.id[0, 0] == 1 and np.isnan(found.standpoint_lat[0, 0])
        rows = {"street": Rows(rows["street"].strips, None, nowhere, nowhere)}
        with pytest.raises(ValueError, match="lat: expected degrees"):
            index.add(rows, model=MODEL, lat=[48.0, None], lon=[11.0, None])


def test_a_place_may_have_no_position_and_no_rows(tmp_path: Path) -> None:
    with PlaceIndex.create(tmp_path / "index", model=MODEL, layers=LAYERS) as index:
        strips = random_strips(2, *STREET.strip)
        index.add(
            {"street": Rows(strips, np.array([0, 2]))}, model=MODEL, lat=[48.0, None, None], lon=[11.0, None, None]
        )
        index.add({}, model=MODEL, lat=[49.0], lon=[12.0])
        assert [(place.lat, place.lon) for place in index.places(range(4))] == [
            (48.0, 11.0), (None, None), (None, None), (49.0, 12.0),
        ]  # fmt: skip
        found = index.search({"street": QueryStrips(strips[1:])}, 4)
        assert found.id[0].tolist() == [2, 0, -1, -1]
        assert np.isnan(found.lat[0, 0]) and np.isnan(found.standpoint_lat[0, 0]) and found.lat[0, 1] == 48
        assert index.info()["bounds"]["north"] == 49 and len(index) == 4
        assert index.ids(Box(-90, -180, 90, 180)).tolist() == [0, 3]
        assert index.export(tmp_path / "places.parquet") == 4
        index.compact()
    assert PlaceIndex.verify(tmp_path / "index") == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_another_device_gives_the_same_answer(tmp_path: Path) -> None:
    of = world(LAYERS, 80, seed=41)
    query = queries(of, 5, seed=41)
    make(tmp_path / "index", of, (30, 50)).close()
    here, there = (PlaceIndex.open(tmp_path / "index", device=name) for name in ("cpu", "cuda"))
    ours, theirs = (index.search(query, 12, layers=of.layers) for index in (here, there))
    assert np.array_equal(ours.id, theirs.id) and np.array_equal(ours.shift, theirs.shift)
    assert np.allclose(ours.score, theirs.score, atol=1e-5)
