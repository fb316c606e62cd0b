"""`00000012.commit`: the whole state of the index as of commit 12, in a file that is never changed.

    geoloc_fast index 2
    {"at": ..., "attributes": ..., "changed": 5, "commit": 12, ..., "segments": [...], "verb": "add"}
    sha256 DIGEST_OF_THE_LINES_ABOVE

The highest number is the state; if that file is not whole the index is damaged, and no older one is taken in silence.
Order of a commit, under the lock, each step durable before the next begins:

    1. the files of a new segment are written under names drawn at random, and synced
    2. 00000012.sha256, checksums for `sha256sum -c`, is written and synced
    3. the commit is written under a temporary name and synced, then the folder
    4. `link` gives it its number, which fails if that is taken. Here the commit takes place
    5. the folder is synced and listed again
    6. files that no commit refers to are removed; what is not done here the next writer does
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import math
import re
import secrets
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geoloc_fast.errors import DamagedIndexError, IndexVersionError, PlaceIndexError, UnsureCommitError
from geoloc_fast.index.folder import Folder, damaged, no_links, without_links
from geoloc_fast.layers import Layer

__all__ = [
    "FORMAT_VERSION",
    "BankEntry",
    "FileEntry",
    "IndexState",
    "Kept",
    "SegmentEntry",
    "file_name",
    "last",
    "publish",
    "read",
    "read_last",
]

FORMAT_VERSION = 2
ATTRIBUTE_KINDS = ("date", "float", "int", "text")
KEEP = 8
KEEP_SECONDS = 3600.0
KEEP_MOST = 256  # of the last hour, so that the folder stays small
LAST_ID = 2**63 - 1
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_LAST_COMMIT = 99_999_999
_MOST_BYTES = 1 << 30
_HEX_128, _HEX_256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"(\d{8})\.commit")
_OURS = re.compile(rf"\d{{8}}\.(commit|sha256|[0-9a-f]{{32}}\.tmp)|[0-9a-f]{{32}}\.(places|{NAME.pattern}\.strips)")
_FIRST_LINE = re.compile(rb"geoloc_fast index (\d{1,9})\n")


@dataclass(frozen=True)
class FileEntry:
    """A file of a segment, as a commit knows it."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class BankEntry(FileEntry):
    """The strips of a layer in a segment."""

    rows: int
    searched: int
    """The rows that a search goes through; the others follow them and only rescore."""
    most: int
    """Rows of the place that has most."""


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as a commit has it. The n-th place has the id `first_id` + the n-th number of its table, which is
    below `span`. `removed` is a bitmap of places (NumPy's packbits), None while there are none."""

    name: str
    first_id: int
    span: int
    places: int
    table: FileEntry
    banks: dict[str, BankEntry]
    removed: bytes | None = None

    def files(self) -> list[tuple[str, FileEntry]]:
        banks = [(f"{self.name}.{layer}.strips", entry) for layer, entry in sorted(self.banks.items())]
        return [(f"{self.name}.places", self.table), *banks]


@dataclass(frozen=True)
class IndexState:
    """All that a snapshot is. Segments are in the order of their ids, which do not interleave."""

    index: str
    """Drawn at random when the index was made: no other has it."""
    model: str
    dtype: str
    layers: tuple[Layer, ...]
    attributes: dict[str, str] = field(default_factory=dict)
    """Kind of each attribute, one of ATTRIBUTE_KINDS."""
    next_id: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    commit: int = -1
    parent: str = ""
    """Digest of the commit before."""
    at: str = ""
    verb: str = ""
    changed: int = 0
    digest: str = ""
    """Of this commit; not in the file's second line but in its third."""

    def files(self) -> list[tuple[str, FileEntry]]:
        return [file for segment in self.segments for file in segment.files()]

    def layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)


def is_ours(name: str) -> bool:
    """Whether a file may have been written by this program."""
    return _OURS.fullmatch(name) is not None


def file_name(commit: int) -> str:
    """The name of a commit's file."""
    return f"{commit:08d}.commit"


# --- reading -----------------------------------------------------------------------------------------------------


