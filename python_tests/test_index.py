"""The index on disk: what it answers, what it refuses, and that the past of a reader stays as it was."""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import torch

from geoloc_fast import StripBank, strip_topk
from geoloc_fast.errors import DamagedIndexError, IndexBusyError, IndexVersionError, OtherModelError, PlaceIndexError
from geoloc_fast.geo.regions import Box, Circle, parse_box, parse_circle
from geoloc_fast.index import Neighbours, PlaceIndex
from geoloc_fast.testing import random_strips

MODEL = "a" * 64
SHAPE = (4, 2, 8)
COUNT = 100


def strips(count: int = COUNT, seed: int = 0) -> torch.Tensor:
    return random_strips(count, *SHAPE, seed=seed)


def positions(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"lat": rng.uniform(48.0, 48.1, count), "lon": rng.uniform(11.0, 11.1, count)}


def make(path: Path, parts: tuple[int, ...] = (COUNT,), dtype: str = "bf16") -> PlaceIndex:
    """An index of `strips()` in segments of the given sizes."""
    where = positions(sum(parts))
    index = PlaceIndex.create(path, model=MODEL, shape=SHAPE, dtype=dtype)
    first = 0
    for size in parts:
        part = slice(first, first + size)
        ids = index.add(
            strips(sum(parts))[part],
            model=MODEL,
            lat=where["lat"][part],
            lon=where["lon"][part],
            key=[f"place {n}" for n in range(sum(parts))[part]],
            city=["Würzburg" if n % 2 else "" for n in range(size)],
            street_date=[datetime.date(1969, 12, 31) if n % 3 else None for n in range(size)],
            street_synthetic=["" if n % 2 else "f00d" for n in range(size)],
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
            found = one.search(query, k, query_width=width, select=select)
            assert np.array_equal(found.id, expected.index.numpy())
            assert np.array_equal(found.shift, expected.shift.numpy())
            there = found.id >= 0
            assert np.array_equal(found.score[there], expected.score.numpy()[there])
            assert np.isnan(found.score[~there]).all() and np.isnan(found.lat[~there]).all()
            assert same(found, many.search(query, k, query_width=width, select=select))


def test_equal_scores_go_to_the_lowest_id_across_segments(tmp_path: Path) -> None:
    with PlaceIndex.create(tmp_path / "index", model=MODEL, shape=SHAPE) as index:
        for _ in range(3):
            index.add(strips(5), model=MODEL, **positions(5))
        assert index.search(strips(5)[2:3], 3).id.tolist() == [[2, 7, 12]]
        index.remove([2])
        index.compact()
        assert index.search(strips(5)[2:3], 3).id.tolist()[0][:2] == [7, 12]


def test_the_heading_is_that_of_the_window(tmp_path: Path) -> None:
    index = make(tmp_path / "index")
    found = index.search(strips()[3:4, :, :, 2:5], 1)
    # Columns of 45 degrees from 180: the middle of columns 2, 3, 4.
    assert (found.id.item(), found.shift.item(), found.heading_deg.item()) == (3, 2, (180 + 45 * 3.5) % 360)


def test_what_is_removed_is_gone_and_its_id_is_not_given_again(tmp_path: Path) -> None:
    with make(tmp_path / "index", (30, 70)) as index:
        assert index.remove([99, 5, 5, 12345, -1]) == 2
        assert index.remove([5]) == 0
        assert len(index) == COUNT - 2
        assert index.search(strips()[5:6], 100).id.tolist()[0].count(5) == 0
        with pytest.raises(KeyError, match="no place 5"):
            index.places([4, 5])
        assert index.add(strips(2, seed=3), model=MODEL, **positions(2)).tolist() == [100, 101]
        assert index.remove(range(30)) == 29  # the whole first segment, which goes with its files
        assert index.info()["segments"] == 2
    with PlaceIndex.open(tmp_path / "index", "write") as index:
        assert index.remove(index.ids()) == 71
        assert len(index) == 0 and index.search(strips(1), 3).id.tolist() == [[-1] * 3]
        assert index.add(strips(1), model=MODEL, **positions(1)).tolist() == [102]


def test_compaction_changes_no_answer(tmp_path: Path) -> None:
    query = strips(6, seed=2)[..., :4]
    with make(tmp_path / "index", (3, 20, 60, 17)) as index:
        index.remove([0, 1, 2, 4, 50, 99])
        before, places = index.search(query, 100), index.places(index.ids())
        assert index.compact()
        assert index.info()["segments"] == 1 and index.info()["removed"] == 0
        assert same(before, index.search(query, 100))
        assert places == index.places(index.ids())
        assert not index.compact()
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
        assert place.satellite_date is None
    assert [place.city for place in index.places([1, 40, 41])] == ["Würzburg", "", "Würzburg"]
    assert [place.street_date for place in index.places([0, 1])] == [None, datetime.date(1969, 12, 31)]
    assert [place.street_synthetic for place in index.places([0, 1, 40])] == ["f00d", "", "f00d"]
    assert index.keys()["place 41"] == 41


def test_a_region_restricts_search_and_slice(tmp_path: Path) -> None:
    query, where = strips(4, seed=5), positions(COUNT)
    index = make(tmp_path / "index", (50, 50))
    for region in (Box(48.02, 11.03, 48.07, 11.09), Circle(48.05, 11.05, 2500.0)):
        inside = np.flatnonzero(region.contains(where["lat"], where["lon"]))
        assert 3 < len(inside) < 60
        assert index.ids(region).tolist() == inside.tolist()
        found = index.search(query, COUNT, within=region)
        everywhere = index.search(query, COUNT)
        for row in range(4):
            expected = [n for n in everywhere.id[row].tolist() if n in set(inside.tolist())]
            assert found.id[row].tolist() == expected + [-1] * (COUNT - len(expected))
        part = index.slice(tmp_path / type(region).__name__, region)
        assert same(part.search(query, COUNT), found)
        assert PlaceIndex.verify(part.path) == []
        with PlaceIndex.open(part.path, "write") as grown:  # ids go on where the whole index was
            assert grown.add(strips(1), model=MODEL, **positions(1)).tolist() == [COUNT]
    nowhere = index.slice(tmp_path / "nowhere", Circle(0, 0, 1))
    assert len(nowhere) == 0 and nowhere.search(query, 2).id.tolist() == [[-1, -1]] * 4


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
        before = reader.search(query, COUNT)
        writer.remove([7])
        writer.compact()  # the reader's files are unlinked now
        writer.add(strips(4, seed=8), model=MODEL, **positions(4))
        assert same(reader.search(query, COUNT), before)
        assert reader.places([7])[0].key == "place 7"
        assert len(reader) == COUNT and reader.commit == 2
        assert reader.refresh() and not reader.refresh()
        assert len(reader) == COUNT + 3 and 7 not in reader.search(query, COUNT).id
        assert same(reader.search(query, COUNT), writer.search(query, COUNT))


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
                index.add(strips(1), model=other, **positions(1))
    with pytest.raises(OtherModelError):
        PlaceIndex.open(tmp_path / "index", model="b" * 64)
    PlaceIndex.open(tmp_path / "index", model=MODEL)


def test_what_cannot_be_added_changes_nothing(tmp_path: Path) -> None:
    with make(tmp_path / "index") as index:
        nan, lost = strips(1), positions(1)
        nan[0, 0, 0, 0] = float("nan")
        lost["lat"] = np.array([91.0])
        for given, where, options, message in (
            (nan, positions(1), {}, "strips: expected finite"),
            (strips(1)[..., :5], positions(1), {}, r"strips: expected \(C, H, W\)"),
            (strips(1), positions(2), {}, "lat: expected 1 values"),
            (strips(1), lost, {}, "lat: expected degrees from -90 to 90, got 91"),
            (strips(1), {**positions(1), "lon": [np.nan]}, {}, "lon: expected degrees"),
            (strips(1), positions(1), {"key": "x"}, "key: expected 1 texts"),
            (strips(1), positions(1), {"street_date": []}, "street_date: expected 1 dates"),
        ):
            with pytest.raises(ValueError, match=message):
                index.add(given, model=MODEL, **where, **options)
        with pytest.raises(TypeError, match="ids: expected integers"):
            index.remove([1.5])
        assert index.add(strips(0), model=MODEL, **positions(0)).tolist() == []
        assert index.commit == 1 and len(index) == COUNT
        for k in (0, 100_000, 2.5):
            with pytest.raises((ValueError, TypeError), match="k: expected an integer"):
                index.search(strips(1), k)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="query: expected finite"):
            index.search(nan)


