"""What else can befall an index: a folder replaced, a fork, links, a stranger's files, a disk that has no links, files
cut while they are open; and how it keeps itself in order."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoloc_fast.errors import (
    DamagedIndexError,
    IndexBusyError,
    OtherModelError,
    PlaceIndexError,
    ReplacedIndexError,
    UnsureCommitError,
)
from geoloc_fast.index import PlaceIndex, commits
from geoloc_fast.index import folder as folders
from geoloc_fast.index import place_index as module
from geoloc_fast.index.folder import Folder
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.testing import random_strips

MODEL = "d" * 64
LAYERS = (Layer("street", (2, 1, 4), "cosine", 180.0), Layer("text", (3, 1, 1)))


def given(count: int, seed: int = 0, lat: float = 50.0) -> dict[str, Any]:
    """Arguments of `add`."""
    return {
        "rows": {"street": Rows(random_strips(count, 2, 1, 4, seed=seed))},
        "model": MODEL,
        "lat": [lat] * count,
        "lon": [10.0] * count,
        "key": [f"{seed}.{n}" for n in range(count)],
    }


def make(path: Path, count: int = 20, lat: float = 50.0) -> PlaceIndex:
    index = PlaceIndex.create(path, model=MODEL, layers=LAYERS)
    index.add(**given(count, lat=lat))
    return index


def ask(index: PlaceIndex, k: int = 5) -> Any:
    return index.search({"street": QueryStrips(random_strips(1, 2, 1, 4))}, k)


def listing(path: Path) -> dict[str, bytes | None]:
    return {str(each.relative_to(path)): each.read_bytes() if each.is_file() else None for each in path.rglob("*")}


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_folder_put_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make(path, lat=50).close()
    make(tmp_path / "other", lat=-10).close()
    reader = PlaceIndex.open(path)
    before = ask(reader)
    path.rename(tmp_path / "away")
    with pytest.raises(ReplacedIndexError, match="is not the folder that was opened"):
        reader.refresh()
    (tmp_path / "other").rename(path)
    for _ in range(2):
        with pytest.raises(ReplacedIndexError, match="open it anew"):
            reader.refresh()
    assert np.array_equal(ask(reader).lat, before.lat) and before.lat[0, 0] == 50  # it goes on with what it opened
    assert ask(PlaceIndex.open(path)).lat[0, 0] == -10


def test_another_index_in_the_same_folder_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "index", tmp_path / "other"
    make(path).close()
    for commit_more in (False, True):
        reader = PlaceIndex.open(path)
        with make(other, lat=-10) as index:
            if commit_more:
                index.add(**given(3, 1))
        for file in path.iterdir():
            file.unlink()
        for file in other.iterdir():
            file.rename(path / file.name)
        other.rmdir()
        with pytest.raises(ReplacedIndexError, match="holds another index now"):
            reader.refresh()


def test_a_writer_keeps_to_its_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "index"
    writer = make(path)
    path.rename(tmp_path / "away")
    make(path, lat=-10).close()
    other = listing(path)
    writer.add(**given(4, 1))
    writer.close()
    assert listing(path) == other
    assert len(PlaceIndex.open(tmp_path / "away")) == 24 and PlaceIndex.verify(tmp_path / "away") == []


def test_a_second_writer_cannot_be_let_in_by_removing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with make(path):
        assert not [name for name in os.listdir(path) if "lock" in name]  # the folder itself is locked
        with pytest.raises(IndexBusyError):
            PlaceIndex.open(path, "write")


def test_a_commit_of_someone_else_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        rogue = path / commits.file_name(index.commit + 1)
        rogue.write_bytes(b"something else")
        before = listing(path)
        for change in (lambda: index.add(**given(1)), lambda: index.remove([0]), index.compact, lambda: index.adopt()):
            with pytest.raises(PlaceIndexError, match="is not the last any more; nothing was written"):
                change()
        assert listing(path) == before
        rogue.unlink()
        index.add(**given(1, 1))
    assert len(PlaceIndex.open(path)) == 21 and PlaceIndex.verify(path) == []


def test_the_number_of_a_commit_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        link = Folder.link

        def too_late(self: Folder, source: str, name: str, *rest: Any) -> None:
            if name.endswith(".commit"):
                (path / name).write_bytes(b"of a writer that had no lock")
            link(self, source, name, *rest)

        monkeypatch.setattr(Folder, "link", too_late)
        with pytest.raises(PlaceIndexError, match="is not the last any more"):
            index.add(**given(1, 1))
        assert (path / "00000002.commit").read_bytes() == b"of a writer that had no lock"


# --- commits that fail late --------------------------------------------------------------------------------------


def test_a_link_that_was_made_but_said_to_have_failed_is_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Folder.link

    def lost_answer(self: Folder, source: str, name: str, *rest: Any) -> None:
        link(self, source, name, *rest)
        raise OSError(errno.EIO, "the answer was lost")

    with make(tmp_path / "index") as index:
        monkeypatch.setattr(Folder, "link", lost_answer)
        assert index.add(**given(2, 1)).tolist() == [20, 21]
        monkeypatch.setattr(Folder, "links", lambda self, name: 1)  # with the question taken out, it is told wrongly
        with pytest.raises(OSError, match="this one does not") as caught:
            index.add(**given(2, 2))
        assert not isinstance(caught.value, UnsureCommitError)
        monkeypatch.undo()
        assert PlaceIndex.open(tmp_path / "index").commit == index.commit + 1


def test_an_unsure_commit_is_told_and_the_writer_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, calls = Folder.sync, iter(range(100))

    def fails(self: Folder) -> None:
        if next(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(self)

    with make(tmp_path / "index") as index:
        monkeypatch.setattr(Folder, "sync", fails)
        with pytest.raises(UnsureCommitError, match=r"commit 2 \(add\) is there now, but a power failure") as caught:
            index.add(**given(2, 1))
        assert caught.value.commit == 2 and len(index) == 20
        before = listing(tmp_path / "index")
        with pytest.raises(PlaceIndexError, match="nothing was written; refresh, or open the index anew"):
            index.add(**given(2, 2))
        assert listing(tmp_path / "index") == before
        assert index.refresh() and len(index) == 22
        assert index.add(**given(2, 2)).tolist() == [22, 23]
    assert PlaceIndex.verify(tmp_path / "index") == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def none(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    index = make(tmp_path / "index")
    monkeypatch.setattr(Folder, "link", none)
    with pytest.raises(PlaceIndexError, match="a file system without hard links"):
        index.add(**given(1))
    with pytest.raises(PlaceIndexError, match="a file system without hard links"):
        PlaceIndex.create(tmp_path / "new", model=MODEL, layers=LAYERS)
    assert os.listdir(tmp_path) == ["index"] and PlaceIndex.verify(tmp_path / "index") == []


def test_writing_over_a_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    make(path).close()
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = f"1 0 0:0 / / rw - ext4 /dev/a rw\n22 1 {number} / /home rw - nfs4 server:/home rw"
    assert folders.file_system(device, mounts) == "nfs4" and folders.file_system(device + 1, mounts) is None
    monkeypatch.setattr(folders, "_mounts", lambda: mounts)
    with pytest.raises(OSError, match="lies on nfs4, where two machines could write at once"):
        PlaceIndex.open(path, "write")
    assert len(PlaceIndex.open(path)) == 20


# --- processes ---------------------------------------------------------------------------------------------------


def test_a_dropped_writer_lets_go_of_the_lock(tmp_path: Path) -> None:
    index = make(tmp_path / "index")
    del index
    gc.collect()
    PlaceIndex.open(tmp_path / "index", "write").close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of newer Pythons, about fork
def test_a_fork_neither_writes_nor_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "index"
    index = make(path)
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                index.add(**given(3, 5))
            except PlaceIndexError as error:
                code = 0 if "by the parent of this process" in str(error) and len(index) == 20 else 2
            os.close(go)
            os.read(wait, 1)  # lives on
        finally:
            os._exit(code)
    os.close(wait)
    index.add(**given(2, 1))
    index.close()
    with PlaceIndex.open(path, "write") as again:  # while the child is there
        again.add(**given(2, 2))
    os.close(go)
    assert os.waitpid(child, 0)[1] == 0
    assert len(PlaceIndex.open(path)) == 24 and PlaceIndex.verify(path) == []


def test_descriptors_do_not_grow_with_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SEGMENTS", 1000)
    with make(tmp_path / "index") as index:
        before = len(os.listdir("/proc/self/fd"))
        for n in range(40):
            index.add(**given(1, n))
        readers = [PlaceIndex.open(tmp_path / "index") for _ in range(3)]
        assert all(reader.info()["segments"] == 41 and ask(reader).id[0, 0] >= 0 for reader in readers)
        assert len(os.listdir("/proc/self/fd")) <= before + 3  # the folder, for each


def test_small_segments_are_merged_by_the_writer(tmp_path: Path) -> None:
    with make(tmp_path / "index", 200) as index:
        most, rewritten = 0, 0
        for n in range(150):
            before = {segment.entry.name for segment in index._snapshot.segments}
            index.add(**given(2, n))
            new = [segment for segment in index._snapshot.segments if segment.entry.name not in before]
            rewritten += sum(len(segment) for segment in new)
            most = max(most, index.info()["segments"])
        assert most <= module.MOST_SEGMENTS and index.ids().tolist() == list(range(500))
        assert rewritten < 300 * 4  # a place is not written over and over
        assert [place.key for place in index.places([0, 200, 201, 499])] == ["0.0", "0.0", "0.1", "149.1"]
    assert PlaceIndex.verify(tmp_path / "index") == []


# --- what a stranger may have put there --------------------------------------------------------------------------


def test_a_file_cut_while_it_is_open_is_an_error_and_no_crash(tmp_path: Path) -> None:
    code = (
        "import sys, os, numpy as np, glob\n"
        "from geoloc_fast.errors import DamagedIndexError\n"
        "from geoloc_fast.index import PlaceIndex\n"
        "from geoloc_fast.layers import QueryStrips\n"
        "from geoloc_fast.testing import random_strips\n"
        "index = PlaceIndex.open(sys.argv[1])\n"
        "os.truncate(glob.glob(sys.argv[1] + '/*' + sys.argv[2])[0], 8)\n"
        "query = {'street': QueryStrips(random_strips(1, 2, 1, 4))}\n"
        "acts = (index.ids, index.positions, index.keys, index.info, lambda: index.places([1]),\n"
        "        lambda: index.search(query, 3), lambda: index.export(sys.argv[1] + '.parquet'))\n"
        "for act in acts:\n"
        "    try:\n        act()\n        print('read on')\n"
        "    except DamagedIndexError as error:\n"
        "        assert 'when it was opened and has 8 now' in str(error), error\n"
    )
    for suffix in (".places", ".strips"):
        path = tmp_path / f"index{suffix}"
        make(path, 20_000).close()  # more than a page
        done = subprocess.run([sys.executable, "-c", code, str(path), suffix], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, ""), (suffix, done.stderr, done.stdout)


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make(path).close()
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in sorted(os.listdir(path)):
        content = (path / name).read_bytes()
        if int(name[:8] == "00000000"):
            continue
        for kind in ("link", "pipe", "socket", "folder"):
            (path / name).unlink()
            if kind == "link":
                (outside / name).write_bytes(content)
                (path / name).symlink_to(outside / name)
            elif kind == "pipe":
                os.mkfifo(path / name)
            elif kind == "socket":
                with socket.socket(socket.AF_UNIX) as server:
                    os.chdir(path)
                    server.bind(name)
                    os.chdir("/")
            else:
                (path / name).mkdir()
            problems = PlaceIndex.verify(path)
            assert any("a link or no plain file" in text for text in problems), (name, kind, problems)
            if not name.endswith(".sha256"):
                with pytest.raises(DamagedIndexError, match="a link or no plain file"):
                    PlaceIndex.open(path)
            (path / name).rmdir() if kind == "folder" else (path / name).unlink()
            (path / name).write_bytes(content)
    assert PlaceIndex.verify(path) == []
    (path / "notes.txt").symlink_to("/etc/passwd")
    assert "notes.txt: is a link or no plain file" in PlaceIndex.verify(path)[0]
    with PlaceIndex.open(path, "write"):  # what is not ours stays
        assert (path / "notes.txt").is_symlink()


def test_nothing_outside_a_strangers_folder_is_touched(tmp_path: Path) -> None:
    """Whatever names its commits and links have."""
    path, outside = tmp_path / "index", tmp_path / "outside"
    make(path).close()
    outside.mkdir()
    (outside / "victim.txt").write_text("mine")
    for name in ("00000002.sha256", f"00000002.{'0' * 32}.tmp", f"{'a' * 32}.places", "00000000.sha256"):
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(outside / "victim.txt")
    (path / f"{'b' * 32}.street.strips").symlink_to(outside / "made.txt")
    (path / "incoming").symlink_to(outside)
    (path / "index.sqlite-journal").write_bytes(b"\0" * 512 + str(outside / "victim.txt").encode())
    before = {name: content for name, content in listing(tmp_path).items()}
    PlaceIndex.verify(path)
    reader = PlaceIndex.open(path)
    ask(reader)
    reader.refresh()
    assert listing(tmp_path) == before
    with pytest.raises(DamagedIndexError, match="incoming: damaged"):
        reader.leave(**given(2))
    with pytest.raises(DamagedIndexError, match="incoming: damaged"):
        PlaceIndex.open(path, "write")
    (path / "incoming").unlink()
    with PlaceIndex.open(path, "write") as index:
        index.add(**given(2, 1))
        index.compact(keep=0)
    assert {each.name: each.read_text() for each in outside.iterdir()} == {"victim.txt": "mine"}
    assert PlaceIndex.verify(path) == [] and len(PlaceIndex.open(path)) == 22


def test_numbers_without_end_cost_nothing(tmp_path: Path) -> None:
    """Sizes in a header are compared with the file before anything is made by them."""
    path = tmp_path / "index"
    make(path).close()
    last = max(path.glob("*.commit"))
    first, document, _ = last.read_bytes().split(b"\n", 2)
    content = json.loads(document)
    table = path / f"{content['segments'][0]['name']}.places"
    length = int.from_bytes(table.read_bytes()[:8], "little")
    header = json.loads(table.read_bytes()[8 : 8 + length])
    for change in (
        {"shape": [2**60]},
        {"data_offsets": [0, 2**60]},
        {"data_offsets": [-8, 152]},
        {"data_offsets": [8, 168]},
        {"shape": [20, 1]},
        {"dtype": "F16"},
    ):
        altered = {**header, "id": {**header["id"], **change}}
        text = json.dumps(altered).encode().ljust(length)
        body = len(text).to_bytes(8, "little") + text + table.read_bytes()[8 + length :]
        table.write_bytes(body)
        entry = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        content["segments"][0]["table"] = entry
        line = first + b"\n" + json.dumps(content, sort_keys=True).encode() + b"\n"
        last.write_bytes(line + b"sha256 " + hashlib.sha256(line).hexdigest().encode() + b"\n")
        with pytest.raises(DamagedIndexError, match="damaged"):
            PlaceIndex.open(path)
        assert PlaceIndex.verify(path)
        good = json.dumps(header).encode().ljust(length)
        table.write_bytes(len(good).to_bytes(8, "little") + good + body[8 + len(text) :])


# --- older commits -----------------------------------------------------------------------------------------------


def test_an_older_commit_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        index.add(**given(5, 1))
        index.remove(range(10))
        index.compact()
        assert [each["verb"] for each in index.history()] == ["create", "add", "add", "remove", "compact"]
    with PlaceIndex.restore(path, 1) as index:
        assert index.ids().tolist() == list(range(20)) and index.commit == 5
        assert index.add(**given(1, 2)).tolist() == [25]  # no id is given twice
    assert PlaceIndex.verify(path) == []
    with pytest.raises(PlaceIndexError, match="no whole commit 77; there are 0, 1, 2, 3, 4, 5, 6"):
        PlaceIndex.restore(path, 77)


def test_a_damaged_last_commit_is_never_stepped_over_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        index.add(**given(5, 1))
    last = path / "00000002.commit"
    last.write_bytes(last.read_bytes()[:-30])
    for mode in ("read", "write"):
        with pytest.raises(DamagedIndexError, match=r"00000002\.commit: damaged"):
            PlaceIndex.open(path, mode)
    with PlaceIndex.restore(path, 1) as index:
        assert index.ids().tolist() == list(range(20)) and index.commit == 3
        ids = index.add(**given(1, 2))
        assert ids[0] >= 1 << 32  # nobody knows which ids the damaged one gave
        for n in range(10):
            index.add(**given(1, n))
    assert PlaceIndex.verify(path) == []
    strips = path / f"{commits.read_last(Folder(path)).segments[0].name}.street.strips"
    strips.write_bytes(strips.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamagedIndexError, match="so commit 13 cannot be restored"):
        PlaceIndex.restore(path, 13)


def test_eight_commits_and_those_of_the_last_hour_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        for n in range(12):
            index.add(**given(1, n))
        assert len(index.history()) == 14  # all of the last hour
        index.compact(keep=3)
        assert [each["commit"] for each in index.history()] == [11, 12, 13, 14]
        index.compact(keep=0)
        assert len(os.listdir(path)) == 4  # commit, checksums, places, strips
        monkeypatch.setattr(commits, "KEEP_SECONDS", -1.0)
        for n in range(12):
            index.add(**given(1, n))
        assert len(index.history()) == 8
        monkeypatch.setattr(commits, "KEEP_SECONDS", 1e6)
        monkeypatch.setattr(commits, "KEEP_MOST", 10)
        for n in range(12):
            index.add(**given(1, n))
        assert len(index.history()) == 10
    assert PlaceIndex.verify(path) == []


def test_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "index"
    make(path).close()
    ours = (f"{'0' * 32}.places", f"{'1' * 32}.street.strips", f"00000002.{'2' * 32}.tmp", "00000007.sha256")
    others = ("notes.txt", "x.places", "00000009.commit.bak", ".hidden", f"{'3' * 31}.places")
    for name in (*ours, *others):
        (path / name).write_bytes(b"x")
    with PlaceIndex.open(path, "write"):
        pass
    assert not {*ours} & {*os.listdir(path)} and {*others} <= {*os.listdir(path)}
    assert PlaceIndex.verify(path) == []


def test_half_made_folders_are_swept(tmp_path: Path) -> None:
    left = tmp_path / ".index.abcdefgh"
    make(left).close()
    kept = tmp_path / ".index.letters_"
    kept.mkdir()
    (kept / "mine.txt").write_text("x")
    os.utime(left, (0, 0))
    os.utime(kept, (0, 0))
    make(tmp_path / "index").close()
    assert sorted(os.listdir(tmp_path)) == [".index.letters_", "index"]


# --- segments that wait ------------------------------------------------------------------------------------------


def test_segments_wait_until_they_are_adopted(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        worker = PlaceIndex.open(path)  # needs no lock
        names = [worker.leave(**given(3, n), attributes={"city": [f"city {n}"] * 3}) for n in (1, 2)]
        assert sorted(names) == index.waiting() and len(index) == 20
        for n in range(3):
            index.add(**given(1, 10 + n))
        index.compact(keep=0)
        with PlaceIndex.open(tmp_path / "index"):
            assert index.waiting() == sorted(names)  # tidying does not touch them
        given_ids = index.adopt([names[1]])
        assert given_ids[names[1]].tolist() == [23, 24, 25] and index.waiting() == [names[0]]
        assert index.adopt()[names[0]].tolist() == [26, 27, 28] and index.adopt() == {}
        assert index.places([24])[0].key == "2.1" and index.places([24])[0].attributes == {"city": "city 2"}
        with pytest.raises(PlaceIndexError, match="no segment 'x' waits"):
            index.adopt(["x"])
        assert os.listdir(path / "incoming") == []
        assert 24 in ask(index, 29).id
    assert PlaceIndex.verify(path) == []


def test_what_waits_is_read_before_it_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        (name,) = [index.leave(**given(3, 1))]
        for file in sorted((path / "incoming").iterdir()):
            content = file.read_bytes()
            file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
            with pytest.raises(DamagedIndexError, match="damaged"):
                index.adopt()
            file.write_bytes(content)
        assert len(index) == 20 and index.commit == 1
        with PlaceIndex.create(tmp_path / "other", model="e" * 64, layers=LAYERS) as other:
            other.leave(**{**given(1), "model": "e" * 64})
            for file in (tmp_path / "other" / "incoming").iterdir():
                file.rename(path / "incoming" / file.name)
        with pytest.raises(OtherModelError, match="holds strips of model eeeeeeeeeeee"):
            index.adopt()
        assert index.adopt([name])[name].tolist() == [20, 21, 22]
    assert PlaceIndex.verify(path) == []


def test_an_interrupted_adoption_is_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    with make(path) as index:
        index.leave(**given(3, 1))
        monkeypatch.setattr(module.incoming, "forget", lambda *_: None)  # died before it could
        index.adopt()
        assert index.waiting() and index.adopt() == {} and len(index) == 23
        monkeypatch.undo()
    with PlaceIndex.open(path, "write") as index:
        assert index.waiting() == [] and len(index) == 23


# --- attributes --------------------------------------------------------------------------------------------------


def test_an_attribute_is_of_one_kind(tmp_path: Path) -> None:
    with PlaceIndex.create(tmp_path / "index", model=MODEL, layers=LAYERS) as index:
        index.add(**given(2), attributes={"floors": [3, None], "height_m": [1.5, 2], "name": ["a", None]})
        index.add(**given(2, 1), attributes={"height_m": [7, None], "floors": [None, None]})
        assert [place.attributes for place in index.places(range(4))] == [
            {"floors": 3, "height_m": 1.5, "name": "a"}, {"height_m": 2.0}, {"height_m": 7.0}, {},
        ]  # fmt: skip
        for attributes, message in (
            ({"floors": ["x", None]}, r"floors'\]: expected int, got 'x'"),
            ({"floors": [1]}, "expected 2 values"),
            ({"name": [1, None]}, "expected text, got 1"),
            ({"new": [1, "x"]}, "of one kind"),
            ({"new": [True, None]}, "of one kind"),
            ({"lat": [1, 2]}, "not id, lat"),
            ({"../x": [1, 2]}, "small letters"),
            ({f"a{n}": [1, 2] for n in range(70)}, "at most 64 names"),
        ):
            with pytest.raises(ValueError, match=message):
                index.add(**given(2), attributes=attributes)
        index.remove([0])
        index.compact()
        assert index.places([1, 2])[1].attributes == {"height_m": 7.0}
        assert index.info()["attributes"] == {"floors": "int", "height_m": "float", "name": "text"}
    assert PlaceIndex.verify(tmp_path / "index") == []


def test_ctrl_c_between_commit_and_going_on_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest way a writer once destroyed its own index: an interrupt after the commit, then another add."""
    path = tmp_path / "index"
    with make(path) as index:
        publish = commits.publish

        def interrupted(*arguments: Any) -> None:
            publish(*arguments)
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(commits, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.add(**given(4, 1))
        monkeypatch.undo()
        with pytest.raises(PlaceIndexError, match="is not the last any more"):
            index.add(**given(5, 2))
        index.refresh()
        assert index.add(**given(5, 2)).tolist() == [24, 25, 26, 27, 28]
    assert PlaceIndex.verify(path) == [] and len(PlaceIndex.open(path)) == 29
