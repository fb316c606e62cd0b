"""The folder of an index, and the few things that are done to files in it.

Everything is reached through the folder's descriptor: if another folder is put in its place, nothing of the two is
mixed up. No link is followed, and nothing but plain files is opened. A file is made under a free name or not at all.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from geoloc_fast.errors import DamagedIndexError, IndexBusyError, PlaceIndexError

__all__ = ["Folder", "Lock", "MappedFile", "damaged"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a named pipe would hold us for ever
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PART = 1 << 22
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.ENOTDIR)  # a link, a socket
# File systems where a lock or a link does not mean what it must.
_SHARED = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs"})


def damaged(path: object, reason: str) -> DamagedIndexError:
    """The error for a file that is not what was written, with what can be done."""
    return DamagedIndexError(f"{path}: damaged ({reason}); restore it from a copy, or build the index again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A disk that fails is not damage."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _NO_FILE:
            raise damaged(path, "it is a link or no plain file") from error
        text = f"{path}: cannot be read ({error.strerror}); nothing says that it is damaged: try again"
        raise OSError(error.errno, text) from error


class Folder:
    """An open folder. FileNotFoundError or NotADirectoryError if there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, _FOLDER)
        weakref.finalize(self, os.close, self.descriptor)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def inside(self, name: str, make: bool = False) -> Folder:
        """A folder in it."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self.descriptor)
        found = Folder.__new__(Folder)
        found.path = self.path / name
        with _reading(found.path):
            found.descriptor = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self.descriptor)
        weakref.finalize(found, os.close, found.descriptor)
        return found

    def is_at(self, path: Path) -> bool:
        """Whether this is the folder that lies there now."""
        try:
            with _reading(path):
                there, here = os.stat(path), os.fstat(self.descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    # --- reading ---------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        with _reading(self.path):
            # A descriptor of its own: where a listing stands belongs to the descriptor, and threads share it.
            own = os.open(".", _FOLDER, dir_fd=self.descriptor)
            try:
                return os.listdir(own)
            finally:
                os.close(own)

    def open(self, name: str) -> int:
        """A descriptor of a plain file. FileNotFoundError if it is missing."""
        with _reading(self / name):
            handle = os.open(name, _READ, dir_fd=self.descriptor)
            try:
                plain = stat.S_ISREG(os.fstat(handle).st_mode)
            except BaseException:
                os.close(handle)
                raise
        if not plain:
            os.close(handle)
            raise damaged(self / name, "it is a link or no plain file")
        return handle

    def read(self, name: str, most: int) -> bytes:
        """The content of a file of at most so many bytes."""
        handle = self.open(name)
        try:
            with _reading(self / name):
                if os.fstat(handle).st_size > most:
                    raise damaged(self / name, f"it is larger than {most} bytes")
                parts = []
                while part := os.read(handle, _PART):
                    parts.append(part)
                return b"".join(parts)
        finally:
            os.close(handle)

    def sha256(self, name: str, progress: Callable[[int], None] | None = None) -> str:
        digest, handle = hashlib.sha256(), self.open(name)
        try:
            with _reading(self / name):
                while part := os.read(handle, _PART):
                    digest.update(part)
                    if progress is not None:
                        progress(len(part))
        finally:
            os.close(handle)
        return digest.hexdigest()

    def strange(self) -> list[str]:
        """What lies in it that is neither a plain file nor a folder."""
        found = []
        for name in self.names():
            with suppress(FileNotFoundError), _reading(self / name):
                mode = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    found.append(f"{self / name}: is a link or no plain file; nothing of an index is")
        return found

    def links(self, name: str) -> int:
        """How many names the file has."""
        return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_nlink

    # --- writing ---------------------------------------------------------------------------------------------

    def write(self, name: str, parts: Iterable[memoryview | bytes]) -> tuple[int, str]:
        """Makes and syncs a file, its name not yet; (bytes, sha256). FileExistsError if the name is taken."""
        digest, size = hashlib.sha256(), 0
        handle = os.open(name, _MAKE, 0o644, dir_fd=self.descriptor)
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                digest.update(view)
                size += len(view)
                while view:
                    view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        return size, digest.hexdigest()

    def link(self, source: str, name: str, to: Folder | None = None) -> None:
        """A second name for a file; FileExistsError if that is taken."""
        target = (to or self).descriptor
        os.link(source, name, src_dir_fd=self.descriptor, dst_dir_fd=target, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Makes the names in it last."""
        own = os.open(".", _FOLDER, dir_fd=self.descriptor)
        try:
            os.fsync(own)
        finally:
            os.close(own)


