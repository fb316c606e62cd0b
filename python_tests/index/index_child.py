"""What the tests of an index under faults run in processes of their own: `python index_child.py TASK FOLDER ...`.

Every call that touches a file below the index's folder goes through `fault_shim.c`, which is preloaded; it makes the
n-th of them fail, be interrupted or be the process's last, or writes down what they do. What a task finds out is
printed as JSON; what must not be is an AssertionError.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from geoloc_fast.errors import PlaceIndexError, UnsureCommitError
from geoloc_fast.index import PlaceIndex, commits, folder
from geoloc_fast.index import place_index as module
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.testing import random_strips

MODEL = "c" * 64
SHAPE = (2, 1, 4)
LAYERS = (Layer("street", SHAPE, "cosine", 180.0), Layer("text", (3, 1, 1)))


def rows(count: int, seed: int) -> dict[str, Rows]:
    """Each place has a street row; every other has a text."""
    some = np.arange(0, count, 2)
    return {
        "street": Rows(random_strips(count, *SHAPE, seed=seed)),
        "text": Rows(random_strips(len(some), 3, 1, 1, seed=seed + 1), some),
    }


def values(count: int, seed: int) -> dict[str, Any]:
    where = np.linspace(1, 2, count)
    names = [f"{seed}.{n}" for n in range(count)]
    return {"model": MODEL, "lat": where, "lon": where, "key": names, "attributes": {"city": names}}


def add(index: PlaceIndex, count: int, seed: int) -> list[int]:
    return [int(number) for number in index.add(rows(count, seed), **values(count, seed))]


def query(index: PlaceIndex, k: int = 1000) -> Any:
    return index.search({"street": QueryStrips(random_strips(1, *SHAPE, seed=1))}, k)


# The story every fault interrupts: (verb, ids that are there after it).
STORY: tuple[tuple[str, list[int]], ...] = (
    ("add", list(range(40))),
    ("remove", list(range(1, 40))),
    ("adopt", list(range(1, 57))),
    ("remove", list(range(20, 57))),
    ("compact", list(range(20, 57))),
    ("add", list(range(20, 60))),
    ("free", list(range(20, 60))),
)
SIZES = {0: 20, 2: 17, 5: 3}  # places of each; 20 were there before


def step(index: PlaceIndex, n: int) -> None:
    verb, after = STORY[n]
    if verb == "add":
        add(index, SIZES[n], n)
    elif verb == "adopt":
        if not index.waiting():
            index.leave(rows(SIZES[n], n), **values(SIZES[n], n))
        index.adopt()
    elif verb == "remove":
        index.remove(sorted(set(index.ids().tolist()) - set(after)))
    elif verb == "compact":
        index.compact()
    else:  # makes a commit, so that the story counts, and leaves nothing older
        add(index, 1, 7)
        index.remove(index.ids()[-1:])
        index.compact(keep=0)


def begin(path: Path) -> int:
    """An index with 20 places; returns its commit."""
    with PlaceIndex.create(path, model=MODEL, layers=LAYERS) as index:
        add(index, 20, 99)
        return index.commit


SEEDS = {**dict.fromkeys(range(20), 99), **dict.fromkeys(range(20, 40), 0), **dict.fromkeys(range(40, 57), 2)}


def is_at(index: PlaceIndex, done: int) -> bool:
    """Whether the index is exactly where the story is after so many steps; the last has three states of its own."""
    ids = index.ids().tolist()
    expected = STORY[done - 1][1] if done else list(range(20))
    if ids != expected and not (done >= 6 and ids == [*STORY[5][1], 60]):
        return False
    return all(
        place.key == place.attributes["city"]
        and place.key.startswith(f"{SEEDS.get(place.id, 7 if place.id > 59 else 5)}.")
        for place in index.places(ids)
    )


def whole(path: Path) -> PlaceIndex:
    assert PlaceIndex.verify(path) == []
    index = PlaceIndex.open(path)
    found = query(index)
    assert sorted(found.id[found.id >= 0].tolist()) == index.ids().tolist()
    return index


def state_of(path: Path, least: int, most: int) -> int:
    """Checks that the index is exactly at one step of the story, at least and at most so far; returns which."""
    index = whole(path)
    for done in range(most, least - 1, -1):
        if is_at(index, done):
            return done
    raise AssertionError(f"{least} to {most} steps were made, but the places are {index.ids().tolist()}")


# --- errors and interrupts ---------------------------------------------------------------------------------------


def shim() -> Any:
    library = ctypes.CDLL(None)
    library.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    library.fault_calls.restype = ctypes.c_long
    return library


def willing(index: PlaceIndex, act: Callable[[PlaceIndex], Any]) -> None:
    """An object that does not have the last commit refuses to write until it has."""
    try:
        act(index)
    except PlaceIndexError as error:
        if "is not the last any more" not in str(error) or not index.refresh():
            raise
        act(index)


def gone_on_with(index: PlaceIndex, n: int) -> None:
    """The same object goes on to the end of the step."""

    def act(index: PlaceIndex) -> None:
        index.remove([60])  # of the last step; where it is not there, only the last commit is looked at
        if not is_at(index, n + 1):
            step(index, n)

    willing(index, act)


def errors(root: Path, every: int) -> dict[str, Any]:
    """Every call of every step fails once, as EIO or EMFILE, and from there on, as ENOSPC; or is interrupted. The
    object that met it goes on."""
    library = shim()
    told: dict[str, Any] = {"tries": 0, "unsure": 0, "interrupted": 0, "calls": {}}
    base, path = root / "base", root / "index"
    begin(base)
    for n in range(len(STORY)):
        kinds = ((errno.EIO, 0), (errno.ENOSPC, 2), (errno.EMFILE, 0), (0, 3))
        for number, (code, mode) in enumerate(kinds):
            for at in count(0 if not number else 1 + (n + number) % every, every):
                shutil.copytree(base, path)
                index = PlaceIndex.open(path, "write")
                before = index.commit
                library.fault_arm(str(path).encode(), at, code, mode)
                caught: BaseException | None = None
                try:
                    step(index, n)
                    for _ in range(10):  # lets a signal arrive
                        pass
                except (OSError, KeyboardInterrupt, PlaceIndexError) as error:
                    caught = error
                finally:
                    calls = library.fault_calls()
                if at == 0:
                    assert caught is None
                    told["calls"][f"{n} {STORY[n][0]}"] = calls
                if at > calls:
                    index.close()
                    shutil.rmtree(path)
                    break
                told["tries"] += 1
                # A disk that fails is not damage, and an interrupt is one.
                if mode == 3:
                    assert caught is None or isinstance(caught, KeyboardInterrupt), caught
                    told["interrupted"] += caught is not None
                else:
                    assert caught is None or isinstance(caught, OSError), repr(caught)
                done = state_of(path, n, n + 1)
                if caught is None:
                    assert done == n + 1 or n == 6
                elif isinstance(caught, UnsureCommitError):
                    told["unsure"] += 1
                    last = commits.last(folder.Folder(path))  # a step that frees room makes two commits
                    assert last == caught.commit or (
                        last == caught.commit - 1 and "may be there or not" in str(caught)
                    ), f"{at} of {calls} in {STORY[n]}, error {code} in mode {mode}, commit {last}: {caught!r}"
                elif mode != 3 and n < 6:
                    assert commits.last(folder.Folder(path)) == before, (
                        f"{at} of {calls} in {STORY[n]}: an error that does not say so: {caught!r}"
                    )
                gone_on_with(index, n)
                assert state_of(path, n + 1, n + 1) == n + 1
                assert is_at(index, n + 1) and whole(path).ids().tolist() == index.ids().tolist()
                index.close()
                with PlaceIndex.open(path, "write") as index:
                    add(index, 1, 7)
                    index.compact(keep=0)
                    names = os.listdir(path)
                    left = [name for name in names if name != "incoming"]
                    assert len(left) == 5, left  # commit, checksums, places and two banks
                    waiting = os.listdir(path / "incoming") if "incoming" in names else []
                    assert not [name for name in waiting if name.endswith(".segment")], waiting
                whole(path)
                shutil.rmtree(path)
        with PlaceIndex.open(base, "write") as index:
            step(index, n)
    return told


def reading(root: Path) -> dict[str, Any]:
    """Every call of a reader fails once: an OSError that tells to try again, never damage, and then all is well."""
    library = shim()
    path, tries = root / "index", 0
    begin(path)
    with PlaceIndex.open(path, "write") as index:
        step(index, 0)
    reader = PlaceIndex.open(path)

    def read() -> None:
        index = PlaceIndex.open(path)
        query(index)
        index.places(index.ids())
        index.history()
        index.refresh()
        index.waiting()

    for act in (read, lambda: PlaceIndex.verify(path), reader.refresh, lambda: query(reader)):
        for code, every in ((errno.EIO, 1), (errno.ENOMEM, 5), (errno.EMFILE, 5)):
            for at in count(1, every):
                library.fault_arm(str(path).encode(), at, code, 0)
                try:
                    result, caught = act(), None
                except (OSError, PlaceIndexError) as error:
                    result, caught = None, error
                calls = library.fault_calls()
                if at > calls:
                    assert caught is None
                    break
                tries += 1
                assert result in (None, False, []) or caught is None, result
                assert isinstance(caught, OSError) and "try again" in str(caught), repr(caught)
                act()
    return {"tries": tries}


def lines(root: Path, every: int) -> dict[str, Any]:
    """Ctrl-C between any two lines of the index's own code, while one object tells the story over and over."""
    base, path, tries = root / "base", root / "index", 0
    begin(base)
    own = os.path.dirname(module.__file__)
    for n in range(len(STORY)):
        for at in count(1 + n % every, every):
            shutil.copytree(base, path)
            index = PlaceIndex.open(path, "write")
            seen = 0

            def trace(frame: FrameType, event: str, _: Any, at: int = at) -> Any:
                nonlocal seen
                if not frame.f_code.co_filename.startswith(own):
                    return None
                if event == "line":
                    seen += 1
                    if seen == at:
                        sys.settrace(None)
                        raise KeyboardInterrupt
                return trace

            sys.settrace(trace)
            try:
                step(index, n)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(None)
            if seen < at:
                index.close()
                shutil.rmtree(path)
                break
            tries += 1
            assert state_of(path, n, n + 1) == n + 1 or interrupted
            gone_on_with(index, n)
            assert is_at(index, n + 1)
            willing(index, lambda index: add(index, 1, 7))
            index.remove(index.ids()[-1:])
            assert state_of(path, n + 1, n + 1) == n + 1
            index.close()
            with PlaceIndex.open(path, "write") as index:
                index.compact(keep=0)
            whole(path)
            shutil.rmtree(path)
        with PlaceIndex.open(base, "write") as index:
            step(index, n)
    return {"tries": tries}


