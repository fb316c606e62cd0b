"""The index on disk: what it answers, what it refuses, and that the past of a reader stays as it was."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import torch

from geoloc_fast import StripBank, strip_topk
from geoloc_fast.errors import DamagedIndexError, IndexBusyError, IndexVersionError, OtherModelError, PlaceIndexError
from geoloc_fast.geo.regions import Box, Circle, parse_box, parse_circle
from geoloc_fast.index import Neighbours, PlaceIndex, commits
from geoloc_fast.index.folder import Folder
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.testing import random_strips

MODEL = "a" * 64
SHAPE = (4, 2, 8)
LAYERS = (Layer("street", SHAPE, "cosine", 180.0),)
COUNT = 100


def strips(count: int = COUNT, seed: int = 0) -> torch.Tensor:
    return random_strips(count, *SHAPE, seed=seed)


def street(values: torch.Tensor) -> dict[str, Rows]:
    return {"street": Rows(values)}


def asked(values: torch.Tensor, width: torch.Tensor | None = None) -> dict[str, QueryStrips]:
    return {"street": QueryStrips(values, width)}


def segment_file(folder: Path, suffix: str, n: int = 0) -> Path:
    """Of the n-th segment of the last commit."""
    name = commits.read_last(Folder(folder)).segments[n].name
    return folder / f"{name}.{suffix}"


def positions(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"lat": rng.uniform(48.0, 48.1, count), "lon": rng.uniform(11.0, 11.1, count)}


def make(path: Path, parts: tuple[int, ...] = (COUNT,), dtype: str = "bf16") -> PlaceIndex:
    """An index of `strips()` in segments of the given sizes."""
    where = positions(sum(parts))
    index = PlaceIndex.create(path, model=MODEL, layers=LAYERS, dtype=dtype)
    first = 0
    for size in parts:
        part = slice(first, first + size)
        ids = index.add(
            street(strips(sum(parts))[part]),
            model=MODEL,
            lat=where["lat"][part],
            lon=where["lon"][part],
            key=[f"place {n}" for n in range(sum(parts))[part]],
            attributes={
                "city": ["Würzburg" if n % 2 else "" for n in range(size)],
                "street_date": [datetime.date(1969, 12, 31) if n % 3 else None for n in range(size)],
                "street_synthetic": [None if n % 2 else "f00d" for n in range(size)],
            },
        )
        assert ids.tolist() == list(range(first, first + size))
        first += size
    return index


def same(a: Neighbours, b: Neighbours) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_many_segments_answer_as_one_and_as_the_bare_search(tmp_path: Path, dtype: str) -> None:
    query, width = strips(9, seed=1)[..., :5], torch.tensor([5, 1, 2, 3, 4, 5, 5, 5, 5])
    one, many = make(tmp_path / "one", dtype=dtype), make(tmp_path / "many", (1, 16, 33, 50), dtype=dtype)
    bank = StripBank.pack(strips(), dtype=dtype)
    for select in ("correlation", "cosine"):
        for k in (1, 7, 150):
            expected = strip_topk(query, bank, k, query_width=width, select=select)
            found = one.search(asked(query, width), k, select=select)
            assert np.array_equal(found.id, expected.index.numpy())
            assert np.array_equal(found.shift, expected.shift.numpy())
            there = found.id >= 0
            assert np.array_equal(found.score[there], expected.score.numpy()[there])
            assert np.isnan(found.score[~there]).all() and np.isnan(found.lat[~there]).all()
            assert same(found, many.search(asked(query, width), k, select=select))


def test_equal_scores_go_to_the_lowest_id_across_segments(tmp_path: Path) -> None:
    with PlaceIndex.create(tmp_path / "index", model=MODEL, layers=LAYERS) as index:
        for _ in range(3):
            index.add(street(strips(5)), model=MODEL, **positions(5))
        assert index.search(asked(strips(5)[2:3]), 3).id.tolist() == [[2, 7, 12]]
        index.remove([2])
        index.compact()
        assert index.search(asked(strips(5)[2:3]), 3).id.tolist()[0][:2] == [7, 12]


def test_the_heading_is_that_of_the_window(tmp_path: Path) -> None:
    index = make(tmp_path / "index")
    found = index.search(asked(strips()[3:4, :, :, 2:5]), 1)
    # Columns of 45 degrees from 180: the middle of columns 2, 3, 4.
    assert (found.id.item(), found.shift.item(), found.heading_deg.item()) == (3, 2, (180 + 45 * 3.5) % 360)


def test_what_is_removed_is_gone_and_its_id_is_not_given_again(tmp_path: Path) -> None:
    with make(tmp_path / "index", (30, 70)) as index:
        assert index.remove([99, 5, 5, 12345, -1]) == 2
        assert index.remove([5]) == 0
        assert len(index) == COUNT - 2
        assert index.search(asked(strips()[5:6]), 100).id.tolist()[0].count(5) == 0
        with pytest.raises(KeyError, match="no place 5"):
            index.places([4, 5])
        assert index.add(street(strips(2, seed=3)), model=MODEL, **positions(2)).tolist() == [100, 101]
        assert index.remove(range(30)) == 29  # the whole first segment, which goes with its files
        assert index.info()["segments"] == 2
    with PlaceIndex.open(tmp_path / "index", "write") as index:
        assert index.remove(index.ids()) == 71
        assert len(index) == 0 and index.search(asked(strips(1)), 3).id.tolist() == [[-1] * 3]
        assert index.add(street(strips(1)), model=MODEL, **positions(1)).tolist() == [102]


def test_compaction_changes_no_answer(tmp_path: Path) -> None:
    query = strips(6, seed=2)[..., :4]
    with make(tmp_path / "index", (3, 20, 60, 17)) as index:
        index.remove([0, 1, 2, 4, 50, 99])
        before, places = index.search(asked(query), 100), index.places(index.ids())
        assert index.compact()
        assert index.info()["segments"] == 1 and index.info()["removed"] == 0
        assert same(before, index.search(asked(query), 100))
        assert places == index.places(index.ids())
        assert not index.compact(keep=0)
        files = [name for name in os.listdir(tmp_path / "index") if name.endswith((".strips", ".places"))]
        assert len(files) == 2
    assert PlaceIndex.verify(tmp_path / "index") == []


def test_the_place_table_keeps_what_it_was_given(tmp_path: Path) -> None:
    index = make(tmp_path / "index", (40, 60))
    where = positions(COUNT)
    for number in (0, 39, 40, 41, 99):
        (place,) = index.places([number])
        assert (place.id, place.key, place.lat, place.lon) == (
            number, f"place {number}", where["lat"][number], where["lon"][number],
        )  # fmt: skip
        assert "satellite_date" not in place.attributes
    known = [place.attributes for place in index.places([0, 1, 40, 41])]
    assert [each.get("city") for each in known] == [None, "Würzburg", None, "Würzburg"]
    assert [each.get("street_date") for each in known[:2]] == [None, datetime.date(1969, 12, 31)]
    assert [each.get("street_synthetic") for each in known[:3]] == ["f00d", None, "f00d"]
    assert index.keys()["place 41"] == 41


def test_a_region_restricts_search_and_slice(tmp_path: Path) -> None:
    query, where = strips(4, seed=5), positions(COUNT)
    index = make(tmp_path / "index", (50, 50))
    for region in (Box(48.02, 11.03, 48.07, 11.09), Circle(48.05, 11.05, 2500.0)):
        inside = np.flatnonzero(region.contains(where["lat"], where["lon"]))
        assert 3 < len(inside) < 60
        assert index.ids(region).tolist() == inside.tolist()
        found = index.search(asked(query), COUNT, within=region)
        everywhere = index.search(asked(query), COUNT)
        for row in range(4):
            expected = [n for n in everywhere.id[row].tolist() if n in set(inside.tolist())]
            assert found.id[row].tolist() == expected + [-1] * (COUNT - len(expected))
        part = index.slice(tmp_path / type(region).__name__, region)
        assert same(part.search(asked(query), COUNT), found)
        assert PlaceIndex.verify(part.path) == []
        with PlaceIndex.open(part.path, "write") as grown:  # ids go on where the whole index was
            assert grown.add(street(strips(1)), model=MODEL, **positions(1)).tolist() == [COUNT]
    nowhere = index.slice(tmp_path / "nowhere", Circle(0, 0, 1))
    assert len(nowhere) == 0 and nowhere.search(asked(query), 2).id.tolist() == [[-1, -1]] * 4


def test_a_box_may_cross_the_antimeridian(tmp_path: Path) -> None:
    lon = np.array([179.9, -179.9, 170.0, 0.0])
    assert Box(-1, 179, 1, -179).contains(np.zeros(4), lon).tolist() == [True, True, False, False]
    assert Box(-1, -180, 1, 180).contains(np.zeros(4), lon).all()
    assert Circle(0, 180, 20_000).contains(np.zeros(4), lon).tolist() == [True, True, False, False]
    assert Circle(89.9999, 0, 100).contains(np.array([89.9999]), np.array([170.0])).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("48,11,49,12", "expected south=NUMBER"),
        ("south=48,west=11,north=49", "expected south=NUMBER"),
        ("south=48,west=11,north=49,east=12,east=13", "expected south=NUMBER"),
        ("south=49,west=11,north=48,east=12", "swapped"),
        ("south=nan,west=11,north=48,east=12", "south: expected degrees"),
        ("south=48,west=191,north=49,east=12", "west: expected degrees"),
    ],
)
def test_a_wrong_box_says_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_box(text)


def test_regions_are_read_by_name() -> None:
    assert parse_box("west=11, south=48, east=12, north=49") == Box(48, 11, 49, 12)
    assert parse_circle("metres=500,lat=48.1,lon=11.5") == Circle(48.1, 11.5, 500)
    with pytest.raises(ValueError, match="metres"):
        parse_circle("metres=-1,lat=48.1,lon=11.5")


def test_a_reader_keeps_its_snapshot_until_it_refreshes(tmp_path: Path) -> None:
    query = strips()[7:8]
    with make(tmp_path / "index", (50, 50)) as writer:
        reader = PlaceIndex.open(tmp_path / "index")
        before = reader.search(asked(query), COUNT)
        writer.remove([7])
        writer.compact()  # the reader's files are unlinked now
        writer.add(street(strips(4, seed=8)), model=MODEL, **positions(4))
        assert same(reader.search(asked(query), COUNT), before)
        assert reader.places([7])[0].key == "place 7"
        assert len(reader) == COUNT and reader.commit == 2
        assert reader.refresh() and not reader.refresh()
        assert len(reader) == COUNT + 3 and 7 not in reader.search(asked(query), COUNT).id
        assert same(reader.search(asked(query), COUNT), writer.search(asked(query), COUNT))


def test_there_is_one_writer(tmp_path: Path) -> None:
    index = make(tmp_path / "index")
    with pytest.raises(IndexBusyError, match="another process is writing"):
        PlaceIndex.open(tmp_path / "index", "write")
    reader = PlaceIndex.open(tmp_path / "index")
    for change in (lambda: reader.remove([1]), reader.compact):
        with pytest.raises(PlaceIndexError, match="opened for reading"):
            change()
    index.close()
    with PlaceIndex.open(tmp_path / "index", "write") as again:
        assert again.remove([1]) == 1
    with pytest.raises(PlaceIndexError, match="opened for reading"):
        again.remove([2])


def test_strips_of_another_model_are_refused(tmp_path: Path) -> None:
    with make(tmp_path / "index") as index:
        for other in ("b" * 64, None):
            with pytest.raises(OtherModelError, match="holds strips of model aaaaaaaaaaaa"):
                index.add(street(strips(1)), model=other, **positions(1))
    with pytest.raises(OtherModelError):
        PlaceIndex.open(tmp_path / "index", model="b" * 64)
    PlaceIndex.open(tmp_path / "index", model=MODEL)


def test_what_cannot_be_added_changes_nothing(tmp_path: Path) -> None:
    with make(tmp_path / "index") as index:
        nan, lost = strips(1), positions(1)
        nan[0, 0, 0, 0] = float("nan")
        lost["lat"] = np.array([91.0])
        for given, where, options, message in (
            (nan, positions(1), {}, "expected finite"),
            (strips(1)[..., :5], positions(1), {}, r"street'\]: expected \(C, H, W\)"),
            (strips(1), positions(2), {}, "expected 1 rows"),
            (strips(1), lost, {}, "lat: expected degrees from -90 to 90, or None, got 91"),
            (strips(1), {**positions(1), "lon": [np.nan]}, {}, "lon: expected degrees"),
            (strips(1), positions(1), {"key": "x"}, "key: expected 1 texts"),
            (strips(1), positions(1), {"attributes": {"street_date": []}}, "street_date'\\]: expected 1 values"),
        ):
            with pytest.raises(ValueError, match=message):
                index.add(street(given), model=MODEL, **where, **options)
        with pytest.raises(TypeError, match="ids: expected integers"):
            index.remove([1.5])
        assert index.add(street(strips(0)), model=MODEL, **positions(0)).tolist() == []
        assert index.commit == 1 and len(index) == COUNT
        for k in (0, 100_000, 2.5):
            with pytest.raises((ValueError, TypeError), match="k: expected an integer"):
                index.search(asked(strips(1)), k)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected finite"):
            index.search(asked(nan))


@pytest.mark.parametrize("dtype", ["int8", "fp16", "float32"])
def test_a_dtype_the_bank_does_not_have_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match="dtype: expected one of 'bf16', 'fp32', got"):
        PlaceIndex.create(tmp_path / "index", model=MODEL, layers=LAYERS, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_creating_never_touches_what_is_there(tmp_path: Path) -> None:
    make(tmp_path / "index").close()
    with pytest.raises(PlaceIndexError, match="there is an index already"):
        PlaceIndex.create(tmp_path / "index", model=MODEL, layers=LAYERS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("x")
    with pytest.raises(PlaceIndexError, match="not empty"):
        PlaceIndex.create(tmp_path / "other", model=MODEL, layers=LAYERS)
    (tmp_path / "empty").mkdir()
    with PlaceIndex.create(tmp_path / "empty", model=MODEL, layers=LAYERS) as index:
        assert len(index) == 0
    assert sorted(os.listdir(tmp_path)) == ["empty", "index", "other"]


def test_export_is_geoparquet_with_longitude_first(tmp_path: Path) -> None:
    with make(tmp_path / "index", (40, 60)) as index:
        index.remove([0])
        assert index.export(tmp_path / "places.parquet") == COUNT - 1
        table = pq.read_table(tmp_path / "places.parquet")
        assert json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["encoding"] == "WKB"
        row = table.slice(1, 1).to_pylist()[0]
        point = np.frombuffer(row["geometry"][5:], "<f8")
        assert (row["id"], row["key"], row["city"], row["street_synthetic"]) == (2, "place 2", None, "f00d")
        assert point.tolist() == [row["lon"], row["lat"]] == [index.places([2])[0].lon, index.places([2])[0].lat]
        assert index.export(tmp_path / "none.parquet", Circle(0, 0, 1)) == 0


def test_info_is_json(tmp_path: Path) -> None:
    with make(tmp_path / "index", (40, 60)) as index:
        index.remove([3])
        said = json.loads(json.dumps(index.info()))
        assert (said["places"], said["removed"], said["segments"], said["commit"]) == (99, 1, 2, 3)
        assert 48 <= said["bounds"]["south"] <= said["bounds"]["north"] <= 48.1
    with PlaceIndex.create(tmp_path / "empty", model=MODEL, layers=LAYERS) as index:
        assert json.loads(json.dumps(index.info()))["bounds"]["south"] is None


def test_files_are_what_other_programs_read(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    make(folder, (40, 60)).close()
    assert len(StripBank.open(segment_file(folder, "street.strips"))) == 40
    with safetensors.safe_open(segment_file(folder, "places", 1), "np") as places:
        assert places.get_tensor("id").tolist() == list(range(60))
        assert places.get_tensor("layer.street.place").tolist() == list(range(60))
    for commit in range(3):
        done = subprocess.run(["sha256sum", "-c", f"{commit:08d}.sha256"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 + 2 * commit, done.stderr


# --- folders that are not what they should be --------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    return body + b"sha256 " + hashlib.sha256(body).hexdigest().encode() + b"\n"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The last commit with other content and the right digest."""
    path = max(folder.glob("*.commit"))
    first, document, _ = path.read_bytes().split(b"\n", 2)
    content = json.loads(document)
    change(content)
    path.write_bytes(sealed(first + b"\n" + json.dumps(content, sort_keys=True).encode() + b"\n"))


