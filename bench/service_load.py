"""How the service bears load: throughput by threads, latency over HTTP, good clients beside hostile ones.

    python bench/service_load.py --places 100000

Places have random strips, photos are plain pictures: the work is that of real ones, the answers mean nothing. Ways by
threads are interleaved in one process; over HTTP the service, the good clients and the hostile ones are a process each,
and the service's memory is watched. The load of the machine is printed with them: all of them share its cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "python_tests" / "serve"))

from served_town import Running, make_served, opened, photo_bytes  # type: ignore[import-not-found]

from geoloc_fast.locate.locator import Locator
from geoloc_fast.serve.app import Service
from geoloc_fast.serve.engine import Engine, Question, Served
from geoloc_fast.serve.guard import Limits

PHOTOS = [photo_bytes(n) for n in range(32)]
_HEAD = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
BODIES = [_HEAD + photo + b"\r\n--b--\r\n" for photo in PHOTOS]
HOSTILE, PAUSE_S = 50, 0.2
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def rate(ask: Callable[[int], Any], threads: int, seconds: float) -> float:
    """Answers a second of so many threads that ask one after another."""
    counts = [0] * threads
    until = time.perf_counter() + seconds

    def work(thread: int) -> None:
        torch.set_num_threads(1)
        while time.perf_counter() < until:
            ask(counts[thread])
            counts[thread] += 1

    running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    began = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def latencies(port: int, clients: int, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of the requests of so many clients that ask one after another, and how many failed."""
    took: list[float] = []
    failed = 0
    until = time.perf_counter() + seconds

    def work() -> None:
        nonlocal failed
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        n = 0
        while time.perf_counter() < until:
            began = time.perf_counter()
            client.request("POST", "/v1/locate", BODIES[n % 32], FORM)
            response = client.getresponse()
            response.read()
            took.append(1000 * (time.perf_counter() - began))
            failed += response.status != 200
            n += 1
        client.close()

    running = [threading.Thread(target=work) for _ in range(clients)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return took, failed


def harm(port: int, kind: int, counts: list[int], stop: Any) -> None:
    """A client that means no good: slow, too large, malformed, or of ten thousand fields."""
    head = b"POST /v1/locate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    fields = b"--b\r\n" + b'Content-Disposition: form-data; name="f"\r\n\r\n1\r\n--b\r\n' * 10_000
    bodies = (
        (b"Content-Length: 900000\r\n\r\n", b"abc"),
        (b"Content-Length: 900000000\r\n\r\n", b""),
        (b"Content-Length: 12\r\n\r\n", b"--b\r\nnothing"),
        (f"Content-Length: {len(fields)}\r\n\r\n".encode(), fields),
    )
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=4) as bad:
                bad.sendall(head + b"".join(bodies[kind % 4]))
                bad.recv(1000)
        except OSError:
            pass
        counts[kind] += 1
        stop.wait(PAUSE_S)


def harm_all(port: int, count: int, stop: Any, told: Any) -> None:
    counts, began = [0] * count, time.perf_counter()
    running = [threading.Thread(target=harm, args=(port, n, counts, stop)) for n in range(count)]
    for thread in running:
        thread.start()
    told.put("begun")
    for thread in running:
        thread.join()
    told.put(round(sum(counts) / (time.perf_counter() - began)))


def serve(folder: str, port: Any, end: Any) -> None:
    torch.set_num_threads(1)
    running = Running(
        Service({"town": opened(Path(folder) / "town.index")}, limits=Limits(body_bytes=8 << 20, body_seconds=3.0))
    )
    port.put(running.port)
    end.wait()
    running.close()


def memory_mb(process: Any) -> int:
    """The most that it has held."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--places", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--keep", help="Folder whose index is used, or made, and stays.")
    parser.add_argument("--only", choices=("threads", "http"), help="Half of it.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or temporary
        town = Path(folder) / "town.index"
        served = opened(town) if town.exists() else make_served(town, given.places)
        found["places"] = len(served.index)
        if given.only != "http":
            found["photos_per_second"] = by_threads(served, given.seconds)
        if given.only != "threads":
            found |= over_http(folder, given.seconds)
    found["load_after"] = os.getloadavg()[0]
    print(json.dumps(found, indent=1))


def by_threads(served: Served, seconds: float) -> dict[str, float]:
    locator = Locator(served.index, served.model, confidence=served.confidence)

    def alone(n: int) -> None:
        list(locator.locate([PHOTOS[n % 32]]))

    ways: dict[str, list[float]] = {}
    for _ in range(3):
        for threads in (1, 4):
            ways.setdefault(f"locator_{threads}_threads", []).append(rate(alone, threads, seconds))
        for clients in (1, 4):
            with Engine({"town": served}, workers=2) as engine:
                ask = lambda n, engine=engine: engine.ask(Question(PHOTOS[n % 32], "town")).result()  # noqa: E731
                ways.setdefault(f"engine_{clients}_clients", []).append(rate(ask, clients, seconds))
    return {name: round(float(np.median(rates)), 1) for name, rates in ways.items()}


def over_http(folder: str, seconds: float) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    told, end = spawn.Queue(), spawn.Event()
    service = spawn.Process(target=serve, args=(folder, told, end))
    service.start()
    port = told.get(timeout=120)
    latencies(port, 8, 1.0)
    quiet, failed = latencies(port, 8, 2 * seconds)
    before = memory_mb(service)
    stop = spawn.Event()
    bad = multiprocessing.get_context("fork").Process(target=harm_all, args=(port, HOSTILE, stop, told))
    bad.start()
    told.get(timeout=120)  # they are at it
    beside, failed_beside = latencies(port, 8, 2 * seconds)
    stop.set()
    found: dict[str, Any] = {"hostile_per_second": told.get(timeout=60)}
    bad.join()
    found["memory_mb"] = [before, memory_mb(service)]
    end.set()
    service.join()
    for name, took, wrong in (("http_8_clients", quiet, failed), ("beside_50_hostile", beside, failed_beside)):
        p50, p95, p99 = np.percentile(took, (50, 95, 99)).round(1).tolist()
        found[name] = {"requests": len(took), "failed": wrong, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
    return found


if __name__ == "__main__":
    main()
