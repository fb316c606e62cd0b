"""The type of a progress callback."""

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[int, int | None], None]
"""Called with (done, total); the total is None where it is unknown."""
