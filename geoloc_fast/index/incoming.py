"""`incoming/`: segments that were written before their ids are known, and wait for a commit to adopt them.

    incoming/NAME.places, incoming/NAME.LAYER.strips   as any segment
    incoming/NAME.segment                              what the commit will say of it; made last: what has one is whole

Tidying touches nothing here; a segment is forgotten once a commit that names it stands.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

import torch

from geoloc_fast.errors import OtherModelError, PlaceIndexError
from geoloc_fast.index import commits
from geoloc_fast.index.commits import IndexState, SegmentEntry
from geoloc_fast.index.folder import Folder, damaged
from geoloc_fast.index.segment import Columns, LayerRows, Segment, write_segment

__all__ = ["digest", "forget", "leave", "take", "waiting"]

FOLDER = "incoming"
_MANIFEST = re.compile(r"([0-9a-f]{32})\.segment")


def leave(
    folder: Folder,
    state: IndexState,
    columns: Columns,
    layers: Mapping[str, LayerRows],
    attributes: dict[str, str],
    name: str | None = None,
) -> str:
    """Writes a segment where the next writer finds and adopts it; returns its name.

    Files are written under names of their own and get the segment's when they are whole: what was left half-way
    under the same name is in nobody's way, and of two that leave it at once one does."""
    inside = folder.inside(FOLDER, make=True)
    folder.sync()
    name = name or secrets.token_hex(16)
    own = f"{name}.{secrets.token_hex(8)}"
    try:
        written = write_segment(inside, columns, layers, own)
        entry = replace(written, name=name)
        alone = replace(state, attributes=attributes, next_id=entry.span, segments=(entry,), digest="")
        content, _ = commits.encoded(alone)
        inside.write(f"{own}.tmp", [content])
        inside.sync()
        if name not in waiting(folder):
            for (source, _), (target, expected) in zip(written.files(), entry.files(), strict=True):
                try:
                    inside.link(source, target)
                except FileExistsError:
                    if inside.sha256(target) != expected.sha256:
                        inside.unlink(target)
                        inside.link(source, target)
            with suppress(FileExistsError):
                inside.link(f"{own}.tmp", f"{name}.segment")
    finally:
        for file in inside.names():
            if file.startswith(f"{own}."):
                inside.unlink(file)
    inside.sync()
    return name


def waiting(folder: Folder) -> list[str]:
    """The names of segments that wait to be adopted, in order."""
    try:
        names = folder.inside(FOLDER).names()
    except FileNotFoundError:
        return []
    return sorted(match[1] for match in map(_MANIFEST.fullmatch, names) if match)


def _alone(folder: Folder, name: str) -> IndexState:
    """The state of an index that has nothing but a segment that waits."""
    try:
        inside = folder.inside(FOLDER)
        return commits.decoded(inside / f"{name}.segment", inside.read(f"{name}.segment", 1 << 24))
    except FileNotFoundError as error:
        raise PlaceIndexError(f"{folder.path}: no segment {name} waits in incoming/") from error


def digest(folder: Folder, name: str) -> str:
    """sha256 over names and checksums of its files."""
    lines = [f"{entry.sha256}  {file}\n" for file, entry in _alone(folder, name).files()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def take(folder: Folder, state: IndexState, name: str) -> tuple[SegmentEntry, dict[str, str]]:
    """Gives the files of a segment that waits a name in the index's own folder, after reading every byte of them."""
    alone = _alone(folder, name)
    inside = folder.inside(FOLDER)
    if (alone.model, alone.dtype, alone.layers) != (state.model, state.dtype, state.layers):
        raise OtherModelError(
            f"{inside / name}: holds strips of model {alone.model[:12]}, or of other layers or another dtype, got an "
            f"index of model {state.model[:12]}"
        )
    if len(alone.segments) != 1 or alone.segments[0].name != name or alone.segments[0].removed is not None:
        raise damaged(inside / f"{name}.segment", "it is that of another segment")
    entry = alone.segments[0]
    for file, expected in entry.files():
        try:
            right = inside.sha256(file) == expected.sha256
        except FileNotFoundError:
            right = False
        if not right:
            raise damaged(inside / file, "its checksum is not that of its segment")
    problems = Segment(inside, alone, entry, torch.device("cpu")).problems()
    if problems or alone.next_id != entry.span or entry.span != entry.places:
        raise damaged(inside / f"{name}.places", problems[0] if problems else "its ids do not count from 0")
    for file, _ in entry.files():
        with suppress(FileExistsError):  # of an adoption that was interrupted
            inside.link(file, file, folder)
    return entry, alone.attributes


def forget(folder: Folder, names: Iterable[str]) -> None:
    """Removes what a commit names by now."""
    gone = set(names)
    if not gone:
        return
    with suppress(OSError, PlaceIndexError):
        inside = folder.inside(FOLDER)
        files = inside.names()
        for last in (False, True):  # the manifest goes first: without it a segment does not wait
            for file in files:
                if file.split(".")[0] in gone and file.endswith(".segment") is not last:
                    inside.unlink(file)