def numbers(names: list[str]) -> list[int]:
    """Of all commits in a folder, ascending."""
    found = (_COMMIT.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def last(folder: Folder) -> int:
    """The highest number. PlaceIndexError if there is none."""
    found = numbers(folder.names())
    if not found:
        raise PlaceIndexError(
            f"{folder.path}: is not an index: it holds no commit; make an index with `geoloc-fast index build`"
        )
    return found[-1]


def read_last(folder: Folder) -> IndexState:
    """The state of the last commit. Errors are those of geoloc_fast.index.errors, and OSError."""
    while True:
        number = last(folder)
        try:
            return read(folder, number)
        except FileNotFoundError as error:  # a writer removed it, then there is a newer one
            if last(folder) == number:
                raise damaged(folder / file_name(number), "it is missing") from error


def read(folder: Folder, number: int) -> IndexState:
    """The state of one commit; FileNotFoundError if it is not there."""
    name = file_name(number)
    state = decoded(folder / name, folder.read(name, _MOST_BYTES))
    if state.commit != number:
        raise damaged(folder / name, f"it is commit {state.commit}")
    return state


def decoded(path: Path, content: bytes) -> IndexState:
    first = _FIRST_LINE.match(content)
    if first is None:
        raise damaged(path, "it is not a commit of an index")
    body, digest = content[:-72], hashlib.sha256(content[:-72]).hexdigest()
    if content[-72:] != b"sha256 " + digest.encode() + b"\n":
        raise damaged(path, "it has not the digest it was written with")
    if int(first[1]) != FORMAT_VERSION:
        raise IndexVersionError(
            f"{path.parent}: is an index of format {int(first[1])}, this version reads {FORMAT_VERSION}: "
            "update geoloc_fast, or build the index anew"
        )
    try:
        state = _state(json.loads(body[first.end() :], parse_constant=_no_number))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    return replace(state, digest=digest)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise ValueError(otherwise)


def _fields(document: Any, **kinds: type | tuple[type, ...]) -> list[Any]:
    """The values of an object that has exactly these fields."""
    _require(isinstance(document, dict) and set(document) == set(kinds), f"expected the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        value = document[name]
        _require(isinstance(value, kind) and not isinstance(value, bool), f"{name} is {value!r:.40}")
    return [document[name] for name in kinds]


def _whole(name: str, value: int, low: int = 0, high: int = LAST_ID) -> int:
    _require(low <= value <= high, f"{name} is {value}")
    return value


def _matching(name: str, value: str, pattern: re.Pattern[str]) -> str:
    _require(pattern.fullmatch(value) is not None, f"{name} is {value!r:.40}")
    return value


def _state(document: Any) -> IndexState:
    index, model, dtype, layers, attributes, next_id, segments, commit, parent, at, verb, changed = _fields(
        document, index=str, model=str, dtype=str, layers=list, attributes=dict, next_id=int, segments=list,
        commit=int, parent=str, at=str, verb=str, changed=int,
    )  # fmt: skip
    for name, kind in attributes.items():
        _require(NAME.fullmatch(name) is not None and kind in ATTRIBUTE_KINDS, f"attribute {name!r:.80}")
    state = IndexState(
        _matching("index", index, _HEX_128), model, dtype, tuple(map(_layer, layers)), attributes,
        _whole("next_id", next_id), tuple(map(_segment, segments)), _whole("commit", commit, 0, _LAST_COMMIT),
        parent, at, verb, _whole("changed", changed),
    )  # fmt: skip
    names = [layer.name for layer in state.layers]
    _require(len(set(names)) == len(names) > 0 and dtype in ("bf16", "fp32"), "its layers are not those of an index")
    free = 0
    for segment in state.segments:
        _require(segment.first_id >= free and set(segment.banks) <= set(names), f"segment {segment.name}")
        free = segment.first_id + segment.span
    _require(free <= next_id, "ids beyond the next one")
    drawn = [segment.name for segment in state.segments]
    _require(len(set(drawn)) == len(drawn), "a segment stands in it twice")
    return state


def _layer(document: Any) -> Layer:
    name, strip, score, column0_deg, scanned_rows = _fields(
        document, name=str, strip=list, score=str, column0_deg=(float, int, type(None)), scanned_rows=int
    )
    _matching("layer", name, NAME)
    _require(len(strip) == 3 and score in ("cosine", "dot"), f"layer {name}")
    for size in strip:
        _require(isinstance(size, int) and 1 <= size <= 1 << 16, f"layer {name}")
    _require(column0_deg is None or math.isfinite(column0_deg), f"layer {name}")
    frame = None if column0_deg is None else float(column0_deg)
    return Layer(name, tuple(strip), score, frame, scanned_rows=_whole("scanned_rows", scanned_rows, 1))


def _segment(document: Any) -> SegmentEntry:
    name, first_id, span, places, table, banks, removed = _fields(
        document, name=str, first_id=int, span=int, places=int, table=dict, banks=dict, removed=(str, type(None))
    )
    _whole("places", places, 1)
    _whole("span", span, places)
    _whole("first_id", first_id, 0, LAST_ID - span)
    found = {}
    for layer, entry in banks.items():
        size, sha256, rows, searched, most = _fields(entry, bytes=int, sha256=str, rows=int, searched=int, most=int)
        _whole("most", most, 1, _whole("rows", rows, 1, most * places))
        _whole("searched", searched, 1, rows)
        found[layer] = BankEntry(_whole("bytes", size, 1), _matching("sha256", sha256, _HEX_256), rows, searched, most)
    size, sha256 = _fields(table, bytes=int, sha256=str)
    whole = FileEntry(_whole("bytes", size, 1), _matching("sha256", sha256, _HEX_256))
    try:
        bitmap = None if removed is None else base64.b64decode(removed, validate=True)
    except binascii.Error as error:
        raise ValueError(f"removed: {error}") from error
    _require(bitmap is None or len(bitmap) == (places + 7) // 8, "removed has another length")
    return SegmentEntry(_matching("name", name, _HEX_128), first_id, span, places, whole, found, bitmap)


# --- writing -----------------------------------------------------------------------------------------------------


def encoded(state: IndexState) -> tuple[bytes, str]:
    """(the file, its digest)"""
    document = {name: value for name, value in vars(state).items() if name != "digest"}
    kept = (
        "name",
        "strip",
        "score",
        "column0_deg",
        "scanned_rows",
    )  # what belongs to the index; the rest is the model's
    document["layers"] = [{name: getattr(layer, name) for name in kept} for layer in state.layers]
    document["segments"] = [
        {
            **vars(segment),
            "table": vars(segment.table),
            "banks": {layer: vars(entry) for layer, entry in segment.banks.items()},
            "removed": None if segment.removed is None else base64.b64encode(segment.removed).decode(),
        }
        for segment in state.segments
    ]
    body = f"geoloc_fast index {FORMAT_VERSION}\n{json.dumps(document, sort_keys=True, allow_nan=False)}\n".encode()
    digest = hashlib.sha256(body).hexdigest()
    return body + f"sha256 {digest}\n".encode(), digest


def checksums(state: IndexState, content_sha256: str) -> bytes:
    """As `sha256sum` writes them."""
    sums = [(file_name(state.commit), content_sha256), *((name, entry.sha256) for name, entry in state.files())]
    return "".join(f"{digest}  {name}\n" for name, digest in sums).encode()


def numbered(before: IndexState, after: IndexState, verb: str, changed: int) -> tuple[IndexState, bytes]:
    """`after` as the commit that follows `before`, and the file it is written as."""
    if before.commit >= _LAST_COMMIT:
        raise PlaceIndexError(f"there are no commits left after {before.commit}; slice the index into a new one")
    at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = replace(after, commit=before.commit + 1, parent=before.digest, at=at, verb=verb, changed=changed, digest="")
    content, digest = encoded(state)
    return replace(state, digest=digest), content


def publish(folder: Folder, state: IndexState, content: bytes) -> None:
    """Steps 2 to 5 of a commit; see above.

    UnsureCommitError if the commit was made and may not last. After any other OSError it was not made.
    """
    name, seal = file_name(state.commit), f"{state.commit:08d}.sha256"
    temporary = f"{state.commit:08d}.{secrets.token_hex(16)}.tmp"
    folder.unlink(seal)  # of a writer that died on the way to this number
    folder.write(seal, [checksums(state, hashlib.sha256(content).hexdigest())])
    folder.write(temporary, [content])
    folder.sync()
    try:
        folder.link(temporary, name)
    except OSError as error:
        try:
            made = folder.links(temporary) > 1
        except OSError:
            raise _unsure(folder, state, error, "may be there or not") from error
        if not made:
            if isinstance(error, FileExistsError):
                raise written_by_another(folder, state.commit - 1) from error
            if no_links(error):
                raise without_links(folder) from error
            raise
    try:
        folder.sync()
        found = numbers(folder.names())
    except OSError as error:
        raise _unsure(folder, state, error, "is there now, but a power failure may undo it") from error
    if found[-1:] != [state.commit]:
        raise _unsure(folder, state, None, f"is not the last of {found[-2:]}: something else writes to the index")
    with suppress(OSError):
        folder.unlink(temporary)


def _unsure(folder: Folder, state: IndexState, error: OSError | None, doubt: str) -> UnsureCommitError:
    reason = "" if error is None else f"{error.strerror}; "
    return UnsureCommitError(
        f"{folder.path}: {reason}commit {state.commit} ({state.verb}) {doubt}: once the disk works, open the index and "
        f"see whether its last commit is {state.commit} before doing it again",
        state.commit,
    )


def written_by_another(folder: Folder, ours: int) -> PlaceIndexError:
    return PlaceIndexError(
        f"{folder.path}: commit {ours}, which this object knows, is not the last any more; nothing was written; "
        "refresh, or open the index anew"
    )


# --- tidying -----------------------------------------------------------------------------------------------------


class Kept:
    """The commits a writer keeps, with every file they name: the newest eight, and those of the last hour."""

    def __init__(self, folder: Folder, state: IndexState) -> None:
        self._folder = folder
        self._files: dict[int, list[str] | None] = {}  # None: of a commit that cannot be read, whose files are unknown
        self._at: dict[int, float] = {}
        self._uses: Counter[str] = Counter()
        for number in numbers(folder.names()):
            try:
                self.add(state if number == state.commit else read(folder, number))
            except (OSError, DamagedIndexError, IndexVersionError):
                self._files[number], self._at[number] = None, -math.inf

    def __contains__(self, segment: str) -> bool:
        return self._uses[f"{segment}.places"] > 0

    @property
    def newest(self) -> int:
        return max(self._files)

    def add(self, state: IndexState) -> None:
        try:
            self._at[state.commit] = datetime.datetime.fromisoformat(state.at.replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError, OSError):
            self._at[state.commit] = -math.inf
        # In this order an interruption leaves files behind, and takes none away.
        self._uses.update(files := [name for name, _ in state.files()])
        self._files[state.commit] = files

    def drop(self, newest: int | None = None) -> None:
        """Removes the files of commits that need not be kept: all but the `newest`, if that is said."""
        order = sorted(self._files)
        if newest is None:
            since = datetime.datetime.now().timestamp() - KEEP_SECONDS
            young = {n for n in order[-KEEP_MOST:] if self._at[n] >= since}
            dropped = [n for n in order[:-KEEP] if n not in young]
        else:
            dropped = order[: -max(newest, 1)]
        for number in dropped:
            files = self._files.pop(number)
            gone = [file_name(number), f"{number:08d}.sha256"]
            for name in files or ():
                self._uses[name] -= 1
                if not self._uses[name]:
                    del self._uses[name]
                    gone.append(name)
            for name in gone:
                with suppress(OSError):
                    self._folder.unlink(name)

    def sweep(self) -> None:
        """Removes what a writer left that died or failed: files of this program that no commit names."""
        with suppress(OSError):
            names = self._folder.names()
            if not set(numbers(names)) <= set(self._files):
                return  # a commit stands that this writer has not taken over
            unknown = None in self._files.values()
            for name in names:
                if not is_ours(name) or self._uses[name]:
                    continue
                number = int(name[:8]) if name[8] == "." else None
                if (number in self._files and not name.endswith(".tmp")) or (number is None and unknown):
                    continue
                with suppress(OSError):
                    self._folder.unlink(name)
