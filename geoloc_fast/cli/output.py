"""What every command prints: results to stdout as text or JSON, progress to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer


def say(values: dict[str, Any], text: str, as_json: bool) -> None:
    """One result on stdout: as JSON, or as a sentence."""
    typer.echo(json.dumps(values, indent=1) if as_json else text)


@contextmanager
def progress(title: str, **options: Any) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, none if that is no terminal, drawn by calling what it yields with (done, of how many)."""
    from tqdm import tqdm

    with tqdm(desc=title, leave=False, disable=None, **{"unit": "", **options}) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextmanager
def bar(total: int | None, title: str, **options: Any) -> Iterator[Any]:
    """A progress bar on stderr, drawn only if that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, leave=False, **{"disable": None, "unit": "", **options}) as shown:
        yield shown


def counted(images: Any, shown: Any) -> Iterator[Any]:
    """The same images, each counted by the bar when it has been dealt with."""
    for image in images:
        yield image
        shown.update(1)
