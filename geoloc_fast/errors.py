"""All errors that this package defines, in one tree. `exit_code` is the exit code of the command line.

A wrong argument of a function raises a TypeError or ValueError, as usual in Python; a failing disk raises an OSError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BundleError",
    "BusyError",
    "CaseError",
    "ClusterError",
    "ConfidenceError",
    "DamagedIndexError",
    "GeolocError",
    "ImageError",
    "ImageryError",
    "IndexBusyError",
    "IndexVersionError",
    "ManifestError",
    "MissingShardsError",
    "NoSuchCaseError",
    "OtherModelError",
    "PlaceIndexError",
    "PrepareError",
    "ReplacedIndexError",
    "ShardError",
    "TrainingStopped",
    "UnsureCommitError",
    "WeightsError",
    "WordError",
    "WorkerLostError",
]


class GeolocError(Exception):
    """The base of this package's errors; the message says what is wrong and what to do."""

    exit_code = 1


class ImageError(GeolocError, ValueError):
    """An image that cannot be read because of its file, which the message names.

    A plain DataLoader of torch keeps only the text of what a worker raised: `path` is all of that then, and `reason`
    is empty. Ours (`datasets.loader`) hands it on whole.
    """

    def __init__(self, path: str, reason: str = "") -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path


class ManifestError(GeolocError, ValueError):
    """A manifest that cannot be used. `problems` lists everything that was found; the message shows the first ones."""

    shown = 20

    def __init__(self, problems: Sequence[Any]) -> None:
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"the manifest has {count} problem{'s' * (count != 1)}"]
        lines += [f"  {problem}" for problem in self.problems[: self.shown]]
        if count > self.shown:
            lines.append(f"  and {count - self.shown} more")
        return "\n".join(lines)


class ImageryError(GeolocError, ValueError):
    """Imagery that cannot be used; the message says why and what to do."""


class PrepareError(GeolocError, RuntimeError):
    """Preparation cannot continue; finished parts are kept."""


class ShardError(GeolocError, ValueError):
    """A tar file without training pairs, or a damaged one."""


class WordError(GeolocError, ValueError):
    """A description that is not usable text, or a tokenizer that does not work."""


class BundleError(GeolocError, ValueError):
    """A file that is not a model bundle this version can load, or a damaged one."""


class WeightsError(GeolocError, ValueError):
    """A file without weights for this network, or with more than weights in it."""


class ConfidenceError(GeolocError, ValueError):
    """A file holds no confidence of this model that this version can read."""


class TrainingStopped(GeolocError, RuntimeError):
    """Training cannot go on; the message says why and what is left."""


class PlaceIndexError(GeolocError, ValueError):
    """The folder is no index, or cannot do what was asked. The message says what to do."""


class DamagedIndexError(PlaceIndexError):
    """Bytes of the index are missing or altered."""

    exit_code = 3


class IndexVersionError(PlaceIndexError):
    """The index was made by a newer version of this program."""


class OtherModelError(PlaceIndexError):
    """Strips of one model were brought to the index of another."""


class IndexBusyError(PlaceIndexError):
    """Another process is writing to the index."""


class ReplacedIndexError(PlaceIndexError):
    """Another index, or none, lies where this one was opened."""


class UnsureCommitError(GeolocError, OSError):
    """The disk failed when a commit was made: it may last or not. Any other error leaves the state before.

    The index that raised it refuses to write until `refresh`, or until it is opened anew. `commit` is the number of
    the commit in doubt.
    """

    def __init__(self, message: str, commit: int) -> None:
        super().__init__(message)
        self.commit = commit


class CaseError(GeolocError, ValueError):
    """A case that is damaged, is sealed, or cannot do what was asked. `status` is what the service answers with."""

    status = 409


class NoSuchCaseError(CaseError):
    """A case that is not there."""

    status = 404


class BusyError(GeolocError):
    """More waits at the service than its queue holds; try again later."""


class ClusterError(GeolocError, RuntimeError):
    """A cluster that cannot be had or used; the message says what to do."""


class WorkerLostError(ClusterError):
    """A worker was lost before it answered."""


class MissingShardsError(ClusterError):
    """Shards of an index did not answer. `coverage` says which."""

    def __init__(self, message: str, coverage: Any = None) -> None:
        super().__init__(message)
        self.coverage = coverage