# --- kills -------------------------------------------------------------------------------------------------------


def killed_in_calls(root: Path, points: int, seed: int) -> dict[str, Any]:
    """Forks that die in one of their calls; this process looks at what they leave."""
    library = shim()
    base, path = root / "base", root / "index"
    begin(base)
    rng = random.Random(seed)
    total = 0
    reached = [0] * (len(STORY) + 1)
    for point in range(points):
        shutil.copytree(base, path)
        at = 0 if point == 0 else (point - 1) // 2 % total + 1 if points > 2 * total else rng.randint(1, total)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            library.fault_arm(str(path).encode(), at, 0, point % 2)
            with PlaceIndex.open(path, "write") as index:
                for n in range(len(STORY)):
                    step(index, n)
                    os.write(write, b"x")  # acknowledged
            os.write(write, int(library.fault_calls()).to_bytes(4, "big"))
            os._exit(0)
        os.close(write)
        acknowledged = b""
        while part := os.read(read, 64):
            acknowledged += part
        os.close(read)
        _, status = os.waitpid(child, 0)
        if at == 0:
            assert status == 0
            total = int.from_bytes(acknowledged[len(STORY) :], "big")
        else:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        least = min(len(acknowledged), len(STORY))
        done = state_of(path, least, min(least + 1, len(STORY)))
        reached[done] += 1
        with PlaceIndex.open(path, "write") as index:  # and the story can be told to its end
            for n in range(done, len(STORY)):
                step(index, n)
        assert state_of(path, len(STORY), len(STORY)) == len(STORY)
        shutil.rmtree(path)
    return {"calls": total, "killed": points - 1, "reached": reached}


