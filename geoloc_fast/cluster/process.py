"""A worker process of `local.py`: `python -m geoloc_fast.cluster.process DESCRIPTOR`.

Messages are pickles between a program and a process it started itself, over a socket that nobody else has. The process
ends when the socket is closed: nothing is left when the program is killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from geoloc_fast.cluster.executor import Host


def packed(value: Any) -> bytes:
    """A message."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def _answer(number: int, right: bool, value: Any) -> bytes:
    try:
        content = packed((number, right, value))
        if not right:
            pickle.loads(content)  # some exceptions can be packed and not be unpacked
        return content
    except Exception:
        return packed((number, False, RuntimeError(f"{type(value).__name__}: {value}")))


def main() -> None:
    """Answers calls until the socket is closed."""
    connection = Connection(int(sys.argv[1]))
    calls: queue.Queue[Any] = queue.Queue()

    def receive() -> None:
        try:
            while True:
                calls.put(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(0)  # nobody is left to answer, in whatever the other thread is now

    make, args, threads = pickle.loads(connection.recv_bytes())
    threading.Thread(target=receive, daemon=True).start()
    host = Host(make, args, threads)
    while True:
        number, method, given = calls.get()
        try:
            content = _answer(number, True, host.call(method, given))
        except Exception as error:
            content = _answer(number, False, error)
        try:
            connection.send_bytes(content)
        except OSError:
            os._exit(0)


if __name__ == "__main__":
    main()
