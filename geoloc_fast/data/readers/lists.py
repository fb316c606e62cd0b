"""Reading the small text files and folders that published data sets are made of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from geoloc_fast.data.manifest import Problem
from geoloc_fast.errors import ManifestError

__all__ = ["file_names", "lines_of", "warn_left_out"]


def lines_of(root: Path, name: str) -> list[str]:
    """The lines of a text file of the data set, without empty ones at its end."""
    try:
        return (root / name).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        raise ManifestError([Problem(name, None, None, f"is missing in {root}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError([Problem(name, None, None, f"cannot be read: {error}")]) from error


def file_names(folder: Path) -> set[str]:
    """Names in a folder; none if there is no such folder. One look at the folder, not one a file."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def warn_left_out(what: str, left_out: Sequence[str], total: int) -> None:
    """Says which entries of a list have no image: nothing is dropped in silence."""
    if left_out:
        shown = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        warnings.warn(f"{len(left_out)} of {total} {what} are left out, their image is missing: {shown}", stacklevel=3)
