"""Read image bytes from one folder and nowhere else: plain files, and members of tar shards.

A manifest comes from other people. A path in it is relative to the manifest's folder, with forward slashes:
`images/a.jpg`, or `shard.tar::a.jpg` for a member of an uncompressed tar file. It never leads out of
the folder, by `..`, by being absolute, or through a symbolic link.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from geoloc_fast.errors import ImageError

__all__ = ["MAX_FILE_BYTES", "MAX_SHARD_MEMBERS", "Storage", "read_file", "unsafe_path_reason"]

MAX_FILE_BYTES = 1 << 28  # no photo or panorama is larger; what claims to be is refused unread
MAX_SHARD_MEMBERS = 200_000  # a shard's table of contents stays in memory
_SHARDS_OPEN = 64
SHARD_SEPARATOR = "::"

# The reasons a path is refused for, as patterns that both `re` and Arrow's RE2 understand.
UNSAFE_PATHS = {
    r"^$": "is empty",
    r"[\x00-\x1f\x7f]": "has a control character in it",
    r"\\": "has a backslash in it; folders are separated by /",
    r"://": "is an address; nothing is fetched from the network",
    r"^[A-Za-z]:": "starts with a drive letter; paths are relative to the manifest's folder",
    r"(^|::)/": "is absolute; paths are relative to the manifest's folder",
    r"(^|/|::)\.\.(/|::|$)": "goes up by ..; paths stay below the manifest's folder",
    r"::.*::|^::|::$": f"is not of the form shard.tar{SHARD_SEPARATOR}member",
    r"^(.{0,3}|.*[^r]|.*[^a]r|.*[^t]ar|.*[^.]tar)::": f"names a shard that is not a .tar file before {SHARD_SEPARATOR}",
}


def unsafe_path_reason(path: str) -> str | None:
    """Why a path of a manifest may not be opened, or None. Looks at the text only: links are checked when opening."""
    for pattern, reason in UNSAFE_PATHS.items():
        if re.search(pattern, path):
            return reason
    return None


def read_file(path: str | os.PathLike[str], name: str) -> bytes:
    """All bytes of a file that a person named, wherever it lies; ImageError, which calls it `name`, if it cannot be
    opened, is too large or no plain file."""
    try:
        # Without waiting: a named pipe would hold us for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # a ValueError: a name with a null in it
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(name, f"cannot be opened: {reason}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, "is not a plain file")
        return _read_span(handle, name, 0, status.st_size, status.st_size)
    finally:
        os.close(handle)


class Storage:
    """Reads files below `root`. Safe to share with worker processes; holds no open files."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        # Tables of contents of shards: path -> (identity of the file, {member: (offset, size)})
        self._shards: OrderedDict[str, tuple[tuple[int, int, int], dict[str, tuple[int, int]]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    def read(self, path: str) -> bytes:
        """All bytes of a file or shard member. ImageError if it is missing, unsafe, too large or not a plain file."""
        reason = unsafe_path_reason(path)
        if reason is not None:
            raise ImageError(path, f"the path {reason}")
        name, _, member = path.partition(SHARD_SEPARATOR)
        handle = self._open(path, name)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(path, "is not a plain file")
            if not member:
                return _read_span(handle, path, 0, status.st_size, status.st_size)
            members = self._members(handle, path, name, status)
            if os.path.normpath(member) not in members:
                raise ImageError(path, f"{name} has no plain file of this name in it")
            offset, size = members[os.path.normpath(member)]
            return _read_span(handle, path, offset, size, status.st_size)
        finally:
            os.close(handle)

    def _open(self, path: str, name: str) -> int:
        real_root = os.path.realpath(self.root)
        real = os.path.realpath(os.path.join(real_root, name))
        if os.path.commonpath([real, real_root]) != real_root:
            raise ImageError(path, "a symbolic link leads out of the manifest's folder")
        try:
            # Without waiting: a named pipe would otherwise hold the worker for ever. Without following: the
            # path has no links left in it, so a link here was put there in between.
            return os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ImageError(path, "there is no such file") from error
        except OSError as error:
            raise ImageError(path, f"cannot be opened: {error.strerror}") from error

    def _members(self, handle: int, path: str, name: str, status: os.stat_result) -> dict[str, tuple[int, int]]:
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._shards.get(name)
        if known is not None and known[0] == identity:
            self._shards.move_to_end(name)
            return known[1]
        members: dict[str, tuple[int, int]] = {}
        try:
            with os.fdopen(os.dup(handle), "rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
                while (entry := shard.next()) is not None:
                    shard.members = []  # type: ignore[attr-defined]  # it would keep every entry
                    # Links, devices and sparse files are left out: their bytes are not what the entry says.
                    if entry.isreg() and not entry.issparse() and unsafe_path_reason(entry.name) is None:
                        members[os.path.normpath(entry.name)] = (entry.offset_data, entry.size)
                        if len(members) > MAX_SHARD_MEMBERS:
                            raise ImageError(path, f"{name} has more than {MAX_SHARD_MEMBERS} files in it")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(path, f"{name} is not a readable tar file: {error}") from error
        self._shards[name] = (identity, members)
        if len(self._shards) > _SHARDS_OPEN:
            self._shards.popitem(last=False)
        return members


def _read_span(handle: int, path: str, offset: int, size: int, file_size: int) -> bytes:
    if size > MAX_FILE_BYTES:
        raise ImageError(path, f"is {size} bytes long; at most {MAX_FILE_BYTES} are read")
    if offset < 0 or offset + size > file_size:
        raise ImageError(path, f"is cut off: {size} bytes announced, {max(0, file_size - offset)} there")
    parts = []
    while size > 0:
        part = os.pread(handle, size, offset)
        if not part:
            raise ImageError(path, "became shorter while it was read")
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)