def deeds(path: Path, seed: int, said: int) -> None:
    """Random changes until the end; before each the ids before and after it are said, and after it a word."""
    rng = random.Random(seed)
    with PlaceIndex.open(path, "write") as index:
        for number in count(1):
            ids = index.ids().tolist()
            verb = rng.choice(["add", "add", "remove", "compact", "adopt", "free"])
            after = ids
            if verb == "add" or verb == "adopt" or not ids:
                size = rng.randint(1, 9)
                next_id = index.info()["next_id"]
                after = [*ids, *range(next_id, next_id + size)]
                if verb == "adopt":
                    index.leave(rows(size, number), **values(size, number))
                    waiting = index.waiting()
            elif verb == "remove":
                gone = set(rng.sample(ids, rng.randint(1, max(1, len(ids) // 2))))
                after = [each for each in ids if each not in gone]
            os.write(said, json.dumps({"before": ids, "after": after}).encode() + b"\n")
            if verb == "adopt":
                index.adopt(waiting[:1] if len(waiting) == 1 else None) if len(waiting) == 1 else index.adopt()
            elif verb == "add" or not ids:
                add(index, size, number)
            elif verb == "remove":
                index.remove(gone)
            else:
                index.compact(keep=0 if verb == "free" else None)
            os.write(said, b"done\n")


def killed_at_random(root: Path, times: int, seed: int) -> dict[str, Any]:
    """`kill -9` of a writer at any time, while two readers look on: all that was acknowledged must be there."""
    rng = random.Random(seed)
    path, acknowledged = root / "index", 0
    begin(path)
    end, readers, parent = root / "end", [], os.getpid()
    for _ in range(2):
        reader = os.fork()
        if reader == 0:
            checked = 0
            index = PlaceIndex.open(path)
            while not end.exists() and os.getppid() == parent:
                index.refresh()
                ids = index.ids()
                found = query(index, 1000)
                assert sorted(found.id[found.id >= 0].tolist()) == ids.tolist()[:1000]
                assert len(index.places(ids)) == len(ids)
                checked += 1
            (root / f"checked.{os.getpid()}").write_text(str(checked))
            os._exit(0)
        readers.append(reader)
    for time_number in range(times):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            deeds(path, seed * 1000 + time_number, write)
        os.close(write)
        time.sleep(rng.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = b""
        while part := os.read(read, 1 << 16):
            said += part
        os.close(read)
        told = [line for line in said.split(b"\n")[:-1]]
        acknowledged += told.count(b"done")
        ids = whole(path).ids().tolist()
        if told and told[-1] != b"done":
            last = json.loads(told[-1])
            assert ids in (last["before"], last["after"]), f"{time_number}: neither before nor after"
        elif told:
            assert ids == json.loads(told[-2])["after"], f"{time_number}: an acknowledged change is lost"
        if (path / "incoming").exists():
            with PlaceIndex.open(path, "write") as index:
                index.adopt()
        if len(ids) > 200:
            with PlaceIndex.open(path, "write") as index:
                index.remove(index.ids()[50:])
    end.touch()
    for reader in readers:
        assert os.waitpid(reader, 0)[1] == 0, "a reader saw what was never there"
    rounds = sum(int(file.read_text()) for file in root.glob("checked.*"))
    return {"killed": times, "acknowledged": acknowledged, "rounds": rounds}


def write_and_read(root: Path, role: str, seconds: float) -> dict[str, Any]:
    """One of several processes: the writer adds places ten by ten, removes and compacts; a reader checks every snapshot
    against the law that this keeps."""
    end, path, checked = time.monotonic() + seconds, root / "index", 0
    if role == "writer":
        with PlaceIndex.open(path, "write") as index:
            n = 0
            while time.monotonic() < end:
                n += 1
                # Of every sum of ids that a commit leaves, the reader knows the law: blocks of ten, all or none.
                ids = add(index, 10, n)
                if n % 3 == 0:
                    index.remove(range(ids[0] - 20, ids[0] - 10))
                if n % 7 == 0:
                    index.compact(keep=0 if n % 2 else None)
        return {"role": role, "commits": n}
    index = PlaceIndex.open(path)
    while time.monotonic() < end:
        index.refresh()
        ids = index.ids()
        assert len(ids) % 10 == 0, "half of a commit"
        assert np.array_equal(ids.reshape(-1, 10), ids[::10, None] + np.arange(10)), "half of a commit"
        assert len(index) == len(ids)
        for place in index.places(ids[-30:]):
            assert place.key.endswith(f".{place.id % 10}")
        found = query(index, 1000)
        there = found.id[found.id >= 0]
        assert sorted(there.tolist()) == ids.tolist()[: len(there)] or len(ids) > 1000
        assert np.array_equal(found.id, query(index, 1000).id)
        checked += 1
    return {"role": role, "checked": checked}


# --- power loss --------------------------------------------------------------------------------------------------

Operation = tuple[str, str, bytes]


def recorded(root: Path, changes: int) -> None:
    """Tells the story, or makes so many changes, and writes down what was done to the files; what was acknowledged when
    stands among them."""
    library = shim()
    path = root / "index"
    begin(path)
    shutil.copytree(path, root / "before")
    log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def acknowledge(ids: list[int]) -> None:
        text = json.dumps(ids).encode()
        os.write(log, b"A" + struct.pack("<I", 0) + struct.pack("<I", len(text)) + text)

    rng = random.Random(0)
    index = PlaceIndex.open(path, "write")
    library.fault_record(str(path).encode(), log)
    for n in range(changes or len(STORY)):
        if not changes:
            step(index, n)
        elif n % 10 == 9:
            index.compact(keep=0 if n % 20 == 9 else None)
        elif n % 4 == 3:
            index.remove(rng.sample(index.ids().tolist(), 3))
        elif n % 7 == 5:
            index.leave(rows(3, n), **values(3, n))
            index.adopt()
        else:
            add(index, 2, n)
        if n % 5 == 4:  # another writer takes over
            index.close()
            index = PlaceIndex.open(path, "write")
        acknowledge(index.ids().tolist())
    index.close()
    library.fault_calls()
    os.close(log)


def operations(log: bytes) -> Iterator[Operation]:
    at = 0
    while at < len(log):
        letter, at = chr(log[at]), at + 1
        (size,) = struct.unpack_from("<I", log, at)
        path, at = log[at + 4 : at + 4 + size].decode(), at + 4 + size
        (size,) = struct.unpack_from("<I", log, at)
        data, at = log[at + 4 : at + 4 + size], at + 4 + size
        yield letter, path, data


class Disk:
    """What a file system may show after a power failure: content and names that were not synced may be lost."""

    def __init__(self, folder: Path) -> None:
        self.content: dict[int, bytes] = {}  # of files, by a number that a name stands for
        self.synced: dict[int, int] = {}  # bytes of it that are safe
        self.names: dict[str, int] = {}  # as a process sees them
        self.safe: dict[str, int] = {}
        self.pending: list[tuple[str, int | None]] = []  # changes of names since they were synced, in order
        self._number = count()
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                number = next(self._number)
                self.content[number] = file.read_bytes()
                self.synced[number] = len(self.content[number])
                self.names[str(file.relative_to(folder))] = number
        self.safe = dict(self.names)

    def _name(self, name: str, number: int | None) -> None:
        if number is None:
            self.names.pop(name, None)
        else:
            self.names[name] = number
        self.pending.append((name, number))

    def do(self, letter: str, name: str, other: str, data: bytes, synced: bool = True) -> None:
        if letter in "ct" and name not in self.names:
            number = next(self._number)
            self.content[number], self.synced[number] = b"", 0
            self._name(name, number)
        elif letter == "w":
            self.content[self.names[name]] += data
        elif letter == "l":
            self._name(other, self.names[name])
        elif letter == "r":
            self._name(other, self.names[name])
            self._name(name, None)
        elif letter == "u":
            self._name(name, None)
        elif letter == "s" and name in self.names:
            self.synced[self.names[name]] = len(self.content[self.names[name]])
        elif letter == "s":  # a folder: its names last
            for changed in [each for each in self.pending if os.path.dirname(each[0]) == name]:
                self._keep(self.safe, changed)
                self.pending.remove(changed)

    @staticmethod
    def _keep(names: dict[str, int], change: tuple[str, int | None]) -> None:
        if change[1] is None:
            names.pop(change[0], None)
        else:
            names[change[0]] = change[1]

    def after_power_loss(self) -> Iterator[dict[str, bytes]]:
        """Folders as they may be found: unsynced names all lost, none lost, and one by one lost or kept; for each,
        unsynced content all lost, one by one lost or zeros, and none."""
        n = len(self.pending)
        kept = (
            {tuple(range(n)), ()} | {(i,) for i in range(n)} | {tuple(j for j in range(n) if j != i) for i in range(n)}
        )
        for which in sorted(kept):
            names = dict(self.safe)
            for i in which:
                self._keep(names, self.pending[i])
            open_files = sorted(
                {number for number in names.values() if self.synced[number] < len(self.content[number])}
            )
            for lost in [(), *[(number,) for number in open_files], tuple(open_files)]:
                for fill in (False, True) if lost else (False,):
                    yield {name: self._left(number, number in lost, fill) for name, number in names.items()}

    def _left(self, number: int, lost: bool, zeros: bool) -> bytes:
        content = self.content[number]
        if not lost:
            return content
        safe = content[: self.synced[number]]
        return safe.ljust(len(content), b"\0") if zeros else safe


def replayed(root: Path) -> dict[str, Any]:
    """Cuts the power after every operation that was recorded, and opens what is left in every way it may be left."""
    base, path = str(root / "index"), root / "found"
    disk = Disk(root / "before")
    told = {"operations": 0, "prefixes": 0, "folders": 0, "commits": 0}
    ids = PlaceIndex.open(root / "before").ids().tolist()
    every = list(operations((root / "log").read_bytes()))
    targets = [json.loads(data) for letter, _, data in every if letter == "A"]
    seen: set[int] = set()

    def relative(name: str) -> str:
        return os.path.relpath(name, base) if name != base else ""

    several = len(targets) == len(STORY)  # its last step makes several commits

    def look(acknowledged: list[int]) -> None:
        allowed = [acknowledged, *targets[:1]]
        for files in disk.after_power_loss():
            told["prefixes"] += 1
            mark = hash((tuple(sorted(files.items())), tuple(map(tuple, allowed))))
            if mark in seen:
                continue
            seen.add(mark)
            told["folders"] += 1
            shutil.rmtree(path, ignore_errors=True)
            for name, content in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
            try:
                problems, index = PlaceIndex.verify(path), PlaceIndex.open(path)
            except (PlaceIndexError, OSError) as error:
                raise AssertionError(f"{told}: does not open") from error
            assert problems == [], problems
            found = index.ids().tolist()
            between = set(acknowledged) <= set(found) or set(found) <= set(acknowledged)
            assert found in allowed or (several and between), f"{told}: neither acknowledged nor being made"
            if told["folders"] % 20 == 0:  # and a writer goes on with it
                with PlaceIndex.open(path, "write") as writer:
                    add(writer, 1, 3)
                assert PlaceIndex.verify(path) == []

    look(ids)
    for letter, name, data in every:
        if letter == "A":
            ids = targets.pop(0)
            told["commits"] += 1
            look(ids)
            continue
        told["operations"] += 1
        if letter == "d":
            continue
        other = relative(data.decode()) if letter in "lr" else ""
        disk.do(letter, relative(name), other, data)
        look(ids)
    return told


# --- mutants: the program with one sync or one check less -----------------------------------------------------------


def mutate(name: str) -> None:
    """Takes one thing out of the program that a test must miss."""
    if name == "no sync of content":
        folder.os = Without(os, fsync=lambda handle: None)  # type: ignore[attr-defined]
    elif name == "no sync of names before the link":
        publish = commits.publish

        def unsynced(where: Any, *rest: Any) -> None:
            calls = iter([lambda: None])  # the first is left out
            where.sync = lambda: next(calls, lambda: folder.Folder.sync(where))()
            try:
                publish(where, *rest)
            finally:
                del where.sync

        commits.publish = unsynced
    elif name == "no sync of the commit's name":
        publish = commits.publish

        def late(where: Any, *rest: Any) -> None:
            calls = iter([lambda: folder.Folder.sync(where), lambda: None])  # the second is left out
            where.sync = lambda: next(calls)()
            try:
                publish(where, *rest)
            finally:
                del where.sync

        commits.publish = late
    elif name == "the writer does not read the last commit again":
        module.PlaceIndex._writable = lambda self: self._snapshot.state  # type: ignore[method-assign]
    elif name == "tidying does not ask whether a newer commit stands":
        commits.Kept.sweep = unguarded(commits.Kept.sweep)  # type: ignore[method-assign]
    elif name == "a failed link is taken at its word":
        folder.Folder.links = lambda self, name: 1  # type: ignore[method-assign]
    elif name == "an I/O error is damage":
        folder._NO_FILE = tuple(range(1, 200))
    elif name:
        raise ValueError(name)


class Without:
    """A module with something else in it."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def unguarded(sweep: Callable[[Any], None]) -> Callable[[Any], None]:
    def act(kept: Any) -> None:
        real, commits.numbers = commits.numbers, lambda names: []
        try:
            sweep(kept)
        finally:
            commits.numbers = real

    return act


if __name__ == "__main__":
    task, where, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored by whoever started this
    root = Path(where)
    mutate(os.environ.get("MUTANT", ""))
    if task == "errors":
        result = errors(root, int(arguments[0]))
    elif task == "reading":
        result = reading(root)
    elif task == "lines":
        result = lines(root, int(arguments[0]))
    elif task == "kill":
        result = killed_in_calls(root, int(arguments[0]), int(arguments[1]))
    elif task == "kill at random":
        result = killed_at_random(root, int(arguments[0]), int(arguments[1]))
    elif task == "power":
        commits.KEEP_SECONDS = 0.0  # so that few files are there and tidying is part of it
        if arguments[0] == "0":
            commits.KEEP = 2
        recorded(root, int(arguments[0]))
        mutate("")
        result = replayed(root)
    else:
        result = write_and_read(root, task, float(arguments[0]))
    print(json.dumps(result))
