"""The interface of a cluster for the rest of this room: workers that hold an object and answer calls of its methods.

A worker is started with the name of what makes its object ("module:name") and the arguments for it, so that it can be
started again, here or elsewhere, when it is lost. A call gives a `Future`, which raises `WorkerLostError` if the worker
is lost before it answers; after a machine is lost that can take long, so whoever waits does so with a deadline.
"""

from __future__ import annotations

import importlib
import os
import re
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

import torch

from geoloc_fast.errors import ClusterError

__all__ = ["Executor", "Host", "Worker", "checked_label", "connect", "host_and_port"]

_LOCAL = re.compile(r"local(?::([1-9]\d{0,3}))?")
_RAY = "ray://"
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:/\s]+):(\d{1,5})")


class Worker(Protocol):
    """Something that holds an object, in another process."""

    name: str

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Asks its object; calls are answered in order."""

    def stop(self) -> None:
        """Ends it for good. What is still asked of it is lost."""


class Executor(Protocol):
    """What starts workers."""

    @property
    def workers(self) -> int:
        """How many to start unless somebody says."""

    def start(
        self, name: str, make: str, *args: Any, threads: int = 1, cpus: float = 0, gpus: float = 0,
        label: str | None = None,
    ) -> Worker:  # fmt: skip
        """A worker whose object is `make(*args)`. One that is lost comes back by itself.

        Args:
            make: "module:name" of a class or function that can be imported where the worker runs.
            threads: of torch.
            cpus, gpus: what it takes of a machine's, where several machines share the work.
            label: it runs on machines that were started with this label alone.
        """

    def close(self) -> None:
        """Ends all its workers."""


def connect(where: str) -> Executor:
    """The executor of a name: "local" or "local:N", processes of this machine; "ray://HOST:PORT", the Ray cluster of
    that head, which this machine must belong to. ClusterError if there is none."""
    if match := _LOCAL.fullmatch(where):
        from geoloc_fast.cluster.local import LocalExecutor

        return LocalExecutor(int(match[1] or len(os.sched_getaffinity(0))))
    if not where.startswith(_RAY) or (found := host_and_port(where.removeprefix(_RAY))) is None:
        raise ValueError(f"cluster: expected local, local:N or ray://HOST:PORT, got {where!r}")
    from geoloc_fast.cluster.on_ray import RayExecutor

    return RayExecutor(*found)


def host_and_port(text: str) -> tuple[str, int] | None:
    """(host, port) of "HOST:PORT"; None if it is none."""
    match = _ADDRESS.fullmatch(text)
    return (match[1].strip("[]"), int(match[2])) if match and 0 < int(match[2]) < 1 << 16 else None


def checked_label(text: str) -> str:
    """The label of machines, as it came. ValueError if Ray could not take it."""
    if _LABEL.fullmatch(text) is None:
        raise ValueError(f"label: expected letters, digits, '-', '_' and '.', got {text!r}")
    return text


class Host:
    """What runs in a worker. An object that could not be made is tried again at the next call, whose error says why."""

    def __init__(self, make: str, args: tuple[Any, ...], threads: int) -> None:
        torch.set_num_threads(threads)
        self._make, self._args = make, args
        self._object: Any = None
        with suppress(Exception):
            self._made()

    def _made(self) -> Any:
        if self._object is None:
            module, _, name = self._make.partition(":")
            try:
                make = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise ClusterError(f"{self._make}: cannot be imported where the worker runs ({error})") from error
            self._object = make(*self._args)
        return self._object

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        return getattr(self._made(), method)(*args)
