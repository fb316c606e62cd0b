"""The index when things go wrong: a process killed or interrupted, a disk full or failing, power lost, files cut short
or altered, writers and readers at once. What the processes do is in `index_child.py`."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoloc_fast.errors import PlaceIndexError
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.testing import random_strips

CHILD = Path(__file__).with_name("index_child.py")
MODEL = "c" * 64
LAYERS = (Layer("street", (2, 1, 4), "cosine", 180.0), Layer("text", (3, 1, 1)))


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("faults are injected through a preloaded library, which needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    source = Path(__file__).with_name("fault_shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: many thousand syncs of a disk would take minutes and show nothing more."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def child(env: dict[str, str], task: str, *arguments: object, mutant: str = "") -> dict[str, Any]:
    command = [sys.executable, str(CHILD), task, *map(str, arguments)]
    done = subprocess.run(command, env={**env, "MUTANT": mutant}, capture_output=True, text=True, timeout=3000)
    if mutant:
        return {"failed": done.returncode != 0 and "AssertionError" in done.stderr, "said": done.stderr[-2000:]}
    assert done.returncode == 0, done.stderr[-4000:]
    told = dict(json.loads(done.stdout))
    print(task, told)
    return told


# --- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_call_that_fails_or_is_interrupted_loses_nothing(folder: Path, preload: dict[str, str], every: int) -> None:
    told = child(preload, "errors", folder, every)
    assert told["tries"] > 1800 // every and min(told["calls"].values()) > 20
    assert told["unsure"] > 0 and told["interrupted"] > 0


def test_a_call_that_fails_while_reading_is_no_damage(folder: Path, preload: dict[str, str]) -> None:
    assert child(preload, "reading", folder)["tries"] > 200


@pytest.mark.parametrize("every", [149, pytest.param(7, marks=pytest.mark.slow)])
def test_an_interrupt_between_any_two_lines_loses_nothing(folder: Path, preload: dict[str, str], every: int) -> None:
    assert child(preload, "lines", folder, every)["tries"] > 10_000 // every


def test_a_writer_killed_in_a_call_leaves_a_committed_state(folder: Path, preload: dict[str, str]) -> None:
    told = child(preload, "kill", folder, 31, 1)
    assert sum(told["reached"][:-1]) > 10


@pytest.mark.slow
def test_a_writer_killed_in_every_call_leaves_a_committed_state(folder: Path, preload: dict[str, str]) -> None:
    told = child(preload, "kill", folder, 1301, 2)
    assert told["killed"] == 1300 and min(told["reached"][:-1]) > 0


@pytest.mark.parametrize("times", [8, pytest.param(500, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_time_loses_nothing_that_was_acknowledged(
    folder: Path, preload: dict[str, str], times: int
) -> None:
    told = child({**os.environ}, "kill at random", folder, times, times)
    assert told["killed"] == times and told["rounds"] > 0


# 0: the story of the other tests.
@pytest.mark.parametrize("changes", [0, pytest.param(200, marks=pytest.mark.slow)])
def test_power_lost_after_any_operation_leaves_a_committed_state(
    folder: Path, preload: dict[str, str], changes: int
) -> None:
    told = child(preload, "power", folder, changes)
    assert told["folders"] > 500 and told["commits"] == (changes or 7)


@pytest.mark.parametrize(
    ("mutant", "task"),
    [
        ("no sync of content", ("power", 0)),
        ("no sync of names before the link", ("power", 0)),
        ("an I/O error is damage", ("reading",)),
        pytest.param("no sync of the commit's name", ("power", 0), marks=pytest.mark.slow),
        pytest.param("the writer does not read the last commit again", ("errors", 5), marks=pytest.mark.slow),
        pytest.param("tidying does not ask whether a newer commit stands", ("errors", 5), marks=pytest.mark.slow),
    ],
)
def test_a_program_with_one_sync_or_one_check_less_is_found_out(
    folder: Path, preload: dict[str, str], mutant: str, task: tuple[Any, ...]
) -> None:
    found = child(preload, task[0], folder, *task[1:], mutant=mutant)
    assert found["failed"], found["said"]


@pytest.mark.parametrize(("seconds", "readers"), [(1.5, 2), pytest.param(60.0, 4, marks=pytest.mark.slow)])
def test_readers_see_whole_commits_while_one_process_writes(tmp_path: Path, seconds: float, readers: int) -> None:
    with PlaceIndex.create(tmp_path / "index", model=MODEL, layers=LAYERS) as index:
        add(index, 10, 0)
    command = [sys.executable, str(CHILD)]
    processes = [
        subprocess.Popen(
            [*command, role, str(tmp_path), str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for role in ("writer", *["reader"] * readers)
    ]
    for process in processes:
        stdout, stderr = process.communicate(timeout=seconds + 120)
        assert process.returncode == 0, stderr[-4000:]
        assert next(iter(set(json.loads(stdout)) - {"role"}))
    assert PlaceIndex.verify(tmp_path / "index") == []


# --- altered files -----------------------------------------------------------------------------------------------


def add(index: PlaceIndex, count: int, seed: int) -> None:
    some, where = np.arange(0, count, 2), np.linspace(1, 2, count)
    names = [f"{seed}.{n}" for n in range(count)]
    rows = {
        "street": Rows(random_strips(count, 2, 1, 4, seed=seed)),
        "text": Rows(random_strips(len(some), 3, 1, 1), some),
    }
    index.add(rows, model=MODEL, lat=where, lon=where, key=names, attributes={"city": names})


def small(folder: Path) -> Path:
    with PlaceIndex.create(folder, model=MODEL, layers=LAYERS) as index:
        add(index, 20, 0)
        add(index, 20, 1)
        index.remove([3])
        index.compact(keep=0)
        add(index, 5, 2)
        index.remove([7])
        index.compact()
        index.remove([8])
        index.close()
    with PlaceIndex.open(folder, "write") as index:
        index._tidy(1)  # files that decide nothing may be altered
    return folder


def damaged_copies_are_found(folder: Path, harm: Any, count: int) -> dict[str, int]:
    """Harms the index `count` times: each must be refused at opening or named by `verify`, and crash nothing."""
    outcome = {"refused": 0, "verify": 0}
    original = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    expected = PlaceIndex.open(folder).ids().tolist()
    query = {"street": QueryStrips(random_strips(1, 2, 1, 4))}
    for n in range(count):
        path, content = harm(n, original)
        path.write_bytes(content)
        try:
            index = PlaceIndex.open(folder)
            index.search(query, 50)
            index.places(index.ids())
            index.keys()
        except PlaceIndexError:
            outcome["refused"] += 1
        problems = PlaceIndex.verify(folder)
        assert problems and any(path.name[:8] in problem for problem in problems), f"{path.name}: {n} was not found out"
        outcome["verify"] += 1
        path.write_bytes(original[path])
    assert PlaceIndex.verify(folder) == [] and PlaceIndex.open(folder).ids().tolist() == expected
    return outcome


@pytest.mark.parametrize("count", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_found(folder: Path, count: int) -> None:
    rng = random.Random(count)

    def flip(n: int, files: dict[Path, bytes]) -> tuple[Path, bytes]:
        sizes = [len(content) for content in files.values()]
        path = rng.choices(list(files), sizes)[0] if n % 2 else rng.choice(list(files))
        content = bytearray(files[path])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return path, bytes(content)

    outcome = damaged_copies_are_found(small(folder / "index"), flip, count)
    assert outcome["refused"] > 0


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_file_cut_short_anywhere_is_found(folder: Path, count: int) -> None:
    rng = random.Random(count)

    def cut(n: int, files: dict[Path, bytes]) -> tuple[Path, bytes]:
        path = rng.choice(list(files))
        return path, files[path][: rng.randrange(len(files[path]))]

    damaged_copies_are_found(small(folder / "index"), cut, count)


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_cut_short_in_its_header_is_refused(folder: Path, step: int) -> None:
    path = small(folder / "index")
    cuts = [
        (file, at)
        for file in sorted(path.iterdir())
        if file.suffix != ".sha256"
        for at in range(0, {".strips": 128, ".commit": 200, ".places": 900}[file.suffix], step)
    ]
    outcome = damaged_copies_are_found(path, lambda n, files: (cuts[n][0], files[cuts[n][0]][: cuts[n][1]]), len(cuts))
    assert outcome == {"refused": len(cuts), "verify": len(cuts)}


def test_damage_is_found_without_the_checksum_list_too(folder: Path) -> None:
    path = small(folder / "index")
    for seal in path.glob("*.sha256"):
        seal.unlink()
    assert [problem for problem in PlaceIndex.verify(path) if "is missing" not in problem] == []
    rng, missed = random.Random(0), 0
    files: dict[Path, bytes] = {file: file.read_bytes() for file in sorted(path.iterdir())}
    for _ in range(60):
        file = rng.choice(list(files))
        content = bytearray(files[file])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        missed += not [problem for problem in PlaceIndex.verify(path) if "sha256: is missing" not in problem]
        file.write_bytes(files[file])
    assert missed == 0
