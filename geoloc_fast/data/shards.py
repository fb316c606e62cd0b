"""Millions of pairs as tar files: image, text and position of each, read as a stream.

    shards/pairs-000000.tar     000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...
    shards/pairs-000001.tar     ...

the layout that WebDataset reads too: files that follow each other and share a name up to its first dot are one sample.
`PairStream` reads it in an order that seed and epoch decide, through a buffer that shuffles, and can say at any sample
where it stands: a stream that is given this position goes on with the very next sample. It never holds a list of
samples: what waits in the buffer is where samples lie, not their bytes.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from geoloc_fast.errors import ShardError

__all__ = ["Pair", "PairStream", "Position", "write_shards"]

MAX_MEMBER_BYTES = 1 << 26
IMAGES = ("jpg", "jpeg", "png")
_BLOCK = 512  # of a tar file


class Pair(NamedTuple):
    """One sample."""

    key: str
    image: bytes
    """A JPEG or PNG, not decoded."""
    text: str
    lat: float | None
    lon: float | None


class Position(NamedTuple):
    """Where a stream stands: so many samples of an epoch have been given."""

    epoch: int
    given: int


def write_shards(
    pairs: Iterable[Pair], folder: str | os.PathLike[str], *, shard_bytes: int = 1 << 28, prefix: str = "pairs"
) -> list[Path]:
    """Writes pairs to tar files of about `shard_bytes` in a new or empty folder, each complete under its name or not at
    all; their paths. Keys are numbered anew."""
    if shard_bytes < _BLOCK:
        raise ValueError(f"shard_bytes: expected at least {_BLOCK}, got {shard_bytes}")
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    if any(root.glob(f"{prefix}-*.tar")):
        raise FileExistsError(f"folder: expected one without {prefix}-*.tar, got {root}")
    made: list[Path] = []
    partial = root / f".{prefix}.partial"
    number, file = 0, None
    try:
        for pair in pairs:
            if file is None:
                file = open(partial, "wb", buffering=1 << 20)  # noqa: SIM115
            suffix = "png" if pair.image.startswith(b"\x89PNG") else "jpg"
            position = json.dumps({"lat": pair.lat, "lon": pair.lon}).encode()
            for kind, content in ((suffix, pair.image), ("txt", pair.text.encode()), ("json", position)):
                file.write(_header(f"{number:09d}.{kind}", len(content)))
                file.write(content)
                file.write(bytes(-len(content) % _BLOCK))
            number += 1
            if file.tell() >= shard_bytes:
                made.append(_finish(file, root / f"{prefix}-{len(made):06d}.tar"))
                file = None
        if file is not None:
            made.append(_finish(file, root / f"{prefix}-{len(made):06d}.tar"))
            file = None
    finally:
        if file is not None:
            file.close()
            partial.unlink(missing_ok=True)
    return made


def _header(name: str, size: int) -> bytes:
    """Of a plain file in a ustar archive."""
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"pairs: expected files of at most {MAX_MEMBER_BYTES} bytes, got {name} of {size}")
    fields = b"%b0000644\x000000000\x000000000\x00%011o\x0000000000000\x00        0" % (
        name.encode().ljust(100, b"\0"),
        size,
    )
    header = bytearray(fields.ljust(257, b"\0") + b"ustar\x0000".ljust(_BLOCK - 257, b"\0"))
    header[148:156] = b"%06o\x00 " % sum(header)
    return bytes(header)


def _finish(file: IO[bytes], path: Path) -> Path:
    file.write(bytes(2 * _BLOCK))
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(file.name, path)
    return path


class _Shard:
    """An open tar file; closed with the last sample that lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def read(self, at: tuple[int, int]) -> bytes:
        content = os.pread(self.file.fileno(), at[1], at[0])
        if len(content) != at[1]:
            raise ShardError(f"{self.path}: expected {at[1]} bytes at {at[0]}, got {len(content)}: the file was cut")
        return content


class _Member(NamedTuple):
    """Where a sample lies: offset and size of each of its files."""

    shard: _Shard
    key: str
    image: tuple[int, int]
    text: tuple[int, int]
    position: tuple[int, int] | None

    def pair(self) -> Pair:
        try:
            text = self.shard.read(self.text).decode()
            told = {} if self.position is None else json.loads(self.shard.read(self.position))
            lat, lon = (None if told.get(name) is None else float(told[name]) for name in ("lat", "lon"))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"{self.shard.path}: {self.key}: expected text and position, got {error}") from error
        return Pair(self.key, self.shard.read(self.image), text, lat, lon)