class MappedFile:
    """A file as memory, read when it is touched. No descriptor stays open, and it may be unlinked meanwhile."""

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        """FileNotFoundError if it is missing, DamagedIndexError if it has another size."""
        self._folder, self._name, self._size = folder, name, size
        handle = folder.open(name)
        try:
            with _reading(folder / name):
                status = os.fstat(handle)
                if status.st_size != size:
                    raise damaged(folder / name, f"expected {size} bytes, got {status.st_size}")
                self.memory = _map(handle, size)
        finally:
            os.close(handle)
        self._file = status.st_dev, status.st_ino

    @property
    def path(self) -> Path:
        return self._folder / self._name

    def array(self, kind: np.dtype, begin: int, count: int) -> np.ndarray:
        return np.frombuffer(memoryview(self.memory), kind, count, begin)

    def check(self) -> None:
        """Reading memory beyond the end of its file kills the process, so a file that was cut is found out before."""
        try:
            with _reading(self.path):
                status = os.stat(self._name, dir_fd=self._folder.descriptor, follow_symlinks=False)
        except FileNotFoundError:  # a compaction took its name; nobody can cut it any more
            return
        if (status.st_dev, status.st_ino) == self._file and status.st_size != self._size:
            raise damaged(self.path, f"it had {self._size} bytes when it was opened and has {status.st_size} now")


# Python's own map keeps a descriptor for each file.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def _map(handle: int, size: int) -> ctypes.Array[ctypes.c_ubyte]:
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE, handle, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False  # something may still read it then
    return memory


# --- the one writer ----------------------------------------------------------------------------------------------


class Lock:
    """Held by the one process that writes: on the folder itself, which no one can put another in the place of. It goes
    with the object; a forked child does not have it."""

    def __init__(self, folder: Folder) -> None:
        kind = file_system(os.fstat(folder.descriptor).st_dev, _mounts())
        if kind in _SHARED:
            raise OSError(
                f"{folder.path}: lies on {kind}, where two machines could write at once; keep the index on a local "
                "disk, and copy it"
            )
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder.descriptor, effective_ids=True):
            raise OSError(f"{folder.path}: cannot be written to; open it for reading")
        handle = os.open(".", _FOLDER, dir_fd=folder.descriptor)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            text = "another process is writing to this index; wait until it is done"
            raise IndexBusyError(f"{folder.path}: {text}") from error
        except BaseException:
            os.close(handle)
            raise
        self._process = os.getpid()
        self._close = weakref.finalize(self, os.close, handle)
        _held.add(self)

    @property
    def held(self) -> bool:
        return self._close.alive and self._process == os.getpid()

    def release(self) -> None:
        self._close()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _in_child() -> None:
    for lock in list(_held):
        lock.release()  # closes this process's copy; the parent's goes on holding


os.register_at_fork(after_in_child=_in_child)


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return ""


def file_system(device: int, mounts: str) -> str | None:
    """The kind of file system of a device, as /proc/self/mountinfo has it; None if it does not say."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        if left.split(" ")[2:3] == [number]:
            return right.split(" ")[0]
    return None


def no_links(error: OSError) -> bool:
    """Whether a link failed because there are none here."""
    return error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def without_links(folder: Folder) -> PlaceIndexError:
    return PlaceIndexError(
        f"{folder.path}: lies on a file system without hard links, which a commit needs; keep the index on another"
    )
