"""What can be wrong with an index, as types a program can tell apart."""

from __future__ import annotations

__all__ = [
    "DamagedIndexError",
    "IndexBusyError",
    "IndexVersionError",
    "OtherModelError",
    "PlaceIndexError",
    "UnsureCommitError",
]


class PlaceIndexError(ValueError):
    """The folder is no index, or cannot do what was asked. The message says what to do."""


class DamagedIndexError(PlaceIndexError):
    """Bytes of the index are missing or altered."""


class IndexVersionError(PlaceIndexError):
    """The index was made by a newer version of this program."""


class OtherModelError(PlaceIndexError):
    """Strips of one model were brought to the index of another."""


class IndexBusyError(PlaceIndexError):
    """Another process is writing to the index."""


class UnsureCommitError(OSError):
    """The disk failed when the commit had been written: it may last or not. Any other error leaves the state before.

    The index shows what the disk says now. `commit` is the number of the commit in doubt.
    """

    def __init__(self, message: str, commit: int) -> None:
        super().__init__(message)
        self.commit = commit
