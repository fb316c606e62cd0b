"""The index when things go wrong: a process killed, a disk full or failing, files cut short or altered, writers and
readers at once.

Every write, sync, rename, truncation and removal below the index's folder, those of SQLite included, goes through
`fault_shim.c`, which makes the n-th of them fail or the process die there.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoloc_fast.errors import PlaceIndexError, UnsureCommitError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.testing import random_strips

MODEL = "c" * 64
SHAPE = (2, 1, 4)


def add(index: PlaceIndex, count: int, seed: int) -> list[int]:
    lat = np.linspace(1, 2, count)
    ids = index.add(
        random_strips(count, *SHAPE, seed=seed),
        model=MODEL,
        lat=lat,
        lon=lat,
        key=[f"{seed}.{n}" for n in range(count)],
    )
    return [int(number) for number in ids]


# The story every fault interrupts: (verb, ids that are there after it).
STORY: tuple[tuple[str, list[int]], ...] = (
    ("add", list(range(40))),
    ("remove", list(range(1, 40))),
    ("add", list(range(1, 57))),
    ("remove", list(range(20, 57))),
    ("compact", list(range(20, 57))),
    ("add", list(range(20, 60))),
)
SIZES = {0: 20, 2: 17, 5: 3}  # strips of each add; 20 were there before


def step(index: PlaceIndex, n: int) -> None:
    verb, after = STORY[n]
    if verb == "add":
        add(index, SIZES[n], n)
    elif verb == "remove":
        index.remove(sorted(set(index.ids().tolist()) - set(after)))
    else:
        index.compact()


def begin(folder: Path) -> int:
    """An index with 20 places; returns its commit."""
    with PlaceIndex.create(folder, model=MODEL, shape=SHAPE) as index:
        add(index, 20, 99)
        return index.commit


def state_of(folder: Path, first: int, least: int) -> int:
    """Checks that the index is exactly at one step of the story, at least that far on; returns how many were done."""
    assert PlaceIndex.verify(folder) == []
    index = PlaceIndex.open(folder)
    done = index.commit - first
    assert done >= least, f"{least} commits were acknowledged, {done} are there"
    expected = STORY[done - 1][1] if done else list(range(20))
    assert index.ids().tolist() == expected
    places = index.places(expected)
    seeds = {**dict.fromkeys(range(20), 99), **dict.fromkeys(range(20, 40), 0), **dict.fromkeys(range(40, 57), 2)}
    assert all(place.key.startswith(f"{seeds.get(place.id, 5)}.") for place in places)
    return done


# --- processes that run with the shim ------------------------------------------------------------------------


def shim() -> Any:
    library = ctypes.CDLL(None)
    library.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    library.fault_calls.restype = ctypes.c_long
    return library


def errors_in_every_call(root: Path) -> None:
    """In this process: every call of every step fails once, as EIO, and from there on, as ENOSPC."""
    torch.set_num_threads(1)
    library = shim()
    counts: dict[str, int] = {}
    through = 0
    base = root / "base"
    first = begin(base)
    for n in range(len(STORY)):
        for code, mode in ((errno.EIO, 0), (errno.ENOSPC, 2)):
            at = 0
            while True:
                folder = root / "index"
                shutil.copytree(base, folder)
                index = PlaceIndex.open(folder, "write")
                library.fault_arm(str(folder).encode(), at, code, mode)
                try:
                    step(index, n)
                    failed, in_doubt = False, None
                except OSError as error:
                    failed, in_doubt = True, error.commit if isinstance(error, UnsureCommitError) else None
                calls = library.fault_calls()
                if at == 0:
                    assert not failed
                    counts[f"{n} {STORY[n][0]}"] = calls
                # What is there is whole; a commit that was acknowledged is there.
                done = state_of(folder, first, n + (not failed))
                assert done <= n + 1
                # An error means the state before, except for one that says it may not.
                assert (in_doubt == index.commit) == (failed and done == n + 1)
                assert in_doubt in (None, first + n + 1)
                through += in_doubt is not None
                # The writer that met the fault sees what is there, and can go on.
                assert index.commit - first == done
                if done == n:
                    step(index, n)
                index.close()
                with PlaceIndex.open(folder, "write"):
                    pass
                assert state_of(folder, first, n + 1) == n + 1
                left = [name for name in os.listdir(folder) if name not in ("lock", "index.sqlite")]
                assert len(left) == 2 * len(PlaceIndex.open(folder)._snapshot.segments) + 1, left
                shutil.rmtree(folder)
                at += 1
                if at > calls and at > 1:
                    break
        with PlaceIndex.open(base, "write") as index:
            step(index, n)
    print(json.dumps({"calls": counts, "in_doubt": through}))


def killed_in_calls(root: Path, points: int, seed: int) -> None:
    """Forks that die in one of their calls; this process looks at what they leave."""
    torch.set_num_threads(1)
    library = shim()
    base = root / "base"
    first = begin(base)
    rng = random.Random(seed)
    total = 0
    reached = [0] * (len(STORY) + 1)
    for point in range(points):
        folder = root / "index"
        shutil.copytree(base, folder)
        at = 0 if point == 0 else (point - 1) // 2 % total + 1 if points > 2 * total else rng.randint(1, total)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            library.fault_arm(str(folder).encode(), at, 0, point % 2)
            with PlaceIndex.open(folder, "write") as index:
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
        done = state_of(folder, first, min(len(acknowledged), len(STORY)))
        reached[done] += 1
        with PlaceIndex.open(folder, "write") as index:  # and the story can be told to its end
            for n in range(done, len(STORY)):
                step(index, n)
        assert state_of(folder, first, len(STORY)) == len(STORY)
        shutil.rmtree(folder)
    print(json.dumps({"calls": total, "killed": points - 1, "reached": reached}))


def write_and_read(root: Path, role: str, seconds: float) -> None:
    """One of several processes: the writer adds strips whose key says in which commit, and says which commits hold
    how many places; a reader checks every snapshot against that."""
    torch.set_num_threads(1)
    end, folder, checked = time.monotonic() + seconds, root / "index", 0
    if role == "writer":
        with PlaceIndex.open(folder, "write") as index:
            n = 0
            while time.monotonic() < end:
                n += 1
                # Of every sum of ids that a commit leaves, the reader knows the law: blocks of ten, all or none.
                ids = add(index, 10, n)
                if n % 3 == 0:
                    index.remove(range(ids[0] - 20, ids[0] - 10))
                if n % 7 == 0:
                    index.compact()
        print(json.dumps({"role": role, "commits": n}))
        return
    index = PlaceIndex.open(folder)
    query = random_strips(1, *SHAPE, seed=1)
    while time.monotonic() < end:
        index.refresh()
        ids = index.ids()
        assert len(ids) % 10 == 0, "half of a commit"
        assert np.array_equal(ids.reshape(-1, 10), ids[::10, None] + np.arange(10)), "half of a commit"
        assert len(index) == len(ids)
        for place in index.places(ids[-30:]):
            assert place.key.endswith(f".{place.id % 10}")
        found = index.search(query, 1000)
        there = found.id[found.id >= 0]
        assert sorted(there.tolist()) == ids.tolist()[: len(there)] or len(ids) > 1000
        again = index.search(query, 1000)
        assert np.array_equal(found.id, again.id)
        checked += 1
    print(json.dumps({"role": role, "checked": checked}))


if __name__ == "__main__":
    task, where, *numbers = sys.argv[1:]
    if task == "errors":
        errors_in_every_call(Path(where))
    elif task == "kill":
        killed_in_calls(Path(where), int(numbers[0]), int(numbers[1]))
    else:
        write_and_read(Path(where), task, float(numbers[0]))
    sys.exit(0)


# --- the tests -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("faults are injected through a preloaded library, which needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    source = Path(__file__).with_name("fault_shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def child(env: dict[str, str], *arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


def test_an_error_in_any_call_of_a_commit_leaves_the_old_state(tmp_path: Path, preload: dict[str, str]) -> None:
    told = child(preload, "errors", tmp_path)
    assert min(told["calls"].values()) > 8  # SQLite's own are among them
    # Only the sync of the folder after the journal is gone can fail too late: once for each step and each error.
    assert told["in_doubt"] == 2 * len(STORY)
    print(told)


def test_a_writer_killed_in_a_call_leaves_a_committed_state(tmp_path: Path, preload: dict[str, str]) -> None:
    told = child(preload, "kill", tmp_path, 41, 1)
    assert sum(told["reached"][:-1]) > 30


@pytest.mark.slow
def test_a_writer_killed_in_every_call_leaves_a_committed_state(tmp_path: Path, preload: dict[str, str]) -> None:
    told = child(preload, "kill", tmp_path, 601, 2)
    assert told["killed"] == 600 and min(told["reached"][:-1]) > 0


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_readers_see_whole_commits_while_one_process_writes(tmp_path: Path, seconds: float) -> None:
    with PlaceIndex.create(tmp_path / "index", model=MODEL, shape=SHAPE) as index:
        add(index, 10, 0)
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen(
            [*command, role, str(tmp_path), str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for role in ("writer", "reader", "reader", "reader", "reader")
    ]
    for process in processes:
        stdout, stderr = process.communicate(timeout=seconds + 120)
        assert process.returncode == 0, stderr[-4000:]
        assert next(iter(set(json.loads(stdout)) - {"role"}))
    assert PlaceIndex.verify(tmp_path / "index") == []


def damaged_copies_are_found(folder: Path, harm: Any, count: int) -> dict[str, int]:
    """Harms the index `count` times: each must be refused at opening or named by `verify`, and crash nothing."""
    outcome = {"refused": 0, "verify": 0}
    original = {path: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lock"}
    expected = PlaceIndex.open(folder).ids().tolist()
    for n in range(count):
        path, content = harm(n, original)
        path.write_bytes(content)
        try:
            index = PlaceIndex.open(folder)
            index.search(random_strips(1, *SHAPE), 50)
            index.places(index.ids())
            index.keys()
        except PlaceIndexError:
            outcome["refused"] += 1
        except KeyError:  # ids that no longer ascend
            pass
        problems = PlaceIndex.verify(folder)
        assert problems, f"{path.name}: {n} was not found out"
        outcome["verify"] += 1
        path.write_bytes(original[path])
        if path.name == "index.sqlite":
            (folder / "index.sqlite-journal").unlink(missing_ok=True)
    assert PlaceIndex.verify(folder) == [] and PlaceIndex.open(folder).ids().tolist() == expected
    return outcome


def small(folder: Path) -> Path:
    begin(folder)
    with PlaceIndex.open(folder, "write") as index:
        add(index, 20, 0)
        index.remove([3])
    return folder


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, count: int) -> None:
    rng = random.Random(count)

    def flip(n: int, files: dict[Path, bytes]) -> tuple[Path, bytes]:
        path = (
            rng.choices(list(files), [len(content) for content in files.values()])[0]
            if n % 2
            else rng.choice(list(files))
        )
        content = bytearray(files[path])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return path, bytes(content)

    outcome = damaged_copies_are_found(small(tmp_path / "index"), flip, count)
    assert outcome["refused"] > 0


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_file_cut_short_anywhere_is_found(tmp_path: Path, count: int) -> None:
    rng = random.Random(count)

    def cut(n: int, files: dict[Path, bytes]) -> tuple[Path, bytes]:
        path = rng.choice(list(files))
        return path, files[path][: rng.randrange(len(files[path]))]

    damaged_copies_are_found(small(tmp_path / "index"), cut, count)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_cut_short_in_its_header_is_found(tmp_path: Path, step: int) -> None:
    folder = small(tmp_path / "index")
    # The bank's header, that of safetensors, and SQLite's.
    places = folder / "00000001.places"
    sizes = {"strips": 128, "places": 8 + int.from_bytes(places.read_bytes()[:8], "little"), "sqlite": 100}
    cuts = [
        (path, at)
        for path in (folder / "00000001.strips", places, folder / "index.sqlite")
        for at in range(0, sizes[path.suffix[1:]], step)
    ]
    outcome = damaged_copies_are_found(
        folder, lambda n, files: (cuts[n][0], files[cuts[n][0]][: cuts[n][1]]), len(cuts)
    )
    assert outcome == {"refused": len(cuts), "verify": len(cuts)}