@pytest.mark.parametrize("dtype", ["int8", "fp16", "float32"])
def test_a_dtype_the_bank_does_not_have_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match="dtype: expected one of 'bf16', 'fp32', got"):
        PlaceIndex.create(tmp_path / "index", model=MODEL, shape=SHAPE, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_creating_never_touches_what_is_there(tmp_path: Path) -> None:
    make(tmp_path / "index").close()
    with pytest.raises(PlaceIndexError, match="there is an index already"):
        PlaceIndex.create(tmp_path / "index", model=MODEL, shape=SHAPE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("x")
    with pytest.raises(PlaceIndexError, match="not empty"):
        PlaceIndex.create(tmp_path / "other", model=MODEL, shape=SHAPE)
    (tmp_path / "empty").mkdir()
    with PlaceIndex.create(tmp_path / "empty", model=MODEL, shape=SHAPE) as index:
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
        assert (row["id"], row["key"], row["satellite_date"], row["street_synthetic"]) == (2, "place 2", None, "f00d")
        assert point.tolist() == [row["lon"], row["lat"]] == [index.places([2])[0].lon, index.places([2])[0].lat]
        assert index.export(tmp_path / "none.parquet", Circle(0, 0, 1)) == 0


def test_info_is_json(tmp_path: Path) -> None:
    with make(tmp_path / "index", (40, 60)) as index:
        index.remove([3])
        said = json.loads(json.dumps(index.info()))
        assert (said["places"], said["removed"], said["segments"], said["commit"]) == (99, 1, 2, 3)
        assert 48 <= said["bounds"]["south"] <= said["bounds"]["north"] <= 48.1
    with PlaceIndex.create(tmp_path / "empty", model=MODEL, shape=SHAPE) as index:
        assert json.loads(json.dumps(index.info()))["bounds"]["south"] is None


def test_files_are_what_other_programs_read(tmp_path: Path) -> None:
    make(tmp_path / "index").close()
    assert len(StripBank.open(tmp_path / "index" / "00000001.strips")) == COUNT
    with safetensors.safe_open(tmp_path / "index" / "00000001.places", "np") as places:
        assert places.get_tensor("id").tolist() == list(range(COUNT))
    done = subprocess.run(["sha256sum", "-c", "00000001.sha256"], cwd=tmp_path / "index", capture_output=True)
    assert done.returncode == 0, done.stdout


# --- folders that are not what they should be --------------------------------------------------------------


def test_what_is_no_index_is_refused_untouched(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no index.sqlite")):
        for mode in ("read", "write"):
            with pytest.raises(PlaceIndexError, match=message):
                PlaceIndex.open(path, mode)
    (tmp_path / "index.sqlite").write_bytes(b"")
    with pytest.raises(DamagedIndexError, match="not the log of an index"):
        PlaceIndex.open(tmp_path, "write")
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE a (b)").connection.close()
    os.replace(tmp_path / "other.sqlite", tmp_path / "index.sqlite")
    with pytest.raises(DamagedIndexError, match="not the log of an index"):
        PlaceIndex.open(tmp_path)
    assert os.listdir(tmp_path) == ["index.sqlite"]


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    make(tmp_path / "index").close()
    with sqlite3.connect(tmp_path / "index" / "index.sqlite") as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(IndexVersionError, match="format 7, this version reads up to 1: update"):
        PlaceIndex.open(tmp_path / "index")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE extra (a)",
        "UPDATE segment SET last_id = 5",
        "UPDATE segment SET strips = 'many'",
        "UPDATE segment SET strips_sha256 = x'00'",
        "UPDATE about SET model = 'b'",
        "UPDATE commits SET next_id = 3",
        "DELETE FROM commits",
        "DELETE FROM segment",
    ],
)
def test_an_altered_log_is_damage(tmp_path: Path, statement: str) -> None:
    make(tmp_path / "index").close()
    connection = sqlite3.connect(tmp_path / "index" / "index.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(DamagedIndexError, match=r"index\.sqlite: damaged"):
        PlaceIndex.open(tmp_path / "index")
    assert PlaceIndex.verify(tmp_path / "index")


@pytest.mark.parametrize("name", ["00000001.strips", "00000001.places"])
def test_a_missing_segment_is_named(tmp_path: Path, name: str) -> None:
    make(tmp_path / "index").close()
    (tmp_path / "index" / name).unlink()
    with pytest.raises(DamagedIndexError, match=f"{name}: is missing; restore it"):
        PlaceIndex.open(tmp_path / "index")
    assert any(name in problem for problem in PlaceIndex.verify(tmp_path / "index"))


def test_files_of_another_segment_are_found_out(tmp_path: Path) -> None:
    make(tmp_path / "index", (50, 50)).close()
    folder = tmp_path / "index"
    os.replace(folder / "00000001.strips", folder / "00000002.strips")  # of the right size, too
    with pytest.raises(DamagedIndexError, match=r"00000001\.strips: is missing"):
        PlaceIndex.open(folder)
    assert any("00000002.strips: damaged" in problem for problem in PlaceIndex.verify(folder))


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
        "index = PlaceIndex.open(sys.argv[1])\n"
        "print(len(index), index.search(torch.ones(1, 4, 2, 8), 1).id.item() >= 0, PlaceIndex.verify(sys.argv[1]))\n"
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