def test_what_is_no_index_is_refused_untouched(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no commit")):
        for mode in ("read", "write"):
            with pytest.raises(PlaceIndexError, match=message):
                PlaceIndex.open(path, mode)
        with pytest.raises(PlaceIndexError, match=message):
            PlaceIndex.verify(path)
    for content in (b"", b"geoloc_fast", b"SQLite format 3\0" + bytes(100), sealed(b"geoloc_fast index 2\n{}\n")):
        (tmp_path / "00000000.commit").write_bytes(content)
        with pytest.raises(DamagedIndexError, match=r"00000000\.commit: damaged"):
            PlaceIndex.open(tmp_path, "write")
        assert PlaceIndex.verify(tmp_path)
    assert os.listdir(tmp_path) == ["00000000.commit"]


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    make(tmp_path / "index").close()
    path = tmp_path / "index" / "00000001.commit"
    path.write_bytes(sealed(path.read_bytes()[:-72].replace(b"index 2\n", b"index 7\n", 1)))
    with pytest.raises(IndexVersionError, match="format 7, this version reads 2: update"):
        PlaceIndex.open(tmp_path / "index")


def alter(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(values)


def alter_segment(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["segments"][0].update(values)


@pytest.mark.parametrize(
    "change",
    [
        alter(extra=1),
        lambda document: document.pop("model"),
        alter(next_id=3),
        alter(next_id=-1),
        alter(commit=2),
        alter(commit=True),
        alter(next_id=1.5),
        alter(index="x"),
        alter(layers=[]),
        alter(dtype="fp8"),
        alter(attributes={"city": "list"}),
        alter(attributes={"city": "date", "street_date": "date", "street_synthetic": "text"}),
        alter(segments={}),
        lambda document: document["segments"].append(document["segments"][0]),
        alter_segment(name="../../etc/passwd"),
        alter_segment(first_id=-1),
        alter_segment(first_id=2**63),
        alter_segment(places=0),
        alter_segment(places=101),
        alter_segment(span=99),
        alter_segment(removed="AA=="),
        alter_segment(removed="?"),
        alter_segment(banks={}),
        alter_segment(table={"bytes": 7, "sha256": "0" * 64}),
        alter_segment(table={"bytes": 7, "sha256": "0"}),
        lambda document: document["segments"][0]["banks"]["street"].update(rows=99),
        lambda document: document["segments"][0]["banks"].update(other=document["segments"][0]["banks"]["street"]),
        lambda document: document["layers"][0].update(strip=[4, 2, 9]),
        lambda document: document["layers"][0].update(name="Street"),
    ],
)
def test_a_commit_that_makes_no_sense_is_damage(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    make(tmp_path / "index").close()
    rewritten(tmp_path / "index", change)
    with pytest.raises(DamagedIndexError, match="damaged"):
        PlaceIndex.open(tmp_path / "index")
    assert PlaceIndex.verify(tmp_path / "index")


@pytest.mark.parametrize("suffix", ["street.strips", "places"])
def test_a_missing_segment_is_named(tmp_path: Path, suffix: str) -> None:
    make(tmp_path / "index").close()
    path = segment_file(tmp_path / "index", suffix)
    path.unlink()
    with pytest.raises(DamagedIndexError, match=f"{path.name}: is missing; restore it"):
        PlaceIndex.open(tmp_path / "index")
    assert any(path.name in problem for problem in PlaceIndex.verify(tmp_path / "index"))


def test_files_of_another_segment_are_found_out(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    make(folder, (50, 50)).close()
    first, second = (segment_file(folder, "street.strips", n) for n in (0, 1))
    os.replace(first, second)  # of the right size, too
    with pytest.raises(DamagedIndexError, match=f"{first.name}: is missing"):
        PlaceIndex.open(folder)
    assert any(f"{second.name}: damaged" in problem for problem in PlaceIndex.verify(folder))


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_read_only_folder_can_be_searched_but_not_written(tmp_path: Path) -> None:
    make(tmp_path / "index").close()
    for path in (tmp_path / "index", *(tmp_path / "index").iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid():
            path.chmod(path.stat().st_mode | 0o055)
    code = (
        "import sys, torch\n"
        "from geoloc_fast.index import PlaceIndex\n"
        "from geoloc_fast.layers import QueryStrips\n"
        "index, asked = PlaceIndex.open(sys.argv[1]), {'street': QueryStrips(torch.ones(1, 4, 2, 8))}\n"
        "print(len(index), index.search(asked, 1).id.item() >= 0, PlaceIndex.verify(sys.argv[1]))\n"
        "try:\n    PlaceIndex.open(sys.argv[1], 'write')\n"
        "except OSError as error:\n    print(error)\n"
    )
    if os.getuid() == 0:  # permissions do not bind root
        code = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n" + code
        code = "import torch, geoloc_fast.index\n" + code  # while the installation may still be read
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], capture_output=True, text=True)
    (tmp_path / "index").chmod(0o755)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == f"{COUNT} True []"
    assert "cannot be written to" in said[1] and "open it for reading" in said[1]
