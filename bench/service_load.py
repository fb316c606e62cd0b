"""How the service bears load: throughput by threads, latency over HTTP, good clients beside hostile ones.

    python bench/service_load.py --places 100000

Places have random strips, photos are plain pictures: the work is that of real ones, the answers mean nothing. Ways are
interleaved in one process; the load of the machine is printed with them.
"""

from __future__ import annotations

import argparse
import json
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

from served_town import Running, make_served, photo_bytes  # type: ignore[import-not-found]

from geoloc_fast.locate.locator import Locator
from geoloc_fast.serve.app import Service
from geoloc_fast.serve.engine import Engine, Question
from geoloc_fast.serve.guard import Limits

PHOTOS = [photo_bytes(n) for n in range(32)]


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


def latencies(url: str, clients: int, seconds: float) -> tuple[list[float], int]:
    import httpx

    took: list[float] = []
    failed = 0
    until = time.perf_counter() + seconds

    def work() -> None:
        nonlocal failed
        with httpx.Client(base_url=url, timeout=60) as client:
            n = 0
            while time.perf_counter() < until:
                began = time.perf_counter()
                response = client.post("/v1/locate", files={"photo": ("x.jpg", PHOTOS[n % 32], "image/jpeg")})
                took.append(1000 * (time.perf_counter() - began))
                failed += response.status_code != 200
                n += 1

    running = [threading.Thread(target=work) for _ in range(clients)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return took, failed


def harm(port: int, stop: threading.Event, kind: int) -> None:
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
        stop.wait(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--places", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=6.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"places": given.places, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        served = make_served(Path(folder) / "town.index", given.places)
        locator = Locator(served.index, served.model, confidence=served.confidence)

        def alone(n: int) -> None:
            list(locator.locate([PHOTOS[n % 32]]))

        ways: dict[str, list[float]] = {}
        for _ in range(3):
            for threads in (1, 4):
                ways.setdefault(f"locator_{threads}_threads", []).append(rate(alone, threads, given.seconds))
            for clients in (1, 4):
                with Engine({"town": served}, workers=2) as engine:
                    ask = lambda n, engine=engine: engine.ask(Question(PHOTOS[n % 32], "town")).result()  # noqa: E731
                    ways.setdefault(f"engine_{clients}_clients", []).append(rate(ask, clients, given.seconds))
        found["photos_per_second"] = {name: round(float(np.median(rates)), 1) for name, rates in ways.items()}
        running = Running(Service({"town": served}, limits=Limits(body_bytes=8 << 20, body_seconds=3.0)))
        quiet, failed = latencies(running.url, 8, 2 * given.seconds)
        stop = threading.Event()
        bad = [threading.Thread(target=harm, args=(running.port, stop, n)) for n in range(50)]
        for thread in bad:
            thread.start()
        beside, failed_beside = latencies(running.url, 8, 2 * given.seconds)
        stop.set()
        for thread in bad:
            thread.join()
        running.close()
    for name, took, wrong in (("http_8_clients", quiet, failed), ("beside_50_hostile", beside, failed_beside)):
        p50, p95, p99 = np.percentile(took, (50, 95, 99)).round(1).tolist()
        found[name] = {"requests": len(took), "failed": wrong, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
    found["load_after"] = os.getloadavg()[0]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
