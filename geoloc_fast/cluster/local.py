"""Workers that are processes of this machine. One that is lost is started again by the thread that noticed it."""

from __future__ import annotations

import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from geoloc_fast.cluster.process import packed
from geoloc_fast.errors import WorkerLostError

__all__ = ["LocalExecutor", "LocalWorker"]

_PAUSE_S = 1.0  # between two starts of a process that does not live


class LocalWorker:
    """A process, and the one that takes its place when it is lost."""

    def __init__(self, name: str, recipe: bytes, threads: int) -> None:
        self.name = name
        self._recipe, self._threads = recipe, threads
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._number = 0
        self._stopped = threading.Event()
        self._process, self._connection, self._outgoing = self._started()
        threading.Thread(target=self._watch, name=f"geoloc_fast {name}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _started(self) -> tuple[subprocess.Popen[bytes], Connection, queue.SimpleQueue[bytes | None]]:
        ours, theirs = socket.socketpair()
        # OpenMP reads it once, when torch is imported.
        env = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        command = [sys.executable, "-m", "geoloc_fast.cluster.process", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env)
        connection = Connection(ours.detach())
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def send() -> None:  # in a thread: a process that hangs must not hold whoever asks it
            with suppress(OSError):
                while (content := outgoing.get()) is not None:
                    connection.send_bytes(content)

        outgoing.put(self._recipe)
        threading.Thread(target=send, daemon=True).start()
        return process, connection, outgoing

    def call(self, method: str, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            self._number += 1
            content = packed((self._number, method, args))
            if self._stopped.is_set() or self._process.poll() is not None:
                future.set_exception(WorkerLostError(f"{self.name}: its process has ended"))
            else:
                self._waiting[self._number] = future
                self._outgoing.put(content)
        return future

    def _watch(self) -> None:
        while True:
            began, connection = time.monotonic(), self._connection
            with suppress(EOFError, OSError):
                while True:
                    number, right, value = pickle.loads(connection.recv_bytes())
                    with self._lock:
                        future = self._waiting.pop(number)
                    if right:
                        future.set_result(value)
                    else:
                        future.set_exception(value)
            self._process.wait()
            with self._lock:
                self._outgoing.put(None)
                lost, self._waiting = self._waiting, {}
            connection.close()
            for future in lost.values():
                future.set_exception(WorkerLostError(f"{self.name}: its process ended ({self._process.returncode})"))
            if self._stopped.wait(max(0.0, _PAUSE_S - (time.monotonic() - began))):
                return
            with self._lock:
                if self._stopped.is_set():
                    return
                self._process, self._connection, self._outgoing = self._started()

    def stop(self) -> None:
        with self._lock:
            self._stopped.set()
            self._process.kill()
        self._process.wait()


class LocalExecutor:
    """Processes of this machine."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._started: list[LocalWorker] = []

    def start(
        self, name: str, make: str, *args: Any, threads: int = 1, cpus: float = 0, gpus: float = 0,
        label: str | None = None,
    ) -> LocalWorker:  # fmt: skip
        worker = LocalWorker(name, packed((make, args, threads)), threads)
        self._started.append(worker)
        return worker

    def close(self) -> None:
        while self._started:
            self._started.pop().stop()
