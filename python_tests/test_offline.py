"""That no test can reach a network, nor a process that a test starts."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

OUTSIDE = ("192.0.2.1", 9)  # an address of nobody, for documentation


def test_nothing_but_this_machine_can_be_reached() -> None:
    with socket.socket() as stream, pytest.raises(PermissionError, match=r"socket\.connect .*stay on this machine"):
        stream.connect(OUTSIDE)
    with socket.socket() as stream, pytest.raises(PermissionError):
        stream.connect_ex(OUTSIDE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram, pytest.raises(PermissionError):
        datagram.sendto(b"x", OUTSIDE)
    for host in ("", "0.0.0.0"):
        with socket.socket() as server, pytest.raises(PermissionError, match=r"socket\.bind"):
            server.bind((host, 0))
    with pytest.raises(PermissionError, match="getaddrinfo"):
        socket.getaddrinfo("example.org", 80)
    with pytest.raises(OSError, match="stay on this machine"):
        urllib.request.urlopen("http://example.org/", timeout=1)


def test_this_machine_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as named:
        named.bind("here")


def _reach(_: int) -> str:
    try:
        socket.create_connection(OUTSIDE, timeout=1)
    except OSError as error:
        return type(error).__name__
    return "connected"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_nor_from_a_process_that_a_test_starts(method: str) -> None:
    if method == "fork":
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.map(_reach, [0]) == ["PermissionError"]
        return
    code = f"import socket; socket.create_connection({OUTSIDE}, timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "PermissionError" in done.stderr