def _members(path: Path) -> Iterator[_Member]:
    """The samples of a tar file, in its order, from its headers alone."""
    shard = _Shard(path)
    size = os.fstat(shard.file.fileno()).st_size
    if size == 0:
        raise ShardError(f"{path}: expected a tar file, got an empty one")
    key = ""
    parts: dict[str, tuple[int, int]] = {}
    with mmap.mmap(shard.file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at, ended = 0, False
        while at + _BLOCK <= size:
            header = content[at : at + _BLOCK]
            if not header.strip(b"\0"):
                ended = True
                break
            name, length = _parsed(header, path, at)
            if header[156:157] in (b"0", b"\0"):  # a plain file; others (long names, folders) belong to no sample
                if at + _BLOCK + length > size:
                    raise ShardError(f"{path}: expected {length} bytes of {name}, got the end of the file: it was cut")
                stem, _, kind = name.rpartition("/")[2].partition(".")
                if stem != key:
                    yield from _sample(shard, key, parts)
                    key, parts = stem, {}
                parts[kind.lower()] = (at + _BLOCK, length)
            at += _BLOCK + -(-length // _BLOCK) * _BLOCK
        if not ended and at != size:
            raise ShardError(f"{path}: expected a tar file to its end, got {size - at} bytes after {at}: it was cut")
    yield from _sample(shard, key, parts)


def _sample(shard: _Shard, key: str, parts: dict[str, tuple[int, int]]) -> Iterator[_Member]:
    if not parts:
        return
    image = next((parts[kind] for kind in IMAGES if kind in parts), None)
    if image is None or "txt" not in parts:
        raise ShardError(f"{shard.path}: {key}: expected .txt and one of {', '.join(IMAGES)}, got {', '.join(parts)}")
    yield _Member(shard, key, image, parts["txt"], parts.get("json"))


def _parsed(header: bytes, path: Path, at: int) -> tuple[str, int]:
    """Name and size; ShardError if it is no header."""
    try:
        told = int(header[148:156].strip(b"\0 "), 8)
        length = int(header[124:136].strip(b"\0 "), 8)
        name = header[:100].rstrip(b"\0").decode()
    except ValueError as error:
        raise ShardError(f"{path}: expected the header of a file at {at}, got {error}") from error
    if told != sum(header) - sum(header[148:156]) + 8 * 32:
        raise ShardError(f"{path}: expected the header's checksum at {at}, got another: the file is damaged")
    if length > MAX_MEMBER_BYTES:
        raise ShardError(f"{path}: expected files of at most {MAX_MEMBER_BYTES} bytes, got {name} of {length}")
    return name, length


class PairStream:
    """Pairs of tar files, epoch after epoch.

    An epoch shuffles the shards, and samples within a buffer of `buffer` pairs: each sample that comes takes the place
    of one drawn from the buffer, which is given. Of several processes each reads the shards `rank`, `rank + world`, ...
    of the epoch's order. The order depends on seed, epoch, rank, world, buffer and the files alone.

    To go on at a position, the epoch is run again up to it without handing anything out: only headers are read.

    Args:
        shards: tar files, or a folder of them.
        buffer: pairs that wait in memory, 1 for no shuffling within shards.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        seed: int = 0,
        buffer: int = 4096,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if isinstance(shards, str | os.PathLike):
            paths = sorted(Path(shards).glob("*.tar"))
        else:
            paths = [Path(path) for path in shards]
        if not paths:
            raise ShardError(f"shards: expected a folder of tar files, or such files, got none in {shards}")
        if buffer < 1:
            raise ValueError(f"buffer: expected at least 1, got {buffer}")
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected 0 to {world - 1}, got {rank}")
        self.paths, self.seed, self.buffer, self.rank, self.world = paths, seed, buffer, rank, world
        self.position = Position(0, 0)
        """Of the next sample that `epoch` will give; may be set."""

    def epoch(self) -> Iterator[Pair]:
        """The rest of the epoch at `position`; at its end the position is the next one's beginning."""
        number, skip = self.position
        rng = np.random.default_rng([self.seed, number, self.rank])
        order = np.random.default_rng([self.seed, number]).permutation(len(self.paths))[self.rank :: self.world]
        waiting: list[_Member] = []
        given = 0
        for member in (member for at in order for member in _members(self.paths[at])):
            if len(waiting) < self.buffer:
                waiting.append(member)
                continue
            at = int(rng.integers(self.buffer))
            out, waiting[at] = waiting[at], member
            given += 1
            if given > skip:
                yield self._gives(out, number, given)
        for at in rng.permutation(len(waiting)):
            given += 1
            if given > skip:
                yield self._gives(waiting[at], number, given)
        self.position = Position(number + 1, 0)

    def _gives(self, member: _Member, epoch: int, given: int) -> Pair:
        pair = member.pair()
        self.position = Position(epoch, given)
        return pair
