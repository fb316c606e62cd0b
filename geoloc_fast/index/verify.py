"""Read and check every byte of an index, and restore an older commit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from geoloc_fast.errors import DamagedIndexError, IndexVersionError, PlaceIndexError
from geoloc_fast.index import commits
from geoloc_fast.index.commits import LAST_ID, IndexState
from geoloc_fast.index.folder import Folder, damaged
from geoloc_fast.index.segment import Segment

__all__ = ["problems", "restore"]


def problems(folder: Folder, progress: Callable[[int], None] | None) -> list[str]:
    """What is wrong; a writer may go on meanwhile."""
    while True:
        number = commits.last(folder)
        try:
            found = _problems_of(folder, commits.read(folder, number), progress)
        except FileNotFoundError as error:
            found = [f"{folder.path / str(error.filename)}: is missing"]
        except DamagedIndexError as error:
            found = [str(error)]
        if not found or commits.last(folder) == number:
            return found


def _problems_of(folder: Folder, state: IndexState, progress: Callable[[int], None] | None) -> list[str]:
    found = []
    sums = {name: entry.sha256 for name, entry in state.files()}
    for name, expected in sums.items():
        try:
            if folder.sha256(name, progress) != expected:
                found.append(f"{folder / name}: damaged (its checksum is not that of the commit)")
        except FileNotFoundError:
            found.append(f"{folder / name}: is missing")
        except DamagedIndexError as error:
            found.append(str(error))
    if not found:
        for entry in state.segments:
            try:
                segment = Segment(folder, state, entry, torch.device("cpu"))
                found += [f"{folder / entry.name}.places: {text}" for text in segment.problems()]
            except DamagedIndexError as error:
                found.append(str(error))
    seal = f"{state.commit:08d}.sha256"
    try:
        content = folder.sha256(commits.file_name(state.commit))
        if folder.read(seal, 1 << 30) != commits.checksums(state, content):
            found.append(f"{folder / seal}: the checksums in it are not those of the files")
    except FileNotFoundError as error:
        found.append(f"{folder / str(error.filename)}: is missing")
    except DamagedIndexError as error:
        found.append(str(error))
    with suppress(FileNotFoundError, DamagedIndexError, IndexVersionError):
        if state.commit and commits.read(folder, state.commit - 1).digest != state.parent:
            found.append(f"{folder / commits.file_name(state.commit - 1)}: is not the commit that came before the last")
    return found + folder.strange()


def restore(folder: Folder, number: int) -> None:
    """Commits the state of an older commit anew, after reading every byte of it."""
    states: dict[int, IndexState] = {}
    there = commits.numbers(folder.names())
    for other in there:
        with suppress(FileNotFoundError, DamagedIndexError):
            states[other] = commits.read(folder, other)
    if number not in states:
        raise PlaceIndexError(
            f"{folder.path}: there is no whole commit {number}; there are {', '.join(map(str, states)) or 'none'}"
        )
    wanted = states[number]
    for name, entry in wanted.files():
        try:
            right = folder.sha256(name) == entry.sha256
        except FileNotFoundError:
            right = False
        if not right:
            raise damaged(folder / name, f"so commit {number} cannot be restored")
    next_id = max(state.next_id for state in states.values())
    if set(there) != set(states):  # nobody can tell which ids a damaged commit gave
        next_id = min(next_id + (1 << 32), LAST_ID)
    before = replace(states[max(states)], commit=there[-1])
    state, content = commits.numbered(before, replace(wanted, next_id=next_id), "restore", number)
    for segment in state.segments:
        Segment(folder, state, segment, torch.device("cpu"))
    commits.publish(folder, state, content)
